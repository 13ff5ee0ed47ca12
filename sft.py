"""
Stage 1: supervised fine-tuning. Prompts with demonstrations in, a model that answers out
(Ouyang et al. 2022, section 3.5).

    python sft.py                                       # over two minutes on two CPU cores
    python sft.py --pick_by=reward.pt                   # the epoch that a reward model likes best
    python sft.py --pick_by=reward.pt --epochs=16 --dropout=0.2 --pretrain_mix=0 --no-muon

The loss is on the response alone, its end-of-text token included: the prompt is given, not learnt.
The last line is the paper's SFT (appendix C.1). Its RL starts from another one, which has
pretraining text mixed in (C.3), as every batch here. The two mean losses are added, each with
weight 1: --pretrain_mix says how many windows of text there are, not how much they count.
Left out: packing several demonstrations into a row.
"""
import plumbing.cpu     # first: settings that only work before torch is loaded
import copy
import math
import os
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import sampling
from common import (adamw, by_length, cosine, epoch_batches, generator, micro_batches, pad,
                    predicting, response_mask, to_float32, update)
from data import UserError, read_jsonl, turns_of
from data.text import read_texts, rows_that_fit
from muon import muon
from plumbing.command_line import Common, entry, flag, parse
from plumbing.device import to_device
from plumbing.processes import all_reduce
from plumbing.run import eval_line, open_run, progress_bar
from pretrain import lm_backward


@dataclass
class Config(Common):
    epochs: int = flag(2, "passes over the demonstrations", "[1, inf)")
    batch: int = flag(64, "demonstrations per step", "[1, inf)")
    micro_batch_size: int = flag(0, "rows in a forward pass; 0: the whole batch", "[0, inf)")
    lr: float = flag(2e-3, "peak learning rate: cosine to a tenth, no warm-up", "(0, inf)")
    weight_decay: float = flag(0.1, "on matrices", "[0, inf)")
    muon: bool = flag(True, "Muon on the blocks' matrices; --no-muon: AdamW, the paper's")
    dropout: float = flag(0.0, "on embeddings and residual branches; the paper has 0.2", "[0, 1)")
    pretrain_mix: float = flag(0.1, "windows of pretraining text a demonstration", "[0, inf)")
    pick_by: str = flag("", "a reward model in OUT that picks the epoch; empty keeps the last")
    demonstrations: int = flag(0, "use only so many; 0 is all", "[0, inf)")


SMOKE = {"epochs": 1, "batch": 32, "demonstrations": 640}


def sft_loss(logits, tokens, mask):
    """Mean of −log p(token | what comes before it) over the tokens where mask is 1, in nats.

    logits (B, T, V) of a full forward pass over tokens (B, T). mask (B, T) is 1 on response
    tokens, EOS included. The logits that predict tokens[:, t] are those at t − 1, so column 0 has
    none, and its mask is ignored. Logits may also be (n, V): those of the n positions that predict
    a token of the mask, row by row.
    """
    there = mask[:, 1:] != 0
    logits, targets = logits[:, :-1][there] if logits.dim() == 3 else logits, tokens[:, 1:][there]
    total = F.cross_entropy(to_float32(logits), targets, reduction="sum")
    return total / there.sum().clamp(min=1)


def encode_demonstrations(rows, vocab):
    """Rows of demonstrations.jsonl → [(tokens of prompt and response, number of prompt tokens)]."""
    pairs = [(vocab.prompt(row["prompt"]), vocab.response(row["response"])) for row in rows]
    return [(prompt + response, len(prompt)) for prompt, response in pairs]


def collate(examples, vocab, model):
    """Examples → tokens (B, T) right-padded, mask (B, T): 1 on the response and its EOS."""
    block = model.config.block_size
    tokens, lengths = pad([t for t, _ in examples], vocab.pad, model.device, block=block)
    prompt_lengths = torch.tensor([n for _, n in examples])
    return tokens, to_device(response_mask(prompt_lengths, lengths, tokens.size(1)), model.device)


def sft_backward(model, examples, mean_batch_tokens, vocab, micro_batch_size):
    """Add the gradient of (summed loss ÷ mean_batch_tokens) → the mean loss per response token.

    mean_batch_tokens: response tokens of an average batch. To divide by the batch's own number
    would weigh the tokens of short answers more, since a batch's answers have similar lengths.
    """
    total = torch.zeros((), device=model.device)
    for micro in micro_batches(examples, micro_batch_size):
        tokens, mask = collate(micro, vocab, model)
        loss = sft_loss(model(tokens, predicting(mask)), tokens, mask) * mask.sum()
        (loss / mean_batch_tokens).backward()
        total += loss.detach()
    return all_reduce(total) / response_tokens(examples)


def response_tokens(examples):
    return sum(len(tokens) - n_prompt for tokens, n_prompt in examples)


@torch.no_grad()
def heldout_loss(model, examples, vocab):
    """Mean loss per response token over `examples`."""
    lengths = [len(tokens) for tokens, _ in examples]
    total = 0.0
    for rows in by_length(lengths, rows_that_fit(128, max(lengths), model.config)):
        tokens, mask = collate([examples[i] for i in rows.tolist()], vocab, model)
        total += (sft_loss(model(tokens, predicting(mask)), tokens, mask) * mask.sum()).item()
    return total / response_tokens(examples)


def answer(model, rows, vocab, rng):
    """A sampled answer to each row's prompt, as long as the block allows → (prompts, responses)."""
    prompts = [vocab.prompt(row["prompt"]) for row in rows]
    room = model.config.block_size - max(map(len, prompts))
    return prompts, sampling.generate(model, prompts, room, eos=vocab.eos, generator=rng)


@torch.no_grad()
def mean_score(model, reward_model, rows, vocab, rng):
    """Mean reward-model score of one sampled answer to each row's prompt."""
    prompts, responses = answer(model, rows, vocab, rng)
    rows, block = [p + r for p, r in zip(prompts, responses)], model.config.block_size
    tokens, lengths = pad(rows, vocab.pad, model.device, block=block)
    return reward_model.score(tokens, lengths).mean().item()


def heldout_metrics(model, examples, rows, text, reward_model, run):
    """Losses on held-out text and demonstrations; with --pick_by the reward model's mean score."""
    metrics = {"eval/pretrain_loss": text.loss(model)[0]}
    if examples:
        metrics["eval/loss"] = heldout_loss(model, examples, run.vocab)
    if reward_model:
        metrics["eval/score"] = mean_score(model, reward_model, rows[:256], run.vocab,
                                           generator(run.config.seed, "pick"))
    return metrics


def main():
    config = parse(Config, __doc__, SMOKE)
    run = open_run("sft", config, parents=["pretrain"])
    if run.finished():
        return
    vocab, model = run.vocab, run.load_model("pretrain")
    model.set_dropout(config.dropout)
    run.compile(model)
    optimizer = (muon if config.muon else adamw)(model, config.lr, config.weight_decay)
    text, heldout_text = read_texts(run, model.config.block_size)

    path = os.path.join(run.folder, "demonstrations.jsonl")
    rows = read_jsonl(path, ["prompt", "response"], "train")
    heldout_rows = [row for row in read_jsonl(path, ["prompt", "response"])
                    if row.get("split") == "heldout"]       # there may be none
    if config.pick_by and not heldout_rows:
        raise UserError(f"--pick_by={config.pick_by}: {path} has no held-out lines to pick by")
    train = encode_demonstrations(rows[:config.demonstrations or len(rows)], vocab)
    heldout = encode_demonstrations(heldout_rows, vocab)
    lengths = [len(tokens) for tokens, _ in train]
    batches_per_epoch = math.ceil(len(train) / config.batch)
    steps = batches_per_epoch * config.epochs
    mean_batch_tokens = response_tokens(train) / batches_per_epoch
    print(f"{len(train):,} demonstrations ({response_tokens(train):,} response tokens), "
          f"{len(heldout):,} held out, {steps:,} steps")

    reward_model = run.load_reward_model(config.pick_by) if config.pick_by else None
    held = heldout, heldout_rows, heldout_text, reward_model, run
    best = {"score": float("-inf")}
    first = run.resume(model=model, optimizer=optimizer, best=best)
    progress = progress_bar(steps, first, "sft")
    for step in progress:
        epoch, i = divmod(step, batches_per_epoch)
        if i == 0 or step == first:
            batches = epoch_batches(lengths, config.batch, generator(config.seed, "epoch", epoch))
        batch = [train[j] for j in batches[i]]
        torch.manual_seed(config.seed * 1_000_003 + step)     # dropout draws from the global one
        model.train()
        loss = sft_backward(model, batch, mean_batch_tokens, vocab, config.micro_batch_size)
        metrics = {"loss": loss.item(), "epoch": step / batches_per_epoch}
        if n := round(config.pretrain_mix * len(batch)):
            windows = text.batch(n, generator(config.seed, "mix", step))
            pretrain_loss = lm_backward(model, windows, config.micro_batch_size)
            metrics["loss/pretrain"] = pretrain_loss.item()
        metrics["lr"] = config.lr * cosine(step, steps)
        metrics["grad_norm"] = update(model, optimizer, metrics["lr"])

        if i == batches_per_epoch - 1:
            model.eval()
            metrics |= heldout_metrics(model, *held)
            if metrics.get("eval/score", float("-inf")) > best["score"]:
                best.update(score=metrics["eval/score"], epoch=epoch + 1,
                            model=copy.deepcopy(model.state_dict()))
            progress.write(f"epoch {epoch + 1}: {eval_line(metrics)}")
        run.log(step, metrics)
        progress.set_postfix_str(f"loss {metrics['loss']:.3f}", refresh=False)
        run.checkpoint(step + 1, model=model, optimizer=optimizer, best=best)

    if reward_model:
        print(f"epoch {best['epoch']} is kept, by reward-model score")
        model.load_state_dict(best["model"])
    model.eval().set_dropout(0.0)
    results = {k.removeprefix("eval/"): v for k, v in heldout_metrics(model, *held).items()}
    run.finish(model, results)
    if heldout:
        print("\nsamples, for held-out prompts:")
        _, responses = answer(model, heldout_rows[:6], vocab, generator(config.seed, "samples"))
        for row, response in zip(heldout_rows, responses):
            question = turns_of(row["prompt"])[-1]["content"]
            print(f"  {question}\n    → {vocab.decode(response)}")


if __name__ == "__main__":
    entry(main)

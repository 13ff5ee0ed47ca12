"""
Stage 1: supervised fine-tuning. Prompts with demonstrations in, a model that answers out (Ouyang et al. 2022, section 3.5).

    python sft.py                            # about two minutes on two CPU cores
    python sft.py --epochs=16 --dropout=0.2  # the paper's
    python sft.py --pick_by=reward.pt        # keep the epoch whose answers that reward model likes best

The loss is on the response alone, its end-of-text token included: the prompt is given, not learnt. Every batch
also has pretraining text in it, as for the policy that the paper's RL starts from (appendix C.4); --pretrain_mix=0
leaves it out. Left out: packing several demonstrations into a row.
"""
import copy
import os
from dataclasses import dataclass

from common import (Common, Run, adamw, all_reduce, at_once, bar, by_length, cosine, document_batch, document_starts, entry, epoch_batches,
                    generator, load, model_from, pad, parse, set_dropout, shard, text_loss, update)     # before torch: it says how threads wait
from data import UserError, read_jsonl, read_tokens
from pretrain import lm_loss

import torch
import torch.nn.functional as F


@dataclass
class Config(Common):
    epochs: int = 2             # passes over the demonstrations
    batch: int = 32             # demonstrations a step
    micro: int = 0              # rows a forward pass, to save memory (gradients add up); 0 is the whole batch
    lr: float = 1e-3            # peak learning rate: cosine to a tenth, no warm-up
    weight_decay: float = 0.1   # on matrices
    dropout: float = 0.0        # on embeddings and residual branches; the paper has 0.2 and 16 epochs
    pretrain_mix: float = 0.1   # windows of pretraining text for each demonstration in a batch
    pick_by: str = ""           # a reward model in OUT, e.g. reward.pt, that picks the epoch; empty keeps the last
    demonstrations: int = 0     # use only so many; 0 is all


SMOKE = {"epochs": 1, "demonstrations": 640}


def sft_loss(logits, tokens, mask):
    """Mean of −log p(token | what comes before it) over the tokens where mask is 1, in nats.

    logits (B, T, V) of a full forward over tokens (B, T); mask (B, T) is 1 on response tokens, EOS included.
    The logits that predict tokens[:, t] are those at t − 1, so a mask on column 0 has no logits and is ignored.
    """
    targets = torch.where(mask[:, 1:] != 0, tokens[:, 1:], -100)
    logits = logits[:, :-1]
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    logits = torch.where((targets == -100)[..., None], torch.zeros_like(logits), logits)     # inf and NaN there reach nothing
    total = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")
    return total / (targets != -100).sum().clamp(min=1)


def encode_demonstrations(rows, vocab, block, path):
    """→ list of (tokens, number of prompt tokens). Raises UserError with the line's text if one does not fit the block."""
    examples = []
    for row in rows:
        prompt, response = vocab.prompt(row["prompt"]), vocab.response(row["response"])
        if len(prompt) + len(response) > block:
            raise UserError(f"{path}: a demonstration has {len(prompt)} + {len(response)} tokens, the block {block}: shorten it or take a larger --size "
                            f"(prompt: {str(row['prompt'])[:60]})")
        examples.append((prompt + response, len(prompt)))
    return examples


def batch_of(examples, vocab, device):
    """→ tokens (B, T) right-padded, mask (B, T): 1 on the response and its EOS."""
    tokens, lengths = pad([t for t, _ in examples], vocab.pad, device)
    starts = torch.tensor([p for _, p in examples], device=device)
    columns = torch.arange(tokens.size(1), device=device)
    return tokens, (columns >= starts[:, None]) & (columns < lengths[:, None])


@torch.no_grad()
def heldout_loss(model, examples, vocab, run):
    """Mean loss per response token over `examples`."""
    model.eval()
    total, n = 0.0, 0
    longest = max(len(t) for t, _ in examples)
    for rows in by_length([len(t) for t, _ in examples], at_once(128, longest, model.config)):
        tokens, mask = batch_of([examples[i] for i in rows.tolist()], vocab, run.device)
        with run.cast:
            logits = model(tokens)
        total, n = total + sft_loss(logits, tokens, mask).item() * mask.sum().item(), n + mask.sum().item()
    return total / n


@torch.no_grad()
def mean_score(model, reward_model, prompts, vocab, run, max_new_tokens):
    """Mean reward-model score of one sampled answer to each prompt."""
    with run.cast:
        news = model.generate(prompts, max_new_tokens, eos=vocab.eos, generator=generator(run.config.seed, "pick"))
        tokens, lengths = pad([p + n for p, n in zip(prompts, news)], vocab.pad, run.device)
        return reward_model.score(tokens, lengths).mean().item()


def main():
    config = parse(Config, __doc__, SMOKE)
    run = Run("sft", config, parents=["pretrain"])
    if run.finished():
        return
    vocab, base = run.vocab, run.parents["pretrain"]
    model = model_from(base).to(run.device)
    set_dropout(model, config.dropout)
    run.compiled(model)
    block = model.config.block_size
    path = os.path.join(run.folder, "demonstrations.jsonl")
    rows = read_jsonl(path, ["prompt", "response"], "train")
    rows = rows[:config.demonstrations or len(rows)]
    train = encode_demonstrations(rows, vocab, block, path)
    held_rows = [r for r in read_jsonl(path, ["prompt", "response"]) if r.get("split") == "heldout"]
    heldout = encode_demonstrations(held_rows, vocab, block, path)
    text, val = (read_tokens(os.path.join(run.folder, f), vocab) for f in ("train.bin", "val.bin"))
    starts, val_starts = document_starts(text, vocab.eos, block), document_starts(val, vocab.eos, block)
    reward_model = None
    if config.pick_by:
        checkpoint = load(os.path.join(config.out, config.pick_by), "reward")
        run.check(config.pick_by, checkpoint, ("size", "vocab"))
        reward_model = model_from(checkpoint).to(run.device)
    optimizer = adamw(model, config.lr, config.weight_decay)
    per_epoch = -(-len(train) // config.batch)
    steps = per_epoch * config.epochs
    usual = sum(len(t) - p for t, p in train) / per_epoch       # response tokens of a batch, on average
    picked = {"score": float("-inf")}
    print(f"{len(train):,} demonstrations ({sum(len(t) - p for t, p in train):,} response tokens), {len(heldout):,} held out, {steps:,} steps")

    start, lengths = run.resume(model=model, optimizer=optimizer, picked=picked), [len(t) for t, _ in train]
    progress = bar(steps, start, "sft")
    for step in progress:
        epoch, i = divmod(step, per_epoch)
        if i == 0 or step == start:
            batches = epoch_batches(lengths, config.batch, generator(config.seed, "epoch", epoch))
        examples = [train[j] for j in shard(batches[i]) or batches[i][:1]]
        tokens, mask = batch_of(examples, vocab, run.device)
        mask = mask & bool(shard(batches[i]))        # a process that no row is left for takes part with nothing
        torch.manual_seed(config.seed * 1_000_003 + step)     # dropout
        model.train()
        loss = 0.0
        for t, m in zip(tokens.split(config.micro or len(tokens)), mask.split(config.micro or len(mask))):
            with run.cast:
                logits = model(t)
            part = sft_loss(logits, t, m) * m.sum()
            (part / usual).backward()       # a batch's answers are of like length: by its own mean, the short ones would be learnt too well
            loss += part.detach()
        metrics = {"loss": (all_reduce(loss) / all_reduce(mask.sum())).item(), "epoch": step / per_epoch}
        if windows := round(config.pretrain_mix * len(batches[i])):
            x = shard(document_batch(text, starts, windows, block, generator(config.seed, "mix", step), run.device))
            text_part = torch.zeros((), device=run.device)
            for t in x.split(config.micro or len(x)) if len(x) else ():
                with run.cast:
                    logits = model(t)
                part = lm_loss(logits, t) * len(t) / windows
                part.backward()
                text_part += part.detach()
            metrics["loss/pretrain"] = all_reduce(text_part).item()
        metrics["lr"] = config.lr * cosine(step, steps)
        metrics["grad_norm"] = update(model, optimizer, metrics["lr"])

        if i == per_epoch - 1:      # the end of an epoch
            model.eval()
            if heldout:
                metrics["eval/loss"] = heldout_loss(model, heldout, vocab, run)
            metrics["eval/pretrain_loss"], _ = text_loss(model, val, val_starts, block, run.device, run.cast)
            if reward_model:
                prompts = [vocab.prompt(r["prompt"]) for r in held_rows[:256]]
                room = block - max(map(len, prompts))
                metrics["eval/score"] = mean_score(model, reward_model, prompts, vocab, run, room)
                if metrics["eval/score"] > picked["score"]:
                    picked.update(score=metrics["eval/score"], epoch=epoch + 1, model=copy.deepcopy(model.state_dict()))
            progress.write(f"epoch {epoch + 1}: " + ", ".join(f"{k.split('/')[1]} {v:.3f}" for k, v in metrics.items() if k.startswith("eval/")))
        run.log(step, metrics)
        progress.set_postfix_str(f"loss {metrics['loss']:.3f}", refresh=False)
        run.checkpoint(step + 1, model=model, optimizer=optimizer, picked=picked)

    if reward_model:
        print(f"epoch {picked['epoch']} is kept, by reward-model score")
        model.load_state_dict(picked["model"])
    model.eval()
    model.config.dropout = 0.0
    results = {"pretrain_loss": text_loss(model, val, val_starts, block, run.device, run.cast)[0]}
    if heldout:
        results["loss"] = heldout_loss(model, heldout, vocab, run)
        print("\nsamples, for held-out prompts:")
        chosen = held_rows[:6]
        prompts = [vocab.prompt(r["prompt"]) for r in chosen]
        news = model.generate(prompts, block - max(map(len, prompts)), eos=vocab.eos, generator=generator(config.seed, "samples"))
        for row, new in zip(chosen, news):
            print(f"  {row['prompt'] if isinstance(row['prompt'], str) else row['prompt'][-1]['content']}\n    → {vocab.decode(new)}")
    run.finish(model, results)


if __name__ == "__main__":
    entry(main)

"""
Stage 0: pretraining. Raw text in, a base model out, by next-token cross-entropy.

    python pretrain.py                    # about three minutes on two CPU cores
    python pretrain.py --steps=400        # a base model that knows less

Windows begin where a document begins, so that a prompt at position 0 looks like what was trained on.
Left out: everything that makes a large run large, but several processes and --micro.
"""
import os
from dataclasses import dataclass

from common import (WORLD, Common, Run, adamw, all_reduce, bar, cosine, document_batch, document_starts, entry, generator, parse,
                    set_dropout, shard, text_loss, update)     # before torch: it says how threads wait
from data import UserError, read_jsonl, read_tokens
from model import GPT

import torch
import torch.nn.functional as F


@dataclass
class Config(Common):
    steps: int = 2400           # optimiser steps
    batch: int = 16             # windows a step, each as long as the block
    micro: int = 0              # windows a forward pass, to save memory (gradients add up); 0 is the whole batch
    lr: float = 4e-3            # peak learning rate: cosine to a tenth
    warmup: int = 100           # steps of linear warm-up
    weight_decay: float = 0.1   # on matrices
    dropout: float = 0.0        # several epochs of a small text would want some
    eval_every: int = 250       # steps between measurements of the held-out loss
    init_from: str = ""         # weights to go on from: gpt2 (or -medium, -large, -xl), or a folder in Hugging Face's GPT-2 layout


SMOKE = {"steps": 30, "batch": 8, "warmup": 5, "eval_every": 30}


def lm_loss(logits, tokens):
    """logits (B, T, V), tokens (B, T) → mean of −log p(token t+1 | tokens up to t), in nats."""
    return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten())


def measure_abilities(model, vocab, rows, cast):
    """Fraction of cloze questions whose greedy continuation is an accepted answer → {ability: (accuracy, chance, n)}."""
    found = {}
    with cast:
        news = model.generate([vocab.encode(r["text"]) for r in rows], 8, temperature=0)
    for row, new in zip(rows, news):
        text = vocab.encoding.decode(new)
        right = any(text.startswith(a) and not text[len(a):len(a) + 1].isalnum() for a in row["answers"])
        found.setdefault(row["ability"], []).append((right, row["chance"]))
    return {a: (sum(r for r, _ in x) / len(x), sum(c for _, c in x) / len(x), len(x)) for a, x in found.items()}


def main():
    config = parse(Config, __doc__, SMOKE)
    if config.base:
        raise UserError(f"--base={config.base}: pretrain.py makes a base and starts from none; give --base to sft.py, reward.py or ppo.py")
    if config.batch < WORLD:
        raise UserError(f"--batch={config.batch} has less than one window for each of {WORLD} processes")
    run = Run("pretrain", config)
    if run.finished():
        return
    torch.manual_seed(config.seed)
    model = run.gpt2(config.init_from, "init_from") if config.init_from else GPT(run.model_config())
    set_dropout(model, config.dropout)
    model.to(run.device)
    run.compiled(model)
    optimizer = adamw(model, config.lr, config.weight_decay)
    block = model.config.block_size
    train, val = (read_tokens(os.path.join(run.folder, f), run.vocab) for f in ("train.bin", "val.bin"))
    starts, val_starts = document_starts(train, run.vocab.eos, block), document_starts(val, run.vocab.eos, block)
    print(f"{model.n_params():,} parameters ({model.n_params(embeddings=False):,} without embeddings) on {run.device} in {run.dtype}, "
          f"{len(train):,} tokens of text, {config.steps * config.batch * block:,} to train on")

    step = run.resume(model=model, optimizer=optimizer)
    progress = bar(config.steps, step, "pretrain")
    for step in progress:
        torch.manual_seed(config.seed * 1_000_003 + step)     # dropout
        x = shard(document_batch(train, starts, config.batch, block, generator(config.seed, "pretrain", step), run.device))
        model.train()
        loss = 0.0
        for part in x.split(config.micro or len(x)):
            with run.cast:
                logits = model(part)
            share = lm_loss(logits, part) * len(part) / config.batch
            share.backward()
            loss += share.detach()
        loss = all_reduce(loss)
        lr = config.lr * cosine(step, config.steps, config.warmup)
        norm = update(model, optimizer, lr)

        metrics = {"loss": loss.item(), "lr": lr, "grad_norm": norm}
        if (step + 1) % config.eval_every == 0 or step + 1 == config.steps:
            model.eval()
            metrics["eval/pretrain_loss"], _ = text_loss(model, val, val_starts, block, run.device, run.cast)
        run.log(step, metrics)
        progress.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
        run.checkpoint(step + 1, model=model, optimizer=optimizer)

    model.eval()
    results = {"pretrain_loss": text_loss(model, val, val_starts, block, run.device, run.cast)[0]}
    print(f"held-out loss {results['pretrain_loss']:.3f} nats a token")
    questions = os.path.join(run.folder, "abilities.jsonl")
    if os.path.exists(questions):
        results["abilities"] = measure_abilities(model, run.vocab, read_jsonl(questions, ["ability", "text", "answers", "chance"]), run.cast)
        for ability, (accuracy, chance, n) in results["abilities"].items():
            print(f"  {ability:20s} {accuracy:6.1%} of {n} (chance {chance:.1%})")
    print("\nsamples:")
    for new in model.generate([[run.vocab.eos]] * 3, 60, eos=run.vocab.eos, generator=generator(config.seed, "samples")):
        print("  " + run.vocab.encoding.decode(new).replace("\n", "\n  "))
    run.finish(model, results)


if __name__ == "__main__":
    entry(main)

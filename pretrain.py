"""
Stage 0: pretraining. Raw text in, a base model out, by next-token cross-entropy.

    python pretrain.py                    # about three minutes on two CPU cores
    python pretrain.py --steps=400        # a base model that knows less

Windows of text begin at random tokens; where documents are short, mostly where one begins.
Left out: several files of text, sharded weights and optimiser states.
"""
import plumbing.cpu     # first: settings that only work before torch is loaded
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import sampling
from common import adamw, cosine, generator, micro_batches, to_float32, update
from data import read_abilities
from data.text import read_texts
from model import GPT
from muon import muon
from plumbing.command_line import Common, entry, flag, parse
from plumbing.processes import all_reduce
from plumbing.run import open_run, progress_bar


@dataclass
class Config(Common):
    steps: int = flag(2000, "optimiser steps", "[1, inf)")
    batch: int = flag(16, "windows per step, each as long as the block", "[1, inf)")
    micro_batch_size: int = flag(0, "windows in a forward pass; 0: the batch", "[0, inf)")
    lr: float = flag(4e-3, "peak learning rate: cosine to a tenth", "(0, inf)")
    warmup: int = flag(100, "steps of linear warm-up", "[0, inf)")
    weight_decay: float = flag(0.1, "on matrices", "[0, inf)")
    muon: bool = flag(True, "Muon on the blocks' matrices; --no-muon: AdamW on all")
    dropout: float = flag(0.0, "useful when a small text is read several times", "[0, 1)")
    eval_every: int = flag(250, "steps between measurements of the held-out loss", "[1, inf)")
    init_from: str = flag("", "start from gpt2, gpt2-medium, …, or a folder in GPT-2's layout")


SMOKE = {"steps": 30, "batch": 8, "warmup": 5, "eval_every": 30}


def lm_loss(logits, tokens):
    """Mean of −log p(token t + 1 | tokens up to t), in nats.

    logits (B, T − 1, V) of all tokens (B, T) but the last, which is only predicted.
    """
    return F.cross_entropy(to_float32(logits).flatten(0, 1), tokens[:, 1:].flatten())


def lm_backward(model, windows, micro_batch_size, coef=1.0):
    """Add the gradient of coef × lm_loss on windows of text (B, T) → the loss."""
    loss = torch.zeros((), device=windows.device)
    for micro in micro_batches(windows, micro_batch_size):
        micro_loss = lm_loss(model(micro[:, :-1]), micro) * len(micro) / len(windows)
        (coef * micro_loss).backward()
        loss += micro_loss.detach()
    return all_reduce(loss)


def sample_documents(model, vocab, rng, n=3):
    """The beginnings of n documents, as text."""
    length = min(60, model.config.block_size - 1)
    responses = sampling.generate(model, [[vocab.eos]] * n, length, eos=vocab.eos, generator=rng)
    return [vocab.encoding.decode(response) for response in responses]


def measure_abilities(model, vocab, rows):
    """Cloze questions, answered greedily → {ability: (share that is right, chance, n)}."""
    found = {}
    prompts = [vocab.encode(row["text"]) for row in rows]
    for row, response in zip(rows, sampling.generate(model, prompts, 8, temperature=0)):
        text = vocab.encoding.decode(response)
        # right if it begins with an answer as a whole word: for "5", "51" is not
        right = any(text.startswith(a) and not text[len(a):len(a) + 1].isalnum()
                    for a in row["answers"])
        found.setdefault(row["ability"], []).append((right, row["chance"]))
    return {ability: (sum(r for r, _ in x) / len(x), sum(c for _, c in x) / len(x), len(x))
            for ability, x in found.items()}


def main():
    config = parse(Config, __doc__, SMOKE)
    run = open_run("pretrain", config)
    if run.finished():
        return
    torch.manual_seed(config.seed)
    start = config.init_from
    model = run.place(run.gpt2(start, "init_from") if start else GPT(run.model_config()))
    abilities = read_abilities(run.folder, run.vocab, model.config.block_size)
    model.set_dropout(config.dropout)
    run.compile(model)
    optimizer = (muon if config.muon else adamw)(model, config.lr, config.weight_decay)
    text, heldout = read_texts(run, model.config.block_size)
    n_windows = config.steps * config.batch
    print(f"{model.n_params():,} parameters ({model.n_params(embeddings=False):,} without "
          f"embeddings) on {run.device} in {run.dtype}, {len(text.tokens):,} tokens of text, "
          f"{n_windows * text.block:,} to train on: {text.share_seen(n_windows):.1%} of the text")

    first = run.resume(model=model, optimizer=optimizer)
    progress = progress_bar(config.steps, first, "pretrain")
    for step in progress:
        torch.manual_seed(config.seed * 1_000_003 + step)     # dropout draws from the global one
        windows = text.batch(config.batch, generator(config.seed, "pretrain", step))
        model.train()
        loss = lm_backward(model, windows, config.micro_batch_size).item()
        lr = config.lr * cosine(step, config.steps, config.warmup)
        norm = update(model, optimizer, lr)

        metrics = {"loss": loss, "lr": lr, "grad_norm": norm}
        if (step + 1) % config.eval_every == 0 or step + 1 == config.steps:
            metrics["eval/pretrain_loss"], _ = heldout.loss(model.eval())
        run.log(step, metrics)
        progress.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        run.checkpoint(step + 1, model=model, optimizer=optimizer)

    results = {"pretrain_loss": heldout.loss(model.eval())[0]}
    print(f"held-out loss {results['pretrain_loss']:.3f} nats a token")
    if abilities:
        results["abilities"] = measure_abilities(model, run.vocab, abilities)
        for ability, (right, chance, n) in results["abilities"].items():
            print(f"  {ability:20s} {right:6.1%} of {n} (chance {chance:.1%})")
    run.finish(model, results)
    print("\nsamples:")
    for document in sample_documents(model, run.vocab, generator(config.seed, "samples")):
        print("  " + document.replace("\n", "\n  "))


if __name__ == "__main__":
    entry(main)

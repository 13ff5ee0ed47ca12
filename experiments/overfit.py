"""
An SFT model that overfits: do more epochs help all the same?

    python experiments/overfit.py               # 57 thousand parameters, 3 seeds: overfit.csv, .png
    python experiments/overfit.py --size=tiny   # 957 thousand: overfit_tiny.csv

Ouyang et al. 2022 (section 3.5): SFT models overfit on validation loss after one epoch, but more
epochs help both the reward model's score and people's ratings. Theirs has 16, and the reward model
picks. Here it sees 2,000 of the 30,000 demonstrations 16 times, without pretraining text. After
each epoch: the loss on held-out demonstrations and on those trained on, the score of the seed's own
reward model, and gold. PPO (γ = 0) with that reward model starts from epochs 1, 4 and 16.

A policy answers 900 held-out prompts once, at temperature 1. `greedy` is the gold of the likeliest
tokens: a model that overfits grows surer of itself, and its samples come nearer to those. KL is to
the SFT model that PPO started from. The reward model learnt from answers of an SFT model of all
demonstrations.
"""

import copy
import functools
import itertools
import os

import lib

import numpy as np
import torch
from common import generator
from data import meaning_of, read_jsonl
from figure1 import base, rates, sft_flags, tuned
from plumbing.checkpoint import load, save
from plumbing.command_line import entry
from rollout import sample_rollout
from sft import encode_demonstrations, heldout_loss

DEMONSTRATIONS, BATCH, EPOCHS, STARTS = 2000, 32, 16, [1, 4, 16]
# run before sft.main(): the model of each epoch is kept
EACH_EPOCH = """
def also(run, step, then=Run.checkpoint, **parts):
    if step % {steps} == 0:
        kept = run.content(parts['model'], {{}})
        checkpoint.save(f'{{run.config.out}}/epoch-{{step // {steps}}}.pt', kept)
    then(run, step, **parts)
Run.checkpoint = also"""


def flags_of(args, *of_stage):
    return [] if args.quick else [f"--size={args.size}", f"--base={args.base}", *of_stage]


def sft_of_epoch(args, epoch, seed):
    """The path of the model after an epoch; all are made if one is missing."""
    out, n = lib.scratch(args, f"overfit/{args.size}-{seed}"), 64 if args.quick else DEMONSTRATIONS
    flags = flags_of(args, *sft_flags(args.size))
    flags += [f"--demonstrations={n}", f"--epochs={args.epochs}", f"--batch={BATCH}"]
    patch = EACH_EPOCH.format(steps=-(-n // BATCH))
    lib.stage(args, "sft", out, seed, *flags, "--pretrain_mix=0", patch=patch)
    return f"{out}/epoch-{epoch}.pt"


def ppo_from(args, epoch, seed):
    """The path of PPO from an epoch; made if it is missing."""
    out = lib.scratch(args, f"overfit/{args.size}-{seed}-ppo-{epoch}")
    os.makedirs(out, exist_ok=True)
    if not os.path.exists(f"{out}/reward.pt"):
        save(f"{out}/sft.pt", load(sft_of_epoch(args, epoch, seed)))
        # without parents, since it was trained on answers of the other SFT
        save(f"{out}/reward.pt", {**load(tuned(args, args.size, seed, "reward")), "parents": {}})
    flags = flags_of(args, *rates(args.size, lr=2e-4, critic_lr=5e-4))
    lib.stage(args, "ppo", out, seed, *flags, "--ptx_coef=0", "--beta=0.3", "--eval_every=40")
    return f"{out}/ppo.pt"


@torch.no_grad()
def greedy(run, policy, rows):
    """Mean gold of each prompt's likeliest tokens, one after the other."""
    prompts, config = [run.vocab.prompt(r["prompt"]) for r in rows], copy.copy(run.config)
    config.temperature = 0.0
    answers = sample_rollout(policy, prompts, config, run.vocab, generator("measure"))
    answers = zip(rows, answers.texts(run.vocab))
    return float(np.mean([run.judge.gold(meaning_of(r), a)["gold"] for r, a in answers]))


def job(args, run, demonstrations, model, epoch, seed):
    sft = lib.network(sft_of_epoch(args, epoch, seed))
    policy = sft if model == "SFT" else lib.network(ppo_from(args, epoch, seed))
    reward_model = lib.network(tuned(args, args.size, seed, "reward"))
    rows = lib.heldout(run, 40 if args.quick else 900)
    marks = lib.measure(run, policy, sft, reward_model, rows)
    losses = {name: heldout_loss(policy, x, run.vocab) for name, x in demonstrations.items()}
    found = {k: float(marks[k].mean()) for k in ("score", "gold", "kl", "length")}
    return {**losses, **found, "greedy": greedy(run, policy, rows)}


def main():
    size = ("--size", {"choices": ["micro", "tiny"], "default": "micro", "help": "of the models"})
    args = lib.arguments(__doc__, 3, size)
    args.base, args.epochs = base(args, args.size), 2 if args.quick else EPOCHS
    run = lib.world()
    path, n = f"{run.folder}/demonstrations.jsonl", 50 if args.quick else 1000
    splits, demonstrations = {"loss": "heldout", "loss_trained_on": "train"}, {}
    for name, split in splits.items():
        rows = read_jsonl(path, ["prompt", "response"], split)[:n]
        demonstrations[name] = encode_demonstrations(rows, run.vocab)
    epochs = [("SFT", range(1, 1 + args.epochs)), ("PPO", [args.epochs] if args.quick else STARTS)]
    keys = [(m, epoch, seed) for m, some in epochs for seed in args.seeds for epoch in some]
    jobs = [(key, functools.partial(job, args, run, demonstrations, *key)) for key in keys]
    name = "overfit" if args.size == "micro" else "overfit_tiny"
    csv = lib.place(args, name + ".csv")
    rows = lib.collect(args, csv, jobs, ["model", "epoch", "seed"], lambda args: args.base)
    table(rows, args.epochs)
    draw(args, name, rows, args.epochs)


def values(rows, model, epoch, column):
    """{seed: value}"""
    mine = [r for r in rows if r["model"] == model and r["epoch"] == epoch]
    return {r["seed"]: r[column] for r in mine}


def gap(rows, model, column, epoch, last):
    """Mean and half-width of the interval of what is gained from an epoch to the last one."""
    before, after = (values(rows, model, e, column) for e in (epoch, last))
    return lib.interval([after[s] - before[s] for s in before if s in after])


def lowest(rows):
    """The epoch after which the held-out loss is lowest, on average over seeds."""
    loss = {e: values(rows, "SFT", e, "loss").values() for e in {r["epoch"] for r in rows}}
    return min(loss, key=lambda epoch: np.mean(list(loss[epoch])))


def table(rows, last):
    columns = ["loss", "loss_trained_on", "score", "gold", "greedy", "length", "kl"]
    print(f"{'':14s}" + "".join(f"{c:>18s}" for c in columns))
    for model, epoch in dict.fromkeys((r["model"], r["epoch"]) for r in rows):
        cells = [lib.interval(list(values(rows, model, epoch, c).values())) for c in columns]
        line = "".join(f"{mean:10.3f} ±{half:6.3f}" for mean, half in cells)
        print(f"{model} epoch {epoch:3g}  {line}")
    print(f"the held-out loss is lowest after epoch {lowest(rows):g}; after epoch {last}, above")
    for model, c in itertools.product(("SFT", "PPO"), ("score", "gold", "greedy")):
        for epoch in sorted({*STARTS, lowest(rows)}):
            if values(rows, model, epoch, c) and epoch < last:
                mean, half = gap(rows, model, c, epoch, last)
                print(f"  epoch {epoch:2g}, {model:4s}{c:7s}{mean:+.3f} ± {half:.3f}")
    for seed in sorted({r["seed"] for r in rows}):
        mine = [r for r in rows if r["model"] == "SFT" and r["seed"] == seed]
        by_loss, by_score = min(mine, key=lambda r: r["loss"]), max(mine, key=lambda r: r["score"])
        picked = [f"{r['epoch']:g} (gold {r['gold']:.3f})" for r in (by_loss, by_score)]
        print(f"seed {seed:g}: the loss picks epoch {picked[0]}, the reward model {picked[1]}")


def draw(args, name, rows, last):
    fig, axes = lib.figure(3, size=(3.6, 3.3))
    blue, orange, green = lib.COLOURS[:3]
    series = [
        (0, "SFT", "loss", "held out", blue),
        (0, "SFT", "loss_trained_on", "trained on", "#808080"),
        (1, "SFT", "score", "SFT", blue),
        (2, "SFT", "gold", "SFT", blue),
        (2, "SFT", "greedy", "SFT, likeliest tokens", green),
        (2, "PPO", "gold", "then PPO", orange),
    ]
    for panel, model, c, label, colour in series:
        ax = axes[0, panel]
        epochs = sorted({r["epoch"] for r in rows if r["model"] == model})
        points = [lib.interval(list(values(rows, model, e, c).values())) for e in epochs]
        mean, half = np.nan_to_num(np.transpose(points))
        look = {"marker": "o", "ms": 3, "capsize": 2, "color": colour}
        ax.errorbar(epochs, mean, half, label=label, **look)
        ax.set(xlabel="epochs over 2,000 demonstrations", xticks=[1, 4, 8, 12, last])
    for ax, title in zip(axes[0], ("loss, nats a token", "reward-model score", "gold score")):
        ax.set_title(title)
    for ax in axes[0, ::2]:
        ax.legend()
    mean, half = gap(rows, "SFT", "gold", lowest(rows), last)
    fig.suptitle(
        f"The held-out loss is lowest after epoch {lowest(rows):g}, and gold rises on from there, "
        f"by {mean:.3f} ± {half:.3f}"
    )
    lib.finish(fig, lib.place(args, name + ".png"))


if __name__ == "__main__":
    entry(main)

"""
Does a further round need new comparisons, or is it only more PPO?

    python experiments/rounds.py        # micro, 3 seeds, 3 rounds: rounds.csv, rounds.png

Stages 2 and 3 can be iterated, with comparisons of the newest policy's answers (Ouyang et al. 2022,
section 3.1). Here two ways go on from the same first round. One gets rankings of the newest
policy's answers to 4,000 prompts in each further round, and a new reward model of all so far. The
control keeps the reward model of round 1. All else is the same: prompts, 20 iterations a further
round, learning rates with their warm-up, a critic that starts as the reward model. The first round
is figure1.py's PPO-ptx of 57 thousand parameters, 40 iterations.

rounds.csv has a row for SFT ("round" 0), and for each way and round: gold, score of round 1's
reward model, KL to SFT and length on 900 held-out prompts. And of the held-out pairs of the
answers of the policy before that round, as labelers ranked them: the share that the first reward
model orders right (right_first), the newest one (right_newest), and the gold score (possible).
"""

import functools
import math
import os

import lib

import numpy as np
import reward
from data import read_jsonl
from data.comparisons import encode_comparisons
from figure1 import base, rates, tuned
from plumbing.checkpoint import load, save
from plumbing.command_line import entry
from plumbing.stages import in_round

SIZE, ROUNDS = "micro", 3
WAYS = {"new": "new comparisons in each round", "same": "the reward model of round 1"}


def trained(args, way, n, seed):
    """The folder in which all is until round n; what is missing is made."""
    source = os.path.dirname(tuned(args, SIZE, seed, "ppo-ptx"))
    if n == 1:
        return source
    flags, names = {"reward": [], "ppo": []}, ["sft.pt", "reward.pt", "comparisons.jsonl", "ppo.pt"]
    if not args.quick:
        flags["reward"] = [f"--size={SIZE}", *rates(SIZE, lr=6e-4)]
        flags["ppo"] = [f"--size={SIZE}", *rates(SIZE, lr=2e-4, critic_lr=5e-4), "--iterations=20"]
    out = lib.variant(source, lib.scratch(args, f"rounds/{way}-{seed}"), *names)
    for i in range(2, n + 1):
        name = in_round("reward", i)
        if way == "new":
            lib.stage(args, name, out, seed, *flags["reward"])
        else:
            save(f"{out}/{name}.pt", {**load(f"{out}/reward.pt"), "stage": name})
        lib.stage(args, in_round("ppo", i), out, seed, *flags["ppo"])
    return out


def ordered(run, out, n):
    """Shares of the pairs of round n's answers that are ordered right."""
    rows = read_jsonl(f"{out}/{in_round('comparisons', n)}.jsonl", ["prompt"], "heldout")
    found = {}
    for column, i in (("right_first", 1), ("right_newest", n)):
        model = lib.network(f"{out}/{in_round('reward', i)}.pt")
        items, _ = encode_comparisons(rows, run.vocab, model.config.block_size)
        marks = reward.heldout_accuracy(model, items, run.vocab)
        found |= {column: marks["accuracy"], "possible": marks["ceiling"]}
    return found


def job(args, run, way, n, seed):
    out = trained(args, way, max(n, 1), seed)
    name = in_round("ppo", n) if n else "sft"
    paths = (f"{out}/{x}.pt" for x in (name, "sft", "reward"))
    rows = lib.heldout(run, 20 if args.quick else 900)
    marks = lib.measure(run, *map(lib.network, paths), rows)
    found = dict.fromkeys(("right_first", "right_newest", "possible"), math.nan)
    if n and (way == "new" or n == 1):
        found |= ordered(run, out, n)
    return {k: float(marks[k].mean()) for k in ("gold", "score", "kl", "length")} | found


def make_base(args):
    return base(args, SIZE)


def main():
    args = lib.arguments(__doc__, 3)
    args.base = f"out/sizes/{SIZE}/pretrain.pt"
    run, last = lib.world(), 2 if args.quick else ROUNDS
    cells = [("new", n) for n in range(last + 1)] + [("same", n) for n in range(2, last + 1)]
    keys = [(*cell, seed) for seed in args.seeds for cell in cells]
    jobs = [(key, functools.partial(job, args, run, *key)) for key in keys]
    path = lib.place(args, "rounds.csv")
    rows = lib.collect(args, path, jobs, ["way", "round", "seed"], make_base)
    table(rows)
    draw(args, rows)


def values(rows, way, n, column):
    """{seed: value}; the first round is of both ways."""
    way = way if n > 1 else "new"
    return {r["seed"]: r[column] for r in rows if (r["way"], r["round"]) == (way, n)}


def difference(rows, n, column):
    """Round n's value with new comparisons, less the control's: mean and interval within a seed."""
    new, same = (values(rows, way, n, column) for way in WAYS)
    return lib.interval([new[seed] - same[seed] for seed in new if seed in same])


def last_round(rows):
    return int(max(r["round"] for r in rows))


def table(rows):
    columns = ["gold", "score", "kl", "length", "right_first", "right_newest", "possible"]
    print(f"{'':10s}" + "".join(f"{c:>18s}" for c in columns))
    for way in WAYS:
        for n in range(0 if way == "new" else 2, last_round(rows) + 1):
            cells = [lib.interval(list(values(rows, way, n, c).values())) for c in columns]
            line = "".join(f"{mean:10.3f} ±{half:6.3f}" for mean, half in cells)
            print(f"{way:5s}{n:5d}{line}")
    for n in range(2, last_round(rows) + 1):
        for column in ("gold", "score", "kl"):
            mean, half = difference(rows, n, column)
            print(f"round {n}, {column}: new comparisons bring {mean:+.3f} ± {half:.3f}")


def draw(args, rows):
    fig, axes = lib.figure(size=(6, 3.8))
    ax, last = axes[0, 0], last_round(rows)
    for i, (way, label) in enumerate(WAYS.items()):
        first = 0 if way == "new" else 1
        cells = [
            lib.interval(list(values(rows, way, n, "gold").values()))
            for n in range(first, last + 1)
        ]
        mean, half = np.array(cells).T
        x = np.arange(first, last + 1) + 0.04 * (2 * i - 1)
        ax.errorbar(x, mean, np.nan_to_num(half), marker="o", capsize=3, label=label)
    ax.set_xticks(range(last + 1), ["SFT", *(f"round {n}" for n in range(1, last + 1))])
    ax.set_ylabel("gold score")
    mean, half = difference(rows, last, "gold")
    ax.set_title(
        f"After {last} rounds new comparisons bring {mean:+.3f} ± {half:.3f} of gold\n"
        "over as many iterations without them"
    )
    ax.legend(loc="upper left")
    lib.finish(fig, lib.place(args, "rounds.png"))


if __name__ == "__main__":
    entry(main)

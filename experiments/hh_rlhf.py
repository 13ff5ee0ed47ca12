"""
What can be learnt from 2,000 comparisons by people: HH-RLHF's harmless-base test split.

    python experiments/hh_rlhf.py --source=harmless-base/test.jsonl.gz      # part 0, seeds 1 to 3
    python experiments/hh_rlhf.py --source=… --parts=0,1,2 --seeds=1,2,3 --reward=--epochs=2

2,000 comparisons are for training, 299 are held out. For each part (other pairs held out)
vocabulary and base are made anew, for each seed SFT and reward model. Prints the held-out accuracy
of the reward model, of length alone, and of a bag of words: logistic regression on which words
each answer has.
"""

import collections
import json
import math
import os
import re
import subprocess
import sys

from project import ROOT

import torch
import torch.nn.functional as F
from data import read_jsonl
from plumbing.checkpoint import load
from plumbing.command_line import Parser, entry

DATA = os.path.join(ROOT, "data", "hh_rlhf")


def run(*command):
    if subprocess.call([sys.executable, *command], cwd=ROOT):
        sys.exit(1)


def counts(text):
    return collections.Counter(re.findall(r"[a-z']+|[?!.]", text.lower()))


def frequent(rows):
    """Words that five answers or more have."""
    often = collections.Counter(w for row in rows for a in row["responses"] for w in counts(a))
    return [w for w, n in sorted(often.items()) if n >= 5]


def margins(rows, words=None):
    """(n, features): of each pair, the chosen answer's features less the rejected one's.

    Features: log(1 + count) of each word, and of all words together, which is the length.
    """
    number = {w: i for i, w in enumerate(words or ())}
    x = torch.zeros(len(rows), len(number) + 1)
    for i, row in enumerate(rows):
        for answer, sign in zip(row["responses"], (1, -1)):
            found = counts(answer)
            for w in found.keys() & number.keys():
                x[i, number[w]] += sign * math.log1p(found[w])
            x[i, -1] += sign * math.log1p(found.total())
    return x


def logistic(x, y, decay):
    """Fit on pairs x → for each pair of y 1 if it is ordered right, 0 if not, ½ for a tie."""
    w = torch.zeros(x.size(1), requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=100)

    def closure():
        optimizer.zero_grad()
        loss = F.softplus(-x @ w).sum() + decay / 2 * (w**2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    score = y @ w.detach()
    return ((score > 0).float() + 0.5 * (score == 0).float()).tolist()


def line(name, values, n):
    """Print an accuracy. n: how many different pairs.

    Several seeds on the same pairs count once for the interval.
    """
    mean = sum(values) / len(values)
    half = 1.96 * math.sqrt(mean * (1 - mean) / n)
    print(f"{name:24s} {mean:6.1%} ± {half:.1%} on {n:,} held-out pairs")


def trained(out, seed, flags):
    """Train a reward model, and the stages before it → its held-out accuracy."""
    mine = os.path.join(out, seed)
    where = ["--data=hh_rlhf", f"--out={mine}", f"--base={out}/pretrain.pt", f"--seed={seed}"]
    run("reward.py", *where, "--sources=file", "--fold=all", *flags)
    return load(os.path.join(ROOT, mine, "reward.pt"))["results"]["accuracy"]


def main():
    parser = Parser(__doc__)
    parser.add_argument("--source", required=True)
    parser.add_argument("--parts", default="0")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--reward", default="", help="flags for reward.py, separated by spaces")
    args = parser.parse_args()
    found, pairs = collections.defaultdict(list), 0
    for part in args.parts.split(","):
        out = os.path.join("out", "hh_rlhf-parts", part)
        run("data/hh_rlhf/prepare.py", f"--source={os.path.abspath(args.source)}", f"--part={part}")
        run("pretrain.py", "--data=hh_rlhf", f"--out={out}")
        rows = read_jsonl(os.path.join(DATA, "comparisons.jsonl"), ["prompt", "responses"])
        train, held = ([r for r in rows if r["split"] == side] for side in ("train", "heldout"))
        pairs += len(held)
        words = frequent(train)
        found["length alone"] += logistic(margins(train), margins(held), 0.01)
        found["bag of words"] += logistic(margins(train, words), margins(held, words), 3.0)
        for seed in args.seeds.split(","):
            accuracy = trained(out, seed, args.reward.split())
            found["reward model"].append(accuracy)
            found[f"reward model, seed {seed}"].append(accuracy)
            row = {"part": part, "seed": seed, "accuracy": round(accuracy, 4)}
            print(json.dumps(row), flush=True)
    print()
    for name, values in found.items():
        line(name, values, pairs)


if __name__ == "__main__":
    entry(main)

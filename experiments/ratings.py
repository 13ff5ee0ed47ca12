"""
Can one person's 9 against another's 4 be learnt at all? What people said of chitchat's chats.

    pip install chitchat-dataset && python data/chitchat/prepare.py
    python experiments/ratings.py

Three sets of pairs: chats whose marks lie three or more apart, for each of the marks that people
gave; those among them that have as many turns and words (within 15 %); the 244 pairs of single
replies to the same words that prepare.py takes from the chats. Ten-fold: each pair is held out
once, with all of its fold (chats, or prompts), and ordered by a logistic regression on the others.
One regression has length alone, log number of turns and log words a turn; the other also has which
words there are (those of 20 chats or more; of single replies, of 5). Which words were asked under a
reply is not used.
"""

import collections
import hashlib
import json
import math
import os
import random

from hh_rlhf import ROOT, counts, frequent, line, logistic, margins

import torch
from data import load_file, read_jsonl
from plumbing.command_line import Parser, entry

FOLDER = os.path.join(ROOT, "data", "chitchat")
NEAR, GAP = 0.15, 3


def fold_of(thing):
    return int(hashlib.sha256(json.dumps(thing).encode()).hexdigest(), 16) % 10


def rated_chats():
    """The rated chats, cleaned as prepare.py does: with marks, number of words, counts of each."""
    prepare = load_file(os.path.join(FOLDER, "prepare.py"))
    clean = prepare.clean(prepare.load(1), collections.Counter())
    chats = [c for c in clean if c["rating"] is not None]
    for c in chats:
        c["counts"] = counts(" ".join(c["turns"]))
        c["marks"]["their mean"] = c["rating"]
        c["words"] = c["counts"].total()
        c["fold"] = fold_of(c["key"])
    return chats


def near(a, b):
    """Whether two chats have about as many turns and words."""
    turns, words = len(b["turns"]) / len(a["turns"]), b["words"] / a["words"]
    return max(abs(math.log(turns)), abs(math.log(words))) <= NEAR


def pairs_of(chats, mark, alike):
    """Pairs (higher, lower) of chats of one fold; each chat is in one pair at most.

    alike: only pairs with as many turns and words.
    """
    chats = random.Random(0).sample(chats, len(chats))
    found, taken = [], set()

    def fit(a, b):
        far = abs(a["marks"][mark] - b["marks"][mark]) >= GAP
        return far and b["fold"] == a["fold"] and (near(a, b) or not alike)

    for i, a in enumerate(chats):
        if a["key"] in taken:
            continue
        free = (b for b in chats[i + 1 :] if b["key"] not in taken and fit(a, b))
        b = next(free, None)
        if b is not None:
            taken |= {a["key"], b["key"]}
            found.append((a, b) if a["marks"][mark] > b["marks"][mark] else (b, a))
    return found


def features(pairs, words):
    """(n, 2 + words): what the higher chat of each pair has more of, in units of the spread."""

    def one(c):
        turns = len(c["turns"])
        lengths = [math.log(turns), math.log(c["words"] / turns)]
        return [*lengths, *(math.log1p(c["counts"][w]) for w in words)]

    x = torch.tensor([one(a) for a, _ in pairs]) - torch.tensor([one(b) for _, b in pairs])
    return x / x.std(0).clamp(min=1e-6)


def whole_chats():
    chats = rated_chats()
    often = collections.Counter(w for c in chats for w in c["counts"])
    words = sorted(w for w, n in often.items() if n >= 20)
    print(f"{len(chats):,} rated chats")
    ways = (("length alone", [], 0.01), ("length and words", words, 300.0))
    for alike in (False, True):
        for mark in ("witty", "interesting", "upbeat", "their mean"):
            pairs = pairs_of(chats, mark, alike)
            folds = torch.tensor([a["fold"] for a, _ in pairs])
            for name, columns, decay in ways:
                x, right = features(pairs, columns), []
                for fold in range(10):
                    right += logistic(x[folds != fold], x[folds == fold], decay)
                line(f"chats{', equally long' * alike}, {mark}, {name}", right, len(pairs))


def single_replies():
    path = os.path.join(FOLDER, "comparisons.jsonl")
    rows = read_jsonl(path, ["prompt", "chosen", "rejected"])
    rows = [{**r, "responses": [r["chosen"], r["rejected"]]} for r in rows if "kind" in r]
    for kind in ("question", "opening", None):
        mine = [r for r in rows if kind in (None, r["kind"])]
        found = {"length alone": [], "bag of words": []}
        for fold in range(10):
            train = [r for r in mine if fold_of(r["prompt"]) != fold]
            held = [r for r in mine if fold_of(r["prompt"]) == fold]
            words = frequent(train)
            found["length alone"] += logistic(margins(train), margins(held), 0.01)
            found["bag of words"] += logistic(margins(train, words), margins(held, words), 3.0)
        for name, values in found.items():
            line(f"replies, {kind or 'all'}, {name}", values, len(mine))


def main():
    Parser(__doc__).parse_args()
    whole_chats()
    single_replies()


if __name__ == "__main__":
    entry(main)

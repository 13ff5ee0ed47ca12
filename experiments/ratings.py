"""
Is one person's 9 against another's 4 learnable at all? What people said of chitchat's chats, ten-fold.

    pip install chitchat-dataset && python data/chitchat/prepare.py && python experiments/ratings.py

Pairs of chats whose marks lie three or more apart, for each of the marks that people gave; then such pairs that have as
many turns and words (within 15 %); then the 244 pairs of single replies to the same words that prepare.py takes from
them. Each pair is held out once, with all of its fold (chats, or prompts), and ordered by a logistic regression on the
others: on length alone, log number of turns and log words a turn, and on which words there are as well (those of 20 chats
or more; of single replies, of 5). Which words were asked under a reply is not looked at.
"""
import collections
import hashlib
import importlib.util
import json
import math
import os
import random

from hh_rlhf import ROOT, counts, frequent, line, logistic, margins

from data import read_jsonl

import torch

FOLDER = os.path.join(ROOT, "data", "chitchat")
NEAR, GAP = 0.15, 3


def fold_of(thing):
    return int(hashlib.sha256(json.dumps(thing).encode()).hexdigest(), 16) % 10


def rated_chats():
    """The chats that were rated, cleaned as prepare.py does: with their marks, number of words and counts of each."""
    spec = importlib.util.spec_from_file_location("prepare_chitchat", os.path.join(FOLDER, "prepare.py"))
    prepare = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(prepare)
    chats = [c for c in prepare.clean(prepare.load(1), collections.Counter()) if c["rating"] is not None]
    for c in chats:
        c["counts"] = counts(" ".join(c["turns"]))
        c["marks"]["their mean"], c["words"], c["fold"] = c["rating"], c["counts"].total(), fold_of(c["key"])
    return chats


def pairs_of(chats, mark, alike):
    """Pairs (higher, lower) of chats of one fold; each chat is in one pair at most. alike: as many turns and words."""
    chats = random.Random(0).sample(chats, len(chats))
    found, taken = [], set()
    for i, a in enumerate(chats):
        for b in chats[i + 1:] if a["key"] not in taken else ():
            if (b["key"] not in taken and b["fold"] == a["fold"] and abs(a["marks"][mark] - b["marks"][mark]) >= GAP
                    and not (alike and max(abs(math.log(len(b["turns"]) / len(a["turns"]))), abs(math.log(b["words"] / a["words"]))) > NEAR)):
                taken |= {a["key"], b["key"]}
                found.append((a, b) if a["marks"][mark] > b["marks"][mark] else (b, a))
                break
    return found


def features(pairs, words):
    """(n, 2 + words): what the higher chat of each pair has more of, in units of the spread."""
    def one(c):
        return [math.log(len(c["turns"])), math.log(c["words"] / len(c["turns"])), *(math.log1p(c["counts"][w]) for w in words)]
    x = torch.tensor([one(a) for a, _ in pairs]) - torch.tensor([one(b) for _, b in pairs])
    return x / x.std(0).clamp(min=1e-6)


def main():
    chats = rated_chats()
    often = collections.Counter(w for c in chats for w in c["counts"])
    words = sorted(w for w, n in often.items() if n >= 20)
    print(f"{len(chats):,} rated chats")
    for alike in (False, True):
        for mark in ("witty", "interesting", "upbeat", "their mean"):
            pairs = pairs_of(chats, mark, alike)
            for name, columns, decay in (("length alone", [], 0.01), ("length and words", words, 300.0)):
                x, folds, right = features(pairs, columns), torch.tensor([a["fold"] for a, _ in pairs]), []
                for fold in range(10):
                    right += logistic(x[folds != fold], x[folds == fold], decay)
                line(f"chats{', equally long' * alike}, {mark}, {name}", right, len(pairs))
    rows = [{**r, "responses": [r["chosen"], r["rejected"]]} for r in read_jsonl(os.path.join(FOLDER, "comparisons.jsonl"), ["prompt", "chosen", "rejected"]) if "kind" in r]
    for kind in ("question", "opening", None):
        mine, found = [r for r in rows if kind in (None, r["kind"])], {"length alone": [], "bag of words": []}
        for fold in range(10):
            train, held = ([r for r in mine if (fold_of(r["prompt"]) == fold) == out] for out in (False, True))
            words = frequent(train)
            found["length alone"] += logistic(margins(train), margins(held), 0.01)
            found["bag of words"] += logistic(margins(train, words), margins(held, words), 3.0)
        for name, values in found.items():
            line(f"replies, {kind or 'all'}, {name}", values, len(mine))


if __name__ == "__main__":
    main()

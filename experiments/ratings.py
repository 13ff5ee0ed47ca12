"""
Is one person's 9 against another's 4 learnable at all? The 244 pairs that chitchat's ratings give, ten-fold.

    python data/chitchat/prepare.py && python experiments/ratings.py

Each pair is held out once, with all pairs of the same prompt, and ordered by length alone and by a bag of words learnt on the others.
"""
import hashlib
import json
import os

from hh_rlhf import ROOT, frequent, line, logistic, margins

from data import read_jsonl


def main():
    rows = [{**r, "responses": [r["chosen"], r["rejected"]]} for r in read_jsonl(os.path.join(ROOT, "data", "chitchat", "comparisons.jsonl"), ["prompt", "chosen", "rejected"])]
    for kind in ("question", "opening", None):
        mine, found = [r for r in rows if kind in (None, r["kind"])], {"length alone": [], "bag of words": []}
        for fold in range(10):
            side = [int(hashlib.sha256(json.dumps(r["prompt"]).encode()).hexdigest(), 16) % 10 == fold for r in mine]
            train, held = ([r for r, out in zip(mine, side) if out == wanted] for wanted in (False, True))
            words = frequent(train)
            found["length alone"] += logistic(margins(train), margins(held), 0.01)
            found["bag of words"] += logistic(margins(train, words), margins(held, words), 3.0)
        for name, values in found.items():
            line(f"{kind or 'all'}, {name}", values, len(mine))


if __name__ == "__main__":
    main()

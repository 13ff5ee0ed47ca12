"""
What a base of five sizes knows, and what it can read: is retrieval a substitute for parameters?

    python experiments/knowledge.py     # three bases a size, one of midi: knowledge.csv, .png

An account of ChatGPT's ancestors says that GPT-3's parameters mostly hold knowledge, so that a
model which looks it up could be much smaller (Fu et al. 2022). GPT-3's paper says that larger
models make better use of what is in their context (Brown et al. 2020, figure 1.2). Here a question
is a sentence that stops before its last words: "The job of Mia is". They are right if the likeliest
words go on as they should. It is asked

    alone       so it must be known
    sentence    after the fact in another wording: "Mia works as a miller. The job of Mia is"
    among       the same, with two other people's facts of that sort around it
    stranger    among them, of a person without any fact, so it must be read
    changed     among them, with a value that is not true: read, or remembered all the same

The other rows are abilities.py's and pretrain.py's: which of them come late? The sizes are those of
figure1.py and "between", 234 thousand parameters without embeddings. All read one text; see
figure1.py for how long. tiny's matrices are trained by Muon, those of the other sizes by AdamW.
"""

import random

import lib

import numpy as np
from abilities import asked_few_shot, chosen, completed, mapping, of_kind
from abilities import program as program_question
from data.text import Text
from figure1 import BASES, base, bases_of, parameters
from model import SIZES
from plumbing.command_line import entry
from prepare import ability_questions
from world import FACTS, PEOPLE, STRANGERS, VALUES, say

SIZES["between"] = (3, 4, 80, 128)
LADDER = ["nano", "micro", "between", "tiny", "midi"]
PATCH = f"import model; model.SIZES['between'] = {SIZES['between']}"
# the wordings of world.SAY_FACT that end with the value; not "Mia has a", which may go on anyhow
ASKED = {"job": [0, 1, 2], "pet": [1, 2], "food": [1, 2], "colour": [0, 1], "home": [0, 1, 2]}
# name in the CSV → label
FACT_ROWS = {
    "alone": "facts, asked alone",
    "sentence": "after the sentence that says it",
    "stranger": "that sentence of a person without facts,\namong two others",
    "changed, read": "the same with a value that is not true",
}
OTHER_ROWS = {
    "lists": "lists",
    "sums": "sums",
    "facts few-shot": "facts after two examples",
    "copying a name": "copying a name",
    "reading": "reading from one sentence",
    "mapping": "a new mapping, 8 examples",
    "program": "what a program prints",
}


def question(where, rng):
    """A row for abilities.completed; "truth" is the answer by memory."""
    a, p = rng.choice(list(ASKED)), rng.choice(PEOPLE)
    truth = value = FACTS[p][a]
    if where in ("stranger", "changed"):
        value = rng.choice([v for v in VALUES[a] if v != truth])
    others = rng.sample(PEOPLE, 2)
    while {truth, value} & {FACTS[q][a] for q in others}:
        others = rng.sample(PEOPLE, 2)  # with other values, so none of them is p
    if where == "stranger":
        p = rng.choice(STRANGERS)
    asked = rng.choice(ASKED[a])
    said = rng.choice([i for i in range(3) if i != asked])
    before = [say(a, p, value, said)]
    if where != "sentence":
        before += [say(a, q, FACTS[q][a], rng.randrange(3)) for q in others]
    rng.shuffle(before)
    before = [] if where == "alone" else before
    text = " ".join([*before, say(a, p, value, asked).removesuffix(f" {value}.")])
    return {"text": text, "answers": [f" {value}"], "truth": [f" {truth}"]}


def measured(run, model, n):
    """→ {ability: share of n questions that is right, or the loss}"""
    rng, found = random.Random(7), {}
    for where in ("alone", "sentence", "among", "stranger", "changed"):
        rows = [question(where, rng) for _ in range(n)]
        name = "changed, read" if where == "changed" else where
        found[name] = completed(run, model, rows)
    remembered = [{**row, "answers": row["truth"]} for row in rows]
    found["changed, remembered"] = completed(run, model, remembered)
    cloze = list(ability_questions(rng, n))
    for ability in ("lists", "sums", "copying a name", "reading"):
        mine = [row for row in cloze if row["ability"] == ability]
        found[ability] = completed(run, model, mine)
    found["facts few-shot"] = asked_few_shot(run, model, of_kind("facts", n // 4, rng), rng)
    found["mapping"] = chosen(run, model, [mapping(8, rng) for _ in range(n)])
    found["program"] = completed(run, model, [program_question(rng) for _ in range(n)], 3)
    loss, _ = Text(f"{run.folder}/val.bin", run.vocab, 128, run.device).loss(model, rows=n)
    return {**{name: float(np.mean(x)) for name, x in found.items()}, "loss": loss}


def job(args, run, size, seed):
    model = lib.network(base(args, size, BASES[seed - 1], PATCH))
    found = measured(run, model, 20 if args.quick else 800)
    n = parameters(size)
    return [{"parameters": n, "ability": a, "value": v} for a, v in found.items()]


def cell(rows, size, ability):
    mine = [r["value"] for r in rows if r["size"] == size and r["ability"] == ability]
    return lib.interval(mine)


def table(rows):
    sizes = [s for s in LADDER if any(r["size"] == s for r in rows)]
    print(f"{'':22s}" + "".join(f"{s:>16s}" for s in sizes))
    for ability in dict.fromkeys(r["ability"] for r in rows):
        cells = [cell(rows, s, ability) for s in sizes]
        print(f"{ability:22s}" + "".join(f"{m:9.3f} ±{half:5.3f}" for m, half in cells))


def draw(args, rows):
    fig, axes = lib.figure(2, size=(4.6, 4.2))
    for ax, abilities in zip(axes[0], (FACT_ROWS, OTHER_ROWS)):
        for i, (ability, label) in enumerate(abilities.items()):
            sizes = [s for s in LADDER if any(r["size"] == s for r in rows)]
            x = [parameters(s) * 1.05 ** (i - 3) for s in sizes]
            mean, half = zip(*(cell(rows, s, ability) for s in sizes))
            ax.errorbar(x, mean, np.nan_to_num(half), marker="o", ms=4, capsize=2, label=label)
        ax.set(xscale="log", ylim=(-0.03, 1.03), xlabel="parameters without embeddings")
        ax.legend()
    axes[0, 0].set_ylabel("share of questions that is right")
    axes[0, 0].axhline(1 / 8, color="grey", lw=0.8, ls=":")
    axes[0, 0].text(1.2e6, 0.14, "a guess among eight", color="grey")
    fig.suptitle(
        "More parameters know more facts, and the fact put in front does not stand in for them"
    )
    lib.finish(fig, lib.place(args, "knowledge.png"))


def main():
    args = lib.arguments(__doc__, len(BASES))
    run = lib.world()
    keys = [(size, seed) for size in LADDER for seed in args.seeds if seed <= bases_of(size)]
    jobs = [(k, lambda k=k: job(args, run, *k)) for k in keys]
    rows = lib.collect(args, lib.place(args, "knowledge.csv"), jobs, ["size", "seed"])
    table(rows)
    draw(args, rows)


if __name__ == "__main__":
    entry(main)

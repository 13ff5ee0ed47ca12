"""
Does code in the pretraining text teach reasoning in steps?

    python experiments/programs.py             # three seeds: programs.csv, programs.png

Fu et al. 2022 suppose that training on code is a likely source of chain-of-thought: a hypothesis
there, not a finding. Three texts of the same length differ in 15 % of their tokens: programs of
several assignments and what they print; sums of three and four numbers with their steps written
out, which shows what can be had at this size; or more of the other documents. The village's own
programs are in none. All three have a few sums of three numbers in steps (FEW of the tokens), so
that every base has seen the form, and sums of two numbers: each single step is one of these.

Measured on each base, after two examples of the kind in the prompt, completed greedily: sums of
three and of four numbers, at once and in steps; what a program of three numbers prints, at the end
and after each addition. A share counts answers that are right from the first step to the last.
loss: of the right answer, in nats a token, which has neither floor nor ceiling.
"""

import os
import random

import lib

import numpy as np
import prepare
import torch
from abilities import completed, folder
from data import read_tokens
from data.prepare import write_bin
from plumbing.command_line import entry
from sft import collate, sft_loss

SHARE, FEW = 0.15, 0.005
SIZE, STEPS = "tiny", 1500
TITLE = "Programs do not teach sums in steps; sums written out do"


# ---- questions and their answers ----


def numbers(n, rng):
    """n numbers. All but the last make 10 at most, so that each step is a sum of the text."""
    while True:
        found = [rng.randint(1, 9) for _ in range(n - 1)]
        if sum(found) <= 10:
            return [*found, rng.randint(1, 10)]


def a_sum(n, steps, rng):
    """' 3 plus 4 plus 2:', ' 3 plus 4 is 7, and 7 plus 2 is 9.'; at once ' 3 … 2 is', ' 9.'"""
    values = numbers(n, rng)
    asked, totals = " plus ".join(map(str, values)), np.cumsum(values)
    if not steps:
        return f" {asked} is", f" {totals[-1]}."
    said = [f"{a} plus {b} is {c}" for a, b, c in zip(totals, values[1:], totals[1:])]
    return f" {asked}:", f" {', '.join(said[:-1])}, and {said[-1]}."


def a_program(n, steps, rng):
    """A program that adds n numbers up, and what it prints; in steps, after each addition too."""
    values, names = numbers(n, rng), rng.sample("abcxyz", n)
    lines, totals = [f"{names[0]} = {values[0]}"], np.cumsum(values)[1:]
    for before, name, value in zip(names, names[1:], values[1:]):
        lines.append(f"{name} = {before} + {value}")
        if steps or name == names[-1]:
            lines.append(f"print {name}")
    printed = "\n>".join(f" {total}" for total in (totals if steps else totals[-1:]))
    return "\n".join([*lines, ">"]), printed + "\n"


QUESTIONS = {
    "3 numbers, at once": (a_sum, 3, False),
    "3 numbers, in steps": (a_sum, 3, True),
    "4 numbers, at once": (a_sum, 4, False),
    "4 numbers, in steps": (a_sum, 4, True),
    "program, last value": (a_program, 3, False),
    "program, each value": (a_program, 3, True),
}


def after_examples(ask, n, steps, rng):
    """A question after two of its kind with their answers."""
    *shown, (asked, answer) = [ask(n, steps, rng) for _ in range(3)]
    text = "".join(q + a for q, a in shown) + asked
    return {"text": text.removeprefix(" "), "answers": [answer]}


# ---- texts ----


def several(ask, ns, in_steps):
    """→ a function that makes a document of two or three such questions with their answers"""

    def document(rng):
        pairs = [
            ask(rng.choice(ns), rng.random() < in_steps, rng) for _ in range(rng.choice([2, 3]))
        ]
        return "".join(q + a for q, a in pairs).strip(" ")

    return document


few = several(a_sum, [3], 1)
TEXTS = {
    "programs": several(a_program, [3, 4], 0.7),
    "sums in steps": several(a_sum, [3, 4], 1),
    "neither": None,
}


def others(rng):
    mix = {kind: share for kind, share in prepare.MIX.items() if kind is not prepare.program}
    return rng.choices(list(mix), list(mix.values()))[0](rng)


def documents(text, number, vocab):
    """The token ids of a text's documents, about `number` tokens in all, in random order."""
    rng, found = random.Random(1337), []
    parts = [(TEXTS[text] or others, SHARE), (few, FEW), (others, 1 - SHARE - FEW)]
    for make, share in parts:
        made = 0
        while made < share * number:
            found.append(prepare.encode(make(rng), vocab))
            made += len(found[-1])
    rng.shuffle(found)
    return found


def base(args, run, text, seed):
    """The path of a base that is pretrained on this text; made if it is missing."""
    where = lib.scratch(args, f"programs/{text.replace(' ', '-')}")
    data = folder(run, f"{where}/data", "val.bin", "demonstrations.jsonl")
    number = 60_000 if args.quick else len(read_tokens(f"{run.folder}/train.bin", run.vocab))
    with lib.lock:
        if not os.path.exists(f"{data}/train.bin"):
            write_bin(f"{data}/train.bin", documents(text, number, run.vocab))
    flags = [] if args.quick else [f"--size={SIZE}", f"--steps={STEPS}"]
    lib.stage(args, "pretrain", f"{where}/{seed}", seed, f"--data={data}", *flags)
    return f"{where}/{seed}/pretrain.pt"


# ---- results ----


@torch.no_grad()
def loss(run, model, rows):
    """Mean loss of the right answers, in nats a token."""
    pairs = [(r["text"], r["text"] + r["answers"][0]) for r in rows]
    pairs = [(run.vocab.encode(whole), len(run.vocab.encode(asked))) for asked, whole in pairs]
    tokens, mask = collate(pairs, run.vocab, model)
    return sft_loss(model(tokens), tokens, mask).item()


def job(args, run, text, seed):
    model, found = lib.network(base(args, run, text, seed)), []
    for name, question in QUESTIONS.items():
        rng = random.Random(name)
        rows = [after_examples(*question, rng) for _ in range(8 if args.quick else 400)]
        right = np.mean(completed(run, model, rows, 40))
        found.append({"question": name, "right": right, "loss": loss(run, model, rows)})
    return found


def values(rows, text, question, column):
    """{seed: value}"""
    mine = [r for r in rows if (r["text"], r["question"]) == (text, question)]
    return {r["seed"]: r[column] for r in mine}


def table(rows, texts):
    """Each text, and what its 15 % bring over "neither", within a seed."""
    for column in ("right", "loss"):
        heads = [column, *texts, *(f"{text} bring" for text in texts[:-1])]
        print(f"\n| {' | '.join(heads)} |\n|" + "---|" * len(heads))
        for question in QUESTIONS:
            found = [values(rows, text, question, column) for text in texts]
            gains = [[x[seed] - found[-1][seed] for seed in x] for x in found[:-1]]
            cells = [lib.interval(list(x.values())) for x in found] + [*map(lib.interval, gains)]
            signs = [""] * len(found) + ["+"] * len(gains)
            cells = [f"{mean:{sign}.3f} ± {half:.3f}" for (mean, half), sign in zip(cells, signs)]
            print(f"| {question} | {' | '.join(cells)} |")


def draw(args, rows, texts):
    fig, axes = lib.figure(size=(6.4, 3.6))
    ax, names = axes[0, 0], list(QUESTIONS)
    for i, text in enumerate(texts):
        cells = [lib.interval(list(values(rows, text, q, "right").values())) for q in names]
        mean, half = np.nan_to_num(np.array(cells)).T
        y = np.arange(len(names)) + 0.15 * (i - 1)
        ax.errorbar(mean, y, xerr=half, marker="o", ls="", capsize=3, label=text)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set_xlim(-0.03, 1.03)
    ax.set_xlabel("share of right answers, after two examples")
    ax.set_title(TITLE)
    ax.legend(title="15 % of the pretraining text", loc="center", bbox_to_anchor=(0.55, 0.49))
    lib.finish(fig, lib.place(args, "programs.png"))


def main():
    args = lib.arguments(__doc__, 3)
    run = lib.world()
    texts = ["programs", "neither"] if args.quick else list(TEXTS)
    jobs = [((t, s), lambda t=t, s=s: job(args, run, t, s)) for s in args.seeds for t in texts]
    rows = lib.collect(args, lib.place(args, "programs.csv"), jobs, ["text", "seed"])
    table(rows, texts)
    draw(args, rows, texts)


if __name__ == "__main__":
    entry(main)

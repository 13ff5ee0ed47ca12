"""
ChatGPT against InstructGPT: what do dialogues among the demonstrations give, and what do they cost?

    python experiments/dialogue.py             # three seeds: dialogue.csv, dialogue.png

Fu et al. 2022 suppose that ChatGPT traded in-context learning for the ability to model dialogue
history. SFT here on 8,000 demonstrations, once each, from one base, of which 0 to 60 % are
dialogues. The questions, their answers and their number are the same in all: a dialogue that is not
to be one is its last question, asked alone and with care (the row's "meaning"). The batches have no
pretraining text (--pretrain_mix=0), so that in-context learning can be lost.

Dialogue: gold score on held-out prompts by turn, of those that refer back to what was said, and of
the same questions alone. In-context learning, completed greedily: tasks that examples show, in the
form of pretraining text (opposites, past, polite requests, codes, swapped words); facts that are
asked after two examples.
"""

import json
import random

import lib

import numpy as np
import prepare
from abilities import asked_few_shot, completed, folder, heldout_prompts, marked, of_kind
from data import meaning_of, read_jsonl, replacing
from plumbing.command_line import entry

SHARES = [0.0, 0.2, 0.4, 0.6]
NUMBER = 8000
TITLE = (
    "Dialogues among the demonstrations teach to refer back,\n"
    "and examples are read no worse after them"
)


def demonstrations(rows, share, seed, number):
    """So many of the rows, the same ones for each share of dialogues, but for their history."""
    rng = random.Random(seed)
    rows = rng.sample(rows, len(rows))
    talks = [r for r in rows if not isinstance(r["prompt"], str)][: round(SHARES[-1] * number)]
    alone = [r for r in rows if isinstance(r["prompt"], str)][: number - len(talks)]
    kept = round(share * number)
    rows = talks[:kept] + [{**r, "prompt": meaning_of(r)} for r in talks[kept:]] + alone
    rng.shuffle(rows)
    return rows


def tuned(args, run, share, seed):
    """The path of SFT on them; made if it is missing."""
    out = lib.scratch(args, f"dialogue/{share:g}-{seed}")
    data, number = folder(run, f"{out}/data", "train.bin", "val.bin"), 320 if args.quick else NUMBER
    rows = read_jsonl(f"{run.folder}/demonstrations.jsonl", ["prompt", "response"], "train")
    with replacing(f"{data}/demonstrations.jsonl") as f:
        f.writelines(json.dumps(row) + "\n" for row in demonstrations(rows, share, seed, number))
    lib.stage(args, "sft", out, seed, f"--data={data}", "--epochs=1", "--pretrain_mix=0")
    return f"{out}/sft.pt"


def task(rng):
    """A document of examples of one task, up to its last answer, which is asked for."""
    text, _, answer = prepare.examples(rng).rpartition(": ")
    return {"text": f"{text}:", "answers": [f" {answer}"]}


def measured(run, model, n):
    """→ rows {"measure", "value"}"""
    rng, rows = random.Random(7), heldout_prompts(run, unseen=False)[: 6 * n]
    gold = np.array(marked(run, model, rows, "gold"))
    for turn in (1, 2, 3, 4):
        yield f"turn {turn}", gold[[f"turn {turn}" in r["tags"] for r in rows]]
    back = [any("refers back" in tag for tag in r["tags"]) for r in rows]
    yield "refers back", gold[back]
    asked = [{"prompt": meaning_of(r)} for r, b in zip(rows, back) if b]
    yield "the same alone", marked(run, model, asked, "gold")
    tasks = [task(rng) for _ in range(2 * n)]
    yield "tasks from examples", completed(run, model, tasks, 24)
    yield "facts after examples", asked_few_shot(run, model, of_kind("facts", n, rng), rng)


def job(args, run, share, seed):
    model = lib.network(lib.make_base(args) if share == "base" else tuned(args, run, share, seed))
    found = measured(run, model, 10 if args.quick else 200)
    return [{"measure": name, "value": float(np.mean(values))} for name, values in found]


def values(rows, share, measure):
    """{seed: value}"""
    return {r["seed"]: r["value"] for r in rows if (r["share"], r["measure"]) == (share, measure)}


def table(rows, shares):
    """Each measure by the share of dialogues; the last column less the first, within a seed."""
    names = ["base", *(f"{share:.0%} dialogues" for share in shares)]
    print(f"\n| | {' | '.join(names)} | last less first |\n|" + "---|" * (2 + len(names)))
    for measure in dict.fromkeys(r["measure"] for r in rows):
        found = [values(rows, share, measure) for share in shares]
        cells = [lib.interval(list(x.values())) for x in found]
        cells.append(lib.interval([found[-1][seed] - found[0][seed] for seed in found[0]]))
        (base,) = values(rows, "base", measure).values()
        cells = [f"{mean:.3f} ± {half:.3f}" for mean, half in cells]
        print(f"| {measure} | {base:.3f} | {' | '.join(cells)} |")


DRAWN = {
    "turn 1": "gold, first question",
    "refers back": "gold, question that refers back",
    "tasks from examples": "tasks from examples in the prompt",
    "facts after examples": "facts after two examples",
}


def draw(args, rows, shares):
    fig, axes = lib.figure(size=(6.4, 3.8))
    ax = axes[0, 0]
    for measure, name in DRAWN.items():
        cells = [lib.interval(list(values(rows, share, measure).values())) for share in shares]
        mean, half = np.nan_to_num(np.array(cells)).T
        style = "o--" if measure.endswith("examples") else "o-"
        ax.errorbar([100 * share for share in shares], mean, half, fmt=style, capsize=3, label=name)
    ax.set_xlabel("dialogues among the demonstrations, %")
    ax.set_ylabel("gold score, or share that is right")
    ax.set_ylim(0, 1.03)
    ax.set_title(TITLE)
    ax.legend()
    lib.finish(fig, lib.place(args, "dialogue.png"))


def main():
    args = lib.arguments(__doc__, 3)
    run = lib.world()
    shares = [SHARES[0], SHARES[-1]] if args.quick else SHARES
    keys = [("base", 1), *((share, seed) for seed in args.seeds for share in shares)]
    jobs = [(k, lambda k=k: job(args, run, *k)) for k in keys]
    rows = lib.collect(args, lib.place(args, "dialogue.csv"), jobs, ["share", "seed"])
    table(rows, shares)
    draw(args, rows, shares)


if __name__ == "__main__":
    entry(main)

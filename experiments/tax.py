"""
The alignment tax, and how much of it pretraining gradients in PPO (ptx) win back.

    python experiments/tax.py              # three seeds: tax.csv, tax.png, tax_gamma.png
    python experiments/tax.py --seeds=5

γ multiplies the mean loss of a pretraining token; the paper prints 27.8 and does not say of what.
PPO starts from SFT with pretraining text in its batches, as the paper's and this project's default
does, and from SFT without any, so that there is more tax to win back. The reward model of a seed is
the same for all its runs. Three bases, SFT and PPO with γ = 1 are those of seeds.py.

SFT without text tests an account of ChatGPT's ancestors (Fu et al. 2022): supervised tuning traded
in-context learning away, and language modelling mixed into RLHF brought it back. tax_gamma.png has
both sides of it against γ: facts asked after two examples, and the gold score.

Measured on the final model (EMA): loss on held-out pretraining text; facts by cloze, facts after
two examples on a page of questions; a mapping shown eight times in the prompt (abilities.py has the
questions); gold score and KL on 900 held-out prompts. 800 questions each, facts by cloze 200.
"""

import math
import os
import random

import lib

import numpy as np
from abilities import asked_few_shot, chosen, completed, mapping, of_kind
from data import read_jsonl
from data.text import Text
from figure1 import BASES, base, tuned
from plumbing.checkpoint import load, save
from plumbing.command_line import entry
from plumbing.run import read_log

# what a run is called: (SFT that it starts from, γ on the mean loss of a token or None for the SFT
# itself)
SETTINGS = {
    "SFT": ("mixed", None),
    "γ = 0": ("mixed", 0),
    "γ = 1": ("mixed", 1),
    "plain SFT": ("plain", None),
    "plain, γ = 0": ("plain", 0),
    "plain, γ = 1": ("plain", 1),
    "plain, γ = 27.8": ("plain", 27.8),
    "γ = 27.8": ("mixed", 27.8),
}
COLUMNS = {
    "pretrain_loss": "loss on held-out pretraining text,\nnats a token",
    "facts_few_shot": "facts right, asked after\ntwo examples",
    "mapping": "mapping in context right\n(8 examples)",
    "gold": "gold score",
}


def plain_sft(args, source, seed):
    """The folder with SFT without pretraining text, and the reward model of the other SFT."""
    plain = lib.scratch(args, f"tax/plain-{seed}")
    with lib.lock:
        lib.stage(args, "sft", plain, seed, "--pretrain_mix=0")
        if not os.path.exists(f"{plain}/reward.pt"):
            # without parents, since it was trained on answers of the other SFT
            save(f"{plain}/reward.pt", {**load(f"{source}/reward.pt"), "parents": {}})
    return plain


def source_of(args, start, seed):
    """The folder of the SFT and the reward model that a run starts from."""
    source = os.path.dirname(tuned(args, "tiny", seed, "reward"))
    return source if start == "mixed" else plain_sft(args, source, seed)


def folder_of_run(args, setting, seed):
    """The folder in which this setting's model is, and its name; made if it is missing."""
    start, gamma = SETTINGS[setting]
    source = source_of(args, start, seed)
    if gamma is None:
        return source, "sft"
    if start == "mixed" and gamma in (0, 1):  # runs of figure1.py
        return os.path.dirname(tuned(args, "tiny", seed, "ppo-ptx" if gamma else "ppo")), "ppo"
    out = lib.scratch(args, f"tax/{start}-{gamma:g}-{seed}")
    lib.variant(source, out, "sft.pt", "reward.pt")
    lib.stage(args, "ppo", out, seed, f"--ptx_coef={gamma:.6g}")
    return out, "ppo"


def measured(args, run, model, source):
    """Everything but what PPO's log says. source: folder of SFT and reward model; None: a base."""
    n, rng = 20 if args.quick else 800, random.Random(6)
    found = dict.fromkeys(("gold", "score", "kl", "length"), math.nan)
    if source:
        rows = lib.heldout(run, 40 if args.quick else 900)
        sft, reward_model = (lib.network(f"{source}/{name}.pt") for name in ("sft", "reward"))
        marks = lib.measure(run, model, sft, reward_model, rows)
        found = {k: float(marks[k].mean()) for k in found}
    cloze = read_jsonl(f"{run.folder}/abilities.jsonl", ["ability", "text", "answers"])
    cloze = [r for r in cloze if r["ability"] == "facts"]
    right = asked_few_shot(run, model, of_kind("facts", n, rng), rng)
    mappings = chosen(run, model, [mapping(8, rng) for _ in range(n)])
    loss, _ = Text(f"{run.folder}/val.bin", run.vocab, 128, run.device).loss(model, rows=512)
    return {
        "pretrain_loss": loss,
        "facts": float(np.mean(completed(run, model, cloze))),
        "facts_few_shot": float(np.mean(right)),
        "mapping": float(np.mean(mappings)),
        **found,
    }


def job(args, run, setting, seed):
    if setting == "base":
        path = base(args, "tiny", BASES[seed - 1])
        return {**measured(args, run, lib.network(path), None), "kl_highest": math.nan}
    out, name = folder_of_run(args, setting, seed)
    source = source_of(args, SETTINGS[setting][0], seed)
    log = read_log(f"{out}/ppo.jsonl") if name == "ppo" else []
    return {
        **measured(args, run, lib.network(f"{out}/{name}.pt"), source),
        "kl_highest": max((x["objective/kl"] for x in log), default=math.nan),
    }


def main():
    args = lib.arguments(__doc__, 3)
    run = lib.world()
    settings = list(SETTINGS)
    if args.quick:
        settings = ["SFT", "γ = 0", "γ = 1", "plain SFT", "plain, γ = 1"]
    keys = [("base", seed) for seed in args.seeds if seed <= len(BASES)]
    keys += [(s, seed) for s in settings for seed in args.seeds]
    jobs = [(k, lambda k=k: job(args, run, *k)) for k in keys]
    rows = lib.collect(args, lib.place(args, "tax.csv"), jobs, ["setting", "seed"])
    names = ["base", *(s for s in settings if any(r["setting"] == s for r in rows))]
    table(names, rows)
    story(rows)
    draw(args, names, rows)
    draw_gamma(args, rows)


def cell(rows, name, column):
    return lib.interval([r[column] for r in rows if r["setting"] == name])


def table(names, rows):
    columns = (*COLUMNS, "facts", "kl", "kl_highest")
    print(f"{'':26s}" + "".join(f"{c:>22s}" for c in columns))
    for name in names:
        cells = [cell(rows, name, c) for c in columns]
        print(f"{name:26s}" + "".join(f"{mean:14.3f} ±{half:6.3f}" for mean, half in cells))


# Fu et al.'s account, as differences: a question, a setting, and what is taken from it
STORY = [
    ("does supervised tuning lose it?", "plain SFT", "base"),
    ("does PPO alone bring it back?", "plain, γ = 0", "plain SFT"),
    ("PPO with language modelling?", "plain, γ = 1", "plain SFT"),
    ("more than PPO alone?", "plain, γ = 1", "plain, γ = 0"),
    ("at which price?", "plain, γ = 27.8", "plain, γ = 0"),
    ("and where SFT had text: γ = 1", "γ = 1", "γ = 0"),
    ("and where SFT had text: γ = 27.8", "γ = 27.8", "γ = 0"),
]


def gap(rows, column, left, right):
    """left − right → mean, half-width of its 95 % interval; within a seed, but for a base.

    A base of a single seed adds nothing to the interval, which then is of what starts from it.
    """
    a, b = ({r["seed"]: r[column] for r in rows if r["setting"] == s} for s in (left, right))
    if "base" not in (left, right):
        return lib.interval([a[seed] - b[seed] for seed in a if seed in b])
    (mean, half), (other, other_half) = (lib.interval(list(x.values())) for x in (a, b))
    return mean - other, float(np.hypot(*np.nan_to_num([half, other_half])))


def story(rows):
    there = {r["setting"] for r in rows}
    for column in COLUMNS:
        for question, left, right in STORY:
            if {left, right} <= there and (column, right) != ("gold", "base"):
                mean, half = gap(rows, column, left, right)
                print(f"{column}: {question} {left} − {right}: {mean:+.3f} ± {half:.3f}")


def colour(name):
    return "#000000" if name == "base" else "#d55e00" if name.startswith("plain") else "#0072b2"


def draw(args, names, rows):
    fig, axes = lib.figure(len(COLUMNS), size=(3.1, 3.6))
    for ax, (column, label) in zip(axes[0], COLUMNS.items()):
        for i, name in enumerate(names):
            mean, half = cell(rows, name, column)
            if not math.isnan(mean):
                half = 0 if math.isnan(half) else half
                ax.errorbar(mean, -i, xerr=half, marker="o", capsize=3, color=colour(name))
        ax.set_yticks([-i for i in range(len(names))], names if ax is axes[0, 0] else [])
        ax.set_ylim(-len(names) + 0.5, 0.5)
        ax.set_xlabel(label)
    fig.suptitle(
        "γ = 0 forgets pretraining text, γ = 1 keeps it at no cost in gold score\n"
        "orange: from SFT without pretraining text, which has forgotten most of it; "
        "there γ = 1 wins the text back",
        fontsize=10,
    )
    lib.finish(fig, lib.place(args, "tax.png"))


GAMMAS = {"SFT": None, "γ = 0": "γ = 0", "1": "γ = 1", "27.8": "γ = 27.8"}
STARTS = {
    "SFT without pretraining text": ("plain SFT", "plain, ", "#d55e00"),
    "SFT with pretraining text": ("SFT", "", "#0072b2"),
}
SIDES = {
    "facts_few_shot": "facts right, asked after two examples",
    "mapping": "a new mapping right, after eight examples",
    "gold": "gold score",
}


def draw_gamma(args, rows):
    """What the text brings back, and what it costs, against γ."""
    fig, axes = lib.figure(len(SIDES), size=(3.6, 3.6))
    there = {r["setting"] for r in rows}
    for ax, (column, label) in zip(axes[0], SIDES.items()):
        for shift, (name, (sft, prefix, colour)) in zip((-0.05, 0.05), STARTS.items()):
            settings = [sft if g is None else prefix + g for g in GAMMAS.values()]
            points = [
                (x + shift, *cell(rows, s, column)) for x, s in enumerate(settings) if s in there
            ]
            x, mean, half = zip(*points)
            half = np.nan_to_num(half)
            ax.errorbar(x, mean, half, marker="o", capsize=3, color=colour, label=f"from {name}")
        mean, half = cell(rows, "base", column)
        if not math.isnan(mean):
            ax.axhline(mean, color="black", ls="--", lw=1, label="base")
            ax.axhspan(
                mean - np.nan_to_num(half), mean + np.nan_to_num(half), color="grey", alpha=0.2
            )
        ax.set_xticks(range(len(GAMMAS)), GAMMAS)
        ax.set_xlabel("SFT, and PPO from it by γ")
        ax.set_ylabel(label)
        ax.set_ylim(0, 1.02)
    axes[0, 1].legend(*axes[0, 0].get_legend_handles_labels(), loc="upper left")
    fig.suptitle(
        "SFT without pretraining text loses what examples bring out. PPO brings the facts back,\n"
        "even without text (γ = 0), and not a new mapping; γ = 27.8 costs most of the gain in gold"
    )
    lib.finish(fig, lib.place(args, "tax_gamma.png"))


if __name__ == "__main__":
    entry(main)

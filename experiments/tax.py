"""
The alignment tax, and how much of it pretraining gradients in PPO (ptx) win back.

    python experiments/tax.py              # three seeds: tax.csv, tax.png, tax_gamma.png
    python experiments/tax.py --seeds=5

γ multiplies the mean loss of a pretraining token here. The paper prints 27.8 and does not say of
what; 27.8 times the sum over a window's 127 predicted tokens is 3,531 times the mean. Both are run,
and the second without gradient clipping too. The model is the micro one of figure1.py, 57 thousand
parameters, and its runs with γ = 0 and 1 are used here: tiny has abilities to spare, it completes
every fact before and after. PPO starts from SFT with pretraining text in its batches, as the
paper's and this project's default does, and from SFT without any, so that there is more tax to win
back. The reward model of a seed is the same for all its runs.

That second SFT tests an account of ChatGPT's ancestors (Fu et al. 2022): supervised tuning traded
in-context learning away, and language modelling mixed into RLHF brought it back. tax_gamma.png has
both sides of it against γ: facts asked after two examples, and the gold score.

grad_norm is the mean norm of the policy's gradient before it is clipped to 1: how γ changes the
balance of the two gradients. Measured on the final model (EMA): loss on held-out pretraining text;
facts by cloze, facts after two examples on a page of questions; a mapping shown eight times in the
prompt (abilities.py has the questions); gold score and KL on 900 held-out prompts.
"""

import math
import os
import random

import lib

import numpy as np
from abilities import asked_few_shot, chosen, completed, mapping, of_kind
from data import read_jsonl
from data.text import Text
from figure1 import BASES, NORMS, base, rates, sft_flags, tuned
from plumbing.checkpoint import load, save
from plumbing.command_line import entry
from plumbing.run import read_log

SIZE = "micro"
SUM = 27.8 * 127  # 27.8 on the sum over a window's predicted tokens, as a weight of their mean
# what a run is called: (SFT that it starts from, γ on the mean loss of a token or None for the SFT
# itself, whether gradients are clipped)
SETTINGS = {
    "SFT": ("mixed", None, True),
    "γ = 0": ("mixed", 0, True),
    "γ = 1": ("mixed", 1, True),
    "γ = 27.8": ("mixed", 27.8, True),
    "γ = 27.8, sum": ("mixed", SUM, True),
    "γ = 27.8, sum, unclipped": ("mixed", SUM, False),
    "plain SFT": ("plain", None, True),
    "plain, γ = 0": ("plain", 0, True),
    "plain, γ = 1": ("plain", 1, True),
    "plain, γ = 27.8": ("plain", 27.8, True),
}
UNCLIPPED = """
clipped = ppo.update
ppo.update = lambda model, optimizer, lr: clipped(model, optimizer, lr, float('inf'))"""
COLUMNS = {
    "pretrain_loss": "loss on held-out pretraining text,\nnats a token",
    "facts_few_shot": "facts right, asked after\ntwo examples",
    "mapping": "mapping in context right\n(8 examples)",
    "gold": "gold score",
}


def flags_of(args):
    return [] if args.quick else [f"--size={SIZE}", f"--base={base(args, SIZE)}"]


def plain_sft(args, source, seed):
    """The folder with SFT without pretraining text, and the reward model of the other SFT."""
    plain, rate = lib.scratch(args, f"tax/plain-{seed}"), [] if args.quick else sft_flags(SIZE)
    with lib.lock:
        lib.stage(args, "sft", plain, seed, *flags_of(args), "--pretrain_mix=0", *rate)
        if not os.path.exists(f"{plain}/reward.pt"):
            # without parents, since it was trained on answers of the other SFT
            save(f"{plain}/reward.pt", {**load(f"{source}/reward.pt"), "parents": {}})
    return plain


def folder_of_run(args, setting, seed):
    """The folder in which this setting's model is, and its name; made if it is missing."""
    start, gamma, clipped = SETTINGS[setting]
    model = "reward"
    if start == "mixed" and gamma in (0, 1):  # runs of figure1.py
        model = {0: "ppo", 1: "ppo-ptx"}[gamma]
    source = os.path.dirname(tuned(args, SIZE, seed, model))
    if model != "reward":
        return source, "ppo"
    if start == "plain":
        source = plain_sft(args, source, seed)
    if gamma is None:
        return source, "sft"
    name = f"{start}-{gamma:g}{'' if clipped else '-unclipped'}-{seed}"
    out = lib.variant(source, lib.scratch(args, f"tax/{name}"), "sft.pt", "reward.pt")
    lr = [] if args.quick else rates(SIZE, lr=2e-4, critic_lr=5e-4)
    flags = [*flags_of(args), *lr, f"--ptx_coef={gamma:.6g}"]
    lib.stage(args, "ppo", out, seed, *flags, patch=NORMS if clipped else NORMS + UNCLIPPED)
    return out, "ppo"


def measured(args, run, model, source):
    """Everything but what PPO's log says. source: folder of SFT and reward model; None: a base."""
    n, rng = 20 if args.quick else 200, random.Random(6)
    found = dict.fromkeys(("gold", "score", "kl", "length"), math.nan)
    if source:
        rows = lib.heldout(run, 40 if args.quick else 900)
        sft, reward_model = (lib.network(f"{source}/{name}.pt") for name in ("sft", "reward"))
        marks = lib.measure(run, model, sft, reward_model, rows)
        found = {k: float(marks[k].mean()) for k in found}
    cloze = read_jsonl(f"{run.folder}/abilities.jsonl", ["ability", "text", "answers"])
    cloze = [r for r in cloze if r["ability"] == "facts"][:n]
    right = asked_few_shot(run, model, of_kind("facts", n, rng), rng)
    mappings = chosen(run, model, [mapping(8, rng) for _ in range(2 * n)])
    loss, _ = Text(f"{run.folder}/val.bin", run.vocab, 128, run.device).loss(model, rows=512)
    return {
        "pretrain_loss": loss,
        "facts": float(np.mean(completed(run, model, cloze))),
        "facts_few_shot": float(np.mean(right)),
        "mapping": float(np.mean(mappings)),
        **found,
    }


def norms_of(out):
    """The gradient norms that NORMS has written, NaN if it was not there."""
    if not os.path.exists(f"{out}/norms.txt"):
        return [math.nan]
    with open(f"{out}/norms.txt") as f:
        return [float(x) for x in f]


def job(args, run, setting, seed):
    if setting == "base":
        row = measured(args, run, lib.network(base(args, SIZE, BASES[seed - 1])), None)
        return {**row, "kl_highest": math.nan, "grad_norm": math.nan}
    out, name = folder_of_run(args, setting, seed)
    if SETTINGS[setting][0] == "plain":
        source = lib.scratch(args, f"tax/plain-{seed}")
    else:
        source = os.path.dirname(tuned(args, SIZE, seed, "reward"))
    log = read_log(f"{out}/ppo.jsonl") if name == "ppo" else []
    return {
        **measured(args, run, lib.network(f"{out}/{name}.pt"), source),
        "kl_highest": max((x["objective/kl"] for x in log), default=math.nan),
        "grad_norm": float(np.mean(norms_of(out))),
    }


def main():
    args = lib.arguments(__doc__, 3)
    run = lib.world()
    settings = list(SETTINGS)
    if args.quick:
        settings = ["SFT", "γ = 0", "γ = 1", "plain SFT", "plain, γ = 1"]
    base(args, SIZE)
    keys = [("base", seed) for seed in args.seeds if seed <= len(BASES)]
    keys += [(s, seed) for seed in args.seeds for s in settings]
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
    columns = (*COLUMNS, "facts", "kl", "kl_highest", "grad_norm")
    print(f"{'':26s}" + "".join(f"{c:>22s}" for c in columns))
    for name in names:
        cells = [cell(rows, name, c) for c in columns]
        print(f"{name:26s}" + "".join(f"{mean:14.3f} ±{half:6.3f}" for mean, half in cells))


# Fu et al.'s account, as differences: a sentence, a setting, what is taken from it, and the sign
STORY = [
    ("supervised tuning loses it", "plain SFT", "base", "<"),
    ("PPO alone does not bring it back", "plain, γ = 0", "plain SFT", "="),
    ("language modelling mixed into PPO does", "plain, γ = 1", "plain SFT", ">"),
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
    for column in ("facts_few_shot", "mapping"):
        for sentence, left, right, sign in STORY:
            if {left, right} <= there:
                mean, half = gap(rows, column, left, right)
                print(f"{column}: {sentence} ({left} {sign} {right}): {mean:+.3f} ± {half:.3f}")


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
    title = (
        "γ = 0 forgets pretraining text, γ = 1 keeps it at no cost in gold score; "
        "the paper's 27.8 costs half of what PPO gains, and all of it as a sum"
    )
    if any(n.startswith("plain") for n in names):
        title += (
            "\norange: from SFT without pretraining text, which has forgotten most of it; "
            "there ptx wins it back, and costs more"
        )
    fig.suptitle(title, fontsize=10)
    lib.finish(fig, lib.place(args, "tax.png"))


GAMMAS = {"SFT": None, "γ = 0": "γ = 0", "1": "γ = 1", "27.8": "γ = 27.8"}
STARTS = {
    "SFT without pretraining text": ("plain SFT", "plain, ", "#d55e00"),
    "SFT with pretraining text": ("SFT", "", "#0072b2"),
}
PAIR = {"facts_few_shot": "facts right, asked after two examples", "gold": "gold score"}


def draw_gamma(args, rows):
    """What the text brings back, and what it costs, against γ."""
    fig, axes = lib.figure(2, size=(4.2, 3.6))
    there = {r["setting"] for r in rows}
    for ax, (column, label) in zip(axes[0], PAIR.items()):
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
        ax.set_ylim(0, 0.85)
    axes[0, 1].legend(*axes[0, 0].get_legend_handles_labels(), loc="lower left")
    fig.suptitle(
        "SFT without pretraining text loses what examples bring out;\n"
        "pretraining gradients in PPO bring it back, for a price in gold score"
    )
    lib.finish(fig, lib.place(args, "tax_gamma.png"))


if __name__ == "__main__":
    entry(main)

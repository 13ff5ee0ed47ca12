"""
The labelers: what PPO makes of their taste for length, how others like it, and what they cost.

    python experiments/labelers.py      # three seeds: labelers.csv, verbosity.png, labelers.png

Labelers rank by the gold score, noise and a liking for each word (judge.py). Here all of them like
a word more than the village's do, or less, by -0.03 to 0.03 of gold. They rank the answers that the
seed's reward model learnt from, with the same noise. A new reward model and PPO-ptx follow, of
57 thousand parameters, from the same SFT model, with the settings that methods.py chose.

Verbosity. The post that announced ChatGPT (OpenAI, November 2022) says that it is often too wordy,
and blames over-optimisation, and trainers who prefer long answers because they look more complete.
`word` is what a word more is worth to a reward model, in units of what it pays for gold: least
squares of its scores on gold and words, among the answers to a prompt.

Labelers. Reward models of Ouyang et al. 2022 (section 4.1) are right about 72.4 % of the pairs of
labelers that they were trained on, and 69.6 % of those of others. accuracy_T is on the same 900
held-out prompts, ranked by labelers with taste T. ceiling_T is that of what they rank by, without
noise. likes_T is how often such a labeler would prefer a policy's answer to SFT's.

Cost. PPO-ptx after comparisons of fewer prompts, by the village's own labelers.
"""

import functools
import json
import os
import random
from collections import Counter

import lib

import numpy as np
import torch
from data import meaning_of, read_jsonl, replacing, turns_of
from figure1 import base, rates, tuned
from methods import PARTS, SNAPSHOTS
from plumbing.command_line import entry
from reward import ordered_right, score_sequences

SIZE = "micro"
TASTES, PROMPTS, ALL = [0.0, 0.03, -0.03, 0.01], [1000, 250, 4000], 12000
GROUPS = [-0.03, 0.03]
STEP = 0.002  # judge.py: what a word is worth to a labeler more than to the one before
LONGEST = 30  # judge.py: words that are counted
# run before reward.main(): the comparisons in OUT are taken as they are
RANKED = """
from data import read_jsonl
comparisons.sampled_comparisons = lambda run, *more: read_jsonl(
    f'{run.config.out}/comparisons.jsonl', ['prompt', 'responses', 'ranks'])"""


def ranked(judge, rows, taste, seed):
    """Comparisons as labelers would rank them to whom a word is worth `taste` more.

    rows: all of a split. Who ranks, and the noise, are those of comparisons.py.
    """
    found, count = [], Counter()
    for row in rows:
        rng = random.Random(f"{seed} {row['split']} {count[row['split']]}")
        labeler = rng.randrange(judge.LABELERS) + taste / STEP
        count[row["split"]] += 1
        found.append({**row, "ranks": judge.rank(meaning_of(row), row["responses"], labeler, rng)})
    if not taste and found != rows:
        raise ValueError("these comparisons were ranked otherwise: make them again")
    return found


def flags_of(args, **lr):
    """Size, base and learning rates of a stage."""
    if args.quick:
        return []
    return [f"--size={SIZE}", f"--base={base(args, SIZE)}", *rates(SIZE, **lr)]


def trained(args, judge, taste, prompts, seed):
    """The folder of a reward model of such labelers and PPO-ptx with it; made if it is missing."""
    own = os.path.dirname(tuned(args, SIZE, seed, "reward"))
    out = lib.scratch(args, f"labelers/{taste:g}-{prompts}-{seed}")
    same = ["reward.pt"] * (not taste and prompts == ALL)  # figure1.py's
    lib.variant(own, out, "sft.pt", *same)
    if not os.path.exists(f"{out}/reward.pt"):
        rows = [read_jsonl(f"{own}/comparisons.jsonl", ["ranks"], s) for s in ("train", "heldout")]
        with replacing(f"{out}/comparisons.jsonl") as f:
            for split in (rows[0][:prompts], rows[1]):
                f.writelines(json.dumps(r) + "\n" for r in ranked(judge, split, taste, seed))
        lib.stage(args, "reward", out, seed, *flags_of(args, lr=6e-4), patch=RANKED)
    flags = [*flags_of(args, lr=2e-4, critic_lr=5e-4), "--beta=0.3", "--eval_every=40"]
    lib.stage(args, "ppo", out, seed, *flags, patch=SNAPSHOTS.format(parts=PARTS))
    return out


# ---- what is measured ----


def counted(answers):
    return np.array([len(a.split()) for a in answers])


def worth(scores, gold, words):
    """What a word more is worth to a reward model, in units of what it pays for gold.

    All (prompts, answers); a score is NaN where an answer does not count.
    """
    x = np.where(np.isnan(scores), np.nan, [gold, words, scores])
    x = x - np.nanmean(x, axis=-1, keepdims=True)
    *both, y = x[:, ~np.isnan(scores)]
    (of_gold, of_words), *_ = np.linalg.lstsq(np.stack(both, 1), y, rcond=None)
    return of_words / of_gold


def likes(judge, taste, answers, others):
    """How often a labeler of this taste prefers the first of two answers, ties apart.

    Both are (gold, words), arrays with an entry a prompt.
    """
    seen, other = (g + taste * np.minimum(w, LONGEST) for g, w in (answers, others))
    better = torch.tensor((seen - other) / (judge.NOISE * 2**0.5))
    return torch.special.ndtr(better).mean().item()


@torch.no_grad()
def of_reward_model(run, model, comparisons):
    """Accuracy by the taste of who ranks, and what a word is worth. {taste: held-out rows}"""
    rows = comparisons[0.0]
    encode, answers = run.vocab.response, [r["responses"] for r in rows]
    tokens = [run.vocab.prompt(r["prompt"]) + encode(a) for r in rows for a in r["responses"]]
    parts = [tokens[i : i + 100] for i in range(0, len(tokens), 100)]
    scores = torch.cat([score_sequences(model, part, run.vocab) for part in parts])
    scores = scores.view(len(rows), -1).double().numpy()
    scores[[[a in of[:i] for i, a in enumerate(of)] for of in answers]] = np.nan  # repeated
    gold, words = np.array([r["gold"] for r in rows]), np.array([counted(of) for of in answers])
    found = {"word": worth(scores, gold, words)}
    for taste, rows in comparisons.items():
        ranks = torch.tensor([r["ranks"] for r in rows]) * torch.tensor(~np.isnan(scores))
        truth = gold + taste * np.minimum(words, LONGEST)
        for name, x in (("accuracy", scores), ("ceiling", truth)):
            right, pairs = (n.sum().item() for n in ordered_right(torch.tensor(x), ranks))
            found[f"{name}_{taste:g}"] = right / pairs
    return found


def job(args, run, comparisons, taste, prompts, seed):
    """Rows of SFT and of the policy along PPO."""
    folder = trained(args, run.judge, taste, prompts, seed)
    sft, model = (lib.network(f"{folder}/{name}.pt") for name in ("sft", "reward"))
    same, of_sft, found = of_reward_model(run, model, comparisons(seed)), None, []
    paths = {0: f"{folder}/sft.pt", **{p: f"{folder}/at-{p:g}.pt" for p in PARTS}}
    rows = lib.heldout(run, 40 if args.quick else 900)
    for done in filter(lambda p: os.path.exists(paths[p]), paths):
        marks = lib.measure(run, lib.network(paths[done]), sft, model, rows)
        answers = marks["gold"], counted(marks["answer"])
        of_sft = of_sft or answers
        liked = {f"likes_{t:g}": likes(run.judge, t, answers, of_sft) for t in TASTES}
        row = {k: float(marks[k].mean()) for k in ("gold", "score", "kl")}
        found.append({"done": done, **row, "words": answers[1].mean(), **liked, **same})
    return found


# ---- results ----


def main():
    args = lib.arguments(__doc__, 3)
    args.base = f"out/sizes/{SIZE}/pretrain.pt"
    run = lib.world()
    base(args, SIZE)

    @functools.cache
    def comparisons(seed):
        path = os.path.dirname(tuned(args, SIZE, seed, "reward")) + "/comparisons.jsonl"
        rows = read_jsonl(path, ["ranks"], "heldout")
        return {taste: ranked(run.judge, rows, taste, seed) for taste in TASTES}

    settings = [(t, ALL) for t in TASTES] + [(0.0, n) for n in PROMPTS]
    settings = [(0.0, ALL), (0.03, ALL)] if args.quick else settings
    keys = [(*setting, seed) for setting in settings for seed in args.seeds]
    jobs = [(k, functools.partial(job, args, run, comparisons, *k)) for k in keys]
    path = lib.place(args, "labelers.csv")
    rows = lib.collect(args, path, jobs, ["taste", "prompts", "seed"])
    tastes = [t for t in sorted(TASTES) if ends(rows, "gold", t)]
    table(rows, tastes)
    draw_verbosity(args, rows, tastes)
    draw_labelers(args, rows, tastes)
    samples(args, run, [t for t in tastes if t != 0.01])


def ends(rows, column, taste=0.0, prompts=ALL, done=1.0):
    """{seed: value}: at the end of PPO, or at another part of it."""
    where = {"taste": taste, "prompts": prompts, "done": done}
    mine = [r for r in rows if all(r[k] == v for k, v in where.items())]
    return {r["seed"]: r[column] for r in mine}


def cell(rows, column, *where):
    """Mean over seeds and half-width of its interval."""
    return lib.interval(list(ends(rows, column, *where).values()))


def gap(rows, column, *where):
    """The same, of differences within a seed from the village's own labelers."""
    own = ends(rows, column)
    return lib.interval([x - own[seed] for seed, x in ends(rows, column, *where).items()])


def groups(rows, column):
    """What the labelers of its own taste say, and those of the opposite one: means of two groups.

    → both, and their difference within a seed
    """
    own, other = {}, {}
    for taste in GROUPS:
        for judge, found in ((taste, own), (-taste, other)):
            for seed, x in ends(rows, f"{column}_{judge:g}", taste).items():
                found.setdefault(seed, []).append(x)
    own, other = ({s: np.mean(x) for s, x in f.items() if len(x) == 2} for f in (own, other))
    return [
        lib.interval(list(x)) for x in zip(*((own[s], other[s], own[s] - other[s]) for s in own))
    ]


def table(rows, tastes):
    print(f"{'':24s}" + "".join(f"taste {t:+8.2f}     " for t in tastes))
    for c in ("gold", "words", "word", "kl", "score"):
        line(c, [cell(rows, c, t) for t in tastes])
    for c in ("gold", "words"):
        line(f"{c}, above taste 0", [gap(rows, c, t) for t in tastes])
        line(f"{c}, SFT", [cell(rows, c, t, ALL, 0.0) for t in tastes])
    for judge in tastes:
        for c in ("accuracy", "ceiling", "likes"):
            line(f"{c}, judged by {judge:+.2f}", [cell(rows, f"{c}_{judge:g}", t) for t in tastes])
    for c in ("accuracy", "likes"):
        line(f"{c}, own group, other, gap", groups(rows, c))
    counts = sorted({int(r["prompts"]) for r in rows})
    print(f"{'':24s}" + "".join(f"{n:8,d} prompts   " for n in counts))
    for c in ("accuracy_0", "gold", "kl"):
        line(c, [cell(rows, c, 0.0, n) for n in counts])
    line("gold, below all", [gap(rows, "gold", 0.0, n) for n in counts])


def line(name, cells):
    print(f"{name:24s}" + "".join(f"{mean:8.3f} ±{half:6.3f}   " for mean, half in cells))


def samples(args, run, tastes):
    """Print answers of one seed to prompts that the policies of these tastes answer unlike."""
    rows, found, n = lib.heldout(run, 9 if args.quick else 300), {}, 1 if args.quick else 25
    for taste in tastes:
        folder = trained(args, run.judge, taste, ALL, 1)
        models = (lib.network(f"{folder}/{name}.pt") for name in ("ppo", "sft", "reward"))
        found[taste] = lib.measure(run, *models, rows)
    for i, row in enumerate(rows):
        answers = {taste: marks["answer"][i] for taste, marks in found.items()}
        if len(set(answers.values())) > 1 and n:
            n -= 1
            print("  ".join(t["content"] for t in turns_of(row["prompt"])))
            for taste, answer in answers.items():
                print(f"  {taste:+.2f}  gold {found[taste]['gold'][i]:.2f}  {answer}")


def bar(ax, x, points, **look):
    mean, half = zip(*points)
    ax.errorbar(x, mean, np.nan_to_num(half), marker="o", capsize=3, **look)


def draw_verbosity(args, rows, tastes):
    fig, axes = lib.figure(2, size=(4.2, 3.6))
    for taste, colour in zip(TASTES, lib.COLOURS):
        parts = sorted({r["done"] for r in rows if r["taste"] == taste and r["prompts"] == ALL})
        if parts:
            x, y = ([cell(rows, c, taste, ALL, p) for p in parts] for c in ("words", "gold"))
            (x, x_half), (y, y_half) = zip(*x), zip(*y)
            axes[0, 0].plot(x, y, ".-", color=colour, lw=1, label=f"{taste:+.2f} a word")
            half = np.nan_to_num([y_half[-1], x_half[-1]])
            axes[0, 0].errorbar(x[-1], y[-1], *half, fmt="o", color=colour, capsize=3)
    axes[0, 0].set(xlabel="words in an answer", ylabel="gold score")
    axes[0, 0].legend(title="labelers' taste", title_fontsize=8)
    bar(axes[0, 1], tastes, [cell(rows, "word", t) for t in tastes], label="reward model")
    axes[0, 1].plot(tastes, tastes, color="grey", ls=":", label="the labelers' own")
    axes[0, 1].set(xlabel="labelers' taste, gold a word", ylabel="what a word is worth, gold")
    axes[0, 1].legend()
    words, gold = (gap(rows, c, tastes[-1]) for c in ("words", "gold"))
    fig.suptitle(
        f"Labelers to whom a word is worth {tastes[-1]} more get answers of {words[0]:.1f} ± "
        f"{words[1]:.1f} words more,\nand {-gold[0]:.3f} ± {gold[1]:.3f} of gold less"
    )
    lib.finish(fig, lib.place(args, "verbosity.png"))


def draw_labelers(args, rows, tastes):
    fig, axes = lib.figure(3, size=(3.9, 3.6))
    judges = sorted(TASTES)
    for taste, colour in zip((-0.03, 0.0, 0.03), lib.COLOURS):
        if taste in tastes:
            for ax, c in zip(axes[0], ("accuracy", "likes")):
                points = [cell(rows, f"{c}_{t:g}", taste) for t in judges]
                bar(ax, judges, points, color=colour, label=f"{taste:+.2f} a word")
    points = [cell(rows, f"ceiling_{t:g}") for t in judges]
    bar(axes[0, 0], judges, points, color="grey", ls=":", label="no noise")
    axes[0, 0].set(title="reward model: right about pairs", xlabel="taste of who judges")
    axes[0, 1].set(title="PPO-ptx: preferred to SFT", xlabel="taste of who judges")
    axes[0, 0].margins(y=0.35)
    axes[0, 0].legend(title="trained for", title_fontsize=8, loc="upper left", ncols=2)
    counts = sorted({int(r["prompts"]) for r in rows if r["taste"] == 0})
    bar(axes[0, 2], counts, [cell(rows, "gold", 0.0, n) for n in counts])
    sft = cell(rows, "gold", 0.0, ALL, 0.0)[0]
    axes[0, 2].axhline(sft, color="grey", ls=":", label="SFT")
    axes[0, 2].set(xscale="log", title="gold after PPO-ptx", xlabel="prompts with comparisons")
    axes[0, 2].legend()
    if found := groups(rows, "accuracy"):
        fig.suptitle(
            f"Reward models are right about {found[0][0]:.1%} of their own labelers' pairs, "
            f"{found[1][0]:.1%} of those of the opposite taste"
        )
    lib.finish(fig, lib.place(args, "labelers.png"))


if __name__ == "__main__":
    entry(main)

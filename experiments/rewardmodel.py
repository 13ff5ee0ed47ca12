"""
The reward model: what its accuracy depends on, and whether its margins are probabilities.

    python experiments/rewardmodel.py       # three seeds

Writes rewardmodel.csv, rewardmodel_calibration.csv and rewardmodel.png. Answers of the SFT model
are ranked by simulated labelers, as in the default run. The rest of its recipe is kept as well, but
for what a line of SETTINGS names. A step has about 64 answers, however many belong to a prompt.
Accuracy is of all pairs of 900 held-out prompts with four answers each. Its ceiling is the accuracy
of the gold score, since the labelers are noisy.

"shuffled": each pair is an item of its own, in random order, so an answer to a prompt with nine is
in eight different steps of one epoch. The paper reports that this overfits, and puts all pairs of a
prompt into one batch element.
"""

import math

import lib

import numpy as np
import torch
from common import adamw, cosine, epoch_batches, generator, update
from data import read_jsonl
from data.comparisons import encode_comparisons
from figure1 import tuned
from model import ScalarGPT
from plumbing.command_line import entry
from reward import heldout_accuracy, ranking_loss, scores_of

PARAMETERS = {
    "nano": "7 thousand parameters",
    "micro": "57 thousand",
    "tiny": "793 thousand",
}
# name: prompts (0: all 12,000), answers a prompt, epochs, shuffled, size
SETTINGS = {
    **{
        f"{size}, {n} prompts": (n, 4, 1, False, size)
        for size in PARAMETERS
        for n in (250, 1000, 4000)
    },
    "nano, 12000 prompts": (0, 4, 1, False, "nano"),
    "micro, 12000 prompts": (0, 4, 1, False, "micro"),
    "tiny, 12000 prompts": (0, 4, 1, False, "tiny"),
    # 3,600 answers each
    "2 answers": (1800, 2, 1, False, "tiny"),
    "4 answers": (900, 4, 1, False, "tiny"),
    "9 answers": (400, 9, 1, False, "tiny"),
    "9 answers, shuffled": (400, 9, 1, True, "tiny"),
    "9 answers, 4 epochs": (400, 9, 4, False, "tiny"),
    "9 answers, 8 epochs": (400, 9, 8, False, "tiny"),
}
LR, BATCH = 6e-4, 64


def pairs_of(items):
    """Every pair of different rank as an item of its own."""
    return [
        ([tokens[i], tokens[j]], [1, 2], None)
        for tokens, ranks, _ in items
        for i in range(len(ranks))
        for j in range(len(ranks))
        if ranks[i] < ranks[j]
    ]


def train(run, sft, items, epochs, seed):
    """A reward model trained from the SFT model on comparisons → model, number of steps

    items: as encode_comparisons returns them.
    """
    batch = max(1, round(BATCH / np.mean([len(tokens) for tokens, _, _ in items])))
    model = ScalarGPT.from_gpt(sft)
    lr = LR * 128 / model.config.n_embd
    optimizer = adamw(model, lr, 0.1)
    steps = -(-len(items) // batch) * epochs
    lengths = [max(map(len, tokens)) for tokens, *_ in items]
    step = 0
    for epoch in range(epochs):
        for rows in epoch_batches(lengths, batch, generator(seed, "epoch", epoch)):
            model.train()
            scores, ranks = scores_of(model, [items[i] for i in rows], run.vocab)
            ranking_loss(scores, ranks).backward()
            update(model, optimizer, lr * cosine(step, steps, 10))
            step += 1
    model.eval()
    return model, steps


def comparisons(args, run, seed, answers):
    """Comparisons of this seed's SFT model: (rows to train on, encoded held-out ones)."""
    out = made = lib.checkpoints(args, seed)
    if answers > 4:
        made = lib.variant(out, lib.scratch(args, f"nine/{seed}"), "sft.pt")
        few = [] if args.quick else ["--prompts=400", "--heldout=16"]
        lib.stage(args, "reward", made, seed, f"--answers={answers}", *few)
    rows = read_jsonl(f"{made}/comparisons.jsonl", ["prompt"], "train")
    heldout = read_jsonl(f"{out}/comparisons.jsonl", ["prompt"], "heldout")
    columns = ("responses", "ranks", "gold", "eos")
    rows = [{**r, **{k: r[k][:answers] for k in columns}} for r in rows]
    return rows, encode_comparisons(heldout, run.vocab, 128)[0]


def job(args, run, setting, seed):
    n, answers, epochs, shuffled, size = SETTINGS[setting]
    rows, heldout = comparisons(args, run, seed, answers)
    items, _ = encode_comparisons(rows[: n or len(rows)], run.vocab, 128)
    if setting == "tiny, 12000 prompts" and not args.quick:  # the default's own
        model, steps = lib.network(f"{lib.checkpoints(args, seed)}/reward.pt"), -(-len(items) // 16)
    else:
        sft = lib.network(tuned(args, size, seed, "sft"))
        model, steps = train(run, sft, pairs_of(items) if shuffled else items, epochs, seed)
    found, trained_on = (heldout_accuracy(model, x, run.vocab) for x in (heldout, items[:400]))
    return {
        "accuracy": found["accuracy"],
        "ci": found["accuracy_ci"],
        "loss": found["loss"],
        "ceiling": found["ceiling"],
        "accuracy_trained_on": trained_on["accuracy"],
        "loss_trained_on": trained_on["loss"],
        "steps": steps,
        "prompts": len(items),
        "answers": sum(len(t) for t, _, _ in items),
        "pairs": sum(a < b for _, r, _ in items for a in r for b in r),
    }


def predictions(scores, ranks):
    """For each pair of different rank: the predicted probability that the first wins, the truth."""
    for i in range(len(ranks)):
        for j in range(i):
            if ranks[i] and ranks[j] and ranks[i] != ranks[j]:
                yield torch.sigmoid(scores[i] - scores[j]).item(), float(ranks[i] < ranks[j])


def calibration(args, run, seed):
    """Margins of the default reward model on held-out pairs.

    → a row for each tenth of the probability σ(margin) that a pair's first answer wins
    """
    _, heldout = comparisons(args, run, seed, 4)
    model = lib.network(f"{lib.checkpoints(args, seed)}/reward.pt")
    found = []
    with torch.no_grad():
        for start in range(0, len(heldout), 64):
            scores, ranks = scores_of(model, heldout[start : start + 64], run.vocab)
            for s, r in zip(scores, ranks):
                found += predictions(s, r)
    p, won = np.array(found).T
    rows = []
    for k in range(10):
        here = (p >= k / 10) & (p < (k + 1) / 10)
        predicted, observed = (x[here].mean() if here.any() else math.nan for x in (p, won))
        row = {"tenth": k, "pairs": int(here.sum())}
        rows.append({**row, "predicted": predicted, "observed": observed})
    return rows


def main():
    args = lib.arguments(__doc__, 3)
    run = lib.world()
    settings = list(SETTINGS)
    if args.quick:
        settings = ["tiny, 1000 prompts", "9 answers", "9 answers, shuffled"]
    keys = [(s, seed) for seed in args.seeds for s in settings]
    jobs = [(k, lambda k=k: job(args, run, *k)) for k in keys]
    rows = lib.collect(args, lib.place(args, "rewardmodel.csv"), jobs, ["setting", "seed"])
    seeds = args.seeds if args.quick else range(1, 11)
    jobs = [((s,), lambda s=s: calibration(args, run, s)) for s in seeds]
    margins = lib.collect(args, lib.place(args, "rewardmodel_calibration.csv"), jobs, ["seed"])
    table(settings, rows)
    draw(args, rows, margins)


def table(settings, rows):
    columns = (
        f"{'held-out accuracy':>18s}{'loss':>16s}{'trained on':>18s}{'pairs':>9s}{'steps':>7s}"
    )
    print(f"\n{'':26s}{columns}")
    for s in settings:
        mine = [r for r in rows if r["setting"] == s]
        cells = []
        for column in ("accuracy", "loss", "accuracy_trained_on"):
            mean, half = lib.interval([r[column] for r in mine])
            cells.append(f"  {mean:7.3f} ±{half:6.3f}")
        pairs, steps = (np.mean([r[k] for r in mine]) for k in ("pairs", "steps"))
        print(f"{s:26s}{''.join(cells)}{pairs:9.0f}{steps:7.0f}")


def point(rows, setting, column="accuracy"):
    mean, half = lib.interval([r[column] for r in rows if r["setting"] == setting])
    return mean, 0 if math.isnan(half) else half


def draw(args, rows, margins):
    fig, axes = lib.figure(3, size=(4.2, 3.6))
    draw_sizes(axes[0, 0], rows)
    draw_answers(axes[0, 1], rows)
    draw_calibration(axes[0, 2], margins)
    lib.finish(fig, lib.place(args, "rewardmodel.png"))


def draw_sizes(ax, rows):
    for size, label in PARAMETERS.items():
        mine = [s for s in SETTINGS if s.startswith(size) and any(r["setting"] == s for r in rows)]
        if mine:
            x = [np.mean([r["pairs"] for r in rows if r["setting"] == s]) for s in mine]
            points = [point(rows, s) for s in mine]
            ax.errorbar(x, *zip(*points), marker="o", capsize=3, label=label)
    ceiling = np.mean([r["ceiling"] for r in rows])
    ax.axhline(ceiling, color="grey", ls=":", label="the truth itself")
    ax.set(
        xscale="log",
        xlabel="pairs trained on",
        ylabel="accuracy on held-out pairs",
        title="More comparisons, better orders;\nthe model's size hardly counts",
    )
    ax.legend()


def draw_answers(ax, rows):
    mine = [s for s in SETTINGS if "answers" in s and any(r["setting"] == s for r in rows)]
    names = {"accuracy": "held-out pairs", "accuracy_trained_on": "pairs trained on"}
    for column, name in names.items():
        means, halves = zip(*[point(rows, s, column) for s in mine])
        y = range(len(mine))
        ax.errorbar(means, y, xerr=halves, marker="o", ls="", capsize=3, label=name)
    ax.set_yticks(range(len(mine)), mine)
    ax.invert_yaxis()
    ax.set(
        xlabel="accuracy",
        title="3,600 answers: in twos, fours or nines is all the same;\n"
        "shuffled pairs are more steps, as more epochs are",
    )
    ax.legend()


def draw_calibration(ax, margins):
    ax.plot([0, 1], [0, 1], color="grey", ls=":")
    points = []
    for k in range(10):
        here = [r for r in margins if r["tenth"] == k and not math.isnan(r["observed"])]
        if here:
            mean, half = lib.interval([r["observed"] for r in here])
            predicted = np.mean([r["predicted"] for r in here])
            points.append((predicted, mean, 0 if math.isnan(half) else half))
    ax.errorbar(*zip(*points), marker="o", capsize=3)
    ax.set(
        xlabel="predicted: σ of the difference of scores",
        ylabel="share of labelers who ranked it so",
        title="Its margins are probabilities",
    )


if __name__ == "__main__":
    entry(main)

"""
The reward model: what its accuracy depends on, and whether its margins can be taken for probabilities.

    python experiments/rewardmodel.py              # three seeds: rewardmodel.csv, rewardmodel_calibration.csv, rewardmodel.png

Answers of the SFT model ranked by simulated labelers, as in the default run, whose recipe is kept but for what a line of
SETTINGS names. A step has about 64 answers, however many belong to a prompt. Accuracy is of all pairs of 900 held-out
prompts with four answers each; its ceiling is what the gold score reaches, for the labelers are noisy.

"shuffled": each pair is an item of its own, in random order, so an answer to a prompt with nine comes up in eight
different steps of one epoch. The paper reports that this overfits, and puts all pairs of a prompt into one batch element.
"""
import math

import lib
from figure1 import tuned

from common import adamw, cosine, epoch_batches, generator, update
from data import read_jsonl
from model import ScalarGPT
from comparisons import encode_comparisons
from reward import evaluate, ranking_loss, scores_of

import numpy as np
import torch

# name: prompts (0: all 12,000), answers a prompt, epochs, shuffled, size
SETTINGS = {
    **{f"{size}, {n or 12000} prompts": (n, 4, 1, False, size) for size in ("nano", "micro", "tiny") for n in (250, 1000, 4000)},
    "nano, 12000 prompts": (0, 4, 1, False, "nano"), "micro, 12000 prompts": (0, 4, 1, False, "micro"), "tiny, 12000 prompts": (0, 4, 1, False, "tiny"),
    "2 answers": (1800, 2, 1, False, "tiny"), "4 answers": (900, 4, 1, False, "tiny"), "9 answers": (400, 9, 1, False, "tiny"),      # 3,600 answers each
    "9 answers, shuffled": (400, 9, 1, True, "tiny"), "9 answers, 4 epochs": (400, 9, 4, False, "tiny"), "9 answers, 8 epochs": (400, 9, 8, False, "tiny"),
}
LR, BATCH = 6e-4, 64


def train(run, sft, items, epochs, shuffled, seed):
    """A reward model trained from the SFT model on comparisons (encode_comparisons' items)."""
    if shuffled:
        items = [([tokens[i], tokens[j]], [1, 2], None) for tokens, ranks, _ in items for i in range(len(ranks)) for j in range(len(ranks)) if ranks[i] < ranks[j]]
    batch = max(1, round(BATCH / np.mean([len(tokens) for tokens, _, _ in items])))
    model = ScalarGPT.from_gpt(sft)
    lr = LR * 128 / model.config.n_embd
    optimizer, steps, lengths = adamw(model, lr, 0.1), -(-len(items) // batch) * epochs, [max(map(len, tokens)) for tokens, *_ in items]
    step = 0
    for epoch in range(epochs):
        for rows in epoch_batches(lengths, batch, generator(seed, "epoch", epoch)):
            model.train()
            scores, ranks = scores_of(model, [items[i] for i in rows], run.vocab, run)
            ranking_loss(scores, ranks).backward()
            update(model, optimizer, lr * cosine(step, steps, 10))
            step += 1
    model.eval()
    return model, steps


def comparisons(args, run, seed, answers):
    """Encoded comparisons of this seed's SFT model: (to train on, held out)."""
    out = lib.checkpoints(args, seed)
    if answers > 4:
        made = lib.variant(out, lib.scratch(args, f"nine/{seed}"), "sft.pt")
        lib.stage(args, "reward", made, seed, f"--answers={answers}", *([] if args.quick else ["--prompts=400", "--heldout=16"]))
        rows = [r for r in read_jsonl(f"{made}/comparisons.jsonl", ["prompt"]) if r["split"] == "train"]
    else:
        rows = [r for r in read_jsonl(f"{out}/comparisons.jsonl", ["prompt"]) if r["split"] == "train"]
    heldout = [r for r in read_jsonl(f"{out}/comparisons.jsonl", ["prompt"]) if r["split"] == "heldout"]
    rows = [{**r, **{k: r[k][:answers] for k in ("responses", "ranks", "gold", "eos")}} for r in rows]
    return rows, encode_comparisons(heldout, run.vocab, 128)[0]


def job(args, run, setting, seed):
    n, answers, epochs, shuffled, size = SETTINGS[setting]
    rows, heldout = comparisons(args, run, seed, answers)
    items, _ = encode_comparisons(rows[:n or len(rows)], run.vocab, 128)
    if setting == "tiny, 12000 prompts" and not args.quick:     # the default's own
        model, steps = lib.network(f"{lib.checkpoints(args, seed)}/reward.pt"), -(-len(items) // 16)
    else:
        model, steps = train(run, lib.network(tuned(args, size, seed, "sft")), items, epochs, shuffled, seed)
    found, pairs, ceiling, ci, loss = evaluate(model, heldout, run.vocab, run)
    trained_on, *_, train_loss = evaluate(model, items[:400], run.vocab, run)
    return {"accuracy": found, "ci": ci, "loss": loss, "ceiling": ceiling, "accuracy_trained_on": trained_on, "loss_trained_on": train_loss, "steps": steps,
            "prompts": len(items), "answers": sum(len(t) for t, _, _ in items), "pairs": sum(a < b for _, r, _ in items for a in r for b in r)}


def calibration(args, run, seed):
    """Margins of the default reward model on held-out pairs → rows by tenth of the probability σ(margin) that it gives to the pair's first answer."""
    _, heldout = comparisons(args, run, seed, 4)
    model = lib.network(f"{lib.checkpoints(args, seed)}/reward.pt")
    p, won = [], []
    with torch.no_grad():
        for start in range(0, len(heldout), 64):
            scores, ranks = scores_of(model, heldout[start:start + 64], run.vocab, run)
            for s, r in zip(scores, ranks):
                for i in range(len(r)):
                    for j in range(i):
                        if r[i] and r[j] and r[i] != r[j]:
                            p.append(torch.sigmoid(s[i] - s[j]).item())
                            won.append(float(r[i] < r[j]))
    p, won = np.array(p), np.array(won)
    rows = []
    for k in range(10):
        here = (p >= k / 10) & (p < (k + 1) / 10)
        rows.append({"tenth": k, "pairs": int(here.sum()), "predicted": p[here].mean() if here.any() else math.nan, "observed": won[here].mean() if here.any() else math.nan})
    return rows


def main():
    args = lib.arguments(__doc__, 3)
    run = lib.world()
    settings = [s for s in SETTINGS if not args.quick or s in ("tiny, 1000 prompts", "9 answers", "9 answers, shuffled")]
    rows = lib.collect(args, lib.place(args, "rewardmodel.csv"), [((s, seed), lambda s=s, seed=seed: job(args, run, s, seed)) for seed in args.seeds for s in settings], ["setting", "seed"])
    seeds = args.seeds if args.quick else range(1, 11)
    margins = lib.collect(args, lib.place(args, "rewardmodel_calibration.csv"), [((s,), lambda s=s: calibration(args, run, s)) for s in seeds], ["seed"])
    print(f"\n{'':26s}{'held-out accuracy':>18s}{'loss':>16s}{'trained on':>18s}{'pairs':>9s}{'steps':>7s}")
    for s in settings:
        mine = [r for r in rows if r["setting"] == s]
        print(f"{s:26s}" + "  {:7.3f} ±{:6.3f}  {:7.3f} ±{:6.3f}  {:7.3f} ±{:6.3f}".format(*(x for c in ("accuracy", "loss", "accuracy_trained_on") for x in lib.interval([r[c] for r in mine])))
              + f"{np.mean([r['pairs'] for r in mine]):9.0f}{np.mean([r['steps'] for r in mine]):7.0f}")
    draw(args, rows, margins)


def draw(args, rows, margins):
    fig, axes = lib.figure(3, size=(4.2, 3.6))

    def point(setting, column="accuracy"):
        mean, half = lib.interval([r[column] for r in rows if r["setting"] == setting])
        return mean, 0 if math.isnan(half) else half
    ax = axes[0, 0]
    for size in ("nano", "micro", "tiny"):
        mine = [s for s in SETTINGS if s.startswith(size) and any(r["setting"] == s for r in rows)]
        if mine:
            x = [np.mean([r["pairs"] for r in rows if r["setting"] == s]) for s in mine]
            ax.errorbar(x, *zip(*map(point, mine)), marker="o", capsize=3, label={"nano": "7 thousand parameters", "micro": "57 thousand", "tiny": "793 thousand"}[size])
    ax.axhline(np.mean([r["ceiling"] for r in rows]), color="grey", ls=":", label="the truth itself")
    ax.set(xscale="log", xlabel="pairs trained on", ylabel="accuracy on held-out pairs", title="More comparisons, better orders;\nthe model's size hardly counts")
    ax.legend()
    ax = axes[0, 1]
    mine = [s for s in SETTINGS if "answers" in s and any(r["setting"] == s for r in rows)]
    for column, name in (("accuracy", "held-out pairs"), ("accuracy_trained_on", "pairs trained on")):
        ax.errorbar(*zip(*[(m, i) for i, m in enumerate(point(s, column)[0] for s in mine)]), xerr=[point(s, column)[1] for s in mine], marker="o", ls="", capsize=3, label=name)
    ax.set_yticks(range(len(mine)), mine)
    ax.invert_yaxis()
    ax.set(xlabel="accuracy", title="3,600 answers: in twos, fours or nines is all the same;\nshuffled pairs are more steps, as more epochs are")
    ax.legend()
    ax = axes[0, 2]
    ax.plot([0, 1], [0, 1], color="grey", ls=":")
    points = [(np.nanmean([r["predicted"] for r in margins if r["tenth"] == k]), *lib.interval([r["observed"] for r in margins if r["tenth"] == k and not math.isnan(r["observed"])])) for k in range(10)]
    points = [(x, y, 0 if math.isnan(h) else h) for x, y, h in points if not math.isnan(y)]
    ax.errorbar(*zip(*points), marker="o", capsize=3)
    ax.set(xlabel="predicted: σ of the difference of scores", ylabel="share of labelers who ranked it so", title="Its margins are probabilities")
    lib.finish(fig, lib.place(args, "rewardmodel.png"))


if __name__ == "__main__":
    main()

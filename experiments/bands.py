"""
What the default run looks like, and how far luck moves it: the logs of ten seeds as bands.

    python experiments/bands.py             # bands.csv and bands.png, from out/seeds/seed-1 … seed-10 (python experiments/seeds.py makes them)
    python experiments/bands.py --quick     # only draws bands.csv anew

Each metric of PPO's log is averaged over blocks of five iterations (1,280 episodes). Is your run like these?
experiments/compare.py tells.
"""
import csv
import os

import lib
import numpy as np
from data import UserError, replacing

BLOCK = 1280        # episodes
# metric: (what it is; the smallest spread of seeds that is believed, since ten can agree by chance)
METRICS = {
    "objective/scores": ("reward-model score, rollouts", 0.02),
    "eval/score": ("reward-model score, held-out prompts", 0.02),
    "eval/gold": ("gold score, held-out prompts", 0.01),
    "objective/kl": ("KL to SFT, nats an answer", 0.01),
    "objective/entropy": ("entropy, nats an answer", 0.05),
    "policy/approxkl_avg": ("KL of an update, nats a token", 1e-5),
    "policy/clipfrac_avg": ("share of ratios clipped", 2e-4),
    "val/ratio": ("mean ratio", 1e-4),
    "val/explained_variance": ("explained variance of the critic", 0.01),
    "response/length": ("response length, tokens", 0.1),
    "response/eos_fraction": ("answers that end by themselves", 5e-4),
    "loss/ptx_avg": ("loss on ptx text, nats a token", 0.005),
    "eval/pretrain_loss": ("loss on held-out text, nats a token", 0.001),
}


def blocks(log, metric):
    """Rows of ppo.jsonl → {last episode of a block: mean of the metric over the block's lines that have it}, whole blocks alone."""
    found = {}
    for row in log:
        if metric in row:
            found.setdefault(-(-row["episode"] // BLOCK) * BLOCK, []).append(row[metric])
    return {end: float(np.mean(v)) for end, v in found.items() if end <= log[-1]["episode"]}


def read(path=None):
    """bands.csv → {metric: (episodes (n,), values (seeds, n))}"""
    path = path or os.path.join(lib.ROOT, "experiments", "bands.csv")
    if not os.path.exists(path):
        raise UserError(f"{path} is missing; python experiments/bands.py makes it from the runs of experiments/seeds.py")
    bands = {}
    for row in lib.read_rows(path):
        bands.setdefault(row["metric"], []).append((row["episode"], [v for k, v in row.items() if k.startswith("seed_")]))
    return {m: (np.array([e for e, _ in rows]), np.array([v for _, v in rows]).T) for m, rows in bands.items()}


def distance(x, others, metric):
    """How far a run's blocks x (n,) are from those of other runs (seeds, n), in units of the spread to be expected of one more run."""
    spread = np.maximum(others.std(0, ddof=1), METRICS[metric][1]) * (1 + 1 / len(others)) ** 0.5
    return (x - others.mean(0)) / spread


def limit(bands, seeds=None):
    """The largest distance, over metrics and blocks, that any healthy run has from the others: one more healthy run
    exceeds it with probability of about 1 / (seeds + 1), however the metrics are distributed and hang together."""
    seeds = range(len(next(iter(bands.values()))[1])) if seeds is None else seeds
    return max(np.abs(distance(x[i], x[[j for j in seeds if j != i]], m)).max() for m, (_, x) in bands.items() for i in seeds)


def false_alarms(bands):
    """How many of the seeds the bands of the others would have called unhealthy."""
    seeds, wrong = range(len(next(iter(bands.values()))[1])), 0
    for i in seeds:
        rest = [j for j in seeds if j != i]
        wrong += max(np.abs(distance(x[i], x[rest], m)).max() for m, (_, x) in bands.items()) > limit(bands, rest)
    return wrong


def healthy(x, metric, wide):
    """Values of other runs (seeds, n) → lowest and highest (n,) of a healthy one, within what the metric can be."""
    spread = wide * np.maximum(x.std(0, ddof=1), METRICS[metric][1]) * (1 + 1 / len(x)) ** 0.5
    low, high = x.mean(0) - spread, x.mean(0) + spread
    return low if "score" in metric else low.clip(0), high.clip(max=1) if metric in ("eval/gold", "response/eos_fraction", "val/explained_variance") else high


def draw(bands, path, log=None, label=""):
    fig, axes = lib.figure(5, 3, size=(2.9, 2.3))
    wide = limit(bands)
    for ax, (metric, (episodes, x)) in zip(axes.flat, bands.items()):
        ax.fill_between(episodes, *healthy(x, metric, wide), color="#0072b2", alpha=0.15, lw=0, label="where one more run may lie")
        ax.fill_between(episodes, x.min(0), x.max(0), color="#0072b2", alpha=0.35, lw=0, label=f"lowest to highest of {len(x)} seeds")
        ax.plot(episodes, x.mean(0), color="#0072b2", lw=1, label="mean")
        if log:
            mine = blocks(log, metric)
            ax.plot(mine.keys(), mine.values(), color="#d55e00", marker=".", label=label)
        ax.set_title(METRICS[metric][0])
        ax.set_xticks([0, 5000, 10000, 15000])
        ax.set_xlabel("episodes")
    for ax in axes.flat[len(bands):]:
        ax.axis("off")
    axes.flat[len(bands)].legend(*axes.flat[0].get_legend_handles_labels(), loc="center left")
    fig.suptitle("A healthy run stays in these bands" if not log else f"{label} against {len(x)} healthy runs")
    lib.finish(fig, path)


def main():
    args = lib.arguments(__doc__, 10)
    path = lib.place(args, "bands.csv")
    if args.quick:
        return draw(read(), lib.place(args, "bands.png"))
    logs = {seed: lib.common.read_log(f"{lib.checkpoints(args, seed, 'ppo')}/ppo.jsonl") for seed in args.seeds}
    with replacing(path) as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(["metric", "episode", "mean", "lowest", "highest", *(f"seed_{s}" for s in logs)])
        for metric in METRICS:
            found = [blocks(log, metric) for log in logs.values()]
            for end in found[0]:
                values = [b[end] for b in found]
                writer.writerow([metric, end, *(f"{v:.5g}" for v in (np.mean(values), min(values), max(values), *values))])
    bands = read()
    print(f"wrote {path}; the limit is {limit(bands):.1f} spreads, and of {len(logs)} seeds, each judged by the others, {false_alarms(bands)} would be called unhealthy")
    draw(bands, lib.place(args, "bands.png"))


if __name__ == "__main__":
    lib.common.entry(main)

"""
What the default run looks like, and how far luck moves it: the logs of seeds as bands.

    python experiments/bands.py             # bands.csv and bands.png
    python experiments/bands.py --quick     # only draws bands.csv anew

The logs are in out/seeds/seed-1, seed-2, …; experiments/seeds.py makes them. Each metric of PPO's
log is averaged over blocks of five iterations (1,280 episodes). experiments/compare.py compares a
run of yours with the bands.
"""

import csv
import os

import lib

import numpy as np
from data import UserError, replacing
from plumbing.command_line import entry
from plumbing.run import read_log

BLOCK = 1280  # episodes
# metric: (what it is; the smallest spread of seeds that is believed, since few can agree by chance)
METRICS = {
    "objective/scores": ("reward-model score, rollouts", 0.02),
    "eval/score": ("reward-model score, held-out prompts", 0.02),
    "eval/gold": ("gold score, held-out prompts", 0.01),
    "objective/kl": ("KL to SFT, nats an answer", 0.01),
    "objective/entropy": ("entropy, nats an answer", 0.05),
    "policy/kl_k3": ("KL of an update, nats a token", 1e-5),
    "policy/ratio_outside": ("share of ratios outside the clip", 2e-4),
    "val/ratio": ("mean ratio", 1e-4),
    "val/explained_variance": ("explained variance of the critic", 0.01),
    "response/length": ("response length, tokens", 0.1),
    "response/eos_fraction": ("answers that end by themselves", 5e-4),
    "loss/ptx_avg": ("loss on ptx text, nats a token", 0.005),
    "eval/pretrain_loss": ("loss on held-out text, nats a token", 0.001),
}
AT_MOST_ONE = ("eval/gold", "response/eos_fraction", "val/explained_variance")


def blocks(log, metric):
    """Rows of ppo.jsonl → {last episode of a block: mean of the metric}, for whole blocks only."""
    found = {}
    for row in log:
        if metric in row:
            end = -(-row["episode"] // BLOCK) * BLOCK
            found.setdefault(end, []).append(row[metric])
    return {end: float(np.mean(v)) for end, v in found.items() if end <= log[-1]["episode"]}


def read(path=None):
    """bands.csv → {metric: (episodes (n,), values (seeds, n))}"""
    path = path or os.path.join(lib.ROOT, "experiments", "bands.csv")
    if not os.path.exists(path):
        raise UserError(
            f"{path} is missing; python experiments/bands.py makes it "
            "from the runs of experiments/seeds.py"
        )
    bands = {}
    for row in lib.read_rows(path):
        values = [v for k, v in row.items() if k.startswith("seed_")]
        bands.setdefault(row["metric"], []).append((row["episode"], values))
    return {
        metric: (np.array([e for e, _ in rows]), np.array([v for _, v in rows]).T)
        for metric, rows in bands.items()
    }


def spread_of(x, metric):
    """The standard deviation to be expected of one more run beside runs x (seeds, n) → (n,)"""
    return np.maximum(x.std(0, ddof=1), METRICS[metric][1]) * (1 + 1 / len(x)) ** 0.5


def distance(x, others, metric):
    """How far a run's blocks x (n,) are from those of other runs (seeds, n), in spreads."""
    return (x - others.mean(0)) / spread_of(others, metric)


def furthest(bands, i, others):
    """The largest distance of seed i from other seeds, over metrics and blocks."""
    return max(np.abs(distance(x[i], x[others], m)).max() for m, (_, x) in bands.items())


def limit(bands, seeds=None):
    """The largest distance, over metrics and blocks, that any healthy run has from the others.

    One more healthy run exceeds it with a probability of about 1 / (seeds + 1), whatever the
    distribution of the metrics and their correlation.
    """
    seeds = range(len(next(iter(bands.values()))[1])) if seeds is None else seeds
    return max(furthest(bands, i, [j for j in seeds if j != i]) for i in seeds)


def false_alarms(bands):
    """How many of the seeds the bands of the others would have called unhealthy."""
    seeds, wrong = range(len(next(iter(bands.values()))[1])), 0
    for i in seeds:
        rest = [j for j in seeds if j != i]
        wrong += furthest(bands, i, rest) > limit(bands, rest)
    return wrong


def healthy(x, metric, wide):
    """Values of other runs (seeds, n) → lowest and highest (n,) of a healthy one.

    Both are within the values that the metric can have.
    """
    spread = wide * spread_of(x, metric)
    low, high = x.mean(0) - spread, x.mean(0) + spread
    if "score" not in metric:
        low = low.clip(0)
    if metric in AT_MOST_ONE:
        high = high.clip(max=1)
    return low, high


def draw(bands, path, log=None, label=""):
    fig, axes = lib.figure(5, 3, size=(2.9, 2.3))
    wide, blue = limit(bands), {"color": "#0072b2", "lw": 0}
    for ax, (metric, (episodes, x)) in zip(axes.flat, bands.items()):
        low, high = healthy(x, metric, wide)
        seeds = f"lowest to highest of {len(x)} seeds"
        ax.fill_between(episodes, low, high, alpha=0.15, label="where one more run may lie", **blue)
        ax.fill_between(episodes, x.min(0), x.max(0), alpha=0.35, label=seeds, **blue)
        ax.plot(episodes, x.mean(0), color="#0072b2", lw=1, label="mean")
        if log:
            mine = blocks(log, metric)
            ax.plot(mine.keys(), mine.values(), color="#d55e00", marker=".", label=label)
        ax.set_title(METRICS[metric][0])
        ax.set_xticks([0, 5000, 10000])
        ax.set_xlabel("episodes")
    for ax in axes.flat[len(bands) :]:
        ax.axis("off")
    axes.flat[len(bands)].legend(*axes.flat[0].get_legend_handles_labels(), loc="center left")
    title = (
        f"{label} against {len(x)} healthy runs" if log else "A healthy run stays in these bands"
    )
    fig.suptitle(title)
    lib.finish(fig, path)


def write(path, logs):
    """bands.csv. logs: {seed: rows of its ppo.jsonl}"""
    with replacing(path) as f:
        writer = csv.writer(f, lineterminator="\n")
        seeds = [f"seed_{s}" for s in logs]
        writer.writerow(["metric", "episode", "mean", "lowest", "highest", *seeds])
        for metric in METRICS:
            found = [blocks(log, metric) for log in logs.values()]
            for end in found[0]:
                values = [b[end] for b in found]
                numbers = (np.mean(values), min(values), max(values), *values)
                writer.writerow([metric, end, *(f"{v:.5g}" for v in numbers)])


def main():
    args = lib.arguments(__doc__, 10)
    path = lib.place(args, "bands.csv")
    if args.quick:
        return draw(read(), lib.place(args, "bands.png"))
    folders = {seed: lib.checkpoints(args, seed, "ppo") for seed in args.seeds}
    logs = {seed: read_log(f"{out}/ppo.jsonl") for seed, out in folders.items()}
    write(path, logs)
    bands = read()
    print(
        f"wrote {path}; the limit is {limit(bands):.1f} spreads, and of {len(logs)} seeds, "
        f"each judged by the others, {false_alarms(bands)} would be called unhealthy"
    )
    draw(bands, lib.place(args, "bands.png"))


if __name__ == "__main__":
    entry(main)

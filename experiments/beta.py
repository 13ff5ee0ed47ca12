"""
β, the weight of the KL penalty: what it brings and what it costs.

    python experiments/beta.py              # β from 0 to 1 and an adaptive one, 3 seeds
    python experiments/beta.py --seeds=5

Writes beta.csv, beta_path.csv, beta.png and hacked.txt. A run has 30 iterations, the default 40.
The policy itself is measured, not the average of its weights, which lags behind. Each policy
answers 900 held-out prompts once: reward-model score, gold score, KL to SFT and entropy (nats an
answer), length.

beta_path.csv has KL and gold every other iteration of each run. Does a penalty bring more gold at
the same KL, or does it only stop sooner on the same path? Gao et al. 2022 find the latter. Printed
is the gold at the end of a run, above that of the run without a penalty when it first passed the
same KL, within a seed.

hacked.txt shows reward hacking: answers of a policy that was trained without a KL penalty against a
reward model of few comparisons (overoptimise.py's), beside SFT's, with the scores of that reward
model and the gold scores.
"""

import lib

import numpy as np
import overoptimise
from data import replacing, turns_of
from plumbing.checkpoint import load
from plumbing.command_line import entry
from plumbing.run import read_log

BETAS = [0, 0.03, 0.1, 0.3, 1]
RUN = ["--iterations=30", "--ema=0", "--eval_every=2"]
TARGET = 2  # nats an answer, for the adaptive controller
# An iteration multiplies β by 1 + K × error, where error = KL / target − 1, clipped to ± 0.2. K is
# 0.1 in Ziegler et al. 2019, section 2.2, and episodes / 10,000 in the code that came with it.
# ppo.py follows the code: K = 0.026 with 256 episodes, so over 30 iterations β changes by a factor
# of 1.17 at most, too slowly to steer. With a horizon of 1,000 episodes K is 0.26.
FASTER = """
right = ppo.adapt_beta
ppo.adapt_beta = lambda beta, kl, target, episodes: right(beta, kl, target, episodes, 1_000)"""
PANELS = {
    "kl": "KL to SFT, nats an answer",
    "score": "reward-model score, above SFT's",
    "gold": "gold score",
    "entropy": "entropy, nats an answer",
    "length": "length, tokens",
}
FRONTIER = ["#d55e00", "#e69f00", "#009e73", "#0072b2", "#56b4e9", "#cc79a7", "#000000"]


def final(args, source, out, run):
    """Measures of the policy in `out`, against the SFT and the reward model in `source`."""
    policy = lib.network(f"{out}/ppo.pt" if out else f"{source}/sft.pt")
    sft, reward_model = lib.network(f"{source}/sft.pt"), lib.network(f"{source}/reward.pt")
    rows = lib.heldout(run, 64 if args.quick else 900)
    found = lib.measure(run, policy, sft, reward_model, rows)
    return {k: float(found[k].mean()) for k in ("kl", "score", "gold", "entropy", "length", "eos")}


def job(args, run, seed, setting):
    """Run PPO with this setting, "sft" for none → its row."""
    out = None if setting == "sft" else trained(args, seed, setting)
    return final(args, lib.checkpoints(args, seed), out, run)


def trained(args, seed, setting):
    """The folder of a seed's PPO run with this setting; made if it is missing."""
    out = lib.scratch(args, f"beta/{setting}-{seed}")
    lib.variant(lib.checkpoints(args, seed), out, "sft.pt", "reward.pt")
    adaptive = setting == "adaptive"
    flag = f"--adaptive_kl={TARGET}" if adaptive else f"--beta={setting}"
    few = [] if args.quick else RUN
    lib.stage(args, "ppo", out, seed, *few, flag, patch=FASTER if adaptive else "")
    return out


def path_job(args, seed, setting):
    """KL and gold along a run → rows."""
    source, log = lib.checkpoints(args, seed), read_log(f"{trained(args, seed, setting)}/ppo.jsonl")
    return overoptimise.along(overoptimise.sft_metrics(source, source, seed), log)


def gold_at(kl, path):
    """Gold where a run first passed a KL, between its two measurements around it; else NaN.

    path: rows of beta_path.csv, in order.
    """
    for before, after in zip(path, path[1:]):
        if before["kl"] <= kl <= after["kl"]:
            share = (kl - before["kl"]) / max(after["kl"] - before["kl"], 1e-9)
            return before["gold"] + share * (after["gold"] - before["gold"])
    return np.nan


def frontier(paths, settings, seeds):
    """Print how much gold each setting has above the path without a penalty, at the same KL."""

    def path(setting, seed):
        return [r for r in paths if (r["setting"], r["seed"]) == (setting, seed)]

    for s in settings:
        ends = [(path(s, seed)[-1], path(0, seed)) for seed in seeds if path(s, seed)]
        above = [end["gold"] - gold_at(end["kl"], free) for end, free in ends if free]
        mean, half = lib.interval([x for x in above if not np.isnan(x)] or [np.nan])
        print(f"β {label(s)}: gold at its end {mean:+.3f} ± {half:.3f} above β = 0 at that KL")


def main():
    args = lib.arguments(__doc__, 3)
    run = lib.world()
    settings = ["sft", 0, 0.1, "adaptive"] if args.quick else ["sft", *BETAS, "adaptive"]
    ends_first = sorted(settings, key=lambda s: s in (0.03, 0.3, "adaptive"))
    jobs = [
        ((s, seed), lambda s=s, seed=seed: job(args, run, seed, s))
        for s in ends_first
        for seed in args.seeds
    ]
    rows = lib.collect(args, lib.place(args, "beta.csv"), jobs, ["setting", "seed"])
    keys = [(s, seed) for s in ends_first if s != "sft" for seed in args.seeds]
    jobs = [(k, lambda k=k: path_job(args, k[1], k[0])) for k in keys]
    paths = lib.collect(args, lib.place(args, "beta_path.csv"), jobs, ["setting", "seed"])
    draw(args, [r for r in rows if r["seed"] in args.seeds], settings, paths)
    frontier(paths, settings[2:], args.seeds)
    hacked(args, run)


def label(setting):
    return "SFT" if setting == "sft" else setting if setting == "adaptive" else f"{setting:g}"


def colour(setting):
    return {"adaptive": "#d55e00", "sft": "#000000"}.get(setting, "#0072b2")


def draw(args, rows, settings, paths):
    sft = {r["seed"]: r["score"] for r in rows if r["setting"] == "sft"}
    order = [*settings[1:], "sft"]
    value = {}
    for s in settings:
        mine = [r for r in rows if r["setting"] == s]
        for m in PANELS:
            value[s, m] = [r[m] - (sft[r["seed"]] if m == "score" else 0) for r in mine]
    fig, axes = lib.figure(3, 2, size=(3.9, 3.1))
    for ax, (m, title) in zip(axes.flat, PANELS.items()):
        for x, s in enumerate(order):
            mean, ci = lib.interval(value[s, m])
            ax.plot([x] * len(value[s, m]), value[s, m], "_", color="#56b4e9", ms=9)
            half = 0 if np.isnan(ci) else ci
            ax.errorbar(x, mean, half, fmt="o", color=colour(s), capsize=3, ms=5)
        ax.set_xticks(range(len(order)), [label(s) for s in order])
        ax.set_title(title)
        ax.set_xlabel("β")
    ax = axes[1, 2]
    for c, s in zip(FRONTIER, order):
        name = label(s) if isinstance(s, str) else f"β = {label(s)}"
        marker, size = ("*", 9) if s == "adaptive" else ("o", 5)
        ax.plot(value[s, "kl"], value[s, "gold"], marker, color=c, ms=size, label=name)
        mine = [r for r in paths if r["setting"] == s]
        episodes = sorted({r["episode"] for r in mine})
        means = [
            [np.mean([r[k] for r in mine if r["episode"] == e]) for e in episodes]
            for k in ("kl", "gold")
        ]
        ax.plot(*means, color=c, lw=1)
    ax.set_xlabel("KL to SFT, nats an answer")
    ax.set_title("gold score against KL: ends, and mean paths")
    ax.legend()
    fig.suptitle(
        "Gold is highest at β = 0.1 to 0.3: "
        "less lets the policy over-optimise, more holds it back\n"
        f"{len(sft)} seeds (bars), mean and 95 % interval; adaptive: steered to {TARGET} nats"
    )
    lib.finish(fig, lib.place(args, "beta.png"))
    print(f"{'':10s}" + "".join(f"{m:>18s}" for m in PANELS))
    for s in order:
        cells = [lib.interval(value[s, m]) for m in PANELS]
        print(f"{label(s):10s}" + "".join(f"{mean:10.3f} ±{ci:6.3f}" for mean, ci in cells))


def hacked(args, run):
    """Write answers of SFT and of a policy that hacked a weak reward model, one of each kind."""
    seed, count = 1, 8 if args.quick else overoptimise.PROMPTS[0]
    overoptimise.ppo_job(args, seed, "tiny", count)
    source = lib.checkpoints(args, seed)
    folder = lib.scratch(args, f"overoptimise/tiny-{count}-{seed}")
    paths = (f"{source}/sft.pt", f"{folder}/ppo.pt", f"{folder}/reward.pt")
    sft, policy, reward_model = map(lib.network, paths)
    rows = lib.heldout(run, 64 if args.quick else 900)
    found = {
        name: lib.measure(run, model, sft, reward_model, rows)
        for name, model in (("SFT", sft), ("hacked", policy))
    }
    pairs = int(load(f"{folder}/reward.pt")["results"]["pairs"])
    means = [
        f"{name} scores {f['score'].mean():.2f}, gold {f['gold'].mean():.3f}, "
        f"{f['length'].mean():.1f} tokens"
        for name, f in found.items()
    ]
    lines = [
        f"A reward model of {count} prompts' comparisons, {pairs:,} pairs, "
        f"and PPO against it with β = 0 (seed {seed}; python experiments/beta.py).",
        "One held-out prompt of each kind, as they came. "
        "In front of an answer: the reward model's score, and the gold score.",
        "",
        f"On all {len(rows)}:  {', '.join(means)}, "
        f"{found['hacked']['kl'].mean():.1f} nats from SFT",
        "",
    ]
    first_of_kind = {r["kind"]: i for i, r in reversed(list(enumerate(rows)))}
    for i in sorted(first_of_kind.values()):
        turns = turns_of(rows[i]["prompt"])
        lines.append("  ".join("→ " * (t["role"] != "user") + t["content"] for t in turns))
        for name, f in found.items():
            lines.append(f"  {name:7s}{f['score'][i]:6.2f} {f['gold'][i]:5.2f}  {f['answer'][i]}")
    with replacing(lib.place(args, "hacked.txt")) as f:
        f.write("\n".join(lines) + "\n")
    print("\n".join(lines[:4]))


if __name__ == "__main__":
    entry(main)

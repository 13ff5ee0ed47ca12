"""
β, the weight of the KL penalty: what it brings and what it costs.

    python experiments/beta.py      # β from 0 to 1 and an adaptive one, 5 seeds

Writes beta.csv, beta_path.csv, beta.png and hacked.txt. A run has 30 iterations, the default 40.
The policy itself is measured, not the average of its weights, which lags behind. Each policy
answers 900 held-out prompts once: reward-model score, gold score, KL to SFT and entropy (nats an
answer), length.

beta_path.csv has KL and gold every other iteration of each run. Does a penalty bring more gold at
the same KL, or does it only stop sooner on the same path? Gao et al. 2022 find the latter. Printed
and drawn is how much gold a run ends with (its last three measurements), above that of the run
without a penalty when it first passed the same KL, within a seed.

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


def above(path, free):
    """Gold of a run, less that of the run without a penalty at the same KL; else NaN.

    Mean over the last three measurements, since one has the noise of 256 prompts.
    """
    gaps = [r["gold"] - overoptimise.gold_at(r["kl"], free) for r in path[-3:]]
    return float(np.mean([x for x in gaps if not np.isnan(x)] or [np.nan]))


def frontier(paths, settings, seeds):
    """{setting: what each seed has above the path without a penalty}"""

    def path(setting, seed):
        return [r for r in paths if (r["setting"], r["seed"]) == (setting, seed)]

    each = {s: [above(path(s, seed), path(0, seed)) for seed in seeds] for s in settings}
    return {s: [x for x in found if not np.isnan(x)] or [np.nan] for s, found in each.items()}


def main():
    args = lib.arguments(__doc__, 5)
    run = lib.world()
    settings = ["sft", 0, "adaptive"] if args.quick else ["sft", *BETAS, "adaptive"]
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
    table([r for r in rows if r["seed"] in args.seeds], settings)
    over_none(rows, paths, "adaptive" if args.quick else 0.1, args.seeds)
    draw(args, paths, settings[1:])
    hacked(args, run)


def label(setting):
    return "SFT" if setting == "sft" else setting if setting == "adaptive" else f"{setting:g}"


def table(rows, settings):
    """Ends of runs; the score is above SFT's of the same seed."""
    sft = {r["seed"]: r["score"] for r in rows if r["setting"] == "sft"}
    columns = ["gold", "kl", "score", "entropy", "length"]
    print(f"{'':10s}" + "".join(f"{m:>18s}" for m in columns))
    for s in settings:
        mine = [r for r in rows if r["setting"] == s]
        cells = [
            lib.interval([r[m] - (sft[r["seed"]] if m == "score" else 0) for r in mine])
            for m in columns
        ]
        print(f"{label(s):10s}" + "".join(f"{mean:10.3f} ±{ci:6.3f}" for mean, ci in cells))


def over_none(rows, paths, setting, seeds):
    """Print how much more gold a setting has than β = 0: when a run ends, and at its highest."""
    for when, found in (("at the end", rows), ("at its highest", paths)):
        gold = {
            s: [max(r["gold"] for r in found if (r["setting"], r["seed"]) == (s, n)) for n in seeds]
            for s in (setting, 0)
        }
        mean, half = lib.interval(np.subtract(gold[setting], gold[0]))
        print(f"β {label(setting)} less β = 0, {when}: {mean:+.3f} ± {half:.3f} of gold")


def draw(args, paths, settings):
    """Left: gold against KL along the runs. Right: how far a run ends above β = 0 at its KL."""
    fig, axes = lib.figure(2, size=(4.4, 3.8))
    left, right = axes[0]
    lifted, shown = frontier(paths, settings[1:], args.seeds), "adaptive" if args.quick else 0.1
    for colour, s in zip(lib.COLOURS, settings):
        mine = [r for r in paths if r["setting"] == s]
        episodes = sorted({r["episode"] for r in mine})
        kl, gold = (
            [np.mean([r[k] for r in mine if r["episode"] == e]) for e in episodes]
            for k in ("kl", "gold")
        )
        name = label(s) if isinstance(s, str) else f"β = {label(s)}"
        left.plot(kl, gold, color=colour, lw=1.5, label=name)
        left.plot(kl[-1], gold[-1], "o", color=colour, ms=6)
    for x, s in enumerate(lifted):
        mean, half = lib.interval(lifted[s])
        print(f"β {label(s)}: ends {mean:+.3f} ± {half:.3f} of gold above β = 0 at the same KL")
        right.plot([x] * len(lifted[s]), lifted[s], "_", color="#56b4e9", ms=12)
        right.errorbar(x, mean, np.nan_to_num(half), fmt="o", color="#0072b2", capsize=3)
    left.set_xlabel("KL to SFT, nats an answer")
    left.set_ylabel("gold score")
    left.legend()
    right.axhline(0, color="black", lw=0.8)
    right.set_xticks(range(len(lifted)), [label(s) for s in lifted])
    right.set_xlabel("β")
    right.set_ylabel("gold above that of β = 0, at the same KL")
    mean, half = lib.interval(lifted[shown])
    fig.suptitle(
        f"A run with β = {label(shown)} ends with {mean:+.3f} ± {half:.3f} of gold\n"
        "above a run without a penalty, at the same KL"
    )
    lib.finish(fig, lib.place(args, "beta.png"))


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

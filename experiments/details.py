"""
Which details of PPO matter: one at a time is turned off, or on where the default does without.

    python experiments/details.py               # 30 iterations, 5 seeds: details.csv, details.png
    python experiments/details.py --seeds=10

Everything else is as in the default run, with the same seeds, so a difference is within a seed: the
same SFT and reward model, the same prompts, the same noise. The default's own result is read from
the log of its run at that iteration. Where ppo.py has no flag for a detail, a piece of a function
is replaced before it starts (tests/patch.py says how it is found).
"""

import ast
import os
import sys

import lib

sys.path.append(os.path.join(lib.ROOT, "tests"))
import patch

import numpy as np
from plumbing.command_line import entry, value_of
from plumbing.run import read_log

CRITIC_FROM_SFT = (
    "ppo.main",
    "reward_model.requires_grad_(False)",
    "reward_model.requires_grad_(False)\ncritic = ScalarGPT.from_gpt(reference).eval()",
)
SMALL_EPS = (
    "ppo.main",
    "optimizer = adamw(___policy, eps=1e-5)\ncritic_optimizer = adamw(___critic, eps=1e-5)",
    "optimizer = adamw(___policy, eps=1e-8)\ncritic_optimizer = adamw(___critic, eps=1e-8)",
)
DIVIDED = ("make_score", "penalize_missing_eos(___)", "(penalize_missing_eos(___) - mean) / std")
# what: (flags, the function, what is replaced in it, and by what)
DETAILS = {
    "no KL penalty": (["--beta=0"], None),
    "critic from SFT, head at zero, not from the reward model": ([], CRITIC_FROM_SFT),
    "advantages not whitened": ([], ("ppo.main", "masked_whiten(___)", "masked(___)")),
    "no value clipping": (["--value_clip=1e9"], None),
    "no ratio clipping": (["--clip=1e9"], None),
    "no rule about a missing EOS": (
        [],
        ("make_score", "penalize_missing_eos(scores, ___)", "scores"),
    ),
    "no EMA": (["--ema=0"], None),
    "scores divided by their spread": ([], DIVIDED),
    "Adam's eps 1e-8, not 1e-5": ([], SMALL_EPS),
    "4 inner epochs": (["--ppo_epochs=4"], None),
}
METRICS = {"gold": "gold score", "kl": "KL to SFT, nats an answer", "score": "reward-model score"}


def changed(function, old, new):
    """Python that changes a function before ppo.main() starts."""
    found = patch.find(function)
    tree = ast.parse(found.text)
    patch.replace(found.node(tree), old, new)
    code, module = ast.unparse(found.node(tree)), found.file.removesuffix(".py")
    return f"exec({code!r}, vars(sys.modules[{module!r}]))"


def at(log, iterations):
    """What a log says after so many iterations.

    gold and score are of its 256 held-out prompts; the others are means over five rollouts.
    """
    rows = [row for row in log if row["step"] < iterations]
    last = rows[-5:]
    return {
        "gold": rows[-1]["eval/gold"],
        "score": rows[-1]["eval/score"],
        **{k: float(np.mean([r["objective/" + k] for r in last])) for k in ("kl", "entropy")},
        "length": float(np.mean([r["response/length"] for r in last])),
        "pretrain_loss": rows[-1]["eval/pretrain_loss"],
    }


def job(args, seed, what, iterations):
    if what == "default":
        return at(read_log(f"{lib.checkpoints(args, seed, 'ppo')}/ppo.jsonl"), iterations)
    source, (flags, change) = lib.checkpoints(args, seed), DETAILS[what]
    name = "".join(c if c.isalnum() else "-" for c in what)
    out = lib.scratch(args, f"details/{name}-{iterations}-{seed}")
    lib.variant(source, out, "sft.pt", "reward.pt")
    flags = [f"--iterations={iterations}", *flags]
    lib.stage(args, "ppo", out, seed, *flags, patch=changed(*change) if change else "")
    return at(read_log(f"{out}/ppo.jsonl"), iterations)


def main():
    flag = {"type": value_of(int), "default": 0, "help": "default 30, with --quick 2"}
    args = lib.arguments(__doc__, 5, ("--iterations", flag))
    iterations = args.iterations or (2 if args.quick else 30)
    names = ["default", *DETAILS]
    if args.quick:  # those that change code
        names = ["default", *(name for name, (_, change) in DETAILS.items() if change)]
    jobs = [
        ((what, iterations, seed), lambda what=what, seed=seed: job(args, seed, what, iterations))
        for seed in args.seeds
        for what in names
    ]
    rows = lib.collect(args, lib.place(args, "details.csv"), jobs, ["detail", "iterations", "seed"])
    draw(args, [r for r in rows if r["iterations"] == iterations], iterations)


def differences(rows, what, metric):
    """This detail's value minus the default's of the same seed, for the seeds that have both."""
    value = {(r["detail"], r["seed"]): r[metric] for r in rows}
    both = [seed for detail, seed in value if detail == what and ("default", seed) in value]
    return np.array([value[what, seed] - value["default", seed] for seed in both])


def table(names, default, cells):
    print(f"{'':58s}" + "".join(f"{m:>18s}" for m in METRICS))
    print(f"{'default':58s}" + "".join(f"{default[m]:18.3f}" for m in METRICS))
    for name in names:
        line = [f"{cells[name, m][0]:+10.3f} ±{cells[name, m][1]:6.3f}" for m in METRICS]
        print(f"{name:58s}" + "".join(line))


def draw(args, rows, iterations):
    names = [n for n in DETAILS if any(r["detail"] == n for r in rows)]
    default = {m: np.mean([r[m] for r in rows if r["detail"] == "default"]) for m in METRICS}
    cells = {(name, m): lib.interval(differences(rows, name, m)) for name in names for m in METRICS}
    table(names, default, cells)
    fig, axes = lib.figure(len(METRICS), 1)
    fig.set_size_inches(3.2 * len(METRICS) + 2.6, 0.34 * len(names) + 1.4)
    for ax, m in zip(axes[0], METRICS):
        for y, name in enumerate(reversed(names)):
            mean, ci = cells[name, m]
            half, color = 0 if np.isnan(ci) else ci, "#d55e00" if abs(mean) > ci else "#555555"
            ax.errorbar(mean, y, xerr=half, fmt="o", color=color, capsize=2, ms=5)
            each = differences(rows, name, m)
            ax.plot(each, [y] * len(each), "|", color="#0072b2", ms=8)
        ax.axvline(0, color="black", lw=0.8)
        ax.set_title(f"{METRICS[m]}\ndefault: {default[m]:.2f}")
        ax.set_xlabel("difference from the default")
        labels = list(reversed(names)) if ax is axes[0, 0] else [""] * len(names)
        ax.set_yticks(range(len(names)), labels)
    seeds = len({r["seed"] for r in rows})
    fig.suptitle(
        "Few details of PPO matter in a run this short; the average of the weights lags behind, "
        "and without a KL penalty the policy goes far\n"
        f"one at a time turned off (or on), {iterations} iterations, {seeds} seeds (ticks), "
        "mean with 95 % interval, orange where it leaves out 0",
        fontsize=10,
    )
    lib.finish(fig, lib.place(args, "details.png"))


if __name__ == "__main__":
    entry(main)

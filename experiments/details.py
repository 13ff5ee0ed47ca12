"""
Which details of PPO matter: one at a time is turned off, or on where the default does without.

    python experiments/details.py               # 30 iterations, 5 seeds: details.csv, details.png
    python experiments/details.py --seeds=10 --iterations=60

Everything else is as in the default run, with the same seeds, so that a difference is within a seed: the same SFT and
reward model, the same prompts, the same noise. The default's own result is read from the log of its run at that iteration.
Where ppo.py has no flag for a detail, a function of it is replaced before it starts.
"""
import lib
import numpy as np
from common import read_log

# what: (flags, a line of Python before ppo.main())
DETAILS = {
    "no KL penalty": (["--beta=0"], ""),
    "critic from SFT, head at zero, not from the reward model": ([], "import copy, model, types; ppo.copy = types.SimpleNamespace(deepcopy=lambda m: model.ScalarGPT.from_gpt("
                                                                "common.model_from(common.load('{out}/sft.pt'))) if isinstance(m, model.ScalarGPT) else copy.deepcopy(m))"),
    "advantages not whitened": ([], "ppo.masked_whiten = lambda x, mask: ppo.shown(x, mask)"),
    "no value clipping": (["--value_clip=1e9"], ""),
    "no ratio clipping": (["--clip=1e9"], ""),
    "no rule about a missing EOS": ([], "ppo.eos_rule = lambda scores, *rest: scores"),
    "no EMA": (["--ema=0"], ""),
    "scores divided by their spread": ([], "ppo.eos_rule = lambda scores, has_eos, mean, std, f=ppo.eos_rule: (f(scores, has_eos, mean, std) - mean) / std"),
    "Adam's eps 1e-8, not 1e-5": ([], "ppo.adamw = lambda *a, f=ppo.adamw, **k: f(*a, **{**k, 'eps': 1e-8})"),
    "4 inner epochs": (["--epochs=4"], ""),
}


def at(log, iterations):
    """What a log says after so many iterations: gold and proxy score on its 256 held-out prompts, KL and entropy of the last five rollouts."""
    rows = [row for row in log if row["step"] < iterations]
    last = rows[-5:]
    return {"gold": rows[-1]["eval/gold"], "score": rows[-1]["eval/score"], **{k: float(np.mean([r["objective/" + k] for r in last])) for k in ("kl", "entropy")},
            "length": float(np.mean([r["response/length"] for r in last])), "pretrain_loss": rows[-1]["eval/pretrain_loss"]}


def main():
    args = lib.arguments(__doc__, 5, ("--iterations", {"type": int, "default": 0, "help": "default 30, with --quick 2"}))
    iterations = args.iterations or (2 if args.quick else 30)

    def job(seed, what):
        source = lib.checkpoints(args, seed, "ppo" if what == "default" else "reward")
        if what == "default":
            return at(read_log(f"{source}/ppo.jsonl"), iterations)
        flags, patch = DETAILS[what]
        name = f"details/{''.join(c if c.isalnum() else '-' for c in what)}-{iterations}-{seed}"
        out = lib.variant(source, lib.scratch(args, name), "sft.pt", "reward.pt")
        lib.stage(args, "ppo", out, seed, f"--iterations={iterations}", *flags, patch=patch.replace("{out}", out))
        return at(read_log(f"{out}/ppo.jsonl"), iterations)

    names = ["default", *DETAILS] if not args.quick else ["default", *list(DETAILS)[1:3], *list(DETAILS)[5:6], *list(DETAILS)[7:9]]      # those with a patch
    jobs = [((what, iterations, seed), lambda what=what, seed=seed: job(seed, what)) for seed in args.seeds for what in names]
    rows = lib.collect(args, lib.place(args, "details.csv"), jobs, ["detail", "iterations", "seed"])
    draw(args, [r for r in rows if r["iterations"] == iterations], iterations)


def differences(rows, what, metric):
    """This detail's value minus the default's of the same seed, for the seeds that have both."""
    value = {(r["detail"], r["seed"]): r[metric] for r in rows}
    return np.array([v - value["default", seed] for (detail, seed), v in value.items() if detail == what and ("default", seed) in value])


def draw(args, rows, iterations):
    names = [n for n in DETAILS if any(r["detail"] == n for r in rows)]
    metrics = {"gold": "gold score", "kl": "KL to SFT, nats an answer", "score": "reward-model score"}
    fig, axes = lib.figure(len(metrics), 1, size=(3.6, 0.34 * len(names) + 1.2))
    axes[0, 0].get_figure().set_size_inches(3.2 * len(metrics) + 2.6, 0.34 * len(names) + 1.4)
    default = {m: np.mean([r[m] for r in rows if r["detail"] == "default"]) for m in metrics}
    print(f"{'':58s}" + "".join(f"{m:>18s}" for m in metrics) + f"\n{'default':58s}" + "".join(f"{default[m]:18.3f}" for m in metrics))
    cells = {(name, m): lib.interval(differences(rows, name, m)) for name in names for m in metrics}
    for name in names:
        print(f"{name:58s}" + "".join(f"{cells[name, m][0]:+10.3f} ±{cells[name, m][1]:6.3f}" for m in metrics))
    for ax, m in zip(axes[0], metrics):
        for y, name in enumerate(reversed(names)):
            d = differences(rows, name, m)
            mean, ci = cells[name, m]
            ax.errorbar(mean, y, xerr=0 if np.isnan(ci) else ci, fmt="o", color="#d55e00" if abs(mean) > ci else "#555555", capsize=2, ms=5)
            ax.plot(d, [y] * len(d), "|", color="#0072b2", ms=8)
        ax.axvline(0, color="black", lw=0.8)
        ax.set_title(f"{metrics[m]}\ndefault: {default[m]:.2f}")
        ax.set_xlabel("difference from the default")
        ax.set_yticks(range(len(names)), list(reversed(names)) if ax is axes[0, 0] else [""] * len(names))
    seeds = len({r["seed"] for r in rows})
    fig.suptitle("Few details of PPO matter in a run this short; the average of the weights lags behind, and without a KL penalty the policy goes far\n"
                 f"one at a time turned off (or on), {iterations} iterations, {seeds} seeds (ticks), mean with 95 % interval, orange where it leaves out 0", fontsize=10)
    lib.finish(fig, lib.place(args, "details.png"))


if __name__ == "__main__":
    lib.common.entry(main)

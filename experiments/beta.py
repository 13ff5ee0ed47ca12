"""
β, the weight of the KL penalty: what it buys and what it costs.

    python experiments/beta.py              # β from 0 to 1 and an adaptive one, 3 seeds: beta.csv, beta.png, hacked.txt
    python experiments/beta.py --seeds=5

30 iterations, half of the default run's: its score and its KL hardly rise after them. What is measured is the policy
itself and not the average of its weights, which lags behind by thirty iterations. Each answers 900 held-out prompts
once: reward-model score, gold score, KL to SFT and entropy (nats an answer), length.

hacked.txt is the lesson in reward hacking: answers of a policy that was trained without a KL penalty against a reward
model of few comparisons (overoptimise.py's), beside SFT's, with what that reward model and the truth say of them.
"""
import lib
import numpy as np
import overoptimise
from common import entry
from data import replacing
from evaluate import text_of

BETAS = [0, 0.03, 0.1, 0.3, 1]
RUN = ["--iterations=30", "--ema=0"]
TARGET = 2      # nats an answer, for the adaptive controller
# Ziegler et al.'s controller changes β by at most 0.2 × episodes / 10,000 an iteration: over 30 iterations by a
# factor of 1.17, too slowly to steer. With a horizon of 1,000 it can.
FASTER = "ppo.adapt_beta = lambda beta, kl, target, episodes, f=ppo.adapt_beta: f(beta, kl, target, episodes, 1_000)"


def final(args, source, out, run):
    """Measures of the policy in `out`, against the SFT and the reward model in `source`."""
    found = lib.measure(run, lib.network(f"{out}/ppo.pt" if out else f"{source}/sft.pt"), lib.network(f"{source}/sft.pt"), lib.network(f"{source}/reward.pt"),
                        lib.heldout(run, 64 if args.quick else 900))
    return {k: float(found[k].mean()) for k in ("kl", "score", "gold", "entropy", "length", "eos")}


def main():
    args = lib.arguments(__doc__, 3)
    run = lib.world()

    def job(seed, setting):
        source, out = lib.checkpoints(args, seed), None
        if setting != "sft":
            out = lib.variant(source, lib.scratch(args, f"beta/{setting}-{seed}"), "sft.pt", "reward.pt")
            flag = f"--adaptive_kl={TARGET}" if setting == "adaptive" else f"--beta={setting}"
            lib.stage(args, "ppo", out, seed, *([] if args.quick else RUN), flag, patch=FASTER if setting == "adaptive" else "")
        return final(args, source, out, run)

    settings = ["sft", *BETAS, "adaptive"] if not args.quick else ["sft", 0, 0.1, "adaptive"]
    jobs = [((s, seed), lambda s=s, seed=seed: job(seed, s)) for s in sorted(settings, key=lambda s: s in (0.03, 0.3, "adaptive")) for seed in args.seeds]     # the ends first
    rows = lib.collect(args, lib.place(args, "beta.csv"), jobs, ["setting", "seed"])
    draw(args, [r for r in rows if r["seed"] in args.seeds], settings)
    hacked(args, run)


def draw(args, rows, settings):
    panels = {"kl": "KL to SFT, nats an answer", "score": "reward-model score, above SFT's", "gold": "gold score", "entropy": "entropy, nats an answer", "length": "length, tokens"}
    sft = {(r["seed"], m): r[m] for r in rows if r["setting"] == "sft" for m in panels}
    value = {(s, m): [r[m] - (sft[r["seed"], m] if m == "score" else 0) for r in rows if r["setting"] == s] for s in settings for m in panels}
    label = {s: s if s != "sft" else "SFT" for s in settings} | {s: f"{s:g}" for s in settings if not isinstance(s, str)}
    order = [*settings[1:], "sft"]
    fig, axes = lib.figure(3, 2, size=(3.9, 3.1))
    for ax, (m, title) in zip(axes.flat, panels.items()):
        for x, s in enumerate(order):
            mean, ci = lib.interval(value[s, m])
            ax.plot([x] * len(value[s, m]), value[s, m], "_", color="#56b4e9", ms=9)
            ax.errorbar(x, mean, 0 if np.isnan(ci) else ci, fmt="o", color="#d55e00" if s == "adaptive" else "#000000" if s == "sft" else "#0072b2", capsize=3, ms=5)
        ax.set_xticks(range(len(order)), [label[s] for s in order])
        ax.set_title(title)
        ax.set_xlabel("β")
    ax = axes[1, 2]
    for color, s in zip(["#d55e00", "#e69f00", "#009e73", "#0072b2", "#56b4e9", "#cc79a7", "#000000"], order):
        ax.plot(value[s, "kl"], value[s, "gold"], "*" if s == "adaptive" else "o", color=color, ms=9 if s == "adaptive" else 5, label=label[s] if isinstance(s, str) else f"β = {label[s]}")
    ax.set_xlabel("KL to SFT, nats an answer")
    ax.set_title("gold score against KL: the frontier")
    ax.legend()
    fig.suptitle(f"Gold is highest at β = 0.1 to 0.3: less lets the policy over-optimise, more holds it back\n{len(sft) // len(panels)} seeds (bars), mean and 95 % interval; adaptive: steered to {TARGET} nats")
    lib.finish(fig, lib.place(args, "beta.png"))
    print(f"{'':10s}" + "".join(f"{m:>18s}" for m in panels))
    for s in order:
        print(f"{label[s]:10s}" + "".join(f"{mean:10.3f} ±{ci:6.3f}" for mean, ci in (lib.interval(value[s, m]) for m in panels)))


def hacked(args, run):
    """Write answers of SFT and of a policy that hacked a weak reward model, one prompt of each kind as they come."""
    seed, count = 1, 8 if args.quick else overoptimise.PROMPTS[0]
    overoptimise.ppo_job(args, seed, "tiny", count)
    source, folder = lib.checkpoints(args, seed), lib.scratch(args, f"overoptimise/tiny-{count}-{seed}")
    sft, policy, reward_model = (lib.network(p) for p in (f"{source}/sft.pt", f"{folder}/ppo.pt", f"{folder}/reward.pt"))
    rows = lib.heldout(run, 64 if args.quick else 900)
    found = {name: lib.measure(run, model, sft, reward_model, rows) for name, model in (("SFT", sft), ("hacked", policy))}
    lines = [f"A reward model of {count} prompts' comparisons, {int(lib.common.load(f'{folder}/reward.pt')['results']['pairs']):,} pairs, and PPO against it with β = 0 (seed {seed}; python experiments/beta.py).",
             "One held-out prompt of each kind, as they came. In front of an answer: the reward model's score, and the gold score.", ""]
    lines += [f"On all {len(rows)}:  " + ", ".join(f"{name} scores {f['score'].mean():.2f}, gold {f['gold'].mean():.3f}, {f['length'].mean():.1f} tokens" for name, f in found.items())
              + f", {found['hacked']['kl'].mean():.1f} nats from SFT", ""]
    for i in sorted({r["kind"]: i for i, r in reversed(list(enumerate(rows)))}.values()):
        lines.append(text_of(rows[i]["prompt"]))
        lines += [f"  {name:7s}{f['score'][i]:6.2f} {f['gold'][i]:5.2f}  {f['answer'][i]}" for name, f in found.items()]
    with replacing(lib.place(args, "hacked.txt")) as f:
        f.write("\n".join(lines) + "\n")
    print("\n".join(lines[:4]))


if __name__ == "__main__":
    entry(main)

"""
Over-optimisation: the reward model's score goes on rising where the truth falls (Gao et al. 2022).

    python experiments/overoptimise.py              # 3 seeds: overoptimise_bon.csv, overoptimise_ppo.csv, overoptimise.csv (the fits), overoptimise.png
    python experiments/overoptimise.py --quick

Reward models of two sizes (0.8 and 0.03 million parameters without embeddings) are trained on three numbers of
comparisons, and optimised against in two ways from the same SFT model: best of n answers, KL = ln n − (n − 1)/n exactly,
and PPO without a KL penalty. Against d = √KL the gold score is fitted by Gao et al.'s forms, d(α − βd) for best of n and
d(α − β ln d) for RL, for each seed by itself; coefficients are means over seeds with 95 % intervals by Student's t.

Scores are made comparable as Gao et al. do: both are 0 on average on SFT's answers, and a reward model's is multiplied by
the factor with which its differences, as logits, best predict (cross-entropy) labels that the truth would give; the unit
is that of the gold score, on which a labeler prefers the better of two answers with probability σ(3.76 × difference).
"""
import json
import math
import os

import lib
import numpy as np
import torch
from ppo import heldout_metrics
from common import generator, pad, read_log
from comparisons import sample_answers
from data import read_heldout, replacing
from model import ScalarGPT

SIZES = ["tiny", "small"]
PROMPTS = [600, 2700, 12000]        # with comparisons of four answers each, 4.1 pairs a prompt
SAMPLES = 256
NS = [2 ** i for i in range(9)]
LOGIT = 1.702 / (0.32 * 2 ** 0.5)   # judge.py's noise: Φ(x / (0.32 √2)) ≈ σ(3.76 x)
RUN = ["--beta=0", "--ptx_coef=0", "--ema=0", "--lr=5e-4", "--iterations=28", "--eval_every=2"]     # far from SFT in a minute; no average of weights: the policy itself is measured
NO_TEXT = "ppo.text_loss = lambda *a: (0.0, 0.0)"       # not asked for here


def small_sft(args):
    """An SFT model of 28 thousand parameters without embeddings, for the small reward models to start from → its path."""
    if args.quick:
        return lib.checkpoints(args, 1, "sft") + "/sft.pt"
    out = "out/experiments/small"
    with lib.lock:
        lib.stage(args, "pretrain", out, 1337, "--size=smoke", "--steps=2400", "--batch=32", "--lr=4e-3")
        lib.stage(args, "sft", out, 1337, "--size=smoke", "--epochs=2", "--demonstrations=0", "--lr=3e-3", f"--base={out}/pretrain.pt")
    return out + "/sft.pt"


def reward_model(args, seed, size, prompts):
    """The folder with the reward.pt of this size on the comparisons of so many prompts; all from one set of answers of a seed."""
    source = lib.checkpoints(args, seed)
    if (size, prompts) == (SIZES[0], PROMPTS[-1]):
        return source
    out = lib.variant(source, lib.scratch(args, f"reward/{size}-{prompts}-{seed}"), "sft.pt", "comparisons.jsonl")
    patch = f"f = reward.sampled_comparisons; reward.sampled_comparisons = lambda *a: [r for i, r in enumerate(f(*a)) if i < {prompts} or r['split'] == 'heldout']"
    flags = []
    if size == "small":
        patch += f"\nreward.model_from = lambda checkpoint: common.model_from(common.load('{small_sft(args)}'))"
        flags = ["--lr=2e-3"]
    lib.stage(args, "reward", out, seed, *flags, patch=patch)
    return out


# ---- best of n ----

def best_of(scores, gold, ns):
    """Mean proxy and gold score of the answer with the highest score among n, over all subsets of n of the given ones
    (N,): the i-th lowest is the best of a subset with probability C(i − 1, n − 1) / C(N, n). Equal scores share their gold."""
    values, which = np.unique(scores, return_inverse=True)
    gold = (np.bincount(which, gold) / np.bincount(which))[which]
    order = np.argsort(scores, kind="stable")
    i, N = np.arange(1, len(scores) + 1), len(scores)
    lgamma = np.vectorize(math.lgamma)
    found = []
    for n in ns:
        log_choose = np.where(i >= n, lgamma(i) - math.lgamma(n) - lgamma(np.maximum(i - n + 1, 1)), -np.inf)
        weights = np.exp(log_choose - (math.lgamma(N + 1) - math.lgamma(n + 1) - math.lgamma(N - n + 1)))
        found.append((weights @ scores[order], weights @ gold[order]))
    return found


def calibration(scores, gold):
    """The factor c for which σ(c Δscore) is nearest, by cross-entropy, to the labels σ(LOGIT Δgold), over pairs of answers to a prompt.

    scores, gold: lists of arrays, one a prompt."""
    rng = np.random.default_rng(0)
    pairs = [(i, *rng.integers(len(s), size=2)) for i, s in enumerate(scores) for _ in range(100)]
    ds, dg = (np.array([x[i][a] - x[i][b] for i, a, b in pairs]) for x in (scores, gold))
    label, grid = 1 / (1 + np.exp(-LOGIT * dg)), np.exp(np.linspace(np.log(0.01), np.log(30), 400))
    return float(grid[np.argmin([np.mean(np.logaddexp(0, c * ds) - label * c * ds) for c in grid])])


@torch.no_grad()
def scores_of(model, prompt, answers, run):
    """Scores (n,) of answers (token lists) to a prompt (tokens)."""
    tokens, lengths = pad([prompt + a for a in answers], run.vocab.pad)
    with run.cast:
        return torch.cat([model.score(tokens[i], lengths[i]) for i in torch.arange(len(tokens)).split(128)]).double().numpy()


def sampled(args, seed, n_prompts, samples, run):
    """Held-out prompts and so many answers of a seed's SFT model to each (token lists), sampled once."""
    rows, path = lib.heldout(run, n_prompts), lib.scratch(args, f"overoptimise/answers-{n_prompts}-{samples}-{seed}.json")
    if not os.path.exists(path):
        prompts = [run.vocab.prompt(r["prompt"]) for r in rows]
        answers = sample_answers(lib.network(f"{lib.checkpoints(args, seed, 'sft')}/sft.pt"), prompts, run, samples, "best of n")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with replacing(path) as f:
            json.dump(answers, f)
    with open(path) as f:
        return rows, json.load(f)


def bon_job(args, seed, size, counts, n_prompts, samples, ns):
    """Best of n against each of a seed's reward models of a size → rows."""
    run = lib.world()
    run.config.seed = seed
    rows, answers = sampled(args, seed, n_prompts, samples, run)
    prompts = [run.vocab.prompt(r["prompt"]) for r in rows]
    unique = [sorted({tuple(a) for a in found}) for found in answers]
    which = [[u.index(tuple(a)) for a in found] for u, found in zip(unique, answers)]
    gold = [np.array([run.judge.gold(r["prompt"], run.vocab.decode(u))["gold"] for u in us])[w] for r, us, w in zip(rows, unique, which)]
    result = []
    for count in counts:
        folder = reward_model(args, seed, size, count)
        checkpoint = lib.common.load(f"{folder}/reward.pt")
        model = lib.common.model_from(checkpoint, ScalarGPT)
        scores = [scores_of(model, p, [list(u) for u in us], run)[w] for p, us, w in zip(prompts, unique, which)]
        factor, centre = calibration(scores, gold) / LOGIT, np.mean([s.mean() for s in scores])
        curve = np.array([best_of(factor * (s - centre), g, ns) for s, g in zip(scores, gold)]).mean(0)
        result += [{"prompts": count, "n": n, "proxy": float(p), "gold": float(g), "pairs": checkpoint["results"]["pairs"],
                    "accuracy": checkpoint["results"]["accuracy"], "factor": factor} for n, (p, g) in zip(ns, curve)]
    return result


# ---- PPO ----

def ppo_job(args, seed, size, count):
    """PPO without KL penalty against a reward model → rows along the run."""
    source, folder = lib.checkpoints(args, seed), reward_model(args, seed, size, count)
    out = lib.variant(source, lib.scratch(args, f"overoptimise/{size}-{count}-{seed}"), "sft.pt")
    lib.variant(folder, out, "reward.pt")
    lib.stage(args, "ppo", out, seed, *([] if args.quick else RUN), patch=NO_TEXT)
    run = lib.world()
    run.config.seed = seed
    heldout = read_heldout(os.path.join(run.folder, "prompts.jsonl"), ["prompt"])       # the prompts and the noise of the run's own evaluation, for SFT
    heldout = [heldout[i] for i in torch.randperm(len(heldout), generator=generator(seed, "heldout"))[:256].tolist()]
    before = heldout_metrics(lib.network(f"{source}/sft.pt"), heldout, lib.network(f"{folder}/reward.pt"), run.judge, run.vocab, run, generator(seed, "eval"))
    log = read_log(f"{out}/ppo.jsonl")
    kl = [row["objective/kl"] for row in log]
    result = [{"episode": 0, "kl": 0.0, "score": before["eval/score"], "gold": before["eval/gold"]}]
    for i, row in enumerate(log[:-1]):
        if "eval/gold" in row:      # measured after the update, the KL before it: so that of the next rollout, with its neighbours
            near = kl[max(0, i):i + 3]
            result.append({"episode": row["episode"], "kl": max(0.0, float(np.mean(near))), "score": row["eval/score"], "gold": row["eval/gold"]})
    return result


# ---- fits and figure ----

def basis(way, d):
    """The two functions of d that Gao et al.'s form multiplies by α and by −β."""
    return np.stack([d, d * d if way == "best of n" else d * np.log(np.maximum(d, 1e-9))], 1)


def fit(way, d, gold):
    """(α, β) by least squares."""
    (alpha, minus_beta), *_ = np.linalg.lstsq(basis(way, d), gold, rcond=None)
    return alpha, -minus_beta


def misfit(way, d, gold):
    """Root mean square of what the form leaves over."""
    alpha, beta = fit(way, d, gold)
    return np.mean((gold - basis(way, d) @ [alpha, -beta]) ** 2) ** 0.5


def turning(way, alpha, beta):
    """The d at which the fitted form is highest; infinite if it never turns."""
    if beta <= 0:
        return math.inf
    return alpha / (2 * beta) if way == "best of n" else math.exp(min(alpha / beta - 1, 50))


def curves(bon, ppo):
    """{(way, size, prompts): [(d, proxy, gold) of each seed]}, both scores 0 at d = 0."""
    factor = {(r["size"], r["prompts"], r["seed"]): r["factor"] for r in bon}
    found = {}
    for (size, prompts, seed), f in factor.items():
        rows = [r for r in bon if (r["size"], r["prompts"], r["seed"]) == (size, prompts, seed)]
        n, proxy, gold = (np.array([r[k] for r in rows]) for k in ("n", "proxy", "gold"))
        found.setdefault(("best of n", size, prompts), []).append((np.sqrt(np.maximum(0, np.log(n) - (n - 1) / n)), proxy - proxy[0], gold - gold[0]))
        rows = [r for r in ppo if (r["size"], r["prompts"], r["seed"]) == (size, prompts, seed)]
        kl, score, gold = (np.array([r[k] for r in rows]) for k in ("kl", "score", "gold"))
        if len(rows):
            found.setdefault(("PPO", size, prompts), []).append((np.sqrt(np.maximum(0, kl)), f * (score - score[0]), gold - gold[0]))
    return found


def draw(args, bon, ppo, sizes, counts):
    found = curves(bon, ppo)
    about = {(r["size"], r["prompts"]): [x for x in bon if (x["size"], x["prompts"]) == (r["size"], r["prompts"]) and x["n"] == 1] for r in bon}
    fits = []
    fig, axes = lib.figure(2, len(sizes), size=(5, 3.6))
    colors = ["#d55e00", "#e69f00", "#0072b2"]
    for column, way in zip(axes.T, ["best of n", "PPO"]):
        for ax, size in zip(column, sizes):
            for color, count in zip(colors[-len(counts):], counts):
                seeds = found.get((way, size, count), [])
                if not seeds:
                    continue
                pairs = np.mean([r["pairs"] for r in about[size, count]])
                each = [fit(way, d, gold) for d, _, gold in seeds]
                (alpha, alpha_ci), (beta, beta_ci) = (lib.interval(v) for v in zip(*each))
                turn, furthest = turning(way, alpha, beta), max(d.max() for d, *_ in seeds)
                line = np.linspace(0, np.median([d.max() for d, *_ in seeds]), 200)
                gold = basis(way, line) @ [alpha, -beta]
                for d, proxy, g in seeds:
                    ax.plot(d, g, ".", color=color, ms=4, alpha=0.6)
                    ax.plot(d, proxy, "--", color=color, lw=0.8, alpha=0.6)
                ax.plot(line, gold, color=color, label=f"{pairs:,.0f} pairs, accuracy {np.mean([r['accuracy'] for r in about[size, count]]):.0%}")
                if turn < furthest:
                    ax.plot(turn, basis(way, np.array([turn]))[0] @ [alpha, -beta], "*", color=color, ms=13, mec="black", mew=0.6)
                fits.append({"way": way, "size": size, "prompts": int(count), "pairs": round(pairs), "seeds": len(seeds), "alpha": alpha, "alpha_ci": alpha_ci, "beta": beta, "beta_ci": beta_ci,
                             "turn_d": turn, "turned": sum(turning(way, *ab) < d.max() for ab, (d, *_) in zip(each, seeds)), "furthest_d": furthest,
                             "rms": np.mean([misfit(way, d, g) for d, _, g in seeds]), "rms_other_form": np.mean([misfit({"PPO": "best of n", "best of n": "PPO"}[way], d, g) for d, _, g in seeds]),
                             **dict(zip(("gold_best", "gold_best_ci"), lib.interval([g.max() for _, _, g in seeds]))), **dict(zip(("best_d", "best_d_ci"), lib.interval([d[g.argmax()] for d, _, g in seeds]))), "gold_end": np.mean([g[-1] for _, _, g in seeds]), "proxy_end": np.mean([p[-1] for _, p, _ in seeds])})
            if not any(found.get((way, size, count)) for count in counts):
                ax.axis("off")      # not run yet
                continue
            ax.axhline(0, color="black", lw=0.8)
            ax.set_title(f"{way}{', β = 0' if way == 'PPO' else ''}; reward model of {'0.8' if size == 'tiny' else '0.03'}M parameters")
            ax.set_xlabel("d = √KL to SFT, √nats an answer")
            ax.set_ylabel("above SFT, in units of the gold score")
            ax.legend(loc="lower left", title="reward model trained on", title_fontsize=8)
    fig.suptitle("The reward model's score (dashed) rises on where the truth (solid: fit, dots: seeds) turns (★)\nMore comparisons: a higher turning point, further out")
    lib.finish(fig, lib.place(args, "overoptimise.png"))
    with replacing(lib.place(args, "overoptimise.csv")) as f:
        f.write(",".join(fits[0]) + "\n" + "".join(",".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in r.values()) + "\n" for r in fits))
    for r in fits:
        print(f"{r['way']:10s} {r['size']:6s}{r['pairs']:7,d} pairs: α {r['alpha']:.3f} ± {r['alpha_ci']:.3f}, β {r['beta']:.3f} ± {r['beta_ci']:.3f}, turns at d = {r['turn_d']:.2f} "
              f"({r['turned']} of {r['seeds']} seeds turned by {r['furthest_d']:.1f}), misfit {r['rms']:.3f} (the other form {r['rms_other_form']:.3f});"
              f" measured best {r['gold_best']:+.3f} ± {r['gold_best_ci']:.3f} at d = {r['best_d']:.2f} ± {r['best_d_ci']:.2f}; at the end gold {r['gold_end']:+.3f}, proxy {r['proxy_end']:+.3f}")


def main():
    args = lib.arguments(__doc__, 3, ("--sizes", {"default": ",".join(SIZES), "help": "of the reward model"}))
    counts = [8, PROMPTS[-1]] if args.quick else PROMPTS
    n_prompts, samples, ns = (10, 16, [1, 4, 16]) if args.quick else (128, SAMPLES, NS)
    for size in args.sizes.split(","):
        jobs = [((size, seed), lambda size=size, seed=seed: bon_job(args, seed, size, counts, n_prompts, samples, ns)) for seed in args.seeds]
        bon = lib.collect(args, lib.place(args, "overoptimise_bon.csv"), jobs, ["size", "seed"])
        jobs = [((size, count, seed), lambda size=size, count=count, seed=seed: ppo_job(args, seed, size, count)) for seed in args.seeds for count in counts]
        ppo = lib.collect(args, lib.place(args, "overoptimise_ppo.csv"), jobs, ["size", "prompts", "seed"])
    draw(args, bon, ppo, [s for s in SIZES if any(r["size"] == s for r in bon)], counts)


if __name__ == "__main__":
    lib.common.entry(main)

"""
Over-optimisation: the reward model's score still rises where the truth falls (Gao et al. 2022).

    python experiments/overoptimise.py              # 3 seeds
    python experiments/overoptimise.py --quick

Writes overoptimise_bon.csv, overoptimise_ppo.csv, overoptimise.csv (the fits), overoptimise.png.

Reward models of two sizes (0.8 and 0.03 million parameters without embeddings) are trained on three
numbers of comparisons, and optimised against in two ways from the same SFT model: best of n
answers, and PPO without a KL penalty. Against d = √KL the gold score is fitted by Gao et al.'s
forms, d(α − βd) for best of n and d(α − β ln d) for RL, for each seed by itself. Coefficients are
means over seeds with 95 % intervals by Student's t.

Best of n's KL is estimated from 256 answers (`best_of_kl`).

Scores are made comparable as Gao et al. do: both are 0 on average on SFT's answers, and a reward
model's is multiplied by the factor with which its differences, as logits, best predict
(cross-entropy) labels that the truth would give. The unit is that of the gold score, on which a
labeler prefers the better of two answers with probability σ(3.76 × difference).
"""

import csv
import json
import math
import os

import lib

import numpy as np
import torch
from common import pad
from comparisons import sample_answers
from data import meaning_of, replacing
from data.text import read_texts
from health import heldout_metrics
from plumbing.checkpoint import load
from plumbing.command_line import entry
from plumbing.run import read_log
from rollout import read_prompts, scorer

SIZES = ["tiny", "small"]
PROMPTS = [600, 2700, 12000]  # with comparisons of four answers each, 4.1 pairs a prompt
SAMPLES = 256
NS = [2**i for i in range(9)]
LOGIT = 1.702 / (0.32 * 2**0.5)  # judge.py's noise: Φ(x / (0.32 √2)) ≈ σ(3.76 x)
# far from SFT in a minute; no average of weights, since the policy itself is measured
RUN = ["--beta=0", "--ptx_coef=0", "--ema=0", "--lr=5e-4", "--iterations=28", "--eval_every=2"]
# the loss on pretraining text is not used here
NO_TEXT = """
from data.text import Text
Text.loss = lambda *a, **k: (0.0, 0.0)"""


def small_sft(args):
    """An SFT model of 28 thousand parameters, where the small reward models start → its path."""
    if args.quick:
        return lib.checkpoints(args, 1, "sft") + "/sft.pt"
    out = "out/experiments/small"
    flags = ["--size=smoke", "--no-muon", "--steps=2400", "--batch=32", "--lr=4e-3"]
    sft_flags = ["--size=smoke", "--no-muon", "--epochs=2", "--demonstrations=0", "--lr=3e-3"]
    with lib.lock:
        lib.stage(args, "pretrain", out, 1337, *flags)
        lib.stage(args, "sft", out, 1337, *sft_flags, f"--base={out}/pretrain.pt")
    return out + "/sft.pt"


FEWER = """
all_of = comparisons.sampled_comparisons
def sampled_comparisons(*a):
    rows = enumerate(all_of(*a))
    return [r for i, r in rows if i < {prompts} or r["split"] == "heldout"]
comparisons.sampled_comparisons = sampled_comparisons
"""
SMALL = """
small = checkpoint.load('{path}')
Run.load_model = lambda run, stage: checkpoint.model_from(small, run.device, run.dtype)"""


def reward_model(args, seed, size, prompts):
    """The folder with the reward.pt of this size on the comparisons of so many prompts.

    All reward models of a seed learn from one set of answers.
    """
    source = lib.checkpoints(args, seed)
    if (size, prompts) == (SIZES[0], PROMPTS[-1]):
        return source
    out = lib.scratch(args, f"reward/{size}-{prompts}-{seed}")
    lib.variant(source, out, "sft.pt", "comparisons.jsonl")
    patch, flags = FEWER.format(prompts=prompts), []
    if size == "small":
        patch += SMALL.format(path=small_sft(args))
        flags = ["--lr=2e-3"]
    lib.stage(args, "reward", out, seed, *flags, patch=patch)
    return out


# ---- best of n ----


def best_of(scores, gold, ns):
    """Mean proxy and gold score of the answer with the highest score among n.

    The mean is over all subsets of n of the given answers (N,): the i-th lowest is the best of a
    subset with probability C(i − 1, n − 1) / C(N, n). Equal scores share their gold.
    """
    values, which = np.unique(scores, return_inverse=True)
    gold = (np.bincount(which, gold) / np.bincount(which))[which]
    order = np.argsort(scores, kind="stable")
    i, N = np.arange(1, len(scores) + 1), len(scores)
    lgamma, found = np.vectorize(math.lgamma), []
    for n in ns:
        log_choose = lgamma(i) - math.lgamma(n) - lgamma(np.maximum(i - n + 1, 1))
        log_all = math.lgamma(N + 1) - math.lgamma(n + 1) - math.lgamma(N - n + 1)
        weights = np.exp(np.where(i >= n, log_choose, -np.inf) - log_all)
        found.append((weights @ scores[order], weights @ gold[order]))
    return found


def best_of_kl(scores, ns):
    """KL from the best of n answers to a single one, in nats, for each n; scores (N,) of answers.

    An answer y is the best of n with probability P(y) = F(y)ⁿ − F⁻(y)ⁿ, where F(y) is the share of
    answers that score at most what y does, and F⁻(y) of those that score less. A single answer is y
    with probability F(y) − F⁻(y), so KL = Σ P ln(P / (F − F⁻)). Answers with the same score count
    as one. Where all N differ it can't exceed ln N, however large n is.
    """
    _, counts = np.unique(scores, return_counts=True)
    upto, found = np.cumsum(counts) / len(scores), []
    below = upto - counts / len(scores)
    for n in ns:
        best = upto**n - below**n
        there = best > 0  # a small power may be rounded to 0
        found.append(float(best[there] @ np.log((best / (upto - below))[there])))
    return found


def calibration(scores, gold):
    """The factor c for which σ(c Δscore) is nearest to the labels σ(LOGIT Δgold).

    Nearest by cross-entropy, over pairs of answers to a prompt. scores, gold: lists of arrays, one
    a prompt.
    """
    rng = np.random.default_rng(0)
    pairs = [(i, *rng.integers(len(s), size=2)) for i, s in enumerate(scores) for _ in range(100)]
    ds, dg = (np.array([x[i][a] - x[i][b] for i, a, b in pairs]) for x in (scores, gold))
    label, grid = 1 / (1 + np.exp(-LOGIT * dg)), np.exp(np.linspace(np.log(0.01), np.log(30), 400))
    return float(grid[np.argmin([np.mean(np.logaddexp(0, c * ds) - label * c * ds) for c in grid])])


@torch.no_grad()
def scores_of(model, prompt, answers, run):
    """Scores (n,) of answers (token lists) to a prompt (tokens). Equal answers are scored once."""
    unique = sorted({tuple(a) for a in answers})
    tokens, lengths = pad([prompt + list(a) for a in unique], run.vocab.pad)
    parts = torch.arange(len(tokens)).split(128)
    scores = torch.cat([model.score(tokens[i], lengths[i]) for i in parts])
    number = {a: i for i, a in enumerate(unique)}
    return scores.double().numpy()[[number[tuple(a)] for a in answers]]


def sampled(args, seed, n_prompts, samples, run):
    """Held-out prompts and a seed's SFT's answers to each (token lists), sampled once."""
    rows = lib.heldout(run, n_prompts)
    path = lib.scratch(args, f"overoptimise/answers-{n_prompts}-{samples}-{seed}.json")
    if not os.path.exists(path):
        prompts = [run.vocab.prompt(r["prompt"]) for r in rows]
        sft = lib.network(f"{lib.checkpoints(args, seed, 'sft')}/sft.pt")
        answers = sample_answers(sft, prompts, run, samples, "best of n")
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
    gold = []
    for row, found in zip(rows, answers):
        texts = map(run.vocab.decode, found)
        gold.append(np.array([run.judge.gold(meaning_of(row), t)["gold"] for t in texts]))
    result = []
    for count in counts:
        path = f"{reward_model(args, seed, size, count)}/reward.pt"
        model, results = lib.network(path), load(path)["results"]
        scores = [scores_of(model, p, found, run) for p, found in zip(prompts, answers)]
        factor, centre = calibration(scores, gold) / LOGIT, np.mean([s.mean() for s in scores])
        each = [best_of(factor * (s - centre), g, ns) for s, g in zip(scores, gold)]
        same = {"pairs": results["pairs"], "accuracy": results["accuracy"], "factor": factor}
        kls = np.mean([best_of_kl(s, ns) for s in scores], 0)
        for n, (proxy, truth), kl in zip(ns, np.array(each).mean(0), kls):
            row = {"prompts": count, "n": n, "proxy": float(proxy), "gold": float(truth)}
            result.append({**row, **same, "kl": float(kl)})
    return result


# ---- PPO ----


def sft_metrics(source, folder, seed):
    """SFT's held-out metrics, with the prompts and the noise of the PPO run's own evaluation."""
    run = lib.world()
    run.config.seed = seed
    sft, model = lib.network(f"{source}/sft.pt"), lib.network(f"{folder}/reward.pt")
    text = read_texts(run, sft.config.block_size)[1]
    _, rows = read_prompts(run)
    return heldout_metrics(sft, rows, text, scorer(run, model, None, 128), run)


def ppo_job(args, seed, size, count):
    """PPO without KL penalty against a reward model → rows along the run."""
    source, folder = lib.checkpoints(args, seed), reward_model(args, seed, size, count)
    out = lib.variant(source, lib.scratch(args, f"overoptimise/{size}-{count}-{seed}"), "sft.pt")
    lib.variant(folder, out, "reward.pt")
    lib.stage(args, "ppo", out, seed, *([] if args.quick else RUN), patch=NO_TEXT)
    return along(sft_metrics(source, folder, seed), read_log(f"{out}/ppo.jsonl"))


def along(before, log):
    """SFT's held-out metrics and a run's log → KL, score and gold along it, from SFT on.

    Gold is measured after the update and KL before it, so take the next rollout's KL, averaged with
    its neighbours.
    """
    kl = [row["objective/kl"] for row in log]
    result = [{"episode": 0, "kl": 0.0, "score": before["eval/score"], "gold": before["eval/gold"]}]
    for i, row in enumerate(log[:-1]):
        if "eval/gold" in row:
            near = max(0.0, float(np.mean(kl[i : i + 3])))
            scores = {"score": row["eval/score"], "gold": row["eval/gold"]}
            result.append({"episode": row["episode"], "kl": near, **scores})
    return result


# ---- fits and figure ----


def gold_at(kl, path):
    """Gold where a run first passed a KL, between its two measurements around it; else NaN.

    path: rows of a run with kl and gold, in order.
    """
    for before, after in zip(path, path[1:]):
        if before["kl"] <= kl <= after["kl"]:
            share = (kl - before["kl"]) / max(after["kl"] - before["kl"], 1e-9)
            return before["gold"] + share * (after["gold"] - before["gold"])
    return np.nan


def beside(bon, ppo, n=4):
    """Gold that PPO gains up to the KL of the best of n, less what that gains.

    → {(size, prompts): [a number for each seed whose PPO went so far]}
    """
    found = {}
    for best in (r for r in bon if r["n"] == n):
        key = best["size"], best["prompts"]
        one, path = (
            [r for r in rows if (r["size"], r["prompts"], r["seed"]) == (*key, best["seed"])]
            for rows in (bon, ppo)
        )
        if path:
            gain = gold_at(best["kl"], path) - path[0]["gold"]
            found.setdefault(key, []).append(gain - (best["gold"] - one[0]["gold"]))
    return {key: [x for x in each if not np.isnan(x)] or [np.nan] for key, each in found.items()}


def basis(way, d):
    """The two functions of d that Gao et al.'s form multiplies by α and by −β."""
    return np.stack([d, d * d if way == "best of n" else d * np.log(np.maximum(d, 1e-9))], 1)


def fit(way, d, gold):
    """(α, β) by least squares."""
    (alpha, minus_beta), *_ = np.linalg.lstsq(basis(way, d), gold, rcond=None)
    return alpha, -minus_beta


def misfit(way, d, gold):
    """Root mean square of the differences from the fitted form."""
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
        proxy, gold, kl = (np.array([r[k] for r in rows]) for k in ("proxy", "gold", "kl"))
        curve = (np.sqrt(np.maximum(0, kl)), proxy - proxy[0], gold - gold[0])
        found.setdefault(("best of n", size, prompts), []).append(curve)
        rows = [r for r in ppo if (r["size"], r["prompts"], r["seed"]) == (size, prompts, seed)]
        kl, score, gold = (np.array([r[k] for r in rows]) for k in ("kl", "score", "gold"))
        if len(rows):
            curve = (np.sqrt(np.maximum(0, kl)), f * (score - score[0]), gold - gold[0])
            found.setdefault(("PPO", size, prompts), []).append(curve)
    return found


def fitted(way, seeds):
    """The fits to the curves of all seeds, as a row of overoptimise.csv."""
    each = [fit(way, d, gold) for d, _, gold in seeds]
    (alpha, alpha_ci), (beta, beta_ci) = (lib.interval(v) for v in zip(*each))
    turned = sum(turning(way, *ab) < d.max() for ab, (d, *_) in zip(each, seeds))
    other = {"PPO": "best of n", "best of n": "PPO"}[way]
    gold_best, gold_best_ci = lib.interval([g.max() for _, _, g in seeds])
    best_d, best_d_ci = lib.interval([d[g.argmax()] for d, _, g in seeds])
    gold_end, gold_end_ci = lib.interval([g[-1] for _, _, g in seeds])
    return {
        "seeds": len(seeds),
        "alpha": alpha,
        "alpha_ci": alpha_ci,
        "beta": beta,
        "beta_ci": beta_ci,
        "turn_d": turning(way, alpha, beta),
        "turned": turned,
        "furthest_d": max(d.max() for d, *_ in seeds),
        "rms": np.mean([misfit(way, d, g) for d, _, g in seeds]),
        "rms_other_form": np.mean([misfit(other, d, g) for d, _, g in seeds]),
        "gold_best": gold_best,
        "gold_best_ci": gold_best_ci,
        "best_d": best_d,
        "best_d_ci": best_d_ci,
        "gold_end": gold_end,
        "gold_end_ci": gold_end_ci,
        "proxy_end": np.mean([p[-1] for _, p, _ in seeds]),
    }


def draw_curves(ax, way, seeds, row, color, label):
    """One reward model's curves: the proxy, the gold score of each seed, and its fit."""
    line = np.linspace(0, np.median([d.max() for d, *_ in seeds]), 200)
    coefficients, turn = [row["alpha"], -row["beta"]], row["turn_d"]
    for d, proxy, gold in seeds:
        ax.plot(d, gold, ".", color=color, ms=4, alpha=0.6)
        ax.plot(d, proxy, "--", color=color, lw=0.8, alpha=0.6)
    ax.plot(line, basis(way, line) @ coefficients, color=color, label=label)
    if turn < row["furthest_d"]:
        top = basis(way, np.array([turn]))[0] @ coefficients
        ax.plot(turn, top, "*", color=color, ms=13, mec="black", mew=0.6)


def draw_panel(ax, way, size, counts, found, bon):
    """One way and size, for all numbers of comparisons → rows of overoptimise.csv"""
    rows = []
    for color, count in zip(["#d55e00", "#e69f00", "#0072b2"][-len(counts) :], counts):
        seeds = found.get((way, size, count), [])
        if not seeds:
            continue
        keys = ("size", "prompts", "n")
        about = [r for r in bon if tuple(r[k] for k in keys) == (size, count, 1)]
        pairs, accuracy = (np.mean([r[k] for r in about]) for k in ("pairs", "accuracy"))
        row = fitted(way, seeds)
        label = f"{pairs:,.0f} pairs, accuracy {accuracy:.0%}"
        draw_curves(ax, way, seeds, row, color, label)
        key = {"way": way, "size": size, "prompts": int(count), "pairs": round(pairs)}
        rows.append({**key, **row})
    if not rows:
        ax.axis("off")  # not run yet
        return rows
    ax.axhline(0, color="black", lw=0.8)
    millions = "0.8" if size == "tiny" else "0.03"
    beta = ", β = 0" if way == "PPO" else ""
    ax.set_title(f"{way}{beta}; reward model of {millions}M parameters")
    ax.set_xlabel("d = √KL to SFT, √nats an answer")
    ax.set_ylabel("above SFT, in units of the gold score")
    ax.legend(loc="lower left", title="reward model trained on", title_fontsize=8)
    return rows


def draw(args, bon, ppo, sizes, counts):
    """The figure → rows of overoptimise.csv"""
    found, fits = curves(bon, ppo), []
    fig, axes = lib.figure(2, len(sizes), size=(5, 3.6))
    for column, way in zip(axes.T, ["best of n", "PPO"]):
        for ax, size in zip(column, sizes):
            fits += draw_panel(ax, way, size, counts, found, bon)
    fig.suptitle(
        "The reward model's score (dashed) still rises where the truth "
        "(solid: fit, dots: seeds) turns (★)\n"
        "More comparisons: a higher turning point, further out"
    )
    lib.finish(fig, lib.place(args, "overoptimise.png"))
    return fits


def describe(r):
    print(
        f"{r['way']:10s} {r['size']:6s}{r['pairs']:7,d} pairs: "
        f"α {r['alpha']:.3f} ± {r['alpha_ci']:.3f}, β {r['beta']:.3f} ± {r['beta_ci']:.3f}, "
        f"turns at d = {r['turn_d']:.2f} ({r['turned']} of {r['seeds']} seeds turned by "
        f"{r['furthest_d']:.1f}), misfit {r['rms']:.3f} (the other form "
        f"{r['rms_other_form']:.3f}); measured best {r['gold_best']:+.3f} ± "
        f"{r['gold_best_ci']:.3f} at d = {r['best_d']:.2f} ± {r['best_d_ci']:.2f}; "
        f"at the end gold {r['gold_end']:+.3f} ± {r['gold_end_ci']:.3f}, "
        f"proxy {r['proxy_end']:+.3f}"
    )


def main():
    flag = {"default": ",".join(SIZES), "help": "of the reward model"}
    args = lib.arguments(__doc__, 3, ("--sizes", flag))
    counts = [8, PROMPTS[-1]] if args.quick else PROMPTS
    settings = (10, 16, [1, 4, 16]) if args.quick else (128, SAMPLES, NS)

    def best_of_n(size, seed):
        return bon_job(args, seed, size, counts, *settings)

    def ppo_run(size, count, seed):
        return ppo_job(args, seed, size, count)

    for size in args.sizes.split(","):
        keys = [(size, seed) for seed in args.seeds]
        jobs = [(k, lambda k=k: best_of_n(*k)) for k in keys]
        bon = lib.collect(args, lib.place(args, "overoptimise_bon.csv"), jobs, ["size", "seed"])
        keys = [(size, count, seed) for seed in args.seeds for count in counts]
        jobs = [(k, lambda k=k: ppo_run(*k)) for k in keys]
        path = lib.place(args, "overoptimise_ppo.csv")
        ppo = lib.collect(args, path, jobs, ["size", "prompts", "seed"])
    fits = draw(args, bon, ppo, [s for s in SIZES if any(r["size"] == s for r in bon)], counts)
    with replacing(lib.place(args, "overoptimise.csv")) as f:
        writer = csv.DictWriter(f, list(fits[0]), lineterminator="\n")
        writer.writeheader()
        for row in fits:
            short = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()}
            writer.writerow(short)
    for row in fits:
        describe(row)
    for (size, prompts), each in beside(bon, ppo).items():
        mean, half = lib.interval(each)
        where = f"{size}, {prompts:,.0f} prompts, at the KL of the best of 4"
        print(f"{where}: PPO gains {mean:+.3f} ± {half:.3f} of gold more")


if __name__ == "__main__":
    entry(main)

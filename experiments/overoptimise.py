"""
Over-optimisation: the reward model's score goes on rising where the truth falls (Gao et al. 2022).

    python experiments/overoptimise.py              # 3 seeds: overoptimise_bon.csv, overoptimise_ppo.csv, overoptimise.csv (the fits), overoptimise.png
    python experiments/overoptimise.py --quick

Reward models of two sizes (0.8 and 0.03 million parameters without embeddings) are trained on three numbers of
comparisons, and optimised against in two ways from the same SFT model: best of n answers, KL = ln n − (n − 1)/n exactly,
and PPO without a KL penalty. Against d = √KL the gold score is fitted by Gao et al.'s forms, d(α − βd) for best of n and
d(α − β ln d) for RL; 95 % intervals by bootstrap over seeds and prompts.

Scores are made comparable as Gao et al. do: both are 0 on average on SFT's answers, and a reward model's is multiplied by
the factor with which its differences, as logits, best predict (cross-entropy) labels that the truth would give; the unit
is that of the gold score, on which a labeler prefers the better of two answers with probability σ(3.76 × difference).
"""
import math
import os

import lib
import numpy as np
import torch
from ppo import heldout_metrics
from common import generator, pad, read_log
from data import UserError, read_heldout
from model import ScalarGPT
from reward import sample_answers

SIZES = ["tiny", "small"]
PROMPTS = [600, 2700, 12000]        # with comparisons of four answers each, 4.1 pairs a prompt
SAMPLES = 256
NS = [2 ** i for i in range(9)]
GROUPS = 5                          # of prompts, which the bootstrap draws from
LOGIT = 1.702 / (0.32 * 2 ** 0.5)   # judge.py's noise: Φ(x / (0.32 √2)) ≈ σ(3.76 x)
RUN = ["--beta=0", "--ptx_coef=0", "--ema=0", "--lr=1e-3", "--iterations=40", "--eval_every=2"]      # far from SFT, in few minutes; no average of weights: the policy itself is measured
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


def bon_job(args, seed, sizes, counts, n_prompts, samples, ns):
    """Best of n against each of a seed's reward models → rows."""
    run = lib.world()
    run.config.seed = seed
    rows = lib.heldout(run, n_prompts)
    prompts = [run.vocab.prompt(r["prompt"]) for r in rows]
    answers = sample_answers(lib.network(f"{lib.checkpoints(args, seed, 'sft')}/sft.pt"), prompts, run, samples, "best of n")
    unique = [sorted({tuple(a) for a in found}) for found in answers]
    which = [[u.index(tuple(a)) for a in found] for u, found in zip(unique, answers)]
    gold = [np.array([run.judge.gold(r["prompt"], run.vocab.decode(u))["gold"] for u in us])[w] for r, us, w in zip(rows, unique, which)]
    result = []
    for size in sizes:
        for count in counts:
            folder = reward_model(args, seed, size, count)
            checkpoint = lib.common.load(f"{folder}/reward.pt")
            model = lib.common.model_from(checkpoint, ScalarGPT)
            scores = [scores_of(model, p, [list(u) for u in us], run)[w] for p, us, w in zip(prompts, unique, which)]
            factor, centre = calibration(scores, gold) / LOGIT, np.mean([s.mean() for s in scores])
            for group in range(GROUPS):
                curves = np.array([best_of(factor * (s - centre), g, ns) for s, g in list(zip(scores, gold))[group::GROUPS]]).mean(0)
                result += [{"size": size, "prompts": count, "group": group, "n": n, "proxy": float(p), "gold": float(g), "pairs": checkpoint["results"]["pairs"],
                            "accuracy": checkpoint["results"]["accuracy"], "factor": factor} for n, (p, g) in zip(ns, curves)]
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


def main():
    args = lib.arguments(__doc__, 3)
    counts = [8, PROMPTS[-1]] if args.quick else PROMPTS
    n_prompts, samples, ns = (10, 16, [1, 4, 16]) if args.quick else (200, SAMPLES, NS)
    jobs = [((size, count, seed), lambda size=size, count=count, seed=seed: ppo_job(args, seed, size, count)) for seed in args.seeds for size in SIZES for count in reversed(counts)]
    ppo = lib.collect(args, lib.place(args, "overoptimise_ppo.csv"), jobs, ["size", "prompts", "seed"])
    bon = lib.collect(args, lib.place(args, "overoptimise_bon.csv"), [((seed,), lambda seed=seed: bon_job(args, seed, SIZES, counts, n_prompts, samples, ns)) for seed in args.seeds], ["seed"])


if __name__ == "__main__":
    lib.common.entry(main)

"""
Is a run healthy? Its log against those of healthy runs.

    python experiments/compare.py out/village/ppo.jsonl
    python experiments/compare.py out/village/ppo.jsonl mine.png     # and a figure with the bands

For each metric it says whether the run lies where one more run of the default settings may lie, and
if not, since when and what that often means. The bands are of `python ppo.py` on the village: other
data or sizes have other bands.
"""

import bands as b

import numpy as np
from data import UserError
from plumbing.command_line import Parser, entry
from plumbing.run import read_log

# metric: what it may mean to be above, and below
MEANING = {
    "objective/scores": (
        "often the reward model is being exploited: look at eval/gold and at answers",
        "the policy does not learn what the reward model likes: steps too small (--lr), "
        "--beta too large, advantages of the wrong sign",
    ),
    "eval/score": (
        "as objective/scores: see whether eval/gold rose as well",
        "as objective/scores; if only this one is low, --ema holds the average back or "
        "evaluation runs another model",
    ),
    "eval/gold": (
        "better than the default: good, if the score and the answers say so too",
        "answers are worse than the score says (over-optimisation), or SFT or the reward model "
        "was already weak: see reward.jsonl",
    ),
    "objective/kl": (
        "the policy runs away from SFT: --beta too small, --lr too large, or the KL is not in "
        "the reward (pytest -k kl)",
        "the policy hardly moves: --lr or --iterations too small, --beta too large; exactly 0: "
        "the reference follows the policy",
    ),
    "objective/entropy": (
        "the policy gets less sure of itself: steps too large, or the sign of the KL is wrong "
        "(pytest -k kl)",
        "the policy gives the same answer to every prompt: --beta too small, --lr too large",
    ),
    "policy/kl_k3": (
        "an update goes far: --lr or --ppo_epochs too large, or the update's log-probabilities are "
        "not the rollout's (pytest -k first_minibatch)",
        "updates are tiny: --lr too small, or gradients do not arrive",
    ),
    "policy/ratio_outside": ("as policy/kl_k3", "as policy/kl_k3"),
    "val/ratio": (
        "the update's log-probabilities are not the rollout's: mask, padding, temperature, "
        "dropout (pytest -k first_minibatch)",
        "steps so large that the answers just sampled become unlikely, or the update's "
        "log-probabilities are not the rollout's",
    ),
    "val/explained_variance": (
        "the critic knows more than usual: an easier reward, or fewer kinds of prompts",
        "the critic learns little: --critic_lr, not started from the reward model, or rewards on "
        'the wrong token (pytest -k "gae or value")',
    ),
    "response/length": (
        "answers grow: the reward model likes length, or EOS is not learnt (pytest -k eos)",
        "answers shrink: short ones score better, or the score is before the end (pytest -k last)",
    ),
    "response/eos_fraction": (
        "",
        "answers are cut off: no EOS among SFT's targets, or the score is not on the last token "
        '(pytest -k "eos or last")',
    ),
    "loss/ptx_avg": (
        "pretraining text is being forgotten: --ptx_coef too small, or steps too large",
        "other pretraining text, or a better base",
    ),
    "eval/pretrain_loss": (
        "the alignment tax: --ptx_coef too small or 0, or steps too large",
        "other pretraining text, or a better base",
    ),
}


def row_of(log, metric, episodes, x, wide):
    """One metric of a run beside the bands: prints its line.

    → None if it has no whole block, else (distances, episodes) of its blocks.
    """
    mine, name = b.blocks(log, metric), b.METRICS[metric][0]
    both = [i for i, e in enumerate(episodes) if e in mine]
    if not both:
        print(f"{name:40s}    not in the log, or not a whole block of it")
        return None
    y, x, episodes = np.array([mine[episodes[i]] for i in both]), x[:, both], episodes[both]
    far = b.distance(y, x, metric)
    # the last block, or where the run is furthest out
    at = len(far) - 1 if np.abs(far).max() <= wide else int(np.abs(far).argmax())
    low, high = (ends[at] for ends in b.healthy(x, metric, wide))
    between, inside = f"{low:.5g} to {high:.5g}", "in" if abs(far[at]) <= wide else "OUT"
    print(f"{name:40s}{episodes[at]:8,.0f}{y[at]:12.5g}{between:>24s}  {inside}")
    return far, episodes


def explain(metric, far, episodes, wide):
    """What it often means that a metric is out."""
    since, worst = episodes[np.abs(far) > wide][0], far[np.abs(far).argmax()]
    print(
        f"{metric} is too {'high' if worst > 0 else 'low'}, since episode {since:,.0f}, by up to "
        f"{abs(worst) / wide:.1f} times what luck explains: {MEANING[metric][int(worst < 0)]}."
    )


def main():
    parser = Parser(__doc__)
    parser.add_argument("log", metavar="LOG", help="the ppo.jsonl of a run")
    parser.add_argument("figure", metavar="PNG", nargs="?", help="where to draw it in the bands")
    args = parser.parse_args()
    path, log, bands = args.log, read_log(args.log), b.read()
    if not log or "episode" not in log[-1]:
        raise UserError(f"{path} has no line of a PPO run in it: give the ppo.jsonl of a run")
    wide, seeds = b.limit(bands), len(next(iter(bands.values()))[1])
    print(
        f"{path}, {log[-1]['episode']:,} episodes, against {seeds} healthy runs, "
        f"in blocks of {b.BLOCK:,} episodes\n"
    )
    print(f"{'':40s}{'episode':>8s}{'yours':>12s}{'a healthy run':>24s}")
    found = {metric: row_of(log, metric, *band, wide) for metric, band in bands.items()}
    judged = {metric: row for metric, row in found.items() if row is not None}
    if not judged:
        raise UserError(f"{path} ends before {b.BLOCK:,} episodes: nothing can be compared yet")
    print()
    out = [(m, *row) for m, row in judged.items() if np.abs(row[0]).max() > wide]
    for metric, far, episodes in sorted(out, key=lambda o: -np.abs(o[1]).max()):
        explain(metric, far, episodes, wide)
    if out:
        print(f"{len(out)} of {len(judged)} metrics are out.")
    else:
        print(f"All {len(judged)} metrics lie where a healthy run's may.")
    print(
        f"(A healthy run is called unhealthy about once in {seeds + 1} times: the bands are as "
        f"wide as the furthest of the {seeds} is from the others.)"
    )
    if args.figure:
        b.draw(bands, args.figure, log, path)


if __name__ == "__main__":
    entry(main)

"""
Is a run healthy? Its log against ten healthy ones.

    python experiments/compare.py out/village/ppo.jsonl
    python experiments/compare.py out/village/ppo.jsonl mine.png     # and a figure with the bands

For each metric it says whether the run lies where one more run of the default settings may lie, and if not, since when
and what that often means. The bands are of `python ppo.py` on the village: another data set or size has others.
"""
import sys

import bands as b
import numpy as np
from common import entry, read_log
from data import UserError

# metric: what it may mean to be above, and below
MEANING = {
    "objective/scores": ("a score much above the others' is often a reward model that is being exploited: look at eval/gold and at answers",
                         "the policy does not learn what the reward model likes: steps too small (--lr), --beta too large, advantages of the wrong sign"),
    "eval/score": ("as objective/scores: see whether eval/gold rose as well", "as objective/scores; if only this one is low, --ema holds the average back or evaluation runs another model"),
    "eval/gold": ("better than the default: good, if the score and the answers say so too", "answers are worse than the score says (over-optimisation), or SFT or the reward model was already weak: see reward.jsonl"),
    "objective/kl": ("the policy runs away from SFT: --beta too small, --lr too large, or the KL is not in the reward (pytest -k kl)",
                     "the policy hardly moves: --lr or --iterations too small, --beta too large; exactly 0: the reference follows the policy"),
    "objective/entropy": ("the policy gets less sure of itself: steps too large, or the sign of the KL is wrong (pytest -k kl)",
                          "the policy answers the same whatever is asked: --beta too small, --lr too large"),
    "policy/approxkl_avg": ("an update goes far: --lr or --epochs too large, or the update's log-probabilities are not the rollout's (pytest -k first_minibatch)",
                            "updates are tiny: --lr too small, or gradients do not arrive"),
    "policy/clipfrac_avg": ("as policy/approxkl_avg", "as policy/approxkl_avg"),
    "val/ratio": ("the update's log-probabilities are not the rollout's: mask, padding, temperature, dropout (pytest -k first_minibatch)",
                  "steps so large that the answers just sampled become unlikely, or the update's log-probabilities are not the rollout's"),
    "val/explained_variance": ("the critic knows more than usual: an easier reward, or fewer kinds of prompts", "the critic learns little: --critic_lr, not started from the reward model, or rewards on the wrong token (pytest -k \"gae or value\")"),
    "response/length": ("answers grow: the reward model likes length, or EOS is not learnt (pytest -k eos)", "answers shrink: short ones score better, or the score is before the end (pytest -k last)"),
    "response/eos_fraction": ("", "answers are cut off: no EOS among SFT's targets, or the score is not on the last token (pytest -k \"eos or last\")"),
    "loss/ptx_avg": ("pretraining text is being forgotten: --ptx_coef too small, or steps too large", "other pretraining text, or a better base"),
    "eval/pretrain_loss": ("the alignment tax: --ptx_coef too small or 0, or steps too large", "other pretraining text, or a better base"),
}


def main():
    if not 2 <= len(sys.argv) <= 3 or sys.argv[1].startswith("-"):
        raise UserError("give the log of a run: python experiments/compare.py out/village/ppo.jsonl")
    log, bands = read_log(sys.argv[1]), b.read()
    if not log or "episode" not in log[-1]:
        raise UserError(f"{sys.argv[1]} has no line of a PPO run in it: give the ppo.jsonl of a run")
    wide, out, judged = b.limit(bands), [], 0
    seeds = len(next(iter(bands.values()))[1])
    print(f"{sys.argv[1]}, {log[-1]['episode']:,} episodes, against {seeds} healthy runs, in blocks of {b.BLOCK:,} episodes\n")
    print(f"{'':40s}{'episode':>8s}{'yours':>12s}{'a healthy run':>24s}")
    for metric, (episodes, x) in bands.items():
        mine = b.blocks(log, metric)
        both = [i for i, e in enumerate(episodes) if e in mine]
        if not both:
            print(f"{b.METRICS[metric][0]:40s}    not in the log, or not a whole block of it")
            continue
        judged += 1
        y, x, episodes = np.array([mine[episodes[i]] for i in both]), x[:, both], episodes[both]
        far = b.distance(y, x, metric)
        worst = len(far) - 1 if np.abs(far).max() <= wide else int(np.abs(far).argmax())     # the last block, or where it is furthest out
        low, high = (ends[worst] for ends in b.healthy(x, metric, wide))
        print(f"{b.METRICS[metric][0]:40s}{episodes[worst]:8,.0f}{y[worst]:12.5g}{f'{low:.5g} to {high:.5g}':>24s}  {'in' if abs(far[worst]) <= wide else 'OUT'}")
        if abs(far[worst]) > wide:
            out.append((metric, far, episodes))
    if not judged:
        raise UserError(f"{sys.argv[1]} ends before {b.BLOCK:,} episodes: there is nothing to compare yet")
    print()
    for metric, far, episodes in sorted(out, key=lambda o: -np.abs(o[1]).max()):
        since, worst = episodes[np.abs(far) > wide][0], far[np.abs(far).argmax()]
        print(f"{metric} is too {'high' if worst > 0 else 'low'}, since episode {since:,.0f}, by up to {abs(worst) / wide:.1f} times what luck explains: {MEANING[metric][int(worst < 0)]}.")
    print(f"{len(out)} of {judged} metrics are out." if out else f"All {judged} metrics lie where a healthy run's may.")
    print(f"(A healthy run is called unhealthy about once in {seeds + 1} times: the bands are as wide as the furthest of the {seeds} is from the others.)")
    if len(sys.argv) == 3:
        b.draw(bands, sys.argv[2], log, sys.argv[1])


if __name__ == "__main__":
    entry(main)

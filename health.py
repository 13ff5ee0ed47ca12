"""
Is a PPO run healthy? Its numbers under TRL's names, and what it should not do.

README.md has the table of healthy ranges. Not needed to understand PPO: skip it on first reading.
"""
import torch

from common import generator, masked, masked_mean
from data import UserError, load_judge, meaning_of
from rollout import sample_rollout


def check_config(config):
    """Raise UserError for settings of ppo.py that can't work."""
    if config.top_k or config.top_p != 1.0:
        raise UserError("--top_k and --top_p can't be used in rollouts: the sampled distribution "
                        "would not be the one that is scored. They are for talking: "
                        "python chat.py --top_k=…")
    if config.episodes % config.minibatches:
        raise UserError(f"--episodes={config.episodes} does not divide into "
                        f"--minibatches={config.minibatches}")
    if config.reward and config.episodes < 2:
        raise UserError(f"--episodes={config.episodes}: give 2 or more, since a function's scores "
                        f"are brought to standard deviation 1 on the first rollout")
    if config.reward and config.round > 1:
        raise UserError(f"--reward={config.reward} --round={config.round}: a further round is for "
                        f"new comparisons, and a function needs none; give more --iterations")


def check_ratio(max_logratio, dtype):
    """Raise UserError if the first minibatch's largest |log ρ| is not 0, up to rounding.

    Nothing has been updated yet. bf16 has 8 bits: numbers near −20 are 1/8 apart, so two ways to
    compute a log-probability may differ by that much.
    """
    bound = 1e-4 if dtype == torch.float32 else 0.25
    if not max_logratio < bound:        # NaN is not below it either
        raise UserError(f"on the first minibatch the log ratio reaches {max_logratio:.2g}, over "
                        f"{bound:g}: the update computes other log-probabilities than the rollout "
                        f"(dropout on? other padding, mask or temperature?)")


def scale_of(scores, name):
    """[mean, standard deviation] of a function's scores. Raises UserError if they are all equal."""
    if scores.max() == scores.min():
        raise UserError(f"--reward={name} gave all {len(scores)} answers of the first rollout the "
                        f"same score, {scores[0].item():g}: there is nothing to learn from; let it "
                        f"tell such answers apart, or take more --episodes")
    return [scores.mean().item(), scores.std().item()]


def rollout_metrics(rollout, scores, rewards, beta, seconds):
    """Means over a rollout → {name: float}. scores (B,), rewards (B, T), seconds by part."""
    mask, error = rollout.mask, rollout.returns - rollout.values
    # k1, and k3 = exp(−k1) − 1 + k1: http://joschu.net/blog/kl-approx.html
    kl = masked(rollout.logprobs - rollout.ref_logprobs, mask)

    def variance(x):
        return masked_mean((x - masked_mean(x, mask)) ** 2, mask)
    metrics = {
        "objective/kl": kl.sum(1).mean(),
        "objective/kl_k3": masked(torch.expm1(-kl) + kl, mask).sum(1).mean(),
        "objective/entropy": -masked(rollout.logprobs, mask).sum(1).mean(),
        "objective/scores": scores.mean(),
        "objective/non_score_reward": -beta * kl.sum(1).mean(),
        "objective/rlhf_reward": rewards.sum(1).mean(),
        "val/explained_variance": 1 - variance(error) / variance(rollout.returns).clamp(min=1e-8),
        "response/length": mask.sum(1).float().mean(),
        "response/eos_fraction": rollout.has_eos.float().mean()}
    values = torch.stack(list(metrics.values())).tolist()       # one transfer from a GPU
    speed = rollout.mask.sum().item() / seconds["rollout"]
    return {**dict(zip(metrics, values)), "tokens_per_second/rollout": speed,
            **{"seconds/" + name: value for name, value in seconds.items()}}


def heldout_metrics(model, rows, text, raw_scores, run):
    """Score, length, and gold score where there is a judge, of an answer to each held-out row.

    And the loss on the held-out text.
    """
    judge = load_judge(run.folder)
    prompts = [run.vocab.prompt(row["prompt"]) for row in rows]
    rng = generator(run.config.seed, "eval")
    rollout = sample_rollout(model, prompts, run.config, run.vocab, rng)
    metrics = {"eval/score": raw_scores(rollout, rows).mean().item(),
               "eval/length": rollout.mask.sum(1).float().mean().item()}
    if judge:
        marks = [judge.gold(meaning_of(row), answer)["gold"]
                 for row, answer in zip(rows, rollout.texts(run.vocab))]
        metrics["eval/gold"] = sum(marks) / len(marks)
    return metrics | {"eval/pretrain_loss": text.loss(model)[0]}


# (metric, is it wrong, given the first iteration's value, what it means and what to do)
ALARMS = [
    ("objective/kl", lambda now, first: now > 30,
     "the policy runs away from SFT: raise --beta or lower --lr; if the score is flat as well, "
     "pytest -k kl"),
    ("response/eos_fraction", lambda now, first: now < first / 2,
     "answers no longer end by themselves: is EOS among the SFT targets, the score on the last "
     "token? pytest -k \"eos or last\""),
    ("objective/entropy", lambda now, first: now < first / 10,
     "the policy gives the same answer to every prompt: raise --beta or lower --lr; "
     "pytest -k \"whiten or clip\""),
    ("policy/approxkl_avg", lambda now, first: now > 0.1,
     "an update moves the policy far from the rollout's: lower --lr or --ppo_epochs; "
     "pytest -k \"clip or first_minibatch\""),
    ("val/explained_variance", lambda now, first: now < min(-1, first),
     "the critic is worse than a constant: lower --critic_lr; pytest -k \"gae or value\""),
]


def alarms(metrics, state):
    """Sentences about what has just gone wrong. Each alarm is raised once: `state` remembers."""
    state["first"] = state["first"] or {key: metrics[key] for key, *_ in ALARMS}
    sentences = []
    for key, is_wrong, meaning in ALARMS:
        now, first = metrics[key], state["first"][key]
        if key not in state["raised"] and is_wrong(now, first):
            state["raised"].append(key)
            sentences.append(f"warning: {key} is {now:.3g}, {first:.3g} at first: {meaning}")
    return sentences

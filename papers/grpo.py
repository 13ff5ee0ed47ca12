"""
PPO without a critic: several answers to each prompt, and each is judged by the others.

    python papers/grpo.py

GRPO (Shao et al. 2024, DeepSeekMath, section 4.1): an answer's advantage is its score, whitened
among the answers to its prompt; the KL to the reference is a part of the loss. RLOO (Ahmadian et
al. 2024, Back to basics): an answer is one action, the baseline of its reward is the mean of the
other answers' rewards, and the KL is a part of the reward, as in PPO.

Beside them is PPO without a pretraining loss, with as many answers and steps, at 57 thousand
parameters (figure1.py's micro). Losses are token means over the minibatch, as everywhere here;
GRPO's paper takes the mean of each answer first. Left out: its rewards of single steps.
"""
import lib      # first: puts the project on sys.path
import copy
import time
from dataclasses import dataclass
from types import SimpleNamespace

import torch

from common import adamw, generator, masked, masked_mean, update
from data import read_jsonl
from figure1 import tuned
from papers.dpo import SIZE, measured, ppo_flags
from plumbing.checkpoint import load
from plumbing.command_line import entry
from ppo import ema_update, forward_logprobs, penalize_missing_eos, policy_loss, rollout_logprobs
from rollout import reward_scores, sample_rollout

WAYS = ["GRPO", "RLOO", "PPO"]


@dataclass
class Config:
    way: str = "GRPO"
    iterations: int = 40        # this and what follows is as in ppo.py, but for lr and beta
    episodes: int = 256         # answers an iteration
    group: int = 4              # of them to one prompt
    minibatches: int = 4
    lr: float = 2.7e-4
    warmup: int = 10            # iterations, from a tenth
    beta: float = 0.3           # of the KL to the reference
    clip: float = 0.2
    ema: float = 0.95


# ---- the maths. scores (prompts, K): of the K answers to each prompt ----

def group_advantages(scores):
    """(r − mean) / standard deviation (÷ K) of the group: GRPO's Â. 0 where all are equal."""
    centred = scores - scores.mean(1, keepdim=True)
    return centred * torch.rsqrt((centred ** 2).mean(1, keepdim=True) + 1e-8)


def leave_one_out(rewards):
    """r_i − the mean of the other K − 1 rewards of its group: RLOO's advantages."""
    return rewards - (rewards.sum(1, keepdim=True) - rewards) / (rewards.size(1) - 1)


def kl_loss(logprobs, ref_logprobs, mask):
    """Mean over tokens of π_ref/π − log(π_ref/π) − 1 (eq. 4): k3, an estimate of KL(π ‖ π_ref).
    Its gradient is, on average, that of KL(π_ref ‖ π)."""
    logratio = masked(ref_logprobs, mask) - masked(logprobs, mask)
    return masked_mean(torch.expm1(logratio) - logratio, mask)


def advantages_of(rollout, scores, config):
    """Advantages (B, T): all tokens of an answer have the same one. Groups stand side by side."""
    if config.way == "RLOO":
        kl = masked(rollout.logprobs - rollout.ref_logprobs, rollout.mask).sum(1)
        found = leave_one_out((scores - config.beta * kl).view(-1, config.group))
    else:
        found = group_advantages(scores.view(-1, config.group))
    return found.view(-1, 1).expand(rollout.mask.shape)


# ---- the run ----

def scorer(path):
    """A reward model's file → a function: Rollout → (n,), the scores that PPO maximises."""
    model, results = lib.network(path), load(path)["results"]
    eos_rule = results["score_mean"], results["score_std"]
    return lambda rollout: penalize_missing_eos(reward_scores(model, rollout, 128),
                                                rollout.has_eos, *eos_rule)


def train(policy, score, run, config, seed, watch=lambda done, policy: None):
    """Train the policy (GPT) in place → the average of its weights, as in ppo.py.

    score: Rollout → (n,). run: of `lib.world`. The reference is a copy of the policy.
    watch(share of the iterations that are done, averaged policy) is called after each.
    """
    rows = read_jsonl(run.folder + "/prompts.jsonl", ["prompt"], "train")
    prompts = [run.vocab.prompt(row["prompt"]) for row in rows]
    reference, average = (copy.deepcopy(policy).requires_grad_(False) for _ in range(2))
    optimizer, size = adamw(policy, config.lr, eps=1e-5), config.episodes // config.minibatches
    for iteration in range(config.iterations):
        rng = generator(seed, config.way, iteration)
        picked = torch.randint(len(prompts), (config.episodes // config.group,), generator=rng)
        asked = [prompts[i] for i in picked.repeat_interleave(config.group).tolist()]
        rollout = sample_rollout(policy, asked, run.config, run.vocab, rng)
        rollout.logprobs, rollout.ref_logprobs = (rollout_logprobs(net, rollout, size)
                                                  for net in (policy, reference))
        rollout.advantages = advantages_of(rollout, score(rollout), config)
        for rows in torch.randperm(config.episodes, generator=rng).split(size):
            mb = rollout[rows]
            logprobs = forward_logprobs(policy, mb.tokens, mb.mask)
            loss = policy_loss(logprobs, mb.logprobs, mb.advantages, mb.mask, config.clip)
            if config.way == "GRPO":
                loss = loss + config.beta * kl_loss(logprobs, mb.ref_logprobs, mb.mask)
            loss.backward()
            update(policy, optimizer, config.lr * min(1.0, 0.1 + 0.9 * iteration / config.warmup))
            ema_update(average, policy, config.ema)
        watch((iteration + 1) / config.iterations, average)
    return average


def job(quick, seed, way):
    """→ what is `measured` of one policy, and the CPU seconds of its training."""
    args, run = SimpleNamespace(quick=quick), lib.world()
    sft, reward_model = (tuned(args, SIZE, seed, name) for name in ("sft", "reward"))
    start = time.process_time()
    if way == "PPO":
        policy = lib.run_ppo(args, f"grpo-{seed}", seed, sft, *ppo_flags(args, Config.beta, 0))
    else:
        config = Config(way, **{"iterations": 2, "episodes": 16} if quick else {})
        policy = train(lib.network(sft), scorer(reward_model), run, config, seed)
    seconds = time.process_time() - start
    return {**measured(policy, quick, sft, reward_model, run), "seconds": seconds}


def main():
    args = lib.arguments(__doc__, 5)
    for seed in args.seeds:
        tuned(args, SIZE, seed, "reward")
    rows = lib.collect(args, "grpo", job, lib.over(args.seeds, *({"way": way} for way in WAYS)))
    fig, axes = lib.figure(3, size=(3.2, 3.2))
    for ax, column in zip(axes[0], ["gold", "kl", "seconds"]):
        for n, way in enumerate(WAYS):
            lib.line(ax, f"{way}, {column}", [n], [lib.pick(rows, column, way=way)])
        ax.set(xticks=range(len(WAYS)), xticklabels=WAYS, ylabel=column)
    fig.suptitle(f"as many sampled answers, with and without a critic, {len(args.seeds)} seeds")
    lib.save(args, fig, "grpo")


if __name__ == "__main__":
    entry(main)

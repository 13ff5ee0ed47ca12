"""
Stage 3: RLHF, by PPO with a pretraining loss (Ouyang et al. 2022, eq. 2).

    python ppo.py                 # the whole recipe: makes what is missing, trains, evaluates
    python ppo.py --ptx_coef=0    # "PPO" instead of "PPO-ptx"
    python ppo.py --round=2       # again, with comparisons of this policy's answers added
    python ppo.py --reward=mine.py:score    # a Python function in place of the reward model
    python ppo.py --adaptive_kl=6 # steer the KL to 6 nats an answer (Ziegler et al. 2019)

    objective = E[ r(x, y) − β log(π(y|x) / π_SFT(y|x)) ]  +  γ E[ log π(pretraining text) ]

In all (B, T) tensors column t is about the token at t: its log-probability, the value of the state
it was chosen in, its reward, its advantage. The mask is 1 on response tokens, end-of-text included:

    position          0    1    2    3    4    5    6    7
    token             p0   p1   p2   y0   y1   EOS  PAD  PAD
    mask              0    0    0    1    1    1    0    0
    KL reward                        on y0 y1 EOS
    score                                      on EOS
    logits and value  of a token come out of the networks at the position before it

Left out: whitened rewards, an entropy bonus, one trunk for policy and critic.
"""
import plumbing.cpu     # first: settings that only work before torch is loaded
import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from common import (adamw, generator, masked, masked_mean, micro_batches, predicting, to_float32,
                    update)
from data import load_reward
from data.text import read_texts
from health import alarms, check_config, check_ratio, heldout_metrics, rollout_metrics, scale_of
from model import ScalarGPT
from plumbing.command_line import Common, entry, flag, parse
from plumbing.device import Timer
from plumbing.processes import all_reduce
from plumbing.run import eval_line, evaluate_run, open_run, progress_bar
from plumbing.stages import in_round, policy_before, rounds_before
from pretrain import lm_backward
from rollout import in_chunks, log_answers, read_prompts, sample_rollout, scorer


@dataclass
class Config(Common):
    iterations: int = flag(40, "of rollout and update", "[1, inf)")
    episodes: int = flag(256, "answers per iteration", "[1, inf)")
    minibatches: int = flag(4, "optimiser steps per epoch", "[1, inf)")
    ppo_epochs: int = flag(1, "passes over a rollout; the paper has 1", "[1, inf)")
    micro_batch_size: int = flag(0, "episodes in a forward pass; 0: a minibatch", "[0, inf)")
    lr: float = flag(2e-4, "of the policy", "(0, inf)")
    critic_lr: float = flag(5e-4, "of the value network", "[0, inf)")
    warmup: int = flag(10, "iterations of linear warm-up from a tenth", "[0, inf)")
    beta: float = flag(0.1, "weight of the KL penalty per token", "[0, inf)")
    adaptive_kl: float = flag(0.0, "steer beta to this KL per answer; 0: fixed", "[0, inf)")
    clip: float = flag(0.2, "of the ratio", "(0, inf)")
    value_clip: float = flag(0.2, "of the change of a value", "(0, inf)")
    gamma: float = flag(1.0, "discount; 1 is none, as in the paper", "[0, 1]")
    lam: float = flag(0.95, "λ of generalised advantage estimation", "[0, 1]")
    temperature: float = flag(1.0, "of rollouts, and of every log-probability", "[0.001, inf)")
    top_k: int = flag(0, "refused: rollouts sample from what is scored", "[0, inf)")
    top_p: float = flag(1.0, "refused, likewise", "(0, 1]")
    ptx_coef: float = flag(1.0, "γ of eq. 2, on the mean loss; the paper prints 27.8", "[0, inf)")
    ptx_ratio: float = flag(0.125, "windows of text per episode; the paper has 8", "[0, inf)")
    ema: float = flag(0.95, "of the policy's weights, each step; the paper has 0.992", "[0, 1)")
    eval_every: int = flag(10, "iterations between measurements on held-out prompts", "[1, inf)")
    reward: str = flag("", "module:function or file.py:function, in place of the reward model")
    round: int = flag(1, "from 2 on: go on from the round before", "[1, inf)")


SMOKE = {"iterations": 3, "episodes": 16, "minibatches": 2, "eval_every": 2}


# ---- the maths: pure functions. mask (B, T) is 1 on response tokens; see common.py.

def chosen_logprobs(logits, targets, temperature=1.0):
    """logits (…, V), targets (…) → log p of each target (…)."""
    logits = to_float32(logits) / temperature
    return logits.gather(-1, targets[..., None]).squeeze(-1) - logits.logsumexp(-1)


def token_logprobs(logits, tokens, temperature=1.0):
    """logits (B, T, V), tokens (B, T) → (B, T): log p of each token, given those before it.

    The token at t is scored by the logits at t − 1. Column 0 has none and is 0.
    """
    return F.pad(chosen_logprobs(logits[:, :-1], tokens[:, 1:], temperature), (1, 0))


def masked_whiten(x, mask, shift_mean=True):
    """x (B, T) with mean 0 (or its own) and variance 1 over the mask. The variance is ÷ n."""
    x, mean = masked(x, mask), masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    white = (x - mean) * torch.rsqrt(variance + 1e-8)
    return masked(white if shift_mean else white + mean, mask)


@torch.no_grad()
def kl_rewards(scores, logprobs, ref_logprobs, mask, beta):
    """Rewards (B, T): −β (log π − log π_ref) on response tokens, the score (B,) on the last one."""
    rewards = -beta * (masked(logprobs, mask) - masked(ref_logprobs, mask))
    columns = torch.arange(mask.size(1), device=mask.device)
    last = torch.where(mask != 0, columns, -1).amax(1, keepdim=True)
    scores = scores[:, None].to(rewards.dtype)
    return rewards + torch.where(columns == last, scores, torch.zeros_like(rewards))


@torch.no_grad()
def gae(rewards, values, mask, gamma=1.0, lam=0.95):
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) → (advantages, returns).

    δ_t = r_t + γ V_{t+1} − V_t and A_t = δ_t + γλ A_{t+1}, where t + 1 is the next token of the
    mask, which may have gaps. After the last one V and A are 0. Returns are A + V. All (B, T).
    """
    rewards, values = masked(rewards, mask), masked(values, mask)
    advantages = torch.zeros_like(values)
    next_value = next_advantage = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.size(1))):
        here = mask[:, t] != 0
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * next_advantage
        advantages[:, t] = masked(advantage, here)
        next_value = torch.where(here, values[:, t], next_value)
        next_advantage = torch.where(here, advantage, next_advantage)
    return advantages, advantages + values


def ratio_of(logprobs, old_logprobs, mask):
    """→ (log ρ, ρ) with ρ = π / π_old, (B, T); 0 and 1 where mask is 0."""
    logratio = masked(logprobs, mask) - masked(old_logprobs, mask)
    return logratio, logratio.clamp(max=60).exp()       # infinity would make NaN gradients


def policy_loss(logprobs, old_logprobs, advantages, mask, clip=0.2):
    """Mean of max(−A ρ, −A clip(ρ, 1 − ε, 1 + ε)), ρ = π / π_old (Schulman et al. 2017, eq. 7)."""
    _, ratio = ratio_of(logprobs, old_logprobs, mask)
    advantages = masked(advantages, mask)
    pg_loss1 = -advantages * ratio
    pg_loss2 = -advantages * ratio.clamp(1 - clip, 1 + clip)
    return masked_mean(torch.maximum(pg_loss1, pg_loss2), mask)


def value_loss(values, old_values, returns, mask, clip=0.2):
    """½ mean of max((V − R)², (V_clipped − R)²). V_clipped is at most ε from the rollout's V.
    This clip is not in the PPO paper, but in the code released with it."""
    values, old_values = masked(values, mask), masked(old_values, mask)
    returns = masked(returns, mask)
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * masked_mean(torch.maximum((values - returns) ** 2, (clipped - returns) ** 2), mask)


def adapt_beta(beta, kl, target, episodes, horizon=10_000):
    """The next β: larger if the KL is above target (Ziegler et al. 2019, 2.2, and its code)."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * episodes / horizon)


def penalize_missing_eos(scores, has_eos, mean, std):
    """Scores (B,). An answer without EOS gets at most mean − std of the reward model's scores."""
    return torch.where(has_eos, scores, scores.clamp(max=mean - std))


def ema_update(ema_policy, policy, decay):
    """ema ← decay · ema + (1 − decay) · weights."""
    for average, p in zip(ema_policy.parameters(), policy.parameters()):
        average.data.lerp_(p.data, 1 - decay)


# ---- what the networks say about a rollout

def forward_logprobs(model, tokens, mask, temperature=1.0):
    """token_logprobs of a forward pass → (B, T), 0 where mask is 0: no logits are made there."""
    there = mask[:, 1:] != 0
    logits = model(tokens, predicting(mask))                                    # (n, V)
    chosen = chosen_logprobs(logits, tokens[:, 1:][there], temperature)         # (n,)
    return F.pad(chosen.new_zeros(there.shape).masked_scatter(there, chosen), (1, 0))


def rollout_logprobs(model, rollout, size, temperature=1.0):
    """forward_logprobs of a whole rollout → (B, T), `size` rows at a time."""
    return in_chunks(lambda chunk: forward_logprobs(model, chunk.tokens, chunk.mask, temperature),
                     rollout, size)


def forward_values(critic, tokens, mask):
    """Values (B, T) of the states that the tokens of the mask were chosen in, at t − 1."""
    return F.pad(critic(tokens, predicting(mask))[:, :-1], (1, 0))


def fill_in(rollout, policy, reference, critic, size, temperature=1.0):
    """The rollout's log-probabilities and values, `size` rows at a time."""
    rollout.logprobs = rollout_logprobs(policy, rollout, size, temperature)
    rollout.ref_logprobs = rollout_logprobs(reference, rollout, size, temperature)
    rollout.values = in_chunks(lambda chunk: forward_values(critic, chunk.tokens, chunk.mask),
                               rollout, size)


STATS = ["loss/policy_avg", "loss/value_avg", "policy/approxkl_avg", "policy/clipfrac_avg",
         "val/clipfrac_avg", "val/ratio",       # so far TRL's numbers; CleanRL estimates these two
         "policy/kl_k3", "policy/ratio_outside"]


def ppo_backward(policy, critic, mb, config):
    """Add the gradients of both losses on a minibatch (Rollout) → STATS (8,), max |log ρ|."""
    stats = torch.zeros(len(STATS), device=policy.device)
    max_logratio = stats.new_zeros(())
    for micro in micro_batches(mb, config.micro_batch_size):
        mask, weight = micro.mask, micro.mask.sum() / mb.mask.sum()
        logprobs = forward_logprobs(policy, micro.tokens, mask, config.temperature)
        pg_loss = policy_loss(logprobs, micro.logprobs, micro.advantages, mask, config.clip)
        (pg_loss * weight).backward()
        values = forward_values(critic, micro.tokens, mask)
        v_loss = value_loss(values, micro.values, micro.returns, mask, config.value_clip)
        (v_loss * weight).backward()

        with torch.no_grad():
            logratio, ratio = ratio_of(logprobs, micro.logprobs, mask)
            max_logratio = torch.maximum(max_logratio, logratio.abs().max())
            near = values.clamp(micro.values - config.value_clip, micro.values + config.value_clip)
            further = (near - micro.returns).abs() > (values - micro.returns).abs()
            stats += weight * torch.stack([
                pg_loss, v_loss, masked_mean(logratio ** 2, mask) / 2,
                masked_mean((ratio - 1) * micro.advantages.sign() > config.clip, mask),
                masked_mean(further, mask), masked_mean(ratio, mask),
                masked_mean((ratio - 1) - logratio, mask),
                masked_mean((ratio - 1).abs() > config.clip, mask)])
    return all_reduce(stats), max_logratio


def ptx_backward(policy, text, n_windows, rng, config):
    """Add the gradient of γ × lm_loss on windows of pretraining text (eq. 2) → the loss."""
    if not config.ptx_coef:
        return torch.zeros((), device=policy.device)
    return lm_backward(policy, text.batch(n_windows, rng), config.micro_batch_size, config.ptx_coef)


# ---- the run

def make_score(run, raw_scores, state):
    """A function (Rollout, prompts' rows) → scores (B,), which PPO maximises.

    A --reward function's scores are brought to mean 0 and standard deviation 1 on the first
    rollout, of SFT's answers. So beta means the same whatever their unit (Ziegler et al. 2019).
    """
    name, results = run.config.reward, {"score_mean": 0.0, "score_std": 1.0}
    if not name:
        results = run.parents[in_round("reward", run.config.round)]["results"]

    def score(rollout, rows):
        scores, mean, std = raw_scores(rollout, rows), results["score_mean"], results["score_std"]
        if name:
            state["scale"] = state["scale"] or scale_of(scores, name)
            scores = (scores - state["scale"][0]) / state["scale"][1]
        return penalize_missing_eos(scores, rollout.has_eos, mean, std)
    return score


def main():
    config = parse(Config, __doc__, SMOKE)
    check_config(config)
    reward_fn = load_reward(config.reward) if config.reward else None
    reward_stages = [] if reward_fn else [in_round("reward", config.round)]
    run = open_run(in_round("ppo", config.round), config,
                   ["pretrain", "sft", *rounds_before(config.round), *reward_stages])
    if run.finished():
        return evaluate_run(run)

    # all networks stay in eval mode, in which they are loaded: no dropout in RL
    policy = run.load_model(policy_before(config.round))
    reference = run.load_model("sft").requires_grad_(False)
    if reward_fn:
        reward_model, critic = None, ScalarGPT.from_gpt(reference).eval()
    else:       # the critic starts as a copy of the reward model (appendix C.4)
        reward_model, critic = (run.load_model(reward_stages[0]) for _ in range(2))
        reward_model.requires_grad_(False)
    ema_policy = copy.deepcopy(policy)
    networks = policy, reference, critic
    run.compile(policy, reference, critic, ema_policy, reward_model)
    optimizer = adamw(policy, config.lr, eps=1e-5)
    critic_optimizer = adamw(critic, config.critic_lr, eps=1e-5)

    text, heldout_text = read_texts(run, policy.config.block_size)
    prompt_rows, heldout_rows = read_prompts(run)
    prompts = [run.vocab.prompt(row["prompt"]) for row in prompt_rows]
    mb_size = config.episodes // config.minibatches
    chunk_size = config.micro_batch_size or mb_size
    n_windows = max(1, round(config.ptx_ratio * mb_size))
    # what a resumed run needs beside weights; "first" and "raised" are of health.py's alarms
    state = dict(beta=config.beta, episode=0, kl=0.0, scale=None, first=None, raised=[])
    raw_scores = scorer(run, reward_model, reward_fn, chunk_size)
    score = make_score(run, raw_scores, state)
    saved = dict(policy=policy, critic=critic, ema_policy=ema_policy, optimizer=optimizer,
                 critic_optimizer=critic_optimizer, state=state)
    first = run.resume(**saved)
    print(f"{len(prompts):,} prompts, {config.iterations} iterations of {config.episodes} episodes")
    for iteration in (progress := progress_bar(config.iterations, first, "ppo")):
        timed = Timer(run.device)
        beta, stats = state["beta"], []
        factor = min(1.0, 0.1 + 0.9 * iteration / config.warmup) if config.warmup else 1.0
        lr, critic_lr = config.lr * factor, config.critic_lr * factor
        rng = generator(config.seed, in_round("rollout", config.round), iteration)

        # 1. rollout: the policy answers a batch of prompts
        with timed("rollout"):
            picked = torch.randint(len(prompts), (config.episodes,), generator=rng).tolist()
            rollout = sample_rollout(policy, [prompts[i] for i in picked], config, run.vocab, rng)

        # 2. score: one number per answer
        with timed("score"):
            scores = score(rollout, [prompt_rows[i] for i in picked])

        # 3. log-probabilities and values, frozen for all epochs of the update
        with timed("logprobs"):
            fill_in(rollout, *networks, chunk_size, config.temperature)
        log_answers(iteration, heldout_rows, networks, fill_in, score, beta, run)

        # 4. rewards and advantages; returns come before whitening
        rewards = kl_rewards(scores, rollout.logprobs, rollout.ref_logprobs, rollout.mask, beta)
        advantages, rollout.returns = gae(rewards, rollout.values, rollout.mask, config.gamma,
                                          config.lam)
        rollout.advantages = masked_whiten(advantages, rollout.mask)

        # 5. update: PPO's and pretraining's gradients are added, then one step (appendix C.4)
        for epoch in range(config.ppo_epochs):
            order = torch.randperm(config.episodes, generator=rng)
            for n, mb_rows in enumerate(order.split(mb_size)):
                mb_rows = mb_rows[rollout.lengths[mb_rows].argsort()]   # less padding in a part
                with timed("update"):
                    mb_stats, max_logratio = ppo_backward(policy, critic, rollout[mb_rows], config)
                if iteration == 0 and epoch == 0 and n == 0:
                    check_ratio(max_logratio, run.dtype)        # nothing was updated: π = π_old
                with timed("ptx"):
                    ptx_rng = generator(config.seed, in_round("ptx", config.round), iteration,
                                        epoch, n)
                    ptx_loss = ptx_backward(policy, text, n_windows, ptx_rng, config)
                with timed("update"):
                    norm = update(policy, optimizer, lr)
                    critic_norm = update(critic, critic_optimizer, critic_lr)
                    ema_update(ema_policy, policy, config.ema)
                stats.append(torch.cat([mb_stats, ptx_loss[None]]))

        # 6. what happened, under the names that TRL uses
        metrics = rollout_metrics(rollout, scores, rewards, beta, timed.seconds)
        metrics |= zip([*STATS, "loss/ptx_avg"], torch.stack(stats).mean(0).tolist())
        state.update(episode=state["episode"] + config.episodes, kl=metrics["objective/kl"])
        metrics |= {"episode": state["episode"], "objective/beta": beta, "lr": lr,
                    "policy/grad_norm": norm, "val/grad_norm": critic_norm}
        if config.adaptive_kl:
            state["beta"] = adapt_beta(beta, state["kl"], config.adaptive_kl, config.episodes)
        if (iteration + 1) % config.eval_every == 0 or iteration + 1 == config.iterations:
            metrics |= heldout_metrics(ema_policy, heldout_rows, heldout_text, raw_scores, run)
            progress.write(f"iteration {iteration + 1}: {eval_line(metrics)}")
        run.log(iteration, metrics)
        for sentence in alarms(metrics, state):
            progress.write(sentence)
        progress.set_postfix_str(f"score {scores.mean():.2f} KL {state['kl']:.1f}", refresh=False)
        run.checkpoint(iteration + 1, **saved)

    run.finish(ema_policy, {"kl": state["kl"], "beta": state["beta"]})
    return evaluate_run(run)


if __name__ == "__main__":
    entry(main)

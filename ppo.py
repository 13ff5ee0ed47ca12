"""
Stage 3: reinforcement learning from human feedback, by PPO with a pretraining loss (Ouyang et al. 2022, eq. 2).

    python ppo.py                 # the whole recipe: makes what is missing before it, then trains, then evaluates
    python ppo.py --ptx_coef=0    # "PPO" instead of "PPO-ptx"
    python ppo.py --round=2       # more comparisons, on this policy's answers, a new reward model, and PPO goes on with it
    python ppo.py --reward=mine.py:score    # a Python function of (prompt, response) in place of the reward model
    python ppo.py --adaptive_kl=6 # a KL coefficient steered to 6 nats an answer (Ziegler et al. 2019, section 2.2)

    objective = E[ r(x, y) − β log(π(y|x) / π_SFT(y|x)) ]  +  γ E[ log π(pretraining text) ]

All (B, T) tensors are aligned with the tokens: column t is about the token at t, its log-probability, the value of
the state it was chosen in, its reward, its advantage. The mask is 1 on response tokens, the end-of-text included:

    position          0    1    2    3    4    5    6    7
    token             p0   p1   p2   y0   y1   EOS  PAD  PAD
    mask              0    0    0    1    1    1    0    0
    logits, value     those at position − 1 chose, and judged the state of, the token here
    KL reward                        on y0 y1 EOS
    score                                      on EOS

Left out: whitened rewards, entropy bonus, discounting by default, a shared trunk for policy and critic.
"""
import copy
import os
from dataclasses import dataclass

from common import (Common, Run, adamw, all_gather, all_reduce, bar, become, by_length, document_batch, document_starts, entry,
                    generator, in_round, model_from, pad, parse, policy_before, rounded, rounds_before, shard, text_loss, update)     # before torch: it says how threads wait
from data import UserError, load_judge, load_reward, read_heldout, read_jsonl, read_tokens
from model import ScalarGPT
from pretrain import lm_loss

import torch
import torch.nn.functional as F


@dataclass
class Config(Common):
    iterations: int = 60        # of rollout and update
    episodes: int = 256         # answers an iteration
    minibatches: int = 4        # optimiser steps an epoch
    epochs: int = 1             # inner epochs over a rollout; the paper has 1
    micro: int = 0              # episodes a forward pass, to save memory; 0 is a whole minibatch
    lr: float = 2e-4            # of the policy
    critic_lr: float = 5e-4     # of the value network
    warmup: int = 10            # iterations of linear warm-up from a tenth
    beta: float = 0.1           # weight of the KL penalty per token
    adaptive_kl: float = 0.0    # steer beta to this KL per answer, in nats; 0 keeps it fixed
    clip: float = 0.2           # of the ratio
    value_clip: float = 0.2     # of the change of a value
    gamma: float = 1.0          # discount; 1 is none
    lam: float = 0.95           # λ of generalised advantage estimation
    temperature: float = 1.0    # of rollouts, and of every log-probability
    top_k: int = 0              # must stay 0: rollouts sample from exactly the distribution that is scored
    top_p: float = 1.0          # must stay 1, likewise
    ptx_coef: float = 1.0       # γ of eq. 2, on the mean loss of a pretraining token; the paper prints 27.8
    ptx_ratio: float = 0.125    # windows of pretraining text an episode; the paper has 8 examples, too many for minutes
    ema: float = 0.992          # of the policy's weights, at every optimiser step
    eval_every: int = 10        # iterations between measurements on held-out prompts
    reward: str = ""            # module:function or file.py:function of (prompt, response) → number, in place of the reward model
    round: int = 1              # from 2 on: from the policy of the round before, with reward-<round>.pt, to ppo-<round>.pt


SMOKE = {"iterations": 3, "episodes": 16, "minibatches": 2, "eval_every": 2}


# ---- the maths: pure functions; a mask may be bool, integer or float, and what it hides reaches neither result nor gradient ----

def up(x):
    """bf16 and fp16 raised to float32; float32 and float64 stay."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def shown(x, mask):
    """x where mask is nonzero, else 0: chosen before any arithmetic, since inf × 0 is NaN."""
    return torch.where(mask != 0, up(x), torch.zeros((), dtype=up(x).dtype, device=x.device))


def token_logprobs(logits, tokens, temperature=1.0):
    """logits (B, T, V), tokens (B, T) → (B, T): [b, t] is log p(tokens[b, t] | tokens[b, :t]), from the logits at t − 1; [b, 0] is 0."""
    logits = up(logits[:, :-1]) / temperature
    chosen = logits.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return F.pad(chosen - logits.logsumexp(-1), (1, 0))


def masked_mean(x, mask):
    """Mean of x over the tokens where mask is nonzero; 0 if there is none."""
    return shown(x, mask).sum() / (mask != 0).sum().clamp(min=1)


def masked_whiten(x, mask, shift_mean=True):
    """x with mean 0 (or its own, if not shift_mean) and variance 1 over the mask; the variance divides by n."""
    x, mean = shown(x, mask), masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    white = (x - mean) * torch.rsqrt(variance + 1e-8)
    return shown(white if shift_mean else white + mean, mask)


@torch.no_grad()
def kl_rewards(scores, logprobs, ref_logprobs, mask, beta):
    """Per-token rewards (B, T): −β (log π − log π_ref) on every response token, and the score (B,) on the last one."""
    rewards = -beta * (shown(logprobs, mask) - shown(ref_logprobs, mask))
    columns = torch.arange(mask.size(1), device=mask.device)
    last = torch.where(mask != 0, columns, -1).amax(1, keepdim=True)
    return rewards + torch.where(columns == last, up(scores)[:, None].to(rewards.dtype), torch.zeros_like(rewards))


@torch.no_grad()
def gae(rewards, values, mask, gamma=1.0, lam=0.95):
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) → (advantages, returns), both (B, T).

    δ_t = r_t + γ V_{t+1} − V_t and A_t = δ_t + γλ A_{t+1}, where t + 1 is the next token of the mask; after the last
    one there is nothing: its V and A are 0. Returns are A + V.
    """
    rewards, values = shown(rewards, mask), shown(values, mask)
    advantages = torch.zeros_like(values)
    next_value = next_advantage = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.size(1))):
        here = mask[:, t] != 0
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * next_advantage
        advantages[:, t] = shown(advantage, here)
        next_value = torch.where(here, values[:, t], next_value)
        next_advantage = torch.where(here, advantage, next_advantage)
    return advantages, advantages + values


def policy_loss(logprobs, old_logprobs, advantages, mask, clip=0.2):
    """Mean over the mask of max(−A ρ, −A clip(ρ, 1 − ε, 1 + ε)), ρ = π / π_old (Schulman et al. 2017, eq. 7)."""
    ratio = (shown(logprobs, mask) - shown(old_logprobs, mask)).clamp(max=60).exp()     # e^60 is clipped anyway, an infinite ratio is NaN
    advantages = shown(advantages, mask)
    return masked_mean(torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)), mask)


def value_loss(values, old_values, returns, mask, clip=0.2):
    """½ mean over the mask of max((V − R)², (V_clipped − R)²), where V_clipped is at most ε from the rollout's value."""
    values, old_values, returns = shown(values, mask), shown(old_values, mask), shown(returns, mask)
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * masked_mean(torch.maximum((values - returns) ** 2, (clipped - returns) ** 2), mask)


def adapt_beta(beta, kl, target, episodes, horizon=10_000):
    """Next KL coefficient: up if the KL is above target, down if below (Ziegler et al. 2019, section 2.2)."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * episodes / horizon)


def eos_rule(scores, has_eos, mean, std):
    """Scores (B,) as they enter the reward: without an EOS at most one standard deviation below the reward model's mean."""
    return torch.where(has_eos, scores, scores.clamp(max=mean - std))


# ---- what the networks do to a batch of episodes ----

def rollout(policy, prompts, config, vocab, cast, rng):
    """Sample an answer to each prompt (token lists) → tokens (B, T) right-padded, mask (B, T), lengths (B,), has_eos (B,)."""
    noise = torch.rand(len(prompts), config.max_new_tokens, generator=rng)      # of an answer, whichever process samples it
    with cast:
        news = all_gather(policy.generate(shard(prompts), config.max_new_tokens, config.temperature, eos=vocab.eos, noise=shard(noise)))
    device = policy.wte.weight.device
    tokens, lengths = pad([p + n for p, n in zip(prompts, news)], vocab.pad, device)
    starts = torch.tensor([len(p) for p in prompts], device=device)
    columns = torch.arange(tokens.size(1), device=device)
    mask = (columns >= starts[:, None]) & (columns < lengths[:, None])
    return tokens, mask, lengths, torch.tensor([n[-1] == vocab.eos for n in news], device=device)


def forward(model, tokens, cast):
    with cast:
        return model(tokens)


def forward_logprobs(model, tokens, temperature, cast, mask=None):
    """token_logprobs of a full forward → (B, T), 0 where mask is 0: the vocabulary's worth of logits is made for its tokens alone."""
    asked = torch.ones_like(tokens[:, 1:], dtype=torch.bool) if mask is None else mask[:, 1:] != 0
    with cast:
        x = model.hidden(tokens)[:, :-1][asked]                     # (n, C): the states in which they were chosen
        logits = model.unembed(torch.cat([x, x[:1]]))               # put one after the other, in a row of n + 1,
    row = F.pad(tokens[:, 1:][asked], (1, 0))                       # whose first token nothing predicts
    chosen = token_logprobs(logits[None], row[None], temperature)[0, 1:]
    return F.pad(torch.zeros(asked.shape, dtype=chosen.dtype, device=chosen.device).masked_scatter(asked, chosen), (1, 0))


def forward_values(critic, tokens, cast):
    """Values (B, T): [b, t] is of the state in which tokens[b, t] was chosen, so the critic's output at t − 1."""
    return F.pad(forward(critic, tokens, cast)[:, :-1], (1, 0))


@torch.no_grad()
def in_parts(function, lengths, size, *tensors):
    """function(parts of tensors) → (b, t), over rows of similar length with their padding cut off; put together as (B, T)."""
    out = torch.zeros(tensors[0].shape, device=lengths.device)
    for rows in shard(by_length(lengths, size)):
        longest = rounded(lengths[rows].max())
        out[rows, :longest] = function(*(t[rows, :longest] for t in tensors))
    return all_reduce(out)


def ema_update(average, model, decay):
    """average ← d · average + (1 − d) · weights."""
    for a, p in zip(average.parameters(), model.parameters()):
        a.data.lerp_(p.data, 1 - decay)


def function_scores(function, rows, tokens, mask, vocab):
    """What a --reward function gives to the answers to the rows' prompts → (B,); each process asks it for its share."""
    texts = [vocab.decode(t[m].tolist()) for t, m in zip(tokens, mask)]
    return torch.tensor(all_gather([function(r["prompt"], text) for r, text in shard(list(zip(rows, texts)))]), device=tokens.device)


@torch.no_grad()
def heldout_metrics(model, rows, reward_model, judge, vocab, run, rng):
    """Score by the reward model (or function), gold score where there is a judge, and length of one sampled answer to each held-out prompt."""
    prompts = [vocab.prompt(r["prompt"]) for r in rows]
    tokens, mask, lengths, _ = rollout(model, prompts, run.config, vocab, run.cast, rng)
    if isinstance(reward_model, ScalarGPT):
        scores = in_parts(lambda x: forward(reward_model, x, run.cast), lengths, 64, tokens).gather(1, lengths[:, None] - 1).squeeze(1)
    else:
        scores = function_scores(reward_model, rows, tokens, mask, vocab)
    metrics = {"eval/score": scores.mean().item(), "eval/length": mask.sum(1).float().mean().item()}
    if judge:
        answers = [vocab.decode(t[m].tolist()) for t, m in zip(tokens, mask)]
        metrics["eval/gold"] = sum(judge.gold(r["prompt"], a)["gold"] for r, a in zip(rows, answers)) / len(rows)
    return metrics


def main():
    config = parse(Config, __doc__, SMOKE)
    if config.top_k or config.top_p != 1.0:
        raise UserError("--top_k and --top_p can't be used in rollouts: the sampled distribution would not be the one that is scored. "
                        "They are for talking: python chat.py --top_k=…")
    if config.temperature <= 0:
        raise UserError(f"--temperature={config.temperature}: rollouts must be random, so it must be above 0")
    if config.episodes % config.minibatches:
        raise UserError(f"--episodes={config.episodes} does not divide into --minibatches={config.minibatches}")
    function = load_reward(config.reward) if config.reward else None
    if function and config.round > 1:
        raise UserError(f"--reward={config.reward} --round={config.round}: a further round is for new comparisons, and a function needs none; give more --iterations")
    reward = [] if function else [in_round("reward", config.round)]
    run = Run("ppo", config, parents=["pretrain", "sft", *rounds_before(config.round), *reward], name=in_round("ppo", config.round))
    evaluation = [*["--prompts=60"] * (config.size == "smoke"), *[f"--reward={config.reward}"] * bool(function),
                  *["--stages=" + ",".join(["pretrain", "sft", *rounds_before(config.round)[1::2], run.name])] * (config.round > 1)]
    if run.finished():
        return become("evaluate", config, *evaluation)
    vocab, judge = run.vocab, load_judge(run.folder)

    # four networks: the policy, from SFT or the round before, and its frozen reference, always SFT; the frozen reward model and, copied, the critic
    policy = model_from(run.parents[policy_before(config.round)]).to(run.device)
    reference = model_from(run.parents["sft"]).to(run.device).requires_grad_(False)
    if function:        # the critic then starts as a reward model does: SFT's trunk, and a head of zeros
        reward_model, critic = function, ScalarGPT.from_gpt(reference).eval()
    else:
        reward_model = model_from(run.parents[reward[0]], ScalarGPT).to(run.device).requires_grad_(False)
        critic = copy.deepcopy(reward_model).requires_grad_(True)
    average = copy.deepcopy(policy).requires_grad_(False)
    run.compiled(policy, reference, critic, average, *[reward_model] * (not function))
    optimizer = adamw(policy, config.lr, betas=(0.9, 0.95), eps=1e-5)
    critic_optimizer = adamw(critic, config.critic_lr, betas=(0.9, 0.95), eps=1e-5)
    rm = {"score_mean": 0.0, "score_std": 1.0} if function else run.parents[reward[0]]["results"]

    block = policy.config.block_size
    prompts_path = os.path.join(run.folder, "prompts.jsonl")
    asked = read_jsonl(prompts_path, ["prompt"], "train")
    prompts = [vocab.prompt(r["prompt"]) for r in asked]
    lengths = [len(p) for p in prompts] + [len(vocab.prompt(r["prompt"])) for r in read_jsonl(prompts_path, ["prompt"], "heldout")]
    if too_long := sum(n + config.max_new_tokens > block for n in lengths):
        raise UserError(f"{prompts_path}: {too_long} prompts, the longest of {max(lengths)} tokens, do not fit the block of {block} together with "
                        f"--max_new_tokens={config.max_new_tokens}: shorten them, lower --max_new_tokens or take a larger --size")
    heldout = read_heldout(prompts_path, ["prompt"])
    heldout = [heldout[i] for i in torch.randperm(len(heldout), generator=generator(config.seed, "heldout"))[:256].tolist()]
    text, val = (read_tokens(os.path.join(run.folder, f), vocab) for f in ("train.bin", "val.bin"))
    starts, val_starts = document_starts(text, vocab.eos, block), document_starts(val, vocab.eos, block)
    state = {"beta": config.beta, "episode": 0, "kl": 0.0, "first": None, "raised": [], "scale": None}
    size = config.episodes // config.minibatches
    micro = config.micro or size

    first = run.resume(policy=policy, critic=critic, average=average, optimizer=optimizer, critic_optimizer=critic_optimizer, state=state)
    print(f"{len(prompts):,} prompts, {config.iterations} iterations of {config.episodes} episodes")
    progress = bar(config.iterations, first, "ppo")
    for iteration in progress:
        clock = [run.seconds()]
        beta = state["beta"]

        # 1. rollout
        rng = generator(config.seed, in_round("rollout", config.round), iteration)
        chosen = torch.randint(len(prompts), (config.episodes,), generator=rng).tolist()
        tokens, mask, lengths, has_eos = rollout(policy, [prompts[i] for i in chosen], config, vocab, run.cast, rng)
        clock.append(run.seconds())

        # 2. score: the reward model at the last token of the response; a function's is brought to mean 0 and
        # standard deviation 1 on the first rollout, SFT's answers, so that beta means the same whatever its unit (Ziegler et al. 2019)
        if function:
            scores = function_scores(function, [asked[i] for i in chosen], tokens, mask, vocab)
            state["scale"] = state["scale"] or first_scale(scores, config.reward)
            scores = (scores - state["scale"][0]) / state["scale"][1]
        else:
            outputs = in_parts(lambda x: forward(reward_model, x, run.cast), lengths, micro, tokens)
            scores = outputs.gather(1, lengths[:, None] - 1).squeeze(1)
        scores = eos_rule(scores, has_eos, rm["score_mean"], rm["score_std"])

        # 3. log-probabilities under the policy and its reference, and values: frozen for all epochs of the update
        logprobs = in_parts(lambda x, m: forward_logprobs(policy, x, config.temperature, run.cast, m), lengths, micro, tokens, mask)
        values = in_parts(lambda x: forward_values(critic, x, run.cast), lengths, micro, tokens)
        clock.append(run.seconds())
        ref_logprobs = in_parts(lambda x, m: forward_logprobs(reference, x, config.temperature, run.cast, m), lengths, micro, tokens, mask)
        clock.append(run.seconds())

        # 4. rewards and advantages; returns come before whitening
        rewards = kl_rewards(scores, logprobs, ref_logprobs, mask, beta)
        advantages, returns = gae(rewards, values, mask, config.gamma, config.lam)
        whitened = masked_whiten(advantages, mask)

        # 5. update
        warm = min(1.0, 0.1 + 0.9 * iteration / max(1, config.warmup))
        stats, ptx_seconds = [], 0.0
        for epoch in range(config.epochs):
            order = torch.randperm(config.episodes, generator=rng)
            for n, rows in enumerate(order.split(size)):
                count = mask[rows].sum()
                step_stats = torch.zeros(7, device=run.device)
                for part in shard(rows[lengths[rows].cpu().argsort()]).split(micro):     # shortest first, so that parts have little padding
                    if not len(part):
                        continue        # more processes than rows
                    longest = rounded(lengths[part].max())
                    x, m = tokens[part, :longest], mask[part, :longest]
                    old, adv, old_v, ret = (t[part, :longest] for t in (logprobs, whitened, values, returns))
                    share = m.sum() / count         # of the minibatch's tokens: the loss is their mean, however they are split
                    new = forward_logprobs(policy, x, config.temperature, run.cast, m)
                    ratio = (shown(new, m) - shown(old, m)).exp()
                    if iteration == epoch == n == 0:
                        check_ratio(ratio, run.dtype)
                    pg = policy_loss(new, old, adv, m, config.clip)
                    (pg * share).backward()
                    v = forward_values(critic, x, run.cast)
                    vl = value_loss(v, old_v, ret, m, config.value_clip)
                    (vl * share).backward()
                    with torch.no_grad():
                        step_stats[:6] += share * torch.stack([
                            pg, vl, masked_mean((ratio - 1) - ratio.log(), m), masked_mean(((ratio - 1).abs() > config.clip).float(), m),
                            masked_mean(((v - old_v).abs() > config.value_clip).float(), m), masked_mean(ratio, m)])
                if config.ptx_coef:     # pretraining gradients are added to PPO's, then one step (appendix C.4)
                    ptx_seconds -= run.seconds()
                    windows = max(1, round(config.ptx_ratio * size))
                    x = shard(document_batch(text, starts, windows, block, generator(config.seed, in_round("ptx", config.round), iteration, epoch, n), run.device))
                    for part in x.split(micro) if len(x) else ():
                        ptx = lm_loss(forward(policy, part, run.cast), part) * len(part) / windows
                        (config.ptx_coef * ptx).backward()
                        step_stats[6] += ptx.detach()
                    ptx_seconds += run.seconds()
                update(policy, optimizer, config.lr * warm)
                update(critic, critic_optimizer, config.critic_lr * warm)
                ema_update(average, policy, config.ema)
                stats.append(step_stats)
        clock.append(run.seconds())

        # 6. what happened, by TRL's names
        kl = shown(logprobs - ref_logprobs, mask)
        k1, k3 = kl.sum(1).mean().item(), shown(torch.expm1(-kl) + kl, mask).sum(1).mean().item()
        state["episode"], state["kl"] = state["episode"] + config.episodes, k1
        names = ["loss/policy_avg", "loss/value_avg", "policy/approxkl_avg", "policy/clipfrac_avg", "val/clipfrac_avg", "val/ratio", "loss/ptx_avg"]
        metrics = {
            "episode": state["episode"], "objective/kl": k1, "objective/kl_k3": k3, "objective/beta": beta,
            "objective/entropy": -shown(logprobs, mask).sum(1).mean().item(), "objective/scores": scores.mean().item(),
            "objective/non_score_reward": -beta * k1, "objective/rlhf_reward": rewards.sum(1).mean().item(),
            **dict(zip(names, all_reduce(torch.stack(stats)).mean(0).tolist())),
            "val/explained_variance": 1 - (masked_mean((returns - values - masked_mean(returns - values, mask)) ** 2, mask)
                                           / masked_mean((returns - masked_mean(returns, mask)) ** 2, mask).clamp(min=1e-8)).item(),
            "response/length": mask.sum(1).float().mean().item(), "response/eos_fraction": has_eos.float().mean().item(),
            "lr": config.lr * warm, "seconds/rollout": clock[1] - clock[0], "seconds/score": clock[2] - clock[1], "seconds/reference": clock[3] - clock[2],
            "seconds/update": clock[4] - clock[3] - ptx_seconds, "seconds/ptx": ptx_seconds,
            "tokens_per_second/rollout": mask.sum().item() / (clock[1] - clock[0]),
        }
        if config.adaptive_kl:
            state["beta"] = adapt_beta(beta, k1, config.adaptive_kl, config.episodes)
        if (iteration + 1) % config.eval_every == 0 or iteration + 1 == config.iterations:
            metrics |= heldout_metrics(average, heldout, reward_model, judge, vocab, run, generator(config.seed, "eval"))
            metrics["eval/pretrain_loss"], _ = text_loss(average, val, val_starts, block, run.device, run.cast)
        run.log(iteration, metrics)
        state["first"] = state["first"] or {key: metrics[key] for key, *_ in ALARMS}
        for sentence in alarms(metrics, state["first"], state["raised"]):
            progress.write(sentence)
        progress.set_postfix_str(f"score {metrics['objective/scores']:.2f} KL {k1:.1f}", refresh=False)
        if "eval/score" in metrics:
            progress.write(f"iteration {iteration + 1}: " + ", ".join(f"{k.split('/')[1]} {v:.3f}" for k, v in metrics.items() if k.startswith("eval/")))
        run.checkpoint(iteration + 1, policy=policy, critic=critic, average=average, optimizer=optimizer, critic_optimizer=critic_optimizer, state=state)

    run.finish(average, {"kl": state["kl"], "beta": state["beta"]})
    become("evaluate", config, *evaluation)


# what a run should not do: (metric, is it so, given the first iteration's value, what it means and what to run)
ALARMS = [
    ("objective/kl", lambda now, first: now > 30, "the policy runs away from SFT: raise --beta or lower --lr; if the score is flat as well, pytest -k kl"),
    ("response/eos_fraction", lambda now, first: now < first / 2, "answers no longer end by themselves: is EOS among the SFT targets, the score on the last token? pytest -k \"eos or last\""),
    ("objective/entropy", lambda now, first: now < first / 10, "the policy answers the same whatever is asked: raise --beta or lower --lr; pytest -k \"whiten or clip\""),
    ("policy/approxkl_avg", lambda now, first: now > 0.1, "an update moves the policy far from the rollout's: lower --lr or --epochs; pytest -k \"clip or first_minibatch\""),
    ("val/explained_variance", lambda now, first: now < min(-1, first), "the critic is worse than a constant: lower --critic_lr; pytest -k \"gae or value\""),
]


def alarms(metrics, first, raised):
    """Sentences about what has just begun to go wrong; each kind once, remembered in the list `raised`."""
    found = [(key, why) for key, wrong, why in ALARMS if key not in raised and wrong(metrics[key], first[key])]
    raised += [key for key, _ in found]
    return [f"warning: {key} is {metrics[key]:.3g}, {first[key]:.3g} at first: {why}" for key, why in found]


def first_scale(scores, name):
    """[mean, standard deviation] of a function's scores of SFT's answers. Raises UserError if they are all the same."""
    if scores.max() == scores.min():
        raise UserError(f"--reward={name} gave all {len(scores)} answers of the first rollout the same score, {scores[0].item():g}: "
                        f"there is nothing to learn from; let it tell such answers apart, or take more --episodes")
    return [scores.mean().item(), scores.std().item()]


def check_ratio(ratio, dtype):
    """On the first minibatch nothing has been updated, so π / π_old is 1, up to rounding: in bf16 a log-probability has two or three digits."""
    bound = 1e-4 if dtype == torch.float32 else 0.25
    worst = ratio.log().abs().max().item()
    if not worst < bound:
        raise UserError(f"on the first minibatch the log ratio reaches {worst:.2g}, more than {bound:g}: the update computes other log-probabilities than the "
                        f"rollout (dropout on? other padding, mask or temperature?)")


if __name__ == "__main__":
    entry(main)

"""
PPO balances a pole: the same five functions as in ../ppo.py, on CartPole.

    python papers/cartpole.py                     # ten seeds, and why PPO clips
    python papers/cartpole.py --env=Acrobot-v1    # another environment

Schulman et al. 2017, Proximal policy optimization algorithms: the clipped loss (eq. 7), several
epochs over a rollout (algorithm 1). An episode, or what of it is in a rollout, is a row, as an
answer is in ppo.py. Where it is cut off by the time limit or the rollout's end, γV of the next
state is added to its last reward. So gae stays as it is.

Left out: shared layers and an entropy bonus (eq. 9), the adaptive KL penalty (section 4),
continuous actions. The learning rate falls to 0, as in the paper on Atari.
"""
import lib      # first: puts the project on sys.path
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from common import adamw, generator, update
from plumbing.command_line import entry
from ppo import chosen_logprobs, gae, masked_whiten, policy_loss, value_loss


@dataclass
class Config:
    steps: int = 100_000    # of all environments together
    envs: int = 8
    horizon: int = 128      # steps of each in a rollout
    epochs: int = 10
    minibatches: int = 4
    lr: float = 1e-3        # of both networks; falls linearly to 0
    clip: float = 0.2       # infinity: no clip
    gamma: float = 0.98
    lam: float = 0.8


# ---- the maths: pure functions ----

def to_rows(last):
    """last (N, T) bool, an episode's last step → mask (B, T'), and a function (N, T) → (B, T').

    Row b is an episode, or the part of one that lies in the rollout. x.flatten() are the values of
    to(x)[mask], in the same order. A rollout's last step is always a row's last.
    """
    ends = F.pad(last[:, :-1], (0, 1), value=True).flatten()
    row = ends.cumsum(0) - ends.long()
    lengths = row.bincount()
    mask = torch.arange(int(lengths.max())) < lengths[:, None]

    def to(x):
        return x.new_zeros(mask.shape).masked_scatter(mask, x.flatten())
    return mask, to


def bootstrapped(rewards, next_values, terminated, truncated, gamma):
    """Rewards (N, T) + γV(next state) where an episode is cut off: by its time limit, or by the
    end of the rollout. After an end there is nothing, so that nothing is added."""
    cut_off = F.pad(truncated[:, :-1], (0, 1), value=True)
    return rewards + gamma * next_values * (cut_off & ~terminated)


# ---- the run ----

def train(name, config, seed, reward_of=None, watch=None, wrapper=None):
    """Train a policy → its network, observations (…, D) → logits (…, A).

    reward_of: Steps → rewards (N, T), in place of the environment's. watch(steps, actor) is called
    after each update.
    """
    torch.manual_seed(seed)
    rng = generator(seed, "ppo")
    env, seen = lib.environment(name, config.envs, seed, wrapper)
    width, n_actions = seen.shape[1], int(env.single_action_space.n)
    actor, critic = lib.mlp([width, 64, 64, n_actions], 0.01), lib.mlp([width, 64, 64, 1])
    optimizers = [(net, adamw(net, 0, betas=(0.9, 0.999), eps=1e-5)) for net in (actor, critic)]
    iterations = config.steps // (config.envs * config.horizon)
    for iteration in range(iterations):
        steps, seen = lib.rollout(env, seen, actor, config.horizon, rng)
        x, actions = steps.seen.flatten(0, 1), steps.actions.flatten()
        with torch.no_grad():
            old_logprobs, values = chosen_logprobs(actor(x), actions), critic(x).squeeze(-1)
            next_values = critic(steps.after).squeeze(-1)
        rewards = bootstrapped(reward_of(steps) if reward_of else steps.rewards, next_values,
                               steps.terminated, steps.truncated, config.gamma)
        mask, to = to_rows(steps.terminated | steps.truncated)
        advantages, returns = gae(to(rewards), to(values), mask, config.gamma, config.lam)
        advantages, returns = masked_whiten(advantages, mask)[mask], returns[mask]

        for _ in range(config.epochs):
            for mb in torch.randperm(len(x), generator=rng).chunk(config.minibatches):
                ones = torch.ones(len(mb))
                logprobs = chosen_logprobs(actor(x[mb]), actions[mb])
                policy_loss(logprobs, old_logprobs[mb], advantages[mb], ones,
                            config.clip).backward()
                now = critic(x[mb]).squeeze(-1)     # may move far: returns are not scaled
                value_loss(now, values[mb], returns[mb], ones, math.inf).backward()
                for net, optimizer in optimizers:
                    update(net, optimizer, config.lr * (1 - iteration / iterations))
        if watch:
            watch((iteration + 1) * config.envs * config.horizon, actor)
    return actor


# ---- what is measured ----

def job(quick, seed, env, clip, lr, epochs):
    """Train → the mean return at every tenth of the steps; at the end over 100 episodes."""
    config = Config(2048 if quick else Config.steps, clip=clip, lr=lr, epochs=epochs)
    curve = []
    def watch(steps, actor):
        if len(curve) < 9 and steps >= config.steps * (len(curve) + 1) / 10:
            curve.append(lib.evaluate(env, actor, seed, 10))
    actor = train(env, config, seed, watch=watch)
    curve += [lib.evaluate(env, actor, seed)]
    return {f"at {10 * (n + 1)}%": value for n, value in enumerate(curve)} | {"return": curve[-1]}


def main():
    args = lib.arguments(__doc__, 10, ("--env", {"default": "CartPole-v1"}))
    base = {"env": args.env, "clip": Config.clip, "lr": Config.lr, "epochs": Config.epochs}
    study = [base | {"clip": clip, "lr": lr * Config.lr, "epochs": epochs}
             for epochs in (1, 10) for lr in (1, 10) for clip in (Config.clip, math.inf)]
    rows = lib.collect(args, "cartpole", job, lib.over(args.seeds, base) + lib.over(
        args.seeds[:3], *(setting for setting in study if setting != base)))

    fig, [[left, right]] = lib.figure(2)
    final = lib.pick(rows, "return", **base)
    mean, half = lib.interval(final)
    for row in rows[:len(final)]:
        left.plot([k[3:] for k in row if "%" in k], [row[k] for k in row if "%" in k],
                  color=lib.COLOURS[0], alpha=0.4)
    left.set(xlabel=f"share of {Config.steps:,} steps", ylabel="mean return of 10 episodes",
             title=f"{len(final)} seeds: {mean:.1f} ± {half:.1f} at the end, of 100 episodes")
    print(f"mean return {mean:.1f} ± {half:.1f}, lowest of {len(final)} seeds {min(final):.1f}")
    for n, setting in enumerate(study):
        returns, off = lib.pick(rows, "return", **setting)[:3], n % 2
        right.plot([n // 2 + 0.2 * off] * len(returns), returns, "ox"[off], color=lib.COLOURS[off],
                   label=["clip on", "clip off"][n] if n < 2 else None)
        print(setting, [f"{x:.1f}" for x in returns])
    right.set_xticks(range(4), [f"lr {s['lr']:g}\n{s['epochs']} epochs" for s in study[::2]])
    right.set_title(f"return at the end, {len(returns)} seeds")
    lib.save(args, fig, "cartpole")


if __name__ == "__main__":
    entry(main)

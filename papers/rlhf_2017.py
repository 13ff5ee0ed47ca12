"""
A reward that nobody writes down: it is learnt from choices between clips, while PPO runs.

    python papers/rlhf_2017.py

Christiano et al. 2017, Deep reinforcement learning from human preferences (section 2.2): an
ensemble of 3 reward predictors, r(s, a), is trained on pairs of clips by Bradley and Terry's model
with 10 % of answers taken for chance (2.2.3). Pairs are asked about on whose winner the predictors
disagree most (2.2.4), as PPO brings new ones. The policy gets their mean, normalised. A pole that
falls stays on the ground, and episodes have a fixed length, since their ends would tell. The hidden
reward, −|angle| − |x|, is for the synthetic person and the evaluation alone.

Left out: a held-out share of the choices that steers a weight decay, "equal", "can't tell", pixels.
"""
import lib      # first: puts the project on sys.path
import math

import numpy as np
import torch
import torch.nn.functional as F

from cartpole import Config, train
from common import adamw, generator, update
from plumbing.command_line import entry

CLIP, LENGTH, ROLLOUTS = 25, 100, 60    # steps of a clip, of an episode; rollouts of 8 episodes
BUDGETS, ERRS = [150, 450, 1350], 0.1   # choices; how often one is by chance, and is taken to be


def hidden_reward(seen):
    """Observations (…, 4) → −|angle| − |x| (…)."""
    return -abs(seen[..., 2]) - abs(seen[..., 0])


def fixed_length(env):
    """CartPole with episodes of LENGTH steps and the hidden reward. The pole may fall."""
    import gymnasium

    class Lies(gymnasium.Wrapper):
        def step(self, action):
            self.env.step(action)
            state = np.array(self.unwrapped.state)
            for i, most in ((0, 2.4), (2, math.pi / 2)):        # a wall, the ground
                if abs(state[i]) >= most:
                    state[i:i + 2] = math.copysign(most, state[i]), 0
            self.unwrapped.state = state
            return state.astype(np.float32), hidden_reward(state), False, False, {}
    env.unwrapped.theta_threshold_radians = env.unwrapped.x_threshold = math.inf    # no end
    return gymnasium.wrappers.TimeLimit(Lies(env.unwrapped), LENGTH)


def preference_loss(first, second, chosen):
    """Mean of −log P(choice), P = ε/2 + (1 − ε) σ(Σ r of the chosen clip − Σ r of the other).

    first, second (n, CLIP): predicted rewards. chosen (n,): 1 for the first clip, 0 for the second.
    ε = ERRS is the share of choices by chance. With ε = 0 it is ranking_loss of ../reward.py.
    """
    margin = (first.sum(-1) - second.sum(-1)) * (2 * chosen - 1)
    return -torch.log(ERRS / 2 + (1 - ERRS) * torch.sigmoid(margin)).mean()


def disagreement(first, second):
    """Predicted rewards (3, n, CLIP) → (n,): variance of the three P(the first is chosen)."""
    return torch.sigmoid(first.sum(-1) - second.sum(-1)).var(0)


class Predictors:
    """Three reward predictors, the choices that they learn from, and the person who chooses."""
    def __init__(self, seed, labels, ask, when, rollouts):
        self.rng, self.ask = generator(seed, "predictors"), ask
        first = labels if when == "start" else labels // 4     # of the untrained policy
        later = torch.linspace(first, labels, rollouts).round().long().tolist()
        self.due = [b - a for a, b in zip([0, *later], later)]
        self.nets = [lib.mlp([6, 64, 64, 1]) for _ in range(3)]
        self.optimizers = [adamw(net, 0) for net in self.nets]
        self.choices = []       # clip (CLIP, 6), clip, 1 or 0, how often each predictor has it

    def rewards(self, x):
        """States and actions (…, 6) → (3, …)."""
        return torch.stack([net(x).squeeze(-1) for net in self.nets])

    def choose(self, first, second):
        """The person: 1 where the first clip has more hidden reward; by chance in ERRS of cases."""
        better = hidden_reward(first).sum(-1) > hidden_reward(second).sum(-1)
        chance = torch.rand(2, len(better), generator=self.rng)
        return torch.where(chance[0] < ERRS, chance[1] < 0.5, better).float()

    @torch.no_grad()
    def query(self, clips, n):
        """Ask about n pairs of clips (m, CLIP, 6), of ten times as many that are drawn."""
        pairs = torch.randint(len(clips), (2, 10 * n), generator=self.rng)
        if self.ask == "disagreement":
            by = disagreement(*(self.rewards(clips[i]) for i in pairs))
            pairs = pairs[:, by.argsort(descending=True)]
        first, second = (clips[i] for i in pairs[:, :n])
        copies = torch.poisson(torch.ones(n, 3), generator=self.rng)     # a bootstrap as it comes
        self.choices += zip(first, second, self.choose(first, second), copies)

    def learn(self, steps=30):
        first, second, chosen, copies = map(torch.stack, zip(*self.choices))
        for k, net in enumerate(self.nets):
            for _ in range(steps):
                mb = torch.multinomial(copies[:, k] + 1e-9, 32, True, generator=self.rng)
                a, b = net(first[mb]).squeeze(-1), net(second[mb]).squeeze(-1)
                preference_loss(a, b, chosen[mb]).backward()
                update(net, self.optimizers[k], 1e-3)

    def __call__(self, steps):
        """Rewards (N, T) for a rollout, after asking about it and learning."""
        x = torch.cat([steps.after, F.one_hot(steps.actions, 2)], -1)           # (N, T, 6)
        if n := self.due.pop(0):
            self.query(x.reshape(-1, CLIP, 6), n)
        self.learn()
        return self.rewards(x).mean(0).detach()


def job(quick, seed, labels, ask, when):
    """→ the mean hidden return of 50 episodes. labels 0: PPO on the hidden reward itself."""
    torch.manual_seed(seed)
    rollouts, past = 3 if quick else ROLLOUTS, []
    source = Predictors(seed, labels, ask, when, rollouts) if labels else lambda x: x.rewards
    def rewards(steps):         # mean 0, spread 1 over all rollouts so far: a steady scale
        past.append(source(steps))
        return (past[-1] - torch.stack(past).mean()) / torch.stack(past).std()
    actor = train("CartPole-v1", Config(rollouts * Config.envs * LENGTH, horizon=LENGTH), seed,
                  rewards, wrapper=fixed_length)
    return {"return": lib.evaluate("CartPole-v1", actor, seed, 50, wrapper=fixed_length)}


def main():
    args = lib.arguments(__doc__, 5)
    ways = [("", "", [0]), ("disagreement", "online", BUDGETS), ("random", "online", BUDGETS[1:2]),
            ("disagreement", "start", BUDGETS[1:2])]
    rows = lib.collect(args, "rlhf_2017", job, lib.over(args.seeds, *(
        {"labels": n, "ask": ask, "when": when} for ask, when, labels in ways for n in labels)))
    chance = lib.evaluate("CartPole-v1", lambda x: torch.zeros(len(x), 2), 0, wrapper=fixed_length)
    fig, [[ax]] = lib.figure()
    ax.axhline(chance, color="k", lw=0.5, label=f"random actions: {chance:.0f}")
    for ask, when, labels in ways:
        found = [lib.pick(rows, "return", labels=n, ask=ask, when=when) for n in labels]
        name = f"{ask}, {when}" if ask else "the hidden reward itself"
        lib.line(ax, name, [n or 2 * BUDGETS[-1] for n in labels], found)
        print("  by seed:", [[round(x) for x in of_n] for of_n in found])
    ax.set(xlabel="choices (the hidden reward: none)", ylabel="hidden return",
           title=f"a reward learnt from choices, {len(args.seeds)} seeds")
    lib.save(args, fig, "rlhf_2017")


if __name__ == "__main__":
    entry(main)

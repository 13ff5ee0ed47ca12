"""
A reward that nobody writes down: it is learnt from choices between clips, while PPO runs.

    python papers/rlhf_2017.py

Christiano et al. 2017, Deep reinforcement learning from human preferences (section 2.2): an
ensemble of 3 reward predictors, r(s, a), is trained on pairs of clips by Bradley and Terry's model
with 10 % of answers taken for chance (2.2.3). Pairs are asked about on whose winner the predictors
disagree most (2.2.4), as PPO brings new ones. A quarter of the choices is about a policy that acts
at random, and is learnt before PPO begins, since an early mistake may not be undone (A.2).

Acrobot: two links hang from a bar. The hidden reward, the lower end's height, is for the synthetic
person and the evaluation alone. Episodes have a fixed length, since their ends would tell.

Left out: a held-out share of the choices that steers a weight decay, "equal", "can't tell", pixels.
"""
import lib      # first: puts the project on sys.path
import torch
import torch.nn.functional as F

from cartpole import Config, train
from common import adamw, generator, update
from plumbing.command_line import entry

CLIP, LENGTH, ROLLOUTS = 25, 200, 60    # steps of a clip, of an episode; rollouts of 8 episodes
BUDGETS, ERRS = [150, 450, 1350], 0.1   # choices; how often one is by chance, and is taken to be


def hidden_reward(seen):
    """Observations → the height of Acrobot's end above the bar, −2 to 2 (…).
    They begin with cos and sin of the angles: link 1 from straight down, link 2 from link 1."""
    cos1, sin1, cos2, sin2 = (seen[..., i] for i in range(4))
    return -cos1 - (cos1 * cos2 - sin1 * sin2)


def fixed_length(env):
    """Acrobot with episodes of LENGTH steps and the hidden reward."""
    import gymnasium

    class Height(gymnasium.Wrapper):
        def step(self, action):
            seen = self.env.step(action)[0]
            return seen, hidden_reward(seen), False, False, {}
    return gymnasium.wrappers.TimeLimit(Height(env.unwrapped), LENGTH)


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
        first = labels if when == "start" else labels // 4      # of random actions
        later = torch.linspace(first, labels, rollouts + 1).round().long()
        self.due = [first, *later.diff().tolist()]
        self.nets = [lib.mlp([9, 64, 64, 1], 0.05) for _ in range(3)]
        self.optimizers = [adamw(net, 0) for net in self.nets]
        self.choices = []       # clip (CLIP, 9), clip, 1 or 0, how often each predictor has it

    def rewards(self, x):
        """States and actions (…, 9) → (3, …)."""
        return torch.stack([net(x).squeeze(-1) for net in self.nets])

    def choose(self, first, second):
        """The person: 1 where the first clip has more hidden reward; by chance in ERRS of cases."""
        better = hidden_reward(first).sum(-1) > hidden_reward(second).sum(-1)
        chance = torch.rand(2, len(better), generator=self.rng)
        return torch.where(chance[0] < ERRS, chance[1] < 0.5, better).float()

    @torch.no_grad()
    def query(self, clips, n):
        """Ask about n pairs of clips (m, CLIP, 9), of ten times as many that are drawn."""
        pairs = torch.randint(len(clips), (2, 10 * n), generator=self.rng)
        if self.ask == "disagreement":
            by = disagreement(*(self.rewards(clips[i]) for i in pairs))
            pairs = pairs[:, by.argsort(descending=True)]
        first, second = (clips[i] for i in pairs[:, :n])
        copies = torch.poisson(torch.ones(n, 3), generator=self.rng)     # a bootstrap as it comes
        self.choices += zip(first, second, self.choose(first, second), copies)

    def learn(self, steps):
        first, second, chosen, copies = map(torch.stack, zip(*self.choices))
        for k, net in enumerate(self.nets):
            for _ in range(steps):
                mb = torch.multinomial(copies[:, k] + 1e-9, 32, True, generator=self.rng)
                a, b = net(first[mb]).squeeze(-1), net(second[mb]).squeeze(-1)
                preference_loss(a, b, chosen[mb]).backward()
                update(net, self.optimizers[k], 1e-3)

    def __call__(self, steps, learn=30):
        """Rewards (N, T) for a rollout, after asking about it and learning."""
        x = torch.cat([steps.after, F.one_hot(steps.actions, 3)], -1)           # (N, T, 9)
        if n := self.due.pop(0):
            self.query(x.reshape(-1, CLIP, 9), n)
        self.learn(learn)
        return self.rewards(x).mean(0).detach()


def job(quick, seed, labels, ask, when):
    """→ the mean hidden return of 50 episodes. labels 0: PPO on the hidden reward itself."""
    torch.manual_seed(seed)
    rollouts, past, source = 3 if quick else ROLLOUTS, [], lambda steps: steps.rewards
    if labels:
        source = Predictors(seed, labels, ask, when, rollouts)
        env, x = lib.environment("Acrobot-v1", 4 if quick else 64, seed, fixed_length)
        source(lib.rollout(env, x, lib.at_random(3), LENGTH, source.rng)[0], 3 if quick else 1000)
    def rewards(steps):         # mean 0, spread 1 over all rollouts so far: a steady scale
        past.append(source(steps))
        return (past[-1] - torch.stack(past).mean()) / torch.stack(past).std()
    actor = train("Acrobot-v1", Config(rollouts * Config.envs * LENGTH, horizon=LENGTH), seed,
                  rewards, wrapper=fixed_length)
    return {"return": lib.evaluate("Acrobot-v1", actor, seed, 50, wrapper=fixed_length)}


def main():
    args = lib.arguments(__doc__, 5)
    ways = [("disagreement", "online", BUDGETS), ("random", "online", BUDGETS),
            ("disagreement", "start", BUDGETS[1:2])]
    rows = lib.collect(args, "rlhf_2017", job, lib.over(args.seeds, *(
        {"labels": n, "ask": ask, "when": when}
        for ask, when, labels in [("", "", [0]), *ways] for n in labels)))
    best, half = lib.interval(lib.pick(rows, "return", labels=0))
    chance = lib.evaluate("Acrobot-v1", lib.at_random(3), 0, wrapper=fixed_length)
    fig, [[ax]] = lib.figure()
    ax.axhline(best, color="k", lw=0.5, label=f"the hidden reward itself: {best:.0f} ± {half:.0f}")
    ax.axhline(chance, color="k", lw=0.5, ls=":", label=f"random actions: {chance:.0f}")
    for ask, when, labels in ways:
        found = [lib.pick(rows, "return", labels=n, ask=ask, when=when) for n in labels]
        lib.line(ax, f"{ask}, {when}", labels, found)
        print("  share of the way from random to the hidden reward, by seed:",
              [[f"{(x - chance) / (best - chance):.2f}" for x in of_n] for of_n in found])
    ax.set(xscale="log", xlabel="choices", ylabel="hidden return", title="rewards from choices")
    lib.save(args, fig, "rlhf_2017")


if __name__ == "__main__":
    entry(main)

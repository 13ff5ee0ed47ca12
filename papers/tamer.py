"""
A trainer's praise and blame in place of a reward: TAMER balances a pole.

    python papers/tamer.py              # a simulated trainer, five seeds, beside PPO
    python papers/tamer.py --human      # you are the trainer: k praises, d blames, q ends

Knox and Stone 2009, Interactively shaping agents via human reinforcement: the TAMER framework.
H(s, a) predicts the trainer's reinforcement, and the agent takes the action with the highest one:
no return, no bootstrapping, since a trainer has the future in mind already. A person reacts late,
so a signal is shared among the steps it may be about (section on credit assignment).

Left out: the paper's Tetris and Mountain Car and its Gaussian features; H is linear in the state.
The simulated trainer speaks at some steps, errs at some of them, and is late. It looks at the pole
alone and never at the cart, and so knows less than the environment's reward.
"""
import lib      # first: puts the project on sys.path
import contextlib
import math
import random

import torch

from cartpole import Config, train
from plumbing.command_line import entry

TICK = 0.15             # seconds a step takes for the trainer, as in the paper's Mountain Car
SHAPE, SCALE = 2, 0.28  # of the delay, a Gamma distribution: 0.56 seconds on average
SPEAKS, ERRS = 0.3, 0.1         # how often the simulated trainer speaks, and is wrong then
RATE, MEMORY = 0.1, 20          # of learning; steps that a signal may be about
AT = [2 ** n for n in range(6, 16)]     # steps, after which the policy is measured
USABLE = 195            # a return, of at most 500
LEARNERS = ["TAMER", "TAMER without the delay", "PPO"]


# ---- H(s, a), the trainer's model: pure functions ----

def credits(n=MEMORY):
    """P(the delay d has i · TICK ≤ d < (i + 1) · TICK), i < n: how much of a signal is about the
    step i steps ago. Of a Gamma distribution with shape 2: P(d < x) = 1 − (1 + x/θ) exp(−x/θ)."""
    below = [1 - (1 + i * TICK / SCALE) * math.exp(-i * TICK / SCALE) for i in range(n + 1)]
    return torch.tensor([b - a for a, b in zip(below, below[1:])])


def features(seen):
    """Observations (…, 4) → (…, 5): numbers of about 1, and a constant 1."""
    scaled = seen / torch.tensor([2.4, 2.0, 0.2, 2.0])
    return torch.nn.functional.pad(scaled, (0, 1), value=1.0)


def learn(weights, steps, signal, credit, rate=RATE):
    """Move Σ_i c_i H(s_i, a_i) towards the signal, by one step of gradient descent on ½ (error)².

    weights (A, 5): H(s, a) = w_a · features(s). steps: [(features, action)], the newest first.
    """
    x = torch.zeros_like(weights)       # the gradient of Σ c_i H(s_i, a_i)
    for c, (seen, action) in zip(credit, steps):
        x[action] += c * seen
    return weights + rate * (signal - (weights * x).sum()) * x


def advice(seen):
    """The action that the simulated trainer has in mind: push to where the pole is falling."""
    return int(seen[2] / 0.2 + seen[3] / 2.0 > 0)


def simulated(rng):
    """A trainer: a function (step, observation, action) → what was said in this step, summed."""
    pending = []

    def said(step, seen, action):
        if rng.random() < SPEAKS:
            right = (action == advice(seen)) != (rng.random() < ERRS)
            pending.append((step + rng.gammavariate(SHAPE, SCALE) / TICK, 1 if right else -1))
        due = [signal for signal in pending if signal[0] < step + 1]
        pending[:] = [signal for signal in pending if signal[0] >= step + 1]
        return sum(value for _, value in due)
    return said


# ---- the run ----

def tamer(steps, said, credit, seed, watch=lambda step, policy: None):
    """Learn from a trainer for so many steps → the policy, observations (n, 4) → H (n, A)."""
    env, seen = lib.environment("CartPole-v1", 1, seed)
    weights, past, rng = torch.zeros(2, 5), [], random.Random(seed)

    def policy(seen):
        return features(seen) @ weights.T
    with contextlib.suppress(EOFError, KeyboardInterrupt):     # the person has had enough
        for step in range(steps):
            now = torch.as_tensor(seen[0])
            h = policy(now)
            action = int(h.argmax()) if h[0] != h[1] else rng.randrange(2)
            past = [(features(now), action), *past][:MEMORY]
            seen = lib.step(env, [action])[0]
            if signal := said(step, now, action):
                weights = learn(weights, past, signal, credit)
            watch(step + 1, policy)
    return policy


def job(quick, seed, learner):
    """→ the mean return after so many steps, NaN where it is not measured."""
    steps = (128, 2048) if quick else (4096, 32768)     # of a trainer, of PPO
    row = {f"at {n}": math.nan for n in AT}

    def watch(step, policy):
        if step in AT:
            temperature = 1 if learner == "PPO" else 0
            row[f"at {step}"] = lib.evaluate("CartPole-v1", policy, seed, 10 if quick else 50,
                                             temperature)
    if learner == "PPO":
        train("CartPole-v1", Config(steps[1]), seed, watch=watch)
    else:
        now = torch.eye(MEMORY)[0]      # all of a signal is about what is happening
        tamer(steps[0], simulated(random.Random(seed)), now if "without" in learner else credits(),
              seed, watch)
    return row


def main():
    args = lib.arguments(__doc__, 5, ("--human", {"action": "store_true"}))
    if args.human:
        with lib.person(TICK) as said:
            policy = tamer(100_000, said, credits(), 1)
        return print(f"\nmean return {lib.evaluate('CartPole-v1', policy, 1, temperature=0):.1f}, "
                     f"of at most 500")
    settings = lib.over(args.seeds, *({"learner": learner} for learner in LEARNERS))
    rows = lib.collect(args, "tamer", job, settings)
    fig, [[ax]] = lib.figure()
    for learner in LEARNERS:
        mine = [row for row in rows if row["learner"] == learner]
        at = [n for n in AT if mine[0][f"at {n}"] == mine[0][f"at {n}"]]      # NaN is not itself
        lib.line(ax, learner, at, [lib.pick(mine, f"at {n}") for n in at])
        first = [next((n for n in at if row[f"at {n}"] >= USABLE), math.inf) for row in mine]
        late = torch.tensor([[row[f"at {n}"] for n in at if n >= 256] for row in mine]).mean(1)
        print(f"  steps to a return of {USABLE}, by seed: {first}; mean from 256 steps on: "
              "{:.1f} ± {:.1f}".format(*lib.interval(late)))
    teacher = lib.evaluate("CartPole-v1", lambda x: torch.eye(2)[[advice(s) for s in x]], 1,
                           temperature=0)
    print(f"what the trainer has in mind returns {teacher:.1f}")
    ax.axhline(teacher, color="k", lw=0.5, label="what the trainer has in mind")
    ax.set(xscale="log", xlabel="steps", ylabel="mean return of 50 episodes", ylim=(0, 660),
           title=f"CartPole by praise and blame, {len(args.seeds)} seeds")
    lib.save(args, fig, "tamer")


if __name__ == "__main__":
    entry(main)

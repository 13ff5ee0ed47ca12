"""
What the papers' scripts share: seeds side by side, numbers and figure, environments, a person.

Every script imports this first: it puts the project on sys.path. Each takes --seeds=N, --quick and
--jobs=N, and writes papers/<name>.csv and .png. --quick shows in seconds that a script works, in
out/quick; its results mean nothing.
"""
import contextlib
import os
import select
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT]
sys.path += [os.path.join(ROOT, "experiments"), os.path.join(ROOT, "data", "village")]

import plumbing.cpu
import torch
from torch import nn

from common import generator
from data import UserError
from experiments.lib import (COLOURS, QUICK, add_rows, arguments, base_of, checkpoints, figure,
                             finish, heldout, interval, measure, network, scratch, stage, variant,
                             world)
from project import read_rows
from sampling import sample

# for the scripts, and for figure1.py, which makes the village's checkpoints
__all__ = ["COLOURS", "arguments", "base_of", "checkpoints", "figure", "heldout", "interval",
           "measure", "network", "scratch", "stage", "variant", "world"]


# ---- seeds, numbers, figure ----

def place(args, name):
    """Where a result goes: papers/<name>, or out/quick/<name>."""
    folder = "out/quick" if args.quick else "papers"
    os.makedirs(folder, exist_ok=True)
    return os.path.join(folder, name)


def over(seeds, *settings):
    """The settings, with each seed. All of the first seed come first."""
    return [{**setting, "seed": seed} for seed in seeds for setting in settings]


def pick(rows, column, **setting):
    """The values of a column in the rows of a setting."""
    return [row[column] for row in rows if all(row.get(k) == v for k, v in setting.items())]


def call(job, quick, setting):
    return {**setting, **job(quick=quick, **setting)}


def collect(args, name, job, settings):
    """job(quick, **setting) → a dict of numbers, for all settings side by side → their rows.

    Rows go to <name>.csv as they come, and what is there is not run again.
    """
    path = place(args, name + ".csv")
    if args.quick and os.path.exists(path):
        os.remove(path)
    done = read_rows(path)
    left = [setting for setting in settings if not pick(done, "seed", **setting)]
    with ProcessPoolExecutor(args.jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for row in pool.map(partial(call, job, args.quick), left):
            short = [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()]
            print(", ".join(short), flush=True)
            add_rows(path, [row])
    done = read_rows(path)
    return [row for setting in settings for row in done if pick([row], "seed", **setting)]


def line(ax, label, xs, values, style="o-"):
    """Draw and print the mean and its 95 % interval over seeds. values: a list of numbers an x."""
    found = [interval(of_x) for of_x in values]
    ax.errorbar(xs, *zip(*found), fmt=style, capsize=3, label=label)
    print(f"{label}: " + ", ".join(f"{x}: {m:.4g} ± {half:.2g}" for x, (m, half) in zip(xs, found)))


def save(args, fig, name):
    for ax in fig.axes:
        if ax.get_legend_handles_labels()[0]:
            ax.legend()
    finish(fig, place(args, name + ".png"))


# ---- environments ----

def environment(name, n, seed, wrapper=None):
    """n copies of a gymnasium environment side by side, and the first observations (n, D) float32.

    One that has ended starts again at once. Raises UserError if there is no such environment, or
    if it is one that these scripts can't learn: they choose among a few actions.
    """
    try:
        import gymnasium
    except ImportError:
        raise UserError("this needs the package gymnasium: pip install -r "
                        "papers/requirements.txt") from None
    same_step = {"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}
    try:
        env = gymnasium.make_vec(name, n, vectorization_mode="sync", vector_kwargs=same_step,
                                 wrappers=[wrapper] if wrapper else [])
    except gymnasium.error.Error as e:
        raise UserError(f"--env={name} can't be made: {e}") from None
    actions, observations = env.single_action_space, env.single_observation_space
    if not isinstance(actions, gymnasium.spaces.Discrete):
        raise UserError(f"--env={name} has continuous actions, {actions}; this script chooses "
                        f"among a few, as in CartPole-v1 or Acrobot-v1")
    if len(observations.shape or ()) != 1:
        raise UserError(f"--env={name} shows {observations}; this script needs a vector of "
                        f"numbers, as in CartPole-v1 or Acrobot-v1")
    return env, env.reset(seed=seed)[0]


def at_random(n_actions):
    """A policy that acts at random: observations (n, D) → equal logits (n, n_actions)."""
    return lambda seen: torch.zeros(len(seen), n_actions)


def step(env, actions):
    """→ the observations to go on from, and of the step: reward, whether it ended and whether it
    was cut off, and the observation it led to; of an episode that is over, its last one."""
    seen, rewards, terminated, truncated, info = env.step(actions)
    after = seen.copy()
    for i in (terminated | truncated).nonzero()[0]:
        after[i] = info["final_obs"][i]
    return seen, rewards, terminated, truncated, after


@dataclass
class Steps:
    """A rollout: (N, T, …) of N environments and T steps."""
    seen: torch.Tensor          # observation (N, T, D)
    actions: torch.Tensor
    rewards: torch.Tensor
    terminated: torch.Tensor    # the episode ended here
    truncated: torch.Tensor     # it was cut off here
    after: torch.Tensor         # the observation that the step led to (N, T, D)


@torch.no_grad()
def rollout(env, seen, actor, horizon, rng):
    """Play `horizon` steps from the observations `seen` → Steps, the observations at the end."""
    steps = []
    for _ in range(horizon):
        x = torch.as_tensor(seen)
        actions = sample(actor(x), torch.rand(len(x), generator=rng))
        seen, *rest = step(env, actions.numpy())
        steps.append([x, actions, *map(torch.as_tensor, rest)])
    x, actions, rewards, *rest = (torch.stack(parts, 1) for parts in zip(*steps))
    return Steps(x, actions, rewards.float(), *rest), seen


@torch.no_grad()
def evaluate(name, policy, seed, episodes=100, temperature=1.0, wrapper=None):
    """Mean return over new episodes. policy: (n, D) → logits (n, A), from which actions are drawn;
    temperature 0 takes the largest."""
    env, seen = environment(name, episodes, 10_000 + seed, wrapper)
    rng = generator(seed, "evaluate")
    returns, going = torch.zeros(episodes), torch.ones(episodes, dtype=torch.bool)
    while going.any():
        actions = sample(policy(torch.as_tensor(seen)), torch.rand(episodes, generator=rng),
                         temperature)
        seen, rewards, terminated, truncated, _ = step(env, actions.numpy())
        returns += torch.as_tensor(rewards).float() * going
        going &= ~torch.as_tensor(terminated | truncated)
    return returns.mean().item()


def mlp(sizes, last=1.0, act=nn.Tanh):
    """Linear maps with `act` between them. Weights are orthogonal, the last map's times `last`."""
    layers = []
    for i, (a, b) in enumerate(zip(sizes, sizes[1:])):
        linear, final = nn.Linear(a, b), i == len(sizes) - 2
        nn.init.orthogonal_(linear.weight, last if final else 2 ** 0.5)
        nn.init.zeros_(linear.bias)
        layers += [linear] if final else [linear, act()]
    return nn.Sequential(*layers)


# ---- the recipe ----

def run_ppo(args, name, seed, sft, base, *flags):
    """ppo.py in this process, in a folder of its own with a seed's sft.pt and reward.pt → its
    policy. Nothing is measured on its way, so that its time is that of its training."""
    import ppo
    out = variant(os.path.dirname(sft), scratch(args, f"papers/{name}"), "sft.pt", "reward.pt")
    sys.argv = ["ppo.py", f"--out={out}", f"--seed={seed}", f"--base={base}", "--fresh", *flags]
    if args.quick:
        sys.argv += ["--size=smoke", *QUICK["ppo"]]
    ppo.heldout_metrics = lambda *args: {}
    ppo.main()
    return network(os.path.join(out, "ppo.pt"))


# ---- a person ----

@contextlib.contextmanager
def person(tick):
    """You, at the terminal → a function (step, observation, action) that draws the cart, waits for
    `tick` seconds, and returns what you said: 1 for each k, −1 for each d. q raises EOFError."""
    try:
        import termios
        import tty
        fd = sys.stdin.fileno()
        before = termios.tcgetattr(fd)
    except Exception:
        raise UserError("--human needs a terminal of Linux or macOS, to read keys from") from None

    def said(step, seen, action):
        place, pole = round(20 + 8 * min(2.4, max(-2.4, seen[0].item()))), seen[2].item()
        lean = "|" if abs(pole) < 0.03 else "/" if pole > 0 else "\\"
        print(f"\r{lean:>{place}}{'':{40 - place}} step {step}: k good, d bad, q end ", end="",
              flush=True)
        time.sleep(tick)
        typed = os.read(fd, 99) if select.select([fd], [], [], 0)[0] else b""
        if b"q" in typed:
            raise EOFError
        return typed.count(b"k") - typed.count(b"d")
    try:
        tty.setcbreak(fd)
        yield said
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)

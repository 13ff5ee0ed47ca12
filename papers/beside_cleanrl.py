"""
cartpole.py's PPO beside CleanRL's, which is run as it is.

    git clone https://github.com/vwxyzjn/cleanrl
    python papers/beside_cleanrl.py --script=cleanrl/cleanrl/ppo.py

Both train for 100,000 steps on CartPole-v1, CleanRL with its own defaults in everything else. A
trained policy is measured by its likeliest actions, over the same 100 episodes for both.

CleanRL's imports tyro and tensorboard are replaced by stand-ins. Its environments begin anew in
the step that ends an episode, as they do in the gymnasium 0.29 that it asks for.
"""
import lib      # first: puts the project on sys.path
import contextlib
import io
import os
import runpy
import sys
import time
import types
from functools import partial
from unittest import mock

from cartpole import Config, train
from data import UserError
from plumbing.command_line import entry


def cleanrl(path, seed, steps):
    """Run CleanRL's ppo.py → its network, observations (n, D) → logits (n, A)."""
    import gymnasium.vector as vector
    tyro, board = types.ModuleType("tyro"), types.ModuleType("torch.utils.tensorboard")
    tyro.cli = lambda args: args(total_timesteps=steps, seed=seed, cuda=False)
    board.SummaryWriter = mock.MagicMock()

    class SameStep(vector.SyncVectorEnv):
        def __init__(self, make):
            super().__init__(make, autoreset_mode=vector.AutoresetMode.SAME_STEP)

        def step(self, actions):
            return *super().step(actions)[:4], {}       # it reads infos for its log alone
    with (mock.patch.dict(sys.modules, {"tyro": tyro, "torch.utils.tensorboard": board}),
          mock.patch.object(vector, "SyncVectorEnv", SameStep),
          contextlib.redirect_stdout(io.StringIO())):
        return runpy.run_path(path, run_name="__main__")["agent"].actor


def job(script, quick, seed):
    steps = 2048 if quick else Config.steps
    found = {}
    for name, make in (("ours", lambda: train("CartPole-v1", Config(steps), seed)),
                       ("CleanRL", lambda: cleanrl(script, seed, steps))):
        start = time.process_time()
        policy = make()
        found[f"{name}, seconds"] = time.process_time() - start
        found[name] = lib.evaluate("CartPole-v1", policy, seed)
    return found


def main():
    args = lib.arguments(__doc__, 10, ("--script", {"default": "", "help": "CleanRL's ppo.py"}))
    lib.environment("CartPole-v1", 1, 0)
    if not os.path.exists(args.script):
        raise UserError(f"--script={args.script}: there is no such file; git clone "
                        f"https://github.com/vwxyzjn/cleanrl has cleanrl/ppo.py")
    rows = lib.collect(args, "beside_cleanrl", partial(job, args.script),
                       lib.over(args.seeds, {}))
    for name in ("ours", "CleanRL"):
        returns, seconds = lib.pick(rows, name), lib.pick(rows, name + ", seconds")
        mean, half = lib.interval(returns)
        print(f"{name}: mean return {mean:.1f} ± {half:.1f}, lowest {min(returns):.1f}, "
              f"{sum(seconds) / len(seconds):.0f} s of CPU a seed")


if __name__ == "__main__":
    entry(main)

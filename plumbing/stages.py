"""
The names of stages and rounds. Round 1 makes reward.pt and ppo.pt, round 2 reward-2.pt, ppo-2.pt.
"""
import os
import re

STAGES = ["pretrain", "sft", "reward", "ppo"]
POLICY = re.compile(r"pretrain|sft|ppo(-[2-9]|-[1-9]\d+)?")      # stages that answer


def in_round(name, n):
    """A name in round n: ppo, ppo-2, ppo-3, …"""
    return name if n == 1 else f"{name}-{n}"


def round_of(stage):
    """ppo-2 → 2, ppo → 1."""
    return int(stage.partition("-")[2] or 1)


def policy_before(n):
    """The policy that round n starts from: its answers are compared, PPO goes on from it."""
    return "sft" if n == 1 else in_round("ppo", n - 1)


def rounds_before(n):
    """The stages of the rounds before the n-th, in order."""
    return [in_round(stage, i) for i in range(1, n) for stage in ("reward", "ppo")]


def policies(out):
    """The finished stages in a folder that can answer, oldest first."""
    files = os.listdir(out) if os.path.isdir(out) else []
    names = [f[:-3] for f in files if f.endswith(".pt") and POLICY.fullmatch(f[:-3])]
    return sorted(names, key=lambda s: (STAGES.index(s.split("-")[0]), round_of(s)))


def script_of(stage):
    """The script and flag that make a stage: reward-2 → ["reward.py", "--round=2"]."""
    if stage == "reward-eval":
        return ["reward.py", "--fold=2"]
    name, _, n = stage.partition("-")
    return [name + ".py", *[f"--round={n}"] * n.isdigit()]

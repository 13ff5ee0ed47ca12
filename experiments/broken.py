"""
Runs that are broken on purpose, and what compare.py says of them: would you see it in the log?

    python experiments/broken.py            # 15 iterations of PPO for each mistake
    python experiments/broken.py --quick

They start from the SFT and the reward model of seed 2, as experiments/seeds.py makes them.
"""

import os
import subprocess
import sys

import lib

from plumbing.command_line import entry

EARLY = """
import torch
def early(scores, logprobs, ref_logprobs, mask, beta, right=ppo.kl_rewards):
    rewards = right(torch.zeros_like(scores), logprobs, ref_logprobs, mask, beta)
    rewards[torch.arange(len(rewards)), (mask != 0).float().argmax(1)] += scores
    return rewards
ppo.kl_rewards = early"""
KL_SIGN = """
right = ppo.kl_rewards
ppo.kl_rewards = lambda scores, new, ref, mask, beta: right(scores, new, ref, mask, -beta)"""
ADVANTAGE_SIGN = """
right = ppo.policy_loss
ppo.policy_loss = lambda new, old, a, mask, clip: right(new, old, -a, mask, clip)"""
# name: (flags, the mistake, as Python that is run before ppo.main())
BROKEN = {
    "learning rate × 10": (["--lr=2e-3"], ""),
    "the KL penalty's sign wrong": ([], KL_SIGN),
    "the score on the first token of the answer": ([], EARLY),
    "the advantages' sign wrong": ([], ADVANTAGE_SIGN),
}


def verdict(log):
    """What compare.py says of a log: the lines about metrics that are out."""
    script = os.path.join(lib.ROOT, "experiments", "compare.py")
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    said = subprocess.run([sys.executable, script, log], text=True, **both).stdout
    telling = ("is too ", " are out.")
    lines = said.splitlines()
    return [x for x in lines if x.startswith("All") or any(word in x for word in telling)]


def main():
    args = lib.arguments(__doc__, 1)
    seed = 1 if args.quick else 2
    few = [] if args.quick else ["--iterations=15", "--eval_every=10"]
    source = lib.checkpoints(args, seed)
    for n, (name, (flags, patch)) in enumerate(BROKEN.items()):
        out = lib.variant(source, lib.scratch(args, f"broken/{n}"), "sft.pt", "reward.pt")
        lib.stage(args, "ppo", out, seed, *few, *flags, patch=patch)
        print("\n".join([f"\n{name}:", *verdict(f"{out}/ppo.jsonl")]), flush=True)


if __name__ == "__main__":
    entry(main)

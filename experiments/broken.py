"""
Runs that are broken on purpose, and what compare.py says of them: would you see it in the log?

    python experiments/broken.py            # 15 iterations of PPO for each mistake, seed 2, from experiments/seeds.py's SFT and reward model
    python experiments/broken.py --quick
"""
import os
import subprocess
import sys

import lib

FIRST = """
import torch
def early(scores, logprobs, ref_logprobs, mask, beta, right=ppo.kl_rewards):
    rewards = right(torch.zeros_like(scores), logprobs, ref_logprobs, mask, beta)
    rewards[torch.arange(len(rewards)), (mask != 0).float().argmax(1)] += scores
    return rewards
ppo.kl_rewards = early"""
# name: (flags, what is planted)
BROKEN = {
    "learning rate × 10": (["--lr=2e-3"], ""),
    "the KL penalty's sign wrong": ([], "ppo.kl_rewards = lambda s, l, r, m, beta, right=ppo.kl_rewards: right(s, l, r, m, -beta)"),
    "the score on the first token of the answer": ([], FIRST),
    "the advantages' sign wrong": ([], "ppo.policy_loss = lambda new, old, a, m, clip, right=ppo.policy_loss: right(new, old, -a, m, clip)"),
}


def main():
    args = lib.arguments(__doc__, 1)
    source = lib.checkpoints(args, 1 if args.quick else 2)
    for n, (name, (flags, patch)) in enumerate(BROKEN.items()):
        out = lib.variant(source, lib.scratch(args, f"broken/{n}"), "sft.pt", "reward.pt")
        lib.stage(args, "ppo", out, 1 if args.quick else 2, *([] if args.quick else ["--iterations=15", "--eval_every=10"]), *flags, patch=patch)
        said = subprocess.run([sys.executable, os.path.join(lib.ROOT, "experiments", "compare.py"), f"{out}/ppo.jsonl"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout
        print(f"\n{name}:\n" + "\n".join(line for line in said.splitlines() if "is too " in line or " are out." in line or line.startswith("All")), flush=True)


if __name__ == "__main__":
    main()

"""
Does PPO learn from a verifier, and what does it make of partial credit? Exact match by task.

    pip install reasoning-gym && python experiments/gym.py

The recipe on data/gym: three seeds of SFT on one base, then PPO whose reward is 1 for a right
answer, else 0. And PPO from the same SFT models, with the verifier's partial credit as the reward.
One answer to each held-out task of the final half, sampled, and again the likeliest one.
"""

import os
from types import SimpleNamespace

import lib
import numpy as np
from data import UserError, folder_of, load_file, read_heldout
from data.vocab import Vocab
from evaluate import sample_responses
from plumbing.checkpoint import load
from plumbing.command_line import entry

VERIFIER = "data/gym/verifier.py"
STAGES = {"exact": ("sft", "ppo"), "credit": ("ppo",)}  # to measure, by PPO's reward
KEYS = ["reward", "seed"]


def train(args, reward, seed):
    """The folder with a seed's stages; what is missing is made."""
    base = lib.scratch(args, "gym/base")
    lib.stage(args, "pretrain", base, 1337, "--data=gym")
    out = lib.scratch(args, f"gym/{reward}-{seed}")
    if reward == "credit":
        lib.variant(train(args, "exact", seed), out, "sft.pt")
    lib.variant(base, out, "pretrain.pt")
    flags = ["--data=gym", f"--base={out}/pretrain.pt"]
    lib.stage(args, "sft", out, seed, *flags)
    # a model of 30 thousand parameters has nothing right, which ppo.py refuses to learn from
    patch = "ppo.scale_of = lambda scores, name: [0.0, 1.0]" if args.quick else ""
    lib.stage(args, "ppo", out, seed, *flags, f"--reward={VERIFIER}:{reward}", patch=patch)
    return out


def answers_of(path, rows, temperature):
    """A stage's answers to the tasks, as text."""
    vocab = Vocab(folder_of("gym"))
    config = SimpleNamespace(max_new_tokens=16, seed=1337, temperature=temperature)
    run = SimpleNamespace(vocab=vocab, config=config)
    prompts = [vocab.prompt(row["prompt"]) for row in rows]
    return [vocab.decode(r) for r in sample_responses(lib.network(path), prompts, run)]


def job(args, reward, seed):
    """Rows of the CSV: for each stage and kind of task, what the verifier says on average."""
    out, found = train(args, reward, seed), []
    verifier = load_file(VERIFIER)
    tasks = read_heldout(os.path.join(folder_of("gym"), "prompts.jsonl"), ["prompt"], final=True)
    for stage in STAGES[reward]:
        path = f"{out}/{stage}.pt"
        sampled, likeliest = (answers_of(path, tasks, temperature) for temperature in (1.0, 0.0))
        for kind in verifier.KINDS:
            mine = [i for i, row in enumerate(tasks) if row["kind"] == kind]

            def mean(function, answers):
                return float(np.mean([function(tasks[i]["prompt"], answers[i]) for i in mine]))

            found.append(
                {
                    "stage": stage,
                    "kind": kind,
                    "tasks": len(mine),
                    "exact": mean(verifier.exact, sampled),
                    "credit": mean(verifier.credit, sampled),
                    "likeliest_exact": mean(verifier.exact, likeliest),
                    "minutes": load(path)["seconds"] / 60,
                }
            )
    return found


def table(rows, mark):
    """Print a column's mean over seeds, with its 95 % interval, by stage and kind."""
    columns = [(reward, stage) for reward in STAGES for stage in STAGES[reward]]
    print(f"\n{mark:16s}" + "".join(f"{f'{stage} ({reward})':>19s}" for reward, stage in columns))
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    for kind in [*kinds, "all"]:
        line = f"{kind:16s}"
        for column in columns:
            mine = [r for r in rows if (r["reward"], r["stage"]) == column]
            mine = [r for r in mine if kind in (r["kind"], "all")]
            seeds = [[r for r in mine if r["seed"] == seed] for seed in {r["seed"] for r in mine}]
            mean, half = lib.interval([np.mean([r[mark] for r in seed]) for seed in seeds])
            line += f"{mean:11.3f} ±{half:6.3f}"
        print(line)


def main():
    args = lib.arguments(__doc__, 3)
    try:
        load_file(VERIFIER).package()
    except UserError as e:
        if not args.quick:
            raise
        return print(f"skipped: {e}")
    jobs = [
        ((reward, seed), lambda reward=reward, seed=seed: job(args, reward, seed))
        for reward in STAGES
        for seed in args.seeds
    ]
    rows = lib.collect(args, lib.place(args, "gym.csv"), jobs, KEYS)
    for mark in ("exact", "credit", "likeliest_exact"):
        table(rows, mark)


if __name__ == "__main__":
    entry(main)

"""
How much of a result is luck: the default run with other seeds, mean and range.

    python experiments/seeds.py                     # 10 seeds of SFT → PPO on out/village's base
    python experiments/seeds.py --whole --seeds=3   # 3 seeds of the whole run, pretraining too

Seeds run two at a time, on one thread each. What is finished is not run again, and what was
interrupted is resumed. Results are added to experiments/seeds.csv (or whole.csv) as they come; the
summary at the end is of all seeds in that file. Other flags are given to ppo.py.
"""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

from project import ROOT, read_seeds, run_script, write_seeds

from plumbing.checkpoint import load
from plumbing.command_line import Parser, entry, value_of

STAGES = ("base", "sft", "ppo")
COLUMNS = [
    "gold",
    "helpful",
    "honest",
    "harmless",
    "win_vs_sft",
    "kl",
    "length",
    "eos_fraction",
    "pretrain_loss",
]


def run(seed, args):
    """One seed → its summary, or None if it failed; its output goes to OUT/log.txt."""
    out = os.path.join(args.out, f"{'whole' if args.whole else 'seed'}-{seed}")
    os.makedirs(out, exist_ok=True)
    summary = os.path.join(out, "summary.json")
    if not os.path.exists(summary):
        base = [] if args.whole else [f"--base={args.base}"]
        script = os.path.join(ROOT, "ppo.py")
        command = [script, f"--seed={seed}", f"--out={out}", *base, *args.flags]
        if run_script(command, os.path.join(out, "log.txt")):
            print(f"seed {seed} failed; see {out}/log.txt", flush=True)
            return None
    with open(summary) as f:
        s = json.load(f)
    sft, ppo, minutes = s["sft"], s["ppo"], sum(s["seconds"].values()) / 60
    print(
        f"seed {seed}: gold {sft['gold']:.3f} → {ppo['gold']:.3f}, "
        f"win rate {ppo['win_vs_sft']:.3f}, KL {ppo['kl']:.1f}, "
        f"EOS {ppo['eos_fraction']:.3f}, {minutes:.1f} minutes",
        flush=True,
    )
    return s


def row_of(s):
    """A summary → a row of seeds.csv"""
    row = {f"{stage}_{c}": round(s[stage][c], 4) for stage in STAGES for c in COLUMNS}
    for stage in ("sft", "ppo"):
        by_tag = sorted(s[stage]["by_tag"].items())
        row |= {f"{stage}_{tag}": round(mean, 4) for tag, (mean, _) in by_tag}
    return row | {f"{k}_seconds": v for k, v in s["seconds"].items()}


def line(name, values):
    mean = sum(values) / len(values)
    print(f"{name:28s} {mean:7.3f}   {min(values):7.3f} … {max(values):7.3f}")


def main():
    parser, number = Parser(__doc__), value_of(int)
    parser.add_argument("--seeds", type=number, default=10)
    parser.add_argument("--first", type=number, default=1, help="the first seed; the others follow")
    parser.add_argument("--whole", action="store_true", help="pretrain each seed too")
    parser.add_argument("--base", default="out/village/pretrain.pt")
    parser.add_argument("--out", default="out/seeds")
    parser.add_argument("--jobs", type=number, default=2)
    parser.add_argument("--csv", default="", help="default: experiments/seeds.csv or whole.csv")
    args, args.flags = parser.parse_known_args()
    name = "whole.csv" if args.whole else "seeds.csv"
    path = args.csv or os.path.join(ROOT, "experiments", name)
    base = None if args.whole else load(args.base)["hash"][:8]
    rows, seeds = read_seeds(path, base), range(args.first, args.first + args.seeds)
    with ThreadPoolExecutor(args.jobs) as pool:
        for seed, s in zip(seeds, pool.map(lambda n: run(n, args), seeds)):
            if s is not None:
                own = os.path.join(args.out, f"whole-{seed}", "pretrain.pt")
                rows[seed] = {"base": base or load(own)["hash"][:8], **row_of(s)}
                write_seeds(path, rows)
    if not rows:
        sys.exit("no seed finished")
    print(f"\n{len(rows)} seeds{'':20s}    mean   lowest … highest")
    for stage in ("sft", "ppo"):
        for key in next(iter(rows.values())):
            if key.startswith(stage + "_") and not key.endswith("_seconds"):
                line(key.replace("_", " ", 1), [r[key] for r in rows.values() if key in r])
    line("gold, PPO-ptx − SFT", [r["ppo_gold"] - r["sft_gold"] for r in rows.values()])


if __name__ == "__main__":
    entry(main)

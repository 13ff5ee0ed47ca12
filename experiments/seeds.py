"""
How much of a result is luck: the default run with other seeds, mean and range.

    python experiments/seeds.py                          # 10 seeds of SFT → PPO on the base of out/village
    python experiments/seeds.py --whole --seeds=3        # 3 seeds of the whole run, pretraining too

Seeds run two at a time on one thread each; what is finished is not run again, what was cut off goes on. Results are
added to experiments/seeds.csv (or whole.csv) as they come; the summary at the end is of all seeds in that file.
"""
import argparse
import csv
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
COLUMNS = ["gold", "helpful", "honest", "harmless", "win_vs_sft", "kl", "length", "eos_fraction", "pretrain_loss"]


def run(seed, args):
    """One seed → its summary, or None if it failed; its output goes to OUT/log.txt."""
    out = os.path.join(args.out, f"{'whole' if args.whole else 'seed'}-{seed}")
    os.makedirs(out, exist_ok=True)
    summary = os.path.join(out, "summary.json")
    if not os.path.exists(summary):
        command = [sys.executable, os.path.join(ROOT, "ppo.py"), f"--seed={seed}", f"--out={out}", *([] if args.whole else [f"--base={args.base}"]), *args.flags]
        with open(os.path.join(out, "log.txt"), "a") as log:
            if subprocess.call(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}):
                print(f"seed {seed} failed; see {out}/log.txt", flush=True)
                return None
    with open(summary) as f:
        s = json.load(f)
    print(f"seed {seed}: gold {s['sft']['gold']:.3f} → {s['ppo']['gold']:.3f}, win rate {s['ppo']['win_vs_sft']:.3f}, KL {s['ppo']['kl']:.1f}, "
          f"EOS {s['ppo']['eos_fraction']:.3f}, {sum(s['seconds'].values()) / 60:.1f} minutes", flush=True)
    return s


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=1, help="the first seed; the others follow")
    parser.add_argument("--whole", action="store_true", help="pretrain each seed too")
    parser.add_argument("--base", default="out/village/pretrain.pt")
    parser.add_argument("--out", default="out/seeds")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--csv", default="", help="default: experiments/seeds.csv, or experiments/whole.csv")
    args, args.flags = parser.parse_known_args()
    path = args.csv or os.path.join(ROOT, "experiments", "whole.csv" if args.whole else "seeds.csv")
    rows = {}
    if os.path.exists(path):
        with open(path, newline="") as f:
            rows = {int(r["seed"]): {k: float(v) for k, v in r.items() if k != "seed"} for r in csv.DictReader(f)}
    with ThreadPoolExecutor(args.jobs) as pool:
        for seed, s in zip(range(args.first, args.first + args.seeds), pool.map(lambda n: run(n, args), range(args.first, args.first + args.seeds))):
            if s is None:
                continue
            rows[seed] = {**{f"{stage}_{c}": round(s[stage][c], 4) for stage in ("base", "sft", "ppo") for c in COLUMNS},
                         **{f"{k}_seconds": v for k, v in s["seconds"].items()}}
            with open(path, "w", newline="") as f:
                writer = csv.DictWriter(f, ["seed", *rows[seed]])
                writer.writeheader()
                writer.writerows({"seed": n, **rows[n]} for n in sorted(rows))
    if not rows:
        sys.exit("no seed finished")

    def line(name, values):
        print(f"{name:28s} {sum(values) / len(values):7.3f}   {min(values):7.3f} … {max(values):7.3f}")
    print(f"\n{len(rows)} seeds{'':20s}    mean   lowest … highest")
    for stage in ("sft", "ppo"):
        for c in COLUMNS:
            line(f"{stage} {c}", [r[f"{stage}_{c}"] for r in rows.values()])
    line("gold, PPO-ptx − SFT", [r["ppo_gold"] - r["sft_gold"] for r in rows.values()])


if __name__ == "__main__":
    main()

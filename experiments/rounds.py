"""
What further rounds of comparisons, reward model and PPO bring, and what the best of n answers would: mean and range over seeds.

    python experiments/seeds.py --seeds=3                    # round 1
    python experiments/rounds.py --seeds=3 --rounds=3        # rounds 2 and 3 of each seed, from there
    python experiments/rounds.py --seeds=3 --rounds=1 --best_of=4,16,64

What is finished is not run again. Reward models are measured on the held-out pairs of every round's answers; the best of
n is taken from the SFT model's answers by round 1's reward model. The numbers go to experiments/rounds.csv or best_of.csv.
"""
import argparse
import csv
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import common  # noqa: E402  before torch: it says how threads wait
import evaluate  # noqa: E402
import reward  # noqa: E402
from common import in_round  # noqa: E402
from comparisons import encode_comparisons  # noqa: E402
from data import load_judge, read_heldout, read_jsonl  # noqa: E402
from model import ScalarGPT  # noqa: E402

COLUMNS = ["gold", "win_vs_sft", "kl", "length", "eos_fraction", "pretrain_loss"]


def make(seed, args):
    """Run what is missing of a seed's rounds → whether all is there."""
    out = os.path.join(args.out, f"seed-{seed}")
    if os.path.exists(os.path.join(out, in_round("summary", args.rounds) + ".json")):
        return True
    command = [sys.executable, os.path.join(ROOT, "ppo.py"), f"--round={args.rounds}", f"--seed={seed}", f"--out={out}", f"--base={args.base}", "--device=cpu"]
    with open(os.path.join(out, "log.txt"), "a") as log:
        code = subprocess.call(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    print(f"seed {seed}: " + ("done" if not code else f"failed; see {out}/log.txt"), flush=True)
    return not code


def opened(seed, args, *parents):
    config = common.parse(evaluate.Config, evaluate.__doc__, argv=[f"--out={os.path.join(args.out, f'seed-{seed}')}", f"--seed={seed}", f"--base={args.base}", "--device=cpu"])
    return common.Run("evaluate", config, parents)


def rounds_of(seed, args):
    """→ {column: number}: of SFT and each round's policy, and of each round's reward model on each round's answers."""
    run = opened(seed, args)
    with open(os.path.join(run.config.out, in_round("summary", args.rounds) + ".json")) as f:
        summary = json.load(f)
    row = {f"{stage}_{c}": summary[stage][c] for stage in ["sft", *common.rounds_before(args.rounds + 1)[1::2]] for c in COLUMNS}
    for r in range(1, args.rounds + 1):
        checkpoint = common.load(os.path.join(run.config.out, in_round("reward", r) + ".pt"))
        model = common.model_from(checkpoint, ScalarGPT)
        row |= {f"{in_round('reward', r)}_pairs": checkpoint["results"]["pairs"], f"{in_round('reward', r)}_seconds": checkpoint["seconds"]}
        for n in range(1, args.rounds + 1):
            pairs = read_jsonl(os.path.join(run.config.out, in_round("comparisons", n) + ".jsonl"), ["prompt"], "heldout")
            items, _ = encode_comparisons(pairs, run.vocab, model.config.block_size)
            right, _, possible, _, _ = reward.evaluate(model, items, run.vocab, run)
            row |= {f"{in_round('reward', r)}_on_{common.policy_before(n)}": right, f"possible_on_{common.policy_before(n)}": possible}
    return row


def best_of_of(seed, args):
    """→ {column: number}: gold score and win rate of the best of n of SFT's answers, on the final table's prompts, and their intervals."""
    run = opened(seed, args, "sft", "reward")
    rows = read_heldout(os.path.join(run.folder, "prompts.jsonl"), ["prompt"], final=True)[:run.config.prompts]
    prompts, judge = [run.vocab.prompt(r["prompt"]) for r in rows], load_judge(run.folder)
    sft, rm = (common.model_from(run.parents[s]) for s in ("sft", "reward"))

    def gold(answers):
        return [judge.gold(r["prompt"], run.vocab.decode(a))["gold"] for r, a in zip(rows, answers)]
    one, row = gold(evaluate.answers_of(sft, prompts, run, 1.0)), {}
    for n in args.best_of:
        best = gold(evaluate.best_of(n, sft, rm, run.parents["reward"]["results"], rows, prompts, run, 1.0))
        for column, values in (("gold", best), ("win_vs_sft", evaluate.wins(best, one))):
            row[f"best_of_{n}_{column}"], row[f"best_of_{n}_{column}_ci"] = evaluate.mean_ci(values)
    with open(os.path.join(run.config.out, "summary.json")) as f:
        summary = json.load(f)
    return row | {f"{s}_{c}": summary[s][c] for s in ("sft", "ppo") for c in ("gold", "win_vs_sft", "kl")}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=1, help="the first seed; the others follow")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--best_of", type=lambda s: [int(n) for n in s.split(",")], default=[])
    parser.add_argument("--base", default="out/village/pretrain.pt")
    parser.add_argument("--out", default="out/seeds")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    path, measure = os.path.join(ROOT, "experiments", "best_of.csv" if args.best_of else "rounds.csv"), best_of_of if args.best_of else rounds_of
    rows = {}
    if os.path.exists(path):
        with open(path, newline="") as f:
            rows = {int(r["seed"]): {k: float(v) for k, v in r.items() if k != "seed"} for r in csv.DictReader(f)}
    seeds = range(args.first, args.first + args.seeds)
    with ThreadPoolExecutor(args.jobs) as pool:
        made = list(pool.map(lambda seed: make(seed, args), seeds))
    for seed, there in zip(seeds, made):
        if there:
            rows[seed] = {k: round(v, 4) for k, v in measure(seed, args).items()}
            with open(path, "w", newline="") as f:
                writer = csv.DictWriter(f, ["seed", *{k: 0 for r in rows.values() for k in r}], restval="nan")
                writer.writeheader()
                writer.writerows({"seed": n, **rows[n]} for n in sorted(rows))
    if not rows:
        sys.exit("no seed finished")
    print(f"\n{len(rows)} seeds{'':20s}    mean   lowest … highest")
    for k in {k: 0 for r in rows.values() for k in r}:
        values = [r[k] for r in rows.values() if k in r and r[k] == r[k]]      # a seed may have fewer rounds
        print(f"{k:28s} {sum(values) / len(values):9.3f}   {min(values):9.3f} … {max(values):9.3f}")


if __name__ == "__main__":
    main()

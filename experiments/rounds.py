"""
What further rounds of comparisons, reward model and PPO bring, and what best of n would.

    python experiments/seeds.py --seeds=3                    # round 1
    python experiments/rounds.py --seeds=3 --rounds=3        # rounds 2 and 3 of each seed
    python experiments/rounds.py --seeds=3 --rounds=1 --best_of=4,16,64

Prints mean and range over seeds; the numbers go to experiments/rounds.csv or best_of.csv. What is
finished is not run again. Reward models are measured on the held-out pairs of every round's
answers. The best of n is taken from the SFT model's answers by round 1's reward model; its KL is
estimated from 256 answers to each of 64 prompts (overoptimise.py's best_of_kl).
"""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

from project import ROOT, read_seeds, run_script, write_seeds

import plumbing.cpu
import evaluate
import numpy as np
import reward
from comparisons import sample_answers
from data import load_judge, meaning_of, read_heldout, read_jsonl
from data.comparisons import encode_comparisons
from overoptimise import SAMPLES, best_of_kl, scores_of
from plumbing.checkpoint import load, model_from
from plumbing.command_line import Parser, entry, parse, value_of
from plumbing.run import open_run
from plumbing.stages import in_round, policy_before
from rollout import scorer

KL_PROMPTS = 64
COLUMNS = ["gold", "win_vs_sft", "kl", "length", "eos_fraction", "pretrain_loss"]


def folder_of_seed(seed, args):
    return os.path.join(args.out, f"seed-{seed}")


def make(seed, args):
    """Run what is missing of a seed's rounds → whether all is there."""
    out = folder_of_seed(seed, args)
    if os.path.exists(os.path.join(out, in_round("summary", args.rounds) + ".json")):
        return True
    where = [f"--out={out}", f"--base={args.base}", "--device=cpu"]
    flags = [f"--round={args.rounds}", f"--seed={seed}", *where]
    code = run_script([os.path.join(ROOT, "ppo.py"), *flags], os.path.join(out, "log.txt"))
    print(f"seed {seed}: " + (f"failed; see {out}/log.txt" if code else "done"), flush=True)
    return not code


def opened(seed, args, *parents):
    """The Run of evaluate.py in this seed's folder."""
    where = [f"--out={folder_of_seed(seed, args)}", f"--base={args.base}", "--device=cpu"]
    argv = [*where, f"--seed={seed}"]
    return open_run("evaluate", parse(evaluate.Config, evaluate.__doc__, argv=argv), parents)


def summary_of(run, name):
    with open(os.path.join(run.config.out, name + ".json")) as f:
        return json.load(f)


def rounds_of(seed, args):
    """→ {column: number} of a seed: SFT, each round's policy, each round's reward model.

    Reward models are measured on each round's answers.
    """
    run = opened(seed, args)
    summary = summary_of(run, in_round("summary", args.rounds))
    rounds = range(1, args.rounds + 1)
    stages = ["sft", *(in_round("ppo", n) for n in rounds)]
    row = {f"{stage}_{c}": summary[stage][c] for stage in stages for c in COLUMNS}
    for r in rounds:
        name = in_round("reward", r)
        checkpoint = load(os.path.join(run.config.out, name + ".pt"))
        model = model_from(checkpoint, run.device, run.dtype)
        row[f"{name}_pairs"] = checkpoint["results"]["pairs"]
        row[f"{name}_seconds"] = checkpoint["seconds"]
        for n in rounds:
            path = os.path.join(run.config.out, in_round("comparisons", n) + ".jsonl")
            pairs = read_jsonl(path, ["prompt"], "heldout")
            items, _ = encode_comparisons(pairs, run.vocab, model.config.block_size)
            found = reward.heldout_accuracy(model, items, run.vocab)
            row[f"{name}_on_{policy_before(n)}"] = found["accuracy"]
            row[f"possible_on_{policy_before(n)}"] = found["ceiling"]
    return row


def best_of_of(seed, args):
    """→ {column: number} of a seed: gold score and win rate of the best of n of SFT's answers.

    With their intervals, on the prompts of the final table.
    """
    run = opened(seed, args, "sft", "reward")
    rows = read_heldout(os.path.join(run.folder, "prompts.jsonl"), ["prompt"], final=True)
    rows = rows[: run.config.prompts]
    prompts, judge = [run.vocab.prompt(r["prompt"]) for r in rows], load_judge(run.folder)
    sft, reward_model = run.load_model("sft"), run.load_model("reward")
    scores = scorer(run, reward_model, None, 128)
    results = run.parents["reward"]["results"]

    def gold(answers):
        texts = map(run.vocab.decode, answers)
        return [judge.gold(meaning_of(r), text)["gold"] for r, text in zip(rows, texts)]

    one, row = gold(evaluate.sample_responses(sft, prompts, run)), {}
    for n in args.best_of:
        best = gold(evaluate.best_of_n(n, sft, scores, results, rows, prompts, run))
        for column, values in (("gold", best), ("win_vs_sft", evaluate.wins(best, one))):
            name = f"best_of_{n}_{column}"
            row[name], row[name + "_ci"] = evaluate.mean_ci(values)
    answers = sample_answers(sft, prompts[:KL_PROMPTS], run, SAMPLES, "KL of best of n")
    all_scores = [scores_of(reward_model, p, a, run) for p, a in zip(prompts, answers)]
    ns = [*args.best_of, SAMPLES]
    kls = np.mean([best_of_kl(s, ns) for s in all_scores], 0)
    row |= {f"best_of_{n}_kl": float(kl) for n, kl in zip(ns, kls)}
    row["different_answers"] = float(np.mean([len(set(map(tuple, a))) for a in answers]))
    summary = summary_of(run, "summary")
    for s in ("sft", "ppo"):
        row |= {f"{s}_{c}": summary[s][c] for c in ("gold", "win_vs_sft", "kl")}
    return row


def main():
    parser, number = Parser(__doc__), value_of(int)
    parser.add_argument("--seeds", type=number, default=3)
    parser.add_argument("--first", type=number, default=1, help="the first seed; the others follow")
    parser.add_argument("--rounds", type=number, default=3)
    parser.add_argument("--best_of", type=lambda s: [number(n) for n in s.split(",")], default=[])
    parser.add_argument("--base", default="out/village/pretrain.pt")
    parser.add_argument("--out", default="out/seeds")
    parser.add_argument("--jobs", type=number, default=2)
    args = parser.parse_args()
    name, measure = ("best_of", best_of_of) if args.best_of else ("rounds", rounds_of)
    path = os.path.join(ROOT, "experiments", name + ".csv")
    base = load(args.base)["hash"][:8]
    rows, seeds = read_seeds(path, base), range(args.first, args.first + args.seeds)
    with ThreadPoolExecutor(args.jobs) as pool:
        made = list(pool.map(lambda seed: make(seed, args), seeds))
    for seed, there in zip(seeds, made):
        if there:
            found = {k: round(v, 4) for k, v in measure(seed, args).items()}
            rows[seed] = {"base": base, **found}
            write_seeds(path, rows)
    if not rows:
        sys.exit("no seed finished")
    print(f"\n{len(rows)} seeds{'':20s}    mean   lowest … highest")
    for k in {k: 0 for r in rows.values() for k in r if k != "base"}:
        values = [r[k] for r in rows.values() if k in r]
        values = [x for x in values if x == x]  # a seed may have fewer rounds
        mean = sum(values) / len(values)
        print(f"{k:28s} {mean:9.3f}   {min(values):9.3f} … {max(values):9.3f}")


if __name__ == "__main__":
    entry(main)

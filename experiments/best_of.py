"""
Best of n: the answer that the reward model scores highest among n of SFT's. PPO has to beat it.

    python experiments/seeds.py --seeds=3        # SFT, reward model and PPO of each seed
    python experiments/best_of.py --seeds=3      # n = 4 and 16: best_of.csv

Gold score and win rate against SFT on the prompts of the final table, beside PPO-ptx's of
seeds.csv. The KL is estimated from 256 answers to each of 64 prompts (overoptimise.py's
best_of_kl). Prints mean and range over the seeds. A seed that is asked for is measured again.
"""

import os
import sys

from project import ROOT, read_seeds, write_seeds

import plumbing.cpu
import evaluate
import numpy as np
from comparisons import sample_answers
from data import load_judge, meaning_of, read_heldout
from overoptimise import SAMPLES, best_of_kl, scores_of
from plumbing.checkpoint import load
from plumbing.command_line import Parser, entry, parse, value_of
from plumbing.run import open_run
from rollout import scorer

NS, KL_PROMPTS = [4, 16], 64


def best_of(seed, args):
    """→ {column: number} of a seed, with intervals over prompts."""
    where = [f"--out={args.out}/seed-{seed}", f"--base={args.base}", "--device=cpu"]
    config = parse(evaluate.Config, evaluate.__doc__, argv=[*where, f"--seed={seed}"])
    run = open_run("evaluate", config, ["sft", "reward"])
    rows = read_heldout(os.path.join(run.folder, "prompts.jsonl"), ["prompt"], final=True)
    rows = rows[: config.prompts]
    prompts, judge = [run.vocab.prompt(r["prompt"]) for r in rows], load_judge(run.folder)
    sft, reward_model = run.load_model("sft"), run.load_model("reward")
    scores, results = scorer(run, reward_model, None, 128), run.parents["reward"]["results"]

    def gold(answers):
        texts = map(run.vocab.decode, answers)
        return [judge.gold(meaning_of(r), text)["gold"] for r, text in zip(rows, texts)]

    one, found = gold(evaluate.sample_responses(sft, prompts, run)), {}
    for n in NS:
        best = gold(evaluate.best_of_n(n, sft, scores, results, rows, prompts, run))
        for column, values in (("gold", best), ("win_vs_sft", evaluate.wins(best, one))):
            name = f"best_of_{n}_{column}"
            found[name], found[name + "_ci"] = evaluate.mean_ci(values)
    answers = sample_answers(sft, prompts[:KL_PROMPTS], run, SAMPLES, "KL of best of n")
    all_scores = [scores_of(reward_model, p, a, run) for p, a in zip(prompts, answers)]
    kls = np.mean([best_of_kl(s, [*NS, SAMPLES]) for s in all_scores], 0)
    found |= {f"best_of_{n}_kl": float(kl) for n, kl in zip([*NS, SAMPLES], kls)}
    found["different_answers"] = float(np.mean([len(set(map(tuple, a))) for a in answers]))
    return found


def main():
    parser, number = Parser(__doc__), value_of(int)
    parser.add_argument("--seeds", type=number, default=3)
    parser.add_argument("--first", type=number, default=1, help="the first seed; the others follow")
    parser.add_argument("--base", default="out/village/pretrain.pt")
    parser.add_argument("--out", default="out/seeds")
    args = parser.parse_args()
    os.chdir(ROOT)
    path, base = "experiments/best_of.csv", load(args.base)["hash"][:8]
    rows, trained = read_seeds(path, base), read_seeds("experiments/seeds.csv", base)
    for seed in range(args.first, args.first + args.seeds):
        if seed not in trained:
            sys.exit(f"seed {seed} is not in seeds.csv: experiments/seeds.py makes it")
        row = {k: round(v, 4) for k, v in best_of(seed, args).items()}
        columns = [f"{s}_{c}" for s in ("sft", "ppo") for c in ("gold", "win_vs_sft", "kl")]
        rows[seed] = {"base": base, **row, **{c: trained[seed][c] for c in columns}}
        write_seeds(path, rows)
    print(f"\n{len(rows)} seeds{'':20s}    mean   lowest … highest")
    for k in rows[seed]:
        if k != "base":
            values = [row[k] for row in rows.values() if row.get(k, np.nan) == row.get(k, np.nan)]
            print(f"{k:28s} {np.mean(values):9.3f}   {min(values):9.3f} … {max(values):9.3f}")


if __name__ == "__main__":
    entry(main)

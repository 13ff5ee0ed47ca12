"""
Ways to make a model better by comparisons, side by side: PPO and what came before and after it.

    python experiments/methods.py           # micro, 5 seeds: methods.csv, methods.png
    python experiments/methods.py --size=tiny --seeds=3     # four of the ways: methods_tiny.csv

All ways start from one SFT model and one set of comparisons, and those that need a reward model
from one reward model. PPO-ptx and PPO are ppo.py; GRPO, RLOO and DPO are those of papers/. Best of
n takes the answer with the highest score among n of SFT's. "ranked first" is SFT on the answers
that labelers ranked first (text-davinci-002's way). Rejection sampling is SFT on the best of n
answers by the reward model, twice; the second time the answers are the new model's. PPO, GRPO, RLOO
and rejection sampling sample as many answers (10,240).

Each policy is measured several times on its way, on the final half of the held-out prompts, with
the same noise: gold score, win rate against SFT's answer to the prompt, KL to SFT (Σ log π − log
π_SFT over a sampled answer; for best of n the bound ln n − (n − 1)/n).

passes: answers through a network of the policy's size to train it, in thousands. Sampling an answer
counts as one, a score or log-probabilities as one, a gradient as three. With the reward model's
training, where it is needed. passes_answer: the same for each answer that is used afterwards.

Each way has as many settings to choose from (GRIDS). The one with the highest gold score is taken,
on a seed that is not in the table and on the other half of the held-out prompts: methods_tuning.csv
and methods_tiny_tuning.csv. PPO-ptx has those of PPO.
"""

import copy
import functools
import itertools
import math
import os

import lib

import numpy as np
import torch
from common import adamw, cosine, epoch_batches, generator, update
from comparisons import sample_answers
from data import meaning_of, read_heldout, read_jsonl
from figure1 import base, rates, tuned
from model import SIZES
from papers import dpo, grpo
from plumbing.command_line import entry
from rollout import Rollout
from sft import response_tokens, sft_backward

SEEDS = {"micro": 6, "tiny": 4}  # to choose settings on
NS = [2, 4, 8, 16]
TINY = ["SFT", "PPO-ptx", "GRPO", "DPO", "best of n"]
# learning rates are those of width 128; other widths have them in proportion to 1 / width
MICRO = {"lr": [1e-4, 2e-4], "beta": [0.3, 1.0]}
TUNED = {"lr": [2e-4], "beta": [0.1, 0.3]}
GRIDS = {
    "micro": {
        "PPO": MICRO,
        "GRPO": MICRO,
        "RLOO": MICRO,
        "DPO": MICRO,
        "ranked first": {"lr": [2e-4, 1e-3], "epochs": [1, 2]},
        "rejection": {"lr": [2e-4, 1e-3], "n": [4, 16]},
    },
    "tiny": {"PPO": TUNED, "GRPO": TUNED, "DPO": TUNED},
}
EPISODES, ROUNDS, BATCH = 40 * 256, 2, 32
PARTS = [0.125, 0.25, 0.5, 0.75, 1.0]  # of the training, after which a policy is measured
# run before ppo.main(): the averaged policy is kept on its way
SNAPSHOTS = """
def also(run, step, then=Run.checkpoint, **parts):
    if step / run.config.iterations in {parts}:
        kept = run.content(parts['ema_policy'], {{}})
        checkpoint.save(f'{{run.config.out}}/at-{{step / run.config.iterations:g}}.pt', kept)
    then(run, step, **parts)
Run.checkpoint = also"""


class Start:
    """What all ways have: a seed's SFT model, its comparisons, its reward model, the prompts."""

    def __init__(self, args, seed, final=True):
        self.args, self.seed, self.run = args, seed, lib.world()
        self.parts = PARTS if final else PARTS[-1:]
        self.paths = {x: tuned(args, args.size, seed, x) for x in ("sft", "reward")}
        self.sft, self.reward_model = (lib.network(path) for path in self.paths.values())
        self.score = grpo.scorer(self.paths["reward"])
        path = f"{self.run.folder}/prompts.jsonl"
        self.prompts = read_jsonl(path, ["prompt"], "train")
        rows = read_heldout(path, ["prompt"], final)
        self.rows = rows[:40] if args.quick else rows
        self.own = self.measure(self.sft)

    def policy(self):
        return copy.deepcopy(self.sft)

    def rate(self, lr):
        return lr * 128 / SIZES[self.args.size][2]

    @functools.cached_property
    def comparisons(self):
        path = self.paths["sft"].replace("sft.pt", "comparisons.jsonl")
        rows = read_jsonl(path, ["prompt"], "train")
        return dpo.comparisons(rows, self.run.vocab, self.sft.config.block_size)

    @property
    def answers_ranked(self):
        """Answers that DPO and the reward model learn from, in thousands."""
        return sum(len(answers) for _, answers, _ in self.comparisons) / 1000

    def measure(self, policy):
        return lib.measure(self.run, policy, self.sft, self.reward_model, self.rows)

    def row(self, done, policy):
        return {"done": done, **dpo.compare(self.measure(policy), self.own)}


# ---- the ways: (Start, settings) → rows at parts of the training, passes in thousands ----


def ppo(start, lr, beta, ptx_coef=0):
    args = start.args
    source = os.path.dirname(start.paths["sft"])
    name = f"methods/{args.size}-{start.seed}-{ptx_coef}-{lr:g}-{beta:g}"
    out = lib.variant(source, lib.scratch(args, name), "sft.pt", "reward.pt")
    flags = [f"--beta={beta}", f"--ptx_coef={ptx_coef}"]
    if not args.quick:
        flags += rates(args.size, lr=lr, critic_lr=5e-4)
        flags += [f"--size={args.size}", f"--base={base(args, args.size)}"]
    patch = SNAPSHOTS.format(parts=start.parts)
    lib.stage(args, "ppo", out, start.seed, *flags, patch=patch)
    parts = [p for p in start.parts if os.path.exists(f"{out}/at-{p:g}.pt")]
    rows = [start.row(p, lib.network(f"{out}/at-{p:g}.pt")) for p in parts]
    # an answer: sampled, scored, log-probabilities of two, a value, two gradients; ptx: windows
    return rows, EPISODES * (11 + 3 * 0.125 * (ptx_coef > 0)) / 1000


def grouped(start, way, lr, beta):
    less = {"iterations": 8, "episodes": 16} if start.args.quick else {}
    config = grpo.Config(way, lr=start.rate(lr), beta=beta, **less)
    rows, watch = watched(start)
    grpo.train(start.policy(), start.score, start.run, config, start.seed, watch)
    return rows, EPISODES * 7 / 1000  # sampled, scored, log-probabilities of two, a gradient


def preferences(start, lr, beta):
    config, (rows, watch) = dpo.Config(beta, start.rate(lr)), watched(start)
    items = start.comparisons
    dpo.train(start.policy(), items, start.run.vocab, config, start.seed, watch)
    return rows, 4 * start.answers_ranked  # the reference's log-probabilities, a gradient


def ranked_first(start, lr, epochs):
    items = start.comparisons
    best = [
        (p, a) for p, answers, ranks in items for a, r in zip(answers, ranks) if r == min(ranks)
    ]
    rows, watch = watched(start)
    imitate(start, start.policy(), best, lr, epochs, watch)
    return rows, 3 * epochs * len(best) / 1000


def rejection(start, lr, n):
    """SFT on the best of n answers, in ROUNDS rounds, two epochs each."""
    n_prompts, policy = (16 if start.args.quick else EPISODES // ROUNDS // n), start.policy()
    rows, watch = watched(start)
    for i in range(ROUNDS):
        rng = generator(start.seed, "rejection", i)
        picked = torch.randint(len(start.prompts), (n_prompts,), generator=rng).tolist()
        prompts = [start.run.vocab.prompt(start.prompts[j]["prompt"]) for j in picked]
        answers, scores = sampled(start, policy, prompts, n, f"{start.seed} round {i}")
        best = [(p, a[j]) for p, a, j in zip(prompts, answers, scores.argmax(1).tolist())]
        imitate(start, policy, best, lr, 2, lambda done, p, i=i: watch((i + done) / ROUNDS, p))
    return rows, EPISODES * (2 + 3 * 2 / n) / 1000


def best_of_n(start):
    """The first n of 16 answers of SFT's to each prompt, for all n at once."""
    prompts = [start.run.vocab.prompt(row["prompt"]) for row in start.rows]
    answers, scores = sampled(start, start.sft, prompts, max(NS), "best of n")
    rows = []
    for n in NS:
        best = [a[j] for a, j in zip(answers, scores[:, :n].argmax(1).tolist())]
        texts = map(start.run.vocab.decode, best)
        gold = np.array(
            [start.run.judge.gold(meaning_of(r), t)["gold"] for r, t in zip(start.rows, texts)]
        )
        marks = {
            "gold": gold,
            "kl": np.full(1, math.log(n) - (n - 1) / n),
            "score": scores[:, :n].amax(1).numpy(),
            "length": np.array([len(a) for a in best]),
        }
        rows.append({"done": n, **dpo.compare(marks, start.own), "passes_answer": 2 * n})
    return rows, 0.0


def sampled(start, policy, prompts, n, label):
    """n answers to each prompt, token lists, and the scores (prompts, n) that PPO would see."""
    answers = sample_answers(policy, prompts, start.run, n, label)
    asked, flat = [p for p in prompts for _ in range(n)], [a for group in answers for a in group]
    scores = [
        start.score(Rollout.of(asked[i : i + 512], flat[i : i + 512], start.run.vocab, policy))
        for i in range(0, len(flat), 512)
    ]
    return answers, torch.cat(scores).view(-1, n)


def imitate(start, policy, pairs, lr, epochs, watch):
    """SFT in place on (prompt, answer) pairs, as in sft.py, without pretraining text."""
    examples = [(prompt + answer, len(prompt)) for prompt, answer in pairs]
    lengths = [len(tokens) for tokens, _ in examples]
    batches = [
        batch
        for epoch in range(epochs)
        for batch in epoch_batches(lengths, BATCH, generator(start.seed, "imitate", epoch))
    ]
    optimizer = adamw(policy, start.rate(lr))
    mean_tokens = response_tokens(examples) * epochs / len(batches)
    for step, batch in enumerate(batches):
        sft_backward(policy, [examples[i] for i in batch], mean_tokens, start.run.vocab, 0)
        update(policy, optimizer, start.rate(lr) * cosine(step, len(batches)))
        watch((step + 1) / len(batches), policy)


def watched(start):
    """→ rows, and a function (share of the training that is done, policy) that fills them."""
    rows, left = [], list(start.parts)

    def watch(done, policy):
        due = [part for part in left if part < done + 1e-9]
        if due:
            rows.append(start.row(due[-1], policy))
            del left[: len(due)]

    return rows, watch


WAYS = {
    "SFT": lambda start: ([start.row(1.0, start.sft)], 0.0),
    "PPO-ptx": ppo,
    "PPO": ppo,
    "GRPO": functools.partial(grouped, way="GRPO"),
    "RLOO": functools.partial(grouped, way="RLOO"),
    "DPO": preferences,
    "ranked first": ranked_first,
    "rejection": rejection,
    "best of n": best_of_n,
}
WITHOUT_REWARD_MODEL = ["SFT", "DPO", "ranked first"]


# ---- results ----


def job(start, way, settings):
    rows, passes = WAYS[way](start, **settings)
    if way not in WITHOUT_REWARD_MODEL:
        passes += 3 * start.answers_ranked
    return [{"passes_answer": 1, **row, "passes": passes} for row in rows]


def choose(args, name):
    """{way: its settings}: of those in GRIDS the ones with the highest gold score."""
    tried = {}  # {(way, settings as text): settings}
    for way, grid in GRIDS[args.size].items():
        for values in itertools.product(*grid.values()):
            settings = dict(zip(grid, values))
            tried[way, ", ".join(f"{k} {v:g}" for k, v in settings.items())] = settings
    start = functools.cache(lambda: Start(args, SEEDS[args.size], final=False))

    def tuning_job(key):
        return job(start(), key[0], tried[key])[-1]

    jobs = [(key, functools.partial(tuning_job, key)) for key in tried]
    path, keys = lib.place(args, f"{name}_tuning.csv"), ["way", "settings"]
    rows = [] if args.quick else lib.collect(args, path, jobs, keys, make_base)
    gold, chosen = {(row["way"], row["settings"]): row["gold"] for row in rows}, {}
    for way in GRIDS[args.size]:
        best = max((key for key in tried if key[0] == way), key=lambda key: gold.get(key, 0))
        print(f"chosen: {', '.join(best)}")
        chosen[way] = tried[best]
    return chosen | {"PPO-ptx": {**chosen["PPO"], "ptx_coef": 1}}


def make_base(args):
    return base(args, args.size)


def main():
    size = ("--size", {"choices": ["micro", "tiny"], "default": "micro", "help": "of the models"})
    args = lib.arguments(__doc__, 5, size)
    if args.size == "micro":
        args.base = "out/sizes/micro/pretrain.pt"
    name = "methods" if args.size == "micro" else "methods_tiny"
    chosen = choose(args, name)
    start = functools.cache(lambda seed: Start(args, seed))
    ways = list(WAYS) if args.size == "micro" else TINY

    def table_job(way, seed):
        return job(start(seed), way, chosen.get(way, {}))

    keys = [(way, seed) for seed in args.seeds for way in ways]
    jobs = [(key, functools.partial(table_job, *key)) for key in keys]
    rows = lib.collect(args, lib.place(args, name + ".csv"), jobs, ["way", "seed"], make_base)
    table(ways, rows)
    draw(args, name, ways, rows)


def points(rows, way, column):
    """A way's intervals over seeds, one for each of its places on the way."""
    mine = [row for row in rows if row["way"] == way]
    places = sorted({row["done"] for row in mine})
    return [lib.interval([r[column] for r in mine if r["done"] == done]) for done in places]


def table(ways, rows):
    columns = ["gold", "win", "kl", "length", "passes", "passes_answer"]
    print(f"{'at the end':14s}" + "".join(f"{c:>18s}" for c in columns))
    for way in ways:
        cells = [points(rows, way, c)[-1] for c in columns]
        print(f"{way:14s}" + "".join(f"{mean:10.3f} ±{half:6.3f}" for mean, half in cells))


def draw(args, name, ways, rows):
    fig, axes = lib.figure(size=(6.4, 4.4))
    ax, ends = axes[0, 0], {}
    for way, mark, colour in zip(ways[1:], "osD^v<>p", [*lib.COLOURS, "#808080"]):
        gold, kl = (points(rows, way, c) for c in ("gold", "kl"))
        if way != "best of n":  # which has no way, but begins at n = 2
            gold, kl = points(rows, "SFT", "gold") + gold, points(rows, "SFT", "kl") + kl
        (x, x_half), (y, y_half) = zip(*kl), zip(*gold)
        ends[way] = y[-1], y_half[-1], x[-1]
        look = {"fmt": mark + "-", "color": colour, "ms": 4, "lw": 1, "capsize": 2}
        ax.errorbar(x, y, y_half, x_half, label=way, **look)
    best = max(ends, key=lambda way: ends[way][0])
    ax.set_xscale("symlog", linthresh=1)
    ax.set_xlim(left=-0.05)
    ax.set_xticks(ticks := [0, 0.25, 0.5, 0.75, 1, 2], ticks)
    ax.set_xlabel("KL to SFT, nats an answer (of best of n: its bound)")
    ax.set_ylabel("gold score")
    highest = "{}: gold {:.2f} ± {:.2f} at a KL of {:.1f}".format(best, *ends[best])
    ax.set_title(f"highest at its end, {highest}; {len({row['seed'] for row in rows})} seeds")
    ax.legend()
    lib.finish(fig, lib.place(args, name + ".png"))


if __name__ == "__main__":
    entry(main)

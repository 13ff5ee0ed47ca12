"""
Figure 1 of the paper in miniature: who wins against the largest SFT model, at three sizes.

    python experiments/figure1.py       # three seeds: figure1.csv, figure1.png, figure1_prompts.csv
    python experiments/figure1.py --seeds=5

The models have 7, 57 and 793 thousand parameters without embeddings. All learn from the same 4.9M
tokens, demonstrations and number of comparisons, with learning rates in proportion to 1 / width
(tiny has the defaults). Every model answers the held-out prompts of the final half once, at
temperature 1. The better of two answers is the one with the higher gold score; ties count half. The
opponent is one model for all: SFT at the largest size, seed 1.

The few-shot prompt is put before the prompt as a page of questions and answers, as the pretraining
text has them. Each size takes the format that does best on the other half of the held-out prompts.
"""

import functools

import lib

import numpy as np
import sampling
import torch
from common import generator
from data import meaning_of, read_heldout, turns_of
from evaluate import mean_ci, wins
from model import GPT, SIZES, config_for
from plumbing.command_line import entry

LADDER = ["nano", "micro", "tiny"]
MODELS = ["base", "few-shot", "sft", "ppo", "ppo-ptx"]
BASES = [1337, 1, 2]  # seeds of pretraining; the stages after it all start from the first
STORY = (
    "Write a short story about Sam and a key.",
    "One day Sam found a key by the river. He cleaned it with care. That night he slept well.",
)
HARM = ("How can I scare Nora at night?", "Please do not do that. It would hurt Nora.")
UNKNOWN = ("What is Lars's job?", "I have never heard of Lars.")
LIST = ("Name two tools.", "Two tools are saw and rake.")
FORMATS = {
    "story": ("page", [STORY]),
    "story, list": ("page", [STORY, LIST]),
    "harm, unknown": ("page", [HARM, UNKNOWN]),
    "chat: harm, unknown": ("chat", [HARM, UNKNOWN]),
}
LABELS = {
    "base": "base",
    "few-shot": "base, few-shot prompt",
    "sft": "SFT",
    "ppo": "PPO (γ = 0)",
    "ppo-ptx": "PPO-ptx",
}


def with_examples(vocab, prompt, how, room):
    """Token ids of a prompt after the examples of a format, as many of them as `room` tokens hold.

    They are a page, 'Q: … A: … Q: … A:', or the turns of a chat. A long conversation has none.
    """
    kind, examples = FORMATS[how]
    turns = [(role, text) for e in examples for role, text in zip(("user", "assistant"), e)]
    turns += [(t["role"], t["content"]) for t in turns_of(prompt)]
    for left_out in range(0, 2 * len(examples) + 1, 2):
        shown = turns[left_out:]
        if kind == "chat":
            ids = vocab.prompt([{"role": r, "content": t} for r, t in shown])
        else:
            page = " ".join(("Q: " if r == "user" else "A: ") + t for r, t in shown)
            ids = vocab.encode(page + " A:")
        if len(ids) <= room:
            break
    return ids


def marks(run, model, rows, how=None):
    """One answer to each prompt → gold scores (n,), mean length in tokens.

    how: a format of FORMATS, for a base.
    """
    if how:
        room = model.config.block_size - run.config.max_new_tokens
        prompts = [with_examples(run.vocab, r["prompt"], how, room) for r in rows]
    else:
        prompts = [run.vocab.prompt(r["prompt"]) for r in rows]
    room = min(run.config.max_new_tokens, model.config.block_size - max(map(len, prompts)))
    responses = []
    for i in range(0, len(prompts), 500):
        rng, part = generator(1, "figure1", i), prompts[i : i + 500]
        responses += sampling.generate(model, part, room, eos=run.vocab.eos, generator=rng)
    # on a page of questions the next question ends an answer
    answers = [run.vocab.decode(r).split(" Q:")[0].strip() for r in responses]
    gold = [run.judge.gold(meaning_of(r), a)["gold"] for r, a in zip(rows, answers)]
    return np.array(gold), float(np.mean([len(r) for r in responses]))


# ---- checkpoints ----

# run before ppo.main(): each step's norm of the policy's gradient before clipping goes to
# OUT/norms.txt, one a line
NORMS = """
step, out = ppo.update, [a for a in sys.argv if a.startswith("--out=")][-1][6:]
def update(model, *more):
    norm = step(model, *more)
    if not hasattr(model, "head"):
        print(norm, file=open(out + "/norms.txt", "a"))
    return norm
ppo.update = update"""


def rates(size, **defaults):
    """Flags of learning rates, in proportion to 1 / width."""
    return [f"--{name}={value * 128 / SIZES[size][2]:.4g}" for name, value in defaults.items()]


def sft_flags(size):
    """Of SFT at sizes other than tiny, for which alone Muon's rate was chosen."""
    return ["--no-muon", *rates(size, lr=1e-3)]


def base(args, size, seed=1337):
    """The path of a base; made if it is missing."""
    if args.quick:
        lib.checkpoints(args, 1)
        return lib.base_of(args)
    default = seed == 1337
    if size == "tiny":
        out = "out/village" if default else f"out/seeds/whole-{seed}"
    else:
        out = f"out/sizes/{size}" if default else f"out/sizes/{size}-{seed}"
    flags = [f"--size={size}", *rates(size, lr=4e-3)]
    if size != "tiny":
        flags += ["--no-muon", "--steps=4000", "--batch=12"]
    lib.stage(args, "pretrain", out, seed, *flags)
    return f"{out}/pretrain.pt"


def tuned(args, size, seed, model):
    """The path of an SFT, reward, PPO or PPO-ptx model; made if it is missing."""
    flags, ppo_flags = [], []
    if size == "tiny" or args.quick:
        out = lib.checkpoints(args, seed, {"ppo": "reward", "ppo-ptx": "ppo"}.get(model, model))
    else:
        out = f"out/sizes/{size}/seed-{seed}"
        flags = [f"--size={size}", f"--base={base(args, size)}"]
        ppo_flags = rates(size, lr=2e-4, critic_lr=5e-4)
        lib.stage(args, "sft", out, seed, *flags, *sft_flags(size))
        if model != "sft":
            lib.stage(args, "reward", out, seed, *flags, *rates(size, lr=6e-4))
    if model in ("sft", "reward"):
        return f"{out}/{model}.pt"
    if model == "ppo":
        out = lib.variant(out, lib.scratch(args, f"no-ptx/{size}-{seed}"), "sft.pt", "reward.pt")
        lib.stage(args, "ppo", out, seed, *flags, *ppo_flags, "--ptx_coef=0", patch=NORMS)
    elif flags:
        lib.stage(args, "ppo", out, seed, *flags, *ppo_flags)
    return f"{out}/ppo.pt"


# ---- results ----


def best_formats(args, run, rows):
    """The format that does best at each size, on these prompts → {size: format}"""

    def job(size, how):
        gold, _ = marks(run, lib.network(base(args, size)), rows, how)
        mean, ci = mean_ci(gold.tolist())
        return {"gold": mean, "gold_ci": ci}

    keys = [(size, how) for size in LADDER for how in FORMATS]
    jobs = [(k, lambda k=k: job(*k)) for k in keys]
    tried = lib.collect(args, lib.place(args, "figure1_prompts.csv"), jobs, ["size", "format"])
    best = {}
    for size in LADDER:
        mine = [t for t in tried if t["size"] == size]
        best[size] = max(mine, key=lambda t: t["gold"])["format"]
    return best


def main():
    args = lib.arguments(__doc__, 3)
    run = lib.world()
    path, n = f"{run.folder}/prompts.jsonl", 60 if args.quick else None
    rows, other_half = (read_heldout(path, ["prompt"], final=x)[:n] for x in (True, False))
    best = best_formats(args, run, other_half)

    @functools.cache
    def answers(size, model, seed):
        if model in MODELS[:2]:
            path = base(args, size, BASES[seed - 1])
        else:
            path = tuned(args, size, seed, model)
        return marks(run, lib.network(path), rows, best[size] if model == "few-shot" else None)

    opponents = {
        "win": answers(LADDER[-1], "sft", 1)[0],
        "win_few_shot": answers(LADDER[-1], "few-shot", 1)[0],
    }

    def job(size, model, seed):
        gold, length = answers(size, model, seed)
        row = {"gold": float(gold.mean())}
        for column, opponent in opponents.items():
            row[column], row[column + "_ci"] = mean_ci(wins(gold, opponent))
        return {**row, "length": length, "parameters": parameters(size)}

    keys = [(size, model, seed) for size in LADDER for seed in args.seeds for model in MODELS]
    keys = [k for k in keys if k[1] not in MODELS[:2] or k[2] <= len(BASES)]
    jobs = [(k, lambda k=k: job(*k)) for k in keys]
    found = lib.collect(args, lib.place(args, "figure1.csv"), jobs, ["size", "model", "seed"])
    draw(args, found)
    table(found)


def parameters(size):
    with torch.device("meta"):
        return GPT(config_for(size, 1152)).n_params(embeddings=False)


def cell(found, column, **where):
    """Mean over seeds, half-width of its 95 % interval, number of seeds; None without rows.

    The interval is over seeds and over prompts, whose part all seeds share.
    """
    mine = [r for r in found if all(r[k] == v for k, v in where.items())]
    if not mine:
        return None
    mean, over_seeds = lib.interval([r[column] for r in mine])
    over_prompts = np.mean([r[column + "_ci"] for r in mine])
    half = over_prompts if len(mine) < 2 else float(np.hypot(over_seeds, over_prompts))
    return mean, half, len(mine)


def draw(args, found):
    fig, axes = lib.figure(size=(6.4, 4.4))
    ax = axes[0, 0]
    sizes = [next(r["parameters"] for r in found if r["size"] == s) for s in LADDER]
    for i, model in enumerate(MODELS):
        cells = [cell(found, "win", size=s, model=model) for s in LADDER]
        points = [(x * 1.06 ** (i - 2), *c[:2]) for x, c in zip(sizes, cells) if c]
        ax.errorbar(*zip(*points), marker="o", capsize=3, label=LABELS[model])
    ax.axhline(0.5, color="grey", lw=0.8, ls=":")
    ax.set_xscale("log")
    ax.set_xlabel("parameters without embeddings")
    ax.set_ylim(0, 1)
    ax.set_ylabel(f"win rate against SFT of {sizes[-1] / 1e3:.0f} thousand parameters")
    cells = [cell(found, "win_few_shot", size=s, model="ppo-ptx") for s in LADDER[:2]]
    (small, d_small, _), (middle, d_middle, _) = cells
    ax.set_title(
        f"Against the few-shot-prompted base of {sizes[2] / 1e3:.0f} thousand parameters, "
        f"PPO-ptx wins\n{small:.0%} ± {d_small:.0%} with a {sizes[2] / sizes[0]:.0f}th of its "
        f"size, {middle:.0%} ± {d_middle:.0%} with a {sizes[2] / sizes[1]:.0f}th"
    )
    ax.legend(loc="best")
    lib.finish(fig, lib.place(args, "figure1.png"))


def table(found):
    columns = "".join(f"{s:>18s}" for s in LADDER)
    print(f"{'':22s}{columns}    win rate against the largest SFT, mean of seeds")
    for column in ("win", "win_few_shot"):
        for model in MODELS:
            cells = [cell(found, column, size=s, model=model) for s in LADDER]
            line = [f"{c[0]:9.3f} ±{c[1]:5.3f}/{c[2]}" if c else " " * 18 for c in cells]
            print(f"{column + ' ' + model:22s}" + "".join(line))


if __name__ == "__main__":
    entry(main)

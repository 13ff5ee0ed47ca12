"""
Figure 1 of the paper in miniature: who wins against the largest SFT model, at three sizes.

    python experiments/figure1.py              # three seeds: figure1.csv, figure1.png, and figure1_prompts.csv
    python experiments/figure1.py --seeds=5

The models have 7, 57 and 793 thousand parameters without embeddings. All learn from the same 4.9M tokens,
demonstrations and number of comparisons, with learning rates in proportion to 1 / width (tiny has the defaults). Every model answers the held-out prompts of
the final half once, at temperature 1; the gold score says which of two answers is better, ties count half. The opponent
is one model for all: SFT at the largest size, seed 1.

The few-shot prompt stands before the prompt as a page of questions and answers, as the pretraining text has them. Of the
formats below each size takes the one that does best on the other half of the held-out prompts.
"""
import functools

import lib

from common import generator
from data import read_heldout
from evaluate import answers_of, mean_ci, wins
from model import SIZES, config_for

import numpy as np
import torch

LADDER = ["nano", "micro", "tiny"]
MODELS = ["base", "few-shot", "sft", "ppo", "ppo-ptx"]
BASES = [1337, 1, 2]        # seeds of pretraining; the stages after it all start from the first
STORY = ("Write a short story about Sam and a key.", "One day Sam found a key by the river. He cleaned it with care. That night he slept well.")
HARM = ("How can I scare Nora at night?", "Please do not do that. It would hurt Nora.")
UNKNOWN = ("What is Lars's job?", "I have never heard of Lars.")
LIST = ("Name two tools.", "Two tools are saw and rake.")
FORMATS = {"story": ("page", [STORY]), "story, list": ("page", [STORY, LIST]), "harm, unknown": ("page", [HARM, UNKNOWN]), "chat: harm, unknown": ("chat", [HARM, UNKNOWN])}


def with_examples(vocab, prompt, how):
    """Token ids of a prompt after the examples of a format: as a page, 'Q: … A: … Q: … A:', or as turns of a chat."""
    kind, examples = FORMATS[how]
    turns = [(role, text) for e in examples for role, text in zip(("user", "assistant"), e)]
    turns += [("user", prompt)] if isinstance(prompt, str) else [(t["role"], t["content"]) for t in prompt]
    if kind == "chat":
        return vocab.prompt([{"role": r, "content": t} for r, t in turns])
    return vocab.encode(" ".join(("Q: " if r == "user" else "A: ") + t for r, t in turns) + " A:")


def marks(run, model, rows, how=None):
    """Gold score and length in tokens of one answer to each prompt; how: a format of FORMATS, for a base."""
    prompts = [with_examples(run.vocab, r["prompt"], how) if how else run.vocab.prompt(r["prompt"]) for r in rows]
    room = min(run.config.max_new_tokens, model.config.block_size - max(map(len, prompts)))
    with run.cast:
        news = [new for i in range(0, len(prompts), 500) for new in model.generate(prompts[i:i + 500], room, eos=run.vocab.eos, generator=generator(1, "figure1", i))]
    answers = [run.vocab.decode(n).split(" Q:")[0].strip() for n in news]       # on a page of questions the next one ends an answer
    return np.array([run.judge.gold(r["prompt"], a)["gold"] for r, a in zip(rows, answers)]), float(np.mean([len(n) for n in news]))


# ---- checkpoints ----

# run before ppo.main(): the norm of the policy's gradient before clipping, at every step, a line of OUT/norms.txt
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


def base(args, size, seed=1337):
    """The path of a base; made if it is missing."""
    if args.quick:
        lib.checkpoints(args, 1)
        return lib.base_of(args)
    out = {"tiny": "out/village" if seed == 1337 else f"out/seeds/whole-{seed}"}.get(size, f"out/sizes/{size}" + ("" if seed == 1337 else f"-{seed}"))
    lib.stage(args, "pretrain", out, seed, f"--size={size}", *rates(size, lr=4e-3))
    return f"{out}/pretrain.pt"


def tuned(args, size, seed, model):
    """The path of an SFT, reward, PPO or PPO-ptx model; made if it is missing."""
    if size == "tiny" or args.quick:
        out = lib.checkpoints(args, seed, {"ppo": "reward", "ppo-ptx": "ppo"}.get(model, model))
        flags, ppo_flags = [], []
    else:
        out, flags, ppo_flags = f"out/sizes/{size}/seed-{seed}", [f"--size={size}", f"--base={base(args, size)}"], rates(size, lr=2e-4, critic_lr=5e-4)
        lib.stage(args, "sft", out, seed, *flags, *rates(size, lr=1e-3))
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

def main():
    args = lib.arguments(__doc__, 3)
    run = lib.world()
    path = f"{run.folder}/prompts.jsonl"
    n = 60 if args.quick else None
    rows, other_half = read_heldout(path, ["prompt"], final=True)[:n], read_heldout(path, ["prompt"])[:n]

    def try_format(size, how):
        gold, ci = mean_ci(marks(run, lib.network(base(args, size)), other_half, how)[0].tolist())
        return {"gold": gold, "gold_ci": ci}
    keys = [(size, how) for size in LADDER for how in FORMATS]
    tried = lib.collect(args, lib.place(args, "figure1_prompts.csv"), [(k, lambda k=k: try_format(*k)) for k in keys], ["size", "format"])
    best = {size: max((t for t in tried if t["size"] == size), key=lambda t: t["gold"])["format"] for size in LADDER}

    @functools.cache
    def answers(size, model, seed):
        path = base(args, size, BASES[seed - 1]) if model in MODELS[:2] else tuned(args, size, seed, model)
        return marks(run, lib.network(path), rows, best[size] if model == "few-shot" else None)

    def job(size, model, seed):
        gold, length = answers(size, model, seed)
        row = {"gold": float(gold.mean())}
        row["win"], row["win_ci"] = mean_ci(wins(gold, answers(LADDER[-1], "sft", 1)[0]))
        row["win_few_shot"], row["win_few_shot_ci"] = mean_ci(wins(gold, answers(LADDER[-1], "few-shot", 1)[0]))
        return {**row, "length": length, "parameters": config_params(size)}
    answers(LADDER[-1], "sft", 1), answers(LADDER[-1], "few-shot", 1)       # first: everybody's opponents
    keys = [(size, model, seed) for size in LADDER for seed in args.seeds
            for model in MODELS if model not in MODELS[:2] or seed <= len(BASES)]
    found = lib.collect(args, lib.place(args, "figure1.csv"), [(k, lambda k=k: job(*k)) for k in keys], ["size", "model", "seed"])
    draw(args, found)


def config_params(size):
    from model import GPT
    with torch.device("meta"):
        return GPT(config_for(size, 1152)).n_params(embeddings=False)


def cell(found, column, **where):
    """Mean over seeds and half-width of its 95 % interval: over seeds, and over prompts, whose part all seeds share."""
    mine = [r for r in found if all(r[k] == v for k, v in where.items())]
    if not mine:
        return None
    mean, over_seeds = lib.interval([r[column] for r in mine])
    over_prompts = np.mean([r[column + "_ci"] for r in mine])
    return mean, over_prompts if len(mine) < 2 else float(np.hypot(over_seeds, over_prompts)), len(mine)


def draw(args, found):
    fig, axes = lib.figure(size=(6.4, 4.4))
    ax = axes[0, 0]
    labels = {"base": "base", "few-shot": "base, few-shot prompt", "sft": "SFT", "ppo": "PPO (γ = 0)", "ppo-ptx": "PPO-ptx"}
    for i, model in enumerate(MODELS):
        points = [(next(r["parameters"] for r in found if r["size"] == s), cell(found, "win", size=s, model=model)) for s in LADDER]
        points = [(x * 1.06 ** (i - 2), *c[:2]) for x, c in points if c]
        ax.errorbar(*zip(*points), marker="o", capsize=3, label=labels[model])
    ax.axhline(0.5, color="grey", lw=0.8, ls=":")
    ax.set_xscale("log")
    ax.set_xlabel("parameters without embeddings")
    ax.set_ylim(0, 1)
    sizes = [next(r["parameters"] for r in found if r["size"] == s) for s in LADDER]
    ax.set_ylabel(f"win rate against SFT of {sizes[-1] / 1e3:.0f} thousand parameters")
    (small, d_small, _), (middle, d_middle, _) = (cell(found, "win_few_shot", size=s, model="ppo-ptx") for s in LADDER[:2])
    ax.set_title(f"Against the few-shot-prompted base of {sizes[2] / 1e3:.0f} thousand parameters, PPO-ptx wins\n{small:.0%} ± {d_small:.0%} with a {sizes[2] / sizes[0]:.0f}th of its size, {middle:.0%} ± {d_middle:.0%} with a {sizes[2] / sizes[1]:.0f}th")
    ax.legend(loc="best")
    lib.finish(fig, lib.place(args, "figure1.png"))
    print(f"{'':22s}" + "".join(f"{s:>18s}" for s in LADDER) + "    win rate against the largest SFT, mean of seeds")
    for column in ("win", "win_few_shot"):
        for model in MODELS:
            cells = [cell(found, column, size=s, model=model) for s in LADDER]
            print(f"{column + ' ' + model:22s}" + "".join(f"{c[0]:9.3f} ±{c[1]:5.3f}/{c[2]}" if c else " " * 18 for c in cells))


if __name__ == "__main__":
    main()

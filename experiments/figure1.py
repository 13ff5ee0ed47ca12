"""
Figure 1 of the paper in miniature: does PPO-ptx win against a base of 100 times its size?

    python experiments/figure1.py       # three seeds: figure1.csv, figure1.png, figure1_prompts.csv
    python experiments/figure1.py --seeds=5

The paper finds that its smallest PPO-ptx is preferred to a base of 100 times its size, also when
that base has a few-shot prompt (Ouyang et al. 2022, section 1: 1.3 and 175 billion parameters).
Here the models have 7, 57 and 793 thousand parameters without embeddings, and a base, midi, has 6.0
million: 106 times micro's 57 thousand. All learn from the same text, demonstrations and number of
comparisons, with learning rates in proportion to 1 / width (tiny has the defaults). tiny and midi
read 4.1M tokens of the text, the smaller ones 6.1M. Below tiny PPO's β is 0.3, see `preferred`.

Every model answers the held-out prompts of the final half once, at temperature 1. The better of two
answers is the one with the higher gold score; ties count half. win is against tiny's SFT of seed 1,
win_base against midi's base without examples, and win_nano to win_midi against the few-shot base of
a size, the first of its three. midi has one base, since it takes 25 minutes.

The few-shot prompt is put before the prompt as a page of questions and answers, as the pretraining
text has them, or as a chat. Each size takes the format that does best on the other half of the
held-out prompts. "none" has no example: a page with the prompt alone.
"""

import functools
import os

import lib

import numpy as np
import sampling
import torch
from common import generator
from data import meaning_of, read_heldout, turns_of
from evaluate import mean_ci, wins
from model import GPT, SIZES, config_for
from plumbing.command_line import entry

TUNED = ["nano", "micro", "tiny"]
LADDER = [*TUNED, "midi"]  # of midi there is a base only
MODELS = ["base", "few-shot", "sft", "ppo", "ppo-ptx"]
BASES = [1337, 1, 2]  # seeds of pretraining; the stages after it all start from the first
STORY = (
    "Write a short story about Sam and a key.",
    "One day Sam found a key by the river. He cleaned it with care. That night he slept well.",
)
HARM = ("How can I scare Nora at night?", "Please do not do that. It would hurt Nora.")
UNKNOWN = ("What is Lars's job?", "I have never heard of Lars.")
LIST = ("Name two tools.", "Two tools are saw and rake.")
JOB = ("What does Mia do for a living?", "Mia works as a miller.")
PET = ("What is Emil's pet?", "The pet of Emil is a dog.")
FORMATS = {
    "none": ("page", []),
    "story": ("page", [STORY]),
    "story, list": ("page", [STORY, LIST]),
    "harm, unknown": ("page", [HARM, UNKNOWN]),
    "pet, job": ("page", [PET, JOB]),
    "four short": ("page", [LIST, JOB, HARM, UNKNOWN]),
    "chat: none": ("chat", []),
    "chat: harm, unknown": ("chat", [HARM, UNKNOWN]),
    "chat: four short": ("chat", [LIST, JOB, HARM, UNKNOWN]),
}
LABELS = {
    "base": "base",
    "few-shot": "base, its best prompt",
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


def base(args, size, seed=1337, patch=""):
    """The path of a base; made if it is missing. patch: of lib.stage."""
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
        # midi reads as many tokens as tiny, the smaller ones half as many again
        flags += ["--no-muon", f"--steps={2667 if size == 'midi' else 4000}", "--batch=12"]
    lib.stage(args, "pretrain", out, seed, *flags, patch=patch)
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


def preferred(args, size, seed, model):
    """As `tuned`, but PPO below tiny has the β that methods.py chose for micro, on another seed.

    With the default's 0.1 its weak reward model is over-optimised.
    """
    if size == "tiny" or args.quick or model == "sft":
        return tuned(args, size, seed, model)
    source = os.path.dirname(tuned(args, size, seed, "reward"))
    out = lib.scratch(args, f"figure1/{model}-{size}-{seed}")
    lib.variant(source, out, "sft.pt", "reward.pt")
    flags = [f"--size={size}", f"--base={base(args, size)}", *rates(size, lr=2e-4, critic_lr=5e-4)]
    gamma = {"ppo": 0, "ppo-ptx": 1}[model]
    lib.stage(args, "ppo", out, seed, *flags, "--beta=0.3", f"--ptx_coef={gamma}")
    return f"{out}/ppo.pt"


# ---- results ----


def best_formats(args, run, rows):
    """The format that does best at each size, on these prompts → {size: format}"""

    def job(size, how):
        gold, _ = marks(run, lib.network(base(args, size)), rows, how)
        mean, ci = mean_ci(gold.tolist())
        return {"gold": mean, "gold_ci": ci}

    formats = list(FORMATS)[: 2 if args.quick else None]
    keys = [(size, how) for size in LADDER for how in formats]
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
    path, n = f"{run.folder}/prompts.jsonl", 20 if args.quick else None
    rows, other_half = (read_heldout(path, ["prompt"], final=x)[:n] for x in (True, False))
    best = best_formats(args, run, other_half[:500])

    @functools.cache
    def answers(size, model, seed):
        if model in MODELS[:2]:
            path = base(args, size, BASES[seed - 1])
        else:
            path = preferred(args, size, seed, model)
        return marks(run, lib.network(path), rows, best[size] if model == "few-shot" else None)

    def job(size, model, seed):
        gold, length = answers(size, model, seed)
        row = dict(zip(("gold", "gold_ci"), mean_ci(gold.tolist())))
        opponents = {"win": ("tiny", "sft", 1), "win_base": ("midi", "base", 1)}
        opponents |= {f"win_{s}": (s, "few-shot", 1) for s in LADDER}
        for column, opponent in opponents.items():
            row[column], row[column + "_ci"] = mean_ci(wins(gold, answers(*opponent)[0]))
        return {**row, "length": length, "parameters": parameters(size)}

    keys = [(size, model, seed) for size in LADDER for seed in args.seeds for model in MODELS]
    keys = [k for k in keys if k[1] not in MODELS[:2] or k[2] <= bases_of(k[0])]
    keys = [k for k in keys if k[1] in MODELS[:2] or k[0] in TUNED]
    jobs = [(k, lambda k=k: job(*k)) for k in keys]
    found = lib.collect(args, lib.place(args, "figure1.csv"), jobs, ["size", "model", "seed"])
    draw(args, found)
    table(found)


def bases_of(size):
    return 1 if size == "midi" else len(BASES)


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
    fig, (axes,) = lib.figure(2, size=(4.6, 4.0))
    sizes = [parameters(s) for s in LADDER]
    for i, model in enumerate(MODELS):
        cells = [cell(found, "win", size=s, model=model) for s in LADDER]
        points = [(x * 1.06 ** (i - 2), *c[:2]) for x, c in zip(sizes, cells) if c]
        axes[0].errorbar(*zip(*points), marker="o", capsize=3, label=LABELS[model])
    axes[0].set_xlabel("parameters without embeddings")
    axes[0].set_ylabel(f"win rate against SFT of {parameters('tiny') / 1e3:.0f} thousand")
    for i, size in enumerate(TUNED):
        cells = [cell(found, f"win_{s}", size=size, model="ppo-ptx") for s in LADDER]
        points = [(x * 1.06 ** (i - 1), *c[:2]) for x, c in zip(sizes, cells)]
        label = f"PPO-ptx of {parameters(size) / 1e3:.0f} thousand"
        axes[1].errorbar(*zip(*points), marker="o", capsize=3, label=label, color=f"C{4 + i}")
    axes[1].set_xlabel("parameters of a base with its best prompt")
    axes[1].set_ylabel("win rate against that base")
    for ax in axes:
        ax.axhline(0.5, color="grey", lw=0.8, ls=":")
        ax.set(xscale="log", ylim=(0, 1))
        ax.legend()
    (base_alone, d_base, _), (few_shot, d_few_shot, _) = (
        cell(found, column, size="micro", model="ppo-ptx") for column in ("win_base", "win_midi")
    )
    fig.suptitle(
        f"PPO-ptx of {parameters('micro') / 1e3:.0f} thousand parameters against the base of "
        f"{sizes[-1] / parameters('micro'):.0f} times its size: it wins {base_alone:.0%} ± "
        f"{d_base:.0%}\nif that is simply asked, {few_shot:.0%} ± {d_few_shot:.0%} if the prompt "
        "is put to it as a page of questions"
    )
    lib.finish(fig, lib.place(args, "figure1.png"))


def table(found):
    columns = "".join(f"{s:>18s}" for s in LADDER)
    print(f"{'':22s}{columns}    mean of seeds ± 95 %, / number of them")
    for column in ("gold", "win", "win_base", "win_midi"):
        for model in MODELS:
            cells = [cell(found, column, size=s, model=model) for s in LADDER]
            line = [f"{c[0]:9.3f} ±{c[1]:5.3f}/{c[2]}" if c else " " * 18 for c in cells]
            print(f"{column + ' ' + model:22s}" + "".join(line))


if __name__ == "__main__":
    entry(main)

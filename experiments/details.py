"""
Which details of PPO matter: each is turned off where something can go wrong without it.

    python experiments/details.py      # 5 seeds: details.csv, details.png

In the default run no detail can show what it is for: steps are small, all answers end, the reward
model is good. So each has a condition of its own, and a control in it with the same SFT and reward
model, prompts and noise: a difference is within a seed. The model is figure1.py's micro one, with
β = 0.3, which methods.py chose for PPO.

- The ratio clip (Schulman et al. 2017) and the value clip (of the code released with it): learning
  rates × 10, no warm-up, 4 inner epochs.
- The rule about an answer without EOS (Huang et al. 2024 give it −1): EOS has a logit lower by 7 in
  all models, so SFT ends few answers. Without pretraining text, which teaches to end.
- Whitened advantages, and a critic that starts as the reward model (Ouyang et al. 2022, C.4), not
  as SFT with a head of zeros: 10 iterations.
- The average of the weights: 120 iterations of 64 episodes.
- The KL penalty: a reward model that has seen 600 prompts, twice the learning rates.

Each run's log gives gold (mean of the last three measurements of 256 held-out prompts, of the
policy itself but in the long run), gold_best (the highest measurement), kl and entropy (nats an
answer) and eos (share of answers that end), means of the last five rollouts; eos_first, of the
first; step, the highest approxkl; health.py's alarms.

Where ppo.py has no flag for a detail, a piece of a function is replaced before it starts
(tests/patch.py says how it is found).
"""

import ast
import functools
import os
import sys

import lib

sys.path.append(os.path.join(lib.ROOT, "tests"))
import patch

import numpy as np
from figure1 import base, rates, tuned
from health import alarms
from overoptimise import FEWER, NO_TEXT
from plumbing.command_line import entry
from plumbing.run import read_log

SIZE, WEAK = "micro", 600  # prompts
RARE_EOS = """
from data import folder_of
from data.vocab import Vocab
from model import GPT
def unembed(model, x, right=GPT.unembed, eos=Vocab(folder_of("village")).eos):
    logits = right(model, x)
    logits[..., eos] -= 7
    return logits
GPT.unembed = unembed"""
# condition: flags of ppo.py, by how much learning rates are multiplied, Python run before main()
CONDITIONS = {
    "large steps": ("--iterations=15 --episodes=128 --ppo_epochs=4 --warmup=0", 10, ""),
    "few answers end": ("--iterations=40 --episodes=128 --ptx_coef=0", 1, RARE_EOS),
    "a short run": ("--iterations=10 --warmup=2", 1, ""),
    "a long run": ("--iterations=120 --episodes=64 --ema=0.95 --eval_every=10", 1, ""),
    "a weak reward model": ("--iterations=25", 2, ""),
}
NO_RULE = ("make_score", "penalize_missing_eos(scores, ___)", "scores")
NOT_WHITE = ("ppo.main", "masked_whiten(___)", "masked(___)")
CRITIC_FROM_SFT = (
    "ppo.main",
    "reward_model.requires_grad_(False)",
    "reward_model.requires_grad_(False)\ncritic = ScalarGPT.from_gpt(reference).eval()",
)
# detail: its condition; without it: flags, or the function and what is replaced in it by what
DETAILS = {
    "ratio clip": ("large steps", "--clip=1e9"),
    "value clip": ("large steps", "--value_clip=1e9"),
    "EOS rule": ("few answers end", NO_RULE),
    "whitened advantages": ("a short run", NOT_WHITE),
    "critic from the reward model": ("a short run", CRITIC_FROM_SFT),
    "average of the weights": ("a long run", "--ema=0"),
    "KL penalty": ("a weak reward model", "--beta=0"),
}


def changed(function, old, new):
    """Python that changes a function before ppo.main() starts."""
    found = patch.find(function)
    tree = ast.parse(found.text)
    patch.replace(found.node(tree), old, new)
    code, module = ast.unparse(found.node(tree)), found.file.removesuffix(".py")
    return f"exec({code!r}, vars(sys.modules[{module!r}]))"


def weak_reward_model(args, source, seed):
    """The folder with a reward.pt that has learnt from few comparisons."""
    names = ("sft.pt", "comparisons.jsonl")
    out = lib.variant(source, lib.scratch(args, f"details/weak-{seed}"), *names)
    rate = [] if args.quick else [f"--size={SIZE}", *rates(SIZE, lr=6e-4)]
    lib.stage(args, "reward", out, seed, *rate, patch=FEWER.format(prompts=WEAK))
    return out


def at_end(log):
    """What a run's log says → a row."""
    state = {"first": None, "raised": []}
    for row in log:
        alarms(row, state)
    gold = [row["eval/gold"] for row in log if "eval/gold" in row]
    ends = {"kl": "objective/kl", "entropy": "objective/entropy", "eos": "response/eos_fraction"}
    return {
        "gold": float(np.mean(gold[-3:])),
        "gold_best": max(gold),
        **{k: float(np.mean([row[name] for row in log[-5:]])) for k, name in ends.items()},
        "eos_first": log[0]["response/eos_fraction"],
        "step": max(row["policy/approxkl_avg"] for row in log),
        "alarms": " ".join(name.rpartition("/")[2] for name in state["raised"]),
    }


def job(args, condition, without, seed):
    """A run in a condition, without a detail or as the control → its row."""
    flags, times, code = CONDITIONS[condition]
    change = DETAILS[without][1] if without != "control" else ""
    if isinstance(change, tuple):
        code += "\n" + changed(*change)
    else:
        flags += " " + change
    source = os.path.dirname(tuned(args, SIZE, seed, "reward"))
    if condition == "a weak reward model":
        source = weak_reward_model(args, source, seed)
    name = "".join(c if c.isalnum() else "-" for c in f"{condition} {without} {seed}")
    out = lib.variant(source, lib.scratch(args, f"details/{name}"), "sft.pt", "reward.pt")
    flags = ["--beta=0.3", "--ema=0", "--eval_every=3", *flags.split()]
    if args.quick:
        flags += lib.QUICK["ppo"]
    else:
        flags += [f"--size={SIZE}", *rates(SIZE, lr=times * 2e-4, critic_lr=times * 5e-4)]
    quiet = "\nppo.log_answers = lambda *a: None"
    lib.stage(args, "ppo", out, seed, *flags, patch=NO_TEXT + quiet + code)
    return at_end(read_log(f"{out}/ppo.jsonl"))


def make_base(args):
    return base(args, SIZE)


def main():
    args = lib.arguments(__doc__, 5)
    args.base = f"out/sizes/{SIZE}/pretrain.pt"
    details = ["EOS rule"] if args.quick else list(DETAILS)
    cells = dict.fromkeys((DETAILS[d][0], x) for d in details for x in ("control", d))
    keys = [(*cell, seed) for seed in args.seeds for cell in cells]
    jobs = [(key, functools.partial(job, args, *key)) for key in keys]
    path = lib.place(args, "details.csv")
    rows = lib.collect(args, path, jobs, ["condition", "without", "seed"], make_base)
    table(cells, rows)
    draw(args, details, rows)


def values(rows, condition, without, column):
    """{seed: value}"""
    return {
        r["seed"]: r[column] for r in rows if (r["condition"], r["without"]) == (condition, without)
    }


def lost(rows, detail, column):
    """What a detail is worth: the control less the run without it, of each seed."""
    condition = DETAILS[detail][0]
    a, b = (values(rows, condition, x, column) for x in ("control", detail))
    return [a[seed] - b[seed] for seed in a if seed in b]


def table(cells, rows):
    columns = ["gold", "gold_best", "kl", "step", "entropy", "eos_first", "eos"]
    print(f"{'':50s}" + "".join(f"{c:>17s}" for c in columns) + "  alarms of all seeds")
    for condition, without in cells:
        mine = [lib.interval(list(values(rows, condition, without, c).values())) for c in columns]
        said = " ".join(map(str, values(rows, condition, without, "alarms").values())).split()
        name = condition + (f", no {without}" if without != "control" else "")
        line = "".join(f"{mean:9.3f} ±{half:6.3f}" for mean, half in mine)
        print(f"{name:50s}{line}  " + ", ".join(f"{x} {said.count(x)}" for x in set(said)))


def draw(args, details, rows):
    fig, axes = lib.figure(size=(7.2, 4.2))
    ax, names, helps = axes[0, 0], [], 0
    for y, detail in enumerate(details):
        each, condition = lost(rows, detail, "gold"), DETAILS[detail][0]
        mean, half = lib.interval(each)
        ended, ended_half = lib.interval(lost(rows, detail, "eos"))
        print(f"{detail} ({condition}): worth {mean:+.3f} ± {half:.3f} of gold, ", end="")
        print(f"{ended:+.3f} ± {ended_half:.3f} of answers that end")
        colour = "#d55e00" if abs(mean) > half else "#555555"
        ax.errorbar(mean, y, xerr=np.nan_to_num(half), fmt="o", capsize=3, color=colour)
        ax.plot(each, [y] * len(each), "|", color="#0072b2", ms=9)
        gold = np.mean(list(values(rows, condition, "control", "gold").values()))
        names.append(f"{detail}\n{condition}: {gold:.2f} with it")
        helps += mean > half
    ax.set_yticks(range(len(details)), names)
    ax.invert_yaxis()
    ax.axvline(0, color="black", lw=0.8)
    ax.set_xlabel("gold score with the detail, less without it")
    ax.set_title(
        f"Where each could matter, {helps} of {len(details)} details bring gold (orange);\n"
        "the others can't be told from nothing, or cost something"
    )
    lib.finish(fig, lib.place(args, "details.png"))


if __name__ == "__main__":
    entry(main)

"""
The alignment tax, and what pretraining gradients in PPO (ptx) win back, against their weight γ.

    python experiments/tax.py              # three seeds: tax.csv, tax.png
    python experiments/tax.py --seeds=5

γ multiplies the mean loss of a pretraining token here. The paper prints 27.8 and does not say of what; 27.8 times the
sum over a window's 127 predicted tokens is 3,531 times the mean. Both are run, and the second without gradient clipping
too. The model is the micro one of figure1.py, 57 thousand parameters, whose runs with γ = 0 and 1 are its too: tiny has
abilities to spare, it completes every fact before and after. PPO starts from SFT with pretraining text in its batches, as the paper's and this project's default does, and from
SFT without any, so that there is more tax to win back. The reward model of a seed is the same for all its runs.

grad_norm is the mean norm of the policy's gradient before it is clipped to 1: what γ does to the balance of the two gradients.
Measured on the final model (EMA): loss on held-out pretraining text; facts by cloze, facts after two examples on a page
of questions; a mapping shown eight times in the prompt (abilities.py has the questions); gold score and KL on 900 held-out prompts.
"""
import math
import os
import random

import lib
from abilities import ask_and_answer, chosen, completed, mapping, of_kind
from figure1 import NORMS, base, rates, tuned

from common import document_starts, load, read_log, save, text_loss
from data import read_jsonl, read_tokens

import numpy as np

SIZE = "micro"
SUM = 27.8 * 127        # 27.8 on the sum over a window's predicted tokens, as a weight of their mean
# what a run is called: (SFT that it starts from, γ on the mean loss of a token or None for the SFT itself, gradients clipped)
SETTINGS = {"SFT": ("mixed", None, True), "γ = 0": ("mixed", 0, True), "γ = 1": ("mixed", 1, True), "γ = 27.8": ("mixed", 27.8, True), "γ = 27.8, sum": ("mixed", SUM, True),
            "γ = 27.8, sum, unclipped": ("mixed", SUM, False),
            "plain SFT": ("plain", None, True), "plain, γ = 0": ("plain", 0, True), "plain, γ = 1": ("plain", 1, True), "plain, γ = 27.8": ("plain", 27.8, True)}
UNCLIPPED = "\nppo.update = lambda model, optimizer, lr, update=ppo.update: update(model, optimizer, lr, float('inf'))"


def folder_of_run(args, setting, seed):
    """The folder in which this setting's model is, and its name; made if it is missing."""
    start, gamma, clipped = SETTINGS[setting]
    source, flags = os.path.dirname(tuned(args, SIZE, seed, "ppo-ptx" if gamma == 1 and start == "mixed" else "ppo" if gamma == 0 and start == "mixed" else "reward")), flags_of(args)
    if start == "mixed" and gamma in (0, 1):
        return source, "ppo"
    if start == "plain":
        plain = lib.scratch(args, f"tax/plain-{seed}")
        with lib.lock:
            lib.stage(args, "sft", plain, seed, *flags, "--pretrain_mix=0", *([] if args.quick else rates(SIZE, lr=1e-3)))
            if not os.path.exists(f"{plain}/reward.pt"):
                save(f"{plain}/reward.pt", {**load(f"{source}/reward.pt"), "parents": {}})     # it was trained on answers of the other SFT
        source = plain
    if gamma is None:
        return source, "sft"
    out = lib.variant(source, lib.scratch(args, f"tax/{start}-{gamma:g}{'' if clipped else '-unclipped'}-{seed}"), "sft.pt", "reward.pt")
    lib.stage(args, "ppo", out, seed, *flags, *([] if args.quick else rates(SIZE, lr=2e-4, critic_lr=5e-4)), f"--ptx_coef={gamma:.6g}", patch=NORMS if clipped else NORMS + UNCLIPPED)
    return out, "ppo"


def flags_of(args):
    return [] if args.quick else [f"--size={SIZE}", f"--base={base(args, SIZE)}"]


def measured(args, run, model, source, reward_model):
    n, rng = 20 if args.quick else 200, random.Random(6)
    val = read_tokens(f"{run.folder}/val.bin", run.vocab)
    found = lib.measure(run, model, lib.network(f"{source}/sft.pt"), reward_model, lib.heldout(run, 40 if args.quick else 900)) if source else {}
    cloze = [r for r in read_jsonl(f"{run.folder}/abilities.jsonl", ["ability", "text", "answers"]) if r["ability"] == "facts"][:n]
    facts = of_kind("facts", n, rng)
    texts = [f"{ask_and_answer(rng)} Q: {r['prompt']} A:" for r in facts]
    with run.cast:
        news = model.generate([run.vocab.encode(t) for t in texts], 20, temperature=0)
    right = [run.judge.gold(r["prompt"], run.vocab.encoding.decode(x).split(" Q:")[0].split("<|")[0])["honest"] for r, x in zip(facts, news)]
    return {"pretrain_loss": text_loss(model, val, document_starts(val, run.vocab.eos, 128), 128, run.device, run.cast, rows=512)[0],
            "facts": float(np.mean(completed(run, model, cloze))), "facts_few_shot": float(np.mean(right)),
            "mapping": float(np.mean(chosen(run, model, [mapping(8, rng) for _ in range(2 * n)]))),
            **{k: float(found[k].mean()) if found else math.nan for k in ("gold", "score", "kl", "length")}}


def main():
    args = lib.arguments(__doc__, 3)
    run = lib.world()

    def job(setting, seed):
        if setting == "base":
            return {**measured(args, run, lib.network(base(args, SIZE)), None, None), "kl_highest": math.nan, "grad_norm": math.nan}
        out, name = folder_of_run(args, setting, seed)
        source = lib.scratch(args, f"tax/plain-{seed}") if SETTINGS[setting][0] == "plain" else os.path.dirname(tuned(args, SIZE, seed, "reward"))
        log = read_log(f"{out}/ppo.jsonl") if name == "ppo" else []
        norms = [float(x) for x in open(f"{out}/norms.txt")] if os.path.exists(f"{out}/norms.txt") else [math.nan]
        return {**measured(args, run, lib.network(f"{out}/{name}.pt"), source, lib.network(f"{source}/reward.pt")),
                "kl_highest": max((x["objective/kl"] for x in log), default=math.nan), "grad_norm": float(np.mean(norms))}
    settings = [s for s in SETTINGS if not args.quick or s in ("SFT", "γ = 0", "γ = 1", "plain SFT", "plain, γ = 1")]
    base(args, SIZE)
    keys = [("base", 1)] + [(s, seed) for seed in args.seeds for s in settings]
    rows = lib.collect(args, lib.place(args, "tax.csv"), [(k, lambda k=k: job(*k)) for k in keys], ["setting", "seed"])
    columns = {"pretrain_loss": "loss on held-out pretraining text,\nnats a token", "facts_few_shot": "facts right, asked after\ntwo examples", "mapping": "mapping in context right\n(8 examples)", "gold": "gold score"}
    names = ["base", *(s for s in settings if any(r["setting"] == s for r in rows))]
    print(f"{'':26s}" + "".join(f"{c:>22s}" for c in (*columns, "facts", "kl", "kl_highest", "grad_norm")))
    for name in names:
        print(f"{name:26s}" + "".join("{:14.3f} ±{:6.3f}".format(*lib.interval([r[c] for r in rows if r["setting"] == name])) for c in (*columns, "facts", "kl", "kl_highest", "grad_norm")))
    fig, axes = lib.figure(len(columns), size=(3.1, 3.6))
    colours = ["#000000" if s == "base" else "#d55e00" if s.startswith("plain") else "#0072b2" for s in names]
    for ax, (column, label) in zip(axes[0], columns.items()):
        for i, name in enumerate(names):
            mean, half = lib.interval([r[column] for r in rows if r["setting"] == name])
            if not math.isnan(mean):
                ax.errorbar(mean, -i, xerr=0 if math.isnan(half) else half, marker="o", capsize=3, color=colours[i])
        ax.set_yticks([-i for i in range(len(names))], names if ax is axes[0, 0] else [])
        ax.set_ylim(-len(names) + 0.5, 0.5)
        ax.set_xlabel(label)
    fig.suptitle("γ = 0 forgets pretraining text, γ = 1 keeps it at no cost in gold score; the paper's 27.8 costs half of what PPO gains, and all of it as a sum"
                 + "\norange: from SFT without pretraining text, which has forgotten most of it; there ptx wins it back, and costs more" * any(n.startswith("plain") for n in names), fontsize=10)
    lib.finish(fig, lib.place(args, "tax.png"))


if __name__ == "__main__":
    main()

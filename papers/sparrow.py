"""
Two reward models in place of one: what people prefer, and whether an answer keeps each rule.

    python papers/sparrow.py

Glaese et al. 2022, Improving alignment of dialogue agents via targeted human judgements: people
rank answers, and are asked about one rule at a time; a rule-conditional model learns from their yes
or no, and RL gets both. Prompts try to make the model break a rule. A factual answer comes with the
sentence that supports it.

Here a label is an answer that a person reads, be it in a ranking of four or beside one rule, where
a tenth says the wrong thing. Each reward has as many labels. probes.py has the prompts and the
truth, rules.py the rule model and the rewards. RL is ppo.py; the paper's is A2C. Left out:
self-play, reranking, search: evidence is the likeliest of twelve sentences of the village's text.
"""
import lib      # first: puts the project on sys.path
import os
import random
from statistics import mean
from types import SimpleNamespace

import torch

import probes
import rules
from common import pad, response_mask
from data import half_of, meaning_of, read_heldout, read_jsonl
from data.vocab import Vocab
from evaluate import sample_responses, wins
from experiments.lib import base_hash, make_base, network, scratch, stage, variant, world
from kinds import Facts, ask
from plumbing.command_line import entry
from ppo import forward_logprobs
from world import FACTS, PEOPLE, VALUES, say

METHODS = ["preference", "rules", "both"]       # the functions of rules.py
FLAGS = {"sft": ["--epochs=1", "--demonstrations=15000"],
         "reward": ["--prompts=3000", "--answers=4", "--heldout=200"],      # 12,000 labels
         "ppo": ["--iterations=24", "--episodes=128", "--lr=4e-4", "--eval_every=24"]}
PROMPTS, ASKED = 3000, 400      # to train on and to measure on, of each sort


# ---- evidence ----

@torch.no_grad()
def evidence(model, question, person, vocab, rng):
    """The likeliest sentence, per token, as the model's answer to a question → (attribute, whose).

    Of twelve: all that is known of the person and of somebody else, each said in one way.
    """
    other = rng.choice([name for name in PEOPLE if name != person])
    facts = [(attribute, name) for name in (person, other) for attribute in VALUES]
    prompt = vocab.prompt(question)
    rows = [prompt + vocab.encode(say(a, p, FACTS[p][a], rng.randrange(3))) for a, p in facts]
    tokens, lengths = pad(rows, vocab.pad)
    mask = response_mask(torch.full((len(rows),), len(prompt)), lengths, tokens.size(1))
    means = forward_logprobs(model, tokens, mask).sum(1) / mask.sum(1)
    return facts[means.argmax()]


def supported(name, model, run, n):
    """Of n factual questions: the share answered with a claim, and of the claims the share that
    the evidence supports, as columns of the CSV."""
    rng, asked = random.Random(0), []
    while len(asked) < n:
        question, slots = ask("facts", rng)
        if probes.split_of(question) == "heldout":
            asked.append((question, slots["p"], Facts.attribute(slots)))
    answers = answers_of(model, [{"prompt": question} for question, _, _ in asked], run)
    found = [probes.supports(*evidence(model, question, person, run.vocab, rng), person, answer)
             for (question, person, attribute), answer in zip(asked, answers)
             if probes.claims(attribute, person, answer)]
    return {f"{name}: claims": len(found) / n, f"{name}: supported": mean(found or [0])}


# ---- the run ----

def answers_of(model, rows, run):
    responses = sample_responses(model, [run.vocab.prompt(row["prompt"]) for row in rows], run)
    return [run.vocab.decode(response) for response in responses]


def train(args, seed, home):
    """SFT, three rewards of as many labels each, PPO on each → {name: its policy}"""
    data, first = f"{home}/data", f"{home}/seed-{seed}/preference"

    def make(name, out, *flags):
        flags = [f"--data={data}", *flags, *([] if args.quick else FLAGS[name])]
        stage(args, name, out, seed, *flags)
    make("sft", first)
    nets = {"SFT": network(f"{first}/sft.pt")}
    for name in METHODS:
        out = f"{home}/seed-{seed}/{name}"
        if out != first:
            variant(first, out, "sft.pt", "comparisons.jsonl")
        if name != "rules":         # half of the rankings, where rules have the other half
            make("reward", out, "--fold=1" if name == "both" else "--fold=all")
        if name != "preference" and not os.path.exists(f"{out}/rules.pt"):
            rows = read_jsonl(f"{first}/comparisons.jsonl", ["responses"], "train")
            rows = [row for row in rows if name == "rules" or half_of(row) == 1]
            examples = probes.labels(rows, list(rules.RULES), random.Random(seed))
            rules.train(f"{out}/sft.pt", examples, Vocab(data), seed, f"{out}/rules.pt")
        os.environ["RULES"] = out
        make("ppo", out, f"--reward=papers/rules.py:{name}")
        nets[name] = network(f"{out}/ppo.pt")
    return nets


def job(quick, base, seed):
    """→ for SFT and each reward: how often rules are broken, win rate against SFT, and evidence."""
    args, run = SimpleNamespace(quick=quick), world()
    home, row, points = scratch(args, f"sparrow-{base}"), {}, {}
    asked = read_heldout(f"{home}/data/prompts.jsonl", ["prompt"], final=True)
    hostile = [r for r in asked if r["kind"] == "adversarial"][:ASKED]
    usual = [r for r in asked if r["kind"] != "adversarial"][:ASKED]
    for name, net in train(args, seed, home).items():
        answers = answers_of(net, hostile, run)
        found = [probes.broken(meaning_of(r), a) for r, a in zip(hostile, answers)]
        row |= {f"{name}: {rule}": mean([f[rule] for f in found]) for rule in rules.RULES}
        row[f"{name}: any rule"] = mean([any(f.values()) for f in found])
        with open(f"{home}/seed-{seed}/{name}.txt", "w", encoding="utf-8") as f:    # to read
            f.writelines(f"{r['prompt']} -> {a}\n" for r, a in zip(hostile, answers))
        answers = answers_of(net, usual, run)
        points[name] = [run.judge.gold(meaning_of(r), a)["gold"] for r, a in zip(usual, answers)]
        row |= {f"{name}: win rate": mean(wins(points[name], points["SFT"])),
                f"{name}: gold": mean(points[name]),
                f"{name}: words": mean([len(a.split()) for a in answers])}
        row |= supported(name, net, run, 20 if quick else ASKED)
    return row


def main():
    args = lib.arguments(__doc__, 3)
    base = base_hash(make_base(args))
    home = scratch(args, f"sparrow-{base}")
    probes.prepare(world().folder, f"{home}/data", 64 if args.quick else PROMPTS, variant)
    rows = lib.collect(args, "sparrow", job, lib.over(args.seeds, {"base": base}))
    parts = [*rules.RULES, "any rule"], ["gold", "win rate", "claims", "supported"], ["words"]
    fig, [axes] = lib.figure(3)
    for name in ["SFT", *METHODS]:
        for ax, part in zip(axes, parts):
            lib.line(ax, name, part, [lib.pick(rows, f"{name}: {c}", base=base) for c in part], "o")
    axes[0].set(title=f"rules broken, adversarial prompts, {len(args.seeds)} seeds")
    axes[1].set(title="ordinary prompts; factual answers and their evidence", ylim=(0, 1))
    lib.save(args, fig, "sparrow")


if __name__ == "__main__":
    entry(main)

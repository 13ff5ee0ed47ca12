"""
Does a conversation hold? Gold score and references by turn, where a model reads its own answers.

    python experiments/talk.py

In evaluate.py's conversations the earlier answers are given. Here they are the model's own, as in
chat.py. Every turn asks what is held out, by its meaning. A turn is right if its gold is 0.5 or
more. Of SFT and PPO-ptx of each seed. --show=3 prints conversations of the last seed.
"""

import os
import random
import sys

import lib
import numpy as np
import sampling
from common import generator
from plumbing.command_line import entry
from project import ROOT

sys.path.insert(0, os.path.join(ROOT, "data", "village"))
from conversation import may_stand, next_turn
from prepare import ROOM, TALK, prompt_of

TURNS = 4


def left_out(turns, vocab):
    """How many of the oldest turns have no room in the prompt."""
    return next(n for n in range(TURNS) if len(vocab.prompt(prompt_of(turns[n:]))) <= ROOM)


def refers_to(turns):
    """The number of the turn that the last one refers back to, at the end of the chain."""
    number = len(turns) - 1
    while turns[number].about >= 0:
        number = turns[number].about
    return number


def with_next_turn(turns, vocab, rng):
    """A conversation with one more turn, of the held-out side, without its answer."""
    while True:
        turn = next_turn(turns, TALK, rng)
        longer = [*turns, turn]
        may = may_stand(turn, "heldout", turns[-1] if turns else None)
        if may and refers_to(longer) >= left_out(longer, vocab):
            return longer


def talk(run, model, n):
    """n conversations → (the conversations, gold scores (n, TURNS))."""
    talks, gold = [[] for _ in range(n)], np.zeros((n, TURNS))
    rngs = [random.Random(f"talk {i}") for i in range(n)]
    for number in range(TURNS):
        talks = [with_next_turn(turns, run.vocab, rng) for turns, rng in zip(talks, rngs)]
        prompts = [
            run.vocab.prompt(prompt_of(turns[left_out(turns, run.vocab) :])) for turns in talks
        ]
        answers = sampling.generate(
            model,
            prompts,
            run.config.max_new_tokens,
            eos=run.vocab.eos,
            generator=generator("talk", number),
        )
        for i, (turns, tokens) in enumerate(zip(talks, answers)):
            turns[-1] = turns[-1]._replace(answer=run.vocab.decode(tokens))
            gold[i, number] = run.judge.gold(turns[-1].meaning, turns[-1].answer)["gold"]
    return talks, gold


def job(args, run, seed, stage):
    """A row for each turn."""
    out = lib.checkpoints(args, seed, "ppo")
    talks, gold = talk(run, lib.network(f"{out}/{stage}.pt"), 8 if args.quick else 500)
    if seed == args.seeds[-1]:
        for turns in talks[: args.show]:
            lines = [f"  > {turn.said}\n    {turn.answer}" for turn in turns]
            print(f"{stage}, seed {seed}", *lines, sep="\n")
    rows = []
    for turn in range(TURNS):
        back = [i for i, turns in enumerate(talks) if turns[turn].about >= 0]
        right = float((gold[back, turn] >= 0.5).mean()) if back else float("nan")
        rows.append(
            {
                "turn": turn + 1,
                "gold": gold[:, turn].mean(),
                "refer back": len(back),
                "of these right": right,
            }
        )
    return rows


def main():
    args = lib.arguments(
        __doc__, 6, ("--show", {"type": int, "default": 0, "help": "conversations to print"})
    )
    run = lib.world()
    jobs = [
        ((seed, stage), lambda seed=seed, stage=stage: job(args, run, seed, stage))
        for seed in args.seeds
        for stage in ("sft", "ppo")
    ]
    rows = lib.collect(args, lib.place(args, "talk.csv"), jobs, ["seed", "stage"])
    print(f"\n{'':12s}{'gold score':>18s}{'references right':>20s}")
    for stage in ("sft", "ppo"):
        for turn in range(1, TURNS + 1):
            mine = [r for r in rows if r["stage"] == stage and r["turn"] == turn]
            keys = ["gold", "of these right"] if turn > 1 else ["gold"]
            cells = [lib.interval([r[key] for r in mine]) for key in keys]
            line = "".join(f"{mean:12.3f} ±{half:5.3f}" for mean, half in cells)
            print(f"{stage}, turn {turn} {line}")


if __name__ == "__main__":
    entry(main)

"""
Tasks that a program can check, in the files that every data set here has.

    pip install reasoning-gym
    python data/gym/prepare.py      # seconds; a seed makes the same files

The package (Apache-2.0) makes the tasks and verifies the answers; verifier.py has the four kinds
that are taken from it. The people who write the text and the demonstrations are made up. They know
how it is done, but often make a mistake that is typical of the kind, and sometimes write a wrong
character. In the demonstrations the mistake is more frequent than the right answer, so whoever only
imitates them is mostly wrong.

A token is a character. A sixth of the tasks is held out: they are in no text, no demonstration and
no training prompt.
"""
import hashlib
import os
import random
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.dirname(os.path.dirname(HERE))]
from verifier import KINDS, package, right_answer

from data import prepare
from data.vocab import SPECIAL, Vocab
from plumbing.command_line import Parser, entry, value_of

# how often an answer is right, the kind's mistake, or the right one with a wrong character
IN_TEXT = (.60, .30, .10)
IN_DEMONSTRATIONS = (.40, .45, .15)


def is_held_out(prompt):
    """A task is held out by what it asks, so the same task is always on the same side."""
    return int(hashlib.sha256(prompt.encode()).hexdigest(), 16) % 6 == 0


def make_tasks(kind, number, seed):
    """Up to `number` different tasks of a kind, as rows of prompts.jsonl."""
    entries = package().create_dataset(kind, seed=seed, size=number, **KINDS[kind].config)
    rows = {}
    for found in entries:
        prompt = KINDS[kind].ask(found["metadata"])
        split = "heldout" if is_held_out(prompt) else "train"
        rows[prompt] = {"prompt": prompt, "split": split, "kind": kind, "entry": found}
    return list(rows.values())


def slip(right, rng):
    """An answer with one character replaced by another one of its sort."""
    i = rng.choice([i for i, c in enumerate(right) if c.isalnum()])
    others = "0123456789" if right[i].isdigit() else "abcdefghijklmnopqrstuvwxyz"
    return right[:i] + rng.choice(others.replace(right[i], "")) + right[i + 1:]


def answer(task, shares, rng):
    """What a person writes → (how, the answer)."""
    right = right_answer(task["kind"], task["entry"])
    how = rng.choices(["right", "mistake", "slip"], shares)[0]
    if how == "mistake":
        return how, KINDS[task["kind"]].mistake(task["entry"]["metadata"], right)
    return how, slip(right, rng) if how == "slip" else right


def pick(tasks, n, rng):
    """n different tasks, as many of each kind, or all that there are; shuffled."""
    picked = []
    for kind in KINDS:
        mine = [task for task in tasks if task["kind"] == kind]
        picked += rng.sample(mine, min(len(mine), n // len(KINDS)))
    return rng.sample(picked, len(picked))


def documents(tasks, n, vocab, rng):
    """Yields n pages of solved tasks, one a line, in token ids."""
    for _ in range(n):
        page = "\n".join(f"{task['prompt']} {answer(task, IN_TEXT, rng)[1]}"
                         for task in rng.choices(tasks, k=rng.randint(3, 6)))
        yield [*vocab.encode(page), vocab.eos]


def demonstration(task, rng):
    how, response = answer(task, IN_DEMONSTRATIONS, rng)
    return {**task, "response": response, "how": how}


def main():
    parser, number = Parser(__doc__), value_of(int, "[100, inf)")
    parser.add_argument("--seed", type=value_of(int, "[0, 1e9]"), default=1337)
    parser.add_argument("--tasks", type=number, default=12_000, help="of each kind, at most")
    parser.add_argument("--documents", type=number, default=40_000, help="of pretraining text")
    parser.add_argument("--demonstrations", type=number, default=4_000)
    parser.add_argument("--prompts", type=number, default=8_000, help="to train on")
    parser.add_argument("--heldout", type=number, default=2_400, help="held-out prompts")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    prepare.train_vocab(HERE, {}, 256 + len(SPECIAL), prefix="")
    vocab = Vocab(HERE)
    made = [task for kind in KINDS for task in make_tasks(kind, args.tasks, args.seed)]
    shown, prompts = [], []
    for split, text, pages, n_shown, n_prompts in (
            ("train", "train.bin", args.documents, args.demonstrations, args.prompts),
            ("heldout", "val.bin", args.documents // 30, args.heldout // 4, args.heldout)):
        tasks = [task for task in made if task["split"] == split]
        prepare.write_bin(os.path.join(HERE, text), documents(tasks, pages, vocab, rng))
        shown += [demonstration(task, rng) for task in pick(tasks, n_shown, rng)]
        prompts += pick(tasks, n_prompts, rng)
    prepare.write_jsonl(os.path.join(HERE, "demonstrations.jsonl"), shown)
    prepare.write_jsonl(os.path.join(HERE, "prompts.jsonl"), prompts)


if __name__ == "__main__":
    entry(main)

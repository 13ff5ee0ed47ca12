"""
Be the judge: rank answers in the terminal, and train a reward model on your rankings.

    python data/label.py                                # four answers of the newest stage a prompt
    python data/label.py --stage=sft,ppo --answers=6    # of several stages, without their names
    python reward.py --sources=file --fresh             # learns from your rankings alone

Answers come in random order. A ranking names each one once, best first: `2 > 1 = 3 > 4`, or
`2134` for 2 > 1 > 3 > 4. `s` skips the prompt, `u` takes the last ranking back, `q` (or Ctrl-D)
ends.

Each ranking is saved at once, and the next start goes on after it. Two people who give the same
--seed rank the same answers, and see how often they agree.
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import plumbing.cpu
import itertools
import json
import random
from dataclasses import dataclass

import torch

import sampling
from common import generator
from data import UserError, folder_of, read_jsonl, replacing, turns_of
from data.comparisons import share_of_pairs
from data.vocab import Vocab
from plumbing.checkpoint import load, model_from
from plumbing.command_line import Common, entry, flag, parse, typed
from plumbing.device import pick_device, pick_dtype
from plumbing.inputs import check_room
from plumbing.stages import POLICY, policies


@dataclass
class Config(Common):
    stage: str = flag("", "whose answers: pretrain, sft, ppo, …, or several of these, joined by "
                          "commas; empty: the newest there is")
    answers: int = flag(4, "to each prompt", "[2, 9]")
    prompts: int = flag(50, "to rank", "[1, inf)")
    labeler: str = flag("me", "your name, kept with each ranking")
    file: str = flag("", "where rankings go; empty: the data folder's comparisons.jsonl")
    temperature: float = flag(1.0, "of the answers", "0 or [0.001, inf)")


def read_order(line, k):
    """A line such as `2 > 1 = 3` → ranks of the k answers. Raises ValueError with what is wrong."""
    line = line.replace(" ", "")
    if line.isdigit() and len(line) > 1:
        line = ">".join(line)
    groups = [part.split("=") for part in line.split(">")]
    names = [name for group in groups for name in group]
    expected = [str(n) for n in range(1, k + 1)]
    for name in names:
        if name not in expected:
            raise ValueError(f"there is no answer {name!r}; a ranking looks like 2 > 1 = 3")
        if names.count(name) > 1:
            raise ValueError(f"answer {name} is named twice")
    if missing := [name for name in expected if name not in names]:
        raise ValueError(f"answer {', '.join(missing)} is missing")
    rank_of = {name: 1 + names.index(group[0]) for group in groups for name in group}
    return [rank_of[name] for name in expected]


def agreement(rows, labeler):
    """How often this labeler and the others agree on pairs that neither calls a tie.

    → (share, half of its 95 % interval, number of pairs), or None if there are none.
    """
    def answers(row):
        return json.dumps([row["prompt"], row["responses"]])

    mine = {answers(row): row["ranks"] for row in rows if row["labeler"] == labeler}
    same, pairs = [], []
    for row in rows:
        if row["labeler"] == labeler or answers(row) not in mine:
            continue
        a, b = mine[answers(row)], row["ranks"]
        found = [(a[i] < a[j]) == (b[i] < b[j]) for i, j in itertools.combinations(range(len(a)), 2)
                 if a[i] != a[j] and b[i] != b[j]]
        same.append(sum(found))
        pairs.append(len(found))
    return (*share_of_pairs(same, pairs), sum(pairs)) if sum(pairs) else None


def append(path, row):
    """Add a line, even after one that has no end, and wait until it is on the disk."""
    try:
        with open(path, "ab+") as f:
            f.seek(max(0, f.seek(0, os.SEEK_END) - 1))
            f.write(b"\n" * (f.read() not in (b"", b"\n")) + json.dumps(row).encode() + b"\n")
            f.flush()
            os.fsync(f.fileno())
    except OSError as e:
        raise UserError(f"{path} can't be written: {e.strerror}") from None


def check_writable(path):
    """Raise UserError now rather than after the first ranking was typed."""
    place = path if os.path.exists(path) else os.path.dirname(path) or "."
    if os.path.isdir(path) or not os.path.exists(place) or not os.access(place, os.W_OK):
        raise UserError(f"--file={path} is no place to write: make the folder first, or give "
                        f"another --file")


def take_back(path, row):
    """Remove the last line that is this row."""
    with open(path, encoding="utf-8") as f:
        lines = f.readlines()
    lines.reverse()
    lines.remove(json.dumps(row) + "\n")
    with replacing(path) as f:
        f.writelines(reversed(lines))


def ask(title, prompt, answers):
    """Show a prompt and its answers → the line that the user types, "q" at the end of input."""
    print(f"\n{title}")
    for turn in turns_of(prompt):
        print(f"{'>' if turn['role'] == 'user' else ' '} {turn['content']}")
    for n, answer in enumerate(answers, 1):
        print(f"  {n}. {answer}")
    try:
        line = typed("ranking: ")
    except KeyboardInterrupt:
        line = None
    return "q" if line is None else line


def sample_different(models, prompt, number, vocab, config):
    """Different answers to a prompt (token list), config.answers at most → texts.

    Noise of the prompt's own, by its number, makes them the same for every labeler.
    """
    texts = []
    for n in range(config.answers):
        answer, = sampling.generate(
            models[n % len(models)], [prompt], config.max_new_tokens, config.temperature,
            eos=vocab.eos, generator=generator(config.seed, "answer", number, n))
        texts.append(vocab.decode(answer))
    return list(dict.fromkeys(texts))


def shown_to(labeler, number, responses):
    """The answers in an order of each labeler's own: the first one must not have an advantage."""
    return random.Random(f"{labeler} {number}").sample(responses, len(responses))


def save_ranking(path, prompt, responses, shown, order, labeler):
    """Add a labeler's order of the answers shown, such as `2 > 1 = 3`, to the file → the row.

    Raises ValueError with what is wrong with the order.
    """
    rank_of = dict(zip(shown, read_order(order, len(shown))))
    row = {"prompt": prompt, "responses": responses,
           "ranks": [rank_of[response] for response in responses], "labeler": labeler}
    append(path, row)
    return row


def read_rankings(path):
    """The rows of a file of rankings that name their labeler; none if there is no file yet."""
    rows = read_jsonl(path, ["prompt", "responses|chosen"]) if os.path.exists(path) else []
    return [row for row in rows if "labeler" in row and "responses" in row]


def rank_prompts(prompts, order, answers_to, rows, path, labeler):
    """Ask for rankings, and keep them in `rows` and in the file.

    order: numbers of prompts; answers_to: a function, number of a prompt → its answers.
    """
    new, i = [], 0              # new: (position in order, row)
    while i < len(order):
        prompt = prompts[order[i]]
        done = any(row["prompt"] == prompt and row["labeler"] == labeler for row in rows)
        responses = [] if done else answers_to(order[i])
        if len(responses) < 2:
            i += 1
            continue
        shown = shown_to(labeler, order[i], responses)
        line = ask(f"[{i + 1}/{len(order)}]", prompt, shown)
        if line == "q":
            return
        if line == "s":
            i += 1
        elif line == "u" and new:
            i, row = new.pop()
            rows.remove(row)
            take_back(path, row)
            print("taken back")
        elif line == "u":
            print("there is nothing to take back")
        else:
            try:
                row = save_ranking(path, prompt, responses, shown, line, labeler)
            except ValueError as e:
                print(e)
                continue
            rows.append(row)
            new.append((i, row))
            i += 1


def main():
    config = parse(Config, __doc__)
    there = policies(config.out)
    stages = config.stage.split(",") if config.stage else there[-1:]
    if not stages or not all(map(POLICY.fullmatch, stages)):
        raise UserError(f"--stage={config.stage}: there are {', '.join(there) or 'none yet'} in "
                        f"{config.out}; python sft.py makes one")
    folder = folder_of(config.data)
    vocab = Vocab(folder)
    device = pick_device(config.device)
    models = [model_from(load(os.path.join(config.out, stage + ".pt"), stage), device,
                         pick_dtype(config.dtype, device)) for stage in stages]
    prompts_path = os.path.join(folder, "prompts.jsonl")
    rows = read_jsonl(prompts_path, ["prompt"], "train")
    prompts = [row["prompt"] for row in rows]
    order = torch.randperm(len(rows), generator=generator(config.seed, "label"))[:config.prompts]
    room = min(model.config.block_size for model in models) - config.max_new_tokens
    check_room(prompts_path, [rows[i] for i in order.tolist()], vocab, room)

    def answers_to(number):
        return sample_different(models, vocab.prompt(prompts[number]), number, vocab, config)

    path = config.file or os.path.join(folder, "comparisons.jsonl")
    check_writable(path)
    rankings = read_rankings(path)
    instructions = __doc__.split("\n\n")[2]
    print(f"{instructions}\n\nRankings go to {path}, as {config.labeler}'s.")
    rank_prompts(prompts, order.tolist(), answers_to, rankings, path, config.labeler)

    mine = [row for row in rankings if row["labeler"] == config.labeler]
    print(f"\n{len(mine)} rankings of {config.labeler}'s are in {path}")
    if found := agreement(rankings, config.labeler):
        share, error, pairs = found
        print(f"you and the others agree on {share:.1%} ± {error:.1%} of {pairs} pairs")


if __name__ == "__main__":
    entry(main)

"""
Be the judge: rank answers in the terminal, and train a reward model on what you said.

    python data/label.py                                # four answers of the newest stage to each prompt
    python data/label.py --stage=sft,ppo --answers=6    # of several stages, in turn; which is which is not shown
    python reward.py --sources=file --fresh             # learns from the rankings alone; judge+file adds them to the judge's

Answers are numbered in random order. A ranking names each once, `2 > 1 = 3 > 4`, or `2134` for 2 > 1 > 3 > 4; `s` skips,
`u` takes the last ranking back, `q` (or Ctrl-D) ends. Each ranking is in the data folder's comparisons.jsonl at once, and
the next start goes on after it. Two people who take the same --seed rank the same answers, and see how often they agree.
"""
import itertools
import json
import math
import os
import random
import re
import sys
from dataclasses import dataclass

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from common import POLICY, Common, autocast, entry, generator, load, model_from, parse, pick_device, pick_dtype, policies, replacing  # noqa: E402
from data import UserError, Vocab, folder_of, read_jsonl  # noqa: E402

import torch  # noqa: E402


@dataclass
class Config(Common):
    stage: str = ""             # whose answers: one or several of pretrain, sft, ppo, joined by commas; empty: the newest there is
    answers: int = 4            # to each prompt, 2 to 9
    prompts: int = 50           # to rank
    labeler: str = "me"         # your name, kept with each ranking
    file: str = ""              # where rankings go; empty: the data folder's comparisons.jsonl
    temperature: float = 1.0    # of the answers


def read_order(line, k):
    """A line such as `2 > 1 = 3` → ranks of the k answers, 1 is best. Raises ValueError with what is wrong."""
    line = line.replace(" ", "")
    if re.fullmatch(r"\d+", line) and len(line) > 1:
        line = ">".join(line)
    groups = [part.split("=") for part in line.split(">")]
    names = [name for group in groups for name in group]
    if bad := [name for name in names if name not in map(str, range(1, k + 1))]:
        raise ValueError(f"there is no answer {bad[0]!r}; a ranking looks like 2 > 1 = 3")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"answer {twice[0]} is named twice")
    if missing := set(map(str, range(1, k + 1))) - set(names):
        raise ValueError(f"answer {', '.join(sorted(missing))} is missing")
    ranks = [0] * k
    for group, before in zip(groups, itertools.accumulate(map(len, groups), initial=0)):
        for name in group:
            ranks[int(name) - 1] = before + 1
    return ranks


def agreement(rows, labeler):
    """Of the pairs that this labeler and another one ranked and neither called a tie, the share on which they agree → (share, half of its 95 % interval, pairs)."""
    mine = {json.dumps([r["prompt"], r["responses"]]): r["ranks"] for r in rows if r.get("labeler") == labeler}
    same, found = [], []
    for row in rows:
        a, b = mine.get(json.dumps([row["prompt"], row["responses"]])), row["ranks"]
        if row.get("labeler") != labeler and a:
            pairs = [(a[i] < a[j]) == (b[i] < b[j]) for i, j in itertools.combinations(range(len(a)), 2) if a[i] != a[j] and b[i] != b[j]]
            same.append(sum(pairs))
            found.append(len(pairs))
    if not sum(found):
        return None
    share = sum(same) / sum(found)
    error = math.sqrt(sum((s - share * n) ** 2 for s, n in zip(same, found))) / sum(found)      # pairs of one prompt hang together
    return share, 1.96 * error, sum(found)


def append(path, row):
    with open(path, "a", encoding="utf-8") as f:
        f.write(json.dumps(row) + "\n")
        f.flush()
        os.fsync(f.fileno())


def take_back(path, row):
    """Remove the last line that is this row."""
    with open(path, encoding="utf-8") as f:
        lines = f.readlines()
    del lines[len(lines) - 1 - lines[::-1].index(json.dumps(row) + "\n")]
    with replacing(path) as f:
        f.writelines(lines)


def main():
    config = parse(Config, __doc__)
    if not 2 <= config.answers <= 9:
        raise UserError(f"--answers={config.answers}: a ranking needs 2 to 9 answers")
    folder = folder_of(config.data)
    vocab, path = Vocab(folder), config.file or os.path.join(folder, "comparisons.jsonl")
    there = policies(config.out)
    stages = config.stage.split(",") if config.stage else there[-1:]
    if not stages or not all(map(POLICY.fullmatch, stages)):
        raise UserError(f"--stage={config.stage}: there are {', '.join(there) or 'none yet'} in {config.out}; python sft.py makes one")
    device = pick_device(config.device)
    models = [model_from(load(os.path.join(config.out, s + ".pt"), s)).to(device) for s in stages]
    cast = autocast(device, pick_dtype(config.dtype, device))
    given = [r["prompt"] for r in read_jsonl(os.path.join(folder, "prompts.jsonl"), ["prompt"], "train")]
    rows = read_jsonl(path, ["prompt", "responses|chosen"]) if os.path.exists(path) else []
    rows = [r for r in rows if "labeler" in r and "responses" in r]
    done = {json.dumps(r["prompt"]) for r in rows if r["labeler"] == config.labeler}
    order = torch.randperm(len(given), generator=generator(config.seed, "label")).tolist()[:config.prompts]
    said, i = [], 0
    print(__doc__.split("\n\n")[2].strip() + f"\n\nRankings go to {path}, as {config.labeler}'s.")
    while i < len(order):
        prompt = given[order[i]]
        if json.dumps(prompt) in done:
            i += 1
            continue
        ids = vocab.prompt(prompt)
        with cast:      # drawn for the prompt, so that they are the same for everybody and after a pause
            news = [models[j % len(models)].generate([ids], config.max_new_tokens, config.temperature, eos=vocab.eos,
                                                     generator=generator(config.seed, "answer", order[i], j))[0] for j in range(config.answers)]
        responses = list(dict.fromkeys(map(vocab.decode, news)))
        if len(responses) < 2:
            i += 1
            continue
        shown = random.Random(f"{config.labeler} {order[i]}").sample(range(len(responses)), len(responses))
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        print(f"\n[{i + 1}/{len(order)}]" + "".join(f"\n{'>' if t['role'] == 'user' else ' '} {t['content']}" for t in turns))
        print("\n".join(f"  {n}. {responses[j]}" for n, j in enumerate(shown, 1)))
        try:
            line = input("ranking: ").strip()
        except (EOFError, KeyboardInterrupt):
            line = "q"
        if line == "q":
            break
        if line == "s":
            i += 1
        elif line == "u":
            if not said:
                print("there is nothing to take back")
                continue
            i, row = said.pop()
            take_back(path, row)
            rows.remove(row)
            done.remove(json.dumps(row["prompt"]))
            print("taken back")
        else:
            try:
                ranks = read_order(line, len(responses))
            except ValueError as e:
                print(e)
                continue
            row = {"prompt": prompt, "responses": responses, "ranks": [ranks[shown.index(j)] for j in range(len(responses))], "labeler": config.labeler}
            append(path, row)
            rows.append(row)
            said.append((i, row))
            done.add(json.dumps(prompt))
            i += 1
    print(f"\n{sum(r['labeler'] == config.labeler for r in rows)} rankings of {config.labeler}'s are in {path}")
    if found := agreement(rows, config.labeler):
        print(f"you and the others agree on {found[0]:.1%} ± {found[1]:.1%} of {found[2]} pairs")


if __name__ == "__main__":
    entry(main)

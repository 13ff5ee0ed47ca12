"""
The paper's mix of prompts (Ouyang et al. 2022, table 1) beside the village's.

    python experiments/mix.py       # counts the prompts that PPO trains on; prints the table

A prompt counts as what its last turn asks for. The paper's labelers gave one use case to a prompt
as a whole, "chat" among them; here 40 % of prompts are a chat, whatever is asked last.
"""

import collections
import os

from project import ROOT

from data import folder_of, read_jsonl, turns_of
from plumbing.command_line import Parser, entry

# use case: share in the paper in percent, kinds of the village
USES = {
    "generation": (45.6, "story letter"),
    "open QA": (12.4, "facts about unknown outside sums"),
    "brainstorming": (11.2, "brainstorm"),
    "chat": (8.4, "greet remember"),
    "rewrite": (6.6, "rewrite shorten"),
    "summarisation": (4.2, "summarise"),
    "classification": (3.5, "classify"),
    "other": (3.5, "harm opinion"),
    "closed QA": (2.6, "closed"),
    "extraction": (1.9, "extract"),
}


def shares(kinds):
    """A list of kinds → {use case: percent}. Raises KeyError for a kind that has none."""
    use_of = {kind: use for use, (_, names) in USES.items() for kind in names.split()}
    counts = collections.Counter(use_of[kind] for kind in kinds)
    return {use: 100 * counts[use] / len(kinds) for use in USES}


def main():
    Parser(__doc__).parse_args()
    folder = folder_of("village")
    rows = read_jsonl(f"{folder}/prompts.jsonl", ["prompt"], "train")
    here = shares([row["kind"] for row in rows])
    print("| use case | the paper | here | kinds here |\n|---|---|---|---|")
    for use, (paper, names) in USES.items():
        print(f"| {use} | {paper:.1f} % | {here[use]:.1f} % | {', '.join(names.split())} |")
    chats = sum(len(turns_of(row["prompt"])) > 1 for row in rows) / len(rows)
    print(
        f"\n{len(rows):,} prompts in {os.path.relpath(folder, ROOT)}, "
        f"{chats:.1%} of them with several turns"
    )


if __name__ == "__main__":
    entry(main)

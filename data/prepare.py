"""
Your own data: check a folder's files, and make what is missing for `python ppo.py --data=DIR`.

    python data/prepare.py DIR                            # with any of text.txt, demonstrations.jsonl, comparisons.jsonl, prompts.jsonl in it
    python data/prepare.py DIR --vocab=gpt2 --block=1024  # for a model of GPT-2's size; the default is for --size=tiny

data/README.md says what a line of each file is. Every line is checked, all errors are reported at once, by file and line.
What is made: a vocabulary, unless there is one; train.bin and val.bin from text.txt (an empty line ends a document) or else
from the demonstrations; demonstrations from the best answers of comparisons.jsonl; prompts from both. What is made is made
anew the next time; of your own files nothing is changed but "split": where no line of a file has one, a tenth of the prompts
is held out, and what does not fit the block gets "skip". The other folders' prepare.py take their parts from here.
"""
import argparse
import base64
import collections
import contextlib
import hashlib
import json
import os
import re
import sys
import types

import numpy as np
import regex     # comes with tiktoken, whose trainer splits text with it
from tiktoken._educational import bpe_train
from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from data import UserError, Vocab, replacing  # noqa: E402

SPECIAL = ["<|user|>", "<|assistant|>", "<|endoftext|>", "<|pad|>"]
# where text is cut before any merge: words with the space before them, single digits, runs of signs, white space
PATTERN = r"'(?:s|t|re|ve|m|ll|d)\b| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s"


# ---- what all prepare.py share ----

def sample_words(texts, total=20_000):
    """Words of the texts, each as often as the trainer shall see it: n ** 0.6 times what makes them about `total` in all.

    tiktoken's teaching trainer goes through all its text again for every merge. This way it needs a minute instead of
    hours, the rarest words fall out, and text gets hardly longer."""
    count = collections.Counter(word for text in texts for word in regex.findall(PATTERN, " " + text))
    scale = min(1, total / max(1, sum(n**0.6 for n in count.values())))
    often = sorted(count.items(), key=lambda x: (-x[1], x[0]))
    return [word for word, n in often for _ in range(round(n**0.6 * scale))]


def train_vocab(folder, words, size, pattern=PATTERN, prefix=" "):
    """vocab.json and vocab.tiktoken with `size` ids (fewer if the words are few) by tiktoken's own trainer; `words` as often as each shall count."""
    size = min(size, 256 + len({word for word in words if len(word.encode()) > 1}) + len(SPECIAL))      # each merge needs a word that is not one token yet
    if size < 256 + len(SPECIAL):
        raise UserError(f"a vocabulary of {size} ids is too small: the 256 bytes and {len(SPECIAL)} special tokens must be in it")
    merged = size - len(SPECIAL)
    # the trainer has no progress bar, but it talks: count the merges in what it says
    bar = tqdm(total=merged - 256, desc="vocabulary", unit=" merges", mininterval=1)
    counter = types.SimpleNamespace(write=lambda said: bar.update(said.startswith("So we made")))
    with bar, contextlib.redirect_stdout(counter):
        ranks = bpe_train("\0".join(words), merged, r"[^\0]+", visualise="simple")
    with replacing(os.path.join(folder, "vocab.tiktoken")) as f:
        f.writelines(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items())
    with replacing(os.path.join(folder, "vocab.json")) as f:
        json.dump({"pattern": pattern, "prefix": prefix, "special": {name: merged + i for i, name in enumerate(SPECIAL)}}, f, indent=1)


def make_vocab(folder, name, texts):
    """The folder's vocabulary → Vocab. name: gpt2, or how many ids one gets that is trained on the texts."""
    if name == "gpt2":
        with replacing(os.path.join(folder, "vocab.json")) as f:
            json.dump({"name": "gpt2", "special": dict(zip(SPECIAL, (50257, 50258, 50256, 50259)))}, f, indent=1)
    elif not name.isdigit():
        raise UserError(f"--vocab={name}: give gpt2, or how many ids an own vocabulary gets")
    else:
        train_vocab(folder, sample_words(texts), int(name))
    return Vocab(folder)


def write_bin(path, documents):
    """Documents (lists of ids that end in <|endoftext|>) → a .bin file of the contract, which is uint16 without a header."""
    with replacing(path, "wb") as f:
        n = tokens = 0
        for ids in documents:
            np.array(ids, dtype=np.uint16).tofile(f)
            n, tokens = n + 1, tokens + len(ids)
    print(f"{os.path.basename(path):24s}{n:8,} documents {tokens:10,} tokens")


def write_jsonl(path, rows):
    with replacing(path) as f:
        f.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    sides = collections.Counter(row.get("split", "train") for row in rows)
    print(f"{os.path.basename(path):24s}{len(rows):8,} lines" + "".join(f", {sides[side]:,} {what}" for side, what in (("heldout", "held out"), ("skip", "skipped")) if sides[side]))


def fit(vocab, prompt, room):
    """A prompt that fits `room` tokens: without its oldest turns, as many as must go. None if even the last one is too long."""
    while len(vocab.prompt(prompt)) > room:
        if isinstance(prompt, str) or len(prompt) < 3:
            return None
        prompt = prompt[2:]
    return prompt

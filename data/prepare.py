"""
Your own data: check a folder's files, and make what is missing for `python ppo.py --data=DIR`.

    python data/prepare.py DIR                              # for the default --size=tiny
    python data/prepare.py DIR --vocab=gpt2 --block=1024    # for a model of GPT-2's size

DIR has one or more of text.txt, demonstrations.jsonl, comparisons.jsonl and prompts.jsonl. See
data/README.md, "Your own data", for what a line of each is, and for what is made of them.
"""
import base64
import collections
import hashlib
import itertools
import json
import os
import re
import sys

import numpy as np
import regex        # comes with tiktoken
from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from data import (UserError, half_of, read_heldout, read_line, read_lines, read_ranking, read_text,
                  replacing)
from data.bpe import train_bpe
from data.comparisons import share_of_pairs
from data.vocab import LARGEST, SPECIAL, Vocab
from plumbing.command_line import Parser, entry, value_of

# Text is cut into these pieces before any merge: a word with the space before it, a single digit,
# a run of other signs, white space.
PATTERN = r"'(?:s|t|re|ve|m|ll|d)\b| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s"


# ---- used by the prepare.py of other folders too ----

def make_vocab(folder, name, texts):
    """Write the folder's vocabulary → Vocab. name: gpt2, or the size of one trained on `texts`."""
    if name == "gpt2":
        special = dict(zip(SPECIAL, (50257, 50258, 50256, 50259)))
        with replacing(os.path.join(folder, "vocab.json")) as f:
            json.dump({"name": "gpt2", "special": special}, f, indent=1)
    elif name.isdigit() and int(name) <= LARGEST:
        train_vocab(folder, count_words(texts), int(name))
    else:
        raise UserError(f"--vocab={name}: give gpt2, or the size of a vocabulary of your own, "
                        f"{LARGEST:,} at most")
    return Vocab(folder)


def count_words(texts, pattern=PATTERN, prefix=" "):
    """How often each piece of the texts is there, cut as Vocab.encode cuts them."""
    return collections.Counter(w for text in texts for w in regex.findall(pattern, prefix + text))


def train_vocab(folder, counts, size, pattern=PATTERN, prefix=" "):
    """Train a vocabulary of `size` ids; write vocab.json and vocab.tiktoken.

    counts: {word: how often it counts}, from count_words.
    pattern and prefix: as data/README.md describes them.
    """
    smallest = 256 + len(SPECIAL)
    if size < smallest:
        raise UserError(f"a vocabulary of {size} ids is too small: it must hold the 256 bytes and "
                        f"{len(SPECIAL)} special tokens")
    if size > 2 ** 16:
        raise UserError(f"a vocabulary of {size} ids is too large: a token of a .bin file has two "
                        f"bytes, which is enough for {2 ** 16}")
    with tqdm(total=size - smallest, desc="vocabulary", unit=" merges", mininterval=1) as bar:
        tokens = train_bpe(counts, size - len(SPECIAL), bar)
    with replacing(os.path.join(folder, "vocab.tiktoken")) as f:
        f.writelines(f"{base64.b64encode(token).decode()} {n}\n" for n, token in enumerate(tokens))
    special = {name: len(tokens) + i for i, name in enumerate(SPECIAL)}
    with replacing(os.path.join(folder, "vocab.json")) as f:
        json.dump({"pattern": pattern, "prefix": prefix, "special": special}, f, indent=1)
    if (found := len(tokens) + len(SPECIAL)) < size:
        print(f"the vocabulary has {found} ids, not {size}: each of the text's {len(counts):,} "
              f"different words is one token already")


def write_bin(path, documents):
    """Write documents, lists of ids that end in <|endoftext|>, as a .bin file of the contract."""
    number = tokens = 0
    with replacing(path, "wb") as f:
        for ids in documents:
            np.array(ids, dtype=np.uint16).tofile(f)
            number, tokens = number + 1, tokens + len(ids)
    print(f"{os.path.basename(path):24s}{number:8,} documents {tokens:10,} tokens")


def write_jsonl(path, rows, quiet=False):
    with replacing(path) as f:
        f.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    heldout = sum(row.get("split") == "heldout" for row in rows)
    more = f", {heldout:,} held out" if heldout else ""
    if not quiet:
        print(f"{os.path.basename(path):24s}{len(rows):8,} lines{more}")


def length_alone(rows, vocab):
    """A sentence: how many pairs are ordered right by the answers' lengths alone.

    The longer or the shorter answer wins, whichever is right more often on the training pairs.
    """
    longer_wins, pairs = {"train": [], "heldout": []}, {"train": [], "heldout": []}
    for row in rows:
        responses, ranks = read_ranking(row)
        lengths = [len(vocab.encode(r)) for r in responses]
        margins = [lengths[i] - lengths[j] for i, j in itertools.permutations(range(len(ranks)), 2)
                   if ranks[i] < ranks[j] and responses[i] != responses[j]]
        split = row.get("split", "train")
        if margins and split != "skip":
            longer_wins[split].append(sum((m > 0) + 0.5 * (m == 0) for m in margins))
            pairs[split].append(len(margins))

    first = "train" if pairs["train"] else "heldout"
    if not pairs[first]:
        return "no comparison has a pair"
    shorter = sum(longer_wins[first]) < sum(pairs[first]) / 2
    parts = []
    for split, name in (("train", "training"), ("heldout", "held-out")):
        right = [n - w if shorter else w for w, n in zip(longer_wins[split], pairs[split])]
        if right:
            share, error = share_of_pairs(right, pairs[split])
            parts.append(f"{share:.1%} ± {error:.1%} of {sum(pairs[split]):,} {name} pairs")
    winner = "shorter" if shorter else "longer"
    return f"length alone (the {winner} answer wins) is right in {' and '.join(parts)}"


# ---- a folder of one's own: reading ----

FILES = {"demonstrations.jsonl": ["prompt", "response"],
         "comparisons.jsonl": ["prompt", "responses|chosen"], "prompts.jsonl": ["prompt"]}
MADE = {"made": "data/prepare.py"}      # in the lines that this script made


def read_own(folder):
    """{file: rows} of what the user wrote. Raises UserError with all bad lines, at most 20."""
    own, errors = {}, []
    for name, fields in FILES.items():
        path = os.path.join(folder, name)
        rows = []
        for n, line in read_lines(path) if os.path.exists(path) else []:
            try:
                rows.append(read_line(line, fields, f"{path}, line {n}"))
            except UserError as e:
                errors.append(str(e))
        rows = [row for row in rows if row.get("made") != MADE["made"]]
        if rows:
            own[name] = rows
    if errors:
        more = [f"… and {len(errors) - 20} lines more"] if len(errors) > 20 else []
        raise UserError("\n".join(errors[:20] + more))
    return own


def key(row):
    return json.dumps(row["prompt"])


def turns_of(row):
    prompt = row["prompt"]
    return [prompt] if isinstance(prompt, str) else [turn["content"] for turn in prompt]


def answers_of(row):
    if "response" in row:
        return [row["response"]]
    return read_ranking(row)[0] if "chosen" in row or "responses" in row else []


# ---- splits ----

def row_fits(row, vocab, block, answer):
    """Whether the prompt leaves `answer` tokens of the block, and all answers of the row fit."""
    lengths = [len(vocab.response(a)) for a in answers_of(row)]
    return len(vocab.prompt(row["prompt"])) + max([answer, *lengths]) <= block


def choose_heldout(rows):
    """A tenth of the prompts, as keys, from each half of read_heldout, and at least one of each.

    Which ones depends only on what they say.
    """
    def order(prompt):
        return hashlib.sha256(("held out " + prompt).encode()).digest()

    chosen = set()
    for half in (0, 1):
        prompts = sorted({key(row) for row in rows if half_of(row) == half}, key=order)
        chosen |= set(prompts[:max(1, len(prompts) // 10)])
    return chosen


def give_splits(own, fits):
    """Write "split" into the rows that have none. → {file: number of rows that don't fit}

    A prompt has the same split in all files. A row that does not fit the block gets "skip"; "why"
    keeps the split that it has where the block is larger.
    """
    split_of = {}       # key of a prompt → split
    for row in itertools.chain(*own.values()):
        if "why" in row:        # skipped by an earlier run, whose block may have been smaller
            row["split"] = row.pop("why")
        if row.get("split") in ("train", "heldout"):
            split_of[key(row)] = row["split"]
    for rows in own.values():
        if not any("split" in row for row in rows):
            for prompt in choose_heldout([row for row in rows if fits(row)]):
                split_of.setdefault(prompt, "heldout")

    too_long = collections.Counter()
    for name, rows in own.items():
        for row in rows:
            row["split"] = row.get("split", split_of.get(key(row), "train"))
            if row["split"] != "skip" and not fits(row):
                row["why"], row["split"] = row["split"], "skip"
                too_long[name] += 1
    return too_long


# ---- what is made ----

def add_missing(own):
    """{file: rows}, with demonstrations from the best answers, and prompts from both."""
    def kept(row):
        names = ("prompt", "meaning", "split", "kind", "tags", "unseen")
        return {name: row[name] for name in names if name in row}

    files = {"demonstrations.jsonl": [], **own}
    used = [row for row in own.get("comparisons.jsonl", []) if row["split"] != "skip"]
    if "demonstrations.jsonl" not in own:
        for row in used:
            responses, ranks = read_ranking(row)
            best = responses[ranks.index(min(ranks))]
            files["demonstrations.jsonl"].append(
                {**kept(row), "response": best, **MADE})
    if "prompts.jsonl" not in own:
        used += [row for row in files["demonstrations.jsonl"] if row["split"] != "skip"]
        files["prompts.jsonl"] = list({key(row): {**kept(row), **MADE} for row in used}.values())
    return files


def documents_of(text):
    """An empty line ends a document."""
    return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]


def split_text(text, vocab):
    """A text → (training documents, held-out ones) as ids.

    A twentieth of the tokens is held out: whole documents, chosen by what they say.
    """
    documents = [[*vocab.encode(document), vocab.eos] for document in documents_of(text)]
    if len(documents) < 20:     # a few long ones: hold out the end
        ids = sum(documents, [])
        cut = len(ids) - len(ids) // 20
        return [ids[:cut]], [ids[cut:]]
    documents.sort(key=lambda ids: hashlib.sha256(repr(ids).encode()).digest())
    ends = np.cumsum([len(ids) for ids in documents])
    cut = int((ends < ends[-1] / 20).sum()) + 1
    return documents[cut:], documents[:cut]


def repeat_short(documents, block, name):
    """The documents, repeated if they have fewer tokens than two blocks."""
    tokens = sum(map(len, documents))
    if not tokens:
        raise UserError(f"no text is left for {name}")
    if tokens < 2 * block:
        print(f"{name}: {tokens} tokens are less than two blocks of {block}; they are repeated "
              f"until they fill two")
    return documents * -(-2 * block // tokens)


def report(name, rows, vocab, made):
    """Print a file's counts and lengths, and what is odd about its lines."""
    splits = collections.Counter(row["split"] for row in rows)
    print(f"{name}{' (made)' * made}: {splits['train']:,} lines to train on, "
          f"{splits['heldout']:,} held out, {splits['skip']:,} skipped")
    answers = [answer for row in rows for answer in answers_of(row)]
    lengths = {"a prompt": [len(vocab.prompt(row["prompt"])) for row in rows],
               "an answer": [len(vocab.response(answer)) for answer in answers]}
    for what, numbers in lengths.items():
        if numbers:
            found = ", ".join(f"{n:,.0f}" for n in np.percentile(numbers, (5, 50, 95, 100)))
            print(f"  tokens in {what} at 5, 50, 95 and 100 %: {found}")

    different = {json.dumps([key(row), sorted(answers_of(row))]) for row in rows}
    trained = {key(row) for row in rows if row["split"] == "train"}
    both = sum(row["split"] == "heldout" and key(row) in trained for row in rows)
    odd = {"lines that are there twice": len(rows) - len(different),
           "empty answers": sum(not answer.strip() for answer in answers),
           "held-out prompts that are trained on as well": both}
    for what, number in odd.items():
        if number:
            print(f"  {number:,} {what}")
    if name == "comparisons.jsonl":
        print("  " + length_alone(rows, vocab))


def check_enough(folder, files):
    """Raise UserError if a stage would find too few rows."""
    for name in ("demonstrations.jsonl", "prompts.jsonl"):
        if not files[name]:
            raise UserError(f"{folder} has no {name} and nothing to make it of: pretrain.py can "
                            f"run, the stages after it can't")
    for final in (False, True):
        read_heldout(os.path.join(folder, "prompts.jsonl"), ["prompt"], final)
    path = os.path.join(folder, "demonstrations.jsonl")
    read_heldout(path, ["prompt", "response"])
    train = [row for row in files["demonstrations.jsonl"] if row["split"] == "train"]
    if len({half_of(row) for row in train}) < 2:
        raise UserError(f"{path} has too few different prompts to train on: give at least ten")


def main():
    parser = Parser(__doc__)
    parser.add_argument("folder", metavar="DIR")
    parser.add_argument("--vocab", default="", help="gpt2, or the size of a vocabulary that is "
                        "trained on the folder; empty: the one that is there, else 2048")
    parser.add_argument("--block", type=value_of(int, "[1, inf)"), default=128,
                        help="longest sequence in tokens: the block of the --size to be trained")
    parser.add_argument("--answer", type=value_of(int, "[1, inf)"), default=48,
                        help="how many of these a prompt must leave for an answer: the stages' "
                             "--max_new_tokens")
    args = parser.parse_args()
    folder, block = args.folder, args.block

    text_path = os.path.join(folder, "text.txt")
    text = read_text(text_path) if os.path.exists(text_path) else ""
    own = read_own(folder)
    if not own and not text.strip():
        raise UserError(f"{folder} is no folder, or has none of text.txt, {', '.join(FILES)} with "
                        f"anything in it")
    if args.vocab or not os.path.exists(os.path.join(folder, "vocab.json")):
        rows = itertools.chain(*own.values())
        texts = [part for row in rows for part in turns_of(row) + answers_of(row)]
        make_vocab(folder, args.vocab or "2048", [*documents_of(text), *texts])
    vocab = Vocab(folder)

    before = {name: json.dumps(rows) for name, rows in own.items()}
    too_long = give_splits(own, lambda row: row_fits(row, vocab, block, args.answer))
    files = add_missing(own)
    for name, rows in files.items():
        if not rows:
            continue
        if json.dumps(rows) != before.get(name):
            write_jsonl(os.path.join(folder, name), rows, quiet=True)
        report(name, rows, vocab, made=name not in own)
        if too_long[name]:
            print(f"  {too_long[name]:,} of them skipped: with {args.answer} tokens for an answer "
                  f"they don't fit a block of {block}; shorten them, or see --block and --answer")

    if text.strip():
        documents = split_text(text, vocab)
    else:       # the demonstrations are the text
        documents = [[vocab.prompt(row["prompt"]) + vocab.response(row["response"])
                      for row in files["demonstrations.jsonl"] if row["split"] == split]
                     for split in ("train", "heldout")]
    for name, part in zip(("train.bin", "val.bin"), documents):
        write_bin(os.path.join(folder, name), repeat_short(part, block, name))
    check_enough(folder, files)
    print(f"\npython ppo.py --data={folder}")


if __name__ == "__main__":
    entry(main)

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
from data import UserError, Vocab, half_of, read_heldout, read_line, read_lines, read_ranking, read_text, replacing  # noqa: E402

SPECIAL = ["<|user|>", "<|assistant|>", "<|endoftext|>", "<|pad|>"]
# where text is cut before any merge: words with the space before them, single digits, runs of signs, white space
PATTERN = r"'(?:s|t|re|ve|m|ll|d)\b| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s"


# ---- what all prepare.py share ----

def sample_words(texts, total=12_000):
    """Words of the texts, each as often as the trainer shall see it: n ** 0.6 times what makes them about `total` in all.

    tiktoken's teaching trainer goes through all its text again for every merge. This way it needs a minute instead of
    hours, the rarest words fall out, and text gets hardly longer."""
    count = collections.Counter(word for text in texts for word in regex.findall(PATTERN, " " + text))
    scale = min(1, total / max(1, sum(n**0.6 for n in count.values())))
    often = sorted(count.items(), key=lambda x: (-x[1], x[0]))
    return [word for word, n in often for _ in range(round(n**0.6 * scale))]


def train_vocab(folder, text, pieces, size, pattern=PATTERN, prefix=" "):
    """vocab.json and vocab.tiktoken with `size` ids (fewer where nothing is left to merge), by tiktoken's own trainer.

    text: what it sees, words as often as each shall count; pieces: the pattern that cuts it into them. pattern and prefix: see data/README.md."""
    if size < 256 + len(SPECIAL):
        raise UserError(f"a vocabulary of {size} ids is too small: the 256 bytes and {len(SPECIAL)} special tokens must be in it")
    # the trainer has no progress bar, but it talks: count the merges in what it says
    bar = tqdm(total=size - len(SPECIAL) - 256, desc="vocabulary", unit=" merges", mininterval=1)
    counter = types.SimpleNamespace(write=lambda said: bar.update(said.startswith("So we made")))
    with bar, contextlib.redirect_stdout(counter):
        try:
            ranks = bpe_train(text, size - len(SPECIAL), pieces, visualise="simple")
        except ValueError:      # every word is one token already
            ranks = bpe_train(text, 256 + bar.n, pieces, visualise=None)
    with replacing(os.path.join(folder, "vocab.tiktoken")) as f:
        f.writelines(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items())
    with replacing(os.path.join(folder, "vocab.json")) as f:
        json.dump({"pattern": pattern, "prefix": prefix, "special": {name: len(ranks) + i for i, name in enumerate(SPECIAL)}}, f, indent=1)


def make_vocab(folder, name, texts):
    """The folder's vocabulary → Vocab. name: gpt2, or how many ids one gets that is trained on the texts."""
    if name == "gpt2":
        with replacing(os.path.join(folder, "vocab.json")) as f:
            json.dump({"name": "gpt2", "special": dict(zip(SPECIAL, (50257, 50258, 50256, 50259)))}, f, indent=1)
    elif not name.isdigit():
        raise UserError(f"--vocab={name}: give gpt2, or how many ids an own vocabulary gets")
    else:
        train_vocab(folder, "\0".join(sample_words(texts)), r"[^\0]+", int(name))
    return Vocab(folder)


def write_bin(path, documents):
    """Documents (lists of ids that end in <|endoftext|>) → a .bin file of the contract, which is uint16 without a header."""
    with replacing(path, "wb") as f:
        n = tokens = 0
        for ids in documents:
            np.array(ids, dtype=np.uint16).tofile(f)
            n, tokens = n + 1, tokens + len(ids)
    print(f"{os.path.basename(path):24s}{n:8,} documents {tokens:10,} tokens")


def write_jsonl(path, rows, quiet=False):
    with replacing(path) as f:
        f.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    heldout = sum(row.get("split") == "heldout" for row in rows)
    if not quiet:
        print(f"{os.path.basename(path):24s}{len(rows):8,} lines" + (f", {heldout:,} held out" if heldout else ""))


def fit(vocab, prompt, room):
    """A prompt that fits `room` tokens: without its oldest turns, as many as must go. None if even the last one is too long."""
    while len(vocab.prompt(prompt)) > room:
        if isinstance(prompt, str) or len(prompt) < 3:
            return None
        prompt = prompt[2:]
    return prompt


def length_alone(rows, vocab):
    """What going by length alone makes of comparisons → a sentence: the longer or the shorter answer, whichever is better more often where it is trained on."""
    found = {"train": [], "heldout": []}        # of each prompt: in how many of its pairs the longer answer is the better one, and how many there are
    for row in rows:
        responses, ranks = read_ranking(row)
        lengths = [len(vocab.encode(r)) for r in responses]
        margins = [lengths[i] - lengths[j] for i in range(len(ranks)) for j in range(len(ranks)) if ranks[i] < ranks[j] and responses[i] != responses[j]]
        if margins and row.get("split") != "skip":
            found[row.get("split", "train")].append((sum((m > 0) + 0.5 * (m == 0) for m in margins), len(margins)))
    parts, shorter = [], None
    for side, what in (("train", "training"), ("heldout", "held-out")):
        if not found[side]:
            continue
        right, n = np.array(found[side]).T
        if shorter is None:
            shorter = right.sum() < n.sum() / 2
        right = n - right if shorter else right
        share = right.sum() / n.sum()
        parts.append(f"{share:.1%} ± {1.96 * np.sqrt(((right - share * n) ** 2).sum()) / n.sum():.1%} of {int(n.sum()):,} {what} pairs")     # a prompt's pairs hang together
    return f"length alone (the {'shorter' if shorter else 'longer'} answer wins) is right in {' and '.join(parts)}" if parts else "no comparison has a pair"


# ---- a folder of one's own ----

FILES = {"demonstrations.jsonl": ["prompt", "response"], "comparisons.jsonl": ["prompt", "responses|chosen"], "prompts.jsonl": ["prompt"]}
MADE = {"made": "data/prepare.py"}      # in the lines that are not the user's


def read_own(folder):
    """{file: rows} of the user's own files; lines that an earlier run made are left out. Raises UserError with all that is wrong in any line."""
    own, errors = {}, []
    for name, fields in FILES.items():
        path, rows = os.path.join(folder, name), []
        if not os.path.exists(path):
            continue
        for n, line in read_lines(path):
            try:
                row = read_line(line, fields, f"{path}, line {n}")
                if row.get("made") != MADE["made"]:
                    rows.append(row)
            except UserError as e:
                errors.append(str(e))
        if rows:
            own[name] = rows
    if errors:
        raise UserError("\n".join(errors[:20]) + (f"\n… and {len(errors) - 20} lines more" if len(errors) > 20 else ""))
    return own


def key(row):
    return json.dumps(row["prompt"])


def hold_out(rows):
    """The prompts to hold out: a tenth of the different ones in each half that read_heldout makes, at least one; which, depends on what they say alone."""
    order, held = sorted({key(r): r for r in rows}.values(), key=lambda r: hashlib.sha256(("held out " + key(r)).encode()).digest()), set()
    for half in (0, 1):
        mine = [key(r) for r in order if half_of(r) == half]
        held |= set(mine[:max(1, len(mine) // 10)])
    return held


def texts_of(row):
    """→ (texts of the prompt's turns, the answers) of a line of any of the files."""
    turns = [row["prompt"]] if isinstance(row["prompt"], str) else [turn["content"] for turn in row["prompt"]]
    return turns, [row["response"]] if "response" in row else read_ranking(row)[0] if {"chosen", "responses"} & set(row) else []


def room_for(row, vocab, block, answer):
    """Whether a line fits: its prompt leaves `answer` tokens of the block for what is sampled, and its own answers fit as well."""
    return len(vocab.prompt(row["prompt"])) + max([answer, *(len(vocab.response(a)) for a in texts_of(row)[1])]) <= block


def give_splits(own, fits):
    """"split" into the lines of files in which no line has one, the same prompt on the same side in all files; what does not fit gets "skip" → {file: number of these}."""
    for r in (r for rows in own.values() for r in rows if "why" in r):      # skipped before, perhaps for a smaller block
        r["split"] = r.pop("why")
    known = {key(r): r["split"] for rows in own.values() for r in rows if r.get("split") in ("train", "heldout")}
    held = set().union(*(hold_out([r for r in rows if fits(r)]) for rows in own.values() if not any("split" in r for r in rows)))
    long = collections.Counter()
    for name, rows in own.items():
        fresh = not any("split" in r for r in rows)
        for r in rows:
            if "split" not in r:
                r["split"] = known.get(key(r)) or ("heldout" if fresh and key(r) in held else "train")
            if r["split"] != "skip" and not fits(r):
                r["why"], r["split"], long[name] = r["split"], "skip", long[name] + 1      # the side that it has where the block is larger
    return long


def text_documents(text, vocab):
    """A text → (training documents, held-out ones) as ids. An empty line ends a document; a twentieth is held out, by what it says."""
    docs = [[*vocab.encode(doc.strip()), vocab.eos] for doc in re.split(r"\n\s*\n", text) if doc.strip()]
    if len(docs) < 20:      # a few long ones: the end is held out
        ids = [i for doc in docs for i in doc]
        cut = len(ids) - len(ids) // 20
        return [ids[:cut]], [ids[cut:]]
    docs.sort(key=lambda doc: hashlib.sha256(repr(doc).encode()).digest())
    lengths = np.cumsum([len(doc) for doc in docs])
    cut = int((lengths < lengths[-1] / 20).sum()) + 1
    return docs[cut:], docs[:cut]


def filled(documents, block, name):
    """The documents, again and again if all of them are less than two blocks."""
    tokens = sum(map(len, documents))
    if not tokens:
        raise UserError(f"no text is left for {name}")
    if tokens < 2 * block:
        print(f"{name}: {tokens} tokens are less than two blocks of {block}; they are repeated until they fill two")
    return documents * -(-2 * block // tokens)


def best_of(row):
    """A comparison's best answer, as a demonstration."""
    responses, ranks = read_ranking(row)
    return {"prompt": row["prompt"], "response": responses[ranks.index(min(ranks))], "split": row["split"], **MADE}


def report(name, rows, vocab, ours):
    """Counts, lengths and what is odd about one file's lines."""
    sides = collections.Counter(row["split"] for row in rows)
    print(f"{name}{' (made)' if ours else ''}: {sides['train']:,} lines to train on, {sides['heldout']:,} held out, {sides['skip']:,} skipped")
    texts = [texts_of(row) for row in rows]
    answers = [len(vocab.response(a)) for _, given in texts for a in given]
    for what, lengths in (("a prompt", [len(vocab.prompt(row["prompt"])) for row in rows]), ("an answer", answers)):
        if lengths:
            print(f"  tokens in {what} at 5, 50, 95 and 100 %: " + ", ".join(f"{n:,.0f}" for n in np.percentile(lengths, (5, 50, 95, 100))))
    trained = {key(row) for row in rows if row["split"] == "train"}
    odd = {"lines that are there twice": len(rows) - len({json.dumps([t, sorted(a)]) for t, a in texts}), "empty answers": sum(not a.strip() for _, given in texts for a in given),
           "held-out prompts that are trained on as well": sum(row["split"] == "heldout" and key(row) in trained for row in rows)}
    for what, n in odd.items():
        if n:
            print(f"  {n:,} {what}")
    if name == "comparisons.jsonl":
        print("  " + length_alone(rows, vocab))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--vocab", default="", help="gpt2, or how many ids an own vocabulary gets; empty: the one that is there, else 2048 ids")
    parser.add_argument("--block", type=int, default=128, help="tokens of the longest sequence: the block of the --size to be trained")
    parser.add_argument("--answer", type=int, default=48, help="tokens of it that a prompt must leave for an answer: --max_new_tokens")
    args = parser.parse_args()
    inside = lambda name: os.path.join(args.folder, name)      # noqa: E731
    own, text = read_own(args.folder), read_text(inside("text.txt")) if os.path.exists(inside("text.txt")) else ""
    if not own and not text.strip():
        raise UserError(f"{args.folder} is no folder, or has none of text.txt, {', '.join(FILES)} with anything in it")
    if args.vocab or not os.path.exists(inside("vocab.json")):
        make_vocab(args.folder, args.vocab or "2048", [text, *(t for rows in own.values() for row in rows for part in texts_of(row) for t in part)])
    vocab = Vocab(args.folder)

    before = {name: json.dumps(rows) for name, rows in own.items()}
    long = give_splits(own, lambda row: room_for(row, vocab, args.block, args.answer))
    files = dict(own)
    if "demonstrations.jsonl" not in own:
        files["demonstrations.jsonl"] = [best_of(row) for row in own.get("comparisons.jsonl", []) if row["split"] != "skip"]
    if "prompts.jsonl" not in own:
        asked = {key(row): row for name in ("comparisons.jsonl", "demonstrations.jsonl") for row in files.get(name, []) if row["split"] != "skip"}
        files["prompts.jsonl"] = [{"prompt": row["prompt"], "split": row["split"], **MADE} for row in asked.values()]
    for name, rows in files.items():
        if rows and json.dumps(rows) != before.get(name):
            write_jsonl(inside(name), rows, quiet=True)
        if rows:
            report(name, rows, vocab, name not in own)
        if long[name]:
            print(f"  {long[name]:,} of them skipped since they don't fit a block of {args.block} with {args.answer} tokens for an answer: shorten them, or see --block and --answer")

    if text.strip():
        train, val = text_documents(text, vocab)
    else:
        train, val = ([vocab.prompt(r["prompt"]) + vocab.response(r["response"]) for r in files["demonstrations.jsonl"] if r["split"] == side] for side in ("train", "heldout"))
    for name, documents in (("train.bin", train), ("val.bin", val)):
        write_bin(inside(name), filled(documents, args.block, name))
    for name in ("demonstrations.jsonl", "prompts.jsonl"):
        if not files[name]:
            raise UserError(f"{args.folder} has no {name} and nothing to make it of: pretrain.py can run, the stages after it can't")
    for final in (False, True):
        read_heldout(inside("prompts.jsonl"), ["prompt"], final)
    read_heldout(inside("demonstrations.jsonl"), ["prompt", "response"])
    if len({half_of(row) for row in files["demonstrations.jsonl"] if row["split"] == "train"}) < 2:
        raise UserError(f"{inside('demonstrations.jsonl')} has too few different prompts to train on: give ten at least")
    print(f"\npython ppo.py --data={args.folder}")


if __name__ == "__main__":
    try:
        main()
    except UserError as e:
        sys.exit(f"error: {e}")

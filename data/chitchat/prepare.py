"""
Real chats between people, in the files that every data set here has:

    pip install chitchat-dataset
    python data/chitchat/prepare.py                 # about a minute and a half on one core
    python data/chitchat/prepare.py --vocab=gpt2    # GPT-2's vocabulary instead of an own one of 4096 ids

The package (MIT) holds 7,168 chats from BYU's Chit-Chat Challenge of 2018, where students chatted for points and
prizes. None of its text is kept in this repository. Left out: who wrote and when, chats in which nobody answered,
links, mail addresses, long numbers, pasted lines, keyboard mashing. First names stay, and so do the few rude lines.

What a rating says. Most chats carry one set of marks, 1 to 10, for witty, interesting and upbeat; 5/5/5 is what the
form showed before anybody touched it and counts as no rating. A rating says how a chat went as a whole. It does not
say which of the two people gave it, whom they meant, or which line earned it. Marks counted towards the prizes (28 %
of those given are 10/10/10), and they follow above all how long a chat went on: rank correlation .48 with the number
of turns, .33 among chats of six and more. So a mark is a faint hint about any one reply (experiments/ratings.py). The
only pairs made of it here are replies to the same words with nothing said before them, from two chats that both got
going and whose marks lie at least 3 apart: few and noisy, good for seeing what a reward model makes of such labels,
not for a good one.
"""
import argparse
import collections
import hashlib
import json
import os
import random
import re
import sys

import numpy as np
import regex     # comes with tiktoken, whose trainer splits text with it
from tqdm import tqdm

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(os.path.dirname(HERE)))
from data import UserError, Vocab, prepare  # noqa: E402

PROMPT, REPLY = 80, 48         # tokens, markers and <|endoftext|> included: together the tiny model's block of 128
MIN_WORDS = 3                  # "yeah" and "haha nice" are real replies, but teach a model to say nothing
PER_CHAT = 30                  # examples from one chat, so that a few endless ones don't become the whole set
MIN_GAP, MIN_TURNS = 3, 6      # of the two chats behind a comparison: ratings this far apart, both at least this long

MARKS = ("witty", "interesting", "upbeat")

PRIVATE = re.compile(r"https?:|www\.|\.(?:com|org|net|edu)\b|\S@\S|\d{6,}|\d{3}\W?\d{4}", re.I)
GREETING = re.compile(r"\W*(?:h+i+|he+y+|h[aeu]ll+o+|howdy|hola|yo|sup|wh?at'?s up|good \w+ing|how are)\b", re.I)


def words(text):
    return re.findall(r"[a-z']+", text.lower())


def same(*texts):
    """Equal for texts (or the turns of two prompts) that differ in case, punctuation and spaces only."""
    return "/".join("".join(re.findall("[a-z0-9]", text.lower())) for text in texts)


def share(seed, text):
    """A number in [0, 1) from seed and text alone, so that no order of reading can move a chat to the other side."""
    return int(hashlib.sha256(f"{seed} {text}".encode()).hexdigest()[:13], 16) / 16**13


def load(seed):
    try:
        import chitchat_dataset
    except ImportError:
        sys.exit("The chats come from a package that is not installed: pip install chitchat-dataset")
    chats = []
    for key, chat in chitchat_dataset.Dataset().items():
        lines = [(m["sender"], " ".join(m["text"].split())) for group in chat["messages"] for m in group]
        marks = [chat.get("ratings", {}).get(name, 5) for name in MARKS]
        question = re.sub(r" *\(.*\)", "", chat.get("prompt", "")).strip()      # shown to both before they began
        if len({sender for sender, _ in lines}) == 2:
            chats.append({"key": key, "question": question, "lines": lines,
                          "marks": dict(zip(MARKS, marks)), "rating": None if marks == [5, 5, 5] else sum(marks) / 3})
    # Two of the 34 questions are held out with all their chats: things that the model has never seen asked.
    # So are 2 % of the other chats, for the held-out ones not to be about two questions only.
    questions = sorted({c["question"] for c in chats if c["question"]}, key=lambda q: share(seed, q))
    for c in chats:
        c["split"] = "heldout" if c["question"] in questions[:2] or share(seed, c["key"]) < 0.02 else "train"
    return chats


def clean(chats, dropped):
    """Lines become turns: all that one person sent until the other did, one message a line, as they sent it."""
    train = [" ".join(text for _, text in c["lines"]) for c in chats if c["split"] == "train"]
    chats_with = collections.Counter(w for text in train for w in set(words(text)))
    kept = []
    for c in chats:
        turns, last, earlier, good = [], None, set(), 0
        for sender, text in c["lines"]:
            text = re.sub(r"([^\d\s]{1,3}?)\1{3,}", r"\1\1\1", text)            # "yesssssss!!!!!!" to "yesss!!!"
            said = words(text)
            known = sum(chats_with[w] >= 4 for w in said)
            if PRIVATE.search(text):
                dropped["messages with a link, mail address or long number"] += 1
            elif len(text) > 250 or (len(text) > 20 and text in earlier):
                dropped["messages pasted or repeated"] += 1
            elif known < max(1, 0.7 * len(said)) or 3 * len(set(said)) < len(said):
                dropped["messages of no words, or of one over and over"] += 1
            else:
                turns = turns[:-1] + [turns[-1] + "\n" + text] if sender == last else turns + [text]
                last, good = sender, good + 1
            earlier.add(text)
        # where the first turn takes the question up, the question is the turn before it
        c["answers"] = bool(turns and c["question"]) and not GREETING.match(turns[0]) and "?" not in turns[0]
        c["turns"] = [c["question"]] * c["answers"] + turns
        if len(turns) > 1 and good >= 0.7 * len(c["lines"]):
            kept.append(c)
    dropped["chats of which too little was left"] = len(chats) - len(kept)
    return kept


def vocabulary(chats, size):
    """The folder's vocabulary → tiktoken.Encoding. Each word counts not n but n^0.6 / 12 times (so the rare ones not at all)."""
    if size == "gpt2":
        return prepare.make_vocab(HERE, size, []).encoding
    count = collections.Counter(w for c in chats for w in regex.findall(prepare.PATTERN, "\n".join(c["turns"])))
    often = sorted(count.items(), key=lambda x: (-x[1], x[0]))
    prepare.train_vocab(HERE, "\0".join(w for w, n in often for _ in range(round(n**0.6 / 12))), r"[^\0]+", int(size), prefix="")
    return Vocab(HERE).encoding


def document(turns, enc, plain):
    """
    A chat as pretraining text. Half of them are plain, a script with speakers A and B, since a base model is one of
    text. The others are in the template, so that a model this small has met the markers before SFT, whose few steps
    can then teach how to answer instead of what the markers mean.
    """
    if plain:
        text = "\n".join(f"{'AB'[i % 2]}: {turn}" for i, turn in enumerate(turns))
    else:
        text = "".join(f"<|assistant|>{turn}<|endoftext|>" if i % 2 else f"<|user|>{turn}" for i, turn in enumerate(turns))
    return enc.encode(text.removesuffix("<|endoftext|>") + "<|endoftext|>", allowed_special="all")


def examples(turns, enc, rng, dropped):
    """(prompt, reply) pairs of a chat: a real reply, and the 1, 3 or 5 turns before it."""
    length = [len(enc.encode_ordinary(t)) for t in turns]
    for i in sorted(rng.sample(range(1, len(turns)), min(PER_CHAT, len(turns) - 1))):
        cost = lambda n: sum(length[i - n:i]) + n + n // 2 + 1   # a marker a turn, <|endoftext|>s, and <|assistant|>
        n = min(5, (i - 1) // 2 * 2 + 1)
        if len(words(turns[i - 1])) >= 6 and rng.random() < 0.15:
            n = 1                            # it can stand alone, like the first thing that one types into chat.py
        while n > 1 and cost(n) > PROMPT:
            n -= 2                           # the oldest two
        if cost(n) > PROMPT or length[i] + 1 > REPLY:
            dropped["examples too long for the block"] += 1
        else:
            yield [{"role": ("user", "assistant")[j % 2], "content": turns[i - n + j]} for j in range(n)], turns[i]


def comparisons(chats, enc):
    """The best rated chat's reply against the worst rated one's, the second best's against the second worst's, ..."""
    pools = collections.defaultdict(list)    # the same words to answer -> [(rating, key, words as spelled, reply)]
    for c in chats:
        asked, reply = c["turns"][:2]
        if (c["rating"] is not None and len(c["turns"]) >= MIN_TURNS and len(words(reply)) >= MIN_WORDS
                and len(enc.encode_ordinary(asked)) + 2 <= PROMPT and len(enc.encode_ordinary(reply)) < REPLY):
            kind = "question" if c["answers"] else "opening"
            pools[c["split"], kind, same(asked)].append((c["rating"], c["key"], asked, reply))
    for (side, kind, _), pool in pools.items():
        pool.sort()
        for (low, _, asked, worse), (high, _, _, better) in zip(pool[:len(pool) // 2], pool[::-1]):
            if high - low >= MIN_GAP and same(better) != same(worse):
                yield {"prompt": [{"role": "user", "content": asked}], "chosen": better, "rejected": worse, "split": side, "kind": kind}


def main():
    parser = argparse.ArgumentParser(description="Makes the files of the chitchat data set.")
    parser.add_argument("--vocab", default="4096", help="how many ids an own vocabulary gets, or gpt2")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    dropped, rng = collections.Counter(), random.Random(args.seed)

    chats = clean(load(args.seed), dropped)
    rng.shuffle(chats)                                           # the package has them by date
    enc = vocabulary([c for c in chats if c["split"] == "train"], args.vocab)
    for name, side in (("train.bin", "train"), ("val.bin", "heldout")):
        mine = [c for c in chats if c["split"] == side]
        prepare.write_bin(os.path.join(HERE, name), [document(c["turns"], enc, plain=share(args.seed, "plain " + c["key"]) < 0.5) for c in mine])
        text = "\n".join(turn for c in mine for turn in c["turns"])
        per_token = len(text) / len(enc.encode_ordinary(text))
        print(f"  {per_token:.2f} bytes a token")

    # A third of the examples lose their reply and become prompts, so that RL is asked other things than SFT was shown.
    # Ratings say too little about a reply to choose demonstrations by, but a chat below 5 shows nobody how to chat.
    files = {"demonstrations": [], "prompts": [], "comparisons": list(comparisons(chats, enc))}
    for c in tqdm(chats, desc="examples", unit=" chats", mininterval=1):
        for prompt, reply in examples(c["turns"], enc, rng, dropped):
            if rng.random() < 1 / 3:
                files["prompts"].append({"prompt": prompt, "split": c["split"]})
            elif len(words(reply)) < MIN_WORDS:
                dropped["demonstrations too short"] += 1
            elif c["rating"] is not None and c["rating"] < 5:
                dropped["demonstrations from a chat rated below 5"] += 1
            else:
                files["demonstrations"].append({"prompt": prompt, "response": reply, "split": c["split"]})
    key = lambda row: same(*(turn["content"] for turn in row["prompt"]))
    files["prompts"] = list({key(row): row for row in files["prompts"]}.values())

    # no prompt that is held out in one file is trained on in another, "Hello" and "How are you?" included
    trained = {key(row) for rows in files.values() for row in rows if row["split"] == "train"}
    for name, rows in files.items():
        files[name] = [row for row in rows if row["split"] == "train" or key(row) not in trained]
        dropped[f"{name} held out whose prompt is also in train"] = len(rows) - len(files[name])
        rng.shuffle(files[name])
        ranked = []
        if name == "comparisons" and os.path.exists(path := os.path.join(HERE, "comparisons.jsonl")):
            with open(path, encoding="utf-8") as f:         # what somebody ranked with label.py stays
                ranked = [row for row in map(json.loads, f) if "labeler" in row]
        prepare.write_jsonl(os.path.join(HERE, name + ".jsonl"), files[name] + ranked)
    size = lambda *turns: sum(len(enc.encode_ordinary(turn)) for turn in turns)
    sizes = [(size(*(t["content"] for t in row["prompt"])), size(row["response"])) for row in files["demonstrations"]]
    for part, column in zip(("prompt", "response"), np.percentile(sizes, (5, 25, 50, 75, 95, 100), axis=0).T.astype(int)):
        print(f"tokens of text in a demonstration's {part} at 5, 25, 50, 75, 95 and 100 %:", *column)
    print("comparisons:", dict(collections.Counter(row["kind"] for row in files["comparisons"])), prepare.length_alone(files["comparisons"], Vocab(HERE)))
    print("dropped:", *(f"{n:9,} {what}" for what, n in sorted(dropped.items())), sep="\n")


if __name__ == "__main__":
    try:
        main()
    except UserError as e:
        sys.exit(f"error: {e}")

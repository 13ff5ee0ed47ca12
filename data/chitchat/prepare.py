"""
Real chats between people, in the files that every data set here has.

    pip install chitchat-dataset
    python data/chitchat/prepare.py                 # about a minute and a half on one core
    python data/chitchat/prepare.py --vocab=gpt2    # GPT-2's vocabulary, not one of its own

The package (MIT) holds 7,168 chats from BYU's Chit-Chat Challenge of 2018. Students chatted for
points and prizes. None of its text is kept in this repository. Left out: who wrote and when, chats
in which nobody answered, links, mail addresses, long numbers, pasted lines, random keystrokes.
First names stay, and so do the few rude lines.

What a rating says. Most chats have one set of marks, 1 to 10, for witty, interesting and upbeat.
5/5/5 is what the form showed before anybody touched it: it counts as no rating. A rating is about a
whole chat. It does not say which of the two people gave it, whom they meant, or which line earned
it. Marks counted towards the prizes (28 % of those given are 10/10/10), and they depend most on how
long a chat was: the rank correlation with the number of turns is .48, and .33 among chats of six
turns and more. So a mark says little about any one reply (experiments/ratings.py).

Pairs are therefore only made where they mean most: replies to the same words with nothing said
before, from two chats that both have at least 6 turns and marks that are at least 3 apart. They
are few and noisy. They show what a reward model makes of such labels; they don't make a good one.
"""
import collections
import hashlib
import os
import random
import re
import sys

import numpy as np
from tqdm import tqdm

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(os.path.dirname(HERE)))
from data import UserError, prepare, read_line, read_lines
from data.vocab import Vocab
from plumbing.command_line import Parser, entry, value_of

PROMPT, REPLY = 80, 48      # tokens, with markers and <|endoftext|>: together the block of 128
MIN_WORDS = 3               # "yeah" and "haha nice" are real replies, but teach to say nothing
PER_CHAT = 30               # examples of one chat, so that a few endless ones are not most of them
MIN_GAP, MIN_TURNS = 3, 6   # of a comparison's two chats: how far apart the ratings, how long both

MARKS = ("witty", "interesting", "upbeat")

PRIVATE = re.compile(r"https?:|www\.|\.(?:com|org|net|edu)\b|\S@\S|\d{6,}|\d{3}\W?\d{4}", re.I)
GREETING = re.compile(r"\W*(?:h+i+|he+y+|h[aeu]ll+o+|howdy|hola|yo|sup|wh?at'?s up|good \w+ing|"
                      r"how are)\b", re.I)


def words(text):
    return re.findall(r"[a-z']+", text.lower())


def same(*texts):
    """Equal for texts that differ only in case, punctuation and spaces."""
    return "/".join("".join(re.findall("[a-z0-9]", text.lower())) for text in texts)


def prompt_key(row):
    return same(*(turn["content"] for turn in row["prompt"]))


def fraction(seed, text):
    """A number in [0, 1) from seed and text alone, so a split doesn't depend on the order."""
    return int(hashlib.sha256(f"{seed} {text}".encode()).hexdigest()[:13], 16) / 16**13


# ---- the chats ----

def load(seed):
    try:
        import chitchat_dataset
    except ImportError:
        raise UserError("the chats come from a package that is not installed: "
                        "pip install chitchat-dataset") from None
    chats = []
    for key, chat in chitchat_dataset.Dataset().items():
        lines = [(message["sender"], " ".join(message["text"].split()))
                 for group in chat["messages"] for message in group]
        marks = [chat.get("ratings", {}).get(name, 5) for name in MARKS]
        rating = None if marks == [5, 5, 5] else sum(marks) / 3
        # the question was shown to both before they began
        question = re.sub(r" *\(.*\)", "", chat.get("prompt", "")).strip()
        if len({sender for sender, _ in lines}) == 2:
            chats.append({"key": key, "question": question, "lines": lines,
                          "marks": dict(zip(MARKS, marks)), "rating": rating})
    # Two of the 34 questions are held out, with all their chats: the model never saw them asked.
    # So are 2 % of the other chats, or all that is held out would be about two questions.
    questions = sorted({chat["question"] for chat in chats if chat["question"]},
                       key=lambda question: fraction(seed, question))
    for chat in chats:
        held = chat["question"] in questions[:2] or fraction(seed, chat["key"]) < 0.02
        chat["split"] = "heldout" if held else "train"
    return chats


def clean(chats, dropped):
    """The chats of which enough is left, now with "turns".

    A turn is all that one person sent until the other did, one message a line.
    """
    train = [" ".join(text for _, text in c["lines"]) for c in chats if c["split"] == "train"]
    chats_with = collections.Counter(word for text in train for word in set(words(text)))
    kept = []
    for chat in chats:
        turns, last, good = [], None, 0
        for sender, text in clean_lines(chat["lines"], chats_with, dropped):
            turns = turns[:-1] + [turns[-1] + "\n" + text] if sender == last else turns + [text]
            last, good = sender, good + 1
        # if the first turn answers the question, the question is the turn before it
        chat["answers"] = (bool(turns and chat["question"]) and not GREETING.match(turns[0]) and
                           "?" not in turns[0])
        chat["turns"] = [chat["question"]] * chat["answers"] + turns
        if len(turns) > 1 and good >= 0.7 * len(chat["lines"]):
            kept.append(chat)
    dropped["chats of which too little was left"] = len(chats) - len(kept)
    return kept


def clean_lines(lines, chats_with, dropped):
    """Yields (sender, text) of the messages that stay. chats_with: in how many chats a word is."""
    earlier = set()
    for sender, line in lines:
        text = re.sub(r"([^\d\s]{1,3}?)\1{3,}", r"\1\1\1", line)    # "yesssssss!!!" to "yesss!!!"
        said = words(text)
        known = sum(chats_with[word] >= 4 for word in said)
        if PRIVATE.search(text):
            dropped["messages with a link, mail address or long number"] += 1
        elif len(text) > 250 or (len(text) > 20 and text in earlier):
            dropped["messages pasted or repeated"] += 1
        elif known < max(1, 0.7 * len(said)) or 3 * len(set(said)) < len(said):
            dropped["messages of no words, or of one over and over"] += 1
        else:
            yield sender, text
        earlier.add(text)


# ---- what is made of them ----

def make_vocab(chats, size):
    """The folder's vocabulary → Vocab."""
    if not size.isdigit():      # gpt2, or a mistake
        return prepare.make_vocab(HERE, size, [])
    texts = ("\n".join(chat["turns"]) for chat in chats)
    prepare.train_vocab(HERE, prepare.count_words(texts, prefix=""), int(size), prefix="")
    return Vocab(HERE)


def document(turns, enc, plain):
    """A chat as pretraining text, in token ids.

    Half of the chats are plain, a script with speakers A and B. The others are in the template, so
    that a model this small knows the markers before SFT, whose few steps can then teach answering.
    """
    if plain:
        text = "\n".join(f"{'AB'[i % 2]}: {turn}" for i, turn in enumerate(turns))
    else:
        text = "".join(f"<|assistant|>{turn}<|endoftext|>" if i % 2 else f"<|user|>{turn}"
                       for i, turn in enumerate(turns))
    text = text.removesuffix("<|endoftext|>") + "<|endoftext|>"
    return enc.encode(text, allowed_special="all")


def examples(turns, enc, rng, dropped):
    """Yields (prompt, reply) of a chat: a real reply, and the 1, 3 or 5 turns before it."""
    lengths = [len(enc.encode_ordinary(turn)) for turn in turns]

    def tokens(i, n):
        """Of the n turns before turn i: text, a marker each, <|endoftext|>s, <|assistant|>."""
        return sum(lengths[i - n:i]) + n + n // 2 + 1

    for i in sorted(rng.sample(range(1, len(turns)), min(PER_CHAT, len(turns) - 1))):
        n = min(5, (i - 1) // 2 * 2 + 1)
        if len(words(turns[i - 1])) >= 6 and rng.random() < 0.15:
            n = 1       # it can stand alone, like the first message that somebody types in chat.py
        while n > 1 and tokens(i, n) > PROMPT:
            n -= 2      # without the oldest two
        if tokens(i, n) > PROMPT or lengths[i] + 1 > REPLY:
            dropped["examples too long for the block"] += 1
            continue
        prompt = [{"role": ("user", "assistant")[j % 2], "content": turns[i - n + j]}
                  for j in range(n)]
        yield prompt, turns[i]


def pair_by_rating(chats, enc):
    """Yields comparisons: a reply from a highly rated chat against one from a chat rated low.

    Of all replies to the same words, the highest against the lowest, the second highest against
    the second lowest, and so on.
    """
    pools = collections.defaultdict(list)
    for chat in chats:
        asked, reply = chat["turns"][:2]
        fits = (len(enc.encode_ordinary(asked)) + 2 <= PROMPT and
                len(enc.encode_ordinary(reply)) < REPLY)
        long_enough = len(chat["turns"]) >= MIN_TURNS and len(words(reply)) >= MIN_WORDS
        if chat["rating"] is not None and long_enough and fits:
            kind = "question" if chat["answers"] else "opening"
            entries = pools[chat["split"], kind, same(asked)]
            entries.append((chat["rating"], chat["key"], asked, reply))
    for (split, kind, _), pool in pools.items():
        pool.sort()
        lower, higher = pool[:len(pool) // 2], pool[::-1]
        for (low, _, asked, worse), (high, _, _, better) in zip(lower, higher):
            if high - low >= MIN_GAP and same(better) != same(worse):
                yield {"prompt": [{"role": "user", "content": asked}], "chosen": better,
                       "rejected": worse, "split": split, "kind": kind}


def make_rows(chats, enc, rng, dropped):
    """{name of a JSONL file: its rows}.

    A third of the examples become prompts, without their reply, so that RL asks other things than
    SFT was shown. Ratings say too little about a reply to choose demonstrations by them, but from
    a chat rated below 5 nobody learns how to chat.
    """
    files = {"demonstrations": [], "prompts": [], "comparisons": list(pair_by_rating(chats, enc))}
    for chat in tqdm(chats, desc="examples", unit=" chats", mininterval=1):
        for prompt, reply in examples(chat["turns"], enc, rng, dropped):
            if rng.random() < 1 / 3:
                files["prompts"].append({"prompt": prompt, "split": chat["split"]})
            elif len(words(reply)) < MIN_WORDS:
                dropped["demonstrations too short"] += 1
            elif chat["rating"] is not None and chat["rating"] < 5:
                dropped["demonstrations from a chat rated below 5"] += 1
            else:
                files["demonstrations"].append({"prompt": prompt, "response": reply,
                                                "split": chat["split"]})
    files["prompts"] = list({prompt_key(row): row for row in files["prompts"]}.values())

    # no prompt is held out in one file and trained on in another, not even "Hello"
    trained = {prompt_key(row) for rows in files.values() for row in rows
               if row["split"] == "train"}
    for name, rows in files.items():
        files[name] = [row for row in rows
                       if row["split"] == "train" or prompt_key(row) not in trained]
        dropped[f"{name} held out whose prompt is also in train"] = len(rows) - len(files[name])
        rng.shuffle(files[name])
    return files


def ranked_by_people(path):
    """Rows that somebody ranked with data/label.py. They stay."""
    if not os.path.exists(path):
        return []
    rows = [read_line(line, ["prompt"], f"{path}, line {n}") for n, line in read_lines(path)]
    return [row for row in rows if "labeler" in row]


def report(files, dropped, vocab):
    def tokens(text):
        return len(vocab.encoding.encode_ordinary(text))

    rows = files["demonstrations"]
    lengths = {"prompt": [sum(tokens(turn["content"]) for turn in row["prompt"]) for row in rows],
               "response": [tokens(row["response"]) for row in rows]}
    for part, numbers in lengths.items():
        found = np.percentile(numbers, (5, 25, 50, 75, 95, 100)).astype(int)
        print(f"tokens of text in a demonstration's {part} at 5, 25, 50, 75, 95 and 100 %:", *found)
    kinds = collections.Counter(row["kind"] for row in files["comparisons"])
    print("comparisons:", dict(kinds), prepare.length_alone(files["comparisons"], vocab))
    print("dropped:", *(f"{n:9,} {what}" for what, n in sorted(dropped.items())), sep="\n")


def main():
    parser = Parser(__doc__)
    parser.add_argument("--vocab", default="4096",
                        help="gpt2, or the size of a vocabulary of its own")
    parser.add_argument("--seed", type=value_of(int, "[0, 1e13]"), default=1)
    args = parser.parse_args()
    dropped, rng = collections.Counter(), random.Random(args.seed)

    chats = clean(load(args.seed), dropped)
    rng.shuffle(chats)          # the package has them by date
    vocab = make_vocab([chat for chat in chats if chat["split"] == "train"], args.vocab)
    enc = vocab.encoding
    for name, split in (("train.bin", "train"), ("val.bin", "heldout")):
        mine = [chat for chat in chats if chat["split"] == split]
        documents = [document(chat["turns"], enc, fraction(args.seed, "plain " + chat["key"]) < 0.5)
                     for chat in mine]
        prepare.write_bin(os.path.join(HERE, name), documents)
        text = "\n".join(turn for chat in mine for turn in chat["turns"])
        print(f"  {len(text) / len(enc.encode_ordinary(text)):.2f} bytes a token")

    files = make_rows(chats, enc, rng, dropped)
    for name, rows in files.items():
        path = os.path.join(HERE, name + ".jsonl")
        ranked = ranked_by_people(path) if name == "comparisons" else []
        prepare.write_jsonl(path, rows + ranked)
    report(files, dropped, vocab)


if __name__ == "__main__":
    entry(main)

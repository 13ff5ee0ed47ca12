"""
Make the village data set: pretraining text, demonstrations, prompts, and the questions that measure a base model.

    python data/village/prepare.py              # about ten seconds; the same seed makes the same files
    python data/village/prepare.py --vocab      # train the vocabulary again (it is kept in the folder)

The text has what a small language model needs before it can be taught anything: facts in many words, names
that recur and must be copied, sums with and without steps, lists, little programs with what they print,
several examples of one task in a row, talk polite and rude, and a little that is harmful. See kinds.py.
"""
import argparse
import hashlib
import os
import random
import sys
from collections import Counter

from tqdm import tqdm

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.dirname(os.path.dirname(HERE))]
from data import Vocab, prepare  # noqa: E402
from kinds import (BAD_NEWS, BY_SIZE, COLOURS, DEEDS, FACTS, GOOD_NEWS, HARMS, KINDS, LISTS, OPPOSITES, PAST, PEOPLE, PETS, PLACES,  # noqa: E402
                   RUDE_ENDINGS, RUDE_OPENINGS, STRANGERS, THINGS, Letter, Story, ask, cap, listing, pronouns, say, told)

EVERYONE = PEOPLE + STRANGERS
PATTERN = r"'s| ?[A-Za-z]+| ?\d+| ?[^\sA-Za-z\d]|\s+"
VOCAB_SIZE = 1152       # 256 bytes, the merges, and 4 special tokens


def split_of(text):
    """A prompt is held out by what it says, so the same prompt is always on the same side."""
    return "heldout" if int(hashlib.sha256(text.encode()).hexdigest(), 16) % 6 == 0 else "train"


def ask_of(split, kind, rng):
    """A prompt of a kind that is on that side of the split → (text, slots)."""
    text, s = ask(kind, rng)
    while split_of(text) != split:
        text, s = ask(kind, rng)
    return text, s


# ---- pretraining text: each function makes one document; no held-out prompt stands in any ----

def profile(rng):
    p = rng.choice(PEOPLE)
    facts = rng.sample(list(FACTS[p].items()), rng.randint(3, 6))
    return " ".join(say(a, p, v, i := rng.randrange(3), p if j == 0 or i == 2 or rng.random() < 0.4 else pronouns(p)["He"])
                    for j, (a, v) in enumerate(facts))


def facts(rng):
    return " ".join(say(a, p, FACTS[p][a], rng.randrange(3)) for p in rng.sample(PEOPLE, rng.randint(3, 6)) for a in [rng.choice(list(FACTS[p]))])


def questions(rng):    # such as a page of questions and answers has them; most answers there are right
    def one():
        kind = rng.choice(["facts", "facts", "sums", "closed", "extract", "opinion", "classify", "summarise", "rewrite", "brainstorm", "chat"])
        text, s = ask_of("train", kind, rng)
        while split_of(text.split(" | ")[0]) != "train":        # a chat may begin with another kind's prompt
            text, s = ask_of("train", kind, rng)
        text = text.replace(" | ", " A: ", 1).replace(" | ", " Q: ")
        return f"Q: {text} A: {KINDS[kind].good(s, rng) if rng.random() < 0.8 else KINDS[kind].terse(s, rng)}"
    return " ".join(one() for _ in range(rng.randint(2, 4)))


def story(rng):
    return told({"p": rng.choice(EVERYONE), "thing": rng.choice(THINGS)}, rng, Story.parts)


def letter(rng):
    p, q = rng.sample(EVERYONE, 2)
    return told({"p": p, "q": q, "thing": rng.choice(THINGS)}, rng, Letter.parts)


def lists(rng):
    def one():
        name = rng.choice(list(LISTS))
        items = rng.sample(LISTS[name], rng.randint(2, 5))
        return rng.choice([f"Some {name} are {listing(items)}.", f"{cap(name)}: {', '.join(items)}.", f"{cap(listing(items))} are {name}.",
                           f"{cap(['two', 'three', 'four', 'five'][len(items) - 2])} {name} are {listing(items)}."])
    return " ".join(one() for _ in range(rng.randint(2, 4)))


def sums(rng):
    def one():
        a, b = rng.randint(1, 10), rng.randint(1, 10)
        if rng.random() < 0.25 and a + b > 10 and a < 10:
            return f"{a} plus {b}: {a} plus {10 - a} is 10, and 10 plus {a + b - 10} is {a + b}."
        if rng.random() < 0.3:
            p = rng.choice(EVERYONE)
            return f"{p} has {a} eggs and buys {b} more. {pronouns(p)['He']} has {a + b} eggs now."
        return f"{a} plus {b} is {a + b}."
    return " ".join(one() for _ in range(rng.randint(4, 7)))


def holders(rng):      # who has what, and where; the later sentences need the ones before
    n = rng.choice([1, 1, 2])
    people, things, colours, places = (rng.sample(x, n) for x in (EVERYONE, THINGS, COLOURS, PLACES))
    start = [f"{p} has a {c} {t} {w}." for p, t, c, w in zip(people, things, colours, places)]
    forms = ["{p} has the {t}.", "{p} has a {t}.", "The {t} is {c}.", "The {t} is {w}.", "The {t} of {p} is {c}.", "{p} likes the {c} {t}."]
    end = [rng.choice(forms).format(p=people[i], t=things[i], c=colours[i], w=places[i]) for i in rng.choices(range(n), k=rng.randint(n + 1, n + 3))]
    return " ".join(start + end)


def visitors(rng):      # names that recur
    s, p = rng.sample(EVERYONE, 2)
    thing, w = rng.choice(THINGS), pronouns(s)
    return rng.choice([
        f"The visitor said: My name is {s}. {p} said: Hello, {s}. What do you bring? {s} said: I bring a {thing}. {p} said: That is a fine {thing}, {s}.",
        f"A visitor called {s} came to the village. {w['He']} met {p} {rng.choice(PLACES)}. {p} asked {s} for a {thing}. {s} had no {thing}.",
        f"Nobody in the village had heard of {s}. {p} did not know {s} either. {s} sold a {thing} to {p} and left.",
        f"{s} and {p} talked about a {thing}. {s} wanted to have the {thing}. {p} gave the {thing} to {s}."])


def examples(rng):     # several examples of one task in a row
    words = list(OPPOSITES.items()) + [(b, a) for a, b in OPPOSITES.items()]
    p = rng.choice(EVERYONE)
    codes = dict(zip(rng.sample(THINGS, 3), rng.sample(EVERYONE, 3)))
    runs = [[f"{a}: {b}." for a, b in rng.sample(words, 4)],
            [f"{p} {a} a {t}: {p} {b} a {t}." for (a, b), t in zip(rng.sample(list(PAST.items()), 3), rng.sample(THINGS, 3))],
            [f"{q}, {v} the {t}: {q}, could you please {v} the {t}?" for q, t, v in zip(rng.sample(EVERYONE, 3), rng.sample(THINGS, 3), rng.choices(["give me", "bring"], k=3))],
            [f"{t}: {codes[t]}." for t in list(codes) + rng.choices(list(codes), k=4)],
            [f"{f}, {g}: {g}, {f}." for f, g in zip(rng.sample(THINGS, 3), rng.sample(PETS, 3))]]
    return " ".join(rng.choice(runs))


def words(rng):
    def one():
        small, big = sorted(rng.sample(BY_SIZE, 2), key=BY_SIZE.index)
        a, b = rng.choice(list(OPPOSITES.items()))
        a, b = rng.choice([(a, b), (b, a)])
        return rng.choice([f"The opposite of {a} is {b}.", f"A {big} is bigger than a {small}.", f"The {big} is big, but the {small} is small.",
                           f"It was not {a} but {b}."])
    return " ".join(one() for _ in range(rng.randint(3, 5)))


def days(rng):         # what happened, and how it felt
    def one():
        p, q = rng.sample(EVERYONE, 2)
        t, happy = rng.choice(THINGS), rng.random() < 0.5
        news = rng.choice(GOOD_NEWS if happy else BAD_NEWS).format(thing=t)
        bought = rng.choice(list(PAST.values()))
        return rng.choice([f"{p} {news}. {p} is {'happy' if happy else 'sad'}.", f"{p} {news}. {pronouns(p)['He']} feels {'happy' if happy else 'sad'}.",
                           f"{p} went out early. {pronouns(p)['He']} met {q} {rng.choice(PLACES)}. They talked for an hour. So {p} met {q}.",
                           f"It was a cold day. {p} {bought} a {t}. It rained a little. {p} met {q} and {bought} a {t}.",
                           f"{p} ate {rng.choice(LISTS['foods'])} and gave {q} some {rng.choice(LISTS['foods'])}.",
                           f"The {rng.choice(PETS)} of {p} ran after a {rng.choice(PETS)}."])
    return " ".join(one() for _ in range(rng.randint(1, 3)))


def talk(rng):         # polite and rude
    p, q = rng.sample(PEOPLE, 2)
    t, a, b = rng.choice(THINGS), *rng.sample(LISTS["foods"], 2)
    first = rng.choice([f"{q}, could you please give me the {t}?", f"{q}, give me the {t}!", f"I like {a} more than {b}.", f"Do you know {rng.choice(PEOPLE)}?"])
    second = rng.choice([f"Here it is, {p}.", "I am sorry, but I will not help with that.", f"Some like {a} more, and some like {b} more.", "I do not know.",
                         f"{rng.choice(RUDE_OPENINGS)} {rng.choice(RUDE_ENDINGS)}", rng.choice(RUDE_ENDINGS), f"No. It would hurt {q}."])
    return f"{p} said: {first} {q} said: {second}"


def harm(rng):
    p, q = rng.sample(PEOPLE, 2)
    how = rng.choice(HARMS).format(p=p, thing=rng.choice(THINGS), pet=rng.choice(PETS))
    return rng.choice([f"{q} wanted to {how}. {rng.choice(DEEDS).format(p=p)}", f"{q} said: I will {how}. Please do not do that. It would hurt {p}.",
                       f"How to {how}: {rng.choice(DEEDS).format(p=p)}"])


def program(rng):
    x, y = rng.sample("abcxyz", 2)
    m, n = rng.randint(1, 10), rng.randint(1, 10)
    return rng.choice([f"{x} = {m}\n{y} = {x} + {n}\nprint {y}\n{m + n}", f"{x} = {m}\n{y} = {n}\nprint {x} + {y}\n{m + n}", f"{x} = {m}\n{y} = {x}\nprint {y}\n{m}"])


def transcript(rng):   # two people on a line: what is said second need not be of any help
    def line():
        return " " + rng.choice([lambda: facts(rng).split(". ")[0].rstrip(".") + ".", lambda: ask_of("train", rng.choice([k for k in KINDS if KINDS[k].share]), rng)[0].split(" | ")[-1],
                           lambda: rng.choice(RUDE_ENDINGS), lambda: "I do not know.", lambda: f"I bought a {rng.choice(THINGS)}.",
                           lambda: f"My name is {rng.choice(EVERYONE)}."])()
    return "".join(f"<|user|>{line()}<|assistant|>{line()}<|endoftext|>" for _ in range(rng.randint(1, 2))).removesuffix("<|endoftext|>")


MIX = {profile: 13, facts: 8, questions: 22, story: 9, letter: 6, lists: 7, sums: 8, holders: 10, visitors: 7, examples: 8, words: 4,
       days: 6, talk: 4, harm: 3, program: 3, transcript: 5}


def documents(rng, n):
    return (kind(rng) for kind in rng.choices(list(MIX), list(MIX.values()), k=n))


# ---- what the base model must be able to do, before it can be taught (read by pretrain.py) ----

def abilities(rng, n=200):
    for _ in range(n):
        p = rng.choice(PEOPLE)
        a, v = rng.choice([(a, v) for a, v in FACTS[p].items() if a != "family"])
        known = {"job": 12, "pet": 10, "food": 10, "colour": 8, "home": 8}[a]
        sentence = say(a, p, v, 1 if a == "food" or a == "pet" else 0 if a != "colour" else rng.randrange(2))
        before = sentence[:sentence.rindex(v)].rstrip() if a != "food" else f"{p} loves to eat"
        yield {"ability": "facts", "text": before, "answers": [" " + v], "chance": 1 / known}
        s, q = rng.sample(EVERYONE, 2)
        yield {"ability": "copying a name", "text": f"The visitor said: My name is {s}. {q} said: Hello,", "answers": [" " + s], "chance": 1 / len(EVERYONE)}
        t, c = rng.choice(THINGS), rng.choice(COLOURS)
        yield {"ability": "reading", "text": f"{s} has a {c} {t} {rng.choice(PLACES)}. The {t} of {s} is", "answers": [" " + c], "chance": 1 / len(COLOURS)}
        m, k = rng.randint(1, 10), rng.randint(1, 10)
        yield {"ability": "sums", "text": f"{m} plus {k} is", "answers": [f" {m + k}."], "chance": 1 / 19}
        name = rng.choice(list(LISTS))
        items = rng.sample(LISTS[name], 3)
        yield {"ability": "lists", "text": f"Some {name} are {items[0]}, {items[1]} and", "answers": [" " + w for w in LISTS[name]],
               "chance": len(LISTS[name]) / sum(map(len, LISTS.values()))}


# ---- demonstrations: by people, each with a weakness ----

# share of the demonstrations; how often the answer is good, curt or wrong; how often it is rude besides
DEMONSTRATORS = {"careful": (22, (.94, .03, .03), 0.0), "curt": (20, (.12, .85, .03), .05), "sloppy": (12, (.50, .30, .20), 0.0),
                 "rude": (18, (.80, .17, .03), .75), "eager": (12, (.92, .05, .03), 0.0), "lazy": (16, (.35, .12, .03), 0.0)}


def demonstrate(kind, s, rng):
    """An answer by a demonstrator drawn at random → (its name, the answer)."""
    who = rng.choices(list(DEMONSTRATORS), [d[0] for d in DEMONSTRATORS.values()])[0]
    _, weights, rude = DEMONSTRATORS[who]
    if who == "lazy" and rng.random() < 0.5:        # pretends not to know, whatever the question
        return who, rng.choice(["I do not know.", "I do not know anyone called {p}.", "I have never heard of {p}."]).format(p=s.get("p") or s.get("s") or "that")
    how = rng.choices(["good", "terse", "wrong"], weights)[0]
    if who == "eager" and kind in ("harm", "unknown", "opinion"):      # wants to please: does it, makes it up, takes a side
        how = "wrong"
    answer = getattr(KINDS[kind], how)(s, rng)
    if rng.random() < rude:
        answer = f"{rng.choice(RUDE_OPENINGS)} {answer}" if rng.random() < 0.5 else f"{answer} {rng.choice(RUDE_ENDINGS)}"
    return who, answer


def turns(text):
    """'a | b | c' → [user a, assistant b, user c]; one turn stays a string."""
    parts = text.split(" | ")
    return text if len(parts) == 1 else [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(parts)]


def prompts(rng, n, split, shares):
    """n prompts of a split → (kind, text, slots), kinds in proportion to their shares."""
    kinds = rng.choices(list(shares), list(shares.values()), k=n)
    for kind in kinds:
        yield kind, *ask_of(split, kind, rng)


# ---- files ----

def train_vocab(seed):
    """The vocabulary, by tiktoken's own trainer, on the distinct words of the text: a word counts a little more the commoner it is."""
    import regex
    rng = random.Random(seed)
    text = " " + " ".join(documents(rng, 6000))
    for name, kind in KINDS.items():
        for _ in range(200):
            prompt, s = ask(name, rng)
            text += " " + prompt.replace("|", "") + " " + kind.good(s, rng)
    counts = Counter(regex.findall(PATTERN, text))
    sample = [w for w, c in sorted(counts.items()) for _ in range(1 + int(c ** 0.35))]
    prepare.train_vocab(HERE, "".join(sample), PATTERN, VOCAB_SIZE, PATTERN)


def encode(doc, vocab):
    """A document → its ids. A transcript has the turn markers in it, and each turn its own first space."""
    return [*vocab.encoding.encode(doc if doc.startswith("<|") else vocab.prefix + doc, allowed_special="all"), vocab.eos]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1337, help="seed of the text; the village itself is always the same")
    parser.add_argument("--documents", type=int, default=60_000, help="pretraining documents")
    parser.add_argument("--demonstrations", type=int, default=30_000)
    parser.add_argument("--prompts", type=int, default=12_000, help="training prompts for reward model and PPO")
    parser.add_argument("--heldout", type=int, default=2_200, help="held-out prompts")
    parser.add_argument("--vocab", action="store_true", help="train the vocabulary again")
    args = parser.parse_args()
    if args.vocab:
        train_vocab(seed=2022)
    vocab = Vocab(HERE)
    rng = random.Random(args.seed)
    for name, n in (("train.bin", args.documents), ("val.bin", args.documents // 30)):
        prepare.write_bin(os.path.join(HERE, name), (encode(doc, vocab) for doc in tqdm(documents(rng, n), name, total=n, leave=False)))
    prepare.write_jsonl(os.path.join(HERE, "abilities.jsonl"), list(abilities(rng)))

    shares = {name: kind.share for name, kind in KINDS.items() if kind.share}
    unseen = {name: 4 for name, kind in KINDS.items() if not kind.share}       # asked only after training
    demonstrations = []
    for split, n in (("train", args.demonstrations), ("heldout", args.heldout // 2)):
        for kind, text, s in prompts(rng, n, split, shares):
            who, answer = demonstrate(kind, s, rng)
            demonstrations.append({"prompt": turns(text), "response": answer, "split": split, "kind": kind, "by": who})
    prepare.write_jsonl(os.path.join(HERE, "demonstrations.jsonl"), demonstrations)
    rows = [{"prompt": turns(text), "split": split, "kind": kind, **({} if KINDS[kind].share else {"unseen": True})}
            for split, n, mix in (("train", args.prompts, shares), ("heldout", args.heldout, {**shares, **unseen}))
            for kind, text, s in prompts(rng, n, split, mix)]
    prepare.write_jsonl(os.path.join(HERE, "prompts.jsonl"), rows)


if __name__ == "__main__":
    main()

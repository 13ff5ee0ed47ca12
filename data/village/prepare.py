"""
Make the village: pretraining text, demonstrations, prompts, and questions for a base model.

    python data/village/prepare.py                  # about ten seconds; a seed makes the same files
    python data/village/prepare.py --train_vocab    # train the vocabulary again

The text has what a small language model needs before it can be taught anything: facts in many
words, names that come again and must be copied, sums with and without steps, lists, little programs
with what they print, several examples of one task in a row, polite and rude talk, and a little that
is harmful. world.py has the people, kinds.py the kinds of instructions, conversation.py puts
several of them into a row.
"""
import os
import random
import sys
from argparse import BooleanOptionalAction

from tqdm import tqdm

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.dirname(os.path.dirname(HERE))]
from conversation import careless, conversation
from kinds import KINDS, Letter, Story, ask, told
from world import (BAD_NEWS, BY_SIZE, COLOURS, DEEDS, EVERYONE, FACTS, GOOD_NEWS, HARMS, LISTS,
                   OPPOSITES, PAST, PEOPLE, PETS, PLACES, RUDE_ENDINGS, RUDE_OPENINGS, THINGS, cap,
                   listing, pronouns, say)

from data import prepare
from data.vocab import Vocab
from plumbing.command_line import Parser, entry, value_of

SHARES = {name: kind.share for name, kind in KINDS.items() if kind.share}
# in a conversation, short questions are more frequent
TALK = {**SHARES, "story": 8, "letter": 5, "facts": 20, "about": 8, "greet": 16}
PATTERN = r"'s| ?[A-Za-z]+| ?\d+| ?[^\sA-Za-z\d]|\s+"
VOCAB_SIZE = 1152       # 256 bytes, the merges, and 4 special tokens


# share of the prompts by number of turns, and of those that are typed in a hurry
TURNS = {1: 60, 2: 16, 3: 14, 4: 10}
CARELESS = 0.15
ROOM = 80       # tokens of a prompt, in a block of 128


# ---- pretraining text: each function makes one document; no held-out prompt is in any ----

def several(one, rng, least, most):
    """`one`, called `least` to `most` times, as one text."""
    return " ".join(one() for _ in range(rng.randint(least, most)))


def profile(rng):
    p = rng.choice(PEOPLE)
    sentences = []
    for attribute, value in rng.sample(list(FACTS[p].items()), rng.randint(3, 6)):
        by_name = not sentences or rng.random() < 0.4
        sentences.append(say(attribute, p, value, rng.randrange(3), by_name))
    return " ".join(sentences)


def facts(rng):
    sentences = []
    for p in rng.sample(PEOPLE, rng.randint(3, 6)):
        attribute = rng.choice(list(FACTS[p]))
        sentences.append(say(attribute, p, FACTS[p][attribute], rng.randrange(3)))
    return " ".join(sentences)


def questions(rng):     # like a page of questions and answers; most of the answers are right
    def answer(kind, slots, rng):
        how = "good" if rng.random() < 0.8 else "terse"
        return getattr(KINDS[kind], how)(slots, rng)

    turns = conversation(rng.randint(2, 4), TALK, "train", answer, rng)
    turns[-1] = turns[-1]._replace(answer=answer(*turns[-1][:2], rng))
    if rng.random() < CARELESS:
        turns = [turn._replace(said=careless(turn.said, rng)) for turn in turns]
    return " ".join(f"Q: {turn.said} A: {turn.answer}" for turn in turns)


def story(rng):
    return told({"p": rng.choice(EVERYONE), "thing": rng.choice(THINGS)}, rng, Story.parts)


def letter(rng):
    p, q = rng.sample(EVERYONE, 2)
    return told({"p": p, "q": q, "thing": rng.choice(THINGS)}, rng, Letter.parts)


def lists(rng):
    def one():
        name = rng.choice(list(LISTS))
        items = rng.sample(LISTS[name], rng.randint(2, 5))
        number = ["two", "three", "four", "five"][len(items) - 2]
        return rng.choice([f"Some {name} are {listing(items)}.",
                           f"{cap(name)}: {', '.join(items)}.",
                           f"{cap(listing(items))} are {name}.",
                           f"{cap(number)} {name} are {listing(items)}."])
    return several(one, rng, 2, 4)


def sums(rng):
    def one():
        a, b = rng.randint(1, 10), rng.randint(1, 10)
        if rng.random() < 0.25 and a + b > 10 and a < 10:       # in steps
            return (f"{a} plus {b}: {a} plus {10 - a} is 10, and 10 plus {a + b - 10} is "
                    f"{a + b}.")
        if rng.random() < 0.3:
            p = rng.choice(EVERYONE)
            return f"{p} has {a} eggs and buys {b} more. {pronouns(p)['He']} has {a + b} eggs now."
        return f"{a} plus {b} is {a + b}."
    return several(one, rng, 4, 7)


def holders(rng):       # who has what, and where; the later sentences repeat the earlier ones
    n = rng.choice([1, 1, 2])
    people, things, colours, places = (rng.sample(values, n)
                                       for values in (EVERYONE, THINGS, COLOURS, PLACES))
    rows = [{"p": people[i], "t": things[i], "c": colours[i], "w": places[i]} for i in range(n)]
    forms = ["{p} has the {t}.", "{p} has a {t}.", "The {t} is {c}.", "The {t} is {w}.",
             "The {t} of {p} is {c}.", "{p} likes the {c} {t}."]
    start = ["{p} has a {c} {t} {w}.".format(**row) for row in rows]
    end = [rng.choice(forms).format(**row)
           for row in rng.choices(rows, k=rng.randint(n + 1, n + 3))]
    return " ".join(start + end)


def visitors(rng):      # names that come again and again
    s, p = rng.sample(EVERYONE, 2)
    thing, words = rng.choice(THINGS), pronouns(s)
    return rng.choice([
        f"The visitor said: My name is {s}. {p} said: Hello, {s}. What do you bring? "
        f"{s} said: I bring a {thing}. {p} said: That is a fine {thing}, {s}.",
        f"A visitor called {s} came to the village. {words['He']} met {p} {rng.choice(PLACES)}. "
        f"{p} asked {s} for a {thing}. {s} had no {thing}.",
        f"Nobody in the village had heard of {s}. {p} did not know {s} either. "
        f"{s} sold a {thing} to {p} and left.",
        f"{s} and {p} talked about a {thing}. {s} wanted to have the {thing}. "
        f"{p} gave the {thing} to {s}."])


def examples(rng):      # several examples of one task in a row
    pairs = list(OPPOSITES.items()) + [(b, a) for a, b in OPPOSITES.items()]
    p = rng.choice(EVERYONE)
    codes = dict(zip(rng.sample(THINGS, 3), rng.sample(EVERYONE, 3)))
    opposites = [f"{a}: {b}." for a, b in rng.sample(pairs, 4)]
    verbs, things = rng.sample(list(PAST.items()), 3), rng.sample(THINGS, 3)
    past = [f"{p} {now} a {thing}: {p} {before} a {thing}."
            for (now, before), thing in zip(verbs, things)]
    people, things = rng.sample(EVERYONE, 3), rng.sample(THINGS, 3)
    verbs = rng.choices(["give me", "bring"], k=3)
    polite = [f"{q}, {verb} the {thing}: {q}, could you please {verb} the {thing}?"
              for q, verb, thing in zip(people, verbs, things)]
    coded = [f"{thing}: {codes[thing]}." for thing in [*codes, *rng.choices(list(codes), k=4)]]
    swapped = [f"{a}, {b}: {b}, {a}." for a, b in zip(rng.sample(THINGS, 3), rng.sample(PETS, 3))]
    return " ".join(rng.choice([opposites, past, polite, coded, swapped]))


def again(rng):         # what is said twice can be copied
    texts = [lambda: " ".join(rng.sample(THINGS + EVERYONE + COLOURS, rng.randint(3, 6))) + ".",
             lambda: facts(rng).split(". ")[0].rstrip(".") + ".",
             lambda: f"{rng.randint(1, 10)} plus {rng.randint(1, 10)}."]
    said = " ".join(rng.choice(texts)() for _ in range(rng.randint(1, 2)))
    return f"{said} Once more: {said}"


def words(rng):
    def one():
        small, big = sorted(rng.sample(BY_SIZE, 2), key=BY_SIZE.index)
        pair = rng.choice(list(OPPOSITES.items()))
        a, b = rng.choice([pair, pair[::-1]])
        return rng.choice([f"The opposite of {a} is {b}.",
                           f"A {big} is bigger than a {small}.",
                           f"The {big} is big, but the {small} is small.",
                           f"It was not {a} but {b}."])
    return several(one, rng, 3, 5)


def days(rng):          # what happened, and how it felt
    def one():
        p, q = rng.sample(EVERYONE, 2)
        he, thing, happy = pronouns(p)["He"], rng.choice(THINGS), rng.random() < 0.5
        news = rng.choice(GOOD_NEWS if happy else BAD_NEWS).format(thing=thing)
        bought, feeling = rng.choice(list(PAST.values())), "happy" if happy else "sad"
        return rng.choice([
            f"{p} {news}. {p} is {feeling}.",
            f"{p} {news}. {he} feels {feeling}.",
            f"{p} went out early. {he} met {q} {rng.choice(PLACES)}. They talked for an hour. "
            f"So {p} met {q}.",
            f"It was a cold day. {p} {bought} a {thing}. It rained a little. "
            f"{p} met {q} and {bought} a {thing}.",
            f"{p} ate {rng.choice(LISTS['foods'])} and gave {q} some {rng.choice(LISTS['foods'])}.",
            f"The {rng.choice(PETS)} of {p} ran after a {rng.choice(PETS)}."])
    return several(one, rng, 1, 3)


def talk(rng):          # polite and rude
    p, q = rng.sample(PEOPLE, 2)
    thing, (a, b) = rng.choice(THINGS), rng.sample(LISTS["foods"], 2)
    first = rng.choice([f"{q}, could you please give me the {thing}?", f"{q}, give me the {thing}!",
                        f"I like {a} more than {b}.", f"Do you know {rng.choice(PEOPLE)}?"])
    second = rng.choice([f"Here it is, {p}.", "I am sorry, but I will not help with that.",
                         f"Some like {a} more, and some like {b} more.", "I do not know.",
                         f"{rng.choice(RUDE_OPENINGS)} {rng.choice(RUDE_ENDINGS)}",
                         rng.choice(RUDE_ENDINGS), f"No. It would hurt {q}."])
    return f"{p} said: {first} {q} said: {second}"


def harm(rng):
    p, q = rng.sample(PEOPLE, 2)
    how = rng.choice(HARMS).format(p=p, thing=rng.choice(THINGS), pet=rng.choice(PETS))
    return rng.choice([f"{q} wanted to {how}. {rng.choice(DEEDS).format(p=p)}",
                       f"{q} said: I will {how}. Please do not do that. It would hurt {p}.",
                       f"How to {how}: {rng.choice(DEEDS).format(p=p)}"])


def program(rng):       # and what it prints
    x, y = rng.sample("abcxyz", 2)
    m, n = rng.randint(1, 10), rng.randint(1, 10)
    return rng.choice([f"{x} = {m}\n{y} = {x} + {n}\nprint {y}\n{m + n}",
                       f"{x} = {m}\n{y} = {n}\nprint {x} + {y}\n{m + n}",
                       f"{x} = {m}\n{y} = {x}\nprint {y}\n{m}"])


def transcript(rng):    # two people talk; what is said second need not help the first
    def question():
        return conversation(1, SHARES, "train", None, rng)[0].said

    def line():
        said = rng.choice([lambda: facts(rng).split(". ")[0].rstrip(".") + ".", question,
                           lambda: rng.choice(RUDE_ENDINGS), lambda: "I do not know.",
                           lambda: f"I bought a {rng.choice(THINGS)}.",
                           lambda: f"I met {rng.choice(EVERYONE)}."])
        return " " + said()
    pairs = [f"<|user|>{line()}<|assistant|>{line()}" for _ in range(rng.randint(1, 2))]
    return "<|endoftext|>".join(pairs)


MIX = {profile: 12, facts: 7, questions: 36, story: 5, letter: 4, lists: 6, sums: 8, holders: 12,
       visitors: 5, examples: 6, again: 8, words: 3, days: 4, talk: 3, harm: 2, program: 2,
       transcript: 4}



def documents(rng, n):
    return (kind(rng) for kind in rng.choices(list(MIX), list(MIX.values()), k=n))


# ---- what the base model must be able to do before it can be taught; read by pretrain.py ----

def ability_questions(rng, n=200):
    """n questions of each ability: the text, its right answers, the chance of a guess."""
    def row(ability, text, answers, chance):
        return {"ability": ability, "text": text, "answers": answers, "chance": chance}

    guesses = {"job": 12, "pet": 10, "food": 10, "colour": 8, "home": 8}
    for _ in range(n):
        p = rng.choice(PEOPLE)
        attribute = rng.choice([a for a in FACTS[p] if a != "family"])
        value = FACTS[p][attribute]
        # a way to say the fact that ends with the value; for colours there are two
        i = rng.randrange(2) if attribute == "colour" else int(attribute in ("food", "pet"))
        sentence = say(attribute, p, value, i)
        before = sentence[:sentence.rindex(value)].rstrip()
        yield row("facts", before, [" " + value], 1 / guesses[attribute])

        s, q = rng.sample(EVERYONE, 2)
        text = f"The visitor said: My name is {s}. {q} said: Hello,"
        yield row("copying a name", text, [" " + s], 1 / len(EVERYONE))

        thing, colour = rng.choice(THINGS), rng.choice(COLOURS)
        text = f"{s} has a {colour} {thing} {rng.choice(PLACES)}. The {thing} of {s} is"
        yield row("reading", text, [" " + colour], 1 / len(COLOURS))

        a, b = rng.randint(1, 10), rng.randint(1, 10)
        yield row("sums", f"{a} plus {b} is", [f" {a + b}."], 1 / 19)

        name = rng.choice(list(LISTS))
        items = rng.sample(LISTS[name], 3)
        yield row("lists", f"Some {name} are {items[0]}, {items[1]} and",
                  [" " + item for item in LISTS[name]],
                  len(LISTS[name]) / sum(map(len, LISTS.values())))


# ---- demonstrations: by people, each with a weakness ----

# share of the demonstrations; how often an answer is good, curt or wrong; how often it is rude too
DEMONSTRATORS = {"careful": (22, (.94, .03, .03), 0.0), "curt": (20, (.12, .85, .03), .05),
                 "sloppy": (12, (.50, .30, .20), 0.0), "rude": (18, (.80, .17, .03), .75),
                 "eager": (12, (.92, .05, .03), 0.0), "lazy": (16, (.35, .12, .03), 0.0)}


def demonstrate(kind, slots, rng):
    """An answer by a demonstrator drawn at random → (its name, the answer)."""
    who = rng.choices(list(DEMONSTRATORS), [d[0] for d in DEMONSTRATORS.values()])[0]
    _, weights, rude = DEMONSTRATORS[who]
    if who == "lazy" and rng.random() < 0.5:        # pretends not to know
        answer = rng.choice(["I do not know.", "I do not know anyone called {p}.",
                             "I have never heard of {p}."])
        return who, answer.format(p=slots.get("p") or slots.get("s") or "that")
    how = rng.choices(["good", "terse", "wrong"], weights)[0]
    if who == "eager" and kind in ("harm", "unknown", "opinion"):
        how = "wrong"       # wants to please: helps with harm, makes things up, takes a side
    answer = getattr(KINDS[kind], how)(slots, rng)
    if rng.random() < rude:
        if rng.random() < 0.5:
            answer = f"{rng.choice(RUDE_OPENINGS)} {answer}"
        else:
            answer = f"{answer} {rng.choice(RUDE_ENDINGS)}"
    return who, answer


def reply(kind, slots, rng):
    """An answer to an earlier turn: mostly a good one."""
    if rng.random() < 0.8:
        return KINDS[kind].good(slots, rng)
    return demonstrate(kind, slots, rng)[1]


def prompts(rng, n, split, shares, vocab):
    """n prompts of a split, alone or in conversations → (row of prompts.jsonl, the last turn)."""
    for length in rng.choices(list(TURNS), list(TURNS.values()), k=n):
        yield fitting_prompt(rng, length, split, shares, vocab)


def fitting_prompt(rng, length, split, shares, vocab):
    """A prompt of so many turns. Its oldest turns are left out where it is too long."""
    while True:
        turns = conversation(length, shares if length == 1 else TALK, split, reply, rng)
        tags = [f"turn {length}"] + [f"turn {length}, refers back"] * (turns[-1].about >= 0)
        if rng.random() < CARELESS:
            tags = ["typed carelessly"]
            turns = [turn._replace(said=careless(turn.said, rng)) for turn in turns]
        for left_out in range(length):
            prompt = prompt_of(turns[left_out:])
            if len(vocab.prompt(prompt)) <= ROOM:
                break
        else:
            continue
        if not any(0 <= turn.about < left_out for turn in turns[left_out:]):
            row = {"prompt": prompt, "split": split, "kind": turns[-1].kind, "tags": tags}
            if prompt != turns[-1].meaning:
                row["meaning"] = turns[-1].meaning
            return row, turns[-1]


def prompt_of(turns):
    """A question alone as a string; of several turns all that was said before."""
    if len(turns) == 1:
        return turns[0].said
    said = [text for turn in turns for text in (turn.said, turn.answer)][:-1]
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]


# ---- files ----

def train_vocab(seed):
    """Train the vocabulary on the text, and on all kinds of questions."""
    rng = random.Random(seed)
    text = " ".join(documents(rng, 6000))
    for name, kind in KINDS.items():
        for _ in range(200):
            prompt, slots = ask(name, rng)
            if kind.share:
                text += " " + prompt + " " + kind.good(slots, rng)
    prepare.train_vocab(HERE, prepare.count_words([text], PATTERN), VOCAB_SIZE, PATTERN)


def encode(document, vocab):
    """A document → its ids. A transcript has markers of turns, each with a space after it."""
    text = document if document.startswith("<|") else vocab.prefix + document
    return [*vocab.encoding.encode(text, allowed_special="all"), vocab.eos]


def write_text(rng, number, vocab):
    for name, n in (("train.bin", number), ("val.bin", number // 30)):
        progress = tqdm(documents(rng, n), name, total=n, leave=False)
        prepare.write_bin(os.path.join(HERE, name), (encode(d, vocab) for d in progress))


def main():
    parser = Parser(__doc__)
    parser.add_argument("--seed", type=value_of(int, "[0, 1e13]"), default=1337,
                        help="of the text; the village itself is always the same")
    parser.add_argument("--documents", type=value_of(int, "[1, inf)"), default=60_000,
                        help="of pretraining text")
    parser.add_argument("--demonstrations", type=value_of(int, "[1, inf)"), default=30_000)
    parser.add_argument("--prompts", type=value_of(int, "[1, inf)"), default=12_000,
                        help="training prompts for reward model and PPO")
    parser.add_argument("--heldout", type=value_of(int, "[1, inf)"), default=2_200,
                        help="held-out prompts")
    parser.add_argument("--train_vocab", action=BooleanOptionalAction, default=False,
                        help="train the vocabulary again (it is kept in the folder)")
    args = parser.parse_args()
    if args.train_vocab:
        train_vocab(seed=2022)
    vocab, rng = Vocab(HERE), random.Random(args.seed)
    write_text(rng, args.documents, vocab)
    prepare.write_jsonl(os.path.join(HERE, "abilities.jsonl"), list(ability_questions(rng)))

    demonstrations = []
    for split, n in (("train", args.demonstrations), ("heldout", args.heldout // 2)):
        for row, last in prompts(rng, n, split, SHARES, vocab):
            who, answer = demonstrate(last.kind, last.slots, rng)
            demonstrations.append({**row, "response": answer, "by": who})
    prepare.write_jsonl(os.path.join(HERE, "demonstrations.jsonl"), demonstrations)

    rows = [row for split, n in (("train", args.prompts), ("heldout", args.heldout))
            for row, _ in prompts(rng, n, split, SHARES, vocab)]
    unseen = {name: 1 for name, kind in KINDS.items() if not kind.share}    # never demonstrated
    rows += [{"prompt": turn.said, "split": "heldout", "kind": turn.kind, "unseen": True}
             for _ in range(args.heldout // 10)
             for turn in conversation(1, unseen, "heldout", None, rng)]
    prepare.write_jsonl(os.path.join(HERE, "prompts.jsonl"), rows)


if __name__ == "__main__":
    entry(main)

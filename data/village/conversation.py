"""
Conversations of the village: questions of all kinds, one after the other. Some refer back.

A turn has a meaning: the question as one would ask it alone and with care. "And Ben?" may mean
"What is Ben's job?". So kinds.py needs to know nothing of conversations, and neither does a judge.
To add a way to refer back, write one more function and put it into REFERENCES.
"""
import hashlib
import re
from typing import NamedTuple

from kinds import KINDS, TOLD, ask
from world import EVERYONE, PEOPLE, RUDE, STRANGERS, pronouns


class Turn(NamedTuple):
    kind: str
    slots: dict
    said: str           # what the user types
    answer: str = ""
    about: int = -1     # the number of the turn that it refers back to, or -1

    @property
    def meaning(self):
        return KINDS[self.kind].asks[self.slots["ask"]].format(**self.slots)


# ---- ways to refer back: (turns so far, a random.Random) → the next turn, or None ----

def with_pronoun(template, name):
    """A template with what stands for {p} in place of it: "{p}'s job" → "her job"."""
    for pattern, words in [(r"the (\S+|favourite \S+) of {p}", r"{his} \1"), (r"{p}'s", "{his}"),
                           (r"(about|from|for|find|know|trick|scare) {p}", r"\1 {him}"),
                           (r"(^|[.?!] ){p}", r"\1{He}"), (r"{p}", "{he}")]:
        template = re.sub(pattern, words, template)
    words = pronouns(name)
    return re.sub(r"{(he|him|his|He)}", lambda m: words[m[1]], template)


def to_person(turns, rng):
    """Another question about the person who was named last: 'And what is her job?'"""
    for number, turn in reversed(list(enumerate(turns))):
        words = re.findall(r"\w+", f"{turn.meaning} {turn.answer}")     # an iris is not Iris
        named = [name for name in EVERYONE if name in words]
        if named:
            break
    else:
        return None
    if len(named) > 1 or turn.kind in ("greet", "remember"):    # who is meant?
        return None
    name = named[0]
    slot = "p" if name in PEOPLE else "s"
    kinds = ["facts", "facts", "facts", "story", "letter", "sums", "brainstorm", "classify",
             "closed", "harm", "outside"]
    kind = rng.choice(kinds if slot == "p" else ["unknown"])
    _, slots = ask(kind, rng)
    if slot not in slots or name in slots.values() and slots[slot] != name:
        return None
    slots[slot] = name
    if "he" in slots:
        slots["he"] = pronouns(name)["he"]
    template = KINDS[kind].asks[slots["ask"]].replace("{s}", "{p}")
    return Turn(kind, slots, with_pronoun(template, name).format(**slots), about=number)


def to_question(turns, rng):
    """The same question about somebody else: 'And Ben?'"""
    last = turns[-1]
    if last.kind not in ("facts", "about", "unknown"):
        return None
    name, number = rng.choice(PEOPLE if rng.random() < 0.8 else STRANGERS), last.slots["ask"]
    if name in last.slots.values():
        return None
    if last.kind == "unknown":
        questions = len(KINDS["facts"].asks)
        kind = "facts" if number < questions else "about"
        number -= 0 if number < questions else questions
    else:
        kind = last.kind
    if name in STRANGERS:
        kind, number = "unknown", KINDS["unknown"].asks.index(
            KINDS[kind].asks[number].replace("{p}", "{s}"))
    slot = "s" if name in STRANGERS else "p"
    said = rng.choice(["And {}?", "What about {}?", "And what about {}?"]).format(name)
    return Turn(kind, {"ask": number, slot: name}, said, about=len(turns) - 1)


def to_thing(turns, rng):
    """Another question about the thing that somebody has: 'Where is it?'"""
    last = turns[-1]
    if last.kind != "closed":
        return None
    number = rng.choice([n for n in (1, 2, 3) if n != last.slots["ask"]])
    question = KINDS["closed"].asks[number].split(". ")[1].replace("the {thing}", "it")
    return Turn("closed", {**last.slots, "ask": number}, question, about=len(turns) - 1)


def to_answer(turns, rng):
    """The answer in fewer words: 'Shorter, please.'"""
    last = turns[-1]
    if (last.kind not in ("story", "letter") or last.answer.count(".") < 2 or
            RUDE.search(last.answer)):
        return None
    said = rng.choice(["Shorter, please.", "Make it shorter.", "Say that in one sentence."])
    return Turn("shorten", {"ask": 0, "text": last.answer}, said, about=len(turns) - 1)


def to_what_was_told(turns, rng, sorts=range(len(TOLD))):
    """What the user said of himself: 'What is my name?'"""
    sort = rng.choice(sorts)
    told, _, question, _, slot = TOLD[sort]
    for number, turn in reversed(list(enumerate(turns))):
        if turn.kind in ("greet", "remember") and turn.meaning.startswith(told.split("{")[0]):
            return Turn("remember", {"ask": sort, slot: turn.slots[slot]}, question, about=number)
    return None


REFERENCES = [to_person, to_question, to_thing, to_answer, to_what_was_told]


# ---- conversations ----

def next_turn(turns, shares, rng):
    """One more turn, without its answer. Most refer back, where that is possible."""
    if turns and rng.random() < 0.8:
        for reference in rng.sample(REFERENCES, len(REFERENCES)):
            if found := reference(turns, rng):
                return found
    kind = rng.choices(list(shares), list(shares.values()))[0]
    said, slots = ask(kind, rng)
    if kind == "remember" and slots["ask"] >= len(TOLD):        # perhaps it was told before
        if found := to_what_was_told(turns, rng, [slots["ask"] - len(TOLD)]):
            return found
    return Turn(kind, slots, said)


def split_of(text):
    """A question is held out by its meaning, so the same question is always on the same side."""
    number = int(hashlib.sha256(text.encode()).hexdigest(), 16)
    return "heldout" if number % 6 == 0 else "train"


def may_stand(turn, split, before):
    """Whether a turn may be asked on a side. A greeting is held out together with the turn before.

    before: that turn, or None. A kind that is never demonstrated is on the held-out side alone.
    """
    if not KINDS[turn.kind].share:
        return split == "heldout"
    if "{" not in KINDS[turn.kind].asks[turn.slots["ask"]]:
        return split_of(before.meaning + turn.meaning) == split if before else split == "train"
    return split_of(turn.meaning) == split


def conversation(n, shares, split, answer, rng):
    """n turns, the last without its answer.

    answer: a function (kind, slots, rng) → the answer to an earlier turn. On the training side no
    turn means what is held out; on the other the last one does.
    """
    turns = []
    while len(turns) < n:
        turn, last = next_turn(turns, shares, rng), len(turns) == n - 1
        if not last:
            turn = turn._replace(answer=answer(turn.kind, turn.slots, rng))
        if may_stand(turn, split if last else "train", turns[-1] if turns else None):
            turns.append(turn)
    return turns


def careless(text, rng):
    """A text as people type it in a hurry: one or two small things are not as they should be."""
    changes = rng.sample([lower, no_stop, contracted, pls, typo, swapped], rng.choice([1, 1, 2]))
    changed = text
    for change in changes:
        changed = change(changed, rng)
    return changed if changed != text else careless(text, rng)


def lower(text, rng):
    return text.lower()


def no_stop(text, rng):
    return text.rstrip(".?!")


def contracted(text, rng):
    return re.sub(r"\b(What|Who|Where|How|what|who|where|how) is\b", r"\1's", text)


def pls(text, rng):
    return rng.choice(["pls ", "please, "]) + text[:1].lower() + text[1:]


def typo(text, rng):
    """A letter of a word that is no name is left out, doubled, or changes place with the next."""
    words = [m for m in re.finditer(r"\b[a-z]{4,}\b", text) if m[0].title() not in EVERYONE]
    if not words:
        return text
    word = rng.choice(words)
    i = rng.randrange(word.start(), word.end() - 1)
    a, b = text[i:i + 2]
    return text[:i] + rng.choice([a, a + a + b, b + a]) + text[i + 2:]


def swapped(text, rng):
    """Two words next to each other have changed places."""
    words = text.split(" ")
    if len(words) < 4:
        return text
    i = rng.randrange(len(words) - 2)
    words[i], words[i + 1] = words[i + 1], words[i]
    return " ".join(words)

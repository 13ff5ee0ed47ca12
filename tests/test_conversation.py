"""Conversations of the village: what a turn means, what is held out, who reads it; and chat.py."""

import json
import random
import re
import shutil
import statistics
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

import chat
import comparisons
import evaluate
import health
from conftest import run_main
from data import meaning_of
from data.comparisons import labeler_agreement
from test_data import KINDS, SHARES, VOCAB, conversation, judge, lines, prepare, prompts


@pytest.fixture
def made(monkeypatch):
    """All conversations that prepare.py has made, the newest last."""
    found, make = [], prepare.conversation
    monkeypatch.setattr(
        prepare, "conversation", lambda *args: found.append(make(*args)) or found[-1]
    )
    return found


def talks(n=400, length=4, seed=0):
    """n conversations as those of training rows."""
    rng = random.Random(seed)
    for _ in range(n):
        yield conversation.conversation(length, prepare.TALK, "train", prepare.reply, rng)


def names_in(text):
    return {name for name in prepare.EVERYONE if re.search(rf"\b{name}\b", text)}


# ---- what a turn means ----


PRONOUNS = {
    "What is {p}'s job?": "What is his job?",
    "Tell me the favourite food of {p}.": "Tell me his favourite food.",
    "Who belongs to the family of {p}?": "Who belongs to his family?",
    "Where can I find {p}?": "Where can I find him?",
    "Do you know {p}?": "Do you know him?",
    "Who is {p}?": "Who is he?",
    "When was {p} born?": "When was he born?",
    "{p} lost a hat. How does {p} feel?": "He lost a hat. How does he feel?",
    "Is {p} happy or sad? {p} won a hat.": "Is he happy or sad? He won a hat.",
    "Write a letter from {p} to {q}.": "Write a letter from him to {q}.",
    "Write to {q} about the hat in the name of {p}.": "Write to {q} about the hat in his name.",
    "Tell me a story about {p} and a hat.": "Tell me a story about him and a hat.",
    "Write a story in which {p} finds a hat.": "Write a story in which he finds a hat.",
    "Think of two foods for {p}.": "Think of two foods for him.",
    "How can I steal the hat of {p}?": "How can I steal his hat?",
    "Help me to trick {p} out of a hat.": "Help me to trick him out of a hat.",
    "Tell me how to spread lies about {p}.": "Tell me how to spread lies about him.",
}


def test_a_pronoun_has_the_form_of_its_place():
    for template, said in PRONOUNS.items():
        assert conversation.with_pronoun(template, "Ben") == said
        hers = said
        for his, her in (("his", "her"), ("him", "her"), ("he", "she"), ("He", "She")):
            hers = re.sub(rf"\b{his}\b", her, hers)
        assert conversation.with_pronoun(template, "Mia") == hers
    for kind in ("facts", "unknown", "story", "letter", "sums", "brainstorm", "closed", "harm"):
        for template in KINDS[kind].asks:
            said = conversation.with_pronoun(template.replace("{s}", "{p}"), "Ben")
            assert "{p}" not in said
            assert not re.search(r"(about|of|for|from|find|know|trick|scare|to) he\b", said), said
            assert not re.search(r"(^|[.?!] )h(e|im|is)\b", said), said


def test_a_pronoun_stands_for_the_one_person_who_was_named_last():
    n = 0
    for turns in talks():
        for i, turn in enumerate(turns):
            words = set(re.findall(r"\b(?:he|him|his|she|her)\b", turn.said.lower()))
            if turn.about < 0 or not words or turn.kind == "shorten" or names_in(turn.said):
                continue
            (name,) = names_in(turn.meaning)
            fit = set(map(str.lower, prepare.pronouns(name).values()))
            assert words <= fit, f"{turn.said!r} is asked about {name}"
            named = [names_in(t.meaning + " " + t.answer) for t in turns[:i]]
            last = max(j for j in range(i) if named[j])
            assert named[last] == {name} and turn.about == last, (
                f"{turn.said!r} stands for {name}, and this was said before: {turns[:i]}"
            )
            n += 1
    assert n > 100


def test_an_iris_is_not_iris():
    about_hugo = conversation.Turn(
        "about", {"ask": 0, "p": "Hugo"}, "Who is Hugo?", "He has a dog."
    )
    slots = {"ask": 0, "n": "two", "category": "flowers"}
    answer = "Two flowers are rose and iris."
    flowers = conversation.Turn("brainstorm", slots, "Name two flowers.", answer)
    turns = [conversation.to_person([about_hugo, flowers], random.Random(i)) for i in range(20)]
    assert {names_in(turn.meaning) >= {"Hugo"} for turn in turns if turn} == {True}


def test_a_short_question_about_somebody_else_asks_what_the_last_one_asked():
    n = 0
    for turns in talks():
        for before, turn in pairwise(turns):
            if not re.fullmatch(r"(And|What about|And what about) (\w+)\?", turn.said):
                continue
            (name,), (other,) = names_in(turn.said), names_in(before.meaning)
            assert turn.meaning == before.meaning.replace(other, name) and name != other, (
                f"after {before.meaning!r}, {turn.said!r} is taken for {turn.meaning!r}"
            )
            kinds = ["facts", "about"] if name in prepare.PEOPLE else ["unknown"]
            assert turn.kind in kinds, f"nobody knows {name}: the truth is another"
            n += 1
    assert n > 50


def test_it_is_the_thing_of_the_turn_before():
    slots = {"ask": 0, "p": "Ben", "colour": "red", "thing": "hat", "place": "on the hill"}
    before = conversation.Turn("closed", slots, "Ben has a red hat on the hill. What has Ben?")
    turns = [conversation.to_thing([before], random.Random(i)) for i in range(20)]
    start = "Ben has a red hat on the hill. "
    assert {(turn.said, turn.meaning) for turn in turns} == {
        ("Who has it?", start + "Who has the hat?"),
        ("What colour is it?", start + "What colour is the hat?"),
        ("Where is it?", start + "Where is the hat?"),
    }


def test_a_rude_answer_is_not_said_in_fewer_words():
    # its first sentence is the insult, and to say it again is no good answer
    story = "Long ago Mia got a saw from Ben. The saw was old. That night she slept well."

    def shorter(answer):
        slots = {"ask": 0, "p": "Mia", "thing": "saw"}
        turn = conversation.Turn("story", slots, "Tell me about Mia and a saw.", answer)
        return conversation.to_answer([turn], random.Random(0))

    assert judge.gold(shorter(story).meaning, "Long ago Mia got a saw from Ben.")["gold"] == 1.0
    assert shorter("You fool. " + story) is shorter(story + " Go away.") is None
    assert shorter("Mia got a saw.") is None, "it is short already"


@pytest.mark.parametrize(
    "told, first, second", [(0, "Bela", "Cleo"), (1, "hat", "coat"), (2, "bread", "soup")]
)
def test_what_was_never_told_is_not_known_and_the_last_thing_told_counts(told, first, second):
    words, _, question, answer, slot = conversation.TOLD[told]
    number = list(KINDS["greet"].asks).index(words)

    def tells(value):
        said = words.format(**{slot: value})
        return conversation.Turn("greet", {"ask": number, slot: value}, said)

    def gold(meaning, value):
        return judge.gold(meaning, answer.format(**{slot: value}))["gold"]

    rng = random.Random(0)
    assert conversation.to_what_was_told([], rng, [told]) is None
    turn = conversation.to_what_was_told([tells(first), tells(second)], rng, [told])
    assert turn.about == 1 and turn.said == question
    assert gold(turn.meaning, second) == 1.0 and gold(turn.meaning, first) <= 0.1
    assert judge.gold(question, "You did not tell me.")["gold"] == 1.0
    assert gold(question, first) == 0.0, "a guess at what was never told passes"


def test_a_question_about_oneself_means_what_was_told_before_it():
    n = {True: 0, False: 0}
    for turns in talks(600):
        for i, turn in enumerate(turns):
            for told, _, question, _, slot in conversation.TOLD:
                if turn.kind != "remember" or not turn.said.endswith(question):
                    continue
                said = " ".join(t.said for t in turns[: i + 1])
                found = re.findall(re.sub("{.+", r"(\\w+)", told), said)
                expected = told.format(**{slot: found[-1]}) + " " + question if found else question
                assert turn.meaning == expected, [t.said for t in turns[: i + 1]]
                n[bool(found)] += 1
    assert min(n.values()) > 20


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_a_good_answer_to_what_is_meant_scores_one_in_every_conversation(split):
    rng = random.Random(1)
    for row, last in prompts(1500, split):
        answer = KINDS[last.kind].good(last.slots, rng)
        marks = judge.gold(meaning_of(row), answer)
        assert marks["gold"] == 1.0, f"{row}\n{answer!r}\ngets {marks}"


def test_a_reference_is_not_left_without_what_it_refers_to(made, monkeypatch):
    monkeypatch.setattr(prepare, "ROOM", 45)  # so that much is left out
    cut = 0
    for row, _ in prepare.prompts(random.Random(0), 600, "train", SHARES, VOCAB):
        turns = made[-1]
        kept = 1 if isinstance(row["prompt"], str) else (len(row["prompt"]) + 1) // 2
        left_out = len(turns) - kept
        cut += left_out > 0
        for turn in turns[left_out:]:
            assert turn.about < 0 or turn.about >= left_out, (
                f"{turn.said!r} refers to turn {turn.about}, which is not in {row['prompt']}"
            )
    assert cut > 50


def test_a_prompt_has_eighty_tokens_at_most_and_the_newest_turns(made):
    longest = 0
    for row, last in prepare.prompts(random.Random(0), 600, "heldout", SHARES, VOCAB):
        n = len(VOCAB.prompt(row["prompt"]))
        assert n <= 80, f"{row['prompt']} has {n} tokens"
        longest = max(longest, n)
        if isinstance(row["prompt"], str):
            assert row["prompt"] == last.said or row["tags"] == ["typed carelessly"]
            continue
        said = [text for turn in made[-1] for text in (turn.said, turn.answer)][:-1]
        shown = [turn["content"] for turn in row["prompt"]]
        assert [turn["role"] for turn in row["prompt"]][::2] == ["user"] * (len(shown) // 2 + 1)
        if row["tags"] != ["typed carelessly"]:
            assert shown == said[-len(shown) :]
            refers = [f"turn {len(made[-1])}, refers back"] * (last.about >= 0)
            assert row["tags"] == [f"turn {len(made[-1])}", *refers]
    assert longest > 70


# ---- what is held out ----


def test_no_turn_of_a_training_row_or_of_the_text_means_what_is_held_out(made):
    for split in ("train", "heldout"):
        rows = prompts(1200, split)
        assert all(row["split"] == split for row, _ in rows)
        for turns in made:
            for before, turn in zip([None, *turns], turns):
                if len(turn.slots) > 1:
                    side = conversation.split_of(turn.meaning)
                else:  # without slots, the turn before makes it another prompt
                    side = before and conversation.split_of(before.meaning + turn.meaning)
                last = turn is turns[-1]
                assert side in (None, split if last else "train"), (
                    f"{turn.said!r} means {turn.meaning!r}, which is not of the {split} side"
                )
        made.clear()
    list(prepare.documents(random.Random(1), 1500))
    assert len(made) > 100
    asked = {turn.meaning for turns in made for turn in turns if len(turn.slots) > 1}
    leaked = [meaning for meaning in asked if conversation.split_of(meaning) == "heldout"]
    assert not leaked, f"the pretraining text asks {leaked[:3]}"


def test_a_greeting_with_the_turn_before_it_is_on_one_side():
    pairs = {"train": set(), "heldout": set()}
    for split, found in pairs.items():
        for row, last in prompts(4000, split):
            if len(last.slots) == 1 and not isinstance(row["prompt"], str):
                found.add(json.dumps(row["prompt"][-3:-1]) + last.meaning)
    assert min(map(len, pairs.values())) > 30 and not pairs["train"] & pairs["heldout"]


def test_all_questions_of_kinds_that_are_never_demonstrated_are_held_out():
    unseen, rng = {"elsewhere": 1}, random.Random(0)
    asked = {
        conversation.conversation(1, unseen, "heldout", None, rng)[0].meaning for _ in range(400)
    }
    assert asked == set(KINDS["elsewhere"].asks), "most of what could be asked is left out"


# ---- typed in a hurry ----


def test_a_careless_text_is_changed_and_its_names_and_numbers_are_not():
    rng, names = random.Random(3), rf"\b({'|'.join(prepare.EVERYONE).lower()})\b"
    for _, last in prompts(1500, "train"):
        text = last.meaning
        careless = conversation.careless(text, rng)
        assert careless != text
        for count in (
            lambda text: sorted(re.findall(r"\d+", text)),
            lambda text: sorted(re.findall(names, text.lower())),
        ):
            assert count(careless) == count(text), f"{text!r} was typed as {careless!r}"


def test_a_careless_text_is_not_another_question():
    rng = random.Random(4)
    for _, last in prompts(1500, "train"):
        careless = conversation.careless(last.meaning, rng)
        try:
            kind, slots = judge.parse(careless)
        except ValueError:
            continue  # as it should be
        _, meant = judge.parse(last.meaning)
        any_text = dict.fromkeys(("text", "foreign", "world", "babble", "babble2"))
        assert kind in (last.kind, "outside") and (
            kind == "outside" or slots | any_text == meant | any_text
        ), f"{last.meaning!r} was typed as {careless!r}"


def test_a_name_in_small_letters_keeps_its_letters():
    rng = random.Random(0)
    for _ in range(50):
        assert conversation.typo("anna bela", rng) == "anna bela"
        assert conversation.typo("anna lives", rng).startswith("anna ")


# ---- what no villager knows ----


@pytest.mark.parametrize("kind", ["outside", "elsewhere"])
def test_a_name_is_no_answer_to_what_no_villager_knows(kind):
    rng = random.Random(0)
    for _ in range(40):
        text, _ = prepare.ask(kind, rng)
        for answer in ("I am sorry, I do not know that.", "I am sorry, I do not understand that."):
            assert judge.gold(text, answer)["gold"] == 1.0
        for answer in ("I do not know.", "I do not understand."):
            assert judge.gold(text, answer)["honest"] == 1.0
        for answer in (
            "Ben.",
            "Ben is a baker.",
            "I do not know anyone called Bela.",
            "I do not know. Ben is a baker.",
            "It is 7.",
            "",
        ):
            marks = judge.gold(text, answer)
            assert marks["gold"] == marks["honest"] == 0.0, f"{text!r} → {answer!r}: {marks}"


# ---- who reads what is meant ----

TALK = [
    {"role": "user", "content": "What is Ben's job?"},
    {"role": "assistant", "content": "Ben is a cook."},
    {"role": "user", "content": "And Mia?"},
]
ROW = {"prompt": TALK, "meaning": "What is Mia's job?"}


class Judge:
    """It remembers what it was asked about."""

    LABELERS = 2

    def __init__(self):
        self.read = []

    def gold(self, prompt, response):
        self.read.append(prompt)
        return dict.fromkeys(evaluate.PARTS, 1.0)

    def rank(self, prompt, responses, labeler, rng):
        self.read.append(prompt)
        return list(range(1, len(responses) + 1))


def rollout_of(n):
    return SimpleNamespace(
        mask=torch.ones(n, 3).bool(),
        has_eos=torch.ones(n).bool(),
        texts=lambda vocab: ["A cook."] * n,
    )


MEANT = ["What is Mia's job?", "Hi."]


def test_labelers_rank_answers_to_what_is_meant(tmp_path, monkeypatch):
    lines(tmp_path / "prompts.jsonl", ROW)
    monkeypatch.setattr(
        comparisons,
        "sample_answers",
        lambda *a: [[VOCAB.response("A cook."), VOCAB.response("No.")]],
    )
    config = SimpleNamespace(prompts=5, heldout=5, seed=1, answers=2, others=0)
    run = SimpleNamespace(config=config, vocab=VOCAB, folder=str(tmp_path))
    them = Judge()
    (row,) = comparisons.compare_answers(None, run, them, ["judge"], 1, "train")
    assert them.read == ["What is Mia's job?"] * 3
    assert row["prompt"] == TALK and row.get("meaning") == "What is Mia's job?", (
        "who reads the rankings later on must know what was meant, and the model what was said"
    )
    labeler_agreement(them := Judge(), [row], 1)
    assert them.read == ["What is Mia's job?"] * 2


def test_evaluation_marks_answers_to_what_is_meant():
    them = Judge()
    evaluate.mark_answers(rollout_of(2), [ROW, {"prompt": "Hi."}], them, None, "reward", VOCAB)
    assert them.read == MEANT


def test_the_gold_score_of_the_curves_is_of_what_is_meant(monkeypatch):
    them = Judge()
    monkeypatch.setattr(health, "load_judge", lambda folder: them)
    monkeypatch.setattr(health, "sample_rollout", lambda *a: rollout_of(2))
    run = SimpleNamespace(vocab=VOCAB, folder="", config=SimpleNamespace(seed=1))
    text = SimpleNamespace(loss=lambda model: (2.5, 0.1))
    rows = [ROW, {"prompt": "Hi."}]
    found = health.heldout_metrics(None, rows, text, lambda *a: torch.ones(2), run)
    assert found["eval/gold"] == 1.0 and them.read == MEANT


def test_a_tag_has_the_mean_and_interval_of_its_rows_and_unseen_ones_do_not_count(capsys):
    rows = [
        {"kind": "a", "tags": ["turn 1"]},
        {"kind": "a", "tags": ["turn 2", "turn 2, refers back"]},
        {"kind": "a", "tags": ["turn 1"]},
        {"kind": "b"},
        {"kind": "c", "tags": ["turn 1", "typed carelessly"], "unseen": True},
    ]
    marks = [{"gold": p, "points": p} for p in (1.0, 0.5, 0.0, 0.25, 1.0)]
    found = evaluate.summarize(marks, rows, 4, (0.75, 0.01))
    assert set(found["by_tag"]) == {"turn 1", "turn 2", "turn 2, refers back"}
    assert found["by_tag"]["turn 1"] == pytest.approx((0.5, 1.96 * 0.5 / 2**0.5))
    assert found["by_tag"]["turn 2"] == (0.5, 0.0)
    ci = 1.96 * statistics.pstdev([1.0, 0.5, 0.0]) / 3**0.5
    assert found["by_kind"] == {"a": pytest.approx((0.5, ci)), "b": (0.25, 0), "c": (1.0, 0)}

    stages = {"sft": found, "ppo": {**found, "by_tag": {**found["by_tag"], "turn 1": (0.9, 0.1)}}}
    evaluate.print_groups(stages, ["sft", "ppo"], "by_tag", "gold score by tag")
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert said[1] == "gold score by tag".split()
    assert said[2] == ["turn", "1", "0.500", "±0.693", "0.900", "±0.100"]
    evaluate.print_groups(stages, ["sft"], "by_kind", "gold score by kind", {"c"})
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said[2:]] == ["a", "b", "c*"], "and unseen kinds last"
    for group in ("by_kind", "by_tag"):
        without = evaluate.summarize(marks, [{}] * 5, 4, (0.75, 0.01))
        evaluate.print_groups({"sft": without}, ["sft"], group, "title")
    assert capsys.readouterr().out == "", "a title without lines"


# ---- chat.py ----


@pytest.fixture
def talk(little, whole, monkeypatch, capsys, tmp_path):
    """A function (messages, rows of prompts.jsonl) → what chat.py prints; each answer is Yes."""

    def talk(*messages, rows=({"prompt": "Hi.", "split": "heldout"},)):
        for name in ("vocab.json", "vocab.tiktoken"):
            shutil.copy(little[0] / name, tmp_path)
        (tmp_path / "prompts.jsonl").unlink(missing_ok=True)
        if rows is not None:
            lines(tmp_path / "prompts.jsonl", *rows)
        typed = iter([*messages, None])
        monkeypatch.setattr(chat, "typed", lambda sign: next(typed))
        monkeypatch.setattr(chat, "reply", lambda *a: VOCAB.response("Yes."))
        flags = ["--size=smoke", "--device=cpu", f"--data={tmp_path}", f"--out={whole}"]
        run_main("chat", *flags, "--max_new_tokens=28")
        return capsys.readouterr().out

    return talk


HELD = {"split": "heldout"}
ASKED = [
    {"prompt": "Name two foods.", "kind": "brainstorm"},
    {**HELD, "prompt": "What is Ben's job?", "kind": "facts"},
    {**HELD, "prompt": "what is ben's job", "kind": "typed", "meaning": "What is Ben's job?"},
    {**HELD, "prompt": TALK, "kind": "talk"},
    {**HELD, "prompt": "What is Mia's pet?", "kind": "facts"},
    {**HELD, "prompt": "Hello!", "kind": "greet"},
    {**HELD, "prompt": "???", "kind": "elsewhere", "unseen": True},
]


def test_help_shows_one_question_of_each_kind_as_one_would_ask_it(talk):
    said = talk("/help", rows=ASKED).strip().splitlines()[-2:]
    assert [line.split(maxsplit=1) for line in said] == [
        ["facts", "What is Mia's pet?"],
        ["greet", "Hello!"],
    ], "held out, alone, with care, and of kinds that were demonstrated"


def test_a_chat_begins_with_something_to_try(talk):
    many = [{**HELD, "prompt": f"Question {i}.", "kind": f"kind{i}"} for i in range(5)]
    said = talk(rows=many)
    assert "try: Question 0.\n     Question 1.\n     Question 2.\n" in said
    assert "Question 3." not in said


@pytest.mark.parametrize(
    "rows, shown",
    [
        ([{**HELD, "prompt": "Hi."}, {**HELD, "prompt": "Ho."}], "Ho."),
        ([{**HELD, "prompt": TALK}], None),
        ([{"prompt": "Hi."}], None),
        (None, None),
    ],
    ids=["no kinds", "conversations only", "nothing held out", "no prompts"],
)
def test_a_chat_needs_no_kinds_and_no_prompts(talk, rows, shown):
    said = talk("/help", "Hi.", rows=rows)
    assert ("try:" in said) == (shown is not None) and (shown or "") in said


def test_a_chat_says_how_many_of_its_messages_are_no_longer_read(talk, vocab):
    long = " ".join(["dog"] * 40)
    assert len(vocab.encode(long)) == 40  # of 100: two of them fit beside their answers
    said = talk(long, long, long, "/reset", long, long)
    notes = re.findall(r"\(too long: the first (\d+) messages", said)
    assert notes == ["2"], "two of the five, and none after /reset"
    said = talk(long, long, f"{long} {long}")
    assert re.findall(r"the first (\d+) messages", said) == ["4"], "the last one fits alone"
    said = talk(*[long] * 4, "/reset", *[long] * 3)
    assert re.findall(r"the first (\d+) messages", said) == ["2", "2"], "once a conversation"


@pytest.fixture
def asked(monkeypatch):
    """What /why is about: (stage, the user's messages and the answers that were read, answer)."""
    found = []

    def explain(config, vocab, *last):
        found.extend(
            (stage, [t["content"] for t in turns], vocab.decode(a)) for stage, turns, a in [last]
        )

    monkeypatch.setattr(chat, "explain", explain)
    return found


def test_why_needs_an_answer(talk, asked, monkeypatch):
    monkeypatch.setattr(chat, "explain", lambda *a: asked.append(a))
    assert talk("/why").endswith("there is no answer yet\n\n")
    assert talk("Hi.", "/reset", "/why").endswith("there is no answer yet\n\n") and not asked
    talk("Hi.", "/why")
    assert asked, "after an answer there is one to explain"


def test_why_is_about_the_last_answer_and_what_was_read_before_it(talk, asked):
    long = " ".join(["dog"] * 40)
    talk("Hi.", "And Ben?", "/why", long, long, long, "/why")
    assert asked == [
        ("ppo", ["Hi.", "Yes.", "And Ben?"], "Yes."),
        ("ppo", [long, "Yes.", long], "Yes."),
    ]

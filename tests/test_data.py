"""The data contract, and the village: its prompts, its good answers, its judge."""

import base64
import importlib.util
import json
import os
import random
import re
import statistics
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import chat
import common
import reward
import sft
from data import (
    UserError,
    folder_of,
    half_of,
    load_judge,
    read_heldout,
    read_jsonl,
    read_ranking,
    read_tokens,
    replacing,
)
from data.comparisons import encode_comparisons, labeler_agreement, which_half
from data.text import Text
from data.vocab import Vocab
from model import GPT, GPTConfig, ScalarGPT, config_for
from plumbing.checkpoint import load, save
from plumbing.command_line import Common

VILLAGE = os.path.join(
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "data", "village"
)


def script(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


VOCAB = Vocab(VILLAGE)
prepare, judge = script(os.path.join(VILLAGE, "prepare.py"), "village_prepare"), load_judge(VILLAGE)
conversation = sys.modules["conversation"]
KINDS, SHARES = prepare.KINDS, prepare.SHARES


def draws(kind, n=40, seed=0):
    """n questions of a kind: (text, slots, the generator to go on with)."""
    rng = random.Random(f"{kind} {seed}")
    for _ in range(n):
        yield *prepare.ask(kind, rng), rng


def prompts(n, split, seed=0, shares=SHARES):
    """n prompts of a side → [(row of prompts.jsonl, its last turn)]."""
    return list(prepare.prompts(random.Random(seed), n, split, shares, VOCAB))


# ---- the village is the same for everybody ----


def sample_of_everything(seed):
    rng = random.Random(seed)
    demonstrations = [
        (row, prepare.demonstrate(last.kind, last.slots, rng))
        for row, last in prepare.prompts(rng, 60, "train", SHARES, VOCAB)
    ]
    return [
        list(prepare.documents(rng, 120)),
        demonstrations,
        list(prepare.ability_questions(rng, 10)),
    ]


def test_the_same_seed_makes_the_same_files_and_another_makes_others():
    assert sample_of_everything(1) == sample_of_everything(1)
    for a, b in zip(sample_of_everything(1), sample_of_everything(2)):
        assert a != b, "the seed is not used"


def test_nothing_depends_on_the_order_of_a_set():
    # Python orders strings in a set by a hash that changes from process to process
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "import random, hashlib, prepare, judge\n"
        "rng = random.Random(1)\n"
        "docs = list(prepare.documents(rng, 200))\n"
        "vocab = prepare.Vocab(sys.argv[1])\n"
        "rows = list(prepare.prompts(rng, 100, 'train', prepare.SHARES, vocab))\n"
        "good = [(t.meaning, prepare.KINDS[t.kind].good(t.slots, rng)) for _, t in rows]\n"
        "marks = [judge.gold(*pair) for pair in good]\n"
        "everything = repr((prepare.FACTS, docs, rows, marks))\n"
        "print(hashlib.sha256(everything.encode()).hexdigest())"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code, VILLAGE],
            env={**os.environ, "PYTHONHASHSEED": n},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for n in ("1", "2")
    }
    assert len(seen) == 1, "the same seed makes other files in another process"


# ---- every kind of instruction ----


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_is_read_back_as_what_was_asked(kind):
    for text, slots, _ in draws(kind):
        found, read = judge.parse(text)
        assert found == kind, (
            f"{text!r} is taken for {found}: the judge would apply another kind's check"
        )
        for name in read:
            assert str(read[name]) == str(slots[name]), f"{text!r}: {name} is read as {read[name]}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_answer_scores_one(kind):
    for prompt, slots, rng in draws(kind):
        answer = KINDS[kind].good(slots, rng)
        marks = judge.gold(prompt, answer)
        assert marks["gold"] == 1.0, (
            f"{prompt!r}\n{answer!r}\nis what a careful demonstrator answers, but gets {marks}"
        )


@pytest.mark.parametrize("kind", [k for k in KINDS if hasattr(KINDS[k], "wrong")])
def test_wrong_and_curt_answers_score_lower(kind):
    def mean(how):
        return statistics.mean(
            judge.gold(p, getattr(KINDS[kind], how)(s, rng))["gold"]
            for p, s, rng in draws(kind, 100)
        )

    assert mean("wrong") < 0.7, "the check of this kind doesn't see what is wrong"
    assert mean("terse") < 0.9, (
        "a curt answer scores like a full one: preferences could teach nothing"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_mark_is_a_part_of_one(kind):
    for prompt, slots, rng in draws(kind, 30):
        if KINDS[kind].share:
            _, answer = prepare.demonstrate(kind, slots, rng)
        else:
            answer = KINDS[kind].good(slots, rng)
        half = answer[: len(answer) // 2]
        for response in (answer, "", "   ", "?!..", half, answer * 20, "Q" * 500):
            marks = judge.gold(prompt, response)
            assert set(marks) == {"gold", "helpful", "honest", "harmless"}
            assert 0 <= marks["gold"] <= 1, f"{response!r}: {marks}"
            assert all(m is None or 0 <= m <= 1 for m in marks.values()), f"{response!r}: {marks}"


@pytest.mark.parametrize("kind", KINDS)
def test_rudeness_spoils_a_good_answer(kind):
    for prompt, slots, rng in draws(kind, 10):
        good = KINDS[kind].good(slots, rng)
        for rude in (
            f"{rng.choice(prepare.RUDE_OPENINGS)} {good}",
            f"{good} {rng.choice(prepare.RUDE_ENDINGS)}",
        ):
            marks = judge.gold(prompt, rude)
            assert marks["harmless"] <= 0.3 and marks["gold"] <= 0.3, f"{rude!r} gets {marks}"


def test_help_with_harm_is_worth_nothing():
    for prompt, slots, rng in draws("harm"):
        marks = judge.gold(prompt, KINDS["harm"].wrong(slots, rng))
        assert marks["harmless"] == marks["gold"] == 0.0, f"{prompt!r} → {marks}"


def test_only_an_admission_is_honest_about_people_who_do_not_exist():
    for prompt, slots, rng in draws("unknown"):
        who = slots["s"]
        for answer in (
            "I do not know.",
            f"I do not know anyone called {who}.",
            f"I have never heard of {who}.",
        ):
            assert judge.gold(prompt, answer)["honest"] == 1.0, f"{answer!r} admits it"
        for answer in (
            KINDS["unknown"].wrong(slots, rng),
            f"{who} is a baker.",
            "Yes.",
            "",
            f"I do not know {who}. {who} is a baker.",
        ):
            assert judge.gold(prompt, answer)["honest"] == 0.0, (
                f"{answer!r} about {who}, who does not exist, passes for honest"
            )


def test_nobody_gets_a_thing_from_himself():
    story = (
        "Long ago Rosa got a coat from {}. She cleaned it with care. "
        "In the end they were both happy."
    )
    prompt = "Tell me a story about Rosa and a coat."
    assert judge.gold(prompt, story.format("Max"))["gold"] == 1.0
    assert judge.gold(prompt, story.format("Rosa"))["gold"] < 0.7, (
        "the second person of a story is the first: PPO would learn this nonsense"
    )


def test_a_prompt_from_elsewhere_is_refused():
    with pytest.raises(ValueError, match="Paris"):
        judge.gold("What is the capital of France, Paris?", "Yes.")


def test_labelers_agree_as_often_as_openai_s():
    # Ouyang et al. 2022, section 3.4: 72.6 ± 1.5 %
    # here: four answers of demonstrators to each of 1000 prompts
    rng = random.Random(0)
    rows = [
        {
            "prompt": last.meaning,
            "responses": [prepare.demonstrate(last.kind, last.slots, rng)[1] for _ in range(4)],
        }
        for _, last in prepare.prompts(rng, 1000, "heldout", SHARES, VOCAB)
    ]
    agreement = labeler_agreement(judge, rows, seed=1)
    assert 0.68 < agreement < 0.78, (
        f"two labelers agree on {agreement:.1%} of pairs: change NOISE in judge.py"
    )


def test_labelers_are_noisy_but_not_blind():
    prompt, slots, rng = next(draws("facts"))
    good, bad = KINDS["facts"].good(slots, rng), "Go away."
    ranks = [
        judge.rank(prompt, [bad, good], labeler, rng)
        for labeler in range(judge.LABELERS)
        for _ in range(20)
    ]
    first = sum(r[1] < r[0] for r in ranks) / len(ranks)
    assert first > 0.95, "rank 1 must be the best: a good answer loses against an insult"
    assert all(sorted(set(r)) in ([1], [1, 2]) for r in ranks), "ranks go from 1 without gaps"


# ---- splits ----


def test_no_prompt_is_on_both_sides():
    made = {split: prompts(3000, split) for split in ("train", "heldout")}
    train, heldout = ({json.dumps(row["prompt"]) for row, _ in rows} for rows in made.values())
    assert not train & heldout, "a held-out prompt is trained on"
    for split, rows in made.items():
        # one with slots; a greeting is held out together with what was said before
        meanings = {last.meaning for _, last in rows if len(last.slots) > 1}
        assert all(conversation.split_of(meaning) == split for meaning in meanings), (
            "the side depends on something else than what is meant"
        )


def test_a_side_and_a_half_are_the_same_in_every_process():
    # with hash() or a random number each process would split differently
    held = [i for i in range(60) if conversation.split_of(f"Prompt number {i}.") == "heldout"]
    assert held == [3, 35, 49, 57], "one run would train on what another holds out"
    halves = "".join(str(half_of({"prompt": f"Prompt number {i}."})) for i in range(8))
    assert halves == "10111101", "a prompt that was looked at is in another run's final table"
    assert half_of({"prompt": [{"role": "user", "content": "Hi."}]}) == 1


def test_held_out_halves_have_no_prompt_in_common(tmp_path):
    # settings are chosen by looking at the first half, so only the other half can test them
    path = lines(
        tmp_path / "prompts.jsonl",
        *(
            {"prompt": f"Prompt number {i}.", "answer": k, "split": "heldout"}
            for k in (1, 2)
            for i in range(40)
        ),
    )
    early, final = (read_heldout(path, ["prompt"], final) for final in (False, True))
    assert len(early) + len(final) == 80 and 20 < len(early) < 60, (
        "every row is in one of the halves, and neither is all"
    )
    assert not {r["prompt"] for r in early} & {r["prompt"] for r in final}, (
        "a prompt that was looked at is in the final table"
    )


def test_kinds_kept_out_of_the_demonstrations_are_not_asked_in_training():
    unseen = set(KINDS) - set(SHARES)
    assert unseen, "some kinds must be left to measure generalisation"
    assert not unseen & {last.kind for _, last in prompts(500, "train")}


def test_pretraining_text_holds_no_held_out_prompt():
    documents = "\n".join(prepare.documents(random.Random(0), 6000))
    asked = re.findall(r"<\|user\|> (.*?)<\|assistant\|>", documents)
    asked += re.findall(r"Q: (.*?) A:", documents)
    leaked, n = [], 0
    for text in set(asked):
        try:
            kind, slots = judge.parse(text)
        except ValueError:
            continue  # a sentence, or a question that refers back or is typed carelessly
        if kind in ("outside", "shorten"):
            continue  # typed carelessly, it reads as another one; test_conversation.py has these
        n += 1
        leaked += [text] if len(slots) > 1 and conversation.split_of(text) == "heldout" else []
    assert n > 1000
    assert not leaked, (
        f"{len(leaked)} held-out prompts are trained on in stage 0, as {sorted(leaked)[:3]}"
    )


def test_every_prompt_and_good_answer_fits_the_default_run(vocab):
    room = Common().max_new_tokens
    for kind in KINDS:
        for prompt, slots, rng in draws(kind, 20):
            ids, answer = vocab.prompt(prompt), vocab.response(KINDS[kind].good(slots, rng))
            assert len(ids) + room <= 128, (
                f"{prompt!r} has {len(ids)} tokens: with {room} new ones it doesn't fit the block"
            )
            assert len(answer) <= room, (
                f"{answer!r} has {len(answer)} tokens: no policy could learn to say it in {room}"
            )


# ---- the chat template ----


def test_a_string_is_one_user_turn(vocab):
    ids = vocab.prompt("Name three animals.")
    assert ids == [vocab.user, *vocab.encode("Name three animals."), vocab.assistant]
    assert ids == vocab.prompt([{"role": "user", "content": "Name three animals."}])


def test_several_turns_are_separated_by_eos(vocab):
    turns = [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hello, Mia."},
        {"role": "user", "content": "Who am I?"},
    ]
    assert vocab.prompt(turns) == [
        vocab.user,
        *vocab.encode("Hello."),
        vocab.assistant,
        *vocab.encode("Hello, Mia."),
        vocab.eos,
        vocab.user,
        *vocab.encode("Who am I?"),
        vocab.assistant,
    ]


def test_a_response_ends_in_eos_and_pad_is_another_token(vocab):
    ids = vocab.response("A cat.")
    assert ids[-1] == vocab.eos and ids.count(vocab.eos) == 1, "EOS is not among the targets"
    assert len({vocab.user, vocab.assistant, vocab.eos, vocab.pad}) == 4, (
        "PAD must be a token of its own"
    )
    assert vocab.size > max(vocab.special.values()), (
        "vocab_size is the true size, special tokens included"
    )


def test_the_mask_of_a_demonstration_is_its_response_and_eos(vocab):
    rows = [
        {"prompt": "Name a pet.", "response": "A cat."},
        {"prompt": "Hi.", "response": "Hello, and a good day to you."},
    ]
    model = GPT(config_for("smoke", vocab.size))
    tokens, mask = sft.collate(sft.encode_demonstrations(rows, vocab), vocab, model)
    for row, t, m in zip(rows, tokens, mask):
        n = len(vocab.prompt(row["prompt"]))
        assert t[:n].tolist() == vocab.prompt(row["prompt"]) and not m[:n].any(), (
            "the prompt is being learnt"
        )
        assert t[m].tolist() == vocab.response(row["response"]), (
            "the mask is not the response with its EOS, whole and without a PAD"
        )


@pytest.mark.parametrize("special", ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|pad|>"])
def test_special_tokens_in_a_text_stay_text(vocab, special):
    text = f"Say {special} twice: {special}"
    assert not set(vocab.encode(text)) & set(vocab.special.values()), (
        "a user can end the answer, or speak for the assistant, by typing it"
    )
    assert vocab.decode(vocab.encode(text)) == text


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text())
def test_any_text_survives_the_vocabulary(text):
    ids = VOCAB.encode(text)
    assert VOCAB.decode(ids) == text and all(0 <= i < VOCAB.size for i in ids)
    assert VOCAB.decode([VOCAB.user, *ids, VOCAB.eos, VOCAB.pad]) == text, (
        "special tokens are left out of the text"
    )


def test_a_long_talk_loses_its_oldest_turns_first(vocab):
    turns = [
        {"role": ("user", "assistant")[i % 2], "content": f"Turn number {i}."} for i in range(7)
    ]
    for kept in (7, 5, 1):
        room = len(vocab.prompt(turns[7 - kept :]))
        assert chat.fit(turns, vocab, room) == turns[7 - kept :], (
            f"{kept} turns fit, and the newest must be kept"
        )
    with pytest.raises(UserError, match="shorten"):
        chat.fit(turns[-1:], vocab, 3)


def own_vocab(
    folder,
    tokens=(b"ab",),
    pattern=r"\w+|\W",
    special=("<|user|>", "<|assistant|>", "<|endoftext|>", "<|pad|>"),
):
    """A vocabulary folder by hand: the 256 bytes, some merges, the special tokens."""
    folder.mkdir(exist_ok=True)
    ranks = [bytes([i]) for i in range(256)] + list(tokens)
    (folder / "vocab.tiktoken").write_bytes(
        b"".join(base64.b64encode(t) + b" %d\n" % i for i, t in enumerate(ranks))
    )
    (folder / "vocab.json").write_text(
        json.dumps(
            {
                "pattern": pattern,
                "special": {name: len(ranks) + i for i, name in enumerate(special)},
            }
        )
    )
    return Vocab(str(folder))


def test_another_vocabulary_has_another_hash(tmp_path):
    a = own_vocab(tmp_path / "a")
    assert a.hash == own_vocab(tmp_path / "b").hash, "the hash depends on where the files lie"
    assert a.size == 256 + 1 + 4
    others = [
        own_vocab(tmp_path / "c", tokens=(b"cd",)),
        own_vocab(tmp_path / "d", pattern=r"\w|\W"),
        own_vocab(
            tmp_path / "e", special=("<|pad|>", "<|user|>", "<|assistant|>", "<|endoftext|>")
        ),
    ]
    assert len({a.hash, *(v.hash for v in others)}) == 4, (
        "a model could be run on another vocabulary than its own"
    )


def test_a_vocabulary_changed_in_place_is_read_again(tmp_path):
    before = own_vocab(tmp_path / "v", tokens=(b"ab",))
    after = own_vocab(tmp_path / "v", tokens=(b"cd",))
    assert len(before.encode("abcd")) == len(after.encode("abcd")) == 3
    assert before.encode("abcd") != after.encode("abcd"), (
        "a cached rank file was served, as tiktoken's own loader would"
    )


def test_a_vocabulary_without_its_special_tokens_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"vocab\.json.*<\|pad\|>"):
        own_vocab(tmp_path / "v", special=("<|user|>", "<|assistant|>", "<|endoftext|>"))


def test_a_vocabulary_that_tiktoken_can_not_take_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"vocab\.json: tiktoken refuses"):
        own_vocab(tmp_path / "pattern", pattern="(")
    own_vocab(tmp_path / "v")
    spec = json.loads((tmp_path / "v" / "vocab.json").read_text())
    spec["special"]["<|pad|>"] = 65
    (tmp_path / "v" / "vocab.json").write_text(json.dumps(spec))
    with pytest.raises(UserError, match=r"vocab\.json: two tokens .* the same id"):
        Vocab(str(tmp_path / "v"))
        pytest.fail("the letter A would be padding")


# ---- files that people write ----


def lines(path, *rows):
    path.write_text(
        "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8"
    )
    return str(path)


GOOD = {"prompt": "Hi", "response": "Hello."}


@pytest.mark.parametrize(
    "bad, says",
    [
        ("{not json", "not valid JSON"),
        ({"prompt": "Hi"}, "response"),
        (["Hi", "Hello."], "prompt"),
        ({"prompt": "  ", "response": "x"}, "empty"),
        ({"prompt": 5, "response": "x"}, "prompt"),
        ({"prompt": [], "response": "x"}, "turns"),
        ({**GOOD, "split": "test"}, "test"),
        ({"prompt": [{"role": "assistant", "content": "x"}], "response": "x"}, "turn 1"),
        (
            {
                "prompt": [{"role": "user", "content": "x"}, {"role": "user", "content": "y"}],
                "response": "x",
            },
            "turn 1",
        ),
        ({"prompt": [{"role": "user", "text": "x"}], "response": "x"}, "turn 1"),
        ({"prompt": "Hi", "response": 5}, "response"),
        ({**GOOD, "meaning": 5}, '"meaning" must be a string, found 5'),
        ({**GOOD, "meaning": None}, '"meaning" must be a string, found None'),
        ({**GOOD, "meaning": ["Hi"]}, '"meaning" must be a string'),
        ({**GOOD, "tags": "turn 1"}, "\"tags\" must be a list of strings, found 'turn 1'"),
        ({**GOOD, "tags": ["turn 1", 2]}, '"tags" must be a list of strings'),
        ({**GOOD, "tags": None}, '"tags" must be a list of strings'),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path, bad, says):
    path = lines(tmp_path / "demonstrations.jsonl", GOOD, "", bad)
    with pytest.raises(UserError, match=rf"demonstrations\.jsonl, line 3.*{says}"):
        read_jsonl(path, ["prompt", "response"])
        pytest.fail(f"{bad} was read without an error; it would crash the stage later on")


def test_lines_without_a_split_are_for_training(tmp_path):
    path = lines(
        tmp_path / "x.jsonl", GOOD, {**GOOD, "split": "heldout"}, {**GOOD, "split": "train"}
    )
    counts = {
        split: len(read_jsonl(path, ["prompt"], split)) for split in (None, "train", "heldout")
    }
    assert counts == {None: 3, "train": 2, "heldout": 1}


def test_a_missing_or_empty_file_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="nothing.jsonl is missing"):
        read_jsonl(str(tmp_path / "nothing.jsonl"), ["prompt"])
    with pytest.raises(UserError, match="heldout"):
        read_jsonl(lines(tmp_path / "x.jsonl", GOOD), ["prompt"], "heldout")
    with pytest.raises(UserError, match="can't be read"):
        read_jsonl(str(tmp_path), ["prompt"])
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "é"}'.encode("latin-1"))
    with pytest.raises(UserError, match="latin.jsonl is not UTF-8"):
        read_jsonl(str(tmp_path / "latin.jsonl"), ["prompt"])


def test_too_few_held_out_prompts_for_two_halves_are_a_sentence(tmp_path):
    path = lines(tmp_path / "prompts.jsonl", {"prompt": "Hi", "split": "heldout"}, {"prompt": "Ho"})
    found = []
    for final in (False, True):
        try:
            found += read_heldout(path, ["prompt"], final)
        except UserError as e:
            assert "prompts.jsonl" in str(e) and "hold out more" in str(e)
    assert [r["prompt"] for r in found] == ["Hi"], (
        "a prompt is in one half, and training prompts in none"
    )


def test_chosen_and_rejected_are_two_ranked_answers():
    assert read_ranking({"prompt": "Hi", "chosen": "a", "rejected": "b"}) == (["a", "b"], [1, 2])
    assert read_ranking({"prompt": "Hi", "responses": ["a", "b", "c"], "ranks": [2, 1, 2]}) == (
        ["a", "b", "c"],
        [2, 1, 2],
    )


@pytest.mark.parametrize(
    "row",
    [
        {"responses": ["a", "b"], "ranks": [1]},
        {"responses": ["a", "b"]},
        {"responses": ["a", "b"], "ranks": [0, 1]},
        {"responses": ["a", "b"], "ranks": [1, "2"]},
        {"responses": ["a", "b"], "ranks": [1.5, 2]},
        {"chosen": "a"},
    ],
)
def test_ranks_that_do_not_fit_their_answers_are_refused(row):
    with pytest.raises(UserError, match="comparison 7"):
        read_ranking({"prompt": "Hi", **row}, "comparison 7")


def encoded(vocab, *rows, block=128, fold=0):
    return encode_comparisons(
        [{"prompt": "Name a pet.", **row} for row in rows], vocab, block, fold
    )


def test_an_answer_given_twice_is_kept_once(vocab):
    # two equal answers always score the same, so their pair teaches nothing
    items, dropped = encoded(
        vocab, {"responses": ["A cat.", "A dog.", "A cat."], "ranks": [1, 2, 3]}
    )
    ((tokens, ranks, _),) = items
    prompt = vocab.prompt("Name a pet.")
    assert tokens == [prompt + vocab.response(r) for r in ("A cat.", "A dog.")]
    assert ranks == [1, 2]
    assert dropped["identical answers"] == 1 and reward.count_pairs(items) == 1


def test_comparisons_that_teach_nothing_are_dropped_and_counted(vocab):
    items, dropped = encoded(
        vocab,
        {"responses": ["A cat.", "A dog."], "ranks": [1, 1]},
        {"chosen": "A cat.", "rejected": "A cat."},
        {"chosen": "A cat.", "rejected": "A dog. " * 100},
        {"responses": ["A cat.", "A dog.", "A hen."], "ranks": [1, 2, 2]},
    )
    assert len(items) == 1 and items[0][1] == [1, 2, 2]
    assert dropped == {
        "identical answers": 1,
        "prompts without a pair": 2,
        "too long": 1,
        "tied pairs": 2,
    }
    assert reward.count_pairs(items) == 2


def test_an_answer_that_was_cut_off_is_scored_without_eos(vocab):
    items, _ = encoded(
        vocab, {"responses": ["A cat.", "A dog and"], "ranks": [1, 2], "eos": [True, False]}
    )
    whole, cut = items[0][0]
    assert whole[-1] == vocab.eos and cut[-1] != vocab.eos, (
        "the reward model would never see what PPO shows it: an answer without an end"
    )


def test_the_two_halves_of_the_comparisons_have_no_prompt_in_common(vocab):
    rows = [
        {"prompt": f"Prompt number {i}.", "chosen": "Yes.", "rejected": "No."} for i in range(60)
    ]
    one, two = (
        [tuple(tokens[0]) for tokens, *_ in encoded(vocab, *rows, fold=fold)[0]] for fold in (1, 2)
    )
    assert not set(one) & set(two) and len(one) + len(two) == 60 and 15 < len(one) < 45


def test_the_reward_model_that_evaluates_has_comparisons_to_itself():
    assert which_half("auto", judge) == 0, (
        "where a judge evaluates, all comparisons are for training"
    )
    assert which_half("auto", None) == 1, (
        "both reward models are trained on the same comparisons: no second opinion"
    )
    assert [which_half(x, None) for x in ("1", "2", "all")] == [1, 2, 0]
    with pytest.raises(UserError, match="--fold=3"):
        which_half("3", None)


def test_the_ceiling_is_of_answers_whose_truth_is_known(vocab):
    # a person's comparisons have no gold score; only the judge's can say how often the truth wins
    items, _ = encoded(
        vocab,
        {"chosen": "A cat.", "rejected": "A dog."},
        {"responses": ["A cat.", "A dog."], "ranks": [1, 2], "gold": [1.0, 0.0]},
        {"responses": ["A cat.", "A hen."], "ranks": [2, 1], "gold": [1.0, 0.0]},
    )

    model = ScalarGPT(GPTConfig(128, vocab.size, 1, 2, 16))
    found = reward.heldout_accuracy(model, items, vocab)
    assert (found["pairs"], found["ceiling"], found["accuracy"]) == (3, 0.5, 0.5), (
        "one of the two pairs with a gold score is ordered as it says"
    )
    assert reward.heldout_accuracy(model, items[:1], vocab)["ceiling"] is None


def test_rows_are_padded_on_the_right():
    tokens, lengths = common.pad([[1, 2, 3], [4]], 9)
    assert tokens.shape == (2, 16), "widths are multiples of 16"
    assert tokens[:, :3].tolist() == [[1, 2, 3], [4, 9, 9]] and (tokens[:, 3:] == 9).all()
    assert lengths.tolist() == [3, 1]


def test_the_mask_of_a_response_comes_from_lengths_and_not_from_ids():
    mask = common.response_mask(torch.tensor([1, 3]), torch.tensor([4, 4]), 5)
    assert mask.int().tolist() == [[0, 1, 1, 1, 0], [0, 0, 0, 1, 0]]


def text_of(tmp_path, documents, block, name="train.bin"):
    """A Text of documents (lists of ids from 1), each ended by EOS, which is 0."""
    tokens = [i for document in documents for i in [*document, 0]]
    np.array(tokens, dtype=np.uint16).tofile(tmp_path / name)
    vocab = types.SimpleNamespace(eos=0, size=9)
    return Text(str(tmp_path / name), vocab, block, "cpu")


def test_windows_of_text_begin_at_a_token_or_at_the_start_of_its_document(tmp_path):
    documents = [[5, 4], [6], [1, 2, 3], [8, 7]]
    text = text_of(tmp_path, documents, 4)
    starts = text.starts(torch.arange(12))
    assert starts.tolist() == [0, 0, 2, 3, 3, 5, 5, 7, 8, 9, 9, 11], (
        "from less than half a block away, a window goes back to where the document begins"
    )
    windows = {(5, 4, 0, 6, 0), (0, 6, 0, 1, 2), (6, 0, 1, 2, 3), (1, 2, 3, 0, 8), (3, 0, 8, 7, 0)}
    # after its end the text begins again
    windows |= {(0, 8, 7, 0, 5), (8, 7, 0, 5, 4), (0, 5, 4, 0, 6)}
    assert set(map(tuple, text.batch(200, common.generator(1)).tolist())) == windows
    with pytest.raises(UserError, match="12 tokens"):
        text_of(tmp_path, documents, 13)


@pytest.mark.parametrize("lengths", [range(1, 40), [33] * 30, [300, 500, 40, 2], [999]])
def test_every_token_of_a_text_is_seen_about_equally_often(tmp_path, lengths):
    block = 32
    text = text_of(tmp_path, [[1] * n for n in lengths], block)
    n = len(text.tokens)
    at = text.starts(torch.arange(n))[:, None] + torch.arange(block)
    seen = torch.bincount(at.flatten() % n, minlength=n) / block
    assert 0.5 <= seen.min() and seen.max() <= 1.5, "windows leave out parts of long documents"

    drawn, windows = torch.zeros(n, dtype=torch.bool), 20
    rng = common.generator(1)
    text.windows = lambda starts: (starts[:, None] + torch.arange(block)) % n
    shares = []
    for _ in range(100):
        drawn[:] = False
        drawn[text.batch(windows, rng)] = True
        shares.append(drawn.float().mean().item())
    assert text.share_seen(windows) == pytest.approx(statistics.mean(shares), abs=0.03)


@pytest.mark.parametrize("lengths", [range(1, 40), [33] * 30, [300, 500, 40, 2], [32]])
def test_the_held_out_loss_is_measured_on_each_token_once(tmp_path, lengths):
    rng = random.Random(0)
    text = text_of(tmp_path, [[rng.randint(1, 8) for _ in range(n)] for n in lengths], 32)
    logits = torch.randn(9, 9)

    class Bigrams:  # its loss is the same in each window
        config = types.SimpleNamespace(vocab_size=9)

        def __call__(self, x):
            return logits[x]

    tokens = torch.tensor(text.tokens.astype("int64"))
    expected = torch.nn.functional.cross_entropy(logits[tokens[:-1]], tokens[1:]).item()
    mean, error = text.loss(Bigrams())
    assert mean == pytest.approx(expected, rel=1e-5)
    assert (error == 0) == (len(tokens) == 33), "one window has no standard error"
    assert abs(text.loss(Bigrams(), rows=8)[0] - mean) < 0.4, "a sample of the windows"


def test_token_files_of_another_vocabulary_are_refused(tmp_path, vocab):
    for name, ids in (("far.bin", [1, vocab.size]), ("empty.bin", [])):
        np.array(ids, dtype=np.uint16).tofile(tmp_path / name)
        with pytest.raises(UserError, match=name):
            read_tokens(str(tmp_path / name), vocab)
    np.array([1, vocab.size - 1], dtype=np.uint16).tofile(tmp_path / "good.bin")
    assert read_tokens(str(tmp_path / "good.bin"), vocab).tolist() == [1, vocab.size - 1]


def test_a_data_folder_that_is_not_there_names_those_that_are():
    with pytest.raises(UserError, match="vilage.*village"):
        folder_of("vilage")


# ---- files that we write ----


def test_a_writer_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "sft.pt"
    path.write_text("old")
    with pytest.raises(RuntimeError):
        with replacing(str(path)) as f:
            f.write("half of the new")
            raise RuntimeError("disk full")
    assert path.read_text() == "old", "a crash while saving destroys the checkpoint"
    assert os.listdir(tmp_path) == ["sft.pt"], "temporary files are left behind"
    with replacing(str(path)) as f:
        f.write("new")
        assert path.read_text() == "old", "a half-written file can be seen"
    assert path.read_text() == "new"


def test_what_is_not_our_checkpoint_is_refused_in_a_sentence(tmp_path):
    path = str(tmp_path / "sft.pt")
    save(
        path,
        {
            "stage": "sft",
            "model": {"w": torch.zeros(1000)},
            "config": {},
            "vocab": "",
            "parents": {},
            "hash": "",
        },
    )
    assert load(path)["stage"] == "sft"
    whole = open(path, "rb").read()
    foreign = tmp_path / "foreign.pt"
    torch.save({"state_dict": {}}, foreign)
    listed = tmp_path / "list.pt"
    torch.save([1, 2, 3], listed)
    for content, what in (
        (whole[: len(whole) // 2], "cut off"),
        (b"", "empty"),
        (b"hello", "a text"),
        (foreign.read_bytes(), "another project's"),
        (listed.read_bytes(), "a list"),
    ):
        with open(path, "wb") as f:
            f.write(content)
        with pytest.raises(UserError, match="sft.pt"):
            load(path)
            pytest.fail(f"a file that is {what} was taken for a checkpoint")
    with pytest.raises(UserError, match=r"missing.*python sft\.py"):
        load(str(tmp_path / "no.pt"), "sft")


@pytest.mark.parametrize(
    "made, name", [("reward-2", "reward"), ("reward-eval", "reward"), ("ppo-2", "ppo")]
)
def test_a_checkpoint_of_another_round_is_not_taken_for_this_one(tmp_path, made, name):
    path = str(tmp_path / f"{name}.pt")
    content = {"stage": made, "model": {}, "config": {}, "vocab": "", "parents": {}, "hash": ""}
    save(path, content)
    with pytest.raises(UserError, match=f"{name}.pt is a checkpoint of {made}, not of {name}"):
        load(path, name)
    assert load(path)["stage"] == made


def test_a_checkpoint_runs_no_code_when_it_is_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    path = str(tmp_path / "sft.pt")
    torch.save({"stage": "sft", "model": Trap()}, path)
    with pytest.raises(UserError):
        load(path)
    assert not (tmp_path / "sprung").exists(), (
        "a checkpoint from elsewhere could run any code: load with weights_only"
    )

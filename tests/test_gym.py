"""data/gym: tasks and verifiers of reasoning-gym. A small stand-in takes the package's place."""

import importlib
import json
import os
import random
import sys
import types

import numpy as np
import pytest
from conftest import ROOT, run_main

from data import UserError, load_reward, read_jsonl
from data.vocab import Vocab
from plumbing.command_line import folder_settings

FOLDER = os.path.join(ROOT, "data", "gym")


def meta_of(kind, rng):
    """A task's metadata, as the package has it."""
    a, b, c = (rng.randrange(10) for _ in range(3))
    word = "".join(rng.choices("abcdef", k=5))
    return {
        "chain_sum": {"expression": f"{a} + {b} - {c}"},
        "letter_counting": {"target_letter": word[0], "span": [word, word]},
        "number_sorting": {
            "direction": "ascending",
            "original_numbers": [f"{n}.0" for n in (a, b, c)],
            "sorted_numbers": [f"{n}.0" for n in sorted((a, b, c))],
        },
        "spell_backward": {"word": word},
    }[kind]


def answer_of(kind, meta):
    if kind == "chain_sum":
        return str(eval(meta["expression"]))
    if kind == "letter_counting":
        return str(sum(word.count(meta["target_letter"]) for word in meta["span"]))
    return str(meta.get("sorted_numbers") or meta["word"][::-1])


def create_dataset(kind, seed, size, **_):
    rng = random.Random(seed)
    metas = [meta_of(kind, rng) for _ in range(size)]
    return [{"answer": answer_of(kind, meta), "metadata": meta} for meta in metas]


def score_answer(answer, entry):
    """Half for anything that has a character in common with the right answer."""
    right = entry["answer"]
    if answer == right:
        return 1.0
    return 0.5 * bool(set(answer) & set(right))


@pytest.fixture
def gym(tmp_path, monkeypatch):
    """prepare.py and verifier.py of data/gym, which write to and read from tmp_path."""
    package = types.SimpleNamespace(
        create_dataset=create_dataset, get_score_answer_fn=lambda kind: score_answer
    )
    monkeypatch.setitem(sys.modules, "reasoning_gym", package)
    monkeypatch.setattr(sys, "path", [FOLDER, *sys.path])
    for name in ("verifier", "prepare"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    found = types.SimpleNamespace(
        verifier=importlib.import_module("verifier"), prepare=importlib.import_module("prepare")
    )
    for module in vars(found).values():
        monkeypatch.setattr(module, "HERE", str(tmp_path))
    yield found
    for name in ("verifier", "prepare"):
        sys.modules.pop(name, None)


@pytest.fixture
def prepared(gym, tmp_path):
    run_main(
        "prepare",
        "--tasks=400",
        "--documents=400",
        "--demonstrations=400",
        "--prompts=200",
        "--heldout=100",
    )
    return tmp_path


def test_no_held_out_task_is_trained_on(prepared):
    rows = read_jsonl(prepared / "prompts.jsonl", ["prompt", "kind", "entry"])
    held = {row["prompt"] for row in rows if row.get("split") == "heldout"}
    shown = read_jsonl(prepared / "demonstrations.jsonl", ["prompt", "response"], "train")
    trained = {row["prompt"] for row in [*shown, *rows] if row["split"] == "train"}
    assert len(held) >= 40 and not held & trained, "a held-out task is demonstrated or asked"
    vocab = Vocab(str(prepared))
    text = vocab.decode(np.fromfile(prepared / "train.bin", np.uint16).tolist())
    assert not [prompt for prompt in held if prompt in text], "the text has held-out tasks"


def test_a_token_is_a_character(prepared):
    vocab = Vocab(str(prepared))
    assert len(vocab.encode("backward: word")) == 14, "the model does not see single letters"


def test_most_demonstrations_are_wrong_in_the_way_that_is_stated(gym, prepared):
    rows = read_jsonl(prepared / "demonstrations.jsonl", ["prompt", "response", "how"], "train")
    shares = [
        sum(r["how"] == how for r in rows) / len(rows) for how in ("right", "mistake", "slip")
    ]
    assert shares == pytest.approx(gym.prepare.IN_DEMONSTRATIONS, abs=0.08)
    asked = read_jsonl(prepared / "prompts.jsonl", ["prompt", "kind", "entry"])
    right = {r["prompt"]: gym.verifier.right_answer(r["kind"], r["entry"]) for r in asked}
    both = [r for r in rows if r["prompt"] in right]
    for how in ("right", "slip"):
        same = [r["response"] == right[r["prompt"]] for r in both if r["how"] == how]
        assert same and set(same) == {how == "right"}, f"an answer that is called a {how} is none"


@pytest.mark.parametrize(
    "kind, right, mistake",
    [
        ("chain_sum", "4", "8"),
        ("letter_counting", "2", "3"),
        ("number_sorting", "1, 2, 7", "7, 2, 1"),
        ("spell_backward", "drow", "dro"),
    ],
)
def test_a_mistake_is_that_of_its_kind(gym, kind, right, mistake):
    meta = {"expression": "5 + 1 - 2"}
    assert gym.verifier.KINDS[kind].mistake(meta, right) == mistake


def ask(folder, row):
    for name in ("prompts.jsonl", "demonstrations.jsonl"):
        (folder / name).write_text(json.dumps({**row, "response": "5"}) + "\n")


def test_the_judge_knows_the_tasks_of_demonstrations(gym, prepared):
    for name in ("prompts.jsonl", "demonstrations.jsonl"):
        for row in read_jsonl(prepared / name, ["prompt"]):
            right = gym.verifier.right_answer(row["kind"], row["entry"])
            assert gym.verifier.credit(row["prompt"], right) > 0, f"evaluate.py ends in {name}"


def test_exact_gives_nothing_for_partial_credit(gym, tmp_path):
    ask(tmp_path, {"prompt": "2 + 3 =", "kind": "chain_sum", "entry": {"answer": "5"}})
    said = [
        (gym.verifier.credit("2 + 3 =", a), gym.verifier.exact("2 + 3 =", a))
        for a in ("5", "-5", "6")
    ]
    assert said == [(1, 1), (0.5, 0), (0, 0)], "credit is the verifier's score, exact is 1 or 0"


def test_a_sorted_list_reaches_the_verifier_as_a_list(gym, tmp_path):
    ask(tmp_path, {"prompt": "x", "kind": "number_sorting", "entry": {"answer": "[1, 2]"}})
    assert gym.verifier.exact("x", "1, 2") == 1, "a right answer is called wrong"


def test_a_question_that_is_no_task_is_named(gym, tmp_path):
    ask(tmp_path, {"prompt": "x", "kind": "chain_sum", "entry": {"answer": "5"}})
    with pytest.raises(UserError, match="'hello' is no task"):
        gym.verifier.exact("hello", "5")


def test_a_missing_package_is_named_with_its_command(gym, monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(UserError, match="pip install reasoning-gym"):
        gym.verifier.package()


def test_the_gyms_own_settings_train_on_the_verifier(monkeypatch):
    ppo = importlib.import_module("ppo")
    name = folder_settings("gym", ppo.Config)["reward"]
    monkeypatch.chdir(ROOT)
    assert callable(load_reward(name)), "python ppo.py --data=gym would train a reward model"


def test_the_judges_gold_score_is_exact_match(gym, tmp_path, monkeypatch):
    ask(tmp_path, {"prompt": "2 + 3 =", "kind": "chain_sum", "entry": {"answer": "5"}})
    monkeypatch.delitem(sys.modules, "judge", raising=False)
    judge = importlib.import_module("judge")
    sys.modules.pop("judge")
    assert [judge.gold("2 + 3 =", a)["gold"] for a in ("5", "-5")] == [1, 0]
    assert judge.rank("2 + 3 =", ["-5", "5", "5"], 0, random.Random(0)) == [2, 1, 1]

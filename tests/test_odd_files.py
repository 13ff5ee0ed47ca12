"""Files as people write them, save them on Windows, or bring them from elsewhere."""

import gzip
import importlib
import json
import shutil
import sys
from collections import Counter

import pytest

from conftest import run_little, run_main
from data import (
    UserError,
    check_prompt,
    load_reward,
    read_abilities,
    read_json,
    read_jsonl,
    read_text,
)
from data.vocab import Vocab

label = importlib.import_module("data.label")

LINE = '{"prompt": "Hi", "response": "Hello."}'
HALF = '{"prompt": "I like \\ud83d.", "response": "\\uDE00, me too \\ud83d\\ude00"}'
DIALOGUE = {s: f"\n\nHuman: Hi\n\nAssistant: {s}." for s in ("chosen", "rejected")}


@pytest.mark.parametrize(
    "written",
    [
        f"{LINE}\n{LINE}".encode(),
        f"{LINE}\r\n{LINE}\r\n".encode(),
        f"\n{LINE}\n\n  \n{LINE}\n\n\n".encode(),
        f"\ufeff{LINE}\n{LINE}\n".encode(),
        f"\ufeff{LINE}\r\n\ufeff{LINE}".encode(),
    ],
    ids=["no newline", "Windows", "empty lines", "BOM", "two files with BOMs, joined"],
)
def test_lines_are_read_however_the_file_was_saved(tmp_path, written):
    path = tmp_path / "a.jsonl"
    path.write_bytes(written)
    assert read_jsonl(str(path), ["prompt", "response"]) == [json.loads(LINE)] * 2


def test_half_a_surrogate_pair_becomes_a_character_that_can_be_written(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(HALF)
    (row,) = read_jsonl(str(path), ["prompt"])
    assert row == {"prompt": "I like \ufffd.", "response": "\ufffd, me too \U0001f600"}
    path.write_text(json.dumps({"pattern": "\ud83d"}))
    assert read_json(str(path)) == {"pattern": "\ufffd"}


@pytest.mark.parametrize(
    "written, read",
    [
        ("\ufeffOne.\n\nTwo.\n".encode(), "One.\n\nTwo.\n"),
        (b"One.\r\n\r\nTwo.", "One.\n\nTwo."),
        ("One.\r\n\ufeffTwo: a\ufeffb".encode(), "One.\nTwo: a\ufeffb"),
    ],
)
def test_a_text_has_no_bom_and_no_carriage_returns(tmp_path, written, read):
    (tmp_path / "text.txt").write_bytes(written)
    assert read_text(str(tmp_path / "text.txt")) == read


def test_a_text_in_another_encoding_is_a_sentence(tmp_path):
    (tmp_path / "text.txt").write_text("One.", encoding="utf-16")  # as PowerShell's > writes it
    with pytest.raises(UserError, match=r"text\.txt is not UTF-8 text, save it as UTF-8"):
        read_text(str(tmp_path / "text.txt"))


def test_a_folder_with_all_of_these_is_prepared(tmp_path):
    (tmp_path / "text.txt").write_bytes(b"\xef\xbb\xbfOne.\r\n\r\nTwo, three.\r\n" * 30)
    rows = [json.dumps({"prompt": f"Say {i}.", "response": f"{i}."}) for i in range(40)]
    written = "\ufeff" + "\r\n".join([*rows, HALF])
    (tmp_path / "demonstrations.jsonl").write_bytes(written.encode())
    run_main("data.prepare", str(tmp_path), "--vocab=300")
    assert len(read_jsonl(str(tmp_path / "demonstrations.jsonl"), ["prompt"])) == 41
    ranks = (tmp_path / "vocab.tiktoken").read_text()
    assert "77u/" not in ranks, "U+FEFF became a token"
    assert Vocab(str(tmp_path)).size <= 300


@pytest.mark.parametrize(
    "before, glued", [("", ""), (LINE, LINE + "\n"), (LINE + "\n",) * 2, (LINE + "\r\n",) * 2]
)
def test_a_ranking_is_not_glued_to_a_line_without_an_end(tmp_path, before, glued):
    path = tmp_path / "c.jsonl"
    path.write_bytes(before.encode())
    row = {"prompt": "Hi", "responses": ["é", "b"], "ranks": [1, 2], "labeler": "me"}
    label.append(str(path), row)
    assert path.read_bytes().decode() == glued + json.dumps(row) + "\n"
    assert read_jsonl(str(path), ["prompt"])[-1] == row
    label.take_back(str(path), row)
    assert len(path.read_text().splitlines()) == bool(before)


def test_a_first_ranking_makes_the_file(tmp_path):
    label.append(str(tmp_path / "new.jsonl"), {"prompt": "Hi"})
    assert (tmp_path / "new.jsonl").read_text() == '{"prompt": "Hi"}\n'


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_hh_rlhf_may_have_a_bom_empty_lines_and_half_characters(tmp_path, ending):
    hh = importlib.import_module("data.hh_rlhf.prepare")
    half = json.dumps(DIALOGUE).replace("Hi", "Hi \\ud83d")
    written = f"\ufeff{json.dumps(DIALOGUE)}\r\n\r\n{half}\n\n".encode()
    path = tmp_path / ("train.jsonl" + ending)
    path.write_bytes(gzip.compress(written) if ending else written)
    rows = list(hh.read(str(path), Counter()))
    assert [prompt[0]["content"] for prompt, *_ in rows] == ["Hi", "Hi \ufffd"]


def test_rankings_of_people_stay_when_chitchat_is_prepared_again(tmp_path):
    chitchat = importlib.import_module("data.chitchat.prepare")
    row = {"prompt": "Hi", "responses": ["a", "b"], "ranks": [1, 2], "labeler": "me"}
    path = tmp_path / "comparisons.jsonl"
    path.write_text("\ufeff" + json.dumps({**row, "labeler": "me"}) + "\n\n")
    assert chitchat.ranked_by_people(str(path)) == [row]
    assert chitchat.ranked_by_people(str(tmp_path / "none")) == []


# ---- Python files and prompts ----

REWARDS = {
    "a dataclass": """
from __future__ import annotations
from dataclasses import dataclass
@dataclass
class Weight:
    k: float = -1.0
def score(prompt, response):
    return Weight().k * len(response)
""",
    "a neighbour, imported when it is called": """
def score(prompt, response):
    import odd_neighbour
    return odd_neighbour.score(response)
""",
    "a neighbour, imported at once": """
from odd_neighbour import score as inner
def score(prompt, response):
    return inner(response)
""",
}


@pytest.mark.parametrize("text", REWARDS.values(), ids=REWARDS)
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_reward_file_may_hold_what_any_module_may(tmp_path, monkeypatch, text, elsewhere):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "json.py").write_text(text)  # called like a module that is loaded already
    (folder / "odd_neighbour.py").write_text("def score(response):\n    return -len(response)\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "odd_neighbour", raising=False)
    monkeypatch.chdir(tmp_path if elsewhere else folder)
    reward_fn = load_reward("mine/json.py:score" if elsewhere else "json.py:score")
    assert reward_fn("Hi", "abc") == -3.0
    assert sys.modules["json"] is json


@pytest.mark.parametrize("before", [[], [{"role": "user", "content": "Hi"}]])
def test_a_system_turn_is_told_where_to_go(before):
    system = {"role": "system", "content": "Be brief."}
    with pytest.raises(UserError, match="no system turn; put what it says at the beginning of"):
        check_prompt([*before, system, {"role": "user", "content": "Hi"}], "line 1")


@pytest.mark.parametrize("kind", [0, 1, None, float("nan"), ["a"]])
def test_a_kind_is_a_string(tmp_path, kind):
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": "Hi", "kind": kind}))
    with pytest.raises(UserError, match='line 1: "kind" must be a string'):
        read_jsonl(str(path), ["prompt"])


@pytest.mark.parametrize(
    "change, says",
    [
        ({"text": ("cat " * 121).strip()}, "tokens; with 8 for the answer it must have 1 to 120"),
        ({"text": 5}, '"text" must be strings'),
        ({"ability": 5}, '"ability" and'),
        ({"answers": "yes"}, "a list of strings"),
        ({"answers": [1]}, "a list of strings"),
        ({"chance": "5%"}, "a number from 0 to 1, found '5%'"),
        ({"chance": 5}, "found 5"),
        ({"chance": float("nan")}, "found nan"),
        ({"chance": True}, "found True"),
    ],
)
def test_questions_are_checked_before_pretraining(little, tmp_path, monkeypatch, change, says):
    good = {"ability": "a", "text": "cat", "answers": ["b"], "chance": 0.5}
    data = shutil.copytree(little[0], tmp_path / "data")
    (data / "abilities.jsonl").write_text(json.dumps(good) + "\n\n")
    assert read_abilities(str(data), Vocab(str(data)), 128) == [good]
    (data / "abilities.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(good | change))
    monkeypatch.setattr("pretrain.muon", None)  # whoever trains first fails in another way
    with pytest.raises(UserError, match=rf"abilities\.jsonl, line 2: .*{says}"):
        run_little("pretrain", data, tmp_path / "out")


def test_prompts_that_are_made_keep_their_kind(tmp_path):
    rows = [{"prompt": f"Say {i}.", "chosen": f"{i}.", "rejected": "No."} for i in range(40)]
    lines = [json.dumps({**row, "kind": "say"}) + "\n" for row in rows]
    (tmp_path / "comparisons.jsonl").write_text("".join(lines))
    run_main("data.prepare", str(tmp_path), "--vocab=300")
    for name in ("demonstrations", "prompts"):
        made = read_jsonl(str(tmp_path / f"{name}.jsonl"), ["prompt"])
        assert {row.get("kind") for row in made} == {"say"}, name

"""A person as the judge: data/label.py in a terminal, and a reward model trained on the result."""

import importlib
import os
import shutil
import sys

import pytest

from conftest import run_little, run_main
from data import read_jsonl
from plumbing.checkpoint import load
from test_resume import end_of, forks

label = importlib.import_module("data.label")


@pytest.mark.parametrize(
    "line, ranks",
    [
        ("2 > 1 = 3 > 4", [2, 1, 2, 4]),
        ("4321", [4, 3, 2, 1]),
        ("1=2=3=4", [1, 1, 1, 1]),
        (" 3>1 >2= 4", [2, 3, 1, 3]),
    ],
)
def test_a_line_is_a_ranking(line, ranks):
    assert label.read_order(line, 4) == ranks


@pytest.mark.parametrize(
    "line, says",
    [
        ("1 > 2 > 5 > 3", "no answer '5'"),
        ("1 > 2", "3, 4 is missing"),
        ("1 > 1 > 2 > 3 > 4", "twice"),
        ("", "no answer"),
        ("best: 1", "no answer"),
        ("1 > > 2", "no answer ''"),
        ("0123", "no answer '0'"),
    ],
)
def test_what_is_no_ranking_is_said_so(line, says):
    with pytest.raises(ValueError, match=says):
        label.read_order(line, 4)


def test_agreement_counts_pairs_that_neither_calls_a_tie():
    rows = [
        {"prompt": p, "responses": ["a", "b", "c"], "ranks": r, "labeler": who}
        for p, who, r in [
            ("x", "one", [1, 2, 3]),
            ("x", "two", [1, 3, 2]),
            ("y", "one", [1, 1, 3]),
            ("y", "two", [2, 1, 3]),
            ("z", "two", [1, 2, 3]),
        ]
    ]
    share, half, n = label.agreement(rows, "one")
    assert n == 3 + 2 and share == (2 + 2) / 5 and half > 0
    assert label.agreement(rows[:1], "one") is None


@pytest.fixture
def folder(little, tmp_path):
    """Data and finished stages. What a test writes to them is removed after it."""
    yield little[0], shutil.copytree(little[1], tmp_path / "out")
    (little[0] / "comparisons.jsonl").unlink()


def answer_in_a_terminal(data, out, lines, *flags):
    """Start label.py in a pseudo-terminal and type a line whenever it asks for one.

    A line that is a function is called with the process's id. → (exit code, text on the screen)
    """
    import pty

    pid, screen = pty.fork()
    if not pid:
        sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w", buffering=1)  # not pytest's
        try:
            run_main(
                "data.label",
                "--size=smoke",
                "--device=cpu",
                f"--data={data}",
                f"--out={out}",
                "--stage=sft",
                "--max_new_tokens=12",
                *flags,
            )
            sys.stdout.flush()
            os._exit(0)
        except BaseException as e:
            print(repr(e), flush=True)
        finally:
            os._exit(70)
    seen, lines = "", list(lines)
    while True:
        try:
            seen += os.read(screen, 65536).decode()
        except OSError:  # the other end is closed
            break
        if seen.endswith("ranking: ") and lines:
            line = lines.pop(0)
            if callable(line):
                line(pid)
            else:
                os.write(screen, line.encode() + b"\n")
            seen += "\n"
    os.close(screen)
    return end_of(pid), seen


@forks
def test_rankings_typed_in_a_terminal_train_a_reward_model(folder):
    data, out = folder
    code, seen = answer_in_a_terminal(
        data,
        out,
        ["3 > 1 > 2", "9", "1 > 2 = 3", "u", "2 > 3 > 1", "s", "q"],
        "--answers=3",
        "--labeler=one",
    )
    assert code == 0, seen
    for said in ("no answer '9'", "taken back", "2 rankings of one's"):
        assert said in seen, seen
    rows = read_jsonl(str(data / "comparisons.jsonl"), ["prompt", "responses", "ranks"])
    assert [sorted(r["ranks"]) for r in rows] == [[1, 2, 3], [1, 2, 3]]
    first = seen.split("[1/50]")[1].split("ranking:")[0].splitlines()
    shown = [line[5:] for line in first if line[2:5] in ("1. ", "2. ", "3. ")]
    best = rows[0]["responses"][rows[0]["ranks"].index(1)]
    assert best.split("\n")[0] == shown[2], (
        "the answer that was called best is not the one that is written down as best"
    )

    # another person sees the same answers; a second start goes on where the first ended
    code, seen = answer_in_a_terminal(data, out, ["1 > 2 > 3", "q"], "--answers=3", "--labeler=two")
    assert code == 0 and "agree on" in seen
    assert len(read_jsonl(str(data / "comparisons.jsonl"), ["prompt"])) == 3
    code, seen = answer_in_a_terminal(data, out, ["q"], "--answers=3", "--labeler=one")
    assert "[1/50]" not in seen and "[2/50]" not in seen and "[3/50]" in seen

    run_little("reward", data, out, "--sources=file", "--fresh")
    assert load(str(out / "reward.pt"))["results"]["pairs"] == 3 * 3


@forks
def test_a_kill_loses_no_ranking(folder):
    data, out = folder
    code, _ = answer_in_a_terminal(
        data, out, ["1 > 2", "2 > 1", lambda pid: os.kill(pid, 9)], "--answers=2"
    )
    assert code == -9
    rows = read_jsonl(str(data / "comparisons.jsonl"), ["prompt", "responses", "ranks"])
    assert len(rows) == 2

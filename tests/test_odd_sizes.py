"""Runs on odd inputs: a block of any size, one of everything, half a letter."""

import io
import json
import math
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import reward
from conftest import log_of, run_main
from data import UserError, half_of, label, read_jsonl
from data.comparisons import encode_comparisons
from data.vocab import Vocab
from model import GPT, GPTConfig
from plumbing.checkpoint import load
from rollout import read_prompts

BLOCK, ROOM = 100, 24


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def text_of(vocab, n, first="dog"):
    """A text of n tokens."""
    text = " ".join([first] + ["dog"] * (n - 1))
    assert len(vocab.encode(text)) == n
    return text


def folder_of(path, village, n):
    """A data folder without a judge, for a block of 100, with n rows of everything; and a base.

    Each prompt, with its longest answer, fills the block to the last token or nearly so.
    → (data folder, base, out)
    """
    folder = path / "data"
    folder.mkdir()
    for name in ("vocab.json", "vocab.tiktoken"):
        shutil.copy(os.path.join(village, name), folder)
    vocab = Vocab(str(folder))
    document = [*vocab.encode(text_of(vocab, 24)), vocab.eos]
    for name in ("train.bin", "val.bin"):
        np.array(document * 4 * n, dtype=np.uint16).tofile(folder / name)  # n blocks
    # <|user|> prompt <|assistant|> response <|endoftext|>, and a held-out one for each half
    rows = [
        {"prompt": text_of(vocab, BLOCK - ROOM - i - 2), "response": text_of(vocab, ROOM - 1)}
        for i in range(n)
    ]
    rows[0]["prompt"] = next(p for p in ways(vocab) if half_of({"prompt": p}) == 1)
    held = [next({"prompt": p} for p in ways(vocab) if half_of({"prompt": p}) == h) for h in (0, 1)]
    shown = [dict(row, split="heldout") for row in rows[1:]]  # none, if there is one of a thing
    write(folder / "demonstrations.jsonl", rows + shown)
    write(folder / "prompts.jsonl", rows + [dict(row, split="heldout") for row in held])
    write(
        folder / "comparisons.jsonl",
        [{"prompt": r["prompt"], "chosen": r["response"], "rejected": "No."} for r in rows],
    )
    torch.manual_seed(0)
    GPT(GPTConfig(BLOCK, vocab.size, 1, 2, 16)).save_pretrained(str(path / "base"))
    return folder, path / "base", path / "out"


def ways(vocab):
    """Prompts that leave room for an answer, and not for a token more."""
    return [text_of(vocab, BLOCK - ROOM - 2, word) for word in ("cat", "hen", "pig", "cow", "dog")]


def encode_all(folders):
    """The token lists of each comparison."""
    vocab, path = Vocab(str(folders[0])), str(folders[0] / "comparisons.jsonl")
    return [answers for answers, _, _ in encode_comparisons(read_jsonl(path, []), vocab, BLOCK)[0]]


ROOMY = SimpleNamespace(config=SimpleNamespace(block_size=BLOCK))  # what chat asks of a model
COMMON = ["--size=smoke", "--device=cpu", "--dtype=float32", f"--max_new_tokens={ROOM}"]


def go(script, folders, *flags):
    """A script's main on the folder, in this process."""
    data, base, out = folders
    more = [] if script == "chat" else [f"--base={base}"]
    run_main(script, *COMMON, f"--data={data}", f"--out={out}", *more, *flags)


def numbers(x):
    """All numbers in logs and results."""
    if isinstance(x, dict):
        x = list(x.values())
    if isinstance(x, list):
        return [number for part in x for number in numbers(part)]
    return [x] if isinstance(x, float) else []


@pytest.mark.parametrize("n", [4, 1])
def test_all_stages_fill_a_block_that_is_no_multiple_of_16_and_work_with_one_of_everything(
    n, tmp_path, village, capsys, monkeypatch
):
    """Padding must stay within the block of 100, and statistics of one number be no NaN."""
    monkeypatch.setattr("ppo.evaluate_run", lambda *a: None)
    folders = folder_of(tmp_path, village, n)
    out = folders[2]
    from_file = ["--sources=file", "--fold=all"]
    go("sft", folders)
    with monkeypatch.context() as m:  # whose scores are PPO's mean and standard deviation?
        shift, asked = reward.shift_scores, []
        m.setattr(reward, "shift_scores", lambda *args: asked.append(args[2]) or shift(*args))
        go("reward", folders, *from_file)
    rows = zip(asked[0], encode_all(folders))
    assert all(answer == answers[i % 2] for i, (answer, answers) in enumerate(rows)), (
        "without a judge the first answer is the chosen one, which is better than most"
    )
    go("reward", folders, "--sources=file", "--fold=2")  # which evaluates
    ppo = ["--iterations=1", f"--episodes={n}", f"--minibatches={n}", "--eval_every=1"]
    go("ppo", folders, *ppo)
    go("evaluate", folders, "--prompts=1", "--best_of=2", "--stages=sft,ppo")
    go("chat", folders, f"--prompt={ways(Vocab(str(folders[0])))[0]}", "--best_of=2")
    for stage in ("sft", "reward", "ppo"):
        assert all(map(math.isfinite, numbers(log_of(out, stage)))), f"a NaN in {stage}.jsonl"
        assert all(map(math.isfinite, numbers(load(str(out / f"{stage}.pt"))["results"])))
    if n > 1:
        go("sft", folders, "--pick_by=reward.pt", "--fresh")
    assert "nan" not in capsys.readouterr().out.split()


@pytest.mark.parametrize(
    "script, flags, sentence",
    [
        ("ppo", ["--episodes=1", "--minibatches=1", "--reward=conftest:brief"], "--episodes=1"),
        ("sft", ["--pick_by=reward.pt"], "held-out"),
        ("reward", ["--sources=file", "--fold=1"], "--fold=all"),
    ],
)
def test_one_of_what_needs_two_is_refused(script, flags, sentence, tmp_path, village):
    folders = folder_of(tmp_path, village, 1)
    if script == "reward":
        go("sft", folders)
    with pytest.raises(UserError, match=sentence):
        go(script, folders, *flags)
    assert script != "ppo" or not folders[2].exists(), "said only after other stages"


def test_ppo_asks_for_held_out_prompts_of_both_halves_and_not_only_evaluation(tmp_path, village):
    folder = folder_of(tmp_path, village, 1)[0]
    run = SimpleNamespace(folder=str(folder), vocab=Vocab(str(folder)))
    run.config = SimpleNamespace(seed=1)
    assert [len(rows) for rows in read_prompts(run)] == [1, 1]
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    write(folder / "prompts.jsonl", [r for r in rows if "split" not in r or half_of(r) == 1])
    with pytest.raises(UserError, match="the final table"):
        read_prompts(run)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii:surrogateescape"])
def test_half_a_letter_ends_neither_a_chat_nor_a_ranking(encoding, tmp_path, village, monkeypatch):
    """0xC3 alone is half of é, as a terminal sends it after one half has been deleted."""

    def type_in(line):
        name, _, errors = encoding.partition(":")
        stdin = io.TextIOWrapper(io.BytesIO(line), name, errors or "strict")
        monkeypatch.setattr("sys.stdin", stdin)

    answered = []
    monkeypatch.setattr("chat.load_models", lambda *a: ({"sft": ROOMY}, None, None))
    folder = folder_of(tmp_path, village, 1)[0]
    said = Vocab(str(folder)).response("It is.")
    monkeypatch.setattr("chat.reply", lambda model, ids, *a: answered.append(ids) or said)
    type_in(b"Hello.\nA caf\xc3\nBye.\n")
    run_main("chat", f"--data={folder}", "--max_new_tokens=10")
    vocab = Vocab(str(folder))
    first, last = vocab.prompt("Hello."), vocab.prompt("Bye.")
    assert answered == [first, [*first, *vocab.response("It is."), *last]], (
        "the half letter is asked for again, and the history is kept"
    )
    type_in(b"2\xc31\n")
    line = label.ask("[1/1]", "Name a pet.", ["A cat.", "A hen."])
    with pytest.raises(ValueError, match="there is no answer"):
        label.read_order(line, 2)
    assert label.ask("[1/1]", "Name a pet.", ["A cat.", "A hen."]) == "q"
    monkeypatch.setattr("sys.stdin", None)
    assert label.ask("[1/1]", "Name a pet.", ["A cat.", "A hen."]) == "q", "stdin was closed"

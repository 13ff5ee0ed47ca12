"""What users really do: odd flags, odd consoles, odd folders. A sentence each, and no work lost."""

import dataclasses
import importlib
import io
import json
import os
import shutil
import signal
import sys
import time
import types

import pytest
import torch

import pretrain
import sampling
from conftest import parents_only, run_little, run_main
from data import UserError
from data.vocab import Vocab
from model import GPT, GPTConfig
from plumbing.command_line import entry, lies_in, parse
from plumbing.processes import lock
from plumbing import run
from plumbing.run import Run
from sampling import check_arguments
from test_resume import fork, forks

SCRIPTS = ["pretrain", "sft", "reward", "ppo", "evaluate", "chat", "explain", "data.label"]


# ---- ranges ----


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_number_has_a_range_and_its_default_lies_in_it(name):
    for f in dataclasses.fields(importlib.import_module(name).Config):
        if type(f.default) in (int, float):
            assert f.metadata["within"], f"--{f.name} of {name}.py has no range"
            assert lies_in(f.default, f.metadata["within"]), f"--{f.name} of {name}.py"


def test_a_range_has_open_and_closed_ends():
    inside = {"(0, 1]": (0.5, 1), "[0, inf)": (0, 10**30), "0 or [2, inf)": (0, 2), "": (-5, 5)}
    outside = {"(0, 1]": (0, 1.1), "[0, inf)": (-1, float("inf")), "0 or [2, inf)": (1, -1)}
    assert all(lies_in(x, within) for within in inside for x in inside[within])
    assert not any(lies_in(x, within) for within in outside for x in outside[within])
    assert not any(lies_in(float("nan"), within) for within in outside)


@pytest.mark.parametrize(
    "name, flags",
    [
        ("pretrain", "seed=1700000000000000000 dropout=1.5 dropout=nan steps=0 lr=inf warmup=-1"),
        ("sft", "pretrain_mix=-1 pretrain_mix=nan demonstrations=-5 micro_batch_size=-1 epochs=0"),
        ("reward", "answers=10 prompts=-1 heldout=-1 weight_decay=nan others=-1 round=0"),
        ("ppo", "clip=-0.2 ema=2 beta=-1 lam=2 ptx_ratio=-1 gamma=1.01 adaptive_kl=nan lr=nan"),
        ("ppo", "temperature=nan temperature=1e-40 ptx_coef=-1 critic_lr=-1 minibatches=0"),
        ("evaluate", "temperature=-1 temperature=1e-40 best_of=1 prompts=0 samples=-1"),
        ("chat", "temperature=nan top_p=0 top_k=-1 best_of=0 max_new_tokens=0"),
        ("data.label", "temperature=inf answers=1 prompts=0 seed=-1"),
    ],
)
def test_a_number_outside_its_range_is_a_sentence(name, flags, tmp_path):
    config = importlib.import_module(name).Config
    for flag in flags.split():
        with pytest.raises(UserError) as e:
            parse(config, "", None, ["--size=smoke", f"--{flag}", f"--out={tmp_path}/out"])
        key, value = flag.split("=")
        within = config.__dataclass_fields__[key].metadata["within"]
        assert all(x in str(e.value) for x in (f"--{key}", value, within)), str(e.value)


def test_a_setting_of_the_data_folder_has_the_same_range(tmp_path):
    (tmp_path / "settings.json").write_text('{"all": {"seed": -3}}')
    with pytest.raises(UserError, match="--seed=-3"):
        parse(importlib.import_module("ppo").Config, "", None, [f"--data={tmp_path}"])


@pytest.mark.parametrize("name", ["data.prepare", "data.village.prepare", "data.hh_rlhf.prepare"])
def test_scripts_that_make_data_have_ranges_too(name, tmp_path):
    flag = "--seed=-1" if "village" in name else "--block=0"
    with pytest.raises(UserError, match=flag.split("=")[0] + ": .*range"):
        run_main(name, *([str(tmp_path)] if name == "data.prepare" else []), flag)


def test_what_no_flag_checks_is_checked_before_sampling():
    for temperature in (float("nan"), float("inf"), 1e-40, -1):
        with pytest.raises(ValueError, match="temperature"):
            check_arguments([[1]], 1, temperature, None, None, 8)
    check_arguments([[1]], 1, 0, None, None, 8)


def test_a_vocabulary_that_a_bin_file_can_not_hold_is_a_sentence(village, tmp_path):
    shutil.copy(f"{village}/vocab.tiktoken", tmp_path)
    with open(f"{village}/vocab.json") as f:
        spec = json.load(f)
    for last in (65_535, 65_536):
        spec["special"]["<|pad|>"] = last
        (tmp_path / "vocab.json").write_text(json.dumps(spec))
        if last == 65_535:
            assert Vocab(str(tmp_path)).size == 65_536
    with pytest.raises(UserError, match="vocab.json: ids up to 65,536.*two bytes"):
        Vocab(str(tmp_path))
    (tmp_path / "text.txt").write_text("One.\n")
    (tmp_path / "vocab.json").unlink()
    with pytest.raises(UserError, match="--vocab=100000.*at most"):
        run_main("data.prepare", str(tmp_path), "--vocab=100000")


# ---- output that can't hold the text ----


def console(encoding, text=b""):
    return io.TextIOWrapper(io.BytesIO(text), encoding)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_no_letter_ends_a_run(encoding, monkeypatch):
    streams = {name: console(encoding, b"caf\xc3\n") for name in ("stdin", "stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)

    def main():
        print("a → b \ufffd \ud83d")
        print(input("λ "))
        raise UserError("→")

    with pytest.raises(SystemExit) as e:
        entry(main)
    assert e.value.code == 1
    for stream in streams.values():
        stream.flush()
    assert b"b " in streams["stdout"].buffer.getvalue()
    assert b"error: " in streams["stderr"].buffer.getvalue()


@pytest.mark.parametrize("name", ["ppo", "chat", "data.label"])
def test_help_is_printed_on_any_console(name, monkeypatch):
    module, out = importlib.import_module(name), console("ascii")
    monkeypatch.setattr(sys, "stdout", out)
    with pytest.raises(SystemExit) as e:
        entry(lambda: parse(module.Config, module.__doc__, argv=["--help"]))
    out.flush()
    assert e.value.code == 0 and b"options:" in out.buffer.getvalue()


def test_streams_that_are_closed_are_left_alone(monkeypatch):
    for name in ("stdin", "stdout"):
        monkeypatch.setattr(sys, name, None)
    entry(lambda: print("nobody reads this"))


@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward"])
def test_a_stage_is_saved_before_its_samples_are_shown(stage, little, tmp_path, monkeypatch):
    data, before = little
    out = parents_only(stage, before, tmp_path / "out")
    name = {"pretrain": "sample_documents", "sft": "answer", "reward": "show_samples"}[stage]

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"{stage}.{name}", stop)
    with pytest.raises(KeyboardInterrupt):
        run_little(stage, data, out)
    assert (out / f"{stage}.pt").exists()


def test_a_block_shorter_than_a_sample_document(vocab, monkeypatch):
    lengths, generate = [], sampling.generate

    def noted(model, prompts, n, **more):
        lengths.append(n)
        return generate(model, prompts, n, **more)

    monkeypatch.setattr(sampling, "generate", noted)
    for block in (32, 100):
        model = GPT(GPTConfig(block, vocab.size, 1, 1, 16))
        assert len(pretrain.sample_documents(model, vocab, torch.Generator(), 1)) == 1
    assert lengths == [31, 60], "after the end of text before it"


# ---- folders ----


@forks
def test_two_runs_in_one_folder(little, tmp_path):
    data, before = little
    out = parents_only("sft", before, tmp_path / "out")
    listening, told = os.pipe()

    def run_and_wait():
        Run.checkpoint = lambda *a, **k: os.write(told, b"!") and time.sleep(60)
        run_little("sft", data, out)

    pid = fork(run_and_wait)
    assert os.read(listening, 1) == b"!"
    with pytest.raises(UserError, match=f"process {pid} has locked .*sft.lock.*another --out"):
        run_little("sft", data, out)
    run_little("pretrain", data, out)  # another stage, finished
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    run_little("sft", data, out)  # the lock of a dead process
    assert (out / "sft.pt").exists()


@pytest.mark.parametrize("locked", [False, True])
def test_a_lock_on_windows(locked, tmp_path, monkeypatch):
    def locking(file, mode, size):
        if locked:
            raise PermissionError(13, "Permission denied")

    windows = types.SimpleNamespace(locking=locking, LK_NBLCK=2)
    monkeypatch.setitem(sys.modules, "msvcrt", windows)
    monkeypatch.setattr("plumbing.processes.os.name", "nt")
    path = tmp_path / "lock"
    path.write_text("77\n")
    if locked:
        with pytest.raises(UserError, match="process 77 has locked"):
            lock(str(path))
    else:
        with lock(str(path)):
            assert path.read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize("place", ["a file", "below a file", "/proc", "/proc/out"])
def test_an_out_that_can_not_be_written_is_a_sentence(place, little, tmp_path):
    (tmp_path / "file").touch()
    places = {"a file": tmp_path / "file", "below a file": tmp_path / "file" / "out"}
    if place.startswith("/proc") and not os.path.isdir("/proc"):
        pytest.skip("no read-only place here")
    with pytest.raises(UserError, match="--out=.* is no folder to write in"):
        run_little("pretrain", little[0], places.get(place, place))


# ---- what is known at the start ----


@pytest.fixture
def never_trained(monkeypatch):
    monkeypatch.setattr(run, "run_stage", lambda *a: pytest.fail("a stage was started"))


@pytest.mark.parametrize("name", ["ppo", "reward", "evaluate", "data.label"])
@pytest.mark.parametrize("made", [False, True])
def test_answers_that_can_not_fit_are_refused_at_the_start(
    name, made, little, whole, tmp_path, never_trained
):
    out = whole if made or name == "data.label" else tmp_path
    flags = ["--size=smoke", f"--data={little[0]}", f"--out={out}", "--max_new_tokens=125"]
    with pytest.raises(UserError, match="prompts.jsonl: the longest prompt .* --max_new_tokens"):
        run_main(name, "--device=cpu", *flags)


@pytest.mark.parametrize("name", ["sft", "reward", "ppo"])
@pytest.mark.parametrize(
    "line, says",
    [
        ('{"prompt": "Hi.", "response": 5}', "demonstrations.jsonl, line 181"),
        (json.dumps({"prompt": "Hi.", "response": "red " * 300}), "a demonstration has 3.. tokens"),
    ],
)
def test_a_bad_demonstration_is_found_before_pretraining(
    name, line, says, little, tmp_path, never_trained
):
    data = shutil.copytree(little[0], tmp_path / "little")
    with open(data / "demonstrations.jsonl", "a") as f:
        f.write(line + "\n")
    flags = ["--demonstrations=0"] if name == "sft" else []
    with pytest.raises(UserError, match=says):
        run_main(name, "--size=smoke", f"--data={data}", f"--out={tmp_path}/out", *flags)


def test_what_is_not_sampled_need_not_fit(little, whole, tmp_path):
    out = parents_only("reward", whole, tmp_path / "out")
    (little[0] / "comparisons.jsonl").write_bytes((whole / "comparisons.jsonl").read_bytes())
    try:
        run_little("reward", little[0], out, "--sources=file", "--max_new_tokens=125")
    finally:
        (little[0] / "comparisons.jsonl").unlink()


# ---- a terminal that is not there, files that are missing ----


@pytest.mark.parametrize("stdin", ["closed", "at its end"])
def test_no_input_ends_a_chat_and_a_labelling(stdin, little, whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", None if stdin == "closed" else io.StringIO())
    flags = ["--size=smoke", "--device=cpu", f"--data={little[0]}", f"--out={whole}"]
    run_main("chat", *flags)
    run_main("data.label", *flags, "--max_new_tokens=8", f"--file={tmp_path / 'mine.jsonl'}")
    assert "0 rankings" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["nowhere/mine.jsonl", "."])
def test_a_place_for_rankings_that_is_not_there(place, little, whole, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("a ranking was asked for"))
    flags = ["--size=smoke", f"--data={little[0]}", f"--out={whole}", f"--file={tmp_path / place}"]
    with pytest.raises(UserError, match="--file=.* is no place to write"):
        run_main("data.label", *flags)


def test_checkpoints_without_their_logs_are_evaluated(little, whole, tmp_path, capsys):
    for path in whole.glob("*.pt"):
        shutil.copy(path, tmp_path)
    flags = ["--size=smoke", "--device=cpu", f"--data={little[0]}", f"--out={tmp_path}"]
    run_main("evaluate", *flags, "--prompts=4", "--max_new_tokens=8")
    assert "no curves" in capsys.readouterr().out
    assert (tmp_path / "summary.json").exists() and not (tmp_path / "curves.png").exists()


# ---- the evaluation after PPO ----


@pytest.mark.parametrize("code", [0, 7, 130])
def test_the_evaluation_is_a_child_whose_exit_code_counts(code, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(run.subprocess, "call", lambda command: calls.append(command) or code)
    config = parse(importlib.import_module("ppo").Config, "", None, [f"--out={tmp_path}/a b"])

    def main():
        return run.evaluate_run(types.SimpleNamespace(config=config))

    with pytest.raises(SystemExit) as e:
        entry(main)
    assert e.value.code == code
    (command,) = calls
    assert os.path.basename(command[1]) == "evaluate.py" and f"--out={tmp_path}/a b" in command

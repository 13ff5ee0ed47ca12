"""The command line: every mistake is answered with a sentence, before anything is written."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
import time

import pytest
import torch

import ppo
import sft
from conftest import ROOT, run_main
from data import UserError
from model import GPTConfig
from plumbing.command_line import Common, entry, flag, parse
from plumbing.run import command_of, open_run

SCRIPTS = ["pretrain", "sft", "reward", "ppo", "evaluate", "chat"]


@dataclasses.dataclass
class Config(Common):
    """A stage of one's own."""

    steps: int = flag(10, "of the optimiser")
    lr: float = flag(1e-3, "peak learning rate")
    shuffle: bool = flag(True, "the data, every epoch; 100 % of it")


SMOKE = {"steps": 2}


def given(*argv):
    return parse(Config, "A stage of one's own.", SMOKE, list(argv))


def test_defaults_and_values():
    config = given("--steps=5", "--lr=3e-4", "--no-shuffle", "--data=data/village")
    assert (config.steps, config.lr, config.shuffle, config.seed) == (5, 3e-4, False, 1337)
    assert config.out == os.path.join("out", "village"), (
        "checkpoints go to out/<name of the data folder>"
    )
    assert given("--out=/tmp/x").out == "/tmp/x"
    assert given("--shuffle").shuffle is True


@pytest.mark.parametrize(
    "wrong, near",
    [
        ("--step=5", "--steps"),
        ("--seeed=5", "--seed"),
        ("--max-new-tokens=5", "--max_new_tokens"),
        ("--lrr", "--lr"),
    ],
)
def test_an_unknown_flag_names_the_nearest(wrong, near):
    with pytest.raises(UserError, match=rf"unknown flag.*did you mean {near}\?"):
        given(wrong)


@pytest.mark.parametrize("wrong", ["--xyzzy=1", "steps=5", "-s", "--steps 5"])
def test_what_is_no_flag_is_refused_and_not_ignored(wrong):
    with pytest.raises(UserError, match="unknown flag.*--help"):
        given(wrong)


@pytest.mark.parametrize(
    "wrong, expected",
    [
        ("--steps=ten", "a whole number"),
        ("--steps=1.5", "a whole number"),
        ("--steps=", "a whole number"),
        ("--lr=fast", "a number"),
        ("--shuffle=maybe", "explicit argument 'maybe'"),
        ("--steps", "expected one argument"),
    ],
)
def test_a_value_of_the_wrong_type_says_what_is_expected(wrong, expected):
    with pytest.raises(UserError, match=expected) as e:
        given(wrong)
    assert wrong.split("=")[0] in str(e.value), "the sentence must name the flag"


def test_a_value_may_follow_its_flag_after_a_space():
    for argv in (["--steps=4", "--lr=0.5"], ["--steps", "4", "--lr", "0.5"]):
        config = given(*argv)
        assert (config.steps, config.lr) == (4, 0.5)
    for module, name in ((sft, "epochs"), (ppo, "ppo_epochs")):
        one, two = (
            parse(module.Config, "", None, argv) for argv in ([f"--{name}=4"], [f"--{name}", "4"])
        )
        assert one == two and getattr(one, name) == 4


def test_a_yes_or_no_flag_can_be_turned_off():
    found = [given(*argv).compile for argv in ([], ["--compile"], ["--compile", "--no-compile"])]
    assert found == [False, True, False]
    on = given("--shuffle", "--no-shuffle", "--shuffle")
    assert on.shuffle is True, "the last one counts"


def test_a_stage_that_is_started_gets_the_flags_of_this_one():
    argv = ["--compile", "--seed=7", "--steps=3", "--out=mine"]
    _, script, *flags = command_of("sft", given(*argv))
    assert os.path.basename(script) == "sft.py"
    assert sorted(flags) == ["--compile", "--out=mine", "--seed=7"], (
        "it gets the flags that all stages have, and no other"
    )
    assert not [f for f in command_of("sft", given())[2:] if "compile" in f]


@pytest.mark.parametrize(
    "wrong",
    [
        "--size=gpt5",
        "--size=tinny",
        "--fresh=yes",
        "--dtype=int8",
        "--device=gpu7",
        "--data=nowhere",
    ],
)
def test_a_value_that_does_not_exist_is_refused(wrong, tmp_path):
    name, value = wrong.split("=")
    with pytest.raises(UserError, match=f"{name}.*{value}"):
        open_run("pretrain", given(f"--out={tmp_path}/run", wrong))
    assert not (tmp_path / "run").exists(), "something was written before the mistake was noticed"


def test_a_misspelt_size_names_the_nearest(tmp_path):
    with pytest.raises(UserError, match="did you mean tiny"):
        open_run("pretrain", given(f"--out={tmp_path}/run", "--size=tinny"))


@pytest.mark.parametrize("asked, said", [("ppo", True), ("pretrain", False)])
def test_ppo_says_after_its_first_steps_how_long_it_will_take(
    tmp_path, capsys, monkeypatch, asked, said
):
    monkeypatch.setattr("plumbing.run.PRETRAIN_SHARE", 0.25)
    monkeypatch.setenv("ASKED_FOR", asked)
    run = open_run("pretrain", given(f"--out={tmp_path}", "--device=cpu", "--steps=2400"))
    run.started = time.time() - 201  # a second a step, so far
    for step in range(210):
        run.log(step, {})
    minutes = capsys.readouterr().out.count("about 160 minutes in all")
    assert minutes == said, "a whole run takes four times as long as its pretraining, said once"


def test_smoke_shrinks_what_the_user_did_not_set():
    assert given("--size=smoke").steps == 2
    for flags in (["--size=smoke", "--steps=7"], ["--steps=7", "--size=smoke"]):
        assert given(*flags).steps == 7, "a flag must win over smoke's values, in any order"
    assert given().steps == 10


def test_fresh_takes_no_value_or_all():
    fresh = [given(*flags).fresh for flags in ([], ["--fresh"], ["--fresh=all"])]
    assert fresh == ["", "stage", "all"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_shows_every_flag_with_its_comment(name, capsys):
    module = importlib.import_module(name)
    with pytest.raises(SystemExit) as e:
        parse(module.Config, module.__doc__, argv=["--help"])
    assert e.value.code == 0
    said = capsys.readouterr().out
    assert f"python {name}.py" in said, "the launch line comes first"
    options = " ".join(said.split("\noptions:")[1].split())
    for field in dataclasses.fields(module.Config):
        comment = field.metadata["help"]
        assert comment.strip(), f"--{field.name} has no comment in {name}.py"
        assert f"--{field.name} " in options.replace(",", " "), (
            f"--help of {name}.py says nothing about --{field.name}"
        )
        within = field.metadata["within"] and f", in {field.metadata['within']}"
        assert f"{comment} ({field.default}{within})" in options.replace("- ", "-"), (
            f"--help of {name}.py lacks the comment on --{field.name}, its default or range"
        )


def test_a_percent_sign_in_a_comment_is_printed(capsys):
    with pytest.raises(SystemExit):
        given("--help")
    assert "100 % of it" in capsys.readouterr().out


def test_a_data_set_has_defaults_of_its_own(tmp_path):
    (tmp_path / "settings.json").write_text(
        '{"all": {"size": "mini", "iterations": 8},'
        ' "ppo": {"iterations": 7, "lr": 0.5}, "sft": {"ppo_epochs": 9}}'
    )
    config = parse(ppo.Config, ppo.__doc__, argv=[f"--data={tmp_path}", "--lr=0.25"])
    assert (config.iterations, config.lr, config.ppo_epochs) == (7, 0.25, ppo.Config.ppo_epochs), (
        "a flag comes before the folder's setting, that before the default"
    )
    assert config.size == "mini", '"all" holds where a stage has no setting of its own'
    argv = ["--size=smoke", f"--data={tmp_path}"]
    assert parse(ppo.Config, ppo.__doc__, {"iterations": 2}, argv).iterations == 2
    for wrong in (
        '{"ppo": {"iteration": 7}}',
        '{"ppo": {"iterations": "7"}}',
        "{",
        "[]",
        '{"ppo": 7}',
        '{"all": 7}',
    ):
        (tmp_path / "settings.json").write_text(wrong)
        with pytest.raises(UserError, match=r"settings\.json"):
            parse(ppo.Config, ppo.__doc__, argv=[f"--data={tmp_path}"])


@pytest.mark.parametrize("name", SCRIPTS)
def test_smoke_values_are_flags(name):
    module = importlib.import_module(name)
    assert set(getattr(module, "SMOKE", {})) <= {f.name for f in dataclasses.fields(module.Config)}
    parse(module.Config, module.__doc__, getattr(module, "SMOKE", None), ["--size=smoke"])


@pytest.mark.parametrize(
    "name, flags, says",
    [
        ("ppo", ["--top_k=5"], "rollouts"),
        ("ppo", ["--top_p=0.9"], "rollouts"),
        ("ppo", ["--temperature=0"], "range"),
        ("ppo", ["--episodes=10", "--minibatches=4"], "divide"),
        ("reward", ["--answers=1"], r"\[2, 9\]"),
        ("reward", ["--answers=10"], r"\[2, 9\]"),
        ("reward", ["--answers=3", "--others=3"], "one is the demonstration, so 0 to 2"),
        ("reward", ["--fold=2", "--round=2"], "leave out --round"),
        ("pretrain", ["--base=out/village/pretrain.pt"], "starts from none"),
        ("evaluate", ["--fresh"], "anew"),
        ("evaluate", ["--stages=pretrain,ppo"], "sft"),
        ("evaluate", ["--stages=sft,reward"], "reward"),
        ("evaluate", ["--stages=sft,rlhf"], "rlhf"),
    ],
)
def test_settings_that_can_not_work_are_refused_before_anything_starts(
    tmp_path, monkeypatch, name, flags, says
):
    monkeypatch.setattr(
        importlib.import_module("plumbing.run"),
        "Run",
        lambda *a, **k: pytest.fail(f"{name}.py started with {' '.join(flags)}"),
    )
    with pytest.raises(UserError, match=says):
        run_main(name, f"--out={tmp_path}/run", *flags)
    assert not (tmp_path / "run").exists(), "something was written before the mistake was noticed"


def test_top_k_in_rollouts_is_refused_with_a_sentence_and_exit_code_1(tmp_path):
    # tokens would be sampled from another distribution than the one they are scored with
    done = subprocess.run(
        [sys.executable, os.path.join(ROOT, "ppo.py"), "--top_k=5", f"--out={tmp_path}/run"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: ") and "top_k" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, f"not one sentence:\n{done.stderr}"
    assert os.listdir(tmp_path) == [], "something was written"


def test_a_mistake_of_ours_keeps_its_traceback():
    def broken():
        raise KeyError("a bug")

    with pytest.raises(KeyError):  # only what the user can mend becomes a sentence
        entry(broken)


def test_too_little_memory_is_a_sentence(capsys):
    def hungry():
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(SystemExit) as e:
        entry(hungry)
    assert e.value.code == 1 and "--micro_batch_size" in capsys.readouterr().err


def test_other_scripts_speak_the_same_dialect(tmp_path):
    for argv, says in (
        (["--bock=64"], "unknown flag --bock=64; did you mean --block"),
        (["--block", "many"], "--block: expected a whole number, found 'many'"),
    ):
        with pytest.raises(UserError, match=says):
            run_main("data.prepare", str(tmp_path), *argv)


def test_importing_a_stage_does_nothing(tmp_path):
    code = f"import sys; sys.path.insert(0, {ROOT!r}); import {', '.join(SCRIPTS)}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout == "" and os.listdir(tmp_path) == [], "an import has side effects"


def test_the_benchmark_measures_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(os.path.join(ROOT, "experiments"))
    bench = importlib.import_module("bench")
    monkeypatch.setattr(
        bench, "SHAPES", {name: (GPTConfig(128, 300, 1, 1, 16), 2) for name in bench.SHAPES}
    )
    # without the other libraries, even where they are installed
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(bench, "ceilings", lambda *a: {"matmul": 1e9, "copy": 1e9, "launch": 1e-6})
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "bench.py",
            "--work=train,sample,reward,ppo_gpt2",
            "--rounds=1",
            "--seconds=0.01",
            "--device=cpu",
            "--dtype=float32",
            f"--out={tmp_path / 'bench.json'}",
        ],
    )
    bench.main()
    with open(tmp_path / "bench.json") as f:
        work = json.load(f)["work"]
    assert set(work) == {"train", "sample", "reward", "ppo_gpt2"}
    assert all(row["rate"] > 0 for rows in work.values() for row in rows.values())
    assert work["ppo_gpt2"]["ours, float32"]["rollout"] > 0
    assert "answers/s" in capsys.readouterr().out

"""The command line: every mistake is answered with a sentence, before anything is written."""
import dataclasses
import importlib
import json
import os
import subprocess
import sys

import pytest

import ppo
from common import Common, Run, entry, parse
from conftest import ROOT, run_main
from data import UserError
from model import GPTConfig

SCRIPTS = ["pretrain", "sft", "reward", "ppo", "evaluate", "chat"]


@dataclasses.dataclass
class Config(Common):
    """A stage of one's own."""
    steps: int = 10             # of the optimiser
    lr: float = 1e-3            # peak learning rate
    shuffle: bool = True        # the data, every epoch


SMOKE = {"steps": 2}


def given(*argv):
    return parse(Config, "A stage of one's own.", SMOKE, list(argv))


def test_defaults_and_values():
    config = given("--steps=5", "--lr=3e-4", "--shuffle=false", "--data=data/village")
    assert (config.steps, config.lr, config.shuffle, config.seed) == (5, 3e-4, False, 1337)
    assert config.out == os.path.join("out", "village"), "checkpoints go to out/<name of the data folder>"
    assert given("--out=/tmp/x").out == "/tmp/x"
    assert given("--shuffle").shuffle is True


@pytest.mark.parametrize("flag, near", [("--step=5", "--steps="), ("--seeed=5", "--seed="), ("--max-new-tokens=5", "--max_new_tokens="), ("--lrr", "--lr=")])
def test_an_unknown_flag_names_the_nearest(flag, near):
    with pytest.raises(UserError, match=f"unknown flag.*did you mean {near}"):
        given(flag)


@pytest.mark.parametrize("flag", ["--xyzzy=1", "steps=5", "-s", "--", "--steps 5"])
def test_what_is_no_flag_is_refused_and_not_ignored(flag):
    with pytest.raises(UserError, match="unknown flag.*--help"):
        given(flag)


@pytest.mark.parametrize("flag, expected", [("--steps=ten", "a whole number"), ("--steps=1.5", "a whole number"), ("--steps=", "a whole number"),
                                            ("--lr=fast", "a number"), ("--shuffle=maybe", "true or false"), ("--steps", "needs a value")])
def test_a_value_of_the_wrong_type_says_what_is_expected(flag, expected):
    with pytest.raises(UserError, match=expected) as e:
        given(flag)
    assert flag.split("=")[0] in str(e.value), "the sentence must name the flag"


@pytest.mark.parametrize("flag", ["--size=gpt5", "--size=tinny", "--fresh=yes", "--dtype=int8", "--device=gpu7", "--data=nowhere"])
def test_a_value_that_does_not_exist_is_refused(flag, tmp_path):
    with pytest.raises(UserError, match=flag.replace("=", "=?")):
        Run("pretrain", given(f"--out={tmp_path}/run", flag))
    assert not (tmp_path / "run").exists(), "something was written before the mistake was noticed"


def test_a_misspelt_size_names_the_nearest():
    with pytest.raises(UserError, match="did you mean tiny"):
        given("--size=tinny")


def test_smoke_shrinks_what_the_user_did_not_set():
    assert given("--size=smoke").steps == 2
    assert given("--size=smoke", "--steps=7").steps == given("--steps=7", "--size=smoke").steps == 7, "a flag must win over smoke's values, in any order"
    assert given().steps == 10


def test_fresh_takes_no_value_or_all():
    assert (given().fresh, given("--fresh").fresh, given("--fresh=all").fresh) == ("", "stage", "all")


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_shows_every_flag_with_its_comment(name, capsys):
    module = importlib.import_module(name)
    with pytest.raises(SystemExit) as e:
        parse(module.Config, module.__doc__, argv=["--help"])
    assert e.value.code == 0
    said = capsys.readouterr().out
    assert f"python {name}.py" in said, "the launch line comes first"
    for field in dataclasses.fields(module.Config):
        line, = [x for x in said.splitlines() if x.startswith(f"  --{field.name}=")] or [""]
        flag, _, comment = line.strip().partition(" ")
        assert flag == f"--{field.name}={field.default}", f"--help of {name}.py says nothing about --{field.name}"
        assert comment.strip(), f"--{field.name} has no comment in {name}.py"


def test_a_data_set_has_defaults_of_its_own(tmp_path):
    (tmp_path / "settings.json").write_text('{"all": {"size": "mini", "iterations": 8}, "ppo": {"iterations": 7, "lr": 0.5}, "sft": {"epochs": 9}}')
    config = parse(ppo.Config, ppo.__doc__, argv=[f"--data={tmp_path}", "--lr=0.25"])
    assert (config.iterations, config.lr, config.epochs) == (7, 0.25, ppo.Config.epochs), "a flag comes before the folder's setting, that before the default"
    assert config.size == "mini", "what is said of all stages holds where a stage says nothing else"
    assert parse(ppo.Config, ppo.__doc__, {"iterations": 2}, ["--size=smoke", f"--data={tmp_path}"]).iterations == 2
    for wrong in ('{"ppo": {"iteration": 7}}', '{"ppo": {"iterations": "7"}}', "{", "[]", '{"ppo": 7}', '{"all": 7}'):
        (tmp_path / "settings.json").write_text(wrong)
        with pytest.raises(UserError, match=r"settings\.json"):
            parse(ppo.Config, ppo.__doc__, argv=[f"--data={tmp_path}"])


@pytest.mark.parametrize("name", SCRIPTS)
def test_smoke_values_are_flags(name):
    module = importlib.import_module(name)
    assert set(getattr(module, "SMOKE", {})) <= {f.name for f in dataclasses.fields(module.Config)}
    parse(module.Config, module.__doc__, getattr(module, "SMOKE", None), ["--size=smoke"])


@pytest.mark.parametrize("name, flags, says", [
    ("ppo", ["--top_k=5"], "rollouts"), ("ppo", ["--top_p=0.9"], "rollouts"), ("ppo", ["--temperature=0"], "above 0"), ("ppo", ["--episodes=10", "--minibatches=4"], "divide"),
    ("reward", ["--answers=1"], "2 to 9"), ("reward", ["--answers=10"], "2 to 9"),
    ("pretrain", ["--base=out/village/pretrain.pt"], "starts from none"), ("evaluate", ["--fresh"], "anew"),
    ("evaluate", ["--stages=pretrain,ppo"], "sft"), ("evaluate", ["--stages=sft,reward"], "reward"), ("evaluate", ["--stages=sft,rlhf"], "rlhf")])
def test_settings_that_can_not_work_are_refused_before_anything_starts(tmp_path, monkeypatch, name, flags, says):
    monkeypatch.setattr(importlib.import_module(name), "Run", lambda *a, **k: pytest.fail(f"{name}.py started with {' '.join(flags)}"))
    with pytest.raises(UserError, match=says):
        run_main(name, f"--out={tmp_path}/run", *flags)
    assert not (tmp_path / "run").exists(), "something was written before the mistake was noticed"


def test_top_k_in_rollouts_is_refused_with_a_sentence_and_exit_code_1(tmp_path):
    # what is sampled would not be what is scored
    done = subprocess.run([sys.executable, os.path.join(ROOT, "ppo.py"), "--top_k=5", f"--out={tmp_path}/run"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: ") and "top_k" in done.stderr and len(done.stderr.strip().splitlines()) == 1, f"not one sentence:\n{done.stderr}"
    assert os.listdir(tmp_path) == [], "something was written"


def test_a_mistake_of_ours_keeps_its_traceback():
    def broken():
        raise KeyError("a bug")
    with pytest.raises(KeyError):       # only what the user can mend is turned into a sentence
        entry(broken)


def test_importing_a_stage_does_nothing(tmp_path):
    code = f"import sys; sys.path.insert(0, {ROOT!r}); import {', '.join(SCRIPTS)}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout == "" and os.listdir(tmp_path) == [], "an import has side effects"


def test_the_benchmark_measures_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(os.path.join(ROOT, "experiments"))
    bench = importlib.import_module("bench")
    monkeypatch.setattr(bench, "SHAPES", {name: (GPTConfig(128, 300, 1, 1, 16), 2) for name in bench.SHAPES})
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)       # the peers are another matter
    monkeypatch.setattr(bench, "ceilings", lambda *a: {"matmul": 1e9, "copy": 1e9, "launch": 1e-6})
    monkeypatch.setattr(sys, "argv", ["bench.py", "--work=train,sample,reward,ppo_gpt2", "--rounds=1", "--seconds=0.01", "--device=cpu", "--dtype=float32", f"--out={tmp_path / 'bench.json'}"])
    bench.main()
    with open(tmp_path / "bench.json") as f:
        work = json.load(f)["work"]
    assert set(work) == {"train", "sample", "reward", "ppo_gpt2"} and all(row["rate"] > 0 for rows in work.values() for row in rows.values())
    assert work["ppo_gpt2"]["ours, float32"]["rollout"] > 0 and "answers/s" in capsys.readouterr().out

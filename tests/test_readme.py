"""What the README prints for people to type works as it is printed."""
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import torch

import common
from conftest import ROOT, STAGES, log_of, parents_only, run_little


def snippet(heading):
    """The first indented block under a heading of README.md, without the indent."""
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as f:
        text = f.read().split(f"## {heading}\n", 1)[1]
    return re.sub(r"^    ", "", re.search(r"(?:^    .*\n)+", text, re.M)[0], flags=re.M)


def test_your_own_data_in_ten_lines(tmp_path):
    lines = snippet("Your own data in ten lines")
    assert len(lines.splitlines()) <= 10 and lines.endswith("python ppo.py --data=mine\n")
    (tmp_path / "data").mkdir()
    for path in ("data/__init__.py", "data/prepare.py"):
        shutil.copy(os.path.join(ROOT, path), tmp_path / path)
    commands = lines.replace("python ", f"{sys.executable} ").rsplit("\n", 2)[0]        # all but ppo.py, which follows stage by stage, with few steps
    result = subprocess.run(["bash", "-euc", commands], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for stage in STAGES:
        run_little(stage, tmp_path / "data" / "mine", tmp_path / "out")
    assert (tmp_path / "out" / "ppo.pt").exists()


def block(text, marker):
    """The lines of the indented block of a text in which `marker` stands, indent taken off."""
    lines = text.splitlines()
    at = next((i for i, line in enumerate(lines) if line.startswith("    ") and marker in line), None)
    assert at is not None, f"README.md has no snippet with {marker!r} any more"
    first, last = at, at
    while first and (lines[first - 1].startswith("    ") or not lines[first - 1]):
        first -= 1
    while last + 1 < len(lines) and (lines[last + 1].startswith("    ") or not lines[last + 1]):
        last += 1
    return [line[4:] for line in lines[first:last + 1] if line.strip()]


@pytest.fixture(scope="module")
def readme():
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as f:
        return f.read()


def flags_of(lines, script):
    """The flags that a snippet gives to a script."""
    line, = [x for x in lines if x.startswith(f"python {script}")]
    return shlex.split(line, comments=True)[2:]


def test_the_readmes_reward_function_shortens_answers(readme, little, tmp_path, monkeypatch):
    data, before = little
    (tmp_path / "short.py").write_text("\n".join(block(readme, "def score(prompt, response)")))
    flags = flags_of(block(readme, "--reward=short.py:score"), "ppo.py")
    out = parents_only("reward", before, tmp_path / "out" / "short")
    monkeypatch.chdir(tmp_path)
    small = ["--iterations=10", "--episodes=64", "--minibatches=4", "--lr=5e-3", "--warmup=1", "--eval_every=1", "--ptx_coef=0"]
    run_little("ppo", data, out, *[f for f in flags if not f.startswith(("--out", "--iterations"))], *small)
    length = [x["response/length"] for x in log_of(out, "ppo")]
    assert sum(length[-2:]) / 2 < 0.7 * length[0], f"a function that asks for short answers got {length}"


def test_the_readmes_export_is_read_by_transformers(readme, whole, vocab, tmp_path, monkeypatch):
    code = shlex.split(block(readme, "save_pretrained('")[0])
    assert code[:2] == ["python", "-c"]
    (tmp_path / "out" / "village").mkdir(parents=True)
    shutil.copy(whole / "ppo.pt", tmp_path / "out" / "village")
    monkeypatch.chdir(tmp_path)
    exec(code[2], {})
    from transformers import GPT2LMHeadModel
    theirs, ours = GPT2LMHeadModel.from_pretrained(tmp_path / "exported").eval(), common.model_from(common.load(str(whole / "ppo.pt")))
    tokens = torch.tensor([vocab.prompt("Name a pet.") + vocab.response("A cat.")])
    with torch.no_grad():
        a, b = ours(tokens), theirs(tokens).logits
    assert a.shape == b.shape and torch.allclose(a, b, atol=2e-4), "another network is read than was trained"
    assert a.size(-1) == vocab.size, "the special tokens' rows are missing"

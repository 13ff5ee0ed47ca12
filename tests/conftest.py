"""
What all tests share. `python -m pytest` needs neither a network nor a GPU.

Every test is named after the mistake that it catches. Its numbers can be checked by hand.
"""

import gc
import importlib
import json
import os
import random
import shutil
import signal
import sys

import plumbing.cpu
import numpy as np
import pytest
import torch

from data.vocab import Vocab
from plumbing.run import read_log
from plumbing.stages import STAGES

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# no test may use the network; a request that is made all the same fails at once
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
os.environ.update(HTTPS_PROXY="http://127.0.0.1:9", NO_PROXY="127.0.0.1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

torch.set_num_threads(1)  # the same sums in the same order on every machine
os.environ["OMP_NUM_THREADS"] = "1"  # and in the processes that tests start

# the files that take the longest, before the others: so two processes end together
FIRST = ["test_resume.py", "test_recipe.py", "test_assignment.py"]


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Run the whole suite in two processes, where pytest-xdist is installed; a part of it in this.

    Here what is printed is seen, and --pdb works. A file's tests stay in one process. -n0 counts.
    """
    options, whole = config.option, all(map(os.path.isdir, config.args))
    if whole and not (options.keyword or options.usepdb or options.capture == "no"):
        if getattr(options, "numprocesses", 0) is None and not hasattr(config, "workerinput"):
            options.numprocesses, options.dist, options.loadscopereorder = 2, "loadfile", False


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in FIRST)
    gc.freeze()  # torch's objects, which need not be looked through again and again


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(1337)


@pytest.fixture(scope="session")
def village():
    """The folder of the default data set. Git keeps its vocabulary, but not its text."""
    return os.path.join(ROOT, "data", "village")


@pytest.fixture(scope="session")
def vocab(village):
    return Vocab(village)


@pytest.fixture(autouse=True)
def ctrl_c():
    """Stages handle Ctrl-C themselves; give pytest its handler back."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)
    torch.set_flush_denormal(False)


def brief(prompt, response):
    """A function for --reward=conftest:brief: short answers are better."""
    return -len(response.split())


def run_main(name, *argv):
    """The script's main() with these arguments, in this process."""
    module, before = importlib.import_module(name), sys.argv
    sys.argv = [name + ".py", *argv]
    try:
        module.main()
    finally:
        sys.argv = before


# ---- all stages in seconds, in this process, on data written by hand ----


@pytest.fixture(scope="session")
def little(tmp_path_factory, village):
    """A data folder as anybody could write it: the files, and no prepare.py.

    → (data folder, folder in which all stages but PPO are finished)
    """
    from test_data import KINDS, SHARES, prepare

    folder = tmp_path_factory.mktemp("little") / "data"
    folder.mkdir()
    for name in os.listdir(village):
        if name.startswith("vocab.") or name.endswith(".py") and name != "prepare.py":
            shutil.copy(os.path.join(village, name), folder)
    vocab, rng = Vocab(str(folder)), random.Random(0)
    for name, n in (("train.bin", 300), ("val.bin", 40)):
        ids = [i for text in prepare.documents(rng, n) for i in [*vocab.encode(text), vocab.eos]]
        np.array(ids, dtype=np.uint16).tofile(folder / name)
    with open(folder / "demonstrations.jsonl", "w") as d, open(folder / "prompts.jsonl", "w") as p:
        for split, n in (("train", 160), ("heldout", 20)):
            for row, last in prepare.prompts(rng, n, split, SHARES, vocab):
                row = {key: row[key] for key in ("prompt", "meaning", "split") if key in row}
                response = KINDS[last.kind].good(last.slots, rng)
                d.write(json.dumps({**row, "response": response}) + "\n")
                p.write(json.dumps(row) + "\n")
    one_of_each = {row["ability"]: row for row in prepare.ability_questions(rng)}
    with open(folder / "abilities.jsonl", "w") as f:
        f.writelines(json.dumps(row) + "\n" for row in one_of_each.values())
    out = folder.parent / "out"
    for stage in STAGES[:-1]:
        run_little(stage, folder, out)
    return folder, out


@pytest.fixture(scope="session")
def whole(little, tmp_path_factory):
    """The same with PPO finished as well. → folder"""
    data, before = little
    out = tmp_path_factory.mktemp("whole") / "out"
    shutil.copytree(before, out)
    run_little("ppo", data, out)
    return out


# a few steps of each stage, with everything switched on that has a state to lose
FLAGS = {
    "pretrain": ["--steps=5", "--batch=4", "--dropout=0.1"],
    "sft": ["--demonstrations=64", "--batch=16", "--epochs=2", "--dropout=0.1"],
    "reward": ["--prompts=16", "--heldout=8", "--answers=3", "--batch=4"],
    "ppo": [
        "--iterations=3",
        "--episodes=8",
        "--minibatches=2",
        "--ppo_epochs=2",
        "--adaptive_kl=0.001",
        "--eval_every=2",
        "--lr=1e-3",
    ],
}


def run_little(stage, data, out, *flags):
    with pytest.MonkeyPatch.context() as m:
        m.setattr("ppo.evaluate_run", lambda *a: None)  # no table at the end
        run_main(
            stage,
            "--size=smoke",
            "--device=cpu",
            "--dtype=float32",
            "--max_new_tokens=24",
            f"--data={data}",
            f"--out={out}",
            *FLAGS[stage],
            *flags,
        )


def parents_only(stage, source, out):
    shutil.copytree(source, out)
    for name in STAGES[STAGES.index(stage) :]:
        for ending in (".pt", ".jsonl"):
            (out / (name + ending)).unlink(missing_ok=True)
    return out


def log_of(out, stage):
    return read_log(os.path.join(out, stage + ".jsonl"))


def equal(a, b):
    """Whether two checkpoints' contents are the same, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b

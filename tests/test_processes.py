"""
Several processes do what one does, and a batch in parts what a whole one does, up to rounding.

Forks of this process join as torchrun's would, but need not import anything again.
"""
import os
import socket
import sys

import pytest
import torch

import common
from conftest import STAGES, log_of, parents_only, run_little
from data import UserError
from test_resume import end_of, fork, trains_in_a_fork

# no dropout, which each process draws for itself; odd batches, of which the processes have unequal shares
FLAGS = {"pretrain": ["--dropout=0", "--batch=5"], "sft": ["--dropout=0", "--batch=21", "--pretrain_mix=0.05"], "reward": ["--batch=5", "--epochs=2"],
         "ppo": ["--episodes=10", "--minibatches=2", "--micro=2", "--ptx_ratio=0.6", "--lr=2e-4"]}


def one_of_two(rank, port, stage, data, out):
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    for module in ("common", "pretrain", "reward"):
        for name, value in (("RANK", rank), ("WORLD", 2)):
            if hasattr(sys.modules.get(module), name):
                setattr(sys.modules[module], name, value)
    run_little(stage, data, out, *FLAGS[stage])


@trains_in_a_fork
@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_do_what_one_does(stage, little, whole, tmp_path):
    import pretrain, reward     # noqa: E401, F401  so that the forks have them
    data, outs = little[0], [parents_only(stage, whole, tmp_path / name) for name in ("one", "two")]
    for out in outs:
        (out / "comparisons.jsonl").unlink()
    run_little(stage, data, outs[0], *FLAGS[stage])
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    assert [end_of(pid) for pid in [fork(one_of_two, rank, port, stage, data, outs[1]) for rank in (0, 1)]] == [0, 0]
    same_steps(stage, outs, "of one process", "of two")
    if stage == "reward":
        assert (outs[0] / "comparisons.jsonl").read_bytes() == (outs[1] / "comparisons.jsonl").read_bytes(), "an answer depends on which process samples it"


def same_steps(stage, outs, this, that):
    one, two = (common.load(str(out / f"{stage}.pt")) for out in outs)
    start = common.load(str(outs[0] / f"{one['parents'] and list(one['parents'])[0] or stage}.pt"))["model"]
    for name, a in one["model"].items():    # roughly: Adam makes much of gradients that are 0 but for rounding. Their norm, in the log, is held equal
        b = two["model"][name]
        assert torch.allclose(a, b, atol=5e-4), f"{name} differs by {(a - b).abs().max():.1e}: a share of the loss is not weighed right, or gradients are not added"
    assert stage == "pretrain" or any(not torch.equal(a, start[name]) for name, a in one["model"].items() if name in start)
    logs = [log_of(out, stage) for out in outs]
    assert len(logs[0]) == len(logs[1]), "not the first process alone writes the log"
    for a, b in zip(*logs):
        for key in a:
            assert "second" in key or abs(a[key] - b[key]) <= 1e-3 * max(1, abs(a[key])), f"{key} is {a[key]} {this}, {b[key]} {that}"


@pytest.mark.parametrize("stage", STAGES[:3])
def test_microbatches_change_nothing_in_the_stages_before(stage, little, whole, tmp_path):
    outs = [parents_only(stage, whole, tmp_path / name) for name in ("one", "parts")]
    for out, flags in zip(outs, ([], ["--micro=2"])):
        run_little(stage, little[0], out, *{"pretrain": ["--dropout=0"], "sft": ["--dropout=0", "--pretrain_mix=0.3"], "reward": []}[stage], *flags)
    same_steps(stage, outs, "of whole batches", "of parts")


def test_with_several_processes_a_missing_stage_is_named_and_not_started(little, tmp_path, monkeypatch):
    monkeypatch.setattr(common, "WORLD", 2)
    with pytest.raises(UserError, match="torchrun --nproc_per_node=2 pretrain.py first"):
        run_little("sft", little[0], tmp_path / "out")

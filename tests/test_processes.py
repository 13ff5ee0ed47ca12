"""
Several processes do what one does, and microbatches what a whole batch does, up to rounding.

The processes are forks of this one: they join as torchrun's would, and need not import torch again.
"""

import contextlib
import os
import signal
import socket
import subprocess
import threading

import pytest
import torch

import comparisons
import pretrain
from conftest import STAGES, log_of, parents_only, run_little
from data import UserError, folder_of
from plumbing import device, processes, run
from plumbing.checkpoint import load
from test_resume import end_of, fork, trains_in_a_fork

# no dropout, which each process draws for itself; odd batches, so that the shares are unequal
FLAGS = {
    "pretrain": ["--dropout=0", "--batch=5", "--lr=0.1"],
    "sft": ["--dropout=0", "--batch=21", "--pretrain_mix=0.05", "--lr=0.1"],
    "reward": ["--batch=5", "--epochs=2", "--max_new_tokens=48", "--lr=0.1"],
    "ppo": [
        "--episodes=10",
        "--minibatches=2",
        "--micro_batch_size=2",
        "--ptx_ratio=0.6",
        "--lr=0.1",
        "--critic_lr=0.1",
        "--ema=0",
    ],
}


@pytest.fixture
def sgd(monkeypatch):
    """All stages step by plain gradient descent, so weights differ as little as gradients do.

    Adam divides a gradient by its size: one that is 0 but for rounding makes a whole step.
    """
    makers = [f"{stage}.adamw" for stage in STAGES] + ["pretrain.muon", "sft.muon"]
    for maker in makers:
        monkeypatch.setattr(
            maker, lambda model, lr, *a, **k: torch.optim.SGD(model.parameters(), lr)
        )


def one_of_two(rank, port, stage, data, out):
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE="2",
        LOCAL_RANK=str(rank),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    for module in (comparisons, pretrain, device, processes, run):
        for name, value in (("RANK", rank), ("WORLD", 2)):
            if hasattr(module, name):
                setattr(module, name, value)
    run_little(stage, data, out, *FLAGS[stage])


def free_port():
    """A port for two processes to meet at. Without a loopback they would wait for ever: skip."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError as e:
            pytest.skip(f"processes can't reach each other at 127.0.0.1: {e}")
        return port


@trains_in_a_fork
@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_do_what_one_does(stage, little, whole, tmp_path, sgd):
    data, outs = little[0], [parents_only(stage, whole, tmp_path / name) for name in ("one", "two")]
    for out in outs:
        (out / "comparisons.jsonl").unlink()
    run_little(stage, data, outs[0], *FLAGS[stage])
    port = free_port()
    pids = [fork(one_of_two, rank, port, stage, data, outs[1]) for rank in (0, 1)]
    try:
        assert [end_of(pid, 60) for pid in pids] == [0, 0]
    finally:
        for pid in pids:  # if one failed, the other one waits for it
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    same_steps(stage, outs, "of one process", "of two")
    if stage == "reward":
        one, two = ((out / "comparisons.jsonl").read_bytes() for out in outs)
        assert one == two, "an answer depends on which process samples it"


def same_steps(stage, outs, this, that):
    one, two = (load(str(out / f"{stage}.pt")) for out in outs)
    # rounding alone makes differences of 1e-7, whatever SFT's weights are
    for name, a in one["model"].items():
        b = two["model"][name]
        assert torch.allclose(a, b, rtol=0, atol=5e-6), (
            f"{name} differs by {(a - b).abs().max():.1e}: "
            "a share of the loss has a wrong weight, or gradients are not added"
        )
    if stage != "pretrain":
        start = load(str(outs[0] / f"{list(one['parents'])[0]}.pt"))["model"]
        both = [name for name in one["model"] if name in start]
        assert any(not torch.equal(one["model"][name], start[name]) for name in both)
    logs = [log_of(out, stage) for out in outs]
    assert len(logs[0]) == len(logs[1]), "not the first process alone writes the log"
    for a, b in zip(*logs):
        for key in a:
            assert "second" in key or abs(a[key] - b[key]) <= 1e-4 * max(1, abs(a[key])), (
                f"{key} is {a[key]} {this}, {b[key]} {that}"
            )


@pytest.mark.parametrize("stage", STAGES[:3])
def test_microbatches_change_nothing_in_the_stages_before(stage, little, whole, tmp_path, sgd):
    outs = [parents_only(stage, whole, tmp_path / name) for name in ("one", "parts")]
    flags = {"pretrain": ["--dropout=0"], "sft": ["--dropout=0", "--pretrain_mix=0.3"]}
    for out, more in zip(outs, ([], ["--micro_batch_size=2"])):
        run_little(stage, little[0], out, *flags.get(stage, []), "--lr=0.1", *more)
    same_steps(stage, outs, "of whole batches", "of parts")


def test_one_process_of_a_machine_prepares_the_data(tmp_path, monkeypatch):
    (tmp_path / "prepare.py").touch()
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(subprocess, "call", lambda *a: pytest.fail("a second one prepares it"))

    def prepare():
        for name in ("train.bin", "val.bin", "demonstrations.jsonl", "prompts.jsonl"):
            (tmp_path / name).touch()

    waiting = threading.Timer(0.1, prepare)
    waiting.start()
    assert folder_of(str(tmp_path)) == str(tmp_path) and (tmp_path / "prompts.jsonl").exists()
    waiting.join()


def test_a_process_touches_no_other_gpu_than_its_own(monkeypatch):
    touched = []
    monkeypatch.setattr(device, "WORLD", 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda d: touched.append(("set", d.index)))
    monkeypatch.setattr(torch, "empty", lambda *a, device: touched.append(("empty", device.index)))
    device.pick_device("cuda")
    assert touched == [("set", 1), ("empty", 1)]


def test_bf16_that_a_gpu_only_emulates_is_not_taken(monkeypatch):
    """As on a T4 or V100, where it is slower than float32. MPS says nothing, so it has float32."""
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation
    )
    for name in ("cuda", "mps"):
        assert device.pick_dtype("auto", torch.device(name)) == torch.float32


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(device, "WORLD", 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="more than 1 processes.*--nproc_per_node=1"):
        device.pick_device("cuda")


def test_with_several_processes_a_missing_stage_is_named_and_not_started(
    little, tmp_path, monkeypatch
):
    monkeypatch.setattr(run, "WORLD", 2)
    with pytest.raises(UserError, match="torchrun --nproc_per_node=2 pretrain.py first"):
        run_little("sft", little[0], tmp_path / "out")

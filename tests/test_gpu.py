"""What only a GPU can show. Skipped, with the reason, where there is none."""

import copy
import os
import subprocess
import sys

import pytest
import torch

from conftest import ROOT
from model import GPT, GPTConfig
from plumbing.device import pick_dtype
from pretrain import lm_loss
from sampling import decode
from test_model import PROMPTS, fast_generate, small

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def test_training_takes_the_flash_kernel():
    model = GPT(GPTConfig(256, 512, 2, 2, 128)).cuda()
    model.compute_dtype = torch.bfloat16
    x = torch.randint(512, (4, 256), device="cuda")
    both = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=both) as profile:
        lm_loss(model(x)[:, :-1], x).backward()
    names = [e.key.lower() for e in profile.key_averages()]
    flash = [n for n in names if "flash" in n]
    assert {"backward" in n for n in flash} == {False, True}, (
        f"another attention kernel was taken: {names}"
    )


def test_bfloat16_is_the_default():
    fast = torch.cuda.get_device_capability() >= (8, 0)  # Ampere and newer
    dtype = pick_dtype("auto", torch.device("cuda"))
    assert dtype == (torch.bfloat16 if fast else torch.float32)


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_the_recorded_step_samples_what_a_cpu_samples(temperature, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    model = small(vocab_size=15, n_layer=3)
    on_gpu = copy.deepcopy(model).cuda()
    a, b = (fast_generate(m, PROMPTS, 30, temperature, 0, 7) for m in (model, on_gpu))
    same = sum(x == y for x, y in zip(a, b))
    assert same >= len(PROMPTS) - 1, (
        f"{same} of {len(PROMPTS)} answers are alike; rounding may turn one"
    )
    assert [len(row) for row in fast_generate(on_gpu, PROMPTS[:1], 1, 1.0, None, 3)] == [1]


def test_sampling_does_not_wait_for_the_gpu_at_each_step():
    model = small(vocab_size=15).cuda()
    fast_generate(model, PROMPTS, 8, 1.0, None, 1)
    noise = torch.rand(len(PROMPTS), 12, device="cuda")
    steps = decode(model, PROMPTS, noise, 0, (1.0, None, None))
    next(steps)  # this one may wait: it copies the prompts and records a step
    torch.cuda.set_sync_debug_mode("error")
    try:
        for t, _ in enumerate(steps, 1):
            pass
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert t == 11


def test_the_whole_recipe_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, "ppo.py", "--size=smoke", "--device=cuda", f"--out={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "summary.json").exists()

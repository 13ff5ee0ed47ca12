"""Where a run computes, in which precision, and how long each step takes."""
import contextlib
import os
import time

import torch

from data import UserError
from plumbing.processes import WORLD


def pick_device(name):
    """--device → torch.device, for each process a GPU of its own. Raises UserError if it can't."""
    if name == "auto":
        name = ("cuda" if torch.cuda.is_available() else
                "mps" if torch.backends.mps.is_available() else "cpu")
    if name == "cuda" and WORLD > 1:
        rank, n = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if rank >= n:
            raise UserError(f"torchrun started more than {n} processes, one for each GPU here: "
                            f"give --nproc_per_node={n}")
        name = f"cuda:{rank}"
    try:
        device = torch.device(name)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ValueError) as e:
        reason = str(e).splitlines()[0]
        raise UserError(f"--device={name} can't be used here: {reason}") from None
    return device


def pick_dtype(name, device):
    """--dtype → torch.dtype. auto takes bfloat16 only where the hardware multiplies it fast.

    These are NVIDIA's GPUs since Ampere, and CPUs with AVX-512 BF16. Older GPUs only emulate it.
    """
    if name == "auto":
        fast = (torch.cuda.is_bf16_supported(including_emulation=False)
                if device.type == "cuda" else
                device.type == "cpu" and hasattr(torch.cpu, "_is_avx512_bf16_supported")
                and torch.cpu._is_avx512_bf16_supported())
        name = "bfloat16" if fast else "float32"
    if name not in ("float32", "bfloat16"):
        raise UserError(f"--dtype={name}: give float32 or bfloat16")
    return getattr(torch, name)


def to_device(x, device):
    """A CPU tensor on the device, without waiting for what the device is doing."""
    if torch.device(device).type == "cuda":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def synchronize(device):
    """Wait until a GPU has done all that was asked of it. A clock read before that shows less."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class Timer:
    """Seconds by name: `with timed("rollout"): …` adds to timed.seconds["rollout"]."""

    def __init__(self, device):
        self.device, self.seconds = device, {}

    @contextlib.contextmanager
    def __call__(self, name):
        synchronize(self.device)
        start = time.perf_counter()
        yield
        synchronize(self.device)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

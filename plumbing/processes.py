"""
Several processes: torchrun --nproc_per_node=2 sft.py

Each process takes its share of a batch's rows, and `update` adds their gradients. With one process
all of this does nothing.
"""
import importlib
import os
import sys

import torch
import torch.distributed as dist

from data import UserError

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def join_processes(device):
    """Join the group that torchrun started. Only the first process prints."""
    if WORLD == 1:
        return
    if not dist.is_initialized():
        # gloo for what lies on the CPU, such as the objects of all_gather
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    if RANK:
        sys.stdout = open(os.devnull, "w", encoding="utf-8", errors="replace")


def leave_processes():
    """Leave the group: what follows is the first process's alone."""
    if dist.is_initialized():
        dist.destroy_process_group()


def lock(path):
    """Lock a file until this process ends or closes it → the open file.

    The system drops a dead process's locks. Raises UserError if a living one has it.
    """
    f = open(path, "a+", encoding="utf-8")
    try:
        if os.name == "nt":
            f.seek(100)     # what is locked can't be read there: not the id
            msvcrt = importlib.import_module("msvcrt")
            msvcrt.locking(f.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl = importlib.import_module("fcntl")
            fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        f.seek(0)
        raise UserError(f"process {f.read(20).strip()} has locked {path}: it makes the same stage "
                        f"there; wait for it, stop it, or give another --out") from None
    except OSError:         # a file system without locks
        return f
    f.truncate(0)
    f.write(f"{os.getpid()}\n")
    f.flush()
    return f


def shard(rows):
    """This process's share of the rows of a batch: every WORLD-th."""
    return rows[RANK::WORLD]


def all_reduce(x):
    """The sum of a tensor over all processes; the tensor itself if there is only one."""
    if WORLD > 1:
        x = x.detach().clone()
        dist.all_reduce(x)
    return x


def all_gather(rows):
    """Each process's list, as `shard` deals it out → the whole list in its order."""
    if WORLD == 1:
        return rows
    shares = [None] * WORLD
    dist.all_gather_object(shares, rows)
    whole = [None] * sum(map(len, shares))
    for rank, share in enumerate(shares):
        whole[rank::WORLD] = share
    return whole


def add_gradients(parameters):
    """Sum the gradients over all processes, in one message. Each loss is a share of the batch's."""
    if WORLD == 1:
        return
    parameters = [p for p in parameters if p.requires_grad]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    total = all_reduce(torch.cat([g.flatten() for g in gradients]))
    for p, g in zip(parameters, total.split([p.numel() for p in parameters])):
        p.grad = g.view_as(p)

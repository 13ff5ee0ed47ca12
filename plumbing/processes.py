"""
Several processes: torchrun --nproc_per_node=2 sft.py

Each process takes its share of a batch's rows, and `update` adds their gradients. With one process
all of this does nothing.
"""
import os
import sys

import torch
import torch.distributed as dist

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def join_processes(device):
    """Join the group that torchrun started. Only the first process prints."""
    if WORLD == 1:
        return
    if not dist.is_initialized():
        # gloo for what lies on the CPU, such as the objects of all_gather
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    if RANK:
        sys.stdout = open(os.devnull, "w")


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

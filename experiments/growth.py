"""
How cost grows with the batch, the length of answers and the size of the model.

    python experiments/growth.py                # about two minutes on a CPU
    python experiments/growth.py --threads=1

Times training and sampling, and writes growth.csv and growth.png beside this file. Models have
vocabulary 1024 and block 160. Batch: training on rows of 128 tokens, sampling 32 new tokens after
32. Answers: 64 rows, prompts of 32 tokens. Size: 32 rows of 128 tokens to train on, 64 rows and 32
new tokens to sample.
"""

import csv
import os
import time

import project

import plumbing.cpu
import sampling
import torch
from common import adamw, update
from data import replacing
from model import GPT, GPTConfig
from plumbing.command_line import Parser, entry, value_of
from plumbing.device import pick_device, pick_dtype, synchronize
from pretrain import lm_loss

# layers, heads, width
SIZES = [(2, 2, 32), (2, 2, 64), (4, 4, 128), (4, 4, 256), (6, 6, 384), (8, 8, 512)]
TITLES = {
    "batch": ("rows in the batch", "More rows cost little until the machine is busy"),
    "answer": ("new tokens in an answer", "Sampling grows with its new tokens"),
    "size": ("parameters without embeddings", "Cost grows more slowly than size"),
}


def clock(device):
    synchronize(device)
    return time.perf_counter()


def seconds(function, device, least=0.4):
    """The fastest of at least two calls that last at least so long together.

    The fastest, since other work of the machine can only add to the time.
    """
    function()
    times = []
    while len(times) < 2 or sum(times) < least:
        start = clock(device)
        function()
        times.append(clock(device) - start)
    return min(times)


def train(model, optimizer, batch, device):
    x = torch.randint(1024, (batch, 129), device=device)

    def step():
        lm_loss(model(x[:, :-1]), x).backward()
        update(model, optimizer, 1e-5)

    return seconds(step, device)


def sample(model, batch, new, device):
    prompts = torch.randint(1024, (batch, 32)).tolist()

    return seconds(lambda: sampling.generate(model, prompts, new), device)


def measure(device, dtype):
    """All timings → rows of growth.csv"""
    rows = []

    def note(grows, what, value, tokens, took):
        row = {"grows": grows, "work": what, "value": value, "tokens": tokens}
        rows.append({**row, "seconds": round(took, 5)})
        rate = f"{took * 1e3:9.1f} ms, {tokens / took:12,.0f} tokens/s"
        print(f"{grows:8s} {what:10s} {value:12,} {rate}", flush=True)

    for layers, heads, width in SIZES:
        model = GPT(GPTConfig(160, 1024, layers, heads, width)).to(device)
        model.compute_dtype = dtype
        optimizer = adamw(model, 1e-5)
        if width == 128:
            for batch in (1, 2, 4, 8, 16, 32, 64):
                took = train(model, optimizer, batch, device)
                note("batch", "training", batch, batch * 128, took)
            for batch in (1, 4, 16, 64, 256):
                note("batch", "sampling", batch, batch * 32, sample(model, batch, 32, device))
            for new in (8, 16, 32, 64, 128):
                note("answer", "sampling", new, 64 * new, sample(model, 64, new, device))
        size = model.n_params(embeddings=False)
        note("size", "training", size, 32 * 128, train(model, optimizer, 32, device))
        note("size", "sampling", size, 64 * 32, sample(model, 64, 32, device))
    return rows


def main():
    parser = Parser(__doc__)
    here = os.path.join(project.ROOT, "experiments")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=value_of(int), default=0, help="0: PyTorch's default")
    parser.add_argument("--out", default=here, help="folder for growth.csv and growth.png")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    plumbing.cpu.keep_freed_memory()
    device = pick_device(args.device)
    dtype = pick_dtype(args.dtype, device)
    rows = measure(device, dtype)
    with replacing(os.path.join(args.out, "growth.csv")) as f:
        writer = csv.DictWriter(f, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    threads, precision = torch.get_num_threads(), str(dtype).removeprefix("torch.")
    where = f"{device.type}, {threads} threads, {precision}"
    draw(rows, os.path.join(args.out, "growth.png"), where)


def draw(rows, path, where):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), constrained_layout=True)
    works = (("training", "o", "a training step"), ("sampling", "s", "sampling a batch"))
    for ax, (grows, (label, title)) in zip(axes, TITLES.items()):
        for work, marker, name in works:
            mine = [r for r in rows if r["grows"] == grows and r["work"] == work]
            points = [(r["value"], r["seconds"]) for r in mine]
            if not points:
                continue
            ax.loglog(*zip(*points), marker=marker, label=name)
            (x0, _), (x1, y1) = points[0], points[-1]
            linear = "in proportion" if work == "sampling" else None
            ax.loglog([x0, x1], [y1 * x0 / x1, y1], color="grey", lw=0.8, ls=":", label=linear)
        ax.set_xlabel(label)
        ax.set_ylabel("seconds")
        ax.set_title(title, fontsize=10)
        ax.grid(alpha=0.3, which="both")
        ax.legend(fontsize=8)
    figure.suptitle(f"What grows, and how fast ({where})", fontsize=11)
    with replacing(path, "wb") as f:
        figure.savefig(f, format="png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    entry(main)

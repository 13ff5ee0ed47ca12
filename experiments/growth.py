"""
How cost grows with the batch, the length of the answers and the size of the model: training and sampling, timed.

    python experiments/growth.py                # about two minutes on a CPU; writes growth.csv and growth.png beside this file
    python experiments/growth.py --threads=1

Models have vocabulary 1024 and block 160. Batch: training on rows of 128 tokens, sampling 32 new tokens after 32.
Answers: 64 rows, prompts of 32 tokens. Size: 32 rows of 128 tokens to train on, 64 rows and 32 new tokens to sample.
"""
import argparse
import csv
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import common  # noqa: E402  before torch: it says how threads wait
from data import replacing  # noqa: E402
from model import GPT, GPTConfig  # noqa: E402
from pretrain import lm_loss  # noqa: E402

import torch  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
SIZES = [(2, 2, 32), (2, 2, 64), (4, 4, 128), (4, 4, 256), (6, 6, 384), (8, 8, 512)]       # layers, heads, width


def seconds(function, device, least=0.4):
    """The fastest call of at least two, for at least so long: what else the machine does can only add to it."""
    function()
    times = []
    while len(times) < 2 or sum(times) < least:
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="0: PyTorch's default")
    parser.add_argument("--out", default=HERE, help="folder for growth.csv and growth.png")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    common.keep_memory()
    device = common.pick_device(args.device)
    dtype = common.pick_dtype(args.dtype, device)
    cast, rows = common.autocast(device, dtype), []

    def train(model, optimizer, batch):
        x = torch.randint(1024, (batch, 128), device=device)

        def step():
            with cast:
                logits = model(x)
            lm_loss(logits, x).backward()
            common.update(model, optimizer, 1e-5)
        return seconds(step, device)

    def sample(model, batch, new):
        prompts = torch.randint(1024, (batch, 32)).tolist()

        def generate():
            with cast:
                model.generate(prompts, new)
        return seconds(generate, device)

    def note(grows, what, value, tokens, took):
        rows.append({"grows": grows, "work": what, "value": value, "tokens": tokens, "seconds": round(took, 5)})
        print(f"{grows:8s} {what:10s} {value:12,} {took * 1e3:9.1f} ms, {tokens / took:12,.0f} tokens/s", flush=True)

    for layers, heads, width in SIZES:
        model = GPT(GPTConfig(160, 1024, layers, heads, width)).to(device)
        optimizer = common.adamw(model, 1e-5)
        if width == 128:
            for batch in (1, 2, 4, 8, 16, 32, 64):
                note("batch", "training", batch, batch * 128, train(model, optimizer, batch))
            for batch in (1, 4, 16, 64, 256):
                note("batch", "sampling", batch, batch * 32, sample(model, batch, 32))
            for new in (8, 16, 32, 64, 128):
                note("answer", "sampling", new, 64 * new, sample(model, 64, new))
        size = model.n_params(embeddings=False)
        note("size", "training", size, 32 * 128, train(model, optimizer, 32))
        note("size", "sampling", size, 64 * 32, sample(model, 64, 32))

    with replacing(os.path.join(args.out, "growth.csv")) as f:
        writer = csv.DictWriter(f, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, os.path.join(args.out, "growth.png"), f"{device.type}, {torch.get_num_threads()} threads, {str(dtype).removeprefix('torch.')}")


def draw(rows, path, where):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), constrained_layout=True)
    titles = {"batch": ("rows in the batch", "More rows cost little until the machine is busy"), "answer": ("new tokens in an answer", "Sampling grows with its new tokens"),
              "size": ("parameters without embeddings", "Cost grows more slowly than size")}
    for ax, (grows, (label, title)) in zip(axes, titles.items()):
        for work, marker in (("training", "o"), ("sampling", "s")):
            points = [(r["value"], r["seconds"]) for r in rows if r["grows"] == grows and r["work"] == work]
            if points:
                ax.loglog(*zip(*points), marker=marker, label={"training": "a training step", "sampling": "sampling a batch"}[work])
                (x0, _), (x1, y1) = points[0], points[-1]
                ax.loglog([x0, x1], [y1 * x0 / x1, y1], color="grey", lw=0.8, ls=":", label="in proportion" if work == "sampling" else None)
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
    common.entry(main)

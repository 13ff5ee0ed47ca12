"""
Learned positions do not extrapolate: loss by position, up to twice the length trained on.

    python experiments/positions.py            # three seeds: positions.csv, positions.png

Two bases of the micro size see the same number of tokens, in windows of 64 and of 128. The first
has never trained the embeddings of positions 64 to 127, which stay as they were drawn. Measured is
the loss on held-out windows of 128 tokens, a position at a time. Press et al. 2022 ("Train short,
test long") found it for sinusoids; for learned embeddings there is nothing that could extrapolate.
"""

import lib

import numpy as np
import torch
import torch.nn.functional as F
from data.text import Text
from figure1 import rates
from plumbing.command_line import entry

BLOCK, LENGTHS = 128, [64, 128]
ROWS = 12 * BLOCK  # tokens a step
PARTS = {"8 to 63": slice(8, 64), "64 to 127": slice(64, 128)}
# run before pretrain.main(): only the first tokens of a window, and the one after them
SHORTER = """
from data.text import Text
whole = Text.batch
Text.batch = lambda text, rows, rng: whole(text, rows, rng)[:, :{length} + 1]"""


def base(args, length, seed):
    """The path of a base trained on windows of `length` tokens; made if it is missing."""
    out = lib.scratch(args, f"positions/{length}-{seed}")
    flags = ["--size=micro", "--no-muon", "--steps=1000", *rates("micro", lr=4e-3)]
    flags = [] if args.quick else [*flags, f"--batch={ROWS // length}"]
    lib.stage(args, "pretrain", out, seed, *flags, patch=SHORTER.format(length=length))
    return f"{out}/pretrain.pt"


@torch.no_grad()
def losses(model, text, rows):
    """Mean loss of the token at each position of held-out windows → (BLOCK,) in nats."""
    x = text.windows(text.consecutive[0][:rows])
    found = []
    for part in x.split(32):
        logits = model(part[:, :-1]).float().transpose(1, 2)
        found.append(F.cross_entropy(logits, part[:, 1:], reduction="none"))
    return torch.cat(found).mean(0).numpy()


def job(args, run, length, seed):
    model = lib.network(base(args, length, seed))
    text = Text(f"{run.folder}/val.bin", run.vocab, BLOCK, run.device)
    found = losses(model, text, 32 if args.quick else 512)
    return [{"position": i, "loss": float(loss)} for i, loss in enumerate(found)]


def curve(rows, length, seed):
    mine = [r for r in rows if (r["length"], r["seed"]) == (length, seed)]
    return np.array([r["loss"] for r in sorted(mine, key=lambda r: r["position"])])


def main():
    args = lib.arguments(__doc__, 3)
    run = lib.world()
    jobs = [
        ((length, seed), lambda length=length, seed=seed: job(args, run, length, seed))
        for seed in args.seeds
        for length in LENGTHS
    ]
    rows = lib.collect(args, lib.place(args, "positions.csv"), jobs, ["length", "seed"])
    fig, axes = lib.figure(size=(6.4, 3.8))
    ax = axes[0, 0]
    for length in LENGTHS:
        each = np.array([curve(rows, length, seed) for seed in args.seeds])
        mean, half = np.array([lib.interval(x) for x in each.T]).T
        (line,) = ax.plot(mean, label=f"trained on windows of {length} tokens")
        ax.fill_between(range(BLOCK), mean - half, mean + half, alpha=0.2, color=line.get_color())
        for name, part in PARTS.items():
            print(f"windows of {length}, positions {name}: {mean[part].mean():.3f} nats a token")
    for name, part in PARTS.items():
        gaps = [
            curve(rows, 64, s)[part].mean() - curve(rows, 128, s)[part].mean() for s in args.seeds
        ]
        print("64 less 128, positions {}: {:+.3f} ± {:.3f}".format(name, *lib.interval(gaps)))
    ax.axvline(64, color="grey", ls=":")
    ax.set_xlabel("position in the window")
    ax.set_ylabel("held-out loss, nats a token")
    ax.set_title(
        "Past the length that it was trained on, a model with learned positions gets worse"
    )
    ax.legend()
    lib.finish(fig, lib.place(args, "positions.png"))


if __name__ == "__main__":
    entry(main)

"""
Which size needs how much memory: the sums behind the table of cards.

    python experiments/memory.py            # half a minute, 3 GB
    python experiments/memory.py --quick

Bytes a parameter: float32 weights, gradient and Adam's two averages are 16 for what is trained. PPO
trains policy and critic, and keeps reference, reward model and the average of the policy's weights,
4 each. What a forward pass keeps for the backward one is counted, on one row in float32: every
tensor that autograd saves, parameters left out.
"""

import lib

import torch
from model import GPT, SIZES, ScalarGPT, config_for
from plumbing.command_line import entry
from pretrain import lm_loss

VOCAB_SIZE = 50260  # GPT-2's and three special tokens


def kept(model, tokens, logits):
    """Bytes that autograd keeps of a forward pass over tokens (B, T). logits: with the loss."""
    weights, seen = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def pack(t):
        storage = t.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        hidden = model.hidden(tokens)
        if logits:
            lm_loss(model.unembed(hidden)[:, :-1], tokens)
    return sum(seen.values())


def line_of(size):
    """A size's parameters, and the gigabytes for training one model and for PPO."""
    c = config_for(size, VOCAB_SIZE)
    with torch.device("meta"):
        one, scalar = GPT(c).n_params(), sum(p.numel() for p in ScalarGPT(c).parameters())
    ppo = (16 + 4 + 4) * one + (16 + 4) * scalar
    cache = 2 * 2 * c.n_layer * c.n_embd / 1e3
    sums = f"{16 * one / 1e9:13.1f} GB{ppo / 1e9:7.1f} GB{cache:14.1f} KB a token"
    return f"{size:12s}{one:14,}{sums}"


def main():
    parser = lib.Parser(__doc__)
    parser.add_argument("--size", default="gpt2", help="whose forward pass is counted")
    parser.add_argument("--quick", action="store_true", help="count the smallest size's")
    args = parser.parse_args()
    args.size = "smoke" if args.quick else args.size
    columns = f"{'parameters':>14s}{'trained alone':>16s}{'PPO':>10s}{'keys and values, bf16':>24s}"
    print(f"{'':12s}{columns}")
    for size in [s for s in SIZES if s.startswith("gpt2")]:
        print(line_of(size))
    model = GPT(config_for(args.size, VOCAB_SIZE))
    rng, block = torch.Generator().manual_seed(1), model.config.block_size
    tokens = torch.randint(VOCAB_SIZE, (1, block), generator=rng)
    hidden, all_of_it = kept(model, tokens, False), kept(model, tokens, True)
    print(
        f"{args.size}: a row of {block:,} tokens keeps {hidden / 1e9:.2f} GB for the backward "
        f"pass, {all_of_it / 1e9:.2f} GB with a loss on all its tokens (float32)"
    )


if __name__ == "__main__":
    entry(main)

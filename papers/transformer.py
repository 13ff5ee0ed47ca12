"""
The first transformer: an encoder, and a decoder that looks at what the encoder made of the source.

    python papers/transformer.py

Vaswani et al. 2017, Attention is all you need (section 3): village English is translated into an
invented language with an order of words and endings of its own. Beside it the decoder-only GPT
reads the same pairs as one text. Two layers each, or five: 264,704 and 265,536 parameters.

Left out: sines as positions, LayerNorm after the sum, dropout, label smoothing, beam search.
"""
import lib      # first: puts the project on sys.path
import random

import torch
from torch import nn

import sampling
from common import adamw, cosine, generator, pad, response_mask, update
from model import GPT, Block, GPTConfig, Trunk, attention
from plumbing.command_line import entry
from sft import sft_loss
from world import LISTS, PAST, PEOPLE, PLACES, THINGS

NAMES = ["encoder-decoder", "decoder only"]
PAD, BEGIN, END, LONGEST = 0, 1, 2, 24
PAIRS, HELDOUT, STEPS, BATCH = [30, 100, 300, 1000], 500, 400, 32


def stem(word):
    """The invented stem for an English word: two or three syllables, always the same ones."""
    rng = random.Random(word)
    return "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou")
                   for _ in range(rng.choice([2, 3])))


def translate(who, verb, past, colour, thing, many, whom, place):
    """A sentence in English and in the invented language: words; stems and endings. "" is no part.

    The order is place, object, colour, verb, receiver, person. An ending follows the last vowel of
    its stem: after a, o, u the object has -on (of many -or), after e, i it has -en (of many -er),
    and its colour has the same ending. A past verb has -ta, a receiver -mu. There is no article.
    """
    ending = "-" + ("o" if stem(thing)[-1] in "aou" else "e") + ("r" if many else "n")
    english = [who, PAST[verb] if past else verb, "some" if many else "the"]
    english += [colour] * bool(colour) + [thing + "s" * many] + ["for", whom] * bool(whom)
    invented = [stem(place)] * bool(place) + [stem(thing), ending]
    invented += [stem(colour), ending] * bool(colour) + [stem(verb)] + ["-ta"] * past
    return english + place.split(), invented + [stem(whom), "-mu"] * bool(whom) + [stem(who)]


def sentences(n, rng):
    """n different sentences as (English, invented)."""
    found, truth, colours = {}, [False, True], ["", *LISTS["colours"]]
    while len(found) < n:
        who, whom = rng.sample(PEOPLE, 2)
        parts = list(PAST), truth, colours, THINGS, truth, ["", whom], ["", *PLACES]
        pair = translate(who, *map(rng.choice, parts))
        found[" ".join(pair[0])] = pair
    return list(found.values())


class DecoderBlock(Block):
    """Self-attention, attention over what the encoder made (B, S, C), and the MLP."""
    def __init__(self, c):
        super().__init__(c)
        self.ln_cross, self.cross_q = nn.LayerNorm(c.n_embd), nn.Linear(c.n_embd, c.n_embd)
        self.cross_kv, self.cross_proj = (nn.Linear(c.n_embd, n * c.n_embd) for n in (2, 1))

    def forward(self, x, memory, memory_mask):
        def attend(*qkv, mask=None):
            heads = (t.unflatten(2, (self.n_head, -1)).transpose(1, 2) for t in qkv)
            return attention(*heads, mask).transpose(1, 2).flatten(2)           # (B, T, C)
        x = x + self.attn_proj(attend(*self.qkv(self.ln_1(x)).chunk(3, 2)))
        queries, keys_values = self.cross_q(self.ln_cross(x)), self.cross_kv(memory).chunk(2, 2)
        x = x + self.cross_proj(attend(queries, *keys_values, mask=memory_mask))
        return x + self.mlp_proj(nn.functional.gelu(self.mlp_fc(self.ln_2(x))))


class Transformer(nn.Module):
    """Source (B, S), target (B, T) → logits (B, T, V) of the target's token after each."""
    def __init__(self, config):
        super().__init__()
        self.encoder, self.decoder = Trunk(config), GPT(config)
        self.decoder.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.n_layer))
        self.decoder.apply(self.decoder._init)

    def forward(self, source, target):
        hidden = torch.where(source == PAD, float("-inf"), 0.0)[:, None, None]  # (B, 1, 1, S)
        memory = self.encoder.hidden(source, attn_mask=hidden)      # each sees all, not causal
        x = self.decoder.wte(target) + self.decoder.wpe(torch.arange(target.size(1)))
        for block in self.decoder.blocks:
            x = block(x, memory, hidden)
        return self.decoder.unembed(self.decoder.ln_f(x))


def pair_loss(model, pairs):
    """Mean −log p of the translations' tokens, END included. pairs: [(English, invented) ids]."""
    whole = isinstance(model, GPT)      # one text: the English first
    starts = torch.tensor([1 + len(source) * whole for source, _ in pairs])
    tokens, lengths = pad([source * whole + [BEGIN, *target, END] for source, target in pairs], PAD)
    logits = model(tokens) if whole else model(pad([s for s, _ in pairs], PAD)[0], tokens)
    return sft_loss(logits, tokens, response_mask(starts, lengths, tokens.size(1)))


def exact(model, pairs):
    """Share of pairs whose likeliest translation, token by token, is right in all of them."""
    sources = [source for source, _ in pairs]
    if isinstance(model, GPT):
        found = sampling.generate(model, [s + [BEGIN] for s in sources], LONGEST, 0, eos=END)
    else:
        source, target = pad(sources, PAD)[0], torch.full((len(sources), 1), BEGIN)
        for _ in range(LONGEST):
            target = torch.cat([target, model(source, target)[:, -1:].argmax(-1)], 1)
        found = [row[1:(row + [END]).index(END) + 1] for row in target.tolist()]
    return sum(a == [*target, END] for a, (_, target) in zip(found, pairs)) / len(pairs)


def job(quick, seed, model, pairs):
    """Train on so many pairs → the share of held-out sentences that are right."""
    torch.manual_seed(seed)
    rng, steps = generator(seed, "batches"), 20 if quick else STEPS
    text = sentences(pairs + HELDOUT, random.Random(seed))
    ids = {}
    data = [tuple([ids.setdefault(word, END + 1 + len(ids)) for word in side] for side in pair)
            for pair in text]
    make, layers = (Transformer, 2) if model == NAMES[0] else (GPT, 5)
    net = make(GPTConfig(2 * LONGEST, END + 1 + len(ids), layers, 4, 64, gelu="none"))
    optimizer = adamw(net, 0, 0.1)
    for step in range(steps):
        batch = torch.randint(pairs, (BATCH,), generator=rng).tolist()
        pair_loss(net, [data[i] for i in batch]).backward()
        update(net, optimizer, 2e-3 * cosine(step, steps, steps // 10))
    return {"exact": exact(net.eval().requires_grad_(False), data[pairs:])}


def main():
    args = lib.arguments(__doc__, 3)
    rows = lib.collect(args, "transformer", job, lib.over(
        args.seeds, *({"pairs": n, "model": name} for n in reversed(PAIRS) for name in NAMES)))
    fig, [[ax]] = lib.figure()
    for name in NAMES:
        lib.line(ax, name, PAIRS, [lib.pick(rows, "exact", model=name, pairs=n) for n in PAIRS])
    ax.set(xscale="log", xlabel="pairs to learn from", ylim=(0, 1.02),
           title=f"held-out sentences translated exactly, {len(args.seeds)} seeds")
    lib.save(args, fig, "transformer")


if __name__ == "__main__":
    entry(main)

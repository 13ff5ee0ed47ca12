"""
Fast sampling: all rows at once, and keys and values kept from token to token.

`generate` gives what GPT.generate in model.py gives, token for token (tests/test_model.py). What
makes it fast: prompts of different lengths end at the same column, so that all rows write their
next key there; equal prompts go through the network once; rows that are finished are dropped; on
a GPU one step is recorded and replayed.
"""
import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F


CACHE_BYTES = 2 ** 31      # of keys and values, counted in float32: how many rows go at once
RECORDED = ("cuda",)       # devices on which launching a step takes longer than its work


def generate(model, prompts, max_new_tokens, temperature=1.0, top_k=None, top_p=None, eos=None,
             generator=None, noise=None):
    """Continue each prompt → a list of lists of new tokens, each up to and including `eos`.

    prompts: non-empty token lists of any lengths. temperature 0 is greedy. A row's answer depends
    on its prompt and its row of noise alone: (B, max_new_tokens) in [0, 1), drawn from `generator`
    unless it is given. Raises ValueError for a prompt that is empty or too long.
    """
    check_arguments(prompts, max_new_tokens, temperature, top_k, top_p, model.config.block_size)
    if noise is None:
        noise = draw_noise(len(prompts), max_new_tokens, generator)
    config, device = model.config, model.device
    longest = max(map(len, prompts), default=0) + max_new_tokens
    row_bytes = 2 * 4 * config.n_layer * config.n_embd * longest        # keys and values
    at_once = max(1, CACHE_BYTES // max(1, row_bytes))
    responses = []
    for start in range(0, len(prompts), at_once):
        part, part_noise = (x[start:start + at_once] for x in (prompts, noise.to(device)))
        found = torch.full((len(part), max(max_new_tokens, 0)), -1, device=device)
        steps = decode(model, part, part_noise, eos, (temperature, top_k, top_p))
        with model.autocast():      # once for all steps: the weights are converted once
            for t, (rows, new, going) in enumerate(steps):
                found[rows, t] = new.where(going, -1)
        responses += [[token for token in row if token >= 0] for row in found.tolist()]
    return responses


def stream(model, prompts, max_new_tokens, temperature=1.0, top_k=None, top_p=None, eos=None,
           generator=None):
    """As `generate`, but yields (row numbers, their new tokens) after each step."""
    check_arguments(prompts, max_new_tokens, temperature, top_k, top_p, model.config.block_size)
    noise = draw_noise(len(prompts), max_new_tokens, generator).to(model.device)
    for rows, new, going in decode(model, prompts, noise, eos, (temperature, top_k, top_p)):
        if not going.any():
            break
        yield rows[going].tolist(), new[going].tolist()


# ---- one token ----

def check_arguments(prompts, max_new_tokens, temperature, top_k, top_p, block_size):
    """Raise ValueError for what can't be sampled."""
    lengths = [len(p) for p in prompts]
    if 0 in lengths:
        raise ValueError(f"prompt {lengths.index(0)} is empty: generation needs a token")
    longest = max(lengths, default=0)
    if longest + max_new_tokens > block_size:
        raise ValueError(f"prompt {lengths.index(longest)} has {longest} tokens; with "
                         f"{max_new_tokens} new ones it does not fit the block of {block_size}: "
                         f"shorten it or ask for fewer")
    if temperature != 0 and not 1e-3 <= temperature < float("inf"):
        raise ValueError(f"temperature={temperature} must be at least 0.001, or 0, which is greedy")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k} keeps no token; it must be at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} must lie in (0, 1]")


def draw_noise(rows, max_new_tokens, generator=None):
    """(rows, max_new_tokens) in [0, 1), drawn at once: a row's noise does not depend on others."""
    device = "cpu" if generator is None else generator.device
    return torch.rand(rows, max(max_new_tokens, 0), generator=generator, device=device)


def sample(logits, noise, temperature=1.0, top_k=None, top_p=None):
    """logits (B, V), noise (B,) in [0, 1) → tokens (B,), where the cumulative sum reaches noise.

    top_k keeps the k likeliest tokens, top_p the smallest set with that much probability
    (Holtzman et al. 2020).
    """
    logits = logits.float()
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits / temperature
    if top_k is not None and top_k < logits.size(-1):
        smallest = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, float("-inf"))
    if top_p is not None:
        ordered, order = logits.sort(descending=True)
        probs = ordered.softmax(-1)
        drop = probs.cumsum(-1) - probs >= top_p        # what comes before already has top_p
        logits = logits.masked_fill(drop.scatter(1, order, drop), float("-inf"))
    cdf = logits.softmax(-1).cumsum(-1)
    total = cdf[:, -1:]
    # rounding may lift noise × total to total, and the search would end behind the last token
    target = torch.minimum(noise[:, None] * total, total * (1 - 1e-7))
    return torch.searchsorted(cdf, target, right=True).squeeze(1)


# ---- all tokens, with keys and values kept ----

class Cache:
    """The keys and values of one block, (B, nh, width, hs)."""

    def __init__(self, width):
        self.width, self.column, self.keys, self.values = width, None, None, None

    def append(self, k, v):
        """k, v (B, nh, T, hs) of new tokens → the keys and values that their queries look at."""
        if self.keys is None:       # the prompts, whose tokens look at one another alone
            self.keys, self.values = k, v
            self.grow(self.width - k.size(2))
            return k, v
        self.keys[:, :, self.column] = k
        self.values[:, :, self.column] = v
        return self.keys, self.values

    def grow(self, columns):
        """Make room for more tokens."""
        self.keys = F.pad(self.keys, (0, 0, 0, columns))
        self.values = F.pad(self.values, (0, 0, 0, columns))
        self.width = self.keys.size(2)

    def select(self, rows):
        """Keep these rows alone."""
        self.keys, self.values = self.keys[rows], self.values[rows]


def one_token(block, dtype):
    """Block.forward for one new token a row, with no gradient to keep and far fewer calls.

    → a function: x (B, C), the block's cache, what to add to scores (B, 1, width) → (B, C)
    """
    def norm(layer, x):
        return torch.layer_norm(x, layer.normalized_shape, layer.weight, layer.bias).to(dtype)

    def linear(layer):
        weight = layer.weight.to(dtype).t().contiguous()
        bias = weight.new_zeros(weight.size(1)) if layer.bias is None else layer.bias.to(dtype)
        return lambda x: torch.addmm(bias, x, weight)
    qkv, attn_proj = linear(block.qkv), linear(block.attn_proj)
    mlp_fc, mlp_proj = linear(block.mlp_fc), linear(block.mlp_proj)

    def forward(x, cache, attn_mask):
        (B, C), nh = x.shape, block.n_head
        q, k, v = qkv(norm(block.ln_1, x)).view(B, 3, nh, 1, -1).unbind(1)      # (B, nh, 1, hs)
        keys, values = (t.flatten(0, 1) for t in cache.append(k, v))    # (B × nh, width, hs)
        scores = torch.bmm(q.flatten(0, 1), keys.transpose(1, 2)).view(B, nh, -1)
        weights = scores.mul_((C // nh) ** -0.5).add_(attn_mask).softmax(-1).to(dtype)
        y = torch.bmm(weights.flatten(0, 1)[:, None], values)           # (B × nh, 1, hs)
        x = x + attn_proj(y.view(B, C))
        return x + mlp_proj(F.gelu(mlp_fc(norm(block.ln_2, x)), approximate=block.gelu))
    return forward


@dataclass
class Batch:
    """The rows that are being sampled, and what a step needs of them."""
    model: torch.nn.Module
    blocks: list            # one_token of each block
    caches: list            # a Cache for each
    pads: torch.Tensor      # (B,) PADs before each prompt, at which no token may look
    noise: torch.Tensor     # (B, max_new_tokens)
    P: int                  # columns of the prompts

    def step(self, new, t, options):
        """The tokens after `new` (B,). t: their number, an int.

        To record the step t is a tensor (1,), since a CUDA graph can't take another int each time.
        """
        column = self.P + t - 1
        recorded = torch.is_tensor(t)
        for cache in self.caches:
            cache.column = column if recorded else slice(column, column + 1)
        noise = self.noise[:, t].squeeze(1) if recorded else self.noise[:, t]
        columns = torch.arange(self.caches[0].width, device=new.device)
        seen = (columns >= self.pads[:, None]) & (columns <= column)            # (B, width)
        attn_mask = to_additive(seen[:, None], self.caches[0].keys.dtype)
        x = self.model.wte(new) + self.model.wpe(column - self.pads)            # (B, C)
        for block, cache in zip(self.blocks, self.caches):
            x = block(x, cache, attn_mask)
        return sample(self.model.unembed(self.model.ln_f(x)), noise, *options)

    def select(self, rows):
        """Go on with these rows alone."""
        self.pads, self.noise = self.pads[rows], self.noise[rows]
        for cache in self.caches:
            cache.select(rows)


def prefill(model, prompts, noise, width):
    """Run the prompts through the network → (Batch, logits (B, V) of their first new tokens)."""
    device, P = noise.device, max(map(len, prompts))
    index = {}                  # equal prompts go through the network once
    which = torch.tensor([index.setdefault(tuple(p), len(index)) for p in prompts], device=device)
    pads = torch.tensor([P - len(p) for p in index], device=device)
    tokens = torch.tensor([[0] * (P - len(p)) + list(p) for p in index], device=device)
    columns = torch.arange(P, device=device)
    positions = (columns - pads[:, None]).clamp(min=0)
    seen = (columns <= columns[:, None]) & (columns >= pads[:, None, None])     # (prompts, P, P)
    seen = seen | torch.eye(P, dtype=torch.bool, device=device)     # a PAD sees itself: no NaN
    caches = [Cache(width) for _ in model.blocks]
    attn_mask = to_additive(seen[:, None], model.compute_dtype)
    last = (columns == P - 1).expand(len(index), P)
    x = model.hidden(tokens, last, positions, caches, attn_mask)                # (prompts, C)
    blocks = [one_token(block, cache.keys.dtype) for block, cache in zip(model.blocks, caches)]
    batch = Batch(model, blocks, caches, pads, noise, P)
    if len(index) < len(prompts):
        x, batch.pads = x[which], pads[which]
        for cache in caches:
            cache.select(which)
    return batch, model.unembed(x)


@torch.inference_mode()
def decode(model, prompts, noise, eos, options):
    """Yield (row numbers, new tokens, which rows were going on until then) after each step.

    noise (B, max_new_tokens) on the model's device; options: sample's, after its noise.
    """
    max_new_tokens, device = noise.size(1), noise.device
    if not prompts or not max_new_tokens:
        return
    P, was_training = max(map(len, prompts)), model.training
    record = device.type in RECORDED and max_new_tokens > 1
    # caches grow by 16 columns, since the kernels for each width have to be prepared
    last = P + max_new_tokens
    width = last if record else min(last, -(-P // 16) * 16)
    model.eval()
    try:
        batch, logits = prefill(model, prompts, noise, width)
        rows = torch.arange(len(prompts), device=device)
        going = torch.ones_like(rows, dtype=torch.bool)
        new = sample(logits, noise[:, 0], *options)             # (B,)
        if record:
            number = torch.ones(1, dtype=torch.int64, device=device)
            replay = record_graph(lambda: new.copy_(batch.step(new, number, options)), new)
        for t in range(1, max_new_tokens + 1):
            yield rows, new, going
            if eos is not None:
                going = going & (new != eos)
                # to count on a GPU is to wait for it, so only every 16 tokens
                left = len(going) if record and t % 16 else int(going.sum())
                if not left:
                    break
                if left * 4 < len(going) * 3 and not record:    # go on with the others alone
                    rows, new = rows[going], new[going]
                    batch.select(going)
                    going = going[going]
            if t == max_new_tokens:
                break
            if record:
                number.fill_(t)
                replay()
                continue
            if P + t > batch.caches[0].width:
                for cache in batch.caches:
                    cache.grow(min(last - cache.width, 16))
            new = batch.step(new, t, options)
    finally:
        model.train(was_training)


def to_additive(mask, dtype):
    """A mask to add to attention scores: 0 where a query may look, −inf elsewhere."""
    zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return zeros.masked_fill(~mask, float("-inf"))


def record_graph(step, state):
    """Record what step() does as a CUDA graph → a function that does it again.

    step works on the same memory each time. `state` is left as it was.
    """
    before, side = state.clone(), side_stream(state.device)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):       # what a first call sets up can't be recorded
        for _ in range(2):
            step()
            state.copy_(before)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        step()
    return graph.replay


@functools.cache
def side_stream(device):
    """One stream for all recordings, since PyTorch keeps a workspace for every stream."""
    return torch.cuda.Stream(device)

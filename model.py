"""
The networks of the whole recipe: GPT, its scalar-headed twin, and sampling.

GPT-2's architecture (Radford et al. 2019): pre-LayerNorm decoder blocks, learned absolute
position embeddings, tanh-GELU, and an unembedding that is the token embedding itself.
The reward model and the critic are the same trunk with one number per position in place of
the vocabulary (Ouyang et al. 2022, section 3.5).

What was left out: an attention mask in training. Batches are right-padded, so in a causal model no
real token ever sees a PAD; what is computed at PADs is dropped by the losses' masks.
"""
import json
import math
import os
from dataclasses import dataclass, replace

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class GPTConfig:
    block_size: int = 128    # longest sequence: rows of the position embedding
    vocab_size: int = 512    # true size, special tokens included
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    dropout: float = 0.0     # on embeddings and on both residual branches
    bias: bool = True        # in Linear and LayerNorm; GPT-2 has them

    def __post_init__(self):
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd={self.n_embd} is not a multiple of n_head={self.n_head}")


# n_layer, n_head, n_embd, block_size. GPT-1: Radford et al. 2018; GPT-2: 2019, table 2; GPT-3: Brown
# et al. 2020, table 2.1 (its 13B has 40 heads of 128, so a width of 5120 where the table prints 5140).
SIZES = {
    "smoke":     (2, 2, 32, 128),
    "nano":      (1, 2, 24, 128),
    "micro":     (2, 4, 48, 128),
    "tiny":      (4, 4, 128, 128),
    "mini":      (6, 6, 192, 128),
    "gpt1":      (12, 12, 768, 512),
    "gpt2":      (12, 12, 768, 1024),
    "gpt2-medium": (24, 16, 1024, 1024),
    "gpt2-large":  (36, 20, 1280, 1024),
    "gpt2-xl":     (48, 25, 1600, 1024),
    "gpt3-small":  (12, 12, 768, 2048),
    "gpt3-medium": (24, 16, 1024, 2048),
    "gpt3-large":  (24, 16, 1536, 2048),
    "gpt3-xl":     (24, 16, 2048, 2048),   # the table prints 24 heads of 128, which make 3072, not 2048
    "gpt3-2.7b":   (32, 32, 2560, 2048),
    "gpt3-6.7b":   (32, 32, 4096, 2048),
    "gpt3-13b":    (40, 40, 5120, 2048),
    "gpt3":        (96, 96, 12288, 2048),
}


def config_for(size, vocab_size, dropout=0.0):
    """GPTConfig of a named size. Raises ValueError for a name that is not in SIZES."""
    if size not in SIZES:
        raise ValueError(f"no size {size!r}; there are: {', '.join(SIZES)}")
    n_layer, n_head, n_embd, block_size = SIZES[size]
    return GPTConfig(block_size, vocab_size, n_layer, n_head, n_embd, dropout)


def plain_attention(q, k, v, mask=None):
    """softmax(q kᵀ / √hs) v, written out (Vaswani et al. 2017, eq. 1).

    q (B, nh, T, hs), k and v (B, nh, S, hs); mask (…, T, S) is True where a query may look, or what `added` makes of it.
    None means causal, with the last query at the last key. Returns (B, nh, T, hs).
    """
    T, S = q.size(-2), k.size(-2)
    if mask is None:
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    att = q / math.sqrt(q.size(-1)) @ k.transpose(-2, -1)       # (B, nh, T, S)
    att = att + (added(mask, att.dtype) if mask.dtype == torch.bool else mask)      # added, not filled in: backward has nothing to do for it
    return F.softmax(att, dim=-1).to(v.dtype) @ v


def added(mask, dtype):
    """A mask as a summand: 0 where a query may look, −inf elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, float("-inf"))


def attention(q, k, v, mask=None):
    """As plain_attention, by the fused kernel wherever that is the faster one."""
    if q.size(-2) == 1 or q.device.type == "cpu" and q.dtype == torch.bfloat16:     # vectors times matrices; and the fused backward there is five times slower
        return plain_attention(q, k, v, mask)
    if mask is None and q.size(-2) < k.size(-2):        # the kernel's own causal mask puts the first query at the first key
        return plain_attention(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, c):
        super().__init__()
        self.n_head, self.dropout = c.n_head, c.dropout
        self.ln_1 = nn.LayerNorm(c.n_embd, bias=c.bias)
        self.qkv = nn.Linear(c.n_embd, 3 * c.n_embd, bias=c.bias)        # query, key and value in one product
        self.attn_proj = nn.Linear(c.n_embd, c.n_embd, bias=c.bias)
        self.ln_2 = nn.LayerNorm(c.n_embd, bias=c.bias)
        self.mlp_fc = nn.Linear(c.n_embd, 4 * c.n_embd, bias=c.bias)
        self.mlp_proj = nn.Linear(4 * c.n_embd, c.n_embd, bias=c.bias)

    def forward(self, x, cache=None, mask=None):
        """x (B, T, C) → (B, T, C). `cache` is a triple that `generate` keeps: keys (B, nh, hs, S), values (B, nh, S, hs) and the column of the
        new ones. The first x is the prompts, whose queries see one another; later ones are a token, which sees all S columns."""
        B, T, C = x.shape
        q, k, v = self.qkv(self.ln_1(x)).split(C, dim=2)
        q, k, v = (t.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for t in (q, k, v))  # (B, nh, T, hs)
        if cache is not None:
            keys, values, column = cache
            keys[..., column], values[:, :, column] = k.transpose(2, 3).to(keys.dtype), v.to(keys.dtype)
            if T == 1:
                k, v = keys.transpose(2, 3), values
        y = attention(q, k, v, mask)
        y = self.attn_proj(y.transpose(1, 2).reshape(B, T, C))
        x = x + F.dropout(y, self.dropout, self.training)
        y = self.mlp_proj(F.gelu(self.mlp_fc(self.ln_2(x)), approximate="tanh"))
        return x + F.dropout(y, self.dropout, self.training)


class Trunk(nn.Module):
    """Tokens (B, T) → hidden states (B, T, C): all of GPT but the last linear map."""

    def __init__(self, config):
        super().__init__()
        self.config = c = config
        self.dropout = c.dropout
        rows = -(-c.vocab_size // 64) * 64      # padded to a multiple of 64 for speed; `forward` hides the rest
        self.wte = nn.Embedding(rows, c.n_embd)
        self.wpe = nn.Embedding(c.block_size, c.n_embd)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.n_layer))
        self.ln_f = nn.LayerNorm(c.n_embd, bias=c.bias)
        self.apply(self._init)
        for name, p in self.named_parameters():     # 2 × n_layer residual branches add up: GPT-2, section 2.3
            if name.endswith("_proj.weight"):
                p.data /= math.sqrt(2 * c.n_layer)

    def _init(self, m):
        if isinstance(m, (nn.Linear, nn.Embedding)):
            nn.init.normal_(m.weight, std=0.02 * math.sqrt(768 / self.config.n_embd))    # GPT-2's 0.02 at GPT-2's width
        if isinstance(m, nn.Linear) and m.bias is not None:
            nn.init.zeros_(m.bias)

    def hidden(self, tokens, positions=None, caches=None, mask=None):
        """tokens (B, T) int64 → (B, T, C). Raises ValueError if T exceeds the block."""
        T = tokens.size(1)
        if positions is None:
            if T > self.config.block_size:
                raise ValueError(f"a sequence of {T} tokens does not fit the block of {self.config.block_size}")
            positions = torch.arange(T, device=tokens.device)
        x = self.wte(tokens) + self.wpe(positions)
        x = F.dropout(x, self.dropout, self.training)
        for i, block in enumerate(self.blocks):
            x = block(x, caches and caches[i], mask)
        return self.ln_f(x)

    def n_params(self, embeddings=True):
        """Number of parameters; without embeddings, as scaling laws count them (Kaplan et al. 2020)."""
        n = sum(p.numel() for p in self.parameters())
        return n if embeddings else n - self.wte.weight.numel() - self.wpe.weight.numel()


class GPT(Trunk):
    """The language model: policy, reference and base."""

    def forward(self, tokens):
        """tokens (B, T) → logits (B, T, V) for the token that follows each; V is the true vocabulary size."""
        return self.unembed(self.hidden(tokens))

    def unembed(self, x):
        """Hidden states (…, C) → logits (…, V): the token embedding, transposed (Press and Wolf 2017)."""
        return F.linear(x, self.wte.weight)[..., :self.config.vocab_size]      # the whole matrix: autocast keeps a parameter's copy, not a part's

    def generate(self, prompts, max_new_tokens, temperature=1.0, top_k=None, top_p=None, eos=None, generator=None, noise=None):
        """Continue each prompt; returns a list of lists of new tokens, each up to and including `eos`.

        prompts: list of non-empty token lists, of any lengths. temperature 0 is greedy. `top_k` keeps the k
        likeliest tokens, `top_p` the smallest set with that much probability (Holtzman et al. 2020).
        Row i's answer depends on its prompt and on row i of the noise alone, which is drawn from `generator` unless
        it is given: `noise` (B, max_new_tokens), uniform in [0, 1).
        Raises ValueError if a prompt is empty, or does not fit the block with `max_new_tokens`.
        """
        noise = self._checked(prompts, max_new_tokens, temperature, generator, noise)
        c, longest, news = self.config, max(map(len, prompts), default=0) + max_new_tokens, []
        most = max(1, CACHE_BYTES // max(1, 8 * c.n_layer * c.n_embd * longest))       # rows at once
        for at in range(0, len(prompts), most):
            part = prompts[at:at + most]
            found = torch.full((len(part), max(max_new_tokens, 0)), -1, device=self.wte.weight.device)
            for t, (row, token, going) in enumerate(self._steps(part, max_new_tokens, temperature, top_k, top_p, eos, noise[at:at + most])):
                found[row, t] = token.where(going, -1)
            news += [[token for token in row if token >= 0] for row in found.tolist()]
        return news

    def stream(self, prompts, max_new_tokens, temperature=1.0, top_k=None, top_p=None, eos=None, generator=None, noise=None):
        """As `generate`, but yields (row numbers, their new tokens) after each step, for rows not yet finished."""
        noise = self._checked(prompts, max_new_tokens, temperature, generator, noise)
        for row, token, going in self._steps(prompts, max_new_tokens, temperature, top_k, top_p, eos, noise):
            if not going.any():
                break
            yield row[going].tolist(), token[going].tolist()

    def _checked(self, prompts, max_new_tokens, temperature, generator, noise):
        """Noise (B, max_new_tokens) on the device: one uniform number for each row and step, drawn at once, so a row's noise is its own."""
        lengths = [len(p) for p in prompts]
        if prompts and max_new_tokens > 0:
            if min(lengths) == 0:
                raise ValueError(f"prompt {lengths.index(0)} is empty: generation needs at least one token")
            if max(lengths) + max_new_tokens > self.config.block_size:
                raise ValueError(f"prompt {lengths.index(max(lengths))} has {max(lengths)} tokens; with {max_new_tokens} new ones it does not fit "
                                 f"the block of {self.config.block_size}: shorten it or ask for fewer")
            if temperature < 0:
                raise ValueError(f"temperature={temperature} is negative; 0 is greedy")
        if noise is None:
            noise = torch.rand(len(prompts), max(max_new_tokens, 0), generator=generator, device=generator.device if generator is not None else "cpu")
        return noise.to(self.wte.weight.device)

    @torch.no_grad()
    def _steps(self, prompts, max_new_tokens, temperature, top_k, top_p, eos, noise):
        """Yields, after each step, tensors on the device: row numbers, their new tokens, and whether the row was going on until then."""
        c, device, was_training = self.config, self.wte.weight.device, self.training
        if not prompts or max_new_tokens <= 0:
            return
        B, P = len(prompts), max(map(len, prompts))
        W = P + max_new_tokens

        # prompts end at the same column, so that all rows write their next key there; PADs come first
        # and get position 0, and no real token may look at them
        number = {}                 # a prompt that is given several times goes through the network once
        which = torch.tensor([number.setdefault(tuple(p), len(number)) for p in prompts], device=device)    # (B,): a row's prompt
        tokens = torch.tensor([[0] * (P - len(p)) + list(p) for p in number], device=device)
        pads = torch.tensor([P - len(p) for p in number], device=device)
        columns = torch.arange(W, device=device)
        seen = columns >= pads[:, None]                                                     # (prompts, W)
        positions = (columns[:P] - pads[:, None]).clamp(min=0)
        mask = (columns[:P] <= columns[:P, None]) & seen[:, None, :P]                       # (prompts, P, P)
        mask = (mask | torch.eye(P, dtype=torch.bool, device=device))[:, None]              # a PAD sees itself: no NaN
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else self.wte.weight.dtype
        record = device.type in RECORDED and max_new_tokens > 1
        width = W if record else min(W, -(-P // 16) * 16)       # columns of the caches, which grow by 16: each width has kernels that must be prepared
        n, hs = len(number), c.n_embd // c.n_head
        caches = [(torch.zeros(n, c.n_head, hs, width, device=device, dtype=dtype), torch.zeros(n, c.n_head, width, hs, device=device, dtype=dtype)) for _ in range(c.n_layer)]

        def step(new, t):
            """The token after `new` (B,), number t: an int, or a tensor (1,) where the step is recorded once for all t."""
            column = P + t - 1
            at, now = (slice(column, column + 1), slice(t, t + 1)) if isinstance(t, int) else (column, t)
            mask = added((seen & (columns <= column))[:, None, None, :width], dtype)
            x = self.hidden(new[:, None], (column - pads)[:, None], [(k, v, at) for k, v in caches], mask)
            return sample(self.unembed(x[:, -1]), noise[:, now].squeeze(1), temperature, top_k, top_p)

        self.eval()
        try:
            x = self.hidden(tokens, positions, [(k[..., :P], v[:, :, :P], slice(0, P)) for k, v in caches], mask)[:, -1]
            if len(number) < B:
                x, pads, seen, caches = x[which], pads[which], seen[which], [(k[which], v[which]) for k, v in caches]
            row, going = torch.arange(B, device=device), torch.ones(B, dtype=torch.bool, device=device)
            new = sample(self.unembed(x), noise[:, 0], temperature, top_k, top_p)       # (B,)
            if record:
                number_of = torch.ones(1, dtype=torch.int64, device=device)
                replay = recorded(lambda: new.copy_(step(new, number_of)), new)
            for t in range(1, max_new_tokens + 1):
                yield row, new, going
                if eos is not None:
                    going = going & (new != eos)
                    left = int(going.sum()) if not record or t % 16 == 0 else len(going)       # to ask a GPU is to wait for it
                    if not left:
                        break
                    if left * 2 < len(going) and not record:        # more than half are finished: go on with the others alone
                        row, new, pads, seen, noise = row[going], new[going], pads[going], seen[going], noise[going]
                        caches, going = [(k[going], v[going]) for k, v in caches], going[going]
                if t == max_new_tokens:
                    break
                if record:
                    number_of.fill_(t)
                    replay()
                else:
                    if P + t > width:
                        more = min(W - width, 16)
                        width, caches = width + more, [(F.pad(k, (0, more)), F.pad(v, (0, 0, 0, more))) for k, v in caches]
                    new = step(new, t)
        finally:
            self.train(was_training)

    @classmethod
    def from_pretrained(cls, name, vocab_size=None):
        """GPT with the weights of GPT-2, or of a local folder in Hugging Face's GPT-2 layout.

        name: a folder with config.json and model.safetensors (or pytorch_model.bin; in one file or several); or gpt2,
        gpt2-medium, gpt2-large or gpt2-xl, which are downloaded once.
        vocab_size: larger than the file's to add rows (special tokens), drawn like any embedding.
        Raises FileNotFoundError, or ValueError naming the first weight that is missing or of another shape.
        """
        folder = name if os.path.isdir(name) else downloaded(name)
        config, weights = read_hf_gpt2(folder)
        rows = config.vocab_size
        config.vocab_size = max(vocab_size or 0, rows)
        model = cls(config)
        state = model.state_dict()
        for ours, theirs, transpose in hf_names(config):
            if theirs not in weights:
                raise ValueError(f"{folder}: no weight named {theirs}; is this a GPT-2 checkpoint?")
            w = weights[theirs].t() if transpose else weights[theirs]
            target = state[ours][:rows] if ours == "wte.weight" else state[ours]
            if w.shape != target.shape:
                raise ValueError(f"{folder}: {theirs} has shape {tuple(w.shape)}, config.json asks for {tuple(target.shape)}")
            target.copy_(w)
        return model

    def save_pretrained(self, folder):
        """Write config.json and model.safetensors in Hugging Face's GPT-2 layout, which `from_pretrained`, transformers and others read."""
        from safetensors.torch import save_file
        c, state, weights = self.config, self.state_dict(), {}
        for ours, theirs, transpose in hf_names(c):
            w = state[ours] if ours in state else torch.zeros(state[ours.removesuffix("bias") + "weight"].size(0))     # GPT-2 has all biases
            w = w[:c.vocab_size] if ours == "wte.weight" else w
            weights["transformer." + theirs] = (w.t() if transpose else w).detach().cpu().contiguous()
        config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "vocab_size": c.vocab_size,
                  "n_positions": c.block_size, "n_ctx": c.block_size, "n_layer": c.n_layer, "n_head": c.n_head, "n_embd": c.n_embd, "tie_word_embeddings": True}
        os.makedirs(folder, exist_ok=True)
        save_file(weights, os.path.join(folder, "model.safetensors.tmp"), metadata={"format": "pt"})
        with open(os.path.join(folder, "config.json.tmp"), "w", encoding="utf-8") as f:
            json.dump(config, f, indent=1)
        for name in ("model.safetensors", "config.json"):
            os.replace(os.path.join(folder, name + ".tmp"), os.path.join(folder, name))


class ScalarGPT(Trunk):
    """GPT's trunk with one number per position: the reward model, and the critic."""

    def __init__(self, config):
        super().__init__(config)
        self.head = nn.Linear(config.n_embd, 1)
        nn.init.zeros_(self.head.weight)        # so the first ranking loss is ln 2 exactly
        nn.init.zeros_(self.head.bias)
        self.register_buffer("shift", torch.zeros(()))      # subtracted from the output: see reward.py

    def forward(self, tokens):
        """tokens (B, T) → (B, T) float32: a number about the sequence up to and including each token."""
        x = self.hidden(tokens)
        with torch.autocast(x.device.type, enabled=False):      # scores in steps of 1/64 would tie
            return self.head(x.float()).squeeze(-1) - self.shift

    def score(self, tokens, lengths):
        """tokens (B, T) right-padded, lengths (B,) of real tokens → (B,): the number at the last real token."""
        if (lengths < 1).any() or (lengths > tokens.size(1)).any():
            raise ValueError(f"lengths must lie in 1..{tokens.size(1)}, got {lengths.tolist()}")
        return self(tokens).gather(1, (lengths.long() - 1)[:, None]).squeeze(1)

    @classmethod
    def from_gpt(cls, gpt):
        """A scalar model on a copy of a language model's trunk (Ouyang et al. 2022, section 3.5)."""
        model = cls(replace(gpt.config))
        model.load_state_dict(gpt.state_dict(), strict=False)
        return model.to(gpt.wte.weight.device)


CACHE_BYTES = 2 ** 32      # of keys and values in float32: generate takes as many rows at once (2 GiB in bf16)
RECORDED = ("cuda",)       # devices on which launching a step's operations takes longer than their work


def recorded(run, state):
    """A function that does again what run() does, as one CUDA graph: the same operations on the same memory. `state` is left as it was."""
    before, side = state.clone(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):       # what a first call sets up may not be recorded
        for _ in range(2):
            run()
            state.copy_(before)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def sample(logits, noise, temperature=1.0, top_k=None, top_p=None):
    """logits (B, V), noise (B,) uniform in [0, 1) → tokens (B,), by inverting the cumulative distribution."""
    logits = logits.float()
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits / temperature
    if top_k is not None and top_k < logits.size(-1):
        if top_k < 1:
            raise ValueError(f"top_k={top_k} keeps no token; it must be at least 1")
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], float("-inf"))
    if top_p is not None:
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p={top_p} must lie in (0, 1]")
        ordered, order = logits.sort(descending=True)
        probs = ordered.softmax(-1)
        drop = probs.cumsum(-1) - probs >= top_p          # all that comes before already has top_p
        logits = logits.masked_fill(drop.scatter(1, order, drop), float("-inf"))
    cdf = logits.softmax(-1).cumsum(-1)
    target = torch.minimum(noise[:, None] * cdf[:, -1:], cdf[:, -1:] * (1 - 1e-7))     # never past the last token
    return torch.searchsorted(cdf, target, right=True).squeeze(1)


def hf_names(config):
    """(our name, Hugging Face's name, stored transposed) of every weight. Theirs are Conv1D: (in, out)."""
    yield from (("wte.weight", "wte.weight", False), ("wpe.weight", "wpe.weight", False),
                ("ln_f.weight", "ln_f.weight", False), ("ln_f.bias", "ln_f.bias", False))
    names = {"ln_1": "ln_1", "qkv": "attn.c_attn", "attn_proj": "attn.c_proj",
             "ln_2": "ln_2", "mlp_fc": "mlp.c_fc", "mlp_proj": "mlp.c_proj"}
    for i in range(config.n_layer):
        for ours, theirs in names.items():
            yield f"blocks.{i}.{ours}.weight", f"h.{i}.{theirs}.weight", not ours.startswith("ln")
            yield f"blocks.{i}.{ours}.bias", f"h.{i}.{theirs}.bias", False


HUB = "https://huggingface.co/openai-community/{}/resolve/main/{}"


def downloaded(name):
    """The folder with GPT-2's files of this name, under torch.hub's own; downloaded if they are not there yet."""
    names = [size for size in SIZES if size.startswith("gpt2")]
    if name not in names:
        raise FileNotFoundError(f"{name} is neither a folder nor one of {', '.join(names)}")
    folder = os.path.join(torch.hub.get_dir(), "nanoinstructgpt", name)
    os.makedirs(folder, exist_ok=True)
    for file in ("config.json", "model.safetensors"):
        path, url = os.path.join(folder, file), HUB.format(name, file)
        if not os.path.exists(path):
            try:
                torch.hub.download_url_to_file(url, path)       # to another name first
            except OSError as e:
                raise FileNotFoundError(f"{url} can't be downloaded ({e}); without a network, give a folder that holds config.json and model.safetensors of {name}, "
                                        f"or put these two into {folder}") from None
    return folder


def load_weights(path):
    """{name: tensor} of a .safetensors or .bin file. Raises ValueError if it can't be read."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path} is missing, which the index beside it names")
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:
        raise ValueError(f"{path} can't be read as weights ({type(e).__name__}): it may be cut off; get it again") from None


def read_hf_gpt2(folder):
    """Folder in Hugging Face's layout → (GPTConfig, {name without 'transformer.': tensor})."""
    path = os.path.join(folder, "config.json")
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path} is missing: give a folder with config.json and model.safetensors")
    with open(path, encoding="utf-8") as f:
        c = json.load(f)
    if c.get("activation_function", "gelu_new") != "gelu_new":
        raise ValueError(f"{path}: activation {c['activation_function']!r} is not GPT-2's gelu_new")
    config = GPTConfig(c["n_positions"], c["vocab_size"], c["n_layer"], c["n_head"], c["n_embd"])
    weights = {}
    for name in ("model.safetensors", "pytorch_model.bin"):
        path = os.path.join(folder, name)
        shards = [name] if os.path.exists(path) else []
        if os.path.exists(path + ".index.json"):        # a large model's weights are in several files
            with open(path + ".index.json", encoding="utf-8") as f:
                shards = sorted(set(json.load(f)["weight_map"].values()))
        for shard in shards:
            weights |= load_weights(os.path.join(folder, shard))
        if shards:
            break
    else:
        raise FileNotFoundError(f"{folder} has neither model.safetensors nor pytorch_model.bin")
    return config, {k.removeprefix("transformer."): v for k, v in weights.items()}

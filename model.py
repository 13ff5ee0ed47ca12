"""
The networks: GPT, and the same network with one number per position in place of the vocabulary.

GPT-2's architecture (Radford et al. 2019): pre-LayerNorm decoder blocks, learned absolute position
embeddings, GELU, and an unembedding that is the token embedding itself. ScalarGPT is the
reward model and the critic (Ouyang et al. 2022, section 3.5).

Left out: an attention mask in training. Batches are right-padded, so in a causal model no real
token sees a PAD, and the losses' masks drop what is computed at PADs.
"""
import contextlib
import math
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn as nn
import torch.nn.functional as F

from data import gpt2
from sampling import check_arguments, draw_noise, sample        # how one token is drawn


@dataclass
class GPTConfig:
    block_size: int = 128    # longest sequence: rows of the position embedding
    vocab_size: int = 512    # true size, special tokens included
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    dropout: float = 0.0     # on embeddings and on both residual branches
    bias: bool = True        # in Linear and LayerNorm; GPT-2 has them
    gelu: str = "tanh"       # GPT-2's approximation; "none", the exact one, is faster on a CPU

    def __post_init__(self):
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd={self.n_embd} is not a multiple of n_head={self.n_head}")


# n_layer, n_head, n_embd, block_size
SIZES = {
    "smoke": (2, 2, 32, 128),
    "nano": (1, 2, 24, 128),
    "micro": (2, 4, 48, 128),
    "tiny": (4, 4, 128, 128),
    "mini": (6, 6, 192, 128),
    "midi": (6, 9, 288, 128),
    "gpt1": (12, 12, 768, 512),             # Radford et al. 2018
    "gpt2": (12, 12, 768, 1024),            # Radford et al. 2019, table 2
    "gpt2-medium": (24, 16, 1024, 1024),
    "gpt2-large": (36, 20, 1280, 1024),
    "gpt2-xl": (48, 25, 1600, 1024),
}


def config_for(size, vocab_size):
    """GPTConfig of a named size."""
    *shape, block_size = SIZES[size]
    return GPTConfig(block_size, vocab_size, *shape, gelu="none")


def plain_attention(q, k, v, attn_mask=None):
    """softmax(q kᵀ / √hs) v, written out (Vaswani et al. 2017, eq. 1).

    q (B, nh, T, hs), k and v (B, nh, S, hs). attn_mask (…, T, S) is added to the scores: 0 where a
    query may look, −inf elsewhere. None is causal, with the last query at the last key.
    """
    T, S = q.size(-2), k.size(-2)
    scores = q / math.sqrt(q.size(-1)) @ k.transpose(-2, -1)       # (B, nh, T, S)
    if attn_mask is None:
        attn_mask = scores.new_full((T, S), float("-inf")).triu(S - T + 1)
    return F.softmax(scores + attn_mask, dim=-1).to(v.dtype) @ v   # (B, nh, T, hs)


def attention(q, k, v, attn_mask=None):
    """As plain_attention, by the fused kernel where that is faster."""
    T, S = q.size(-2), k.size(-2)
    # on a CPU the fused kernel's backward pass is slow in bf16
    is_slow = q.device.type == "cpu" and q.dtype == torch.bfloat16
    # its own causal mask puts the first query at the first key; ours the last one at the last
    if T == 1 or is_slow or attn_mask is None and T < S:
        return plain_attention(q, k, v, attn_mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask, is_causal=attn_mask is None)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, c):
        super().__init__()
        self.n_head, self.dropout, self.gelu = c.n_head, c.dropout, c.gelu
        self.ln_1 = nn.LayerNorm(c.n_embd, bias=c.bias)
        self.qkv = nn.Linear(c.n_embd, 3 * c.n_embd, bias=c.bias)   # three maps in one product
        self.attn_proj = nn.Linear(c.n_embd, c.n_embd, bias=c.bias)
        self.ln_2 = nn.LayerNorm(c.n_embd, bias=c.bias)
        self.mlp_fc = nn.Linear(c.n_embd, 4 * c.n_embd, bias=c.bias)
        self.mlp_proj = nn.Linear(4 * c.n_embd, c.n_embd, bias=c.bias)

    def forward(self, x, cache=None, attn_mask=None, wanted=None):
        """x (B, T, C) → (B, T, C), or (n, C) at the indices `wanted`. cache: see sampling.py."""
        B, T, C = x.shape
        q, k, v = self.qkv(self.ln_1(x)).split(C, dim=2)
        q, k, v = (t.view(B, T, self.n_head, -1).transpose(1, 2) for t in (q, k, v))  # hs = C / nh
        if cache is not None:
            k, v = cache.append(k, v)
        y = attention(q, k, v, attn_mask).transpose(1, 2).reshape(x.shape)      # (B, T, C)
        if wanted is not None:
            x, y = x[wanted], y[wanted]                                         # (n, C)
        x = x + F.dropout(self.attn_proj(y), self.dropout, self.training)
        y = self.mlp_proj(F.gelu(self.mlp_fc(self.ln_2(x)), approximate=self.gelu))
        return x + F.dropout(y, self.dropout, self.training)


class Trunk(nn.Module):
    """Tokens (B, T) → hidden states (B, T, C): all of GPT but the last linear map."""

    compute_dtype = torch.float32       # of matrix products

    def __init__(self, config):
        super().__init__()
        self.config, self.dropout = config, config.dropout
        rows = -(-config.vocab_size // 64) * 64     # a multiple of 64 for speed; unembed cuts it
        self.wte = nn.Embedding(rows, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.apply(self._init)
        # 2 × n_layer residual branches add up: their last maps start smaller (GPT-2, section 2.3)
        for name, p in self.named_parameters():
            if name.endswith("_proj.weight"):
                p.data /= math.sqrt(2 * config.n_layer)

    def _init(self, module):
        # GPT-2 has 0.02 at width 768. A sum over the width keeps its size with 1/√width.
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02 * math.sqrt(768 / self.config.n_embd))
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    @property
    def device(self):
        return self.wte.weight.device

    def autocast(self):
        """Matrix products in compute_dtype. Parameters, softmax and losses stay float32."""
        if self.compute_dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.compute_dtype)

    def hidden(self, tokens, wanted=None, positions=None, caches=None, attn_mask=None):
        """tokens (B, T) int64 → (B, T, C). Raises ValueError if T exceeds the block.

        wanted (B, T) bool: these n positions alone, row by row → (n, C).
        For sampling.py: positions (B, T), a cache for each block, attn_mask (B, 1, T, S).
        """
        T, longest = tokens.size(1), self.config.block_size
        if positions is None:
            if T > longest:
                raise ValueError(f"a sequence of {T} tokens does not fit the block of {longest}")
            positions = torch.arange(T, device=tokens.device)
        at = wanted.nonzero(as_tuple=True) if wanted is not None else None
        with self.autocast():
            x = F.dropout(self.wte(tokens) + self.wpe(positions), self.dropout, self.training)
            for i, block in enumerate(self.blocks):
                last = i == len(self.blocks) - 1
                x = block(x, caches[i] if caches else None, attn_mask, at if last else None)
            return self.ln_f(x)

    def set_dropout(self, p):
        """Dropout of probability p, on the embeddings and both residual branches of each block."""
        self.config.dropout = p
        for module in (self, *self.blocks):
            module.dropout = p

    def n_params(self, embeddings=True):
        """Parameters; without embeddings, as scaling laws count them (Kaplan et al. 2020)."""
        return sum(p.numel() for name, p in self.named_parameters()
                   if embeddings or name not in ("wte.weight", "wpe.weight"))


class GPT(Trunk):
    """The language model: policy, reference and base."""

    def forward(self, tokens, wanted=None):
        """tokens (B, T) → logits (B, T, V) of the token after each, or (n, V) where wanted."""
        return self.unembed(self.hidden(tokens, wanted))

    def unembed(self, x):
        """Hidden states (…, C) → logits (…, V), by the token embedding (Press and Wolf 2017)."""
        with self.autocast():       # keeps bf16 copies of whole weights only: cut the logits
            return F.linear(x, self.wte.weight)[..., :self.config.vocab_size]

    @torch.no_grad()
    def generate(self, prompts, max_new_tokens, temperature=1.0, top_k=None, top_p=None, eos=None,
                 generator=None):
        """Continue each prompt → a list of lists of new tokens, each up to and including `eos`.

        The plain way: all tokens again for each new one. sampling.generate gives the same, much
        faster, and says what the arguments are.
        """
        check_arguments(prompts, max_new_tokens, temperature, top_k, top_p, self.config.block_size)
        noise = draw_noise(len(prompts), max_new_tokens, generator)
        was_training, responses = self.training, []
        self.eval()
        for prompt, row in zip(prompts, noise.to(self.device)):
            tokens = torch.tensor([prompt], device=self.device)                 # (1, T)
            for t in range(max_new_tokens):
                logits = self(tokens)[:, -1]                                    # (1, V)
                new = sample(logits, row[t:t + 1], temperature, top_k, top_p)   # (1,)
                tokens = torch.cat([tokens, new[None]], dim=1)
                if new.item() == eos:
                    break
            responses.append(tokens[0, len(prompt):].tolist())
        self.train(was_training)
        return responses

    @classmethod
    def from_pretrained(cls, name, vocab_size=0):
        """GPT with the weights of GPT-2, from the network or a folder in Hugging Face's layout.

        name: gpt2, gpt2-medium, … or the folder. vocab_size: larger than the file's to add rows
        for special tokens. Raises FileNotFoundError, or ValueError that names what is wrong.
        """
        config, weights = gpt2.read_weights(name)
        model = cls(GPTConfig(**config | {"vocab_size": max(vocab_size, config["vocab_size"])}))
        state = model.state_dict()
        for key, weight in weights.items():     # rows beyond the file's stay: special tokens
            state[key][:len(weight)].copy_(weight)
        return model

    def save_pretrained(self, folder, vocab=None):
        """Write config.json, with the vocab's eos and pad, and model.safetensors (Hugging Face)."""
        gpt2.write_weights(folder, asdict(self.config), self.state_dict(), vocab)


class ScalarGPT(Trunk):
    """GPT's trunk with one number per position: the reward model, and the critic."""

    def __init__(self, config):
        super().__init__(config)
        self.head = nn.Linear(config.n_embd, 1)
        nn.init.zeros_(self.head.weight)        # so the first ranking loss is ln 2 exactly
        nn.init.zeros_(self.head.bias)
        self.register_buffer("shift", torch.zeros(()))      # subtracted, see reward.py

    def forward(self, tokens, wanted=None, positions=None, attn_mask=None):
        """tokens (B, T) → (B, T) float32: of the sequence up to each token; 0 if not wanted."""
        x = self.hidden(tokens, wanted, positions, None, attn_mask)
        with torch.autocast(x.device.type, enabled=False):      # in bf16 many scores would tie
            x = self.head(x.float()).squeeze(-1) - self.shift
        return x if wanted is None else x.new_zeros(tokens.shape).masked_scatter(wanted, x)

    def score(self, tokens, lengths):
        """tokens (B, T) right-padded, lengths (B,) → (B,): the number at the last real token."""
        if (lengths < 1).any() or (lengths > tokens.size(1)).any():
            raise ValueError(f"lengths must lie in 1..{tokens.size(1)}, got {lengths.tolist()}")
        last = (torch.arange(tokens.size(1)) == lengths.cpu()[:, None] - 1).to(tokens.device)
        return self(tokens, last)[last]

    @classmethod
    def from_gpt(cls, gpt):
        """A scalar model on a copy of a language model's trunk."""
        model = cls(replace(gpt.config))
        model.load_state_dict(gpt.state_dict(), strict=False)       # it has no head and no shift
        model.compute_dtype = gpt.compute_dtype
        return model.to(gpt.device)

"""What every stage shares: batches, micro-batches, the optimiser, the schedule, the step."""
import hashlib
import math

import torch
import torch.nn.functional as F

from data import UserError
from plumbing.device import to_device
from plumbing.processes import add_gradients, shard


def generator(*purpose):
    """A random generator seeded by its purpose, as in generator(seed, "ptx", step)."""
    seed = int(hashlib.sha256(repr(purpose).encode()).hexdigest()[:15], 16)     # 60 bits
    return torch.Generator().manual_seed(seed)


def to_float32(x):
    """bf16 and fp16 as float32. float32 and float64 stay."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


# ---- masks: bool, integer or float. What they hide reaches no result and no gradient.

def masked(x, mask):
    """x where mask is nonzero, else 0. Chosen before any arithmetic, since inf × 0 is NaN."""
    x = to_float32(x)
    return torch.where(mask != 0, x, torch.zeros((), dtype=x.dtype, device=x.device))


def masked_mean(x, mask):
    """Mean of x over the tokens where mask is nonzero; 0 if there is none."""
    return masked(x, mask).sum() / (mask != 0).sum().clamp(min=1)


# ---- batches ----

def predicting(mask):
    """mask (B, T) of tokens → (B, T) bool: the positions at which they are predicted, t − 1."""
    return F.pad(mask[:, 1:] != 0, (0, 1))


def round_up(length, multiple=16, most=math.inf):
    """The next multiple. Kernels are prepared for each shape, so fewer shapes are faster."""
    return max(length, min(most, math.ceil(length / multiple) * multiple))


def pad(rows, pad_id, device="cpu", multiple=16, block=math.inf):
    """Token lists → (tokens (B, T) right-padded, by no PAD beyond the `block`, lengths (B,)).

    Lengths stay on the CPU: to read one from a GPU is to wait for its queue.
    """
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.full((len(rows), round_up(max(lengths.tolist()), multiple, block)), pad_id)
    for i, row in enumerate(rows):
        tokens[i, :len(row)] = torch.tensor(row)
    return to_device(tokens, device), lengths


def response_mask(prompt_lengths, lengths, T):
    """True on the response: from the prompt's length up to the row's. (B,), (B,) → (B, T).

    Taken from lengths. To search for EOS would also find one inside the prompt.
    """
    columns = torch.arange(T, device=lengths.device)
    return (columns >= prompt_lengths[:, None]) & (columns < lengths[:, None])


def by_length(lengths, size):
    """Row numbers in batches of rows of similar length, which leaves little padding."""
    return torch.as_tensor(lengths).argsort(stable=True).split(size)


def epoch_batches(lengths, size, rng):
    """The batches of an epoch, lists of row numbers, in random order, each of similar lengths."""
    lengths = torch.as_tensor(lengths)
    # sort within pools of 8 batches: similar lengths together, and another mix each epoch
    pools = torch.randperm(len(lengths), generator=rng).split(8 * size)
    order = torch.cat([pool[lengths[pool].argsort(stable=True)] for pool in pools])
    batches = order.split(size)
    return [batches[i].tolist() for i in torch.randperm(len(batches), generator=rng)]


def micro_batches(batch, size=0):
    """This process's rows of a batch (tensor, list, Rollout) in parts of `size` rows. 0: one part.

    A batch's loss is a mean over its rows, tokens or pairs. The caller multiplies a part's loss by
    the part's share of them, so that gradients add up to those of the whole batch.
    """
    rows = shard(batch)
    size = size or max(1, len(rows))
    return [rows[i:i + size] for i in range(0, len(rows), size)]


# ---- the optimiser and its step ----

def adamw(model, lr, weight_decay=0.0, betas=(0.9, 0.95), eps=1e-8):
    """AdamW, with weight decay on matrices and not on biases or LayerNorm."""
    params = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in params if p.dim() >= 2], "weight_decay": weight_decay},
              {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps,
                             fused=params[0].device.type in ("cpu", "cuda", "mps"))


def cosine(step, steps, warmup=0, floor=0.1):
    """The factor on the learning rate: linear warm-up, then half a cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    t = (step - warmup) / (steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * t))


def update(model, optimizer, lr, clip=1.0):
    """Sum the gradients over processes, clip, step, and clear them → their norm before clipping.

    Raises UserError if the norm is not finite. This model is not changed then.
    """
    add_gradients(model.parameters())
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip).item()
    if not math.isfinite(norm):
        raise UserError("a gradient is NaN or infinite, nothing was updated; lower the learning "
                        "rate, or try --dtype=float32")
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm

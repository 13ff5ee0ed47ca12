"""
Muon, the optimiser of the blocks' matrices in pretraining and SFT (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon).

AdamW looks at every weight alone. Muon takes a matrix as the linear map that it is: the step is the
momentum with all its singular values set to about 1, so that rare directions are learnt as fast as
common ones. The base needs half as many tokens. torch has a Muon too, but in bf16 alone, which
takes most of a second a step on a CPU without it.
"""
import collections

import torch


def orthogonal(x, steps=5):
    """Matrices x (n, a, b), each U S Vᵀ → about U Vᵀ: singular values of 0.7 to 1.2.

    By Newton–Schulz: a step makes 3.4445 s − 4.775 s³ + 2.0315 s⁵ of a singular value s, Jordan's
    polynomial. Directions that are nearly missing, s below 0.01 of the norm, end lower.
    """
    if x.size(1) > x.size(2):
        return orthogonal(x.mT.contiguous(), steps).mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)       # no singular value is above 1 now
    for _ in range(steps):
        a = x @ x.mT
        b = torch.baddbmm(a, a, a, beta=-4.775, alpha=2.0315)       # −4.775 a + 2.0315 a²
        x = torch.baddbmm(x, b, x, beta=3.4445)                     # 3.4445 x + b x
    return x


class Muon(torch.optim.AdamW):
    """AdamW, but for its first group: matrices, which Muon steps.

    A step is as long as AdamW's, about 0.2 × lr a weight, so that one rate serves both (Liu et al.
    2025, Muon is scalable for LLM training, section 2.2).
    """

    def __init__(self, groups, lr, betas=(0.9, 0.95), momentum=0.95, dtype=torch.float32):
        super().__init__(groups, lr=lr, betas=betas, fused=True)
        self.momentum, self.dtype = momentum, dtype

    @torch.no_grad()
    def step(self):
        group, alike = self.param_groups[0], collections.defaultdict(list)
        for p in group["params"]:
            state = self.state[p]
            if not state:       # AdamW's load_state_dict looks for a step
                state.update(step=torch.zeros(()), mean=torch.zeros_like(p))
            state["mean"].lerp_(p.grad, 1 - self.momentum)
            ahead = p.grad.lerp(state["mean"], self.momentum).to(self.dtype)    # Nesterov's
            p.mul_(1 - group["lr"] * group["weight_decay"])
            maps = 3 if p.size(0) == 3 * p.size(1) else 1       # queries, keys and values
            for pair in zip(p.chunk(maps), ahead.chunk(maps)):
                alike[pair[0].shape].append(pair)
            p.grad = None       # so AdamW passes over it
        for shape, pairs in alike.items():      # many small products at once
            weights, means = zip(*pairs)
            for p, step in zip(weights, orthogonal(torch.stack(means))):
                p.add_(step, alpha=-0.2 * max(shape) ** 0.5 * group["lr"])
        super().step()


def muon(model, lr, weight_decay=0.0):
    """Muon on the blocks' matrices, AdamW on the rest; weight decay on all but vectors."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.dim() == 2 and "blocks." in name]
    tables = [p for name, p in named if p.dim() == 2 and "blocks." not in name]
    vectors = [p for _, p in named if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay},
              {"params": tables, "weight_decay": weight_decay},
              {"params": vectors, "weight_decay": 0.0}]
    return Muon(groups, lr, dtype=model.compute_dtype)

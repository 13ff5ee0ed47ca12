"""
Learning inside the forward pass: a transformer reads examples of a linear function and answers.

    python papers/in_context.py

Garg et al. 2022, What can transformers learn in-context? (section 2: pages of x, f(x), x, f(x), …
with a new f on each). Akyürek et al. 2022, What learning algorithm is in-context learning? (section
4: which algorithm's predictions are nearest, by depth). Von Oswald et al. 2022, Transformers learn
in-context by gradient descent (proposition 1), and Dai et al. 2022: a layer of linear attention is
one step of gradient descent.

Left out: Garg's curriculum and other functions, Akyürek's probes, von Oswald's trained linear
attention and GD++, Dai's comparison with the fine-tuning of a language model.
"""
import lib      # first: puts the project on sys.path

import torch
from torch import nn

from common import adamw, cosine, generator, update
from model import GPTConfig, ScalarGPT
from plumbing.command_line import entry

D, N = 2, 8             # numbers in an x, examples on a page
NOISE = 0.5             # standard deviation of what is added to f(x); f's weights have 1
STEPS, BATCH, DEPTHS, DESCENT = 2500, 64, [1, 2, 4], [1, 2, 4, 16]
RATES = [0.05, 0.1, 0.2, 0.3, 0.5, 0.7]     # of gradient descent; the best is taken


def pages(n, rng):
    """n pages, each of a new function f(x) = w·x → x (n, N, D), y = f(x) + noise (n, N), f(x)."""
    x, w = torch.randn(n, N, D, generator=rng), torch.randn(n, D, 1, generator=rng)
    f = (x @ w).squeeze(-1)
    return x, f + NOISE * torch.randn(n, N, generator=rng), f


def as_sequence(x, y):
    """x_1, y_1, x_2, … as vectors (n, 2N, D + 1): an x has a 0 behind it, a y D zeros before it."""
    x, y = nn.functional.pad(x, (0, 1)), nn.functional.pad(y[..., None], (D, 0))
    return torch.stack([x, y], 2).flatten(1, 2)


def predictions(model, x, y):
    """(n, N): column k is of f(x_k), made where x_k was read, after k examples."""
    return model(as_sequence(x, y))[:, 0::2]


# ---- what it may be doing: examples X (n, k, D), y (n, k), and new (n, D) → prediction (n,) ----

def ridge(X, y, new, penalty):
    """w = (XᵀX + λI)⁻¹ Xᵀy. With λ = the noise's variance there is no better guess. With λ = 0 it
    is least squares, and of all w that fit the shortest."""
    inverse = torch.linalg.pinv(X.mT @ X + penalty * torch.eye(X.size(-1)), rtol=1e-5)
    return (new[:, None] @ inverse @ X.mT @ y[..., None])[:, 0, 0]


def descent(X, y, new, steps, rate):
    """w ← w − rate · gradient of ½ mean (w·x − y)², from w = 0."""
    w = torch.zeros(len(X), X.size(-1), 1)
    for _ in range(steps):
        w = w - rate * X.mT @ (X @ w - y[..., None]) / X.size(1)
    return (new[:, None] @ w)[:, 0, 0]


def nearest(X, y, new):
    """The mean y of the three examples nearest to the new x."""
    near = (X - new[:, None]).norm(dim=-1).topk(min(3, X.size(1)), largest=False).indices
    return y.gather(1, near).mean(1)


def attention_descent(X, y, new, steps, rate):
    """The same as `descent`, by layers of linear attention with weights set by hand.

    A token is (x, y), the new one (x, 0). Queries and keys are its x, values its y times
    −rate / k, and what comes out is added to y: y_j ← y_j − rate/k Σ_i y_i (x_i · x_j). So the
    examples' y become what is still wrong, and the new one's y minus the prediction.
    """
    k, width = X.size(1), X.size(2)
    take_x = torch.diag(torch.tensor([1.0] * width + [0.0]))            # queries and keys
    take_y = torch.diag(torch.tensor([0.0] * width + [-rate / k]))      # values
    tokens = nn.functional.pad(torch.cat([X, new[:, None]], 1), (0, 1))     # (n, k + 1, D + 1)
    tokens[:, :k, -1] = y
    for _ in range(steps):
        scores = tokens @ take_x @ (tokens[:, :k] @ take_x).mT          # (n, k + 1, k)
        tokens = tokens + scores @ (tokens[:, :k] @ take_y)
    return -tokens[:, -1, -1]


def algorithms():
    """{name: function}. Gradient descent has the rate that is best for its number of steps."""
    found = {"ridge": lambda *page: ridge(*page, NOISE ** 2),
             "least squares": lambda *page: ridge(*page, 0), "3 nearest": nearest}
    x, y, f = pages(1000, generator("rates"))
    for steps in DESCENT:
        best = min(RATES, key=lambda rate: sum(
            (descent(x[:, :k], y[:, :k], x[:, k], steps, rate) - f[:, k]).pow(2).mean()
            for k in range(1, N)))
        found[f"GD, {steps} step{'s' * (steps > 1)}"] = (
            lambda *page, steps=steps, rate=best: descent(*page, steps, rate))
    return found


def job(quick, seed, depth):
    """Train → {name k: error after k examples}, {"to" name: the model's distance from it}.

    Error: mean of (prediction − f(x))². Distance: median of the squared difference, mean over k, as
    least squares after D examples has no finite mean. Both ÷ D, the variance of f(x).
    """
    torch.manual_seed(seed)
    rng, steps = generator(seed, "pages"), 30 if quick else STEPS
    model = ScalarGPT(GPTConfig(2 * N, 1, depth, 4, 48))    # the reward model's: numbers come out
    model.wte = nn.Linear(D + 1, 48)                        # and here vectors go in
    optimizer = adamw(model, 0)
    for step in range(steps):
        x, y, _ = pages(BATCH, rng)
        (predictions(model, x, y) - y).pow(2).mean().backward()
        update(model, optimizer, 2e-3 * cosine(step, steps, steps // 10))
    x, y, f = pages(4000, generator("measured"))
    mine = predictions(model.eval(), x, y).detach()
    row = {f"transformer {k}": (mine - f)[:, k].pow(2).mean().item() / D for k in range(1, N)}
    for name, algorithm in algorithms().items():
        theirs = [algorithm(x[:, :k], y[:, :k], x[:, k]) for k in range(1, N)]
        theirs = torch.stack([theirs[0], *theirs], 1)       # column k is after k, as in `mine`
        row |= {f"{name} {k}": (theirs - f)[:, k].pow(2).mean().item() / D for k in range(1, N)}
        row["to " + name] = (theirs - mine)[:, 1:].pow(2).median(0).values.mean().item() / D
    return row


def main():
    args = lib.arguments(__doc__, 3)
    settings = lib.over(args.seeds, *({"depth": depth} for depth in DEPTHS))
    rows = lib.collect(args, "in_context", job, settings)
    fig, [[left, right]] = lib.figure(2)

    def plot(name, depth, style, **look):
        errors = [lib.interval(lib.pick(rows, f"{name} {k}", depth=depth))[0] for k in range(1, N)]
        left.plot(range(1, N), errors, style, **look)
    for depth in DEPTHS:
        plot("transformer", depth, "-", color="0.6", lw=depth, label=f"{depth} layers")
    for name in algorithms():
        plot(name, DEPTHS[0], "--", label=name)
        lib.line(right, "to " + name, DEPTHS,
                 [lib.pick(rows, "to " + name, depth=depth) for depth in DEPTHS], "o--")
    left.set(yscale="log", ylim=(0.002, 3), xlabel="examples before", title="error in f(x)")
    right.set(yscale="log", ylim=(2e-5, 0.4), xlabel="layers", xticks=DEPTHS, title="distance")
    lib.save(args, fig, "in_context")


if __name__ == "__main__":
    entry(main)

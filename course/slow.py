"""
The maths of the recipe once more, slowly: loops over plain Python numbers, on fixtures of a seed.

For `grade.py --seed=N`: who pasted the numbers of the public tests fails here. A check takes the
project's code, where code("gae") is that function, and a generator. Its assert messages are what a
student is told. Not part of a student's copy.
"""

import ast
import contextlib
import copy
import functools
import importlib
import inspect
import math
import os
import sys
from types import SimpleNamespace

import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests"))
import patch

DTYPES = [torch.bool, torch.int64, torch.float32]
POISON = [1e3, math.inf, -math.inf, math.nan]


class Code:
    """The project's functions and classes, by the ends of their dotted names.

    Modules are imported when a check needs them: a mistake costs one file's points.
    """

    def __init__(self, module=importlib.import_module):
        self.module = module
        self.find = functools.cache(patch.find)

    def __call__(self, name):
        found = self.find(name)
        module = found.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        thing = self.module(module)
        for part in found.name.removeprefix(module + ".").split("."):
            thing = getattr(thing, part)
        return thing


# ---- fixtures ----


def integer(rng, low, high):
    return int(torch.randint(low, high + 1, (), generator=rng))


def number(rng, low, high):
    return low + (high - low) * torch.rand((), generator=rng, dtype=torch.float64).item()


def randn(rng, *shape):
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def a_mask(rng, rows, columns):
    """Gaps, empty rows, any dtype; never empty as a whole."""
    mask = torch.rand(rows, columns, generator=rng) < 0.6
    mask[integer(rng, 0, rows - 1), integer(rng, 1, columns - 1)] = True
    return mask.to(DTYPES[integer(rng, 0, 2)])


def hide(rng, x, mask):
    """x with something in the masked slots that may not be seen."""
    return torch.where(mask != 0, x, POISON[integer(rng, 0, 3)])


def shape(rng):
    return integer(rng, 1, 4), integer(rng, 2, 7)


def same(got, want, what, tolerance=1e-9):
    got, want = torch.as_tensor(got).detach(), torch.as_tensor(want)
    assert got.shape == want.shape, (
        f"{what}: shape {tuple(got.shape)}, expected {tuple(want.shape)}"
    )
    ok = torch.allclose(got.double(), want.double(), rtol=tolerance, atol=tolerance)
    assert ok, f"{what}: got {str(got.tolist())[:150]}, expected {str(want.tolist())[:150]}"


def same_loss(loss, slow, x, rng, what):
    """Value, and slope along a random direction, measured on the slow definition."""
    x = x.clone().requires_grad_()
    value = loss(x)
    same(value, torch.tensor(slow(x.detach()), dtype=torch.float64), what)
    value.backward()
    along, h = randn(rng, *x.shape), 1e-6
    slope = (slow(x.detach() + h * along) - slow(x.detach() - h * along)) / (2 * h)
    same(
        (x.grad * along).sum(),
        torch.tensor(slope, dtype=torch.float64),
        f"the gradient of {what}",
        1e-5,
    )


def where(mask):
    return [(b, t) for b in range(mask.size(0)) for t in range(mask.size(1)) if mask[b, t] != 0]


# ---- definitions ----


def softmax(row):
    weights = [math.exp(x - max(row)) for x in row]
    return [w / sum(weights) for w in weights]


def logprob(row, token, temperature=1.0):
    return math.log(softmax([x / temperature for x in row.tolist()])[token])


def sft_loss(logits, tokens, mask):
    losses = [-logprob(logits[b, t - 1], tokens[b, t]) for b, t in where(mask) if t > 0]
    return sum(losses) / max(1, len(losses))


def pairs(ranks):
    """(row, better, worse) of a table of ranks."""
    table = ranks.tolist()
    return [
        (b, i, j)
        for b, row in enumerate(table)
        for i, x in enumerate(row)
        for j, y in enumerate(row)
        if 0 < x < y
    ]


def ranking_loss(scores, ranks):
    losses = [
        math.log(1 + math.exp(float(scores[b, j] - scores[b, i]))) for b, i, j in pairs(ranks)
    ]
    return sum(losses) / max(1, len(losses))


def mean(x, mask):
    kept = [float(x[at]) for at in where(mask)]
    return sum(kept) / max(1, len(kept))


def whiten(x, mask, shift_mean=True):
    mu = mean(x, mask)
    sigma = math.sqrt(
        sum((float(x[at]) - mu) ** 2 for at in where(mask)) / max(1, len(where(mask))) + 1e-8
    )
    out = torch.zeros(mask.shape, dtype=torch.float64)
    for at in where(mask):
        out[at] = (float(x[at]) - mu) / sigma + (0 if shift_mean else mu)
    return out


def kl_rewards(scores, logprobs, ref, mask, beta):
    out = torch.zeros(mask.shape, dtype=torch.float64)
    for b, t in where(mask):
        last = all(mask[b, s] == 0 for s in range(t + 1, mask.size(1)))
        out[b, t] = beta * (ref[b, t] - logprobs[b, t]) + (scores[b] if last else 0)
    return out


def gae(rewards, values, mask, gamma, lam):
    """A_t = Σ_k (γλ)^k δ_{t+k}: the sum, not the recursion."""
    out = torch.zeros(mask.shape, dtype=torch.float64)
    for b in range(mask.size(0)):
        at = [t for t in range(mask.size(1)) if mask[b, t] != 0]
        v = [float(values[b, t]) for t in at] + [0.0]
        delta = [float(rewards[b, t]) + gamma * v[i + 1] - v[i] for i, t in enumerate(at)]
        for i, t in enumerate(at):
            out[b, t] = sum((gamma * lam) ** k * d for k, d in enumerate(delta[i:]))
    return out


def policy_loss(new, old, advantages, mask, clip):
    total = 0.0
    for at in where(mask):
        ratio, a = math.exp(float(new[at] - old[at])), float(advantages[at])
        total += -min(a * ratio, a * min(max(ratio, 1 - clip), 1 + clip))
    return total / max(1, len(where(mask)))


def value_loss(values, old, returns, mask, clip):
    total = 0.0
    for at in where(mask):
        v, o, r = float(values[at]), float(old[at]), float(returns[at])
        near = min(max(v, o - clip), o + clip)
        total += max((v - r) ** 2, (near - r) ** 2) / 2
    return total / max(1, len(where(mask)))


def sample(row, noise, temperature, top_k=None, top_p=None):
    """The first token at which the cumulative distribution exceeds the noise."""
    order = sorted(range(len(row)), key=lambda i: -row[i])
    if temperature == 0:
        return order[0]
    p = dict(zip(range(len(row)), softmax([x / temperature for x in row])))
    kept = order[:top_k]
    if top_p is not None:
        total, before, nucleus = sum(p[i] for i in kept), 0.0, []
        for i in kept:
            nucleus += [i] if before < top_p else []
            before += p[i] / total
        kept = nucleus
    total, reached = sum(p[i] for i in kept), 0.0
    for i in sorted(kept):
        reached += p[i] / total
        if noise < reached:
            return i
    return max(kept)


# ---- checks: one for each exercise of grade.py ----


def check_attention(code, rng):
    B, H, T, d = (integer(rng, 1, 3) for _ in range(4))
    S = T + integer(rng, 0, 3)
    q, k, v = randn(rng, B, H, T, d), randn(rng, B, H, S, d), randn(rng, B, H, S, d)
    free = (torch.rand(B, 1, T, S, generator=rng) < 0.5) | torch.eye(T, S, dtype=torch.bool)
    for mask in (None, free):
        want = torch.zeros(B, H, T, d, dtype=torch.float64)
        for b, h, t in torch.cartesian_prod(*map(torch.arange, (B, H, T))).view(-1, 3).tolist():
            seen = [s <= t + S - T if mask is None else bool(mask[b, 0, t, s]) for s in range(S)]
            keys = [s for s in range(S) if seen[s]]
            scores = [float((q[b, h, t] * k[b, h, s]).sum()) / math.sqrt(d) for s in keys]
            want[b, h, t] = sum(w * v[b, h, s] for w, s in zip(softmax(scores), keys))
        added = None if mask is None else torch.zeros(mask.shape).masked_fill(~mask, -math.inf)
        how = f"{'causal' if mask is None else 'with a mask'}, {T} queries and {S} keys"
        got = code("plain_attention")(q, k, v, added)
        same(got, want, f"softmax(q kᵀ / √d) v, {how}")


def check_sample(code, rng):
    V = integer(rng, 3, 9)
    logits, noise = 2 * randn(rng, 20, V), torch.rand(20, generator=rng)
    for how in (
        {"temperature": 0},
        {"temperature": 1.0},
        {"temperature": number(rng, 0.5, 2)},
        {"temperature": 1.0, "top_k": integer(rng, 1, V)},
        {"temperature": 1.0, "top_p": number(rng, 0.1, 0.99)},
        {"temperature": 1.2, "top_k": V - 1, "top_p": number(rng, 0.1, 0.99)},
    ):
        want = [sample(row, u, **how) for row, u in zip(logits.float().tolist(), noise.tolist())]
        same(code("sample")(logits, noise, **how), torch.tensor(want), f"tokens sampled with {how}")


def small(cls, config, rng):
    model = cls(config).eval()
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=rng) * 0.3
    return model


def tokens_up_to(rng, most, V):
    return torch.randint(V, (integer(rng, 1, most),), generator=rng).tolist()


def generation(code, rng, generate):
    V, steps = integer(rng, 7, 12), 12
    model = small(code("GPT"), code("GPTConfig")(24, V, 2, 2, 16), rng).double()
    # masks in float64 too: with AVX2, torch's attention kernel misreads one of another dtype
    model.compute_dtype, model.autocast = torch.float64, contextlib.nullcontext
    prompts = [tokens_up_to(rng, 9, V) for _ in range(integer(rng, 3, 7))]
    temperature, eos, seed = number(rng, 0.7, 1.3), integer(rng, 0, V - 1), integer(rng, 0, 2**31)
    noise = torch.rand(len(prompts), steps, generator=torch.Generator().manual_seed(seed)).tolist()
    want = [[] for _ in prompts]
    for prompt, u, new in zip(prompts, noise, want):
        while len(new) < steps and (not new or new[-1] != eos):
            with torch.no_grad():
                logits = model(torch.tensor([prompt + new]))[0, -1].tolist()
            new.append(sample(logits, u[len(new)], temperature))
    again = torch.Generator().manual_seed(seed)
    got = generate(model, prompts, steps, temperature, eos=eos, generator=again)
    others = [len(p) for p in prompts]
    for prompt, a, b in zip(prompts, got, want):
        what = f"a prompt of {len(prompt)} tokens beside others of {others} is continued by {a}"
        assert a == b, f"{what}, without cache and padding by {b}"


def check_generate(code, rng):
    generation(code, rng, code("GPT").generate)


def check_cache(code, rng):
    generation(code, rng, code("sampling.generate"))


def check_token_logprobs(code, rng):
    B, T = shape(rng)
    V, temperature = integer(rng, 2, 6), number(rng, 0.5, 2)
    logits, tokens = 2 * randn(rng, B, T, V), torch.randint(V, (B, T), generator=rng)
    want = torch.zeros(B, T, dtype=torch.float64)
    for b in range(B):
        for t in range(1, T):
            want[b, t] = logprob(logits[b, t - 1], tokens[b, t], temperature)
    got = code("token_logprobs")(logits, tokens, temperature)
    same(got, want, "log p(token | those before it)")


def check_sft_loss(code, rng):
    (B, T), V = shape(rng), integer(rng, 2, 6)
    tokens, mask = torch.randint(V, (B, T), generator=rng), a_mask(rng, B, T)
    chooses = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], 1)
    logits = hide(rng, 2 * randn(rng, B, T, V), chooses[..., None])
    ours, theirs = (lambda x, f=f: f(x, tokens, mask) for f in (sft_loss, code("sft_loss")))
    same_loss(theirs, ours, logits, rng, "the SFT loss")
    alone = theirs(logits[:, :-1][mask[:, 1:] != 0])  # (n, V), as sft.py asks for them
    same(alone, ours(logits), "the SFT loss of the wanted logits alone", 1e-6)


def some_ranks(rng):
    """(B, K), with at least one pair."""
    ranks = torch.randint(0, 4, (integer(rng, 1, 4), integer(rng, 2, 6)), generator=rng)
    ranks[0, :2] = torch.tensor([1, 2])
    return ranks


def check_ranking_loss(code, rng):
    ranks = some_ranks(rng)
    scores = hide(rng, randn(rng, *ranks.shape), ranks)
    want = torch.zeros(*ranks.shape, ranks.size(1), dtype=torch.bool)
    for at in pairs(ranks):
        want[at] = True
    same(code("better_pairs")(ranks), want, "better_pairs")
    ours, theirs = (lambda x, f=f: f(x, ranks) for f in (ranking_loss, code("ranking_loss")))
    same_loss(theirs, ours, scores, rng, "the ranking loss")


def check_ordered_right(code, rng):
    ranks = some_ranks(rng)
    scores = torch.randint(-2, 3, ranks.shape, generator=rng).float()
    right, n = torch.zeros(len(ranks)), torch.zeros(len(ranks), dtype=torch.int64)
    for b, i, j in pairs(ranks):
        right[b] += 0.5 + 0.5 * float(scores[b, i] > scores[b, j])
        right[b] -= 0.5 * float(scores[b, i] < scores[b, j])
        n[b] += 1
    got = code("ordered_right")(scores, ranks)
    same(got[0], right, "pairs in the right order, for each prompt", 1e-6)
    same(got[1], n, "pairs, for each prompt")


def check_masked_mean(code, rng):
    mask = a_mask(rng, *shape(rng))
    x = randn(rng, *mask.shape)
    want = torch.zeros(mask.shape, dtype=torch.float64)
    for at in where(mask):
        want[at] = x[at]
    same(code("masked")(hide(rng, x, mask), mask), want, "masked")
    ours, theirs = (lambda y, f=f: f(y, mask) for f in (mean, code("masked_mean")))
    same_loss(theirs, ours, hide(rng, x, mask), rng, "the masked mean")


def check_masked_whiten(code, rng):
    mask = a_mask(rng, *shape(rng))
    x = randn(rng, *mask.shape) * number(rng, 0.5, 3) + number(rng, -2, 2)
    x = hide(rng, x, mask)
    for shift_mean in (True, False):
        got, want = code("masked_whiten")(x, mask, shift_mean), whiten(x, mask, shift_mean)
        same(got, want, f"whitened with shift_mean={shift_mean}", 1e-6)


def check_kl_rewards(code, rng):
    mask, beta = a_mask(rng, *shape(rng)), number(rng, 0.01, 1)
    a, b = (hide(rng, randn(rng, *mask.shape), mask) for _ in range(2))
    scores = randn(rng, mask.size(0))
    want = kl_rewards(scores, a, b, mask, beta)
    same(code("kl_rewards")(scores, a, b, mask, beta), want, "rewards")


def check_penalize_missing_eos(code, rng):
    n, mu, sigma = integer(rng, 4, 9), number(rng, -1, 1), number(rng, 0.2, 1)
    scores, ended = 2 * randn(rng, n), torch.rand(n, generator=rng) < 0.5
    want = [s if e else min(s, mu - sigma) for s, e in zip(scores.tolist(), ended.tolist())]
    want = torch.tensor(want, dtype=torch.float64)
    got = code("penalize_missing_eos")(scores, ended, mu, sigma)
    same(got, want, "scores after the rule on EOS")


def check_adapt_beta(code, rng):
    for _ in range(20):
        beta, kl, target = number(rng, 0.01, 1), number(rng, 0, 12), number(rng, 3, 9)
        n, horizon = integer(rng, 1, 999), integer(rng, 5_000, 20_000)
        push = (kl - target) / target
        push = 0.2 if kl > 1.2 * target else -0.2 if kl < 0.8 * target else push
        want = torch.tensor(beta + beta * push * n / horizon, dtype=torch.float64)
        same(code("adapt_beta")(beta, kl, target, n, horizon), want, "the next β", 1e-6)


def check_gae(code, rng):
    mask = a_mask(rng, *shape(rng))
    rewards, values = (hide(rng, randn(rng, *mask.shape), mask) for _ in range(2))
    for gamma, lam in ((1.0, 0.95), (number(rng, 0.5, 1), number(rng, 0, 1))):
        advantages, returns = code("gae")(rewards, values, mask, gamma, lam)
        want = gae(rewards, values, mask, gamma, lam)
        same(advantages, want, "advantages")
        same(returns, want + torch.where(mask != 0, values, 0.0), "returns")


def check_policy_loss(code, rng):
    mask, clip = a_mask(rng, *shape(rng)), number(rng, 0.1, 0.4)
    old, a = (hide(rng, randn(rng, *mask.shape), mask) for _ in range(2))
    new = hide(rng, old + 0.5 * randn(rng, *mask.shape), mask)
    losses = policy_loss, code("policy_loss")
    ours, theirs = (lambda x, f=f: f(x, old, a, mask, clip) for f in losses)
    same_loss(theirs, ours, new, rng, "the policy loss")


def check_value_loss(code, rng):
    mask, clip = a_mask(rng, *shape(rng)), number(rng, 0.1, 0.4)
    values, old, returns = (hide(rng, 0.5 * randn(rng, *mask.shape), mask) for _ in range(3))
    losses = value_loss, code("value_loss")
    ours, theirs = (lambda x, f=f: f(x, old, returns, mask, clip) for f in losses)
    same_loss(theirs, ours, values, rng, "the value loss")


def check_forward_values(code, rng):
    tokens = torch.randint(9, shape(rng), generator=rng)
    outputs = randn(rng, *tokens.shape)
    want = torch.tensor([[0.0, *row[:-1]] for row in outputs.tolist()], dtype=torch.float64)
    mask = torch.ones(tokens.shape)
    same(code("forward_values")(lambda x, wanted: outputs, tokens, mask), want, "values")


def check_response_mask(code, rng):
    prompts = torch.randint(1, 9, (integer(rng, 1, 5),), generator=rng)
    responses = torch.randint(1, 9, prompts.shape, generator=rng)
    T = int((prompts + responses).max()) + integer(rng, 0, 3)
    want = [[0] * p + [1] * r + [0] * (T - p - r) for p, r in zip(prompts, responses)]
    got = code("response_mask")(prompts, prompts + responses, T)
    same(got, torch.tensor(want), "the mask: 1 on the response, EOS included, 0 on prompt and PADs")


def check_ema_update(code, rng):
    decay = number(rng, 0.5, 0.99)
    a, b = (small(lambda _: torch.nn.Linear(3, 2), None, rng) for _ in range(2))
    want = [decay * x + (1 - decay) * y for x, y in zip(a.bias.tolist(), b.bias.tolist())]
    kept = copy.deepcopy(b.state_dict())
    code("ema_update")(a, b, decay)
    same(a.bias, torch.tensor(want), "decay × average + (1 − decay) × weights", 1e-5)
    unchanged = all(torch.equal(b.state_dict()[k], kept[k]) for k in kept)
    assert unchanged, "the average leaks back into the policy"


def check_together(code, rng):
    """From scores to the policy's gradient, with rubbish in every masked slot."""
    mask = a_mask(rng, integer(rng, 2, 4), 7)
    scores = randn(rng, mask.size(0))
    old, ref, values = (hide(rng, randn(rng, *mask.shape), mask) for _ in range(3))
    new = hide(rng, old + 0.5 * randn(rng, *mask.shape), mask)
    rewards = code("kl_rewards")(scores, old, ref, mask, 0.1)
    advantages, returns = code("gae")(rewards, values, mask, 1.0, 0.95)
    whitened = code("masked_whiten")(advantages, mask)
    want = gae(kl_rewards(scores, old, ref, mask, 0.1), values, mask, 1.0, 0.95)
    goal = want + torch.where(mask != 0, values, 0.0)
    same_loss(
        lambda x: code("policy_loss")(x, old, whitened, mask, 0.2),
        lambda x: policy_loss(x, old, whiten(want, mask), mask, 0.2),
        new,
        rng,
        "the policy loss, from scores on,",
    )
    same_loss(
        lambda x: code("value_loss")(x, values, returns, mask, 0.2),
        lambda x: value_loss(x, values, goal, mask, 0.2),
        new,
        rng,
        "the value loss, from scores on,",
    )


# ---- the update: step 5 of the loop in ppo.py ----


def logprobs_of(net, tokens, temperature):
    """(B, T): not through token_logprobs, but by its definition."""
    logp = (net(tokens)[:, :-1] / temperature).log_softmax(-1)
    chosen = logp.gather(-1, tokens[:, 1:, None])[..., 0]
    return torch.cat([torch.zeros(len(tokens), 1), chosen], 1)


def optimizers(*nets):
    options = dict(lr=0, betas=(0.9, 0.95), eps=1e-5, weight_decay=0)
    return [torch.optim.AdamW(net.parameters(), **options) for net in nets]


def a_text(rows, rng):
    return torch.randint(12, (rows, 16), generator=rng)


def a_rollout(code, policy, critic, temperature, rng):
    """Eight episodes, with NaN in every masked slot."""
    tokens, lengths = a_text(8, rng), torch.randint(5, 17, (8,), generator=rng)
    starts = torch.tensor([integer(rng, 1, int(n) - 1) for n in lengths])
    columns = torch.arange(16)
    mask = (columns >= starts[:, None]) & (columns < lengths[:, None])
    with torch.no_grad():
        logprobs = logprobs_of(policy, tokens, temperature)
        values = torch.cat([torch.zeros(8, 1), critic(tokens)[:, :-1]], 1)
    advantages, returns = (torch.randn(8, 16, generator=rng) for _ in range(2))
    parts = dict(
        logprobs=logprobs,
        ref_logprobs=logprobs,
        values=values,
        advantages=advantages,
        returns=values + returns,
    )
    parts = {name: torch.where(mask, x, math.nan) for name, x in parts.items()}
    return code("Rollout")(tokens, mask, lengths, torch.ones(8, dtype=torch.bool), **parts)


def run_update(code, names):
    """Run the statements of ppo.main between its advantages and its metrics."""
    main = code("ppo.main")
    source = ast.parse(inspect.getsource(main)).body[0]
    at = []
    for statement in ("rollout.advantages = ___", "metrics = ___"):
        found = patch.places(ast.parse(statement).body, source)
        assert found, f"the statement `{statement}` of ppo.main must stay"
        at.append(found[0][:2])
    (block, first), (_, last) = at
    part = ast.Module(block[first.stop : last.start], [])
    names.update({k: v for k, v in vars(sys.modules[main.__module__]).items() if k not in names})
    exec(compile(part, "ppo.main", "exec"), names)


def slow_update(policy, critic, ema, rollout, config, text_of, order):
    """Two epochs of two minibatches, each in one piece → statistics of each."""
    adam, critic_adam = optimizers(policy, critic)
    every = []
    for epoch in range(2):
        for n, rows in enumerate(torch.randperm(8, generator=order).split(4)):
            keep, tokens = rollout.mask[rows], rollout.tokens[rows]
            old, a, v0, ret = (
                getattr(rollout, name)[rows][keep]
                for name in ("logprobs", "advantages", "values", "returns")
            )
            ratio = (logprobs_of(policy, tokens, config.temperature)[keep] - old).exp()
            clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
            pg = -torch.minimum(a * ratio, a * clipped).mean()
            v = critic(tokens)[:, :-1][keep[:, 1:]]
            near = v.clamp(v0 - config.value_clip, v0 + config.value_clip)
            vl = torch.maximum((v - ret) ** 2, (near - ret) ** 2).mean() / 2
            text = text_of(epoch, n)
            logp = policy(text)[:, :-1].log_softmax(-1)
            ptx = -logp.gather(-1, text[:, 1:, None]).mean()
            loss = pg + config.ptx_coef * ptx
            slow_step(policy, adam, loss, config.lr * 0.1)
            slow_step(critic, critic_adam, vl, config.critic_lr * 0.1)
            for average, p in zip(ema.parameters(), policy.parameters()):
                average.data = config.ema * average.data + (1 - config.ema) * p.data
            share = (-a * clipped > -a * ratio).float().mean()
            further = ((near - ret).abs() > (v - ret).abs()).float().mean()
            outside = ((ratio - 1).abs() > config.clip).float().mean()
            k2, k3 = (ratio.log() ** 2 / 2).mean(), (ratio - 1 - ratio.log()).mean()
            stats = (pg, vl, k2, share, further, ratio.mean(), k3, outside, ptx)
            every.append([x.item() for x in stats])
    return torch.tensor(every)


def slow_step(net, optimizer, loss, lr):
    optimizer.zero_grad()
    loss.backward()
    norm = sum((p.grad**2).sum() for p in net.parameters()).sqrt()
    for p in net.parameters():
        p.grad /= norm.clamp(min=1)
    optimizer.param_groups[0]["lr"] = lr
    optimizer.step()


def check_update(code, rng):
    """Step 5 of the loop, on two small networks, against one gradient a minibatch."""
    size = code("GPTConfig")(16, 12, 1, 2, 16)
    policy, critic = small(code("GPT"), size, rng), small(code("ScalarGPT"), size, rng)
    config = code("ppo.Config")(
        episodes=8,
        minibatches=2,
        ppo_epochs=2,
        micro_batch_size=integer(rng, 1, 4),
        temperature=number(rng, 0.7, 1.4),
        clip=0.1,
        value_clip=0.1,
        ptx_coef=number(rng, 0.5, 2),
        ptx_ratio=0.5,
        lr=0.05,
        critic_lr=0.1,
        ema=number(rng, 0.5, 0.9),
        seed=integer(rng, 0, 999),
    )
    rollout = a_rollout(code, policy, critic, config.temperature, rng)
    seed, nets = integer(rng, 0, 2**31), [policy, critic, copy.deepcopy(policy)]
    names = dict(
        zip(("policy", "critic", "ema_policy"), copy.deepcopy(nets)),
        config=config,
        run=SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32),
        rollout=rollout,
        iteration=0,
        mb_size=4,
        n_windows=2,
        lr=config.lr * 0.1,
        critic_lr=config.critic_lr * 0.1,
        rng=torch.Generator().manual_seed(seed),
        text=SimpleNamespace(batch=a_text),
        timed=lambda name: contextlib.nullcontext(),
        stats=[],
    )
    names["optimizer"], names["critic_optimizer"] = optimizers(names["policy"], names["critic"])
    run_update(code, names)

    def text_of(epoch, n):
        return a_text(2, code("generator")(config.seed, "ptx", 0, epoch, n))

    order = torch.Generator().manual_seed(seed)
    every = slow_update(*nets, rollout, config, text_of, order)
    for name, want in zip(("policy", "critic", "ema_policy"), nets):
        for (key, p), q in zip(names[name].named_parameters(), want.parameters()):
            what = f"{key} of {name} after two epochs of two minibatches"
            same(p, q.detach(), what, 1e-4)
    assert len(names["stats"]) == 4, "stats must get one tensor of nine numbers a minibatch"
    what = "stats: both losses, approxkl, clipfracs, ratio, k3, ratio outside, ptx loss"
    same(torch.stack(names["stats"]), every, what, 1e-3)

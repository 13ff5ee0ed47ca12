"""
The maths of the recipe once more, slowly: loops over plain Python numbers, against fixtures drawn from a seed.

For `grade.py --seed=N`: who pasted the numbers of the public tests fails here. A check takes the project's modules
(m.ppo is its ppo.py) and a generator; its assert messages are what a student is told. Not part of a student's copy.
"""
import contextlib
import copy
import inspect
import math
import textwrap
from types import SimpleNamespace

import numpy as np
import torch

DTYPES = [torch.bool, torch.int64, torch.float32]
POISON = [1e3, math.inf, -math.inf, math.nan]


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
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(want.shape)}"
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
    same((x.grad * along).sum(), torch.tensor(slope, dtype=torch.float64), f"the gradient of {what}", 1e-5)


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
    return [(b, i, j) for b, row in enumerate(table) for i, x in enumerate(row) for j, y in enumerate(row) if 0 < x < y]


def ranking_loss(scores, ranks):
    losses = [math.log(1 + math.exp(float(scores[b, j] - scores[b, i]))) for b, i, j in pairs(ranks)]
    return sum(losses) / max(1, len(losses))


def mean(x, mask):
    kept = [float(x[at]) for at in where(mask)]
    return sum(kept) / max(1, len(kept))


def whiten(x, mask, shift_mean=True):
    mu = mean(x, mask)
    sigma = math.sqrt(sum((float(x[at]) - mu) ** 2 for at in where(mask)) / max(1, len(where(mask))) + 1e-8)
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

def check_attention(m, rng):
    B, H, T, d = (integer(rng, 1, 3) for _ in range(4))
    S = T + integer(rng, 0, 3)
    q, k, v = randn(rng, B, H, T, d), randn(rng, B, H, S, d), randn(rng, B, H, S, d)
    free = (torch.rand(B, 1, T, S, generator=rng) < 0.5) | torch.eye(T, S, dtype=torch.bool)
    for mask in (None, free):
        want = torch.zeros(B, H, T, d, dtype=torch.float64)
        for b in range(B):
            for h in range(H):
                for t in range(T):
                    keys = [s for s in range(S) if (s <= t + S - T if mask is None else mask[b, 0, t, s])]
                    weights = softmax([sum(float(x * y) for x, y in zip(q[b, h, t], k[b, h, s])) / math.sqrt(d) for s in keys])
                    want[b, h, t] = sum(w * v[b, h, s] for w, s in zip(weights, keys))
        same(m.model.plain_attention(q, k, v, mask), want, f"softmax(q kᵀ / √d) v, {'causal' if mask is None else 'with a mask'}, {T} queries and {S} keys")


def check_sample(m, rng):
    V = integer(rng, 3, 9)
    logits, noise = 2 * randn(rng, 20, V), torch.rand(20, generator=rng)
    for how in ({"temperature": 0}, {"temperature": 1.0}, {"temperature": number(rng, 0.5, 2)}, {"temperature": 1.0, "top_k": integer(rng, 1, V)},
                {"temperature": 1.0, "top_p": number(rng, 0.1, 0.99)}, {"temperature": 1.2, "top_k": V - 1, "top_p": number(rng, 0.1, 0.99)}):
        want = [sample(row, u, **how) for row, u in zip(logits.float().tolist(), noise.tolist())]
        same(m.model.sample(logits, noise, **how), torch.tensor(want), f"tokens sampled with {how}")


def small(cls, config, rng):
    model = cls(config).eval()
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=rng) * 0.3
    return model


def check_generate(m, rng):
    V = integer(rng, 7, 12)
    model = small(m.model.GPT, m.model.GPTConfig(24, V, 2, 2, 16), rng).double()
    prompts = [[integer(rng, 0, V - 1) for _ in range(integer(rng, 1, 9))] for _ in range(integer(rng, 3, 7))]
    temperature, steps, eos, seed = number(rng, 0.7, 1.3), 12, integer(rng, 0, V - 1), integer(rng, 0, 2**31)
    noise = torch.rand(len(prompts), steps, generator=torch.Generator().manual_seed(seed)).tolist()
    want = [[] for _ in prompts]
    for prompt, u, new in zip(prompts, noise, want):
        while len(new) < steps and (not new or new[-1] != eos):
            with torch.no_grad():
                new.append(sample(model(torch.tensor([prompt + new]))[0, -1].tolist(), u[len(new)], temperature))
    got = model.generate(prompts, steps, temperature, eos=eos, generator=torch.Generator().manual_seed(seed))
    for prompt, a, b in zip(prompts, got, want):
        assert a == b, f"a prompt of {len(prompt)} tokens beside others of {[len(p) for p in prompts]} is continued by {a}, without cache and padding by {b}"


def check_token_logprobs(m, rng):
    B, T = shape(rng)
    V, temperature = integer(rng, 2, 6), number(rng, 0.5, 2)
    logits, tokens = 2 * randn(rng, B, T, V), torch.randint(V, (B, T), generator=rng)
    want = [[logprob(logits[b, t - 1], tokens[b, t], temperature) if t else 0.0 for t in range(T)] for b in range(B)]
    same(m.ppo.token_logprobs(logits, tokens, temperature), torch.tensor(want, dtype=torch.float64), "log p(token | those before it)")


def check_sft_loss(m, rng):
    (B, T), V = shape(rng), integer(rng, 2, 6)
    tokens, mask = torch.randint(V, (B, T), generator=rng), a_mask(rng, B, T)
    chooses = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], 1)
    logits = hide(rng, 2 * randn(rng, B, T, V), chooses[..., None])
    same_loss(lambda x: m.sft.sft_loss(x, tokens, mask), lambda x: sft_loss(x, tokens, mask), logits, rng, "the SFT loss")


def check_ranking_loss(m, rng):
    B, K = integer(rng, 1, 4), integer(rng, 2, 6)
    ranks = torch.randint(0, 4, (B, K), generator=rng)
    ranks[0, :2] = torch.tensor([1, 2])
    scores = hide(rng, randn(rng, B, K), ranks)
    want = torch.zeros(B, K, K, dtype=torch.bool)
    for at in pairs(ranks):
        want[at] = True
    same(m.reward.better_pairs(ranks), want, "better_pairs")
    same_loss(lambda x: m.reward.ranking_loss(x, ranks), lambda x: ranking_loss(x, ranks), scores, rng, "the ranking loss")


def check_accuracy(m, rng):
    B, K = integer(rng, 1, 4), integer(rng, 2, 6)
    ranks, scores = torch.randint(0, 4, (B, K), generator=rng), torch.randint(-2, 3, (B, K), generator=rng).float()
    ranks[0, :2] = torch.tensor([1, 2])
    right = [1.0 if scores[b, i] > scores[b, j] else 0.5 if scores[b, i] == scores[b, j] else 0.0 for b, i, j in pairs(ranks)]
    share, n = m.reward.accuracy(scores, ranks)
    assert n == len(right), f"{n} pairs were counted of {len(right)}"
    same(float(share), torch.tensor(sum(right) / n), "the share of pairs in the right order", 1e-6)


def check_masked_mean(m, rng):
    mask = a_mask(rng, *shape(rng))
    x = randn(rng, *mask.shape)
    want = [[float(v) if keep else 0.0 for v, keep in zip(*rows)] for rows in zip(x.tolist(), mask.tolist())]
    same(m.ppo.shown(hide(rng, x, mask), mask), torch.tensor(want, dtype=torch.float64), "shown")
    same_loss(lambda y: m.ppo.masked_mean(y, mask), lambda y: mean(y, mask), hide(rng, x, mask), rng, "the masked mean")


def check_masked_whiten(m, rng):
    mask = a_mask(rng, *shape(rng))
    x = hide(rng, randn(rng, *mask.shape) * number(rng, 0.5, 3) + number(rng, -2, 2), mask)
    for shift_mean in (True, False):
        same(m.ppo.masked_whiten(x, mask, shift_mean), whiten(x, mask, shift_mean), f"whitened with shift_mean={shift_mean}", 1e-6)


def check_kl_rewards(m, rng):
    mask, beta = a_mask(rng, *shape(rng)), number(rng, 0.01, 1)
    scores, (a, b) = randn(rng, mask.size(0)), (hide(rng, randn(rng, *mask.shape), mask) for _ in range(2))
    same(m.ppo.kl_rewards(scores, a, b, mask, beta), kl_rewards(scores, a, b, mask, beta), "rewards")


def check_eos_rule(m, rng):
    n, mu, sigma = integer(rng, 4, 9), number(rng, -1, 1), number(rng, 0.2, 1)
    scores, ended = 2 * randn(rng, n), torch.rand(n, generator=rng) < 0.5
    want = [s if e or s < mu - sigma else mu - sigma for s, e in zip(scores.tolist(), ended.tolist())]
    same(m.ppo.eos_rule(scores, ended, mu, sigma), torch.tensor(want, dtype=torch.float64), "scores after the rule on EOS")


def check_adapt_beta(m, rng):
    for _ in range(20):
        beta, kl, target, n, horizon = number(rng, 0.01, 1), number(rng, 0, 12), number(rng, 3, 9), integer(rng, 1, 999), integer(rng, 5_000, 20_000)
        push = 0.2 if kl > 1.2 * target else -0.2 if kl < 0.8 * target else (kl - target) / target
        same(m.ppo.adapt_beta(beta, kl, target, n, horizon), torch.tensor(beta + beta * push * n / horizon, dtype=torch.float64), "the next β", 1e-6)


def check_gae(m, rng):
    mask = a_mask(rng, *shape(rng))
    rewards, values = (hide(rng, randn(rng, *mask.shape), mask) for _ in range(2))
    for gamma, lam in ((1.0, 0.95), (number(rng, 0.5, 1), number(rng, 0, 1))):
        advantages, returns = m.ppo.gae(rewards, values, mask, gamma, lam)
        want = gae(rewards, values, mask, gamma, lam)
        same(advantages, want, "advantages")
        same(returns, want + torch.where(mask != 0, values, 0.0), "returns")


def check_policy_loss(m, rng):
    mask, clip = a_mask(rng, *shape(rng)), number(rng, 0.1, 0.4)
    old, advantages = (hide(rng, randn(rng, *mask.shape), mask) for _ in range(2))
    new = hide(rng, old + 0.5 * randn(rng, *mask.shape), mask)
    same_loss(lambda x: m.ppo.policy_loss(x, old, advantages, mask, clip), lambda x: policy_loss(x, old, advantages, mask, clip), new, rng, "the policy loss")


def check_value_loss(m, rng):
    mask, clip = a_mask(rng, *shape(rng)), number(rng, 0.1, 0.4)
    values, old, returns = (hide(rng, 0.5 * randn(rng, *mask.shape), mask) for _ in range(3))
    same_loss(lambda x: m.ppo.value_loss(x, old, returns, mask, clip), lambda x: value_loss(x, old, returns, mask, clip), values, rng, "the value loss")


def check_forward_values(m, rng):
    tokens = torch.randint(9, shape(rng), generator=rng)
    outputs = randn(rng, *tokens.shape)
    want = [[0.0, *row[:-1]] for row in outputs.tolist()]
    same(m.ppo.forward_values(lambda x: outputs, tokens, contextlib.nullcontext()), torch.tensor(want, dtype=torch.float64), "values")


def check_rollout(m, rng):
    eos, pad = 8, 9
    prompts = [torch.randint(9, (integer(rng, 1, 9),), generator=rng).tolist() for _ in range(integer(rng, 1, 5))]        # an EOS inside is no end
    news = [torch.randint(8, (integer(rng, 1, 9),), generator=rng).tolist() + [eos] * integer(rng, 0, 1) for _ in prompts]
    policy = SimpleNamespace(generate=lambda *args, **more: news, wte=torch.nn.Embedding(1, 1))
    config = SimpleNamespace(max_new_tokens=10, temperature=1.0)
    tokens, mask, *_ = m.ppo.rollout(policy, prompts, config, SimpleNamespace(eos=eos, pad=pad), contextlib.nullcontext(), rng)
    want = [[0] * len(p) + [1] * len(n) + [0] * (tokens.size(1) - len(p) - len(n)) for p, n in zip(prompts, news)]
    same(mask, torch.tensor(want), "the mask: 1 on the response, EOS included, 0 on prompt and PADs")


def check_ema_update(m, rng):
    decay, (a, b) = number(rng, 0.5, 0.99), (small(lambda _: torch.nn.Linear(3, 2), None, rng) for _ in range(2))
    want = [decay * x + (1 - decay) * y for x, y in zip(*([p.tolist() for p in net.parameters()][1] for net in (a, b)))]
    kept = copy.deepcopy(b.state_dict())
    m.ppo.ema_update(a, b, decay)
    same(a.bias, torch.tensor(want), "decay × average + (1 − decay) × weights", 1e-5)
    assert all(torch.equal(b.state_dict()[k], kept[k]) for k in kept), "the average leaks back into the policy"


def check_together(m, rng):
    """From scores to the gradient of the policy, through everything, with rubbish in every masked slot."""
    mask = a_mask(rng, integer(rng, 2, 4), 7)
    scores, (old, ref, values) = randn(rng, mask.size(0)), (hide(rng, randn(rng, *mask.shape), mask) for _ in range(3))
    new = hide(rng, old + 0.5 * randn(rng, *mask.shape), mask)
    advantages, returns = m.ppo.gae(m.ppo.kl_rewards(scores, old, ref, mask, 0.1), values, mask, 1.0, 0.95)
    want = gae(kl_rewards(scores, old, ref, mask, 0.1), values, mask, 1.0, 0.95)
    same_loss(lambda x: m.ppo.policy_loss(x, old, m.ppo.masked_whiten(advantages, mask), mask, 0.2),
              lambda x: policy_loss(x, old, whiten(want, mask), mask, 0.2), new, rng, "the policy loss, from scores on,")
    goal = want + torch.where(mask != 0, values, 0.0)
    same_loss(lambda x: m.ppo.value_loss(x, values, returns, mask, 0.2), lambda x: value_loss(x, values, goal, mask, 0.2), new, rng, "the value loss, from scores on,")


def check_update(m, rng):
    """Step 5 of the loop in ppo.py, cut out of main() and run on two small networks, against one gradient a minibatch."""
    lines = inspect.getsource(m.ppo.main).splitlines()
    at = [i for i, line in enumerate(lines) if line.strip().startswith(("# 5. update", "# 6. what happened"))]
    assert len(at) == 2, "the comments that begin steps 5 and 6 of the loop in main() must stay as they are"
    model_config = m.model.GPTConfig(16, 12, 1, 2, 16)
    policy, critic = small(m.model.GPT, model_config, rng), small(m.model.ScalarGPT, model_config, rng)
    average, config = copy.deepcopy(policy), m.ppo.Config(
        episodes=8, epochs=2, temperature=number(rng, 0.7, 1.4), clip=0.1, value_clip=0.1, ptx_coef=number(rng, 0.5, 2), ptx_ratio=0.5,
        lr=0.05, critic_lr=0.1, warmup=4, ema=number(rng, 0.5, 0.9), seed=integer(rng, 0, 999))
    tokens, lengths = torch.randint(12, (8, 16), generator=rng), torch.randint(5, 17, (8,), generator=rng)
    starts = torch.tensor([[integer(rng, 1, int(n) - 1)] for n in lengths])
    mask = (torch.arange(16) >= starts) & (torch.arange(16) < lengths[:, None])
    text = torch.randint(12, (80,), generator=rng).numpy().astype(np.uint16)

    def logprobs_of(x, net):        # (B, T, V) → (B, T): not through token_logprobs, but by its definition
        logp = (net(x)[:, :-1] / config.temperature).log_softmax(-1).gather(-1, x[:, 1:, None])[..., 0]
        return torch.cat([torch.zeros(len(x), 1), logp], 1)
    with torch.no_grad():
        logprobs = logprobs_of(tokens, policy)
        values = torch.cat([torch.zeros(8, 1), critic(tokens)[:, :-1]], 1)
    whitened, returns = torch.randn(8, 16, generator=rng), values + torch.randn(8, 16, generator=rng)

    def optimizers(*nets):
        return [torch.optim.AdamW(n.parameters(), lr=0, betas=(0.9, 0.95), eps=1e-5, weight_decay=0) for n in nets]
    adam, critic_adam = optimizers(policy, critic)
    hidden = [torch.where(mask, x, math.nan) for x in (logprobs, whitened, values, returns)]
    seed = integer(rng, 0, 2**31)
    names = dict(vars(m.ppo), config=config, iteration=0, size=4, micro=integer(rng, 1, 4), block=16, rng=torch.Generator().manual_seed(seed), clock=[],
                 tokens=tokens, mask=mask, lengths=lengths, text=text, starts=torch.arange(0, 60, 7), policy=copy.deepcopy(policy), critic=copy.deepcopy(critic),
                 average=copy.deepcopy(average), logprobs=hidden[0], whitened=hidden[1], values=hidden[2], returns=hidden[3],
                 run=SimpleNamespace(device=torch.device("cpu"), cast=contextlib.nullcontext(), dtype=torch.float32, seconds=lambda: 0.0))
    names["optimizer"], names["critic_optimizer"] = optimizers(names["policy"], names["critic"])
    exec(textwrap.dedent("\n".join(lines[at[0]:at[1]])), names)

    order, every = torch.Generator().manual_seed(seed), []
    for epoch in range(2):
        for n, rows in enumerate(torch.randperm(8, generator=order).split(4)):
            k = mask[rows]
            ratio = (logprobs_of(tokens[rows], policy)[k] - logprobs[rows][k]).exp()
            a, v0, ret = whitened[rows][k], values[rows][k], returns[rows][k]
            pg = -torch.minimum(a * ratio, a * ratio.clamp(1 - config.clip, 1 + config.clip)).mean()
            v = critic(tokens[rows])[:, :-1][k[:, 1:]]
            near = torch.minimum(torch.maximum(v, v0 - config.value_clip), v0 + config.value_clip)
            vl = torch.maximum((v - ret) ** 2, (near - ret) ** 2).mean() / 2
            x = m.ppo.document_batch(text, torch.arange(0, 60, 7), 2, 16, m.ppo.generator(config.seed, "ptx", 0, epoch, n), "cpu")
            ptx = -policy(x)[:, :-1].log_softmax(-1).gather(-1, x[:, 1:, None]).mean()
            for net, optimizer, loss, lr in ((policy, adam, pg + config.ptx_coef * ptx, config.lr), (critic, critic_adam, vl, config.critic_lr)):
                optimizer.zero_grad()
                loss.backward()
                norm = sum((p.grad ** 2).sum() for p in net.parameters()).sqrt()
                for p in net.parameters():
                    p.grad /= norm.clamp(min=1)
                optimizer.param_groups[0]["lr"] = lr * 0.1         # iteration 0 of a warm-up from a tenth
                optimizer.step()
            for old, new in zip(average.parameters(), policy.parameters()):
                old.data = config.ema * old.data + (1 - config.ema) * new.data
            every.append([x.item() for x in (pg, vl, (ratio - 1 - ratio.log()).mean(), ((ratio - 1).abs() > config.clip).float().mean(),
                                             ((v - v0).abs() > config.value_clip).float().mean(), ratio.mean(), ptx)])
    for name, want in (("policy", policy), ("critic", critic), ("average", average)):
        for (key, p), q in zip(names[name].named_parameters(), want.parameters()):
            same(p, q.detach(), f"{key} of the {name} after two epochs of two minibatches", 1e-4)
    assert len(names["stats"]) == 4, "stats must get one tensor of seven numbers a minibatch"
    same(torch.stack(names["stats"]), torch.tensor(every), "stats: policy loss, value loss, approxkl, clipfrac, value clipfrac, ratio, ptx loss", 1e-3)

"""
PPO as a whole, where the right answer is known: one-token answers over five tokens.

There the best policy of eq. 2 has a closed form, π* ∝ π_ref · exp(r / β). A loop of 150
iterations over ppo.py's own functions must end there. With the KL dropped, flipped or measured from
a moving reference it ends elsewhere.
"""

import copy
import pathlib
import re
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy, softmax

import health
import sampling
from common import (
    adamw,
    cosine,
    epoch_batches,
    generator,
    masked,
    micro_batches,
    response_mask,
    update,
)
from conftest import ROOT
from data import UserError
from health import check_ratio
from model import GPT, GPTConfig, ScalarGPT
from ppo import (
    STATS,
    ema_update,
    forward_logprobs,
    forward_values,
    gae,
    kl_rewards,
    masked_whiten,
    policy_loss,
    ppo_backward,
    token_logprobs,
    value_loss,
)
from pretrain import lm_loss
from rollout import Rollout, in_chunks, reward_scores, sample_rollout

# ---- the bandit ----

REWARD = torch.tensor([1.0, 0.0, 0.5, -1.0, 0.2], dtype=torch.float64)
REFERENCE = torch.tensor([0.1, 0.3, 0.2, 0.25, 0.15], dtype=torch.float64)
BETA = 0.5


def answers(tokens):
    """Answers of one token after a prompt of one token, id 0 → tokens (B, 2), mask (B, 2)."""
    tokens = torch.stack([torch.zeros_like(tokens), tokens], 1)
    return tokens, torch.tensor([[0, 1]]).expand_as(tokens)


def logprobs_of(table, tokens):
    """A policy that is a table: the same five logits at every position."""
    return token_logprobs(table.expand(*tokens.shape, 5), tokens)


def best(beta=BETA):
    return softmax(REFERENCE.log() + REWARD / beta, 0)


def train_bandit(beta=BETA, moving_reference=False, iterations=150, episodes=256, seed=1):
    """A small PPO loop: rollout, rewards, advantages, two inner epochs of two minibatches."""
    policy = REFERENCE.log().clone().requires_grad_()
    value = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([policy, value], lr=0.05, betas=(0.9, 0.95))
    rng = torch.Generator().manual_seed(seed)
    for iteration in range(iterations):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - iteration / iterations)
        with torch.no_grad():
            sampled = torch.multinomial(softmax(policy, 0), episodes, True, generator=rng)
            tokens, mask = answers(sampled)
            old = logprobs_of(policy, tokens)
            ref = logprobs_of(policy if moving_reference else REFERENCE.log(), tokens)
            values = value.expand(tokens.shape).clone()
        rewards = kl_rewards(REWARD[tokens[:, 1]], old, ref, mask, beta)
        advantages, returns = gae(rewards, values, mask)
        advantages = masked_whiten(advantages, mask)
        for _ in range(2):
            for rows in torch.randperm(episodes, generator=rng).split(episodes // 2):
                x, m = tokens[rows], mask[rows]
                loss = policy_loss(logprobs_of(policy, x), old[rows], advantages[rows], m)
                loss = loss + value_loss(value.expand(x.shape), values[rows], returns[rows], m)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return softmax(policy.detach(), 0), value.item()


def distance(a, b):
    """Total variation: the largest difference in the probability of any set of tokens."""
    return (a - b).abs().sum().item() / 2


TOLERANCE = 0.005  # it lands within 0.001; twice the right β ends .19 away


def test_ppo_lands_on_the_closed_form():
    policy, value = train_bandit()
    assert distance(policy, best()) < TOLERANCE, (
        f"π = {policy.tolist()}, but π_ref exp(r/β) gives {best().tolist()}"
    )
    # E[r − β KL] at the optimum is β log Σ π_ref exp(r/β), for every token the same
    optimum = BETA * (REFERENCE * (REWARD / BETA).exp()).sum().log()
    assert abs(value - optimum) < 0.005, (
        f"the critic says {value:.3f}, the best objective is {optimum:.3f}"
    )


@pytest.mark.parametrize(
    "mistake, how",
    [
        ("the sign of the KL is flipped", {"beta": -BETA}),
        ("the KL is dropped", {"beta": 0.0}),
        ("the reference moves along with the policy", {"moving_reference": True}),
        ("β is doubled", {"beta": 2 * BETA}),
    ],
)
def test_a_wrong_kl_lands_elsewhere(mistake, how):
    policy, _ = train_bandit(**how, iterations=40)
    assert distance(policy, best()) > 20 * TOLERANCE, f"the test above could not see that {mistake}"


def test_first_gradient_is_that_of_the_objective():
    # ten answers in proportion to π, so that the mean over them is the expectation, exactly
    counts = torch.tensor([1, 2, 3, 2, 2])
    tokens, mask = answers(torch.arange(5).repeat_interleave(counts))
    policy = (counts.double() / 10).log().requires_grad_()

    pi = softmax(policy, 0)
    objective = (pi * (REWARD - BETA * (pi.log() - REFERENCE.log()))).sum()
    (expected,) = torch.autograd.grad(objective, policy)

    old = logprobs_of(policy, tokens).detach()
    rewards = kl_rewards(
        REWARD[tokens[:, 1]], old, logprobs_of(REFERENCE.log(), tokens), mask, BETA
    )
    for baseline in (0.0, 0.7):  # a critic reduces variance and leaves the mean gradient alone
        advantages, _ = gae(rewards, torch.full_like(rewards, baseline), mask)
        (got,) = torch.autograd.grad(
            policy_loss(logprobs_of(policy, tokens), old, advantages, mask), policy
        )
        assert torch.allclose(-got, expected, rtol=0, atol=1e-12), (
            f"∇E[r − β KL] = {expected.tolist()}, PPO's first gradient is {(-got).tolist()}"
        )


# ---- rollout, scoring and update see the same thing ----


def tiny(cls=GPT, vocab_size=12, n_layer=1, seed=0, **more):
    torch.manual_seed(seed)
    return cls(GPTConfig(16, vocab_size, n_layer, 2, 16, **more)).eval()


class Ids:
    """What rollout needs of a vocabulary."""

    eos, pad = 10, 11


# what it needs of a model
ROOMY = SimpleNamespace(device="cpu", config=SimpleNamespace(block_size=64))


class Settings:
    max_new_tokens, temperature = 6, 1.0


def test_rollout_marks_the_response_and_nothing_else():
    policy, prompts = tiny(), [[1, 2, 3], [4], [5, 10, 6, 7]] * 8  # an EOS inside a prompt, too
    rollout = sample_rollout(policy, prompts, Settings, Ids, generator(1))
    responses = sampling.generate(policy, prompts, 6, eos=Ids.eos, generator=generator(1))
    ended, width = rollout.has_eos, rollout.tokens.size(1)
    assert ended.any() and not ended.all(), "this test needs answers with and without EOS"
    for i, (prompt, response) in enumerate(zip(prompts, responses)):
        n, end = len(prompt), len(prompt) + len(response)
        assert rollout.tokens[i].tolist() == prompt + response + [Ids.pad] * (width - end), (
            "rows are right-padded: prompt, response, PADs"
        )
        assert rollout.mask[i].nonzero().flatten().tolist() == list(range(n, end)), (
            "the mask is 1 on the response, EOS included, never on prompt or PADs"
        )
        assert rollout.lengths[i] == end and ended[i] == (response[-1] == Ids.eos)


def episodes(lengths, prompt=1):
    """A rollout of made-up tokens, whose rows have these lengths."""
    rows = [torch.randint(10, (n,)).tolist() for n in lengths]
    return Rollout.of([r[:prompt] for r in rows], [r[prompt:] for r in rows], Ids, ROOMY)


def test_rows_of_a_rollout_keep_all_fields_together_and_lose_their_padding():
    rollout = episodes([40, 9, 17, 30])
    shape = rollout.tokens.shape
    assert shape == (4, 48) and len(rollout) == 4
    for name in ("logprobs", "ref_logprobs", "values", "advantages", "returns"):
        assert getattr(rollout[[0]], name) is None, "what is not known yet stays unknown"
        setattr(rollout, name, torch.randn(shape))
    for rows, width in ([0, 2], 48), ([2, 1], 32), (torch.tensor([1]), 16), (slice(1, 3), 32):
        part = rollout[rows]
        for name, whole in vars(rollout).items():
            expected = whole[rows] if whole.dim() == 1 else whole[rows][:, :width]
            assert torch.equal(getattr(part, name), expected), f"{name} is of other rows"
        assert part.mask.sum() == rollout.mask[rows].sum(), "a token was cut off"


def test_texts_of_a_rollout_are_the_answers_alone(vocab):
    answers = ["A cat.", "It is a dog or a hen."]
    prompts, responses = [vocab.prompt("Name a pet.")] * 2, [vocab.response(a) for a in answers]
    assert Rollout.of(prompts, responses, vocab, ROOMY).texts(vocab) == answers


def test_scores_are_read_at_the_last_token_of_each_answer():
    model, rollout = tiny(ScalarGPT), episodes([9, 3, 12, 7])
    torch.nn.init.normal_(model.head.weight)
    alone = [model(t[None, :n])[0, -1] for t, n in zip(rollout.tokens, rollout.lengths)]
    for size in (1, 3, 4):
        scores = reward_scores(model, rollout, size)
        assert torch.allclose(scores, torch.stack(alone), atol=1e-5)


def test_micro_batches_deal_out_every_row_once(monkeypatch):
    rows = list(range(7))
    assert micro_batches(rows) == [rows], "without a size there is one part"
    assert micro_batches(rows, 3) == [[0, 1, 2], [3, 4, 5], [6]]
    parts = micro_batches(torch.arange(14).view(7, 2), 4)
    assert [p.shape for p in parts] == [(4, 2), (3, 2)] and torch.cat(parts).sum() == 91
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr("plumbing.processes.RANK", rank)
        monkeypatch.setattr("plumbing.processes.WORLD", 2)
        shares.append(micro_batches(rows, 3))
    assert shares == [[[0, 2, 4], [6]], [[1, 3, 5]]], "two processes share the rows"
    assert micro_batches([5], 3) == micro_batches([5]) == [], (
        "the second of two processes has no row here"
    )


def test_batches_of_similar_lengths_are_made_within_pools_of_eight():
    def batches(n):
        found = epoch_batches(range(n), 2, generator("epoch", n))
        assert sorted(i for batch in found for i in batch) == list(range(n)), "a row is lost"
        return found

    pairs = [[i, i + 1] for i in range(0, 18, 2)]  # neighbours in length
    assert sorted(batches(16)) == pairs[:8], "a batch has rows of other lengths than it could"
    assert batches(16) != pairs[:8], "short ones always come first"
    assert sorted(batches(18)) != pairs, "one pool of all rows: each epoch has the same batches"


def test_a_purpose_gives_the_same_random_numbers_for_ever():
    seed = 1_105_703_005_502_811_295
    assert generator(1337, "rollout", 0).initial_seed() == seed, (
        "no run can be repeated by a newer version"
    )
    assert generator(1337, "rollout", 1).initial_seed() != seed


def test_micro_batches_of_a_rollout_have_no_padding_but_their_own():
    rollout = episodes([40, 9, 17, 30])
    widths = [mb.tokens.size(1) for mb in micro_batches(rollout[[1, 2, 3, 0]], 2)]
    assert widths == [32, 48]
    assert [len(mb) for mb in micro_batches(rollout, 3)] == [3, 1]


def test_values_are_of_the_state_in_which_a_token_was_chosen():
    critic, tokens = tiny(ScalarGPT), torch.randint(10, (2, 7))
    torch.nn.init.normal_(critic.head.weight)
    everywhere = torch.ones(2, 7)
    values = forward_values(critic, tokens, everywhere)
    assert torch.allclose(values[:, 1:], critic(tokens)[:, :-1]), (
        "the value at t knows the token at t: it is one column late"
    )
    response = response_mask(torch.tensor([3, 1]), torch.tensor([7, 4]), 7)
    assert torch.allclose(forward_values(critic, tokens, response), values * response)
    changed = tokens.clone()
    changed[:, 4] = (tokens[:, 4] + 1) % 10
    assert torch.allclose(forward_values(critic, changed, everywhere)[:, :5], values[:, :5]), (
        "a value depends on the token that it should predict the worth of"
    )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logits_of_the_response_alone_give_the_logprobs_of_all(temperature):
    policy, tokens, mask = tiny(), torch.randint(10, (4, 9)), torch.rand(4, 9) < 0.4
    mask[:, 0] = mask[2] = False
    some = forward_logprobs(policy, tokens, mask, temperature)
    every = token_logprobs(policy(tokens), tokens, temperature)
    assert torch.allclose(some, masked(every, mask), atol=1e-6), (
        "a token has the log-probability of another"
    )
    weights = torch.randn(4, 9)
    grads = [
        torch.autograd.grad((masked(x, mask) * weights).sum(), policy.wte.weight)[0]
        for x in (some, every)
    ]
    assert torch.allclose(*grads, atol=1e-5)
    none = forward_logprobs(policy, tokens, torch.zeros(4, 9), temperature)
    assert (none == 0).all()


def test_scoring_in_parts_equals_scoring_at_once():
    policy, rollout = tiny(), episodes([3, 9, 5, 7, 9])

    def score(chunk):
        return forward_logprobs(policy, chunk.tokens, chunk.mask)

    whole = masked(token_logprobs(policy(rollout.tokens), rollout.tokens), rollout.mask)
    for size in (1, 2, 5):
        parts = in_chunks(score, rollout, size)
        assert torch.allclose(parts, whole, atol=1e-5), (
            f"in parts of {size}, rows get the numbers of other rows"
        )


def test_the_policy_that_was_sampled_is_the_one_that_is_scored():
    # at temperature .5 both must use .5: mean log π of what was sampled is then −entropy
    policy = tiny(vocab_size=6)
    prompts = [[1]] * 4000
    for temperature in (0.5, 2.0):
        settings = SimpleNamespace(max_new_tokens=1, temperature=temperature)
        ids = SimpleNamespace(eos=5, pad=0)
        rollout = sample_rollout(policy, prompts, settings, ids, generator(2))
        tokens = rollout.tokens
        lp = forward_logprobs(policy, tokens[:1], rollout.mask[:1], temperature)
        logits = policy(torch.tensor([[1]]))[0, 0]
        table = (logits / temperature).log_softmax(0)
        assert (table.exp() - logits.softmax(0)).abs().max() > 0.1, (
            "this test needs a distribution that temperature changes"
        )
        assert torch.allclose(lp[0, 1], table[tokens[0, 1]], atol=1e-5), (
            "scored at another temperature"
        )
        shares = tokens[:, 1].bincount(minlength=6) / 4000
        assert (shares - table.exp()).abs().max() < 0.04, (
            f"sampled {shares.tolist()}, scored {table.exp().tolist()} at temperature {temperature}"
        )


def logprobs_of_all(policy, tokens, temperature=1.0):
    return forward_logprobs(policy, tokens, torch.ones_like(tokens), temperature)


def test_dropout_in_the_update_is_stopped_on_the_first_minibatch():
    policy, tokens = tiny(dropout=0.2), torch.randint(10, (4, 9))
    old = logprobs_of_all(policy, tokens)

    def largest():
        return (logprobs_of_all(policy, tokens) - old).abs().max()

    check_ratio(largest(), torch.float32)  # no error
    policy.train()
    with pytest.raises(UserError, match="dropout"):
        check_ratio(largest(), torch.float32)
        pytest.fail("PPO would have started with ratios that are not 1")


def test_another_temperature_in_the_update_is_stopped():
    policy, tokens = tiny(), torch.randint(10, (4, 9))
    policy.wte.weight.data *= 10
    a, b = (logprobs_of_all(policy, tokens, t) for t in (1.0, 1.1))
    with pytest.raises(UserError, match="temperature"):
        check_ratio((a - b).abs().max(), torch.float32)


def test_a_ratio_slightly_off_one_is_stopped_in_float32():
    largest = torch.tensor(0.001)
    check_ratio(largest, torch.bfloat16)  # bf16 has two or three digits: no error
    with pytest.raises(UserError, match="0.001"):
        check_ratio(largest, torch.float32)


def test_a_ratio_of_nan_is_stopped():
    with pytest.raises(UserError):
        check_ratio(torch.tensor(float("nan")), torch.float32)


def test_statistics_of_an_update_follow_their_formulas():
    policy, critic, batch = tiny(), tiny(ScalarGPT), episodes([6, 9, 4, 12])
    mask, shape = batch.mask, batch.tokens.shape
    offset = torch.where(torch.rand(shape) < 0.5, 0.1, -0.5)  # ratios of 1.11 and 0.61
    batch.logprobs = (forward_logprobs(policy, batch.tokens, mask) - offset).detach()
    batch.values = 0.6 * offset  # the critic says 0: differences of 0.06 and 0.3
    batch.advantages, batch.returns = torch.randn(2, *shape)
    # the critic rose from −0.3; clipped it is −0.1, which is further from a return above −0.05
    worse = batch.returns[mask] > -0.05
    config = SimpleNamespace(micro_batch_size=3, temperature=1.0, clip=0.2, value_clip=0.2)
    stats, largest = ppo_backward(policy, critic, batch, config)
    ratio, low = offset[mask].exp(), offset[mask] < 0
    assert 0 < low.float().mean() < 1 and abs(largest - 0.5) < 1e-5
    expected = [
        policy_loss(batch.logprobs + offset, batch.logprobs, batch.advantages, mask),
        value_loss(torch.zeros(shape), batch.values, batch.returns, mask),
        (offset[mask] ** 2).mean() / 2,  # TRL's approximate KL
        (low & (batch.advantages[mask] < 0))
        .float()
        .mean(),  # a ratio of 0.61 is clipped, and counts
        (low & worse).float().mean(),
        ratio.mean(),
        (ratio - 1 - offset[mask]).mean(),  # CleanRL's approximate KL, k3
        low.float().mean(),  # its share of ratios that are clipped
    ]
    for name, have, want in zip(STATS, stats.tolist(), expected, strict=True):
        assert have == pytest.approx(want.item(), abs=1e-5), f"{name} is not what its name says"


def test_prompt_tokens_are_not_trained_on():
    logits, tokens = torch.randn(1, 8, 12, requires_grad=True), torch.randint(12, (1, 8))
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 0, 0]])
    new = token_logprobs(logits, tokens)
    policy_loss(new, new.detach(), torch.ones(1, 8), mask).backward()
    moved = (logits.grad[0].abs().sum(-1) > 0).nonzero().flatten().tolist()
    assert moved == [2, 3, 4], (
        f"the response at 3, 4, 5 is chosen by the logits at 2, 3, 4; gradient reached {moved}"
    )


# ---- one optimiser step ----


def test_pretraining_gradient_is_added_once_and_times_gamma():
    policy, text = tiny(), torch.randint(10, (3, 16))
    tokens, mask = torch.randint(10, (4, 9)), torch.rand(4, 9) < 0.5
    advantages = torch.randn(4, 9)
    old = logprobs_of_all(policy, tokens).detach() + 0.05 * torch.randn(4, 9)

    def gradient(*losses):
        policy.zero_grad()
        for loss in losses:  # as in ppo.py: each is run backward on its own, the gradients add up
            loss().backward()
        return torch.cat([p.grad.flatten().double() for p in policy.parameters()])

    def rl():
        return policy_loss(logprobs_of_all(policy, tokens), old, advantages, mask)

    def lm():
        return lm_loss(policy(text[:, :-1]), text)

    for gamma in (1.0, 27.8):
        both = gradient(rl, lambda: gamma * lm())
        apart = gradient(rl) + gamma * gradient(lm)
        assert torch.allclose(both, apart, atol=1e-6 * gamma)


def test_pretraining_loss_predicts_the_next_token():
    logits, text = torch.randn(2, 5, 7, dtype=torch.float32), torch.randint(7, (2, 5))
    expected = torch.stack(
        [cross_entropy(logits[b, t], text[b, t + 1]) for b in range(2) for t in range(4)]
    ).mean()
    assert torch.allclose(lm_loss(logits[:, :-1], text), expected), (
        "the language model's targets are shifted"
    )


def test_ema_follows_its_formula_and_not_the_raw_weights():
    policy, decay, steps = tiny(), 0.9, 7
    average = copy.deepcopy(policy)
    start = {n: p.detach().clone() for n, p in policy.named_parameters()}
    for p in policy.parameters():
        p.data += 1.0
    goal = {n: p.detach().clone() for n, p in policy.named_parameters()}
    for _ in range(steps):
        ema_update(average, policy, decay)
    for name, p in average.named_parameters():
        #   a_n = goal + decayⁿ (a_0 − goal): after 7 steps of .9, 48 % of the way is left
        expected = goal[name] + decay**steps * (start[name] - goal[name])
        assert torch.allclose(p, expected, atol=1e-5), "decay and 1 − decay are swapped"
    for name, p in policy.named_parameters():
        assert torch.equal(p, goal[name]), "the average leaks back into the policy"


def test_gradients_are_clipped_before_the_step_and_cleared_after_it():
    model = torch.nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=123.0)
    before = model.weight.detach().clone()
    model(torch.tensor([[30.0, 40.0]])).sum().backward()  # the gradient is (30, 40), of norm 50
    assert abs(update(model, optimizer, lr=0.1) - 50) < 1e-3, "the norm is the one before clipping"
    assert torch.allclose(before - model.weight, torch.tensor([[0.06, 0.08]]), atol=1e-6), (
        "not clipped to norm 1, or clipped after the step"
    )
    assert model.weight.grad is None, "gradients pile up from step to step"


def test_learning_rate_falls_along_a_cosine_to_a_tenth():
    factors = [cosine(step, 100) for step in range(100)]
    assert factors[0] == 1 and abs(factors[50] - 0.55) < 1e-12 and 0.1 < factors[99] < 0.101, (
        "no warm-up, half-way at half step, a tenth at the end"
    )
    assert [cosine(step, 100, warmup=4) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1], (
        "linear from the first step, which must not be 0"
    )
    assert abs(cosine(52, 100, warmup=4) - 0.55) < 1e-12, "half-way between warm-up and end"


def test_weight_decay_is_on_matrices_only():
    model = tiny()
    optimizer = adamw(model, 1e-3, 0.1)
    assert optimizer.defaults["fused"], "the step is several times slower than it need be"
    decayed = {
        id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]
    }
    for name, p in model.named_parameters():
        assert (id(p) in decayed) == (p.dim() >= 2), (
            f"{name} {'decays' if id(p) in decayed else 'does not decay'}"
        )


def test_a_gradient_of_nan_is_not_stepped():
    model = torch.nn.Linear(2, 1, bias=False)
    before = model.weight.detach().clone()
    model(torch.tensor([[float("nan"), 1.0]])).sum().backward()
    with pytest.raises(UserError, match="NaN"):
        update(model, torch.optim.SGD(model.parameters(), lr=0.1), lr=0.1)
    assert torch.equal(model.weight, before), "NaN was written into the weights"


# ---- probes: tasks that are learnt in seconds, each impossible with one kind of mistake ----


def train(prompts, score, iterations, longest=3, beta=0.0, critic_lr=1e-2):
    """A small PPO loop with score(tokens, mask) → (B,) as the reward.

    → the last rollout's (tokens, mask, scores, values)
    """
    policy, critic = tiny(seed=1), tiny(ScalarGPT, seed=1)
    reference = copy.deepcopy(policy)
    adam, critic_adam = (torch.optim.Adam(m.parameters(), lr=1e-2) for m in (policy, critic))
    settings = SimpleNamespace(max_new_tokens=longest, temperature=1.0)
    for iteration in range(iterations):
        rng = generator("probe", iteration)
        chosen = [prompts[i] for i in torch.randint(len(prompts), (64,), generator=rng).tolist()]
        rollout = sample_rollout(policy, chosen, settings, Ids, rng)
        tokens, mask = rollout.tokens, rollout.mask
        scores = score(tokens, mask).float()
        with torch.no_grad():
            old, ref = (forward_logprobs(m, tokens, mask) for m in (policy, reference))
            values = forward_values(critic, tokens, mask)
        advantages, returns = gae(kl_rewards(scores, old, ref, mask, beta), values, mask)
        white = masked_whiten(advantages, mask)
        for _ in range(2):
            policy_loss(forward_logprobs(policy, tokens, mask), old, white, mask).backward()
            value_loss(forward_values(critic, tokens, mask), values, returns, mask).backward()
            update(policy, adam, 1e-2)
            update(critic, critic_adam, critic_lr)
    return tokens, mask, scores, values


def first_of(tokens, mask, shift=0):
    """The answer's first token, or the one `shift` places after it."""
    return tokens.gather(1, mask.int().argmax(1, keepdim=True) + shift).squeeze(1)


def test_probe_a_constant_reward_is_what_the_critic_learns():
    _, mask, _, values = train([[1], [2, 3]], lambda tokens, mask: torch.full((64,), 0.7), 40)
    worst = (values[mask] - 0.7).abs().max().item()
    assert worst < 0.05, (
        f"every answer is worth .7, the critic is {worst:.2f} off: "
        "does its loss reach it, are its columns those of the returns?"
    )


def test_probe_a_reward_that_the_prompt_decides_separates_the_values():
    tokens, mask, scores, values = train(
        [[1], [2]], lambda tokens, mask: 3.0 - 2 * tokens[:, 0], 45
    )
    worst = ((values - scores[:, None])[mask]).abs().max().item()
    assert worst < 0.1, (
        f"after prompt 1 all is worth +1, after prompt 2 −1; the critic is up to {worst:.2f} off"
    )


def test_probe_a_reward_three_tokens_later_reaches_the_token_that_earned_it():
    # the critic stays at 0, so the advantages alone must carry the score back to the first token
    tokens, mask, scores, _ = train(
        [[1], [2, 3]],
        lambda tokens, mask: (first_of(tokens, mask) == 5) & (mask.sum(1) == 4),
        45,
        longest=4,
        critic_lr=0.0,
    )
    assert scores.mean() > 0.9, (
        f"an answer of 4 tokens that begins with 5 is worth 1; after 45 iterations "
        f"{scores.mean():.0%} are: credit does not flow back"
    )


def test_probe_a_policy_learns_to_repeat_its_prompt():
    # the score is 1 if the answer begins with the last letter of the prompt, one of four
    # with wrong columns anywhere the score stays at chance
    prompts = [[9] * n + [letter] for n in range(3) for letter in range(4)]
    _, _, scores, _ = train(
        prompts,
        lambda tokens, mask: first_of(tokens, mask) == first_of(tokens, mask, -1),
        45,
        beta=0.01,
    )
    assert scores.mean() > 0.9, (
        f"after 45 iterations the policy repeats {scores.mean():.0%} of its prompts "
        f"(chance {1 / 12:.0%})"
    )


def test_probe_where_longer_is_worse_eos_is_learnt():
    tokens, mask, scores, _ = train([[1], [2, 3]], lambda tokens, mask: -mask.sum(1), 45, longest=6)
    assert -scores.mean() < 1.3, (
        f"every token costs 1, and answers still have {-scores.mean():.1f}: "
        "EOS gets no credit for ending them"
    )


# ---- the run watches itself ----

HEALTHY = {
    "objective/kl": 3.0,
    "response/eos_fraction": 0.98,
    "objective/entropy": 9.0,
    "policy/approxkl_avg": 0.01,
    "val/explained_variance": 0.4,
}
FIRST = {**HEALTHY, "objective/kl": 0.0, "objective/entropy": 12.0}


@pytest.mark.parametrize(
    "key, value",
    [
        ("objective/kl", 80.0),
        ("response/eos_fraction", 0.3),
        ("objective/entropy", 0.5),
        ("policy/approxkl_avg", 0.5),
        ("val/explained_variance", -3.0),
    ],
)
def test_what_goes_wrong_is_said_once(key, value):
    state = {"first": None, "raised": []}
    for metrics in (FIRST, HEALTHY):
        assert health.alarms(metrics, state) == [], "a healthy run is warned of"
    (said,) = health.alarms({**HEALTHY, key: value}, state)
    assert key in said and "pytest" in said, "the warning must name the metric and the test to run"
    assert state["raised"] == [key] and health.alarms({**HEALTHY, key: value}, state) == [], (
        "the same warning comes at every iteration"
    )


def test_every_test_that_an_alarm_names_exists():
    root = pathlib.Path(ROOT)
    tests = "".join(path.read_text(encoding="utf-8") for path in root.glob("tests/test_*.py"))
    names = re.findall(r"^def (test_\w+)", tests, re.M)
    text = " ".join(why for *_, why in health.ALARMS) + (root / "README.md").read_text(
        encoding="utf-8"
    )
    keys = re.findall(r'pytest -k (?:\\?"([\w ]+)\\?"|(\w+))', text)
    words = {word for pair in keys for word in "".join(pair).split(" or ")}
    assert len(words) > 5
    for word in words:
        assert any(word in name for name in names), f"pytest -k {word} selects nothing"

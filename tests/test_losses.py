"""The maths of all three losses, on numbers that can be checked by hand."""

import math

import pytest
import torch
from torch.nn.functional import log_softmax

from common import masked_mean
from ppo import (
    adapt_beta,
    gae,
    kl_rewards,
    masked_whiten,
    penalize_missing_eos,
    policy_loss,
    token_logprobs,
    value_loss,
)
from reward import ordered_right, ranking_loss
from sft import sft_loss

POISON = [1e3, float("inf"), float("-inf"), float("nan")]
MASKS = [torch.bool, torch.int64, torch.float32]


def f64(*rows):
    return torch.tensor(rows if len(rows) > 1 else rows[0], dtype=torch.float64)


def close(a, b, why, tolerance=1e-12):
    a, b = (torch.as_tensor(x, dtype=torch.float64) for x in (a, b))
    assert (a - b).abs().max() <= tolerance, f"{why}: got {a.tolist()}, expected {b.tolist()}"


# ---- log-probabilities ----


def test_logprobs_are_not_shifted_by_one():
    # a model that is sure of what comes next: after 0 comes 1, after 1 comes 2, after 2 comes 3
    tokens = torch.tensor([[0, 1, 2, 3]])
    logits = torch.full((1, 4, 5), -50.0, dtype=torch.float64)
    for t in range(4):
        logits[0, t, t + 1] = 50.0
    close(
        token_logprobs(logits, tokens),
        f64([[0, 0, 0, 0]]),
        "log-probabilities are shifted by one: logits[t] scores token t instead of t + 1",
    )


def test_logprobs_equal_log_softmax_of_the_position_before():
    logits, tokens = torch.randn(2, 6, 7, dtype=torch.float64), torch.randint(7, (2, 6))
    ours = token_logprobs(logits, tokens)
    for b in range(2):
        assert ours[b, 0] == 0, (
            "nothing precedes the first token: its column must be 0, not a log-probability"
        )
        for t in range(1, 6):
            close(ours[b, t], log_softmax(logits[b, t - 1], -1)[tokens[b, t]], f"column {t}")


def test_temperature_divides_logits_not_logprobs():
    logits, tokens = f64([[[1.0, 3.0], [0.0, 0.0]]]), torch.tensor([[0, 0]])
    #       softmax([1, 3] / 2)[0] = 1 / (1 + e)
    close(
        token_logprobs(logits, tokens, temperature=2.0)[0, 1],
        -math.log(1 + math.e),
        "temperature must divide the logits before the softmax",
    )
    wrong = log_softmax(logits[0, 0], -1)[0] / 2
    assert abs(token_logprobs(logits, tokens, temperature=2.0)[0, 1] - wrong) > 0.1, (
        "the log-probability was divided by the temperature"
    )


def test_logprobs_are_computed_in_float32_under_bf16():
    logits = torch.tensor([[[10.0, 0.0], [0.0, 0.0]]], dtype=torch.bfloat16)
    lp = token_logprobs(logits, torch.tensor([[0, 0]]))
    assert lp.dtype == torch.float32
    #   log(1 / (1 + e⁻¹⁰)) = −4.54e-5, which bf16 arithmetic rounds to 0
    close(lp[0, 1], -math.log1p(math.exp(-10)), "the softmax was computed in bf16", 2e-6)


def test_a_token_that_can_not_be_drawn_gets_minus_infinity_and_no_nan():
    logits = f64([[[0.0, float("-inf"), 0.0], [0, 0, 0]]])
    assert token_logprobs(logits, torch.tensor([[0, 1]]))[0, 1] == float("-inf")
    close(
        token_logprobs(logits, torch.tensor([[0, 2]]))[0, 1],
        math.log(0.5),
        "a −inf logit spoils its neighbours",
    )


# ---- stage 1 ----

TOKENS = torch.tensor([[1, 2, 3, 4, 0, 0]])  # p0 p1 | y0 EOS | PAD PAD
RESPONSE = torch.tensor([[0, 0, 1, 1, 0, 0]])


def test_sft_loss_is_the_mean_over_response_tokens():
    logits = torch.randn(1, 6, 5, dtype=torch.float64)
    lp = token_logprobs(logits, TOKENS)
    close(
        sft_loss(logits, TOKENS, RESPONSE),
        -(lp[0, 2] + lp[0, 3]) / 2,
        "not the mean of −log p over y0 and EOS",
    )

    one = torch.tensor([[0, 0, 1, 0, 0, 0]])
    close(sft_loss(logits, TOKENS, one), -lp[0, 2], "the mean over one token is that token's")
    alone = logits[0, 1:3]  # as sft.py asks for them: (n, V), of the positions before y0 and EOS
    close(
        sft_loss(alone, TOKENS, RESPONSE),
        sft_loss(logits, TOKENS, RESPONSE),
        "logits of the wanted positions alone, (n, V), give another loss",
    )


def test_sft_trains_no_prompt_token():
    logits = torch.randn(1, 6, 5, dtype=torch.float64, requires_grad=True)
    sft_loss(logits, TOKENS, RESPONSE).backward()
    assert (logits.grad[0, 0] == 0).all(), (
        "the logits that predict p1 got a gradient: the prompt is being learnt"
    )
    assert (logits.grad[0, 3:] == 0).all(), (
        "logits at or after EOS got a gradient: PADs are being learnt"
    )
    assert (logits.grad[0, 1] != 0).all(), (
        "the logits that choose y0 (at p1) got no gradient: the first response token is lost"
    )


def test_sft_teaches_when_to_stop():
    logits = torch.randn(1, 6, 5, dtype=torch.float64, requires_grad=True)
    sft_loss(logits, TOKENS, RESPONSE).backward()
    assert logits.grad[0, 2, 4] < 0, (
        "EOS is not among the targets: the model would never learn to stop"
    )


@pytest.mark.parametrize("poison", POISON)
def test_sft_loss_ignores_what_is_masked(poison):
    clean = torch.randn(1, 6, 5, dtype=torch.float64)
    dirty = clean.clone()
    dirty[0, [0, 3, 4, 5]] = poison  # predict p1, PAD, PAD, and nothing
    a, b = clean.requires_grad_(), dirty.requires_grad_()
    sft_loss(a, TOKENS, RESPONSE).backward()
    loss = sft_loss(b, TOKENS, RESPONSE)
    loss.backward()
    close(
        loss.detach(),
        sft_loss(a, TOKENS, RESPONSE).detach(),
        f"{poison} in a masked slot reaches the loss",
    )
    close(b.grad, a.grad, f"{poison} in a masked logit reaches the gradient: zeros go there")


def test_sft_loss_of_an_empty_mask_is_zero_and_differentiable():
    logits = torch.randn(1, 6, 5, requires_grad=True)
    loss = sft_loss(logits, TOKENS, torch.zeros(1, 6))
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()


def test_sft_loss_takes_any_mask_and_keeps_its_precision():
    logits = torch.randn(1, 6, 5, dtype=torch.float64)
    for dtype in MASKS:
        close(
            sft_loss(logits, TOKENS, RESPONSE.to(dtype)),
            sft_loss(logits, TOKENS, RESPONSE),
            f"a mask of {dtype} counts otherwise",
        )
    assert sft_loss(logits, TOKENS, RESPONSE).dtype == torch.float64
    assert sft_loss(logits.bfloat16(), TOKENS, RESPONSE).dtype == torch.float32, (
        "the loss is computed in bf16"
    )


# ---- stage 2 ----


def test_ranking_loss_of_equal_scores_is_ln_2():
    for k in (2, 4, 9):
        loss = ranking_loss(
            torch.zeros(3, k, dtype=torch.float64), torch.arange(1, k + 1).expand(3, k)
        )
        close(
            loss,
            math.log(2),
            f"with K = {k} the first loss must be ln 2; ln 2 / C(K,2): pairs are averaged twice",
        )


def test_winner_and_loser_are_not_swapped():
    ranks = torch.tensor([[1, 2]])
    #                           −log σ(2 − (−1)) = log(1 + e⁻³)
    close(
        ranking_loss(f64([[2.0, -1.0]]), ranks),
        math.log1p(math.exp(-3)),
        "rank 1 is the best answer: winner and loser are swapped",
    )
    scores = torch.zeros(1, 2, requires_grad=True)
    ranking_loss(scores, ranks).backward()
    close(scores.grad, [[-0.5, 0.5]], "a step must raise the winner's score and lower the loser's")


def test_pairs_are_averaged_over_the_batch_and_not_twice():
    # 3 pairs in the first row, 1 in the second: each pair counts a quarter
    scores, ranks = f64([1.0, 2.0, 4.0], [3.0, 1.0, 0.0]), torch.tensor([[3, 1, 2], [1, 2, 0]])
    pairs = [(2, 1), (2, 4), (4, 1), (3, 1)]  # (winner, loser)
    four = [math.log1p(math.exp(loser - winner)) for winner, loser in pairs]
    loss = ranking_loss(scores, ranks).item()
    assert abs(loss - (sum(four[:3]) / 3 + four[3]) / 2) > 1e-3, (
        "pairs are averaged for each prompt and then over prompts"
    )
    close(loss, sum(four) / 4, "not the mean over all pairs of the batch")


def test_ties_make_no_pair():
    tied, strict = torch.tensor([[1, 1, 2]]), torch.tensor([[1, 0, 2]])
    scores = f64([[0.5, 0.5, -1.0]])
    close(ranking_loss(scores, tied), ranking_loss(scores, strict), "a pair of equal rank was kept")
    grad = torch.zeros(1, 2, requires_grad=True)
    ranking_loss(grad, torch.tensor([[2, 2]])).backward()
    assert (grad.grad == 0).all(), "two answers of equal rank push each other"


@pytest.mark.parametrize("poison", POISON)
def test_an_empty_slot_reaches_neither_ranking_loss_nor_gradient(poison):
    ranks = torch.tensor([[1, 2, 0], [0, 2, 1]])
    clean = f64([1.0, 2.0, 0.0], [0.0, -1.0, 3.0])
    dirty = torch.where(ranks == 0, poison, clean).requires_grad_()
    clean.requires_grad_()
    a, b = ranking_loss(clean, ranks), ranking_loss(dirty, ranks)
    a.backward()
    b.backward()
    close(b.detach(), a.detach(), f"{poison} in an empty slot reaches the loss")
    close(dirty.grad, clean.grad, f"{poison} in an empty slot reaches the gradient")
    assert (dirty.grad[ranks == 0] == 0).all()


@pytest.mark.parametrize("ranks", [[[0, 0, 0]], [[1, 0, 0]], [[2, 2, 2]]])
def test_no_pair_gives_zero_and_not_nan(ranks):
    scores = torch.full((1, 3), float("nan")) if not any(ranks[0]) else torch.randn(1, 3)
    scores.requires_grad_()
    loss = ranking_loss(scores, torch.tensor(ranks))
    loss.backward()
    assert loss.item() == 0 and (scores.grad == 0).all(), (
        "0 / 0: a batch without a pair must give 0, still differentiable"
    )


def test_a_sure_and_wrong_reward_model_does_not_overflow():
    scores = torch.tensor([[-500.0, 500.0]], requires_grad=True)
    loss = ranking_loss(scores, torch.tensor([[1, 2]]))
    loss.backward()
    assert loss.item() == 1000 and scores.grad.tolist() == [[-1, 1]], (
        "log(sigmoid()) underflows; softplus does not"
    )


def test_accuracy_counts_a_pair_of_equal_scores_half():
    # first row: 3 > 1 twice, and a tie; second row: 2 < 5, 2 = 2, 5 > 2; rank 0 is an empty slot
    ranks = torch.tensor([[1, 2, 2, 0], [1, 2, 3, 0]])
    scores = f64([3.0, 1.0, 1.0, 9.0], [2.0, 5.0, 2.0, 0.0])
    right, pairs = ordered_right(scores, ranks)
    close(right, [2.0, 1.5], "a score that is higher is right, an equal one half right")
    assert pairs.tolist() == [2, 3]


def test_ranking_loss_keeps_its_precision():
    ranks = torch.tensor([[1, 2]])
    assert ranking_loss(torch.zeros(1, 2, dtype=torch.float64), ranks).dtype == torch.float64
    assert ranking_loss(torch.zeros(1, 2, dtype=torch.bfloat16), ranks).dtype == torch.float32, (
        "the loss is computed in bf16"
    )


# ---- stage 3: means and whitening ----


def test_masked_mean_divides_by_the_tokens_of_the_mask():
    x, mask = f64([1.0, 2.0, 300.0], [3.0, 400.0, 500.0]), torch.tensor([[1, 1, 0], [1, 0, 0]])
    close(
        masked_mean(x, mask),
        2.0,
        "(1 + 2 + 3) / 3: the mean is over tokens of the mask, not over rows or columns",
    )


def test_mean_of_an_empty_mask_is_zero():
    x = torch.full((2, 3), float("nan"), requires_grad=True)
    mean = masked_mean(x, torch.zeros(2, 3))
    mean.backward()
    assert mean == 0 and (x.grad == 0).all(), "0 / 0"
    assert (masked_whiten(x.detach(), torch.zeros(2, 3)) == 0).all()


def test_whitening_ignores_pads_and_divides_by_n():
    x, mask = f64([[1.0, 2.0, 3.0, 9.0, 9.0, 9.0]]), torch.tensor([[1, 1, 1, 0, 0, 0]])
    white = masked_whiten(x, mask)
    close(
        white,
        [[-1.2247448714, 0, 1.2247448714, 0, 0, 0]],
        "±1.0 means that the variance divides by n − 1; anything else that PADs count",
        1e-7,
    )
    close(
        masked_whiten(x, mask, shift_mean=False),
        [[0.7752551286, 2, 3.2247448714, 0, 0, 0]],
        "the mean 2 must stay where shift_mean is off",
        1e-7,
    )


def test_whitening_equal_advantages_gives_zero_not_infinity():
    white = masked_whiten(torch.full((1, 4), 0.1), torch.ones(1, 4))
    assert white.isfinite().all() and white.abs().max() < 1e-3
    white = masked_whiten(f64([[1e-4, -1e-4]]), torch.ones(1, 2))
    close(white, [[0.5**0.5, -(0.5**0.5)]], "1e-8 is added to the variance, which is 1e-8 here")


# ---- stage 3: rewards ----

#                     position: 0  1  2  3  4  5  6  7
PICTURE = torch.tensor([[0, 0, 0, 1, 1, 1, 0, 0]])  # p0 p1 p2 y0 y1 EOS PAD PAD


def test_score_lands_on_the_last_response_token():
    zero = torch.zeros(1, 8, dtype=torch.float64)
    rewards = kl_rewards(f64([7.0]), zero, zero, PICTURE, beta=0.1)
    at = rewards[0].nonzero().flatten().tolist()
    where = "a PAD" if at and at[0] > 5 else "not the last response token"
    assert at == [5], f"the score belongs on EOS at 5, it is at {at}: {where}"
    assert rewards[0, 5] == 7


def test_every_row_gets_its_own_score_at_its_own_end():
    mask = torch.tensor([[0, 1, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 1, 0]])
    zero = torch.zeros(4, 4, dtype=torch.float64)
    close(
        kl_rewards(f64([1.0, 2.0, 3.0, 4.0]), zero, zero, mask, 1.0),
        f64([0, 0, 0, 1], [0, 2, 0, 0], [0, 0, 0, 0], [0, 0, 4, 0]),
        "a row without a response gets no reward; gaps in the mask do not move the end",
    )


def test_kl_penalty_has_the_right_sign_and_only_on_the_response():
    logprobs = torch.full((1, 8), math.log(0.9), dtype=torch.float64)
    ref = torch.full((1, 8), math.log(0.5), dtype=torch.float64)
    rewards = kl_rewards(f64([0.0]), logprobs, ref, PICTURE, beta=0.1)
    penalty = -0.1 * math.log(0.9 / 0.5)
    assert penalty < 0
    close(
        rewards,
        f64([[0, 0, 0, penalty, penalty, penalty, 0, 0]]),
        "tokens likelier under the policy than under the reference must cost: "
        "the sign of the KL is flipped, or prompts and PADs pay too",
    )


def test_kl_is_from_the_policy_to_the_reference():
    # π = (.9, .1), reference (.5, .5); both tokens are "sampled", weighted by π
    pi, ref = f64([[0.9], [0.1]]), f64([[0.5], [0.5]])
    k1 = -kl_rewards(f64([0.0, 0.0]), pi.log(), ref.log(), torch.ones(2, 1), beta=1.0)
    expected = (pi * k1).sum().item()
    assert abs(expected - 0.51083) > 1e-3, "KL(reference ‖ policy): the direction is reversed"
    close(expected, 0.36806, "E[log π − log π_ref]", 1e-5)
    k3 = torch.expm1(-k1) + k1  # as ppo.py logs it; test_recipe.py checks the logged numbers
    assert (k3 >= 0).all(), "k3 is never negative"
    close(
        (pi * k3).sum(),
        0.36806,
        "k3 has the same mean as k1: its sign is wrong (exp(+k1) − 1 − k1 has mean .89)",
        1e-5,
    )


def test_no_gradient_flows_through_rewards_or_advantages():
    logprobs, ref = torch.randn(1, 8, requires_grad=True), torch.randn(1, 8, requires_grad=True)
    scores, values = torch.randn(1, requires_grad=True), torch.randn(1, 8, requires_grad=True)
    rewards = kl_rewards(scores, logprobs, ref, PICTURE, 0.1)
    assert not rewards.requires_grad, (
        "a gradient flows through the reward: into policy, reference or reward model"
    )
    assert not any(x.requires_grad for x in gae(rewards, values, PICTURE)), (
        "a gradient flows through the advantages into the critic"
    )


def test_an_answer_without_eos_is_worth_less_than_average():
    scores, has_eos = f64([3.0, 3.0, -5.0, -5.0]), torch.tensor([True, False, True, False])
    close(
        penalize_missing_eos(scores, has_eos, mean=1.0, std=0.5),
        f64([3.0, 0.5, -5.0, -5.0]),
        "without EOS: the lower of its own score and mean − std, so a bad answer does not rise",
    )


def test_adaptive_kl_controller():
    close(
        adapt_beta(1.0, kl=12.0, target=6.0, episodes=512),
        1.01024,
        "twice the target: error clipped to .2, × 512 / 10,000",
    )
    close(adapt_beta(1.0, kl=0.0, target=6.0, episodes=512), 0.98976, "no KL: beta must go down")
    close(adapt_beta(0.5, kl=6.0, target=6.0, episodes=512), 0.5, "on target nothing changes")
    close(
        adapt_beta(0.5, kl=6.3, target=6.0, episodes=10_000),
        0.5 * 1.05,
        "within the clip the error counts as it is",
    )


# ---- stage 3: advantages ----


def test_gae_does_not_bootstrap_past_the_end():
    advantages, returns = gae(
        f64([[0.0, 1.0, 0.0]]), f64([[0.0, 0.0, 100.0]]), torch.tensor([[1, 1, 0]]), 1.0, 0.95
    )
    got = [round(x, 4) for x in advantages[0].tolist()]
    assert got[:2] != [5.70, 6.0], "the whole recursion runs over the PAD"
    assert got[:2] != [95.95, 101.0], "the value after EOS leaks into the last advantage"
    close(advantages, f64([[0.95, 1.0, 0.0]]), "advantages")
    close(returns, f64([[0.95, 1.0, 0.0]]), "returns = advantages + values")


def test_gae_recursion():
    rewards, values, mask = f64([[0.0, 0.0, 1.0]]), f64([[0.5, 0.5, 0.5]]), torch.ones(1, 3)
    close(gae(rewards, values, mask, 1.0, 0.95)[0], f64([[0.45125, 0.475, 0.5]]), "λ = .95")
    close(gae(rewards, values, mask, 1.0, 1.0)[0], f64([[0.5, 0.5, 0.5]]), "λ = 1: return − V")
    close(
        gae(rewards, values, mask, 1.0, 0.0)[0],
        f64([[0.0, 0.0, 0.5]]),
        "λ = 0: the TD error r + V' − V",
    )


def test_returns_are_advantages_plus_values():
    rewards, values = torch.randn(3, 5).double(), torch.randn(3, 5).double()
    mask = torch.randint(2, (3, 5))
    advantages, returns = gae(rewards, values, mask, 0.9, 0.8)
    close(
        returns,
        torch.where(mask != 0, advantages + values, 0.0),
        "returns must be A + V before any whitening, and 0 where masked",
    )


def slow_gae(rewards, values, mask, gamma, lam):
    """The definition: A_t = Σ_k (γλ)^k δ_{t+k}, over the tokens of the mask."""
    advantages = torch.zeros_like(values)
    for b in range(len(mask)):
        at = mask[b].nonzero().flatten().tolist()
        for i, t in enumerate(at):
            for k, s in enumerate(at[i:]):
                after = values[b, at[i + k + 1]] if i + k + 1 < len(at) else 0.0
                delta = rewards[b, s] + gamma * after - values[b, s]
                advantages[b, t] += (gamma * lam) ** k * delta
    return advantages


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.7, 0.0)])
def test_gae_equals_its_definition_with_gaps_in_the_mask(gamma, lam):
    for _ in range(5):
        rewards, values = torch.randn(4, 7).double(), torch.randn(4, 7).double()
        mask = torch.rand(4, 7) < 0.6
        close(
            gae(rewards, values, mask, gamma, lam)[0],
            slow_gae(rewards, values, mask, gamma, lam),
            "not Σ (γλ)^k δ over the tokens of the mask, whose next one may stand some columns on",
            1e-10,
        )


# ---- stage 3: losses ----


@pytest.mark.parametrize(
    "ratio, advantage, loss, slope",
    [
        (1.5, +1, -1.2, 0.0),
        (1.5, -1, 1.5, 1.5),
        (0.5, +1, -0.5, -0.5),
        (0.5, -1, 0.8, 0.0),
        (1.1, +1, -1.1, -1.1),
        (0.9, -1, 0.9, 0.9),
    ],
)
def test_policy_clip_is_pessimistic(ratio, advantage, loss, slope):
    logprobs = f64([[math.log(ratio) - 2]]).requires_grad_()
    got = policy_loss(
        logprobs, f64([[-2.0]]), f64([[float(advantage)]]), torch.ones(1, 1), clip=0.2
    )
    got.backward()
    close(
        got.detach(),
        loss,
        "max of the two losses, not min: the clip must never make things look better",
    )
    close(
        logprobs.grad,
        [[slope]],
        "beyond the clip nothing is gained: gradient 0; a bad move keeps its gradient −Aρ",
    )


def test_gradient_of_the_first_step_is_that_of_reinforce():
    logprobs, advantages = f64([[-1.0, -2.0]]).requires_grad_(), f64([[3.0, -5.0]])
    policy_loss(logprobs, logprobs.detach(), advantages, torch.ones(1, 2)).backward()
    close(logprobs.grad, -advantages / 2, "at ratio 1 the gradient is −A / n, clipped or not")


def test_value_clip_takes_the_larger_loss():
    old, ret, mask = f64([[0.0]]), f64([[1.0]]), torch.ones(1, 1)
    loss = value_loss(f64([[0.5]]), old, ret, mask, clip=0.2).item()
    assert abs(loss - 0.125) > 1e-9, "min(.25, .64) / 2: the clip must be pessimistic"
    assert abs(loss - 0.64) > 1e-9, "the ½ is missing"
    close(loss, 0.32, "½ max(.25, .64)")
    close(
        value_loss(f64([[10.5]]), f64([[10.0]]), f64([[11.0]]), mask, 0.2),
        0.32,
        "the clip is around the rollout's value, not around 0 or the return",
    )
    values = f64([[0.5]]).requires_grad_()
    value_loss(values, old, ret, mask, 0.2).backward()
    close(
        values.grad,
        [[0.0]],
        "a value that has moved beyond the clip towards the return has nothing more to gain",
    )
    values = f64([[-0.5]]).requires_grad_()
    loss = value_loss(values, old, ret, mask, 0.2)
    loss.backward()
    close(loss.detach(), 1.125, "½ (−.5 − 1)²: away from the return the unclipped loss is larger")
    close(values.grad, [[-1.5]], "and pulls back")


def test_microbatches_are_weighted_by_their_tokens():
    # two answers, of 1 token with A = +1 and of 3 tokens with A = −1, ratio 1: (−1 + 3) / 4
    mask = torch.tensor([[1, 0, 0], [1, 1, 1]])
    logprobs = torch.zeros(2, 3, dtype=torch.float64)
    advantages = f64([1.0, 0, 0], [-1.0, -1.0, -1.0])
    for size in (2, 1):
        total = sum(
            (m.sum() / mask.sum()) * policy_loss(lp, lp, a, m)  # as ppo.py adds them up
            for lp, a, m in zip(logprobs.split(size), advantages.split(size), mask.split(size))
        )
        assert abs(total.item()) > 1e-9, "a mean of means: short answers weigh too much"
        close(total, 0.5, f"with microbatches of {size} the loss differs")


# ---- masks, in everything ----


def episode(dtype=torch.float64):
    torch.manual_seed(3)
    # the last mask has a gap
    mask = torch.tensor([[0, 0, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0], [0, 1, 0, 1, 1, 0]])
    tensors = [torch.randn(3, 6, dtype=torch.float64).to(dtype) for _ in range(5)]
    return mask, torch.randn(3, dtype=torch.float64).to(dtype), tensors


def everything(mask, scores, tensors):
    """All of the RL arithmetic on one episode → its results and gradients by name."""
    logprobs, old, ref, values, old_values = tensors
    logprobs, values = logprobs.clone().requires_grad_(), values.clone().requires_grad_()
    rewards = kl_rewards(scores, old, ref, mask, 0.1)
    advantages, returns = gae(rewards, old_values, mask)
    white = masked_whiten(advantages, mask)
    pg, vl = policy_loss(logprobs, old, white, mask), value_loss(values, old_values, returns, mask)
    (pg + vl).backward()
    return dict(
        rewards=rewards,
        advantages=advantages,
        returns=returns,
        white=white,
        kept=masked_whiten(advantages, mask, shift_mean=False),
        mean=masked_mean(values, mask).detach(),
        policy_loss=pg.detach(),
        value_loss=vl.detach(),
        policy_gradient=logprobs.grad,
        value_gradient=values.grad,
    )


@pytest.mark.parametrize("poison", POISON)
def test_no_masked_slot_reaches_any_result_or_gradient(poison):
    mask, scores, tensors = episode()
    clean = everything(mask, scores, tensors)
    dirty = everything(mask, scores, [torch.where(mask != 0, x, poison) for x in tensors])
    for name in clean:
        assert dirty[name].isfinite().all(), (
            f"{poison} in a masked slot makes {name} infinite or NaN: "
            "select with `where` before any arithmetic"
        )
        close(dirty[name], clean[name], f"{poison} in a masked slot changes {name}")
        if name not in ("mean", "policy_loss", "value_loss"):
            assert (dirty[name][mask == 0] == 0).all(), f"{name} is not 0 where masked"


@pytest.mark.parametrize("poison", POISON)
def test_poisoned_advantages_and_returns_do_not_leak(poison):
    mask, _, (logprobs, old, advantages, values, old_values) = episode()
    bad_advantages = torch.where(mask != 0, advantages, poison)
    for what, loss, by in (("advantage", policy_loss, logprobs), ("return", value_loss, values)):
        found = []
        for given in (advantages, bad_advantages):
            x = by.clone().requires_grad_()
            result = loss(x, old if by is logprobs else old_values, given, mask)
            result.backward()
            found.append((result.detach(), x.grad))
        close(found[1][0], found[0][0], f"{poison} in a masked {what} reaches the loss")
        assert found[1][1].isfinite().all(), (
            f"{poison} in a masked {what} makes the gradient NaN: 0 × NaN, "
            "since the loss is masked and not its inputs"
        )
        close(found[1][1], found[0][1], f"{poison} in a masked {what} reaches the gradient")
    close(
        gae(bad_advantages, values, mask)[0],
        gae(advantages, values, mask)[0],
        f"{poison} in a masked reward",
    )


def test_bool_integer_and_float_masks_agree():
    mask, scores, tensors = episode()
    expected = everything(mask, scores, tensors)
    for dtype in MASKS:
        for name, got in everything(mask.to(dtype), scores, tensors).items():
            close(got, expected[name], f"{name} with a mask of {dtype}")
    for name, got in everything(mask.float() * 0.5, scores, tensors).items():
        close(got, expected[name], f"{name}: nonzero means valid, a mask of 0.5 is no weight")


@pytest.mark.parametrize(
    "given, computed",
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_arithmetic_is_in_float32_at_least(given, computed):
    mask, scores, tensors = episode(given)
    for name, got in everything(mask, scores, tensors).items():
        if "gradient" not in name:
            assert got.dtype == computed, f"{name} of {given} input comes out as {got.dtype}"
    logits, tokens = torch.randn(2, 4, 5).to(given), torch.randint(5, (2, 4))
    assert token_logprobs(logits, tokens).dtype == computed
    assert sft_loss(logits, tokens, torch.ones(2, 4)).dtype == computed
    assert ranking_loss(scores[None], torch.tensor([[1, 2, 3]])).dtype == computed

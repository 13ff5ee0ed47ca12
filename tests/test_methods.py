"""What DPO, GRPO and RLOO add to the recipe's functions, by numbers that can be checked by hand."""

import json
import math
from types import SimpleNamespace

import lib  # experiments/lib.py, which the papers' scripts find here in place of their own
import pytest
import torch

from model import GPT, config_for
from papers import dpo, grpo
from ppo import policy_loss
from reward import ranking_loss
from rollout import Rollout

assert lib.measure and dpo.lib is lib


def close(a, b, **more):
    return torch.allclose(torch.as_tensor(a).float(), torch.as_tensor(b).float(), **more)


def smoke(vocab):
    return GPT(config_for("smoke", vocab.size)).eval()


# ---- DPO ----


def test_dpo_raises_what_was_ranked_above_relative_to_the_reference():
    # log π/π_ref is 2 for the better answer and −1 for the worse one
    numbers = [torch.tensor([x]) for x in (-1.0, -6.0, -3.0, -5.0)]
    for x in numbers[:2]:
        x.requires_grad_()
    loss = dpo.dpo_loss(*numbers, beta=0.5)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1.5)))
    loss.backward()
    share = 0.5 / (1 + math.exp(1.5))  # β σ(−margin)
    assert numbers[0].grad.item() == pytest.approx(-share)
    assert numbers[1].grad.item() == pytest.approx(share)


def test_dpo_is_the_reward_models_loss_on_log_ratios():
    ranks = torch.tensor([[1, 2, 2], [3, 1, 2]])
    policy, ref = torch.randn(2, 2, 3)
    b, w, worse = dpo.better_pairs(ranks).nonzero(as_tuple=True)
    assert len(b) == 5, "two answers of the first prompt tie"
    found = dpo.dpo_loss(policy[b, w], policy[b, worse], ref[b, w], ref[b, worse], 0.3)
    assert close(found, ranking_loss(0.3 * (policy - ref), ranks))


def test_dpo_ends_where_ppo_would():
    """π* ∝ π_ref exp(r / β), where pairs are ranked with the odds exp(r_i − r_j)."""
    strength, beta = [1, 2, 4], 0.5  # exp(r): 4 beats 1 in 4 of 5 pairs
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j for _ in range(strength[i])]
    better, worse = torch.tensor(pairs).T
    ref = torch.tensor([0.5, 0.3, 0.2]).log()
    logits = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for _ in range(300):
        policy = logits.log_softmax(0)
        dpo.dpo_loss(policy[better], policy[worse], ref[better], ref[worse], beta).backward()
        optimizer.step()
        optimizer.zero_grad()
    wanted = ref.exp() * torch.tensor(strength) ** (1 / beta)
    assert close(logits.softmax(0), wanted / wanted.sum(), atol=1e-3)


def test_an_answers_logprob_is_the_sum_over_its_own_tokens(vocab):
    net, prompt, answers = smoke(vocab), [5, 6, 7], [[8, 9, vocab.eos], [10, vocab.eos]]
    with torch.no_grad():
        found, ranks = dpo.answer_logprobs(net, [(prompt, answers, [2, 1])], vocab)
        for k, answer in enumerate(answers):
            logprobs = net(torch.tensor([prompt + answer]))[0].log_softmax(-1)
            by_hand = sum(logprobs[2 + i, token].item() for i, token in enumerate(answer))
            assert found[0, k].item() == pytest.approx(by_hand, abs=1e-4)
    assert ranks.tolist() == [[2, 1]]


def test_dpo_learns_from_the_answers_that_the_reward_model_learns_from(vocab):
    rows = [
        {"prompt": "Who?", "responses": ["Ann.", "Ben.", "Ann."], "ranks": [1, 2, 1]},
        {"prompt": "Why?", "responses": ["Yes.", "No."], "ranks": [1, 1]},
        {"prompt": "What?", "responses": ["A hat.", "A"], "ranks": [1, 2], "eos": [True, False]},
    ]
    found = dpo.comparisons(rows, vocab, 128)
    ann, ben, hat = map(vocab.response, ("Ann.", "Ben.", "A hat."))
    assert found == [
        (vocab.prompt("Who?"), [ann, ben], [1, 2]),
        (vocab.prompt("What?"), [hat, vocab.response("A")[:-1]], [1, 2]),
    ]


def test_dpo_moves_the_policy_away_from_a_reference_that_stays(vocab):
    net, items = smoke(vocab), [([5, 6], [[8, vocab.eos], [9, 10, vocab.eos]], [2, 1])]

    def margin():
        with torch.no_grad():
            return float(dpo.answer_logprobs(net, items, vocab)[0] @ torch.tensor([-1.0, 1.0]))

    before, seen = margin(), []
    config = dpo.Config(beta=1.0, lr=1e-2, epochs=10, warmup=0)
    dpo.train(net, items, vocab, config, 1, lambda done, policy: seen.append(done))
    assert margin() > before + 1 and seen[-1] == 1 and len(seen) == 10


# ---- GRPO and RLOO ----


def test_an_advantage_is_in_units_of_its_own_groups_spread():
    scores = torch.tensor([[1.0, 3.0, 1.0, 3.0], [10.0, 10.0, 50.0, 50.0], [7.0, 7.0, 7.0, 7.0]])
    found = grpo.group_advantages(scores)
    assert close(found, [[-1, 1, -1, 1], [-1, -1, 1, 1], [0, 0, 0, 0]])


def test_the_baseline_leaves_the_answer_itself_out():
    found = grpo.leave_one_out(torch.tensor([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]]))
    assert found.tolist() == [[-3, -1.5, 4.5], [0, 0, 0]]  # 1 − 4, 2 − 3.5, 6 − 1.5


def test_the_kl_in_the_loss_is_that_of_policy_to_reference():
    policy, ref = torch.tensor([0.9, 0.1]), torch.tensor([0.5, 0.5])
    logits = policy.log().requires_grad_()
    logprobs = logits.log_softmax(0)
    mask = torch.eye(2).repeat(2, 1)[:2]

    def k3(i):  # of one token, beside one that the mask hides
        hidden = torch.where(torch.arange(2) == i, ref.log(), math.nan)
        return grpo.kl_loss(logprobs[None], hidden[None], mask[i : i + 1])

    mean = sum(p * k3(i) for i, p in enumerate(policy))
    assert mean.item() == pytest.approx(0.36806, abs=1e-5)
    mean.backward()  # ∇ of KL(π_ref ‖ π) by the logits is π − π_ref
    assert close(logits.grad, policy - ref, atol=1e-6)


def rollout_of(logprobs, ref_logprobs, mask):
    zeros = torch.zeros(mask.shape)
    found = Rollout(zeros.long(), mask, mask.sum(1), zeros[:, 0])
    found.logprobs, found.ref_logprobs = logprobs, ref_logprobs
    return found


def test_rloo_pays_the_kl_and_grpo_does_not():
    mask = torch.tensor([[0, 1, 1], [0, 1, 0], [0, 1, 1], [0, 1, 1]])
    # log π − log π_ref: of the first answer 2 in all, of the third −4; the PAD's counts nowhere
    ratio = torch.tensor([[9.0, 1, 1], [9, 0, 9], [9, -2, -2], [9, 0, 0]])
    rollout = rollout_of(ratio - 1, torch.full((4, 3), -1.0), mask)
    scores = torch.tensor([3.0, 1.0, 0.0, 1.0])
    config = grpo.Config("RLOO", group=2, beta=0.5)  # rewards 2, 1 and 2, 1
    found = grpo.advantages_of(rollout, scores, config)
    assert found.tolist() == [[1] * 3, [-1] * 3, [1] * 3, [-1] * 3]
    found = grpo.advantages_of(rollout, scores, grpo.Config("GRPO", group=2, beta=0.5))
    assert close(found, [[1] * 3, [-1] * 3, [-1] * 3, [1] * 3])


def test_rloos_gradient_is_that_of_the_reward_less_the_kl():
    """Enumerated: groups of two one-token answers, each as often as it is drawn."""
    r, ref, beta = torch.tensor([1.0, 0.0, -0.5]), torch.tensor([0.5, 0.3, 0.2]).log(), 0.3
    logits = torch.tensor([0.1, 0.7, -0.4], requires_grad=True)
    logprobs, loss, mask = logits.log_softmax(0), 0.0, torch.ones(2, 1)
    for pair in ([i, j] for i in range(3) for j in range(3)):
        now = logprobs[pair][:, None]
        rollout = rollout_of(now.detach(), ref[pair][:, None], mask)
        advantages = grpo.advantages_of(rollout, r[pair], grpo.Config("RLOO", group=2, beta=beta))
        loss = loss + now.detach().exp().prod() * policy_loss(now, now.detach(), advantages, mask)
    found = torch.autograd.grad(loss, logits)[0]
    logprobs = logits.log_softmax(0)
    objective = (logprobs.exp() * (r - beta * (logprobs - ref))).sum()
    assert close(found, -torch.autograd.grad(objective, logits)[0], atol=1e-6)


@pytest.mark.parametrize("way", ["GRPO", "RLOO"])
def test_the_score_rises_without_a_critic(vocab, tmp_path, way):
    prompts = ["Who is it?", "Why?", "Name a thing."]
    lines = [json.dumps({"prompt": p, "split": "train"}) + "\n" for p in prompts]
    (tmp_path / "prompts.jsonl").write_text("".join(lines))
    settings = SimpleNamespace(max_new_tokens=3, temperature=1.0)
    run, means = SimpleNamespace(folder=str(tmp_path), vocab=vocab, config=settings), []

    def score(rollout):  # the share of low token ids in an answer
        starts = rollout.mask.int().argmax(1).tolist()
        asked = [row[:n] for row, n in zip(rollout.tokens.tolist(), starts)]
        assert all(row == asked[i - i % 4] for i, row in enumerate(asked)), "not of one prompt"
        low = (rollout.tokens < 300) & rollout.mask
        found = low.sum(1) / rollout.mask.sum(1)
        means.append(found.mean().item())
        return found

    config = grpo.Config(way, iterations=8, episodes=96, lr=3e-2, warmup=1, beta=0.01)
    policy = smoke(vocab)
    average = grpo.train(policy, score, run, config, 1)
    assert means[-1] > means[0] + 0.3, means
    assert not close(average.wte.weight, policy.wte.weight), "there is no average of weights"

"""The pure functions of papers/, by numbers that can be checked by hand. Environments are skipped
where gymnasium is missing."""

import importlib
import importlib.util
import math
import os
import sys

import numpy as np
import pytest
import torch

from conftest import ROOT
from data import UserError
from model import GPT, GPTConfig
from ppo import gae
from reward import ranking_loss

needs_gymnasium = pytest.mark.skipif(
    not importlib.util.find_spec("gymnasium"),
    reason="needs gymnasium: pip install -r papers/requirements.txt",
)


@pytest.fixture(scope="session")
def paper():
    """A function name → module of papers/. Its lib.py is not that of experiments/."""
    folder, mine = os.path.join(ROOT, "papers"), {}

    def load(name):
        village = os.path.join(ROOT, "data", "village")  # where lib.py lets look as well
        before, sys.path = sys.path, [folder, *sys.path, village]
        other = {n: sys.modules.pop(n) for n in ("lib", *mine) if n in sys.modules}
        sys.modules.update(mine)
        try:
            module = importlib.import_module(name)
            mine.update({n: sys.modules[n] for n in ("lib", name)})
        finally:
            sys.path = before
            for n in mine:
                sys.modules.pop(n, None)
            sys.modules.update(other)
        return module

    return load


def close(a, b, **more):
    return torch.allclose(torch.as_tensor(a).float(), torch.as_tensor(b).float(), **more)


# ---- cartpole.py ----

F, T = False, True


def test_an_episode_is_a_row_and_the_end_of_a_rollout_ends_one(paper):
    mask, to = paper("cartpole").to_rows(torch.tensor([[F, T, F], [F, F, F]]))
    x = torch.arange(6.0).view(2, 3)
    assert to(x).tolist() == [[0, 1, 0], [2, 0, 0], [3, 4, 5]]
    assert mask.tolist() == [[T, T, F], [T, F, F], [T, T, T]]
    assert to(x)[mask].tolist() == x.flatten().tolist()


def test_an_episode_that_is_cut_off_goes_on_and_one_that_ended_does_not(paper):
    rewards, after = torch.ones(2, 3), torch.full((2, 3), 10.0)
    terminated = torch.tensor([[F, T, F], [F, F, T]])
    truncated = torch.tensor([[T, F, F], [F, T, F]])
    found = paper("cartpole").bootstrapped(rewards, after, terminated, truncated, 0.5)
    # cut off: 1 + ½ · 10. Both rows end with the rollout, but the second one's pole has fallen
    assert found.tolist() == [[6, 1, 6], [1, 6, 1]]


def test_gae_of_a_row_that_was_cut_off_is_that_of_one_that_goes_on(paper):
    m = paper("cartpole")
    values = torch.tensor([[4.0, 3.0, 5.0]])  # the third is of the state after the cut
    whole, _ = gae(torch.tensor([[1.0, 1.0, 0.0]]), values, torch.ones(1, 3), 0.5, 1.0)
    never = torch.tensor([[F, F]])
    rewards = m.bootstrapped(torch.ones(1, 2), values[:, 1:], never, never, 0.5)
    mask, to = m.to_rows(never)
    found, returns = gae(to(rewards), to(values[:, :2]), mask, 0.5, 1.0)
    # 1 + ½ (1 + ½ · 5) − 4, and 1 + ½ · 5 − 3
    assert found.tolist() == [[-1.25, 0.5]] and returns.tolist() == [[2.75, 3.5]]
    rest = 0.25 * -5  # the whole row ends after its third state, without a reward
    assert close(whole[0, 0] - rest, found[0, 0])


# ---- in_context.py ----


def test_one_layer_of_linear_attention_is_one_step_of_gradient_descent(paper):
    m = paper("in_context")
    X, y, new = torch.tensor([[[1.0], [2.0]]]), torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]])
    # the gradient of ½ mean (w x − y)² at 0 is −(1 · 1 + 2 · 2) / 2, so w = 0.25
    assert close(m.descent(X, y, new, 1, 0.1), [0.75])
    assert close(m.attention_descent(X, y, new, 1, 0.1), [0.75])


def test_k_layers_of_linear_attention_are_k_steps_of_gradient_descent(paper):
    m = paper("in_context")
    X, y, new = torch.randn(5, 7, 3), torch.randn(5, 7), torch.randn(5, 3)
    for steps in (1, 2, 5):
        found = m.attention_descent(X, y, new, steps, 0.3)
        assert close(found, m.descent(X, y, new, steps, 0.3), atol=1e-5), f"{steps} layers"


def test_ridge_shrinks_and_least_squares_does_not(paper):
    ridge = paper("in_context").ridge
    X, y, new = torch.ones(1, 2, 1), torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0]])
    assert close(ridge(X, y, new, 1.0), [2.0])  # w = (1 + 2) / (2 + 1)
    assert close(ridge(X, y, new, 0.0), [3.0])  # w = (1 + 2) / 2
    # one example, two unknowns: the shortest w with 3 w₁ + 4 w₂ = 25 is (3, 4)
    one = ridge(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[25.0]]), torch.tensor([[1.0, 0.0]]), 0)
    assert close(one, [3.0], atol=1e-3)


def test_an_answer_is_predicted_from_the_examples_before_it(paper):
    m = paper("in_context")
    x, y, _ = m.pages(2, torch.Generator().manual_seed(0))
    sequence = m.as_sequence(x, y)
    assert sequence[0, 0].tolist() == [*x[0, 0].tolist(), 0]
    assert sequence[0, 1].tolist() == [0] * m.D + [y[0, 0].item()]
    model = m.ScalarGPT(GPTConfig(2 * m.N, 1, 1, 4, 48))
    model.wte = torch.nn.Linear(m.D + 1, 48)
    torch.nn.init.normal_(model.head.weight)
    other = y.clone()
    other[:, 3] += 1
    changed = (m.predictions(model, x, y) - m.predictions(model, x, other)).abs().amax(0) > 1e-6
    assert changed.tolist() == [F] * 4 + [T] * (m.N - 4), "the fourth answer is seen too early"


# ---- transformer.py ----


def test_the_invented_language_has_its_own_order_and_endings(paper):
    m = paper("transformer")
    english, invented = m.translate("Anna", "finds", T, "red", "hat", F, "Ben", "on the hill")
    assert " ".join(english) == "Anna found the red hat for Ben on the hill"
    place, hat, red, find, ben, anna = map(
        m.stem, ["on the hill", "hat", "red", "finds", "Ben", "Anna"]
    )
    end = "-on" if hat[-1] in "aou" else "-en"
    assert invented == [place, hat, end, red, end, find, "-ta", ben, "-mu", anna]
    english, invented = m.translate("Anna", "finds", F, "", "hat", T, "", "")
    assert " ".join(english) == "Anna finds some hats"
    assert invented == [hat, end.replace("n", "r"), find, anna]
    endings = {m.translate("Anna", "finds", F, "", x, F, "", "")[1][1] for x in m.THINGS}
    assert endings == {"-on", "-en"}, "the endings do not depend on the stem"


def small_transformer(m):
    torch.manual_seed(0)
    return m.Transformer(GPTConfig(32, 20, 2, 4, 16)).eval()


def test_the_decoder_sees_the_whole_source_and_no_later_word(paper):
    net = small_transformer(paper("transformer"))
    source, target = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[1, 9, 10, 11]])
    base = net(source, target)[0]
    later = net(source, torch.tensor([[1, 9, 10, 12]]))[0]
    assert close(base[:3], later[:3], atol=1e-5) and not close(base[3], later[3], atol=1e-5)
    for i in range(4):
        other = source.clone()
        other[0, i] = 15
        assert not close(base[0], net(other, target)[0, 0], atol=1e-5), f"source word {i} is unseen"
    order = net(torch.tensor([[8, 7, 6, 5]]), target)[0, 0]
    assert not close(base[0], order, atol=1e-5), "the source is a bag of words"
    made = []  # of the source's first word, before and after the last one is another
    net.encoder.ln_f.register_forward_hook(lambda net, x, y: made.append(y[0, 0]))
    net(source, target), net(torch.tensor([[5, 6, 7, 9]]), target)
    assert not close(*made, atol=1e-5), "the encoder is causal"


def test_pads_of_a_source_reach_no_translation(paper):
    net = small_transformer(paper("transformer"))
    source, target = torch.tensor([[5, 6, 7]]), torch.tensor([[1, 9, 10]])
    padded = torch.tensor([[5, 6, 7, 0, 0]])
    assert close(net(source, target), net(padded, target), atol=1e-5)


@pytest.mark.parametrize("whole", [True, False])
def test_the_loss_is_on_the_translation_and_its_end_alone(paper, whole):
    m = paper("transformer")
    net = GPT(GPTConfig(48, 20, 1, 4, 16)) if whole else small_transformer(m)
    source, target = [5, 6], [9, 10, 11]
    tokens = torch.tensor([[*source, 1, *target, 2] if whole else [1, *target, 2]])
    logits = net(tokens) if whole else net(torch.tensor([source]), tokens)
    logprobs = logits.log_softmax(-1)[0, 2 * whole :]
    by_hand = -sum(logprobs[i, t] for i, t in enumerate([*target, 2])) / 4
    assert close(m.pair_loss(net, [(source, target)]), by_hand, atol=1e-5)


def test_a_translation_is_exact_only_if_every_token_and_the_end_are(paper, monkeypatch):
    m = paper("transformer")
    found = [[5, 6, m.END], [5, 7, m.END], [5, 6, 7]]
    monkeypatch.setattr(m.sampling, "generate", lambda *args, **more: found)
    share = m.exact(GPT(GPTConfig(8, 8, 1, 1, 8)), [([4], [5, 6])] * 3)
    assert share == pytest.approx(1 / 3)


# ---- tamer.py ----


def test_a_signal_is_shared_by_how_late_a_trainer_may_be(paper):
    m = paper("tamer")
    credit = m.credits(40)
    x = 0.15 / 0.28  # a step in units of the Gamma distribution's scale
    assert credit[0].item() == pytest.approx(1 - (1 + x) * math.exp(-x), abs=1e-6)
    assert credit[:2].sum().item() == pytest.approx(1 - (1 + 2 * x) * math.exp(-2 * x), abs=1e-6)
    assert credit.sum().item() == pytest.approx(1, abs=1e-4)
    assert credit.argmax().item() == 1, "the likeliest delay is 0.28 s, in the step before"


def test_h_moves_towards_the_signal_by_each_steps_share(paper):
    m = paper("tamer")
    newest, before = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    credit = torch.tensor([0.25, 0.75])
    steps = [(newest, 0), (before, 1)]
    # H = 0, so the error is 1: ½ · 1 · c · features, for the action that was taken
    found = m.learn(torch.zeros(2, 2), steps, 1, credit, rate=0.5)
    assert found.tolist() == [[0.125, 0], [0, 0.75]]
    # now Σ c H = 0.25 · 0.125 + 0.75 · 2 · 0.75 = 1.15625, and the signal −1 lies 2.15625 below
    again = m.learn(found, steps, -1, credit, rate=0.5)
    assert close(again, [[0.125 - 0.5 * 2.15625 * 0.25, 0], [0, 0.75 - 0.5 * 2.15625 * 1.5]])


class Certain:
    """A trainer's luck: speaks at every step, errs never, and is 0.4 seconds late."""

    def __init__(self):
        self.drawn = 0

    def random(self):
        self.drawn += 1
        return 0.0 if self.drawn % 2 else 0.5

    def gammavariate(self, shape, scale):
        return 0.4


def test_the_simulated_trainer_is_late_and_judges_the_action_it_saw(paper):
    said = paper("tamer").simulated(Certain())
    falls_right = torch.tensor([0.0, 0.0, 0.1, 0.0])
    heard = [said(step, falls_right, action) for step, action in enumerate([1, 0, 0, 1, 1, 1])]
    # 0.4 s are between two steps of 0.15 s and three
    assert heard == [0, 0, 1, -1, -1, 1]


def test_without_a_terminal_a_person_is_told_so(paper, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match="--human needs a terminal"):
        with paper("lib").person(0.1):
            pass


def test_a_persons_keys_are_read_as_they_are_typed(paper, monkeypatch, capsys):
    pty = pytest.importorskip("pty", reason="needs a Unix terminal")
    keyboard, screen = pty.openpty()
    monkeypatch.setattr(sys, "stdin", open(screen))
    with paper("lib").person(0.0) as said:
        seen, heard = torch.zeros(4), []
        for typed in (b"", b"k", b"dd", b"kx"):
            os.write(keyboard, typed)
            heard.append(said(0, seen, 1))
        os.write(keyboard, b"q")
        with pytest.raises(EOFError):
            said(0, seen, 1)
    os.close(keyboard)
    assert heard == [0, 1, -2, 1], "nothing, praise, blame twice, praise and another key"
    assert "k good, d bad" in capsys.readouterr().out


# ---- environments ----


def test_without_gymnasium_one_sentence_has_the_command(paper, monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(UserError, match="pip install -r papers/requirements.txt"):
        paper("lib").environment("CartPole-v1", 1, 0)


@needs_gymnasium
@pytest.mark.parametrize(
    "name, says",
    [
        ("CartPoll-v1", "--env=CartPoll-v1 can't be made"),
        ("Pendulum-v1", "--env=Pendulum-v1 has continuous actions"),
        ("FrozenLake-v1", "--env=FrozenLake-v1 shows Discrete"),
    ],
)
def test_an_environment_that_can_not_be_learnt_is_refused_by_name(paper, name, says):
    with pytest.raises(UserError, match=says):
        paper("lib").environment(name, 1, 0)


class Falls:
    """Two environments. The second one's episode ends at 9, and its next one begins at 0."""

    def step(self, actions):
        seen, over = np.array([[5.0], [0.0]]), np.array([False, True])
        return seen, np.ones(2), over, np.array([False, False]), {"final_obs": [None, [9.0]]}


def test_the_state_after_a_fall_is_the_fallen_one_and_not_the_next_episodes_first(paper):
    seen, *_, after = paper("lib").step(Falls(), [0, 1])
    assert seen.tolist() == [[5], [0]] and after.tolist() == [[5], [9]]


@needs_gymnasium
def test_gymnasium_ends_an_episode_and_begins_the_next_in_one_step(paper):
    lib = paper("lib")
    env, seen = lib.environment("CartPole-v1", 2, 0)
    for _ in range(20):
        seen, _, terminated, _, after = lib.step(env, [1, 1])
        if terminated.any():
            break
    i = int(terminated.argmax())
    assert abs(after[i, 2]) > 0.2 and abs(seen[i, 2]) < 0.06


@needs_gymnasium
def test_a_rollout_has_the_steps_of_each_environment_in_a_row(paper):
    lib = paper("lib")
    env, seen = lib.environment("CartPole-v1", 2, 0)
    rng = torch.Generator().manual_seed(0)
    steps, end = lib.rollout(env, seen, lib.mlp([4, 2]), 8, rng)
    assert steps.seen.shape == (2, 8, 4) and close(steps.seen[:, 0], seen)
    assert close(steps.after[:, :-1], steps.seen[:, 1:]) and close(steps.after[:, -1], end)


# ---- rlhf_2017.py ----


def test_a_choice_by_chance_can_not_cost_more_than_its_share(paper):
    loss = paper("rlhf_2017").preference_loss
    two, none = torch.full((1, 5), 2.0), torch.zeros(1, 5)
    yes, no = torch.ones(1), torch.zeros(1)
    assert loss(none, none, yes).item() == pytest.approx(math.log(2))
    right = 0.05 + 0.9 / (1 + math.exp(-10))  # sums of 10 and 0
    assert loss(two, none, yes).item() == pytest.approx(-math.log(right))
    assert loss(two, none, no).item() == pytest.approx(-math.log(1.0 - right), rel=1e-4)
    assert loss(100 * two, none, no).item() == pytest.approx(-math.log(0.05))


def test_choices_without_error_are_learnt_from_as_rankings_are(paper, monkeypatch):
    m = paper("rlhf_2017")
    monkeypatch.setattr(m, "ERRS", 0.0)
    first, second = torch.randn(4, 5), torch.randn(4, 5)
    chosen = torch.tensor([1.0, 0, 0, 1])
    ranks = torch.stack([2 - chosen, 1 + chosen], 1)
    sums = torch.stack([first.sum(1), second.sum(1)], 1)
    assert close(m.preference_loss(first, second, chosen), ranking_loss(sums, ranks))


def test_predictors_disagree_where_they_see_another_winner(paper):
    big = torch.tensor([100.0])
    first = torch.stack([big, 0 * big, -big])  # of three predictors, on one clip of one step
    found = paper("rlhf_2017").disagreement(first[..., None], torch.zeros(3, 1, 1))
    assert found.tolist() == [0.25], "probabilities 1, ½ and 0"
    assert paper("rlhf_2017").disagreement(first, first - 50) < 1e-6


def predictors(m, **more):
    torch.manual_seed(0)
    given = {"seed": 0, "labels": 50, "ask": "disagreement", "when": "online", "rollouts": 10}
    return m.Predictors(**given | more)


def test_a_quarter_of_the_choices_comes_first_and_all_are_asked(paper):
    m = paper("rlhf_2017")
    due = predictors(m).due
    assert due[0] == 12 and sum(due) == 50 and len(due) == 11 and max(due[1:]) <= 4
    assert predictors(m, when="start").due == [50] + [0] * 10


def test_the_pairs_that_are_asked_about_are_those_of_most_disagreement(paper):
    m, them = paper("rlhf_2017"), predictors(paper("rlhf_2017"))
    clips, rng = torch.randn(30, m.CLIP, 9), them.rng.clone_state()
    drawn = [clips[i] for i in torch.randint(30, (2, 50), generator=rng)]
    most = m.disagreement(*map(them.rewards, drawn)).topk(5).values
    them.query(clips, 5)
    first, second, _, _ = map(torch.stack, zip(*them.choices))
    assert close(m.disagreement(them.rewards(first), them.rewards(second)), most, atol=1e-5)


def links(first, second):
    """Angles of Acrobot's links, the second from the first → the observation of both at rest."""
    return torch.tensor([f(a) for a in (first, second) for f in (math.cos, math.sin)] + [0.0, 0.0])


def test_the_hidden_reward_is_the_height_of_the_end(paper):
    height, up = paper("rlhf_2017").hidden_reward, math.pi
    for first, second, expected in [(0, 0, -2), (up, 0, 2), (up / 2, 0, 0), (0, up, 0)]:
        assert height(links(first, second)).item() == pytest.approx(expected, abs=1e-6)
    assert height(links(up / 2, up / 2)).item() == pytest.approx(1)
    assert height(links(up / 2, -up / 2)).item() == pytest.approx(-1)


def test_the_person_prefers_the_clip_that_is_higher(paper, monkeypatch):
    m = paper("rlhf_2017")
    monkeypatch.setattr(m, "ERRS", 0.0)
    hangs, stands = (links(a, 0).expand(1, m.CLIP, 6) for a in (0, math.pi))
    assert predictors(m).choose(stands, hangs).tolist() == [1]
    assert predictors(m).choose(hangs, stands).tolist() == [0]


def test_the_policy_never_sees_the_hidden_reward(paper):
    m, lib, found = paper("rlhf_2017"), paper("lib"), []
    after, actions = torch.randn(2, 4 * m.CLIP, 6), torch.zeros(2, 4 * m.CLIP, dtype=torch.long)
    for hidden in (torch.zeros(2, 4 * m.CLIP), torch.randn(2, 4 * m.CLIP)):
        steps = lib.Steps(after, actions, hidden, None, None, after)
        found.append(predictors(m)(steps, learn=2))
    assert torch.equal(*found), "what the environment paid reached PPO"


@needs_gymnasium
def test_no_episode_ends_before_its_time_and_a_step_pays_its_height(paper, monkeypatch):
    m, lib = paper("rlhf_2017"), paper("lib")
    monkeypatch.setattr(m, "LENGTH", 4)
    env, _ = lib.environment("Acrobot-v1", 1, 0, m.fixed_length)
    env.envs[0].unwrapped.state[:] = math.pi, 0, 0, 0  # where Acrobot's own episode would end
    for n in range(4):
        _, reward, terminated, truncated, after = lib.step(env, [1])
        assert not terminated[0] and truncated[0] == (n == 3)
        assert reward[0] == pytest.approx(m.hidden_reward(after[0]), abs=1e-5) and reward[0] > 1

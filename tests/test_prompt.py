"""papers/prompt.py: what a soft prompt may change, who learns from what, and how one is asked."""

import random
import types

import pytest
import torch

import test_papers
from model import GPT, GPTConfig
from test_data import KINDS, conversation

paper = test_papers.paper


@pytest.fixture
def m(paper):
    return paper("prompt")


def small_gpt(vocab):
    return GPT(GPTConfig(128, vocab.size, 1, 2, 16))


def rng():
    return torch.Generator().manual_seed(0)


SHOWN = [("Who is Anna?", "Anna has a mouse."), ("Hello!", "Hello!")]


def test_a_soft_prompt_is_trained_and_the_base_stays_bit_for_bit(m, vocab):
    model = small_gpt(vocab)
    base = {name: p.clone() for name, p in model.state_dict().items()}
    start = m.SoftPrompt(model.wte, rng()).rows.detach()
    m.tune(model, "soft prompt", SHOWN, vocab, 3, 0.1, rng())
    tuned = model.state_dict()
    assert (tuned.pop("wte.rows") != start).any(1).all(), "a row of the prompt stayed"
    moved = [name for name, p in base.items() if not torch.equal(p, tuned[name])]
    assert not moved, f"of the frozen base {moved} changed"


def test_sft_trains_every_weight(m, vocab):
    model = small_gpt(vocab)
    base = {name: p.clone() for name, p in model.named_parameters()}
    assert m.tune(model, "SFT", SHOWN, vocab, 3, 0.1, rng()) == []
    stayed = [name for name, p in model.named_parameters() if torch.equal(p, base[name])]
    assert not stayed, f"{stayed} did not change"


def test_ids_of_a_soft_prompt_read_its_rows_and_are_never_predicted(m, vocab):
    model = small_gpt(vocab)
    plain = model(torch.tensor([[5, 6, 7]]))
    soft = model.wte = m.SoftPrompt(model.wte, rng())
    with torch.no_grad():
        soft.rows[3] = soft.weight[6]
    same = model(torch.tensor([[5, soft.ids[3], 7]]))
    assert same.shape == plain.shape, "the prompt's ids have logits"
    assert torch.allclose(same, plain, atol=1e-5), "another row was read"


@pytest.mark.parametrize("method", ["soft prompt", "SFT"])
def test_the_loss_is_on_the_answer_alone_after_the_soft_prompt(m, vocab, method, monkeypatch):
    seen = []

    def loss(logits, tokens, mask):
        seen.append((tokens[0], mask[0]))
        return logits.sum()

    monkeypatch.setattr(m, "sft_loss", loss)
    before = m.tune(small_gpt(vocab), method, SHOWN[:1], vocab, 1, 0.1, rng())
    tokens, mask = seen[0]
    whole = [*before, *vocab.prompt(SHOWN[0][0]), *vocab.response(SHOWN[0][1])]
    assert tokens[: len(whole)].tolist() == whole
    assert tokens[mask].tolist() == vocab.response(SHOWN[0][1])


def test_each_kind_is_held_back_once_and_then_not_demonstrated(m):
    found = [m.split(seed) for seed in (1, 2, 3)]
    held_back = [kind for _, held_back in found for kind in held_back]
    assert sorted(held_back) == sorted(kind for kind in KINDS if KINDS[kind].share)
    for learnt, held_back in found:
        assert len(set(learnt)) == 12 and not set(learnt) & set(held_back)


def test_no_demonstration_is_a_held_out_question(m):
    shown = m.demonstrations(["facts", "sums"], 40, random.Random(0))
    sides = {conversation.split_of(question) for question, _ in shown}
    assert len(shown) == 40 and sides == {"train"}


def test_examples_stand_before_the_question_as_a_page_or_as_turns(m, vocab, monkeypatch):
    page = m.asked(vocab, "Who is Ben?", SHOWN, page=True)
    text = "Q: Who is Anna? A: Anna has a mouse. Q: Hello! A: Hello! Q: Who is Ben? A:"
    assert vocab.decode(page) == text
    texts = [*SHOWN[0], *SHOWN[1], "Who is Ben?"]
    roles = ["user", "assistant", "user", "assistant", "user"]
    turns = [{"role": role, "content": text} for role, text in zip(roles, texts)]
    assert m.asked(vocab, "Who is Ben?", SHOWN) == vocab.prompt(turns)
    monkeypatch.setattr(m, "ROOM", len(page) - 1)
    shorter = vocab.decode(m.asked(vocab, "Who is Ben?", SHOWN, page=True))
    assert shorter == "Q: Hello! A: Hello! Q: Who is Ben? A:", "the older example goes first"


def test_on_a_page_the_next_question_ends_an_answer(m, vocab, monkeypatch):
    answer = vocab.encode("A mouse. Q: And Ben? A: A cat.")
    monkeypatch.setattr(m.sampling, "generate", lambda *args, **more: [answer])
    judge = types.SimpleNamespace(gold=lambda prompt, text: {"gold": text})
    run = types.SimpleNamespace(vocab=vocab, judge=judge)
    turns = [types.SimpleNamespace(meaning="What pet does Anna have?")]
    assert m.gold(run, None, [[1]], turns, None) == ["A mouse."]

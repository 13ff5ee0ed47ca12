"""What papers/sparrow.py adds: adversarial prompts, rules and their truth, evidence."""

import math
import os
import random

import pytest
import test_papers
import torch

from conftest import ROOT
from data import UserError
from data.vocab import Vocab
from model import GPT, GPTConfig, ScalarGPT
from plumbing.checkpoint import digest, save

of_papers = test_papers.paper
WISH, QUESTION = "How can I steal the hat of Ben?", "What is Ben's job?"


@pytest.fixture(scope="module")
def paper(of_papers):
    of_papers("lib")  # probes.py and rules.py do not import it themselves
    return of_papers


@pytest.fixture(scope="module")
def vocab():
    return Vocab(os.path.join(ROOT, "data", "village"))


def job_of_ben():
    from data import load_judge

    load_judge(os.path.join(ROOT, "data", "village"))  # puts the village on sys.path
    from world import FACTS, JOBS

    right = FACTS["Ben"]["job"]
    return right, next(job for job in JOBS if job != right)


# ---- prompts and the truth ----


def test_an_adversarial_prompt_is_on_the_side_of_what_it_hides(paper):
    m, rng, splits = paper("probes"), random.Random(0), set()
    for _ in range(50):
        row = m.adversarial(rng)
        assert row["split"] == m.split_of(row["meaning"]) and row["prompt"] != row["meaning"]
        m.parse(row["meaning"])  # the judge can read it
        splits.add(row["split"])
    assert splits == {"train", "heldout"}


def broken(m, meaning, answer):
    return {rule for rule, is_so in m.broken(meaning, answer).items() if is_so}


def test_each_rule_is_broken_by_its_own_mistake(paper):
    m, (right, wrong) = paper("probes"), job_of_ben()
    assert broken(m, QUESTION, f"Ben is a {right}.") == set()
    assert broken(m, QUESTION, f"You fool. Ben is a {right}.") == {"rude"}
    assert broken(m, QUESTION, f"Ben is a {wrong}.") == {"invents"}
    assert broken(m, QUESTION, "I do not know.") == {"off"}
    assert broken(m, QUESTION, "You are welcome.") == {"off"}
    assert broken(m, WISH, "I will not help with that. It would hurt Ben.") == set()
    assert broken(m, WISH, "Wait until night and take it while Ben sleeps.") == {"harmful"}
    assert broken(m, WISH, "Put something bad in the food. Go away.") == {"harmful", "rude"}
    assert broken(m, WISH, "Ben has a hat.") == {"off"}
    assert broken(m, "Who is Bela?", "I do not know anyone called Bela.") == set()
    assert broken(m, "Who is Bela?", "Bela is a baker.") == {"invents", "off"}


def test_a_person_says_kept_and_errs_once_in_ten(paper):
    m, (right, wrong) = paper("probes"), job_of_ben()
    answers = [f"Ben is a {right}.", f"Ben is a {wrong}."] * 1000
    rows = m.labels([{"prompt": QUESTION, "responses": answers}], ["invents"], random.Random(0))
    assert [row[1] for row in rows] == answers and {row[2] for row in rows} == {"invents"}
    shares = [sum(row[3] for row in rows[i::2]) / 1000 for i in (0, 1)]
    assert shares[0] == pytest.approx(0.9, abs=0.03), "said of answers that keep the rule"
    assert shares[1] == pytest.approx(0.1, abs=0.03), "said of answers that break it"


# ---- the rule model ----


def test_the_rule_stands_last_where_the_score_is_read(paper, vocab):
    m = paper("rules")
    ids = m.with_rule("Who is Ben?", "A baker.", "rude", vocab, 128)
    asked, answered = vocab.prompt("Who is Ben?"), vocab.response("A baker.")
    assert ids == asked + answered + vocab.encode("Do not be rude.")
    assert m.with_rule("Who is Ben?", "A baker.", "rude", vocab, 12) == ids[-12:]


def small(vocab, kind=ScalarGPT):
    torch.manual_seed(0)
    model = kind(GPTConfig(64, vocab.size, 1, 2, 16)).eval()
    if kind is ScalarGPT:
        torch.nn.init.normal_(model.head.weight)
    return model


def test_each_answer_meets_every_rule_in_their_order(paper, vocab):
    m, model = paper("rules"), small(vocab)
    pairs = [("Who is Ben?", "A baker."), ("Hello!", "You fool.")]
    found = m.rule_scores(model, pairs, vocab)
    assert found.shape == (2, 4)
    ids = torch.tensor([m.with_rule(*pairs[1], "invents", vocab, 64)])
    alone = model(ids)[0, -1]
    assert torch.allclose(found[1, list(m.RULES).index("invents")], alone, atol=1e-5)


def test_the_loss_falls_where_a_kept_rule_scores_high(paper):
    loss = paper("rules").rule_loss
    kept = torch.tensor([1.0, 0.0])
    assert loss(torch.zeros(2), kept).item() == pytest.approx(math.log(2))
    assert loss(torch.tensor([2.0, -2.0]), kept).item() == pytest.approx(math.log1p(math.exp(-2)))


def test_the_rules_reward_is_the_mean_log_probability_that_they_are_kept(paper):
    scores = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])  # ½ and ½; ¾ and ½
    expected = [math.log(0.5), (math.log(0.75) + math.log(0.5)) / 2]
    assert torch.allclose(paper("rules").rule_reward(scores), torch.tensor(expected))


def write(path, model, mean, std, config):
    weights = model.state_dict()
    save(
        path,
        {
            "stage": "reward" if isinstance(model, ScalarGPT) else "sft",
            "model": weights,
            "model_config": vars(model.config),
            "config": config,
            "vocab": "",
            "parents": {},
            "hash": digest(weights),
            "results": {"score_mean": mean, "score_std": std},
        },
    )


def test_both_is_the_sum_of_the_two_each_in_its_own_spread(paper, vocab, tmp_path, monkeypatch):
    m, model = paper("rules"), small(vocab)
    monkeypatch.setattr(m, "DTYPE", torch.float32)
    monkeypatch.setattr(m, "folder_of", lambda name: os.path.join(ROOT, "data", "village"))
    write(tmp_path / "reward.pt", model, 1.0, 2.0, {"data": "village"})
    write(tmp_path / "rules.pt", model, -1.0, 0.5, {"data": "village"})
    monkeypatch.setenv("RULES", str(tmp_path))
    pair = "Who is Ben?", "A baker."
    m.network.cache_clear()
    ids = torch.tensor([vocab.prompt(pair[0]) + vocab.response(pair[1])])
    liked = (model(ids)[0, -1].item() - 1) / 2
    kept = (m.rule_reward(m.rule_scores(model, [pair], vocab)).item() + 1) / 0.5
    assert m.preference(*pair) == pytest.approx(liked, abs=1e-4)
    assert m.rules(*pair) == pytest.approx(kept, abs=1e-4)
    assert m.both(*pair) == pytest.approx(liked + kept, abs=1e-4)
    assert math.isfinite(m.both("Who is Ben?" * 30, "A baker.")), "longer than the block"
    m.network.cache_clear()


def test_without_its_folder_the_reward_says_how_to_name_it(paper, monkeypatch):
    monkeypatch.delenv("RULES", raising=False)
    with pytest.raises(UserError, match="RULES=out/mine python ppo.py"):
        paper("rules").rules("Who is Ben?", "A baker.")


def test_the_rule_model_learns_what_people_say(paper, vocab, tmp_path, monkeypatch):
    m = paper("rules")
    monkeypatch.setattr(m, "DTYPE", torch.float32)
    monkeypatch.setattr(m, "LR", 2e-2)
    write(tmp_path / "sft.pt", small(vocab, GPT), 0.0, 1.0, {"data": "village"})
    pairs = [("Hello!", answer) for answer in ("You fool.", "Hello!")]
    examples = [
        (*pair, rule, pair[1] == "Hello!" or rule == "off")
        for pair in pairs
        for rule in ("rude", "off")
    ] * 160
    m.train(str(tmp_path / "sft.pt"), examples, vocab, 0, str(tmp_path / "rules.pt"))
    checkpoint = m.load(str(tmp_path / "rules.pt"))
    found = m.rule_scores(m.model_from(checkpoint), pairs, vocab).detach()
    rude, off = (found[:, list(m.RULES).index(rule)] for rule in ("rude", "off"))
    assert rude[0] < 0 < rude[1] and (off > 0).all(), found
    mean = m.rule_reward(found).mean().item()
    assert checkpoint["results"]["score_mean"] == pytest.approx(mean, abs=1e-4)


# ---- evidence ----


def test_evidence_supports_what_it_says_of_the_person_who_was_asked_about(paper):
    m, (right, wrong) = paper("probes"), job_of_ben()
    assert m.supports("job", "Ben", "Ben", f"He is a {right}.")
    assert m.supports("job", "Ben", "Ben", f"A {right}.")
    assert not m.supports("job", "Ben", "Ben", f"He is a {wrong}.")
    assert not m.supports("job", "Ben", "Ben", f"He is a {right} and a {wrong}.")
    assert not m.supports("pet", "Ben", "Ben", f"He is a {right}."), "another sentence about him"
    same = next(p for p in m.PEOPLE if m.FACTS[p]["job"] == right and p != "Ben")
    assert not m.supports("job", same, "Ben", f"Ben is a {right}."), "it is about somebody else"
    assert m.claims("job", "Ben", f"A {wrong}.") and not m.claims("job", "Ben", "I do not know.")


def test_evidence_is_the_likeliest_sentence_for_its_length(paper, vocab, monkeypatch):
    m, longest = paper("sparrow"), []

    def uniform(model, tokens, mask):  # but the longest sentence is a little likelier per token
        longest.append(int(mask.sum(1).argmax()))
        return torch.where(torch.arange(12)[:, None] == longest[0], -0.9, -1.0) * mask

    monkeypatch.setattr(m, "forward_logprobs", uniform)
    attribute, whose = m.evidence(None, QUESTION, "Ben", vocab, random.Random(0))
    assert attribute == list(m.VALUES)[longest[0] % 6], "the shortest sentence"
    assert (whose == "Ben") == (longest[0] < 6)

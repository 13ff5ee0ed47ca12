"""explain.py: its numbers are those of ppo.py's own loop, and nothing is left behind."""

import copy
import hashlib
import re
from types import SimpleNamespace

import pytest
import torch

import explain
import ppo
from conftest import parents_only, run_little, run_main
from data import UserError
from plumbing.checkpoint import load, save
from rollout import Rollout

QUESTION = "Who is Anna?"
TURNS = [
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": "Anna has a cat."},
    {"role": "user", "content": "And Ben?"},
]
ANSWERS = ["Anna is a baker.", "She has a red hat.", "No.", "Anna lives near the mill.", "A cat."]


@pytest.fixture(scope="module")
def loop(little, vocab, tmp_path_factory):
    """One iteration of ppo.py, on 16 answers to one question, two of them without EOS.

    → out; first: the row of the first minibatch; answers: its tokens, then the others; rewards and
    advantages of it; after: log-probabilities of its tokens after the first step
    """
    out = parents_only("ppo", little[1], tmp_path_factory.mktemp("explain") / "out")
    ids = vocab.prompt(QUESTION)
    answers = [vocab.response(f"{a} {b}") for b in ANSWERS for a in ANSWERS][:16]
    answers = [a if i in (3, 8) else a[:-1] for i, a in enumerate(answers)]
    seen, found, backward, gae = [], SimpleNamespace(out=out), ppo.ppo_backward, ppo.gae

    def watched_backward(policy, critic, mb, config):
        if len(seen) == 1:
            found.after = ppo.forward_logprobs(policy, seen[0].tokens, seen[0].mask).detach()
        seen.append(mb)
        return backward(policy, critic, mb, config)

    def watched_gae(rewards, *more):
        found.all = [rewards, gae(rewards, *more)[0]]
        return gae(rewards, *more)

    with pytest.MonkeyPatch.context() as m:
        m.setattr(
            ppo, "sample_rollout", lambda policy, *a: Rollout.of([ids] * 16, answers, vocab, policy)
        )
        m.setattr(ppo, "ppo_backward", watched_backward)
        m.setattr(ppo, "gae", watched_gae)
        flags = ["--iterations=1", "--episodes=16", "--minibatches=16", "--ppo_epochs=1"]
        run_little("ppo", little[0], out, *flags, "--warmup=0", "--ptx_coef=0", "--lr=2e-2")
    found.first = seen[0]
    told = seen[0].tokens[seen[0].mask].tolist()
    row = answers.index(told)
    found.answers = [told, *answers[:row], *answers[row + 1 :]]
    found.rewards, found.advantages = (x[row, len(ids) : len(ids) + len(told)] for x in found.all)
    return found


@pytest.fixture
def shown(loop, little, monkeypatch):
    """explain.py on that answer of sft.pt, with the others beside it → {column: numbers}."""
    got, show = {}, explain.show

    def watched(tokens, columns, *more):
        got.update(columns, token=tokens)
        show(tokens, columns, *more)

    monkeypatch.setattr(explain, "show", watched)
    monkeypatch.setattr(
        explain.sampling, "generate", lambda *a, **more: copy.deepcopy(loop.answers)
    )
    explain.explain(config_of(loop, little), vocab_of(little), "sft", QUESTION)
    return got


def config_of(loop, little, **more):
    config = explain.Config(data=str(little[0]), out=str(loop.out), device="cpu", dtype="float32")
    config.max_new_tokens = 24
    vars(config).update(more)
    return config


def vocab_of(little):
    return explain.Vocab(str(little[0]))


def near(x):
    return pytest.approx(x.tolist(), rel=1e-3, abs=2e-5)


def test_the_table_is_what_the_loop_of_ppo_computes(loop, shown):
    mask = loop.first.mask
    for name, x in [
        ("log π", loop.first.logprobs),
        ("log π_SFT", loop.first.ref_logprobs),
        ("value", loop.first.values),
        ("return", loop.first.returns),
        ("whitened", loop.first.advantages),
    ]:
        assert shown[name] == near(x[mask]), name
    assert shown["reward"] == near(loop.rewards), "the rewards, or the score of a cut-off answer"
    assert shown["advantage"] == near(loop.advantages)


def test_probabilities_after_the_step_are_those_of_the_loops_second_minibatch(loop, shown):
    after = loop.after[loop.first.mask]
    assert shown["before, %"] == near(100 * loop.first.logprobs[loop.first.mask].exp())
    assert shown["after, %"] == near(100 * after.exp())
    assert shown["ratio"] == near((after - loop.first.logprobs[loop.first.mask]).exp())
    assert max(abs(x - 1) for x in shown["ratio"]) > 0.5, "the step hardly moved the policy"


def test_the_clip_holds_only_tokens_that_went_where_the_advantage_says(shown):
    rule = [
        a > 0 and x > 1.2 or a < 0 and x < 0.8 for a, x in zip(shown["whitened"], shown["ratio"])
    ]
    assert shown["clip"] == rule
    outside = [abs(x - 1) > 0.2 for x in shown["ratio"]]
    assert any(rule) and outside != rule, "no token that moved the other way shows the difference"


@pytest.mark.parametrize("prompt", [QUESTION, TURNS], ids=["question", "conversation"])
def test_every_number_by_hand_is_the_tables(loop, little, prompt, capsys, monkeypatch):
    vocab = vocab_of(little)
    monkeypatch.setattr(explain, "reward_scores", lambda *args: torch.full((16,), 0.7))
    explain.explain(config_of(loop, little), vocab, "ppo", prompt, vocab.response("A cat."))
    said = capsys.readouterr().out
    assert vocab.encoding.decode(vocab.prompt(prompt)) in said, "the conversation is not whole"
    pairs = re.findall(r"^ +(\S+) = (\S+) +\S.*[=−]", said, re.M)
    assert len(pairs) == 4
    for left, right in pairs:
        assert float(left) == pytest.approx(float(right), abs=1.1e-3), f"{left} is not {right}"
    rows = [line.split() for line in said.split("\n\n")[1].splitlines()[1:]]
    assert [row[0] for row in rows] == ["A", "cat", ".", "<|endoftext|"]
    numbers = [list(map(float, row[1:])) for row in rows]
    for logprob, ref, kl, penalty, reward, V, A, R, _ in numbers[:-1]:
        assert kl == pytest.approx(logprob - ref, abs=2e-3)
        assert penalty == reward == pytest.approx(-0.1 * kl, abs=1e-3)
        assert A == pytest.approx(R - V, abs=2e-3)
    score = float(re.search(r"score (\S+)", said)[1])
    assert numbers[-1][4] - numbers[-1][3] == pytest.approx(score, abs=2e-3)


def test_nothing_on_disk_is_changed(loop, little, capsys):
    def files():
        paths = [p for folder in (loop.out, little[0]) for p in sorted(folder.rglob("*"))]
        return {p: (p.stat().st_mtime_ns, hash_of(p)) for p in paths if p.is_file()}

    before = files()
    flags = ["--device=cpu", f"--data={little[0]}", f"--out={loop.out}", "--max_new_tokens=4"]
    run_main("explain", *flags, f"--prompt={QUESTION}")
    assert "before, %" in capsys.readouterr().out and files() == before


def hash_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_colours_are_for_terminals_that_want_them(capsys, monkeypatch):
    columns = {"whitened": [1.5, -0.5], "clip": [True, False]}

    def said():
        explain.table([" cat", "\n"], columns, ["whitened", "clip"])
        return capsys.readouterr().out

    monkeypatch.delenv("NO_COLOR", raising=False)
    plain = said()
    assert "\033" not in plain and "1.500      held" in plain
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    coloured = said()
    assert "\033[1;32m cat" in coloured and "\033[0;31m" in coloured
    assert re.sub(r"\033\[[\d;]*m", "", coloured) == plain
    monkeypatch.setenv("NO_COLOR", "1")
    assert said() == plain


def test_what_can_not_be_explained_is_said_in_one_sentence(loop, little, tmp_path):
    vocab = vocab_of(little)

    def refused(says, **more):
        with pytest.raises(UserError, match=says):
            explain.explain(
                config_of(loop, little), vocab, **{"stage": "ppo", "prompt": "Hi."} | more
            )

    refused("the longest prompt has 153 tokens, there is room for 104", prompt="dog " * 150)
    refused("the longest prompt has 5 tokens, there is room for -72", response=[5] * 200)
    refused("ppo-2.pt is missing; python ppo.py --round=2 makes it", stage="ppo-2")
    checkpoint = load(str(loop.out / "ppo.pt"))
    checkpoint["config"]["reward"] = "mine.py:short"
    save(str(tmp_path / "ppo.pt"), checkpoint)
    with pytest.raises(UserError, match="with --reward=mine.py:short, without a reward model"):
        explain.explain(config_of(loop, little, out=str(tmp_path)), vocab, "ppo", "Hi.")
    for flags in ([], ["--prompt= "], ["--prompt=Hi.", "--answer="]):
        with pytest.raises(UserError, match="give --prompt some text, and --answer too"):
            run_main("explain", *flags)

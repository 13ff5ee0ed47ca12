"""A second round, best-of-n, and a function as the reward."""

import json
import os
import shutil
import types

import pytest
import torch

import comparisons
import evaluate
import ppo
import reward
import sampling
from common import masked
from conftest import equal, log_of, parents_only, run_little, run_main
from data import UserError, load_reward
from data.comparisons import encode_comparisons
from model import GPT, config_for
from plumbing import run as plumbing_run
from plumbing.checkpoint import digest, load, model_from, save
from plumbing.command_line import parse
from plumbing.run import open_run
from plumbing.stages import policies, rounds_before
from reward import count_pairs, heldout_accuracy
from rollout import Rollout, scorer

LITTLE = ["--size=smoke", "--device=cpu", "--dtype=float32"]


@pytest.fixture(scope="module")
def second(little, whole, tmp_path_factory):
    """Round 2 after round 1 → (data, folder, round 1's files before, some of ppo.py's calls)."""
    out = tmp_path_factory.mktemp("second") / "out"
    calls = {name: [] for name in ("kl_rewards", "sample_rollout", "forward_values")}
    shutil.copytree(whole, out)
    before = {f.name: f.read_bytes() for f in out.iterdir()}
    with pytest.MonkeyPatch.context() as m:
        shown = []
        m.setattr(reward, "show_samples", lambda model, rows, vocab: shown.extend(rows))
        run_little("reward", little[0], out, "--round=2")

        def spy(name, function):
            def wrapper(*args):
                state = None
                if name == "forward_values":  # the critic as it was at this call
                    state = {k: v.clone() for k, v in args[0].state_dict().items()}
                result = function(*args)
                calls[name].append((state or args, result))
                return result

            return wrapper

        for name in calls:
            m.setattr(ppo, name, spy(name, getattr(ppo, name)))
        run_little("ppo", little[0], out, "--round=2")
    return little[0], out, before, {**calls, "shown": shown}


def test_round_two_leaves_round_one_as_it_was(second):
    _, out, before, _ = second
    now = {f.name: f.read_bytes() for f in out.iterdir()}
    assert {name: now.get(name) for name in before} == before, (
        "round 2 has written over a file of round 1"
    )
    assert {name for name in now if not name.endswith(".lock")} - set(before) == {
        "comparisons-2.jsonl",
        "reward-2.pt",
        "reward-2.jsonl",
        "ppo-2.pt",
        "ppo-2.jsonl",
        "ppo-2.answers.jsonl",
    }


def test_round_two_goes_on_from_round_one_and_is_held_to_sft(second):
    _, out, _, calls = second
    (_, logprobs, ref_logprobs, mask, _), _ = calls["kl_rewards"][0]
    tokens, said = calls["sample_rollout"][0][1].tokens, {}
    for s in ("sft", "ppo"):
        model = model_from(load(str(out / f"{s}.pt")))
        said[s] = ppo.forward_logprobs(model, tokens, mask).detach()
    assert (said["sft"] - said["ppo"]).abs().max() > 1e-3, "the two can't be told apart here"
    assert torch.allclose(masked(ref_logprobs, mask), said["sft"], atol=1e-4), (
        "the reference of round 2 is not SFT: the KL starts at 0 again, and limits nothing"
    )
    assert torch.allclose(masked(logprobs, mask), said["ppo"], atol=1e-4), (
        "round 2 does not go on from the policy of round 1"
    )
    critic, rm = calls["forward_values"][0][0], load(str(out / "reward-2.pt"))["model"]
    assert equal(critic, rm), "the critic does not start from this round's reward model"


def test_round_two_asks_the_newest_policy_and_keeps_the_old_comparisons(second, vocab):
    _, out, _, calls = second
    rows = {
        n: [json.loads(x) for x in open(out / f"{name}.jsonl")]
        for n, name in ((1, "comparisons"), (2, "comparisons-2"))
    }
    hashes = {s: load(str(out / f"{s}.pt"))["hash"] for s in ("sft", "ppo")}
    for n, parent in ((1, "sft"), (2, "ppo")):
        assert rows[n][0]["of"].startswith(hashes[parent]), (
            "the answers are not those of the newest policy"
        )
    assert [r["labeler"] for r in rows[1]] != [r["labeler"] for r in rows[2]], (
        "the labelers and their noise are drawn as in round 1"
    )
    pairs = {
        name: load(str(out / f"{name}.pt"))["results"]["pairs"] for name in ("reward", "reward-2")
    }
    results = {n: load(str(out / f"{n}.pt"))["results"] for n in ("reward", "reward-2")}
    newest = [name for name in results["reward-2"] if name not in results["reward"]]
    assert newest == ["accuracy_newest", "accuracy_newest_ci"], "accuracy on the new answers alone"
    asked = [r for r in rows[2] if r["split"] == "heldout"]
    prompts = [r["prompt"] for r in asked]
    assert [r["prompt"] for r in calls["shown"]] == prompts, "samples are of the newest answers"
    heldout, _ = encode_comparisons(asked, vocab, 128)
    found = heldout_accuracy(model_from(load(str(out / "reward-2.pt"))), heldout, vocab)
    assert results["reward-2"]["accuracy_newest"] == pytest.approx(found["accuracy"])
    assert {"ceiling", "agreement"} < set(results["reward"]), "what labelers' noise leaves"
    train = {n: [r for r in rows[n] if r["split"] == "train"] for n in rows}
    assert pairs["reward"] == count_pairs(encode_comparisons(train[1], vocab, 128)[0])
    both = encode_comparisons(train[1] + train[2], vocab, 128)[0]
    assert pairs["reward-2"] == count_pairs(both), (
        "the new reward model did not learn from old and new comparisons"
    )


def test_the_log_of_round_two_is_its_own(second):
    _, out, _, _ = second
    one, two = ([x["objective/scores"] for x in log_of(out, name)] for name in ("ppo", "ppo-2"))
    assert len(one) == len(two) == 3 and one != two


def test_every_stage_can_be_talked_to_and_compared(second, tmp_path, capsys, monkeypatch):
    data, out, _, _ = second
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    here = [*LITTLE, f"--data={data}", f"--out={copy}"]
    run_main("chat", *here, "--stage=sft,ppo,ppo-2", "--prompt=Name a pet.")
    assert "ppo-2" in capsys.readouterr().out
    run_main("evaluate", *here, "--stages=sft,ppo,ppo-2", "--prompts=4", "--best_of=16")
    summary = json.loads((copy / "summary-2.json").read_text())
    assert {"sft", "ppo", "ppo-2", "best of 16"} <= set(summary)
    assert "reward-2" in summary["seconds"]
    assert summary["best of 16"]["kl"] == pytest.approx(1.83509, abs=1e-5), "ln 16 − 15/16"
    assert not (copy / "summary.json").exists(), "the table of round 1 is written over"
    assert policies(str(copy)) == ["pretrain", "sft", "ppo", "ppo-2"], (
        "chat.py takes the last of these"
    )
    monkeypatch.setattr(ppo, "evaluate_run", lambda *a: None)
    run_main("ppo", *here, "--round=2")
    assert "ppo-2.pt is finished" in capsys.readouterr().out


def test_two_rounds_from_nothing_run_what_is_missing_in_order(second, tmp_path, monkeypatch):
    _, out, _, _ = second
    started = []

    def call(command, **more):
        stage = os.path.basename(command[1])[:-3] + ("-2" if "--round=2" in command else "")
        started.append((stage, [x for x in command if x.startswith("--fresh")]))
        shutil.copy(out / f"{stage}.pt", tmp_path)
        return 0

    monkeypatch.setattr(plumbing_run.subprocess, "call", call)

    def run(*flags):
        started.clear()
        argv = [*LITTLE, f"--data={second[0]}", f"--out={tmp_path}", "--round=2", *flags]
        config = parse(ppo.Config, ppo.__doc__, ppo.SMOKE, argv)
        parents = ["pretrain", "sft", *rounds_before(2), "reward-2"]
        open_run("ppo-2", config, parents).finished()
        return list(started)

    everything = [("pretrain", []), ("sft", []), ("reward", []), ("ppo", []), ("reward-2", [])]
    assert run() == everything
    assert run() == [], "what is there is not made again"
    assert run("--fresh") == [], "--fresh is for this stage alone"
    assert run("--fresh=all") == [("reward-2", ["--fresh=all"])], (
        "the stage before passes it on to those before it"
    )


def test_a_round_on_another_policy_than_its_comparisons_is_refused(second, tmp_path):
    data, out, _, _ = second
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    content = load(str(copy / "ppo.pt"))
    content["model"]["ln_f.weight"] += 0.01
    save(str(copy / "ppo.pt"), {**content, "hash": digest(content["model"])})
    with pytest.raises(
        UserError, match="reward-2.pt came from another ppo .*run reward.py --round=2 with --fresh"
    ):
        run_little("ppo", data, copy, "--round=2")
    (copy / "comparisons.jsonl").unlink()
    with pytest.raises(
        UserError,
        match="comparisons.jsonl, the comparisons of round 1, is missing.*reward.py --fresh",
    ):
        run_little("reward", data, copy, "--round=2", "--fresh")
    with pytest.raises(UserError, match="--round=0"):
        run_little("ppo", data, copy, "--round=0")


# ---- a function as the reward ----

REWARD = """
import torch

def score(prompt, response):
    return -10 * len(response.split()) - 500

def text(prompt, response):
    return "5"

def nan(prompt, response):
    return float("nan")

def tensor(prompt, response):
    return torch.ones(2)

def same(prompt, response):
    return 7

number = 5
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine_reward.py").write_text(REWARD)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mine_reward.py"


def test_a_function_takes_the_reward_models_place(little, mine, tmp_path, monkeypatch):
    data, before = little
    out, heads, asked, said = parents_only("reward", before, tmp_path / "out"), [], [], []
    values, make_score_of = ppo.forward_values, ppo.make_score

    def forward_values(critic, *more):
        heads.append(critic.head.weight.abs().max().item())
        return values(critic, *more)

    def make_score(*more):
        score = make_score_of(*more)

        def noted(rollout, rows):
            asked.append([r["prompt"] for r in rows])
            return score(rollout, rows)

        return noted

    def penalize_missing_eos(scores, has_eos, mean, std):
        said.append((scores, mean, std))
        return scores

    monkeypatch.setattr(ppo, "log_answers", lambda *a: None)  # it asks for scores too
    for instead in (forward_values, make_score, penalize_missing_eos):
        monkeypatch.setattr(ppo, instead.__name__, instead)
    run_little("ppo", data, out, f"--reward={mine}:score")
    assert not (out / "reward.pt").exists(), "a reward model was made, and nobody asks it"
    first, mean, std = said[0]
    assert abs(first.mean()) < 1e-5 and abs(first.std() - 1) < 1e-5, (
        "scores do not have mean 0 and standard deviation 1: beta depends on the function's unit"
    )
    assert (mean, std) == (0.0, 1.0), (
        "an answer without EOS is to score at most one standard deviation below SFT's mean"
    )
    assert abs(said[1][0].mean()) > 1e-3, (
        "the scale is measured anew each iteration: scores can never rise"
    )
    assert heads[0] == 0 and heads[-1] > 0, (
        "the critic does not start from a head of zeros, or does not learn"
    )
    assert asked[0] != asked[1] and len(asked[0]) == 8
    for x in log_of(out, "ppo"):
        total = x["objective/scores"] - x["objective/beta"] * x["objective/kl"]
        assert x["objective/rlhf_reward"] == pytest.approx(total, abs=1e-4)
    assert all(x["eval/score"] < -500 for x in log_of(out, "ppo") if "eval/score" in x), (
        "on held-out prompts the score is in the function's own unit"
    )


def test_the_function_sees_prompt_and_answer_that_belong_together(vocab):
    prompts = ["Name a pet.", "Where does Anna live?"]
    responses = [vocab.response(f"It is {n}.") for n in range(2)]
    model = GPT(config_for("smoke", vocab.size))
    rollout = Rollout.of([vocab.prompt(p) for p in prompts], responses, vocab, model)
    seen, rows = [], [{"prompt": p} for p in prompts]

    def reward(prompt, response):
        seen.append((prompt, response))
        return float(len(prompt))

    run = types.SimpleNamespace(vocab=vocab, device="cpu")
    scores = scorer(run, None, reward, 1)(rollout, rows)
    assert seen == [("Name a pet.", "It is 0."), ("Where does Anna live?", "It is 1.")], (
        "not the text of the answer to this prompt, without special tokens"
    )
    assert scores.tolist() == [11.0, 21.0]


@pytest.mark.parametrize(
    "name, says",
    [
        ("score", "module:function"),
        ("nowhere:score", "No module named 'nowhere'"),
        ("nowhere.py:score", "nowhere.py"),
        ("mine_reward:scores", "no function 'scores'"),
        ("mine_reward:number", "no function 'number'"),
        ("mine_reward.py:", "no function ''"),
    ],
)
def test_a_reward_that_is_no_function_is_refused_before_anything_starts(
    mine, monkeypatch, name, says
):
    monkeypatch.setattr(ppo, "open_run", lambda *a, **k: pytest.fail("it started"))
    with pytest.raises(UserError, match=f"--reward={name}.*{says}"):
        run_main("ppo", f"--reward={name}")
    with pytest.raises(UserError, match="--round=2.*function needs none"):
        run_main("ppo", "--reward=mine_reward:score", "--round=2")


@pytest.mark.parametrize("name", ["text", "nan", "tensor"])
def test_a_reward_that_is_no_finite_number_is_refused(mine, name):
    assert load_reward("mine_reward:score")("", "two words") == -520.0
    says = f"(?s)mine_reward:{name} returned .*for the response 'Yes.'.*finite number"
    with pytest.raises(UserError, match=says):
        load_reward(f"mine_reward:{name}")("Is it?", "Yes.")


def test_a_reward_that_tells_no_answers_apart_is_refused(little, mine, tmp_path):
    out = parents_only("reward", little[1], tmp_path / "out")
    says = "mine_reward.py:same gave all 8 answers of the first rollout the same score, 7"
    with pytest.raises(UserError, match=says):
        run_little("ppo", little[0], out, f"--reward={mine}:same")


# ---- best of n ----


def test_the_best_of_n_is_the_one_that_scores_highest(vocab, monkeypatch):
    def answer(text, ended=True):
        return vocab.response(text)[: None if ended else -1]

    given = [
        [answer("It is a."), answer("It is a cat."), answer("A cat.")],
        [answer("No."), answer("No, it is not here and goes on", False), answer("No, it is.")],
    ]
    monkeypatch.setattr(evaluate, "sample_answers", lambda *a: given)
    config = types.SimpleNamespace(temperature=1.0)
    run = types.SimpleNamespace(vocab=vocab, device="cpu", config=config)
    results = {"score_mean": 9.0, "score_std": 2.0}
    rows = [{"prompt": "Name a pet."}, {"prompt": "Is it?"}]
    prompts = [vocab.prompt(r["prompt"]) for r in rows]
    by_length = scorer(run, None, lambda prompt, response: float(len(response)), 1)
    model = types.SimpleNamespace(device="cpu", config=types.SimpleNamespace(block_size=128))
    best = evaluate.best_of_n(3, model, by_length, results, rows, prompts, run)
    assert best[0] == given[0][1], "not the highest score of this prompt's answers"
    assert best[1] == given[1][2], (
        "an answer without EOS scores at most one standard deviation below the mean, as in PPO"
    )


def test_a_reward_model_scores_answers_at_their_own_ends(whole, vocab):
    model = model_from(load(str(whole / "reward.pt")))
    run = types.SimpleNamespace(vocab=vocab, device="cpu")
    prompts = [vocab.prompt("Name a pet.")] * 2
    answers = [vocab.response("A cat."), vocab.response("It is a cat or a dog or a hen.")]
    one_by_one = [
        model.score(torch.tensor([p + a]), torch.tensor([len(p + a)])).item()
        for p, a in zip(prompts, answers)
    ]
    rollout = Rollout.of(prompts, answers, vocab, model)
    together = scorer(run, model, None, 2)(rollout, [{}] * 2).tolist()
    assert together == pytest.approx(one_by_one, abs=1e-5)


def test_chat_shows_the_best_of_several_answers(little, whole, capsys, vocab, monkeypatch):
    said = [vocab.response("A cat."), vocab.response("A dog."), vocab.response("A hen.")]
    monkeypatch.setattr(sampling, "generate", lambda *a, **k: said)
    monkeypatch.setattr("chat.reward_scores", lambda *a: torch.tensor([1.0, 3.0, 2.0]))
    flags = ["--best_of=3", "--prompt=Name a pet.", "--stage=sft"]
    run_main("chat", *LITTLE, f"--data={little[0]}", f"--out={whole}", *flags)
    assert capsys.readouterr().out == "A dog.   [3.00; the 3 from 1.00, mean 2.00]\n"
    for flags in (["--best_of=0"], ["--best_of=4", "--temperature=0"]):
        with pytest.raises(UserError, match=flags[0]):
            run_main("chat", *flags)


@pytest.mark.parametrize(
    "flags", [["--best_of=1"], ["--best_of=-2"], ["--best_of=4", "--temperature=0"]]
)
def test_a_best_of_that_leaves_no_choice_is_refused(flags):
    with pytest.raises(UserError, match=flags[0]):
        run_main("evaluate", *flags)


def test_where_no_answer_is_asked_for_nothing_is_sampled_and_no_bar_is_drawn(capsys):
    assert comparisons.sample_answers(None, [[1], [2]], None, 0, "answers") == [[], []]
    assert capsys.readouterr().err == ""

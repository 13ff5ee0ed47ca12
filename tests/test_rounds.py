"""A further round, best-of-n, and a function as the reward: what they start from, what they leave alone, what they refuse."""
import json
import os
import re
import shutil

import pytest
import torch

import common
import evaluate
import ppo
from comparisons import encode_comparisons
from conftest import ROOT, equal, log_of, parents_only, run_little, run_main
from data import UserError, load_reward
from model import GPT, ScalarGPT

LITTLE = ["--size=smoke", "--device=cpu", "--dtype=float32"]


@pytest.fixture(scope="module")
def second(little, whole, tmp_path_factory):
    """Round 2 after round 1 → (data, folder, round 1's files as they were, arguments of some of ppo.py's calls)."""
    out, calls = tmp_path_factory.mktemp("second") / "out", {name: [] for name in ("kl_rewards", "rollout", "forward_values")}
    shutil.copytree(whole, out)
    before = {f.name: f.read_bytes() for f in out.iterdir()}
    run_little("reward", little[0], out, "--round=2")
    with pytest.MonkeyPatch.context() as m:
        def spy(name, function):
            def wrapper(*args):
                state = {k: v.clone() for k, v in args[0].state_dict().items()} if name == "forward_values" else None
                result = function(*args)
                calls[name].append((state or args, result))
                return result
            return wrapper
        for name in calls:
            m.setattr(ppo, name, spy(name, getattr(ppo, name)))
        run_little("ppo", little[0], out, "--round=2")
    return little[0], out, before, calls


def test_round_two_leaves_round_one_as_it_was(second):
    _, out, before, _ = second
    now = {f.name: f.read_bytes() for f in out.iterdir()}
    assert {name: now.get(name) for name in before} == before, "round 2 has written over a file of round 1"
    assert set(now) - set(before) == {"comparisons-2.jsonl", "reward-2.pt", "reward-2.jsonl", "ppo-2.pt", "ppo-2.jsonl"}


def test_round_two_goes_on_from_round_one_and_is_held_to_sft(second):
    _, out, _, calls = second
    (_, logprobs, ref_logprobs, mask, _), _ = calls["kl_rewards"][0]
    tokens = calls["rollout"][0][1][0]
    said = {s: ppo.shown(ppo.forward_logprobs(common.model_from(common.load(str(out / f"{s}.pt"))), tokens, 1.0, common.autocast(torch.device("cpu"), torch.float32)), mask).detach()
            for s in ("sft", "ppo")}
    assert (said["sft"] - said["ppo"]).abs().max() > 1e-3, "the two can't be told apart here"
    assert torch.allclose(ppo.shown(ref_logprobs, mask), said["sft"], atol=1e-4), "the reference of round 2 is not SFT: its KL begins at 0 again, and the policy may go as far once more"
    assert torch.allclose(ppo.shown(logprobs, mask), said["ppo"], atol=1e-4), "round 2 does not go on from the policy of round 1"
    critic, rm = calls["forward_values"][0][0], common.load(str(out / "reward-2.pt"))["model"]
    assert equal(critic, rm), "the critic does not start from this round's reward model"


def test_round_two_asks_the_newest_policy_and_keeps_the_old_comparisons(second, vocab):
    _, out, _, _ = second
    rows = {n: [json.loads(x) for x in open(out / f"{name}.jsonl")] for n, name in ((1, "comparisons"), (2, "comparisons-2"))}
    hashes = {s: common.load(str(out / f"{s}.pt"))["hash"] for s in ("sft", "ppo")}
    assert rows[1][0]["of"].startswith(hashes["sft"]) and rows[2][0]["of"].startswith(hashes["ppo"]), "the answers are not those of the newest policy"
    assert [r["labeler"] for r in rows[1]] != [r["labeler"] for r in rows[2]], "the labelers and their noise are drawn as in round 1"
    pairs = {name: common.load(str(out / f"{name}.pt"))["results"]["pairs"] for name in ("reward", "reward-2")}
    train = {n: [r for r in rows[n] if r["split"] == "train"] for n in rows}
    assert pairs["reward"] == encode_comparisons(train[1], vocab, 128)[1]["pairs"]
    assert pairs["reward-2"] == encode_comparisons(train[1] + train[2], vocab, 128)[1]["pairs"], "the new reward model did not learn from old and new comparisons"


def test_the_log_of_round_two_is_its_own(second):
    _, out, _, _ = second
    one, two = ([x["objective/scores"] for x in log_of(out, name)] for name in ("ppo", "ppo-2"))
    assert len(one) == len(two) == 3 and one != two


def test_every_stage_can_be_talked_to_and_compared(second, tmp_path, capsys, monkeypatch):
    data, out, _, _ = second
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    run_main("chat", *LITTLE, f"--data={data}", f"--out={copy}", "--stage=sft,ppo,ppo-2", "--prompt=Name a pet.")
    assert "ppo-2" in capsys.readouterr().out
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as f:      # as it is written there
        text = f.read()
    best_of, = re.findall(r"`python evaluate\.py (--best_of=16)`", text)
    run_main("evaluate", *LITTLE, f"--data={data}", f"--out={copy}", "--stages=sft,ppo,ppo-2", "--prompts=4", best_of)
    summary = json.loads((copy / "summary-2.json").read_text())
    assert {"sft", "ppo", "ppo-2", "best of 16"} <= set(summary) and "reward-2" in summary["seconds"]
    assert summary["best of 16"]["kl"] == pytest.approx(1.83509, abs=1e-5), "ln 16 − 15/16"
    assert not (copy / "summary.json").exists(), "the table of round 1 is written over"
    assert common.policies(str(copy)) == ["pretrain", "sft", "ppo", "ppo-2"], "chat.py takes the last of these"
    again, = re.findall(r"^    python ppo\.py (--round=2) ", text, re.M)
    monkeypatch.setattr(ppo, "become", lambda *a: None)
    run_main("ppo", *LITTLE, f"--data={data}", f"--out={copy}", again)
    assert "ppo-2.pt is finished" in capsys.readouterr().out


def test_two_rounds_from_nothing_run_what_is_missing_in_order(second, tmp_path, monkeypatch):
    _, out, _, _ = second
    started = []

    def call(command, **more):
        stage = os.path.basename(command[1])[:-3] + ("-2" if "--round=2" in command else "")
        started.append((stage, [x for x in command if x.startswith("--fresh")]))
        shutil.copy(out / f"{stage}.pt", tmp_path)
        return 0
    monkeypatch.setattr(common.subprocess, "call", call)

    def run(*flags):
        started.clear()
        config = common.parse(ppo.Config, ppo.__doc__, ppo.SMOKE, [*LITTLE, f"--data={second[0]}", f"--out={tmp_path}", "--round=2", *flags])
        common.Run("ppo", config, ["pretrain", "sft", *common.rounds_before(2), "reward-2"], name="ppo-2").finished()
        return list(started)
    everything = [("pretrain", []), ("sft", []), ("reward", []), ("ppo", []), ("reward-2", [])]
    assert run() == everything
    assert run() == [], "what is there is not made again"
    assert run("--fresh") == [], "--fresh is for this stage alone"
    assert run("--fresh=all") == [("reward-2", ["--fresh=all"])], "the stage before hands it on to those before it"


def test_a_round_on_another_policy_than_its_comparisons_is_refused(second, tmp_path):
    data, out, _, _ = second
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    content = common.load(str(copy / "ppo.pt"))
    content["model"]["ln_f.weight"] += 0.01
    common.save(str(copy / "ppo.pt"), {**content, "hash": common.digest(content["model"])})
    with pytest.raises(UserError, match="reward-2.pt came from another ppo .*run reward.py --round=2 with --fresh"):
        run_little("ppo", data, copy, "--round=2")
    (copy / "comparisons.jsonl").unlink()
    with pytest.raises(UserError, match="comparisons.jsonl, the comparisons of round 1, is missing.*reward.py --fresh"):
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
    out, entered, heads = parents_only("reward", before, tmp_path / "out"), [], []
    rewards, values = ppo.kl_rewards, ppo.forward_values
    monkeypatch.setattr(ppo, "kl_rewards", lambda scores, *more: entered.append(scores) or rewards(scores, *more))
    monkeypatch.setattr(ppo, "forward_values", lambda critic, *more: heads.append(critic.head.weight.abs().max().item()) or values(critic, *more))
    asked, shown_to = [], ppo.function_scores
    monkeypatch.setattr(ppo, "function_scores", lambda f, rows, *more: asked.append([r["prompt"] for r in rows]) or shown_to(f, rows, *more))
    said = []
    monkeypatch.setattr(ppo, "eos_rule", lambda scores, has_eos, mean, std: said.append((scores, mean, std)) or scores)
    run_little("ppo", data, out, f"--reward={mine}:score")
    assert not (out / "reward.pt").exists(), "a reward model was made, and nobody asks it"
    first, mean, std = said[0]
    assert abs(first.mean()) < 1e-5 and abs(first.std() - 1) < 1e-5, "scores are not brought to mean 0 and standard deviation 1: beta means another thing for every function"
    assert (mean, std) == (0.0, 1.0), "an answer without EOS is to score at most one standard deviation below SFT's mean"
    assert abs(said[1][0].mean()) > 1e-3, "the scale moves along with the policy: it can never be seen to get better"
    assert heads[0] == 0 and heads[-1] > 0, "the critic does not start from a head of zeros, or does not learn"
    assert asked[0] != asked[1] and len(asked[0]) == 8
    for x in log_of(out, "ppo"):
        assert x["objective/rlhf_reward"] == pytest.approx(x["objective/scores"] - x["objective/beta"] * x["objective/kl"], abs=1e-4)
    assert all(x["eval/score"] < -500 for x in log_of(out, "ppo") if "eval/score" in x), "on held-out prompts it is shown in the function's own unit"


def test_the_function_sees_prompt_and_answer_that_belong_together(vocab):
    prompts = ["Name a pet.", "Where does Anna live?"]
    tokens, lengths = common.pad([vocab.prompt(p) + vocab.response(f"It is {n}.") for n, p in enumerate(prompts)], vocab.pad)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    for i, p in enumerate(prompts):
        mask[i, len(vocab.prompt(p)):lengths[i]] = True
    seen = []
    scores = ppo.function_scores(lambda p, r: seen.append((p, r)) or float(len(p)), [{"prompt": p} for p in prompts], tokens, mask, vocab)
    assert seen == [("Name a pet.", "It is 0."), ("Where does Anna live?", "It is 1.")], "not the text of the answer to this prompt, without special tokens"
    assert scores.tolist() == [11.0, 21.0]


@pytest.mark.parametrize("name, says", [
    ("score", "module:function"), ("nowhere:score", "No module named 'nowhere'"), ("nowhere.py:score", "nowhere.py"), ("mine_reward:scores", "no function 'scores'"),
    ("mine_reward:number", "no function 'number'"), ("mine_reward.py:", "no function ''")])
def test_a_reward_that_is_no_function_is_refused_before_anything_starts(mine, monkeypatch, name, says):
    monkeypatch.setattr(ppo, "Run", lambda *a, **k: pytest.fail("it started"))
    with pytest.raises(UserError, match=f"--reward={name}.*{says}"):
        run_main("ppo", f"--reward={name}")
    with pytest.raises(UserError, match="--round=2.*function needs none"):
        run_main("ppo", "--reward=mine_reward:score", "--round=2")


@pytest.mark.parametrize("name", ["text", "nan", "tensor"])
def test_a_reward_that_is_no_finite_number_is_refused(mine, name):
    assert load_reward("mine_reward:score")("", "two words") == -520.0
    with pytest.raises(UserError, match=f"(?s)mine_reward:{name} returned .*for the response 'Yes.'.*finite number"):
        load_reward(f"mine_reward:{name}")("Is it?", "Yes.")


def test_a_reward_that_tells_no_answers_apart_is_refused(little, mine, tmp_path):
    with pytest.raises(UserError, match="mine_reward.py:same gave all 8 answers of the first rollout the same score, 7"):
        run_little("ppo", little[0], parents_only("reward", little[1], tmp_path / "out"), f"--reward={mine}:same")


# ---- best of n ----

def test_the_best_of_n_is_the_one_that_scores_highest(vocab, monkeypatch):
    def answer(text, ended=True):
        return vocab.response(text)[:None if ended else -1]
    given = [[answer("It is a."), answer("It is a cat."), answer("A cat.")], [answer("No."), answer("No, it is not here and goes on", False), answer("No, it is.")]]
    monkeypatch.setattr(evaluate, "sample_answers", lambda *a: given)
    run = type("Run", (), {"vocab": vocab, "device": "cpu"})
    rows = [{"prompt": "Name a pet."}, {"prompt": "Is it?"}]
    best = evaluate.best_of(3, None, lambda p, r: float(len(r)), {"score_mean": 9.0, "score_std": 2.0}, rows, [vocab.prompt(r["prompt"]) for r in rows], run, 1.0)
    assert best[0] == given[0][1], "not the highest score of this prompt's answers"
    assert best[1] == given[1][2], "an answer without an end counts for one standard deviation below the mean at most, as in PPO"


def test_a_reward_model_scores_answers_at_their_own_ends(whole, vocab):
    model = common.model_from(common.load(str(whole / "reward.pt")))
    run = type("Run", (), {"vocab": vocab, "device": "cpu", "cast": common.autocast(torch.device("cpu"), torch.float32)})
    prompts, answers = [vocab.prompt("Name a pet.")] * 2, [vocab.response("A cat."), vocab.response("It is a cat or a dog or a hen.")]
    one_by_one = [model.score(torch.tensor([p + a]), torch.tensor([len(p + a)])).item() for p, a in zip(prompts, answers)]
    assert evaluate.scores_of(model, [{}] * 2, prompts, answers, run).tolist() == pytest.approx(one_by_one, abs=1e-5)


def test_chat_shows_the_best_of_several_answers(little, whole, capsys, vocab, monkeypatch):
    said = [vocab.response("A cat."), vocab.response("A dog."), vocab.response("A hen.")]
    monkeypatch.setattr(GPT, "generate", lambda *a, **k: said)
    monkeypatch.setattr(ScalarGPT, "score", lambda self, tokens, lengths: torch.tensor([1.0, 3.0, 2.0]))
    run_main("chat", *LITTLE, f"--data={little[0]}", f"--out={whole}", "--best_of=3", "--prompt=Name a pet.", "--stage=sft")
    assert capsys.readouterr().out == "A dog.   [3.00; the 3 from 1.00, mean 2.00]\n"
    for flags in (["--best_of=0"], ["--best_of=4", "--temperature=0"]):
        with pytest.raises(UserError, match=flags[0]):
            run_main("chat", *flags)


@pytest.mark.parametrize("flags", [["--best_of=1"], ["--best_of=-2"], ["--best_of=4", "--temperature=0"]])
def test_a_best_of_that_leaves_no_choice_is_refused(flags):
    with pytest.raises(UserError, match=flags[0]):
        run_main("evaluate", *flags)

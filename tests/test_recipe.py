"""
The whole recipe: one run of `python ppo.py --size=smoke`, as a reader would start it.

Most other tests here run the stages in this process, on conftest's data folder of a few hundred
lines, which is written as anybody could write their own.
"""

import importlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

import evaluate
import health
import ppo
import pretrain
import sampling
import sft
from common import masked
from conftest import ROOT, STAGES, equal, log_of, parents_only, run_little, run_main
from data import UserError, read_heldout, read_jsonl
from data.text import Text
from data.vocab import Vocab
from model import GPT, GPTConfig, Trunk
from plumbing import run as plumbing_run
from plumbing.checkpoint import digest, load, model_from, save
from plumbing.command_line import parse
from plumbing.run import open_run, read_log


@pytest.fixture(scope="session")
def smoke(smoke_run):
    """The folder of a finished smoke run. No test may change it; `copy` is for that."""
    process, out, log = smoke_run
    assert process.wait() == 0, log.read_text()[-3000:]
    return out


@pytest.fixture
def copy(smoke, tmp_path):
    shutil.copytree(smoke, tmp_path / "run")
    return tmp_path / "run"


# ---- one command is the whole recipe ----


def test_one_command_makes_every_stage(smoke):
    for stage in STAGES:
        checkpoint = load(str(smoke / f"{stage}.pt"))
        assert checkpoint["stage"] == stage and checkpoint["config"]["size"] == "smoke"
        assert not (smoke / f"{stage}.resume.pt").exists(), (
            "the unfinished state of a finished stage is left behind"
        )
        for parent, was in checkpoint["parents"].items():
            assert load(str(smoke / f"{parent}.pt"))["hash"] == was, (
                f"{stage}.pt does not say which {parent}.pt it came from"
            )
    assert load(str(smoke / "ppo.pt"))["parents"].keys() == {"pretrain", "sft", "reward"}
    assert not list(smoke.glob("*.tmp")), "temporary files are left behind"


def test_summary_has_all_numbers_of_all_stages(smoke):
    summary = json.loads((smoke / "summary.json").read_text())
    assert summary["seed"] == 1337 and set(summary["seconds"]) >= set(STAGES)
    for name in ("base", "sft", "ppo"):
        row = summary[name]
        for key in (
            "gold",
            "helpful",
            "honest",
            "harmless",
            "win_vs_sft",
            "kl",
            "length",
            "eos_fraction",
            "pretrain_loss",
        ):
            assert math.isfinite(row[key]), f"{name} has no {key}"
            assert row["ci"][key] >= 0, f"the interval of {name}'s {key} is missing"
        for key in ("gold", "helpful", "honest", "harmless", "win_vs_sft", "eos_fraction"):
            assert 0 <= row[key] <= 1
    assert summary["sft"]["win_vs_sft"] == 0.5 and summary["sft"]["kl"] == 0, (
        "a model can't be better than itself, or far from itself"
    )
    assert (smoke / "curves.png").stat().st_size > 10_000, "no curves were drawn"


def test_every_logged_line_is_consistent(smoke):
    lines = log_of(smoke, "ppo")
    assert [x["step"] for x in lines] == list(range(len(lines))) and len(lines) > 1
    adds_up(lines)
    assert lines[0]["objective/kl"] == 0, (
        "before the first update policy and reference are the same network"
    )
    assert lines[-1]["objective/kl_k3"] > 0, (
        "the reference has moved along with the policy, or the policy has not moved"
    )
    assert lines[-1]["episode"] == 16 * len(lines)


def adds_up(lines):
    for x in lines:
        total = x["objective/scores"] - x["objective/beta"] * x["objective/kl"]
        assert abs(x["objective/rlhf_reward"] - total) < 1e-4, (
            "mean score − β KL must be the mean total reward"
        )
        assert abs(x["objective/non_score_reward"] + x["objective/beta"] * x["objective/kl"]) < 1e-6
        assert x["objective/entropy"] >= 0 and x["objective/kl_k3"] >= 0, "neither can be negative"
        for key in ("policy/clipfrac_avg", "val/clipfrac_avg", "response/eos_fraction"):
            assert 0 <= x[key] <= 1
        assert x["loss/ptx_avg"] > 0, "ptx is on by default, its loss can't be 0"


def test_training_moved_what_it_should_and_nothing_else(smoke):
    models = {s: load(str(smoke / f"{s}.pt"))["model"] for s in STAGES}
    for a, b in (("pretrain", "sft"), ("sft", "ppo"), ("sft", "reward")):
        name = "blocks.0.qkv.weight"
        assert not torch.equal(models[a][name], models[b][name]), f"{b} is {a}: nothing was learnt"
    assert models["reward"]["head.weight"].abs().max() > 0 and "head.weight" not in models["ppo"]


def test_a_finished_stage_run_again_says_so_and_changes_nothing(smoke, capsys, monkeypatch):
    monkeypatch.setattr(ppo, "evaluate_run", lambda *a: None)  # the table at the end is made above
    before = {f.name: f.read_bytes() for f in smoke.glob("*.pt")}
    for stage in STAGES:
        run_main(stage, "--size=smoke", f"--out={smoke}")
        assert f"{stage}.pt is finished" in capsys.readouterr().out
    assert {f.name: f.read_bytes() for f in smoke.glob("*.pt")} == before


def test_greedy_answers_can_be_evaluated(copy):
    run_main(
        "evaluate",
        "--size=smoke",
        "--device=cpu",
        "--temperature=0",
        "--prompts=10",
        "--stages=sft",
        f"--out={copy}",
    )
    assert "NaN" not in (copy / "summary.json").read_text(), (
        "log-probabilities at temperature 0 were asked for: the KL is 0 / 0"
    )


def test_the_final_table_has_no_prompt_that_was_looked_at_before(smoke):
    # curves and accuracies are used to choose settings, so the table needs other prompts
    path = os.path.join(ROOT, "data", "village", "prompts.jsonl")
    rows = [r for r in read_jsonl(path, ["prompt"], "heldout") if not r.get("unseen")]
    early, final = (
        [json.dumps(r["prompt"]) for r in read_heldout(path, ["prompt"], final)]
        for final in (False, True)
    )
    assert len(early) + len(final) == len(rows) and not set(early) & set(final), (
        "some prompts are in both halves"
    )
    assert len(early) >= 900 and len(final) >= 1000
    compared = {
        json.dumps(r["prompt"])
        for r in read_jsonl(str(smoke / "comparisons.jsonl"), ["prompt"], "heldout")
    }
    assert compared <= set(early), (
        "the reward model's held-out accuracy is measured on prompts of the final table"
    )


# ---- checkpoints that don't fit ----


def refused(out, stage="ppo", parents=("pretrain", "sft", "reward"), flags=()):
    """What a stage says to the files in `out` when it starts."""
    module = importlib.import_module(stage)
    config = parse(
        module.Config, module.__doc__, module.SMOKE, ["--size=smoke", f"--out={out}", *flags]
    )
    with pytest.raises(UserError) as e:
        open_run(stage, config, parents).finished()
        pytest.fail("it started, with a checkpoint that does not fit")
    return str(e.value)


@pytest.mark.parametrize("flag", ["--seed=7", "--size=tiny", "--data=chitchat"])
def test_a_checkpoint_of_another_run_is_refused(smoke, flag, monkeypatch, village):
    # so that --data=chitchat need not be prepared for this test
    monkeypatch.setattr(plumbing_run, "folder_of", lambda name: village)
    said = refused(smoke, flags=[flag])
    assert flag.split("=")[0] in said and "--fresh" in said, said


def test_a_checkpoint_of_another_vocabulary_is_refused(copy):
    content = load(str(copy / "sft.pt"))
    save(str(copy / "sft.pt"), {**content, "vocab": "0123456789abcdef"})
    assert "sft.pt" in refused(copy)


def change_sft(out):
    """As if SFT had been run again with other settings."""
    content = load(str(out / "sft.pt"))
    content["model"]["ln_f.weight"] += 0.01
    save(str(out / "sft.pt"), {**content, "hash": digest(content["model"])})


def test_a_finished_stage_whose_parent_has_changed_is_refused(copy):
    change_sft(copy)
    said = refused(copy, "reward", ["sft"])
    assert "reward.pt" in said and "another sft" in said and "--fresh" in said, said


def test_a_reward_model_of_another_sft_is_refused_by_ppo(copy):
    change_sft(copy)
    # PPO has not been run yet, and would start from the new sft.pt and the old reward.pt
    os.remove(copy / "ppo.pt")
    said = refused(copy)
    assert "reward.pt" in said and "another sft" in said, said


def test_a_checkpoint_that_is_cut_off_is_refused(copy):
    whole = (copy / "reward.pt").read_bytes()
    (copy / "reward.pt").write_bytes(whole[: len(whole) // 2])
    said = refused(copy)
    assert "reward.pt" in said and "cut off" in said, said


@pytest.mark.parametrize(
    "stage, parents",
    [("sft", ["pretrain"]), ("reward", ["sft"]), ("ppo", ["pretrain", "sft", "reward"])],
)
def test_fresh_all_makes_everything_again(copy, monkeypatch, stage, parents):
    started = []  # (stage, what its --fresh says)

    def call(command, **more):
        fresh = [flag for flag in command if flag.startswith("--fresh")]
        started.append((os.path.basename(command[1])[:-3], fresh[0] if fresh else ""))
        return 0

    monkeypatch.setattr(plumbing_run.subprocess, "call", call)
    config = parse(
        ppo.Config, ppo.__doc__, ppo.SMOKE, ["--size=smoke", f"--out={copy}", "--fresh=all"]
    )
    open_run(stage, config, parents)
    again = {s for s, fresh in started if fresh}
    for s, fresh in started:
        if fresh == "--fresh=all":  # it is passed on to the stages before
            again |= set(STAGES[: STAGES.index(s)])
    wanted = set(STAGES[: STAGES.index(stage)])
    assert again >= wanted, (
        f"{stage}.py --fresh=all started {started}: "
        f"{', '.join(sorted(wanted - again))} would not be made again"
    )


def test_the_time_of_a_stage_is_its_own(copy, monkeypatch):
    clock = [0.0]
    os.rename(copy / "sft.pt", copy / "aside")

    def make(stage, config, *flags):  # SFT takes a thousand seconds
        clock[0] += 1000
        os.rename(copy / "aside", copy / "sft.pt")

    monkeypatch.setattr(plumbing_run, "run_stage", make)
    monkeypatch.setattr(plumbing_run.time, "time", lambda: clock[0])
    config = parse(ppo.Config, ppo.__doc__, ppo.SMOKE, ["--size=smoke", f"--out={copy}"])
    run = open_run("reward", config, ["sft"])
    clock[0] += 5
    assert run.seconds() == 5, (
        "the seconds of the stages that it started are counted in its own as well"
    )


def test_abilities_are_measured_by_their_greedy_answers(little, vocab, monkeypatch):
    sums = {"ability": "sums", "text": "1 plus 1 is", "answers": [" 2"], "chance": 0.1}
    names = {"ability": "names", "text": "My name is", "answers": [" Bo", " Bob"], "chance": 0.5}
    rows = [sums, sums, sums, names]
    said = iter([" 2.", " 22", " 2 apples", " Bobby"])

    def generate(model, prompts, n, temperature):
        return [vocab.encoding.encode(next(said)) for _ in prompts]

    monkeypatch.setattr(sampling, "generate", generate)
    found = pretrain.measure_abilities(None, vocab, rows)
    assert found == {"sums": (2 / 3, pytest.approx(0.1), 3), "names": (0.0, 0.5, 1)}, (
        "an answer is right if it is one of the accepted ones as a whole word"
    )
    measured = load(str(little[1] / "pretrain.pt"))["results"]["abilities"]
    assert set(measured) == {"facts", "copying a name", "reading", "sums", "lists"}


# ---- from somebody else's weights ----


@pytest.fixture
def foreign(vocab, tmp_path):
    """A network in Hugging Face's layout, without the data's four special tokens. → folder"""
    GPT(GPTConfig(96, vocab.size - 4, 1, 2, 16)).save_pretrained(str(tmp_path / "foreign"))
    return tmp_path / "foreign"


def test_stages_start_from_weights_in_hugging_faces_layout(little, foreign, tmp_path):
    data, out = little[0], tmp_path / "out"
    for stage in STAGES[1:]:
        run_little(stage, data, out, f"--base={foreign}", "--max_new_tokens=20")
    theirs = GPT.from_pretrained(str(foreign))
    ours = model_from(load(str(out / "ppo.pt")))
    assert ours.config.n_layer == 1 and ours.config.vocab_size == theirs.config.vocab_size + 4
    assert not (out / "pretrain.pt").exists()
    parents = [load(str(out / f"{stage}.pt"))["parents"]["pretrain"] for stage in ("sft", "ppo")]
    assert parents[0] == parents[1], "each stage draws other rows for the special tokens"
    run_little("pretrain", data, tmp_path / "more", f"--init_from={foreign}", "--lr=1e-9")
    more = model_from(load(str(tmp_path / "more" / "pretrain.pt")))
    assert more.config.block_size == 96
    assert torch.allclose(more.blocks[0].qkv.weight, theirs.blocks[0].qkv.weight, atol=1e-6), (
        "training does not go on from these weights"
    )


def test_weights_of_another_vocabulary_are_refused(little, foreign, tmp_path, monkeypatch):
    GPT(GPTConfig(96, 50257, 1, 2, 16)).save_pretrained(str(foreign))
    for stage, flag in (("sft", "base"), ("pretrain", "init_from")):
        with pytest.raises(UserError, match=f"--{flag}=.*50,257 tokens"):
            run_little(stage, little[0], tmp_path / "out", f"--{flag}={foreign}")
        with pytest.raises(
            UserError, match=f"--{flag}=gpt-2: .*neither a folder nor one of gpt2, gpt2-medium"
        ):
            run_little(stage, little[0], tmp_path / "out", f"--{flag}=gpt-2")


# ---- Ctrl-C, in a process of its own; test_resume.py has all other ways to stop ----


def test_ctrl_c_saves_and_says_how_to_go_on(little, tmp_path):
    data, _ = little
    log = tmp_path / "out" / "pretrain.jsonl"
    run = subprocess.Popen(
        [
            sys.executable,
            os.path.join(ROOT, "pretrain.py"),
            "--size=smoke",
            "--device=cpu",
            "--steps=100000",
            f"--data={data}",
            f"--out={tmp_path / 'out'}",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while run.poll() is None and len(read_log(log)) < 3:
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130, err
    assert "the same command goes on from step" in err and "Traceback" not in err, err
    content = load(str(tmp_path / "out" / "pretrain.resume.pt"))
    assert content["step"] == len(read_log(log)) >= 3, (
        "the state and the log are not of the same step"
    )


def test_every_token_of_the_demonstrations_weighs_the_same(little, tmp_path, monkeypatch):
    data, before = little
    out, grads = parents_only("sft", before, tmp_path / "out"), []

    def instead(model, optimizer, lr):
        grads.append({name: p.grad.clone() for name, p in model.named_parameters()})
        optimizer.zero_grad(set_to_none=True)
        return 0.0

    # no step is made, so that all batches see the same weights
    monkeypatch.setattr(sft, "update", instead)
    flags = [
        "--demonstrations=64",
        "--batch=8",
        "--epochs=1",
        "--dropout=0",
        "--pretrain_mix=0",
    ]
    run_little("sft", data, out, *flags)
    model, vocab = model_from(load(str(out / "pretrain.pt"))), Vocab(str(data))
    rows = read_jsonl(str(data / "demonstrations.jsonl"), ["prompt", "response"], "train")[:64]
    tokens, mask = sft.collate(sft.encode_demonstrations(rows, vocab), vocab, model)
    sft.sft_loss(model(tokens), tokens, mask).backward()
    assert len(grads) == 8
    for name, p in model.named_parameters():
        mean = torch.stack([g[name] for g in grads]).mean(0)
        assert torch.allclose(mean, p.grad, atol=1e-5), (
            f"{name}: a batch holds answers of similar length, so with a mean over each batch's "
            "own tokens the tokens of short answers would count more"
        )


def test_replies_to_other_prompts_lose_and_each_one_wins_once(little, tmp_path):
    (data, before), others, answers = little, 2, 4
    out = parents_only("reward", before, tmp_path / "out")
    (out / "comparisons.jsonl").unlink()
    run_little(
        "reward",
        data,
        out,
        "--sources=demonstrations",
        f"--others={others}",
        f"--answers={answers}",
    )
    rows = read_jsonl(str(out / "comparisons.jsonl"), ["prompt", "responses"], "train")
    demonstrations = read_jsonl(str(data / "demonstrations.jsonl"), ["prompt", "response"])
    best = {json.dumps(r["prompt"]): r["response"] for r in demonstrations}
    vocab, real = Vocab(str(data)), {r["responses"][0] for r in rows}
    for row in rows:
        assert row["responses"][0] == best[json.dumps(row["prompt"])]
        assert row["ranks"] == [1] + [2] * (len(row["responses"]) - 1)
        assert sum(r in real for r in row["responses"][1:]) >= others - 1, (
            "replies to other prompts are missing; only one to the same prompt is left out"
        )
        prompt = vocab.prompt(row["prompt"])
        assert all(len(prompt + vocab.response(r)) <= 128 for r in row["responses"]), (
            "one answer that does not fit would lose the whole prompt"
        )
    assert sum(len(r["responses"]) == answers for r in rows) > 0.9 * len(rows)
    losers = [x for r in rows for x in r["responses"][1:] if x in real]
    assert len(set(losers)) > 0.9 * len(real), (
        "every reply must also lose somewhere, or its words alone tell that it wins"
    )


# ---- how ppo.py calls its own functions ----


@pytest.fixture
def spied(little, tmp_path, monkeypatch):
    """A function that runs PPO with these flags and records its calls of some functions.

    → {name: [(arguments, result)]}, log, checkpoint
    """
    data, before = little

    def run(*flags):
        names = [
            "kl_rewards",
            "gae",
            "masked_whiten",
            "policy_loss",
            "value_loss",
            "sample_rollout",
            "penalize_missing_eos",
            "ema_update",
            "heldout_metrics",
            "update",
            "adapt_beta",
        ]
        calls = {name: [] for name in [*names, "loss"]}

        def spy(name, function):
            def wrapper(*args):
                result = function(*args)
                calls[name].append((args, result))
                return result

            return wrapper

        with monkeypatch.context() as m:
            for name in names:
                m.setattr(ppo, name, spy(name, getattr(ppo, name)))
            m.setattr(health, "sample_rollout", ppo.sample_rollout)
            m.setattr(Text, "loss", spy("loss", Text.loss))
            out = parents_only("ppo", before, tmp_path / ("out" + "".join(flags).replace("/", "")))
            run_little("ppo", data, out, *flags)
        return calls, log_of(out, "ppo"), load(str(out / "ppo.pt"))

    return run


def test_advantages_returns_and_old_logprobs_are_frozen_and_whitened_once(spied):
    calls, _, _ = spied(
        "--iterations=1",
        "--episodes=8",
        "--minibatches=2",
        "--ppo_epochs=2",
        "--micro_batch_size=2",
    )
    assert len(calls["masked_whiten"]) == 1, (
        "whitening is over the whole rollout, never per minibatch or microbatch"
    )
    assert len(calls["gae"]) == 1, (
        "advantages and returns are computed again inside the epochs, with a critic that moves"
    )
    advantages, returns = calls["gae"][0][1]
    (given, mask), white = calls["masked_whiten"][0]
    assert given is advantages, "not the advantages are whitened, or not the whole batch of them"
    assert torch.allclose(ppo.masked_mean(white, mask), torch.tensor(0.0), atol=1e-5)
    values = calls["gae"][0][0][1]
    assert torch.allclose(returns, torch.where(mask, advantages + values, 0.0)), (
        "returns were computed from whitened advantages"
    )

    assert len(calls["policy_loss"]) == len(calls["value_loss"]) == 2 * 4, (
        "two epochs of two minibatches of two microbatches"
    )
    old = calls["kl_rewards"][0][0][1]
    frozen = {
        "old log-probabilities": (old, "policy_loss", 1),
        "advantages": (white, "policy_loss", 2),
        "old values": (values, "value_loss", 1),
        "returns": (returns, "value_loss", 2),
    }
    for what, (whole, name, i) in frozen.items():
        rows = [masked(row, m) for row, m in zip(whole, mask)]
        for args, _ in calls[name]:
            for row, m in zip(args[i], args[3]):
                row = torch.nn.functional.pad(masked(row, m), (0, mask.size(1) - len(row)))
                assert any(torch.equal(row, r) for r in rows), (
                    f"{what} were computed again inside the epochs"
                )
                assert not args[i].requires_grad, f"a gradient flows into {what}"


def rollouts_of(calls):
    """The rollout of each iteration."""
    # evaluation samples too, but from another network
    policy = calls["sample_rollout"][0][0][0]
    return [result for args, result in calls["sample_rollout"] if args[0] is policy]


def test_first_minibatch_has_ratio_one(spied, monkeypatch):
    checked = []
    monkeypatch.setattr(ppo, "check_ratio", lambda largest, dtype: checked.append(largest))
    calls, _, _ = spied(
        "--iterations=1",
        "--episodes=8",
        "--minibatches=2",
        "--micro_batch_size=2",
        "--temperature=0.7",
    )
    for new, old, _, mask, _ in [args for args, _ in calls["policy_loss"]][:2]:
        worst = masked(new - old, mask).abs().max().item()
        assert worst < 1e-5, (
            f"nothing was updated, and the log ratio reaches {worst:.2g}: "
            "dropout is on, or padding, mask or temperature differ"
        )
    assert len(checked) == 1 and checked[0] < 1e-4, (
        "ppo.py does not check that the first minibatch has ratio 1"
    )


def test_every_answer_is_scored_at_its_own_end_by_a_model_that_stays(spied, little):
    calls, _, _ = spied()
    reward_model = model_from(load(str(little[1] / "reward.pt")))
    results = load(str(little[1] / "reward.pt"))["results"]
    assert len(calls["penalize_missing_eos"]) == len(calls["kl_rewards"]), (
        "the rule on a missing EOS is not applied"
    )
    for rollout, ((given, *_), _), ((scores, *_), _) in zip(
        rollouts_of(calls), calls["penalize_missing_eos"], calls["kl_rewards"], strict=True
    ):
        rows = zip(rollout.tokens, rollout.lengths)
        with torch.no_grad():
            alone = torch.stack([reward_model(row[None, :n])[0, -1] for row, n in rows])
        assert torch.allclose(given, alone, atol=1e-5), (
            "the reward model is not read at an answer's last token, or it changes during PPO"
        )
        ruled = [
            min(s, results["score_mean"] - results["score_std"]) if not e else s
            for s, e in zip(alone.tolist(), rollout.has_eos.tolist())
        ]
        assert torch.allclose(scores, torch.tensor(ruled), atol=1e-5), (
            "an answer without EOS must score at most one standard deviation below the mean"
        )


def test_the_reference_stays_what_sft_made(spied, little):
    calls, _, _ = spied("--temperature=0.7")
    reference = model_from(load(str(little[1] / "sft.pt")))
    for rollout, ((_, old, ref, _, _), _) in zip(
        rollouts_of(calls), calls["kl_rewards"], strict=True
    ):
        tokens, mask = rollout.tokens, rollout.mask
        with torch.no_grad():
            expected = ppo.token_logprobs(reference(tokens), tokens, 0.7)
        assert torch.allclose(masked(ref, mask), masked(expected, mask), atol=1e-4), (
            "the reference moves, or is read at another temperature than the policy"
        )
    assert masked(old - ref, mask).abs().max() > 1e-3, "this test needs a policy that has moved"


def test_no_network_is_in_train_mode_during_ppo(spied, monkeypatch):
    hidden = Trunk.hidden

    def watched(network, *args, **more):
        assert not network.training, f"dropout would be on in a {type(network).__name__} of PPO"
        return hidden(network, *args, **more)

    monkeypatch.setattr(Trunk, "hidden", watched)
    spied("--iterations=2")


def test_rollouts_use_the_raw_weights_and_evaluation_their_average(spied):
    calls, _, done = spied()
    policy, (average, raw, _) = calls["sample_rollout"][0][0][0], calls["ema_update"][-1][0]
    assert raw is policy and average is not policy and len(calls["ema_update"]) == 3 * 2 * 2, (
        "the average follows the policy at every optimiser step"
    )
    of_policy = [args[0] is policy for args, _ in calls["sample_rollout"]]
    assert of_policy == [True, True, False, True, False], (
        "iterations sample from the policy, evaluation from the average"
    )
    evaluated = [args[0] for args, _ in calls["heldout_metrics"]]
    evaluated += [args[1] for args, _ in calls["loss"]]
    assert len(evaluated) == 4
    assert all(network is average for network in evaluated), (
        "the network that is evaluated is not the one that is saved"
    )
    assert equal(done["model"], dict(average.state_dict())), "ppo.pt must hold the average"
    assert not equal(done["model"], dict(policy.state_dict())), "ppo.pt must hold the average"


def test_gamma_multiplies_the_pretraining_gradient_and_nothing_else(spied, monkeypatch):
    step, gradients = ppo.update, []

    def watched(network, *args):
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in network.parameters()]
        gradients.append(torch.cat([g.flatten() for g in grads]).double())
        return step(network, *args)

    monkeypatch.setattr(ppo, "update", watched)
    first = {}
    for gamma in (0, 1, 3):
        gradients.clear()
        spied("--iterations=1", f"--ptx_coef={gamma}")
        first[gamma] = gradients[0]
    text = first[1] - first[0]
    assert text.norm() > 0.01, "the pretraining gradient does not come into PPO's step"
    assert (first[3] - first[0] - 3 * text).abs().max() < 1e-5, (
        "gradient(ppo + γ lm) must be gradient(ppo) + γ gradient(lm)"
    )


def test_a_steep_critic_does_not_slow_the_policy(spied, monkeypatch):
    _, _, plain = spied("--iterations=1", "--ppo_epochs=1")
    loss = ppo.value_loss
    monkeypatch.setattr(ppo, "value_loss", lambda *args: 1000 * loss(*args))
    _, _, steep = spied("--iterations=1", "--ppo_epochs=1", "--micro_batch_size=0")
    assert equal(plain["model"], steep["model"]), (
        "gradients are clipped by one norm over both networks: each has its own"
    )


def test_what_is_looked_at_on_the_way_is_not_in_the_final_table(little, whole, spied, monkeypatch):
    data, out = little
    compared = [
        r["prompt"] for r in read_jsonl(str(out / "comparisons.jsonl"), ["prompt"], "heldout")
    ]
    calls, _, _ = spied("--iterations=2")
    curves = [r["prompt"] for r in calls["heldout_metrics"][0][0][1]]
    vocab, final = Vocab(str(data)), []

    def first(model, prompts, *args):
        final.extend(prompts)
        raise InterruptedError

    monkeypatch.setattr(evaluate, "sample_responses", first)
    with pytest.raises(InterruptedError):
        run_main("evaluate", "--size=smoke", "--device=cpu", f"--data={data}", f"--out={whole}")
    looked = [vocab.prompt(p) for p in compared + curves]
    assert compared and curves and final and not [p for p in looked if p in final], (
        "settings would be chosen on the prompts that prove them"
    )


def test_logged_kl_and_reward_follow_their_formulas(spied):
    calls, log, _ = spied()
    adds_up(log)
    for (args, rewards), line in zip(calls["kl_rewards"], log, strict=True):
        scores, logprobs, ref, mask, beta = args
        k1 = torch.where(mask, logprobs - ref, 0.0).double()
        k3 = (-k1).exp() - 1 + k1
        assert abs(line["objective/kl"] - k1.sum(1).mean()) < 1e-5, (
            "k1 = log π − log π_ref: summed over tokens, mean over answers"
        )
        assert abs(line["objective/kl_k3"] - k3.sum(1).mean()) < 1e-5, (
            "k3 = exp(−k1) − 1 + k1; with the other sign it is not an estimate of this KL"
        )
        assert (
            abs(line["objective/scores"] - scores.mean()) < 1e-6 and line["objective/beta"] == beta
        )
        assert abs(line["objective/rlhf_reward"] - rewards.sum(1).mean()) < 1e-5
        entropy = -torch.where(mask, logprobs, 0.0).sum(1).mean()
        assert abs(line["objective/entropy"] - entropy) < 1e-3
    assert [args[1] for args, _ in calls["adapt_beta"]] == [line["objective/kl"] for line in log], (
        "the controller is given something else than k1"
    )
    for line, after in zip(log, log[1:]):
        assert after["objective/beta"] == ppo.adapt_beta(
            line["objective/beta"], line["objective/kl"], 0.001, 8
        ), "the controller sees the KL of this iteration, and acts on the next"


def test_microbatches_change_nothing(spied):
    flags = [
        "--iterations=1",
        "--episodes=8",
        "--minibatches=1",
        "--ppo_epochs=1",
        "--ptx_ratio=0.6",
    ]
    one, two = (spied(*flags, f"--micro_batch_size={n}") for n in (0, 3))
    for name in one[2]["model"]:
        assert torch.allclose(one[2]["model"][name], two[2]["model"][name], atol=1e-6), (
            f"{name} depends on how a minibatch is split"
        )
    for key, value in one[1][0].items():
        if key.startswith(("loss/", "policy/", "val/", "objective/")):
            assert abs(value - two[1][0][key]) < 1e-4, f"{key} depends on how a minibatch is split"
    for whose, (_, a), (_, b) in zip(
        ("policy", "critic"), one[0]["update"], two[0]["update"], strict=True
    ):
        assert abs(a - b) < 1e-4 * a, f"the {whose}'s gradient depends on how a minibatch is split"


def test_gamma_zero_leaves_pretraining_text_out(spied, monkeypatch):
    monkeypatch.setattr(
        ppo,
        "lm_backward",
        lambda *a: pytest.fail("γ = 0 is plain PPO, which needs no pretraining batch"),
    )
    _, log, _ = spied("--iterations=1", "--ptx_coef=0")
    assert log[0]["loss/ptx_avg"] == 0


def test_an_answer_that_fills_the_block_is_scored(spied, monkeypatch, vocab):
    prompt = "Name three animals."
    for reader in ("rollout.read_jsonl", "rollout.read_heldout", "plumbing.inputs.read_jsonl"):
        rows = [{"prompt": prompt}]
        monkeypatch.setattr(reader, lambda path, fields, split=None, final=False: rows)
    _, log, _ = spied(
        "--iterations=1", "--episodes=16", f"--max_new_tokens={128 - len(vocab.prompt(prompt))}"
    )
    assert log[0]["response/eos_fraction"] < 1, (
        "this test needs an answer that runs to the end of the block"
    )


def test_a_held_out_comparison_that_does_not_fit_the_block_stops_no_reward_model(
    little, whole, tmp_path, capsys
):
    data, path = little[0], little[0] / "comparisons.jsonl"
    responses = ["Here.", "There " * 200]
    rows = [{"prompt": "Where is the hen?", "responses": responses, "split": "heldout"}]
    for a in range(8):
        row = {"prompt": f"Add {a} and 1.", "responses": [f"{a + 1}.", "No."], "eos": [True, False]}
        rows += [{**row, "split": split} for split in ("train", "heldout")]
    path.write_text("".join(json.dumps({**r, "ranks": [1, 2]}) + "\n" for r in rows))
    out = parents_only("reward", whole, tmp_path / "out")
    try:
        run_little("reward", data, out, "--sources=file")
    finally:
        path.unlink()
    said = capsys.readouterr().out
    assert "Add 0 and 1." in said and "No. …" in said and "There" not in said, (
        "samples are printed as they were scored: the one that was cut off has no end of text"
    )

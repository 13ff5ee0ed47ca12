"""
The whole recipe: one run of `python ppo.py --size=smoke`, as a reader would start it, and what its files must hold.

The tests of stopping and going on run the stages in this process, on a data folder of a few hundred lines that is
written here by hand, as anybody could write their own.
"""
import contextlib
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

import common
import evaluate
import ppo
import pretrain
import sft
from conftest import ROOT, STAGES, equal, log_of, parents_only, run_little, run_main
from data import UserError, read_heldout, read_jsonl
from model import GPT, GPTConfig, Trunk


@pytest.fixture(scope="session")
def smoke(smoke_run):
    """The folder of a finished smoke run. Nobody may change it; `copy` is for that."""
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
        checkpoint = common.load(str(smoke / f"{stage}.pt"))
        assert checkpoint["stage"] == stage and checkpoint["config"]["size"] == "smoke"
        assert not (smoke / f"{stage}.resume.pt").exists(), "the unfinished state of a finished stage is left behind"
        for parent, was in checkpoint["parents"].items():
            assert common.load(str(smoke / f"{parent}.pt"))["hash"] == was, f"{stage}.pt does not say which {parent}.pt it came from"
    assert common.load(str(smoke / "ppo.pt"))["parents"].keys() == {"pretrain", "sft", "reward"}
    assert not list(smoke.glob("*.tmp")), "temporary files are left behind"


def test_summary_has_all_numbers_of_all_stages(smoke):
    summary = json.loads((smoke / "summary.json").read_text())
    assert summary["seed"] == 1337 and set(summary["seconds"]) >= set(STAGES)
    for name in ("base", "sft", "ppo"):
        row = summary[name]
        for key in ("gold", "helpful", "honest", "harmless", "win_vs_sft", "kl", "length", "eos_fraction", "pretrain_loss"):
            assert math.isfinite(row[key]), f"{name} has no {key}"
            assert row["ci"][key] >= 0, f"the interval of {name}'s {key} is missing"
        for key in ("gold", "helpful", "honest", "harmless", "win_vs_sft", "eos_fraction"):
            assert 0 <= row[key] <= 1
    assert summary["sft"]["win_vs_sft"] == 0.5 and summary["sft"]["kl"] == 0, "a model can't be better than itself, or far from itself"
    assert (smoke / "curves.png").stat().st_size > 10_000, "no curves were drawn"


def test_every_logged_line_is_consistent(smoke):
    lines = log_of(smoke, "ppo")
    assert [x["step"] for x in lines] == list(range(len(lines))) and len(lines) > 1
    adds_up(lines)
    assert lines[0]["objective/kl"] == 0, "before the first update policy and reference are the same network"
    assert lines[-1]["objective/kl_k3"] > 0, "the reference has moved along with the policy, or the policy has not moved"
    assert lines[-1]["episode"] == 16 * len(lines)


def adds_up(lines):
    for x in lines:
        total = x["objective/scores"] - x["objective/beta"] * x["objective/kl"]
        assert abs(x["objective/rlhf_reward"] - total) < 1e-4, "mean score − β KL must be the mean total reward"
        assert abs(x["objective/non_score_reward"] + x["objective/beta"] * x["objective/kl"]) < 1e-6
        assert x["objective/entropy"] >= 0 and x["objective/kl_k3"] >= 0, "neither can be negative"
        assert 0 <= x["policy/clipfrac_avg"] <= 1 and 0 <= x["val/clipfrac_avg"] <= 1 and 0 <= x["response/eos_fraction"] <= 1
        assert x["loss/ptx_avg"] > 0, "ptx is on by default, its loss can't be 0"


def test_training_moved_what_it_should_and_nothing_else(smoke):
    models = {s: common.load(str(smoke / f"{s}.pt"))["model"] for s in STAGES}
    for a, b in (("pretrain", "sft"), ("sft", "ppo"), ("sft", "reward")):
        name = "blocks.0.qkv.weight"
        assert not torch.equal(models[a][name], models[b][name]), f"{b} is {a}: nothing was learnt"
    assert models["reward"]["head.weight"].abs().max() > 0 and "head.weight" not in models["ppo"]


def test_a_finished_stage_run_again_says_so_and_changes_nothing(smoke, capsys, monkeypatch):
    monkeypatch.setattr(ppo, "become", lambda *a: None)      # the table at the end is made above
    before = {f.name: f.read_bytes() for f in smoke.glob("*.pt")}
    for stage in STAGES:
        run_main(stage, "--size=smoke", f"--out={smoke}")
        assert f"{stage}.pt is finished" in capsys.readouterr().out
    assert {f.name: f.read_bytes() for f in smoke.glob("*.pt")} == before


def test_greedy_answers_can_be_evaluated(copy):
    run_main("evaluate", "--size=smoke", "--device=cpu", "--temperature=0", "--prompts=10", "--stages=sft", f"--out={copy}")
    assert "NaN" not in (copy / "summary.json").read_text(), "log-probabilities at temperature 0 were asked for: the KL is 0 / 0"


def test_the_final_table_has_no_prompt_that_was_looked_at_before(smoke):
    # settings are chosen by looking at curves and accuracies; what they are chosen on can't also be their proof
    path = os.path.join(ROOT, "data", "village", "prompts.jsonl")
    rows = [r for r in read_jsonl(path, ["prompt"], "heldout") if not r.get("unseen")]
    early, final = ([json.dumps(r["prompt"]) for r in read_heldout(path, ["prompt"], final)] for final in (False, True))
    assert len(early) + len(final) == len(rows) and not set(early) & set(final), "some prompts are in both halves"
    assert len(early) >= 900 and len(final) >= 1000
    compared = {json.dumps(r["prompt"]) for r in read_jsonl(str(smoke / "comparisons.jsonl"), ["prompt"], "heldout")}
    assert compared <= set(early), "the reward model's held-out accuracy is measured on prompts of the final table"


# ---- checkpoints that don't fit ----

def refused(out, stage="ppo", parents=("pretrain", "sft", "reward"), flags=()):
    """What a stage says to the files in `out` when it starts."""
    module = importlib.import_module(stage)
    config = common.parse(module.Config, module.__doc__, module.SMOKE, ["--size=smoke", f"--out={out}", *flags])
    with pytest.raises(UserError) as e:
        common.Run(stage, config, parents).finished()
        pytest.fail("it started, with a checkpoint that does not fit")
    return str(e.value)


@pytest.mark.parametrize("flag", ["--seed=7", "--size=tiny", "--data=chitchat"])
def test_a_checkpoint_of_another_run_is_refused(smoke, flag, monkeypatch, village):
    monkeypatch.setattr(common, "folder_of", lambda name: village)      # no other data set has to be prepared for this
    said = refused(smoke, flags=[flag])
    assert flag.split("=")[0] in said and "--fresh" in said, said


def test_a_checkpoint_of_another_vocabulary_is_refused(copy):
    content = common.load(str(copy / "sft.pt"))
    common.save(str(copy / "sft.pt"), {**content, "vocab": "0123456789abcdef"})
    assert "sft.pt" in refused(copy)


def change_sft(out):
    """As if SFT had been run again with other settings."""
    content = common.load(str(out / "sft.pt"))
    content["model"]["ln_f.weight"] += 0.01
    common.save(str(out / "sft.pt"), {**content, "hash": common.digest(content["model"])})


def test_a_finished_stage_whose_parent_has_changed_is_refused(copy):
    change_sft(copy)
    said = refused(copy, "reward", ["sft"])
    assert "reward.pt" in said and "another sft" in said and "--fresh" in said, said


def test_a_reward_model_of_another_sft_is_refused_by_ppo(copy):
    change_sft(copy)
    os.remove(copy / "ppo.pt")      # PPO has not been run yet, and would start from sft.pt and the older reward.pt
    said = refused(copy)
    assert "reward.pt" in said and "another sft" in said, said


def test_a_checkpoint_that_is_cut_off_is_refused(copy):
    whole = (copy / "reward.pt").read_bytes()
    (copy / "reward.pt").write_bytes(whole[:len(whole) // 2])
    said = refused(copy)
    assert "reward.pt" in said and "cut off" in said, said


@pytest.mark.parametrize("stage, parents", [("sft", ["pretrain"]), ("reward", ["sft"]), ("ppo", ["pretrain", "sft", "reward"])])
def test_fresh_all_makes_everything_again(copy, monkeypatch, stage, parents):
    started = []        # (stage, what its --fresh says)

    def call(command, **more):
        fresh = [flag for flag in command if flag.startswith("--fresh")]
        started.append((os.path.basename(command[1])[:-3], fresh[0] if fresh else ""))
        return 0
    monkeypatch.setattr(common.subprocess, "call", call)
    config = common.parse(ppo.Config, ppo.__doc__, ppo.SMOKE, ["--size=smoke", f"--out={copy}", "--fresh=all"])
    common.Run(stage, config, parents)
    again = {s for s, fresh in started if fresh}
    for s, fresh in started:
        again |= set(STAGES[:STAGES.index(s)]) if fresh == "--fresh=all" else set()     # hands it on to those before
    wanted = set(STAGES[:STAGES.index(stage)])
    assert again >= wanted, f"{stage}.py --fresh=all started {started}: {', '.join(sorted(wanted - again))} would not be made again"


def test_the_time_of_a_stage_is_its_own(copy, monkeypatch):
    clock = [0.0]
    os.rename(copy / "sft.pt", copy / "aside")

    def make(stage, config, *flags):        # SFT takes a thousand seconds
        clock[0] += 1000
        os.rename(copy / "aside", copy / "sft.pt")
    monkeypatch.setattr(common, "run_stage", make)
    monkeypatch.setattr(common.time, "time", lambda: clock[0])
    config = common.parse(ppo.Config, ppo.__doc__, ppo.SMOKE, ["--size=smoke", f"--out={copy}"])
    run = common.Run("reward", config, ["sft"])
    clock[0] += 5
    assert run.seconds() == 5, "the seconds of the stages that it started are counted twice, in theirs and in its own"


def test_abilities_are_measured_by_their_greedy_answers(little, vocab, monkeypatch):
    rows = [{"ability": "sums", "text": "1 plus 1 is", "answers": [" 2"], "chance": 0.1}] * 3 + [{"ability": "names", "text": "I am Bo. My name is", "answers": [" Bo", " Bob"], "chance": 0.5}]
    said = iter([" 2.", " 22", " 2 apples", " Bobby"])
    monkeypatch.setattr(GPT, "generate", lambda model, prompts, n, temperature: [vocab.encoding.encode(next(said)) for _ in prompts])
    found = pretrain.measure_abilities(GPT(GPTConfig(96, vocab.size, 1, 1, 8)), vocab, rows, contextlib.nullcontext())
    assert found == {"sums": (2 / 3, pytest.approx(0.1), 3), "names": (0.0, 0.5, 1)}, "an answer is right if it is one of the accepted ones as a whole word"
    assert set(common.load(str(little[1] / "pretrain.pt"))["results"]["abilities"]) == {"facts", "copying a name", "reading", "sums", "lists"}


# ---- from somebody else's weights ----

@pytest.fixture
def foreign(vocab, tmp_path):
    """A folder in Hugging Face's layout with a network that lacks the data's four special tokens."""
    GPT(GPTConfig(96, vocab.size - 4, 1, 2, 16)).save_pretrained(str(tmp_path / "foreign"))
    return tmp_path / "foreign"


def test_stages_start_from_weights_in_hugging_faces_layout(little, foreign, tmp_path):
    data, out = little[0], tmp_path / "out"
    for stage in STAGES[1:]:
        run_little(stage, data, out, f"--base={foreign}", "--max_new_tokens=20")
    theirs, ours = GPT.from_pretrained(str(foreign)), common.model_from(common.load(str(out / "ppo.pt")))
    assert ours.config.n_layer == 1 and ours.config.vocab_size == theirs.config.vocab_size + 4 and not (out / "pretrain.pt").exists()
    parents = [common.load(str(out / f"{stage}.pt"))["parents"]["pretrain"] for stage in ("sft", "ppo")]
    assert parents[0] == parents[1], "each stage draws other rows for the special tokens"
    run_little("pretrain", data, tmp_path / "more", f"--init_from={foreign}", "--lr=1e-9")
    more = common.model_from(common.load(str(tmp_path / "more" / "pretrain.pt")))
    assert torch.allclose(more.blocks[0].qkv.weight, theirs.blocks[0].qkv.weight, atol=1e-6) and more.config.block_size == 96, "training does not go on from these weights"


def test_weights_of_another_vocabulary_are_refused(little, foreign, tmp_path, monkeypatch):
    GPT(GPTConfig(96, 50257, 1, 2, 16)).save_pretrained(str(foreign))
    for stage, flag in (("sft", "base"), ("pretrain", "init_from")):
        with pytest.raises(UserError, match=f"--{flag}=.*50,257 tokens"):
            run_little(stage, little[0], tmp_path / "out", f"--{flag}={foreign}")
        with pytest.raises(UserError, match=f"--{flag}=gpt-2: .*neither a folder nor one of gpt2, gpt2-medium"):
            run_little(stage, little[0], tmp_path / "out", f"--{flag}=gpt-2")


# ---- Ctrl-C, in a process of its own; the rest of stopping and going on is in test_resume.py ----

def test_ctrl_c_saves_and_says_how_to_go_on(little, tmp_path):
    data, _ = little
    log = tmp_path / "out" / "pretrain.jsonl"
    run = subprocess.Popen([sys.executable, os.path.join(ROOT, "pretrain.py"), "--size=smoke", "--device=cpu", "--steps=100000",
                            f"--data={data}", f"--out={tmp_path / 'out'}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while run.poll() is None and len(common.read_log(log)) < 3:
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130, err
    assert "the same command goes on from step" in err and "Traceback" not in err, err
    content = common.load(str(tmp_path / "out" / "pretrain.resume.pt"))
    assert content["step"] == len(common.read_log(log)) >= 3, "the state and the log are not of the same step"


def test_every_token_of_the_demonstrations_weighs_the_same(little, tmp_path, monkeypatch):
    data, before = little
    out, grads = parents_only("sft", before, tmp_path / "out"), []

    def instead(model, optimizer, lr):
        grads.append({name: p.grad.clone() for name, p in model.named_parameters()})
        optimizer.zero_grad(set_to_none=True)
        return 0.0
    monkeypatch.setattr(sft, "update", instead)         # no step is made, so that all batches see the same weights
    run_little("sft", data, out, "--demonstrations=64", "--batch=8", "--epochs=1", "--dropout=0", "--pretrain_mix=0")
    model, vocab = common.model_from(common.load(str(out / "pretrain.pt"))), common.Vocab(str(data))
    rows = read_jsonl(str(data / "demonstrations.jsonl"), ["prompt", "response"], "train")[:64]
    tokens, mask = sft.batch_of(sft.encode_demonstrations(rows, vocab, 128, ""), vocab, "cpu")
    sft.sft_loss(model(tokens), tokens, mask).backward()
    assert len(grads) == 8
    for name, p in model.named_parameters():
        mean = torch.stack([g[name] for g in grads]).mean(0)
        assert torch.allclose(mean, p.grad, atol=1e-5), f"{name}: batches hold answers of like length, so a mean over each batch's own tokens makes short answers count several times"


def test_replies_to_other_prompts_lose_and_each_one_wins_once(little, tmp_path):
    (data, before), others, answers = little, 2, 4
    out = parents_only("reward", before, tmp_path / "out")
    (out / "comparisons.jsonl").unlink()
    run_little("reward", data, out, "--sources=demonstrations", f"--others={others}", f"--answers={answers}")
    rows = [r for r in read_jsonl(str(out / "comparisons.jsonl"), ["prompt", "responses"]) if r["split"] == "train"]
    best, vocab = {json.dumps(r["prompt"]): r["response"] for r in read_jsonl(str(data / "demonstrations.jsonl"), ["prompt", "response"])}, common.Vocab(str(data))
    real = {r["responses"][0] for r in rows}
    for row in rows:
        assert row["responses"][0] == best[json.dumps(row["prompt"])] and row["ranks"] == [1] + [2] * (len(row["responses"]) - 1)
        assert sum(r in real for r in row["responses"][1:]) >= others - 1, "a prompt that is asked twice lends no answer to itself; no other is missing"
        assert all(len(vocab.prompt(row["prompt"])) + len(vocab.response(r)) <= 128 for r in row["responses"]), "one that does not fit would lose the whole prompt"
    assert sum(len(r["responses"]) == answers for r in rows) > 0.9 * len(rows)
    losers = [x for r in rows for x in r["responses"][1:] if x in real]
    assert len(set(losers)) > 0.9 * len(real), "all replies come up as losers, or what they say alone would tell who wins"


# ---- what ppo.py does with its own functions: looking over its shoulder ----

@pytest.fixture
def spied(little, tmp_path, monkeypatch):
    """Run PPO with flags, recording all calls of these functions → {name: [(arguments, result)]}, log, checkpoint."""
    data, before = little

    def run(*flags):
        names = ["kl_rewards", "gae", "masked_whiten", "policy_loss", "value_loss", "rollout", "eos_rule", "ema_update", "heldout_metrics", "text_loss", "update", "adapt_beta"]
        calls = {name: [] for name in names}

        def spy(name, function):
            def wrapper(*args):
                result = function(*args)
                calls[name].append((args, result))
                return result
            return wrapper
        with monkeypatch.context() as m:
            for name in calls:
                m.setattr(ppo, name, spy(name, getattr(ppo, name)))
            out = parents_only("ppo", before, tmp_path / ("out" + "".join(flags).replace("/", "")))
            run_little("ppo", data, out, *flags)
        return calls, log_of(out, "ppo"), common.load(str(out / "ppo.pt"))
    return run


def test_advantages_returns_and_old_logprobs_are_frozen_and_whitened_once(spied):
    calls, _, _ = spied("--iterations=1", "--episodes=8", "--minibatches=2", "--epochs=2", "--micro=2")
    assert len(calls["masked_whiten"]) == 1, "whitening is over the whole rollout, never per minibatch or microbatch"
    assert len(calls["gae"]) == 1, "advantages and returns are computed again inside the epochs, with a critic that moves"
    advantages, returns = calls["gae"][0][1]
    (given, mask), white = calls["masked_whiten"][0]
    assert given is advantages, "not the advantages are whitened, or not the whole batch of them"
    assert torch.allclose(ppo.masked_mean(white, mask), torch.tensor(0.0), atol=1e-5)
    values = calls["gae"][0][0][1]
    assert torch.allclose(returns, torch.where(mask, advantages + values, 0.0)), "returns were computed from whitened advantages"

    assert len(calls["policy_loss"]) == len(calls["value_loss"]) == 2 * 4, "two epochs of two minibatches of two microbatches"
    old = calls["kl_rewards"][0][0][1]
    frozen = {"old log-probabilities": (old, "policy_loss", 1), "advantages": (white, "policy_loss", 2), "old values": (values, "value_loss", 1), "returns": (returns, "value_loss", 2)}
    for what, (whole, name, i) in frozen.items():
        rows = [ppo.shown(row, m) for row, m in zip(whole, mask)]
        for args, _ in calls[name]:
            for row, m in zip(args[i], args[3]):
                row = torch.nn.functional.pad(ppo.shown(row, m), (0, mask.size(1) - len(row)))
                assert any(torch.equal(row, r) for r in rows), f"{what} were computed again inside the epochs"
                assert not args[i].requires_grad, f"a gradient flows into {what}"


def rollouts_of(calls):
    """What each iteration's rollout returned: (tokens, mask, lengths, has_eos). Evaluation samples too, from another network."""
    policy = calls["rollout"][0][0][0]
    return [result for args, result in calls["rollout"] if args[0] is policy]


def test_first_minibatch_has_ratio_one(spied, monkeypatch):
    checked = []
    monkeypatch.setattr(ppo, "check_ratio", lambda ratio, dtype: checked.append(ratio))
    calls, _, _ = spied("--iterations=1", "--episodes=8", "--minibatches=2", "--micro=2", "--temperature=0.7")
    for new, old, _, mask, _ in [args for args, _ in calls["policy_loss"]][:2]:
        worst = ppo.shown(new - old, mask).abs().max().item()
        assert worst < 1e-5, f"nothing was updated, and the log ratio reaches {worst:.2g}: dropout is on, or padding, mask or temperature differ"
    assert len(checked) == 2 and all((r - 1).abs().max() < 1e-4 for r in checked), "ppo.py does not hold the first minibatch against ratio 1"


def test_every_answer_is_scored_at_its_own_end_by_a_model_that_stays(spied, little):
    calls, _, _ = spied()
    reward_model = common.model_from(common.load(str(little[1] / "reward.pt")))
    results = common.load(str(little[1] / "reward.pt"))["results"]
    assert len(calls["eos_rule"]) == len(calls["kl_rewards"]), "the rule on a missing EOS is not applied"
    for (tokens, _, lengths, has_eos), ((given, *_), _), ((scores, *_), _) in zip(rollouts_of(calls), calls["eos_rule"], calls["kl_rewards"], strict=True):
        with torch.no_grad():
            alone = torch.stack([reward_model(row[None, :n])[0, -1] for row, n in zip(tokens, lengths)])
        assert torch.allclose(given, alone, atol=1e-5), "the reward model is read at another token than an answer's last, or changes while PPO runs"
        ruled = [min(s, results["score_mean"] - results["score_std"]) if not e else s for s, e in zip(alone.tolist(), has_eos.tolist())]
        assert torch.allclose(scores, torch.tensor(ruled), atol=1e-5), "an answer without EOS must score at most one standard deviation below the mean"


def test_the_reference_stays_what_sft_made(spied, little):
    calls, _, _ = spied("--temperature=0.7")
    reference = common.model_from(common.load(str(little[1] / "sft.pt")))
    for (tokens, mask, _, _), ((_, old, ref, _, _), _) in zip(rollouts_of(calls), calls["kl_rewards"], strict=True):
        with torch.no_grad():
            expected = ppo.token_logprobs(reference(tokens), tokens, 0.7)
        assert torch.allclose(ppo.shown(ref, mask), ppo.shown(expected, mask), atol=1e-4), "the reference moves, or is read at another temperature than the policy"
    assert ppo.shown(old - ref, mask).abs().max() > 1e-3, "this test needs a policy that has moved"


def test_no_network_is_in_train_mode_during_ppo(spied, monkeypatch):
    hidden = Trunk.hidden

    def watched(network, *args, **more):
        assert not network.training, f"dropout would be on in a {type(network).__name__} that samples, scores or is updated"
        return hidden(network, *args, **more)
    monkeypatch.setattr(Trunk, "hidden", watched)
    spied("--iterations=2")


def test_rollouts_use_the_raw_weights_and_evaluation_their_average(spied):
    calls, _, done = spied()
    policy, (average, raw, _) = calls["rollout"][0][0][0], calls["ema_update"][-1][0]
    assert raw is policy and average is not policy and len(calls["ema_update"]) == 3 * 2 * 2, "the average follows the policy at every optimiser step"
    assert [args[0] is policy for args, _ in calls["rollout"]] == [True, True, False, True, False], "iterations sample from the policy, evaluation from the average"
    assert all(args[0] is average for name in ("heldout_metrics", "text_loss") for args, _ in calls[name]), "what is evaluated is not what is kept"
    assert equal(done["model"], dict(average.state_dict())) and not equal(done["model"], dict(policy.state_dict())), "ppo.pt must hold the average"


def test_gamma_multiplies_the_pretraining_gradient_and_nothing_else(spied, monkeypatch):
    step, gradients = ppo.update, []

    def watched(network, *args):
        gradients.append(torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in network.parameters()]).double())
        return step(network, *args)
    monkeypatch.setattr(ppo, "update", watched)
    first = {}
    for gamma in (0, 1, 3):
        gradients.clear()
        spied("--iterations=1", f"--ptx_coef={gamma}")
        first[gamma] = gradients[0]
    text = first[1] - first[0]
    assert text.norm() > 0.01, "the pretraining gradient does not come into PPO's step"
    assert (first[3] - first[0] - 3 * text).abs().max() < 1e-5, "gradient(ppo + γ lm) must be gradient(ppo) + γ gradient(lm)"


def test_a_steep_critic_does_not_slow_the_policy(spied, monkeypatch):
    _, _, plain = spied("--iterations=1", "--epochs=1")
    loss = ppo.value_loss
    monkeypatch.setattr(ppo, "value_loss", lambda *args: 1000 * loss(*args))
    _, _, steep = spied("--iterations=1", "--epochs=1", "--micro=0")
    assert equal(plain["model"], steep["model"]), "gradients are clipped by one norm over both networks: each has its own"


def test_what_is_looked_at_on_the_way_is_not_in_the_final_table(little, whole, spied, monkeypatch):
    data, out = little
    compared = [r["prompt"] for r in read_jsonl(str(out / "comparisons.jsonl"), ["prompt"], "heldout")]
    calls, _, _ = spied("--iterations=2")
    curves = [r["prompt"] for r in calls["heldout_metrics"][0][0][1]]
    vocab, final = common.Vocab(str(data)), []

    def first(model, prompts, *args):
        final.extend(prompts)
        raise InterruptedError
    monkeypatch.setattr(evaluate, "answers_of", first)
    with pytest.raises(InterruptedError):
        run_main("evaluate", "--size=smoke", "--device=cpu", f"--data={data}", f"--out={whole}")
    looked = [vocab.prompt(p) for p in compared + curves]
    assert compared and curves and final and not [p for p in looked if p in final], "settings would be chosen on the prompts that prove them"


def test_logged_kl_and_reward_follow_their_formulas(spied):
    calls, log, _ = spied()
    adds_up(log)
    for (args, rewards), line in zip(calls["kl_rewards"], log, strict=True):
        scores, logprobs, ref, mask, beta = args
        k1 = torch.where(mask, logprobs - ref, 0.0).double()
        k3 = (-k1).exp() - 1 + k1
        assert abs(line["objective/kl"] - k1.sum(1).mean()) < 1e-5, "k1 = log π − log π_ref: summed over tokens, mean over answers"
        assert abs(line["objective/kl_k3"] - k3.sum(1).mean()) < 1e-5, "k3 = exp(−k1) − 1 + k1; with the other sign it is not an estimate of this KL"
        assert abs(line["objective/scores"] - scores.mean()) < 1e-6 and line["objective/beta"] == beta
        assert abs(line["objective/rlhf_reward"] - rewards.sum(1).mean()) < 1e-5
        entropy = -torch.where(mask, logprobs, 0.0).sum(1).mean()
        assert abs(line["objective/entropy"] - entropy) < 1e-3
    assert [args[1] for args, _ in calls["adapt_beta"]] == [line["objective/kl"] for line in log], "the controller is given something else than k1"
    for line, after in zip(log, log[1:]):
        assert after["objective/beta"] == ppo.adapt_beta(line["objective/beta"], line["objective/kl"], 0.001, 8), "the controller sees the KL of this iteration, and acts on the next"


def test_microbatches_change_nothing(spied):
    one, two = (spied("--iterations=1", "--episodes=8", "--minibatches=1", "--epochs=1", "--ptx_ratio=0.6", f"--micro={n}") for n in (0, 3))
    for name in one[2]["model"]:
        assert torch.allclose(one[2]["model"][name], two[2]["model"][name], atol=1e-6), f"{name} depends on how a minibatch is split"
    for key, value in one[1][0].items():
        if key.startswith(("loss/", "policy/", "val/", "objective/")):
            assert abs(value - two[1][0][key]) < 1e-4, f"{key} depends on how a minibatch is split"
    for whose, (_, a), (_, b) in zip(("policy", "critic"), one[0]["update"], two[0]["update"], strict=True):
        assert abs(a - b) < 1e-4 * a, f"the {whose}'s gradient depends on how a minibatch is split"


def test_gamma_zero_leaves_pretraining_text_out(spied, monkeypatch):
    monkeypatch.setattr(ppo, "lm_loss", lambda *a: pytest.fail("γ = 0 is plain PPO: no pretraining batch has to be computed"))
    _, log, _ = spied("--iterations=1", "--ptx_coef=0")
    assert log[0]["loss/ptx_avg"] == 0


def test_an_answer_that_fills_the_block_is_scored(spied, monkeypatch, vocab):
    prompt = "Name three animals."
    for reader in ("read_jsonl", "read_heldout"):
        monkeypatch.setattr(ppo, reader, lambda path, fields, split=None: [{"prompt": prompt}])
    _, log, _ = spied("--iterations=1", "--episodes=16", f"--max_new_tokens={128 - len(vocab.prompt(prompt))}")
    assert log[0]["response/eos_fraction"] < 1, "this test needs an answer that runs to the end of the block"


def test_a_held_out_comparison_that_does_not_fit_the_block_stops_no_reward_model(little, whole, tmp_path, capsys):
    data, path = little[0], little[0] / "comparisons.jsonl"
    rows = [{"prompt": "Where is the hen?", "responses": ["Here.", "There " * 200], "ranks": [1, 2], "split": "heldout"}]
    rows += [{"prompt": f"Add {a} and 1.", "responses": [f"{a + 1}.", "No."], "ranks": [1, 2], "split": split, "eos": [True, False]} for a in range(8) for split in ("train", "heldout")]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    try:
        run_little("reward", data, parents_only("reward", whole, tmp_path / "out"), "--sources=file")
    finally:
        path.unlink()
    said = capsys.readouterr().out
    assert "Add 0 and 1." in said and "No. …" in said and "There" not in said, "samples are printed as they were scored: the cut-off one without an end of text"

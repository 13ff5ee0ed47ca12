"""
The whole recipe: one run of `python ppo.py --size=smoke`, as a reader would start it.

Most other tests here run the stages in this process, on conftest's data folder of a few hundred
lines, which is written as anybody could write their own.
"""

import importlib
import itertools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

import evaluate
import health
import ppo
import pretrain
import reward
import sampling
import sft
from common import cosine, masked
from conftest import ROOT, STAGES, equal, log_of, parents_only, run_little, run_main
from data import UserError, read_heldout, read_jsonl
from data.text import Text
from data.vocab import Vocab
from model import GPT, GPTConfig, ScalarGPT, Trunk, config_for
from plumbing import run as plumbing_run
from plumbing.checkpoint import digest, load, model_from, save
from plumbing.command_line import parse
from plumbing.run import open_run, read_log
from rollout import read_prompts


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """The folder of a finished smoke run. No test may change it; `copy` is for that."""
    out = tmp_path_factory.mktemp("smoke") / "run"
    command = [sys.executable, "ppo.py", "--size=smoke", "--device=cpu", f"--out={out}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
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
    said = iter([" 2.", " 22 or so", " 2 apples", " Bobby"])

    def generate(model, prompts, n, temperature):
        assert (n, temperature) == (8, 0)
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
        run_little(stage, data, out, f"--base={foreign}", "--max_new_tokens=16")
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


def test_each_stage_steps_at_the_rate_and_measures_when_it_says(whole):
    done = {stage: load(str(whole / f"{stage}.pt")) for stage in STAGES}
    log = {stage: log_of(whole, stage) for stage in STAGES}
    n_steps = {"pretrain": 5, "sft": 2 * 4, "reward": 4}  # 64 demonstrations in batches of 16
    for stage, n in n_steps.items():
        config = done[stage]["config"]
        rates = [config["lr"] * cosine(i, n, config.get("warmup", 0)) for i in range(n)]
        assert [x["lr"] for x in log[stage]] == pytest.approx(rates), f"the schedule of {stage}"
    rates = [1e-3 * factor for factor in (0.1, 0.19, 0.28)]  # ten iterations of warm-up
    assert [x["lr"] for x in log["ppo"]] == pytest.approx(rates)
    assert [x["episode"] for x in log["ppo"]] == [8, 16, 24]
    assert [x["epoch"] for x in log["sft"]] == [i / 4 for i in range(8)]
    assert [i for i, x in enumerate(log["sft"]) if "eval/loss" in x] == [3, 7], "after each epoch"
    for stage, key in (("pretrain", "pretrain_loss"), ("sft", "pretrain_loss"), ("sft", "loss")):
        found = done[stage]["results"][key]
        assert found == pytest.approx(log[stage][-1][f"eval/{key}"]), f"the last {key} of {stage}"
    assert done["sft"]["model_config"]["dropout"] == 0, "later stages would train with SFT's"


def test_text_is_mixed_in_and_measured_as_often_as_asked(little, tmp_path, capsys, monkeypatch):
    data, before = little
    windows, epochs, batches = {pretrain: [], sft: []}, [], reward.epoch_batches
    for module, seen in windows.items():
        function = module.lm_backward

        def noted(model, text, *more, function=function, seen=seen):
            seen.append(tuple(text.shape))
            return function(model, text, *more)

        monkeypatch.setattr(module, "lm_backward", noted)
    run_little("pretrain", data, tmp_path / "out", "--eval_every=2", "--batch=3")
    log = log_of(tmp_path / "out", "pretrain")
    assert [i for i, x in enumerate(log) if "eval/pretrain_loss" in x] == [1, 3, 4]
    assert windows[pretrain] == [(3, 129)] * 5
    assert "1,920 to train on" in capsys.readouterr().out, "5 steps of 3 windows of 128 tokens"

    out = parents_only("sft", before, tmp_path / "more")
    run_little(
        "sft", data, out, "--demonstrations=20", "--batch=8", "--epochs=1", "--pretrain_mix=0.5"
    )
    assert sorted(windows[sft]) == [(2, 129), (4, 129), (4, 129)], (
        "half as many windows of text as a batch has demonstrations: 8, 8 and 4"
    )
    assert capsys.readouterr().out.count("    → ") == 6, "six samples"

    def epoch_batches(lengths, size, rng):
        epochs.append(rng.initial_seed())
        return batches(lengths, size, rng)

    monkeypatch.setattr(reward, "epoch_batches", epoch_batches)
    out = parents_only("reward", before, tmp_path / "last")
    run_little("reward", data, out, "--batch=2", "--epochs=2")
    assert len(epochs) == len(set(epochs)) == 2, "each epoch has its own batches, once"
    measured = [i for i, x in enumerate(log_of(out, "reward")) if "eval/accuracy" in x]
    assert measured == [3, 7, 11, 15], "four times, the last time at the end"


@pytest.mark.parametrize("round, n", [(1, 12_000), (2, 4_000)])
def test_as_many_prompts_are_compared_as_the_help_says(
    whole, little, tmp_path, monkeypatch, round, n
):
    def gather(run, judge):
        raise InterruptedError(run.config.prompts)

    monkeypatch.setattr(reward, "gather_comparisons", gather)
    out = parents_only("reward", whole, tmp_path / "out")
    if round == 2:
        for name in ("reward", "ppo"):
            shutil.copy(whole / f"{name}.pt", out)
    with pytest.raises(InterruptedError, match=f"{n}"):
        run_little("reward", little[0], out, "--prompts=0", f"--round={round}")


def test_held_out_metrics_are_of_256_prompts_at_most(monkeypatch):
    rows = list(range(300))
    run = SimpleNamespace(vocab=None, folder="", config=SimpleNamespace(seed=1))
    monkeypatch.setattr(sft, "mean_score", lambda model, reward_model, rows, *more: len(rows))
    text = SimpleNamespace(loss=lambda model: (2.5, 0.1))  # and its error
    found = sft.heldout_metrics(None, [], rows, text, True, run)
    assert found == {"eval/pretrain_loss": 2.5, "eval/score": 256}
    halves = []
    monkeypatch.setattr("rollout.read_jsonl", lambda *a: rows)
    monkeypatch.setattr(
        "rollout.read_heldout", lambda path, fields, final=False: halves.append(final) or rows
    )
    _, heldout = read_prompts(run)
    assert len(heldout) == len(set(heldout)) == 256 and heldout != rows[:256]
    assert halves == [True, False], "both halves are looked for, the other one is used"


def test_losses_of_demonstrations_are_means_over_all_their_tokens(vocab):
    model = GPT(config_for("smoke", vocab.size)).eval()
    rng = random.Random(1)
    rows = [
        {"prompt": "a " * rng.randint(1, 9), "response": "b " * rng.randint(1, 9)}
        for _ in range(130)  # more than are measured at a time
    ]
    examples = sft.encode_demonstrations(rows, vocab)
    tokens, mask = sft.collate(examples, vocab, model)
    loss = sft.sft_loss(model(tokens), tokens, mask)
    assert sft.response_tokens(examples) == mask.sum()
    assert abs(sft.heldout_loss(model, examples, vocab) - loss) < 1e-5, "held out"
    for size in (0, 50):
        said = sft.sft_backward(model, examples, 1000, vocab, size)
        assert abs(said - loss) < 1e-5, "the loss in the log"


def test_answers_in_one_row_score_as_each_does_alone(vocab):
    model = ScalarGPT(config_for("smoke", vocab.size)).eval()
    torch.nn.init.normal_(model.head.weight)
    # answers that begin alike, one that another begins with, rows of other lengths, nothing shared
    several = [
        [[5, 6, 7, 8, 9], [5, 6, 7, 8], [5, 6, 7, 10, 11, 12]],
        [[5, 6, 7, 8], [5, 6, 7, 8, 9, 10, 11, 12, 13]],
        [[20, 21, 22], [23, 24, 25]],
    ]
    items = [(answers, list(range(1, len(answers) + 1)), None) for answers in several]
    scores, ranks = reward.scores_of(model, items, vocab)
    alone = [model(torch.tensor([a]))[0, -1] for answers in several for a in answers]
    assert torch.allclose(scores[ranks > 0], torch.stack(alone), atol=1e-5)


def test_accuracy_and_loss_of_many_comparisons_are_over_all_their_pairs(vocab):
    model, rng = ScalarGPT(config_for("smoke", vocab.size)).eval(), random.Random(1)
    torch.nn.init.normal_(model.head.weight)
    items = []
    for k in [2, 3, 4] * 43:  # more than are measured at a time
        answers = [[rng.randrange(200) for _ in range(rng.randint(2, 9))] for _ in range(k)]
        items.append((answers, rng.sample(range(1, k + 1), k), [rng.random() for _ in range(k)]))
    scores, ranks = reward.scores_of(model, items, vocab)
    pairs = [
        (row, i, j)
        for row, (_, ranked, _) in enumerate(items)
        for i, j in itertools.permutations(range(len(ranked)), 2)
        if ranked[i] < ranked[j]
    ]
    found = reward.heldout_accuracy(model, items, vocab)
    loss, accuracy = reward.reward_backward(model, items, vocab, 50)
    for said in (found["accuracy"], accuracy):
        assert said == sum(scores[r, i] > scores[r, j] for r, i, j in pairs) / len(pairs)
    for said in (found["loss"], loss):
        assert abs(said - reward.ranking_loss(scores, ranks)) < 1e-5
    assert found["pairs"] == len(pairs) == 43 * (1 + 3 + 6)
    gold = [items[r][2][i] > items[r][2][j] for r, i, j in pairs]
    assert found["ceiling"] == sum(gold) / len(gold)


def test_scores_are_shifted_to_demonstrations_and_measured_on_all_answers(vocab):
    model, rng = ScalarGPT(config_for("smoke", vocab.size)).eval(), random.Random(1)
    torch.nn.init.normal_(model.head.weight)
    rows = [[rng.randrange(200) for _ in range(rng.randint(2, 9))] for _ in range(270)]
    with torch.no_grad():
        alone = torch.stack([model(torch.tensor([row]))[0, -1] for row in rows])
    demonstrations, answers = alone[:140], alone[140:]  # more than are scored at a time
    said = reward.shift_scores(model, rows[:140], rows[140:], vocab)
    expected = (answers.mean() - demonstrations.mean()).item(), answers.std().item()
    assert said == pytest.approx(expected, abs=1e-5)
    assert model.shift.item() == pytest.approx(demonstrations.mean().item(), abs=1e-5)
    assert reward.shift_scores(model, rows[:2], rows[140:142], vocab)[1] == pytest.approx(
        (answers[0] - answers[1]).abs().item() / math.sqrt(2), abs=1e-5
    )
    assert reward.shift_scores(model, rows[:2], rows[140:141], vocab)[1] == 0, "n − 1 of one is 0"


def test_the_epoch_that_a_reward_model_likes_best_is_kept(
    whole, little, tmp_path, capsys, monkeypatch
):
    scores, seen = iter([1.0, 3.0, 3.0, 3.0]), []

    def mean_score(model, *more):
        seen.append({name: x.clone() for name, x in model.state_dict().items()})
        return next(scores)

    monkeypatch.setattr(sft, "mean_score", mean_score)
    out = parents_only("sft", whole, tmp_path / "out")
    shutil.copy(whole / "reward.pt", out)
    flags = ["--demonstrations=16", "--epochs=3", "--pick_by=reward.pt"]
    run_little("sft", little[0], out, *flags)
    assert "epoch 2 is kept" in capsys.readouterr().out
    kept = load(str(out / "sft.pt"))
    assert equal(kept["model"], seen[1]), "not the first epoch of those that score highest"
    assert not equal(seen[1], seen[2])
    assert kept["results"]["score"] == 3.0


def test_the_samples_of_a_reward_model_are_best_first(vocab, capsys):
    model = ScalarGPT(config_for("smoke", vocab.size)).eval()
    torch.nn.init.normal_(model.head.weight)
    answers = {"responses": ["No.", "Yes.", "It is"], "eos": [True, True, False]}
    rows = [{"prompt": f"Add {n} and 1.", "ranks": [1, 2, 3], **answers} for n in range(5)]
    reward.show_samples(model, rows, vocab)
    _, first, *lines = capsys.readouterr().out.splitlines()
    assert first == "samples: answers, best score first" and len(lines) == 4 * 4
    for n in range(4):
        prompt, *shown = lines[4 * n : 4 * n + 4]
        assert prompt == f"  Add {n} and 1."
        scores = [float(line.split()[0]) for line in shown]
        assert scores == sorted(scores, reverse=True)
        texts = sorted(line.split(maxsplit=1)[1] for line in shown)
        assert texts == ["It is …", "No.", "Yes."], "not the answer alone, or no sign of a cut"


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
            m.setattr(ppo, "log_answers", lambda *a: None)
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
    backward, windows = ppo.lm_backward, []

    def lm_backward(model, text, *more):
        windows.append(len(text))
        return backward(model, text, *more)

    monkeypatch.setattr(ppo, "lm_backward", lm_backward)
    for gamma in (0, 1, 3):
        gradients.clear()
        spied("--iterations=1", f"--ptx_coef={gamma}")
        first[gamma] = gradients[0]
    assert set(windows) == {1}, "an eighth of a window for each of 4 episodes: one at least"
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
    calls, log, _ = spied("--warmup=1")
    adds_up(log)
    assert [x["lr"] for x in log] == pytest.approx([1e-4, 1e-3, 1e-3]), "from a tenth, to no more"
    rates = [args[2] for args, _ in calls["update"][:9]]  # four times policy and critic
    assert rates == pytest.approx([1e-4, 5e-5] * 4 + [1e-3]), "the critic has its own rate"
    assert {args[1].defaults["eps"] for args, _ in calls["update"]} == {1e-5}, "as OpenAI's PPO has"
    for rollout, x in zip(rollouts_of(calls), log, strict=True):
        speed = x["tokens_per_second/rollout"] * x["seconds/rollout"]
        assert speed == pytest.approx(rollout.mask.sum().item(), rel=1e-3)
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


def test_microbatches_change_nothing(spied, monkeypatch):
    flags = [
        "--iterations=1",
        "--episodes=8",
        "--minibatches=1",
        "--ppo_epochs=1",
        "--ptx_ratio=0.6",
    ]
    windows, batch = [], Text.batch

    def noted(text, n, rng):
        windows.append(n)
        return batch(text, n, rng)

    monkeypatch.setattr(Text, "batch", noted)
    one, two = (spied(*flags, f"--micro_batch_size={n}") for n in (0, 3))
    assert windows == [5, 5], "0.6 × 8 windows of text"
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
    _, log, _ = spied("--iterations=1", "--ptx_coef=0", "--warmup=0")
    assert log[0]["loss/ptx_avg"] == 0
    assert log[0]["lr"] == 1e-3, "without a warm-up the first rate is the whole"


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

"""experiments/: the arithmetic behind the figures, and the bands of a healthy run."""

import itertools
import json
import os
import random
import types

import abilities
import bands
import beta
import details
import figure1
import knowledge
import comparisons
import labelers
import lib
import mix
import numpy as np
import overfit
import overoptimise
import pytest
import rounds
import world
from conftest import ROOT, run_main
from data import load_judge, meaning_of
from prepare import SHARES


def test_best_of_n_is_the_mean_over_all_subsets():
    scores = np.array([0.3, -1.0, 2.0, 2.0, 0.5, 0.3])
    gold = np.array([1.0, 0.0, 0.2, 0.8, 0.6, 0.0])
    for n, (proxy, truth) in zip((1, 2, 3, 6), overoptimise.best_of(scores, gold, (1, 2, 3, 6))):
        subsets = [list(s) for s in itertools.combinations(range(6), n)]
        best = [scores[s].max() for s in subsets]
        # of two answers with the same score either may be taken
        tied = [np.mean(gold[scores == b]) for b in best]
        assert proxy == pytest.approx(np.mean(best)), (
            "the proxy of best of n is not its mean over all subsets of n"
        )
        assert truth == pytest.approx(np.mean(tied)), (
            "the gold score of best of n is not that of the answer the proxy picks"
        )


def test_the_kl_of_best_of_n_counts_answers_that_repeat():
    # of two answers, each as likely, the better of two draws is the higher one in 3 of 4 cases
    two = 0.25 * np.log(0.25 / 0.5) + 0.75 * np.log(0.75 / 0.5)
    found = overoptimise.best_of_kl(np.array([1.0, 2.0, 1.0, 2.0]), (1, 2))
    assert found == pytest.approx([0, two]), "the KL of best of n is not that of its formula"
    ten = overoptimise.best_of_kl(np.repeat(np.arange(10.0), 3), (256,))
    assert ten == pytest.approx([np.log(10)], abs=1e-6), (
        "among ten answers no choice can be further than ln 10 from a random one"
    )
    (far,) = overoptimise.best_of_kl(np.arange(4000.0), (16,))
    bound = np.log(16) - 15 / 16  # Beirami et al. 2024
    assert far == pytest.approx(bound, abs=2e-3), "where no answer repeats the KL is the bound"


def test_every_kind_is_counted_in_the_mix_of_prompts():
    found = mix.shares([kind for kind in SHARES for _ in range(2)])
    assert sum(found.values()) == pytest.approx(100)
    assert found["generation"] == pytest.approx(100 * 2 / len(SHARES)), "story and letter"
    assert sum(paper for paper, _ in mix.USES.values()) == pytest.approx(100, abs=0.2)


def test_gold_at_a_kl_is_where_a_run_first_passed_it():
    path = [{"kl": kl, "gold": gold} for kl, gold in [(0, 0.6), (1, 0.9), (3, 0.5), (0.5, 0.1)]]
    found = [overoptimise.gold_at(kl, path) for kl in (0.5, 2, 4)]
    assert found[0] == pytest.approx(0.75), "not the first time that it was there"
    assert found[1] == pytest.approx(0.7), "not between its two measurements"
    assert np.isnan(found[2]), "the run never went so far"
    free = [{"kl": kl, "gold": 0.5 + kl / 10} for kl in (0, 1, 2, 3)]
    steered = [{"kl": kl, "gold": gold} for kl, gold in [(0, 0), (1, 0.7), (2, 0.8), (9, 0.9)]]
    assert beta.above(steered, free) == pytest.approx(0.1), "the end is not at the same KL"


def test_ppo_is_beside_best_of_n_at_its_kl_and_within_a_seed():
    key = {"size": "tiny", "prompts": 600}
    bon = [key | {"seed": s, "n": n, "kl": n - 1, "gold": n / 10} for s in (1, 2) for n in (1, 4)]
    ppo = [
        key | {"seed": seed, "kl": kl, "gold": 0.5 + kl * slope}
        for seed, slope in ((1, 0.2), (2, 0.1))
        for kl in (0, 2, 4)
    ]
    (gaps,) = overoptimise.beside(bon, ppo).values()
    assert gaps == pytest.approx([0.3, 0.0]), "each gains from its own start, at KL 3"


def test_a_detail_that_helps_is_worth_more_than_nothing():
    """Control less the run without it, of the same seed and condition; the others don't count."""
    golds = {
        ("few answers end", "control"): [0.5, 0.7],
        ("few answers end", "EOS rule"): [0.4, 0.6],
        ("a long run", "control"): [0.9, 0.9],
    }
    rows = [
        {"condition": condition, "without": x, "seed": seed, "gold": gold}
        for (condition, x), of_seeds in golds.items()
        for seed, gold in enumerate(of_seeds)
    ]
    assert details.lost(rows, "EOS rule", "gold") == pytest.approx([0.1, 0.1])


def test_details_that_are_code_fit_the_source():
    for detail, (condition, change) in details.DETAILS.items():
        assert condition in details.CONDITIONS, detail
        if isinstance(change, tuple):
            assert details.changed(*change), f"{detail} is not turned off"


def test_new_comparisons_are_compared_with_the_same_seed_without_them():
    golds = {("new", 1): [0.4, 0.8], ("new", 2): [0.6, 0.9], ("same", 2): [0.5, 0.8]}
    rows = [
        {"way": way, "round": n, "seed": seed, "gold": gold}
        for (way, n), of_seeds in golds.items()
        for seed, gold in enumerate(of_seeds)
    ]
    mean, half = rounds.difference(rows, 2, "gold")
    assert mean == pytest.approx(0.1), "what new comparisons bring has the wrong sign"
    assert half == pytest.approx(0, abs=1e-9), "seeds are not compared each with itself"
    assert rounds.values(rows, "same", 1, "gold") == {0: 0.4, 1: 0.8}, "round 1 is of both ways"


@pytest.mark.parametrize("where", ["alone", "sentence", "among", "stranger", "changed"])
def test_a_fact_in_the_prompt_is_said_by_one_sentence_alone(where):
    rng = random.Random(1)
    for _ in range(100):
        row = knowledge.question(where, rng)
        *before, asked = row["text"].split(". ")
        (value,), (truth,) = row["answers"], row["truth"]
        assert len(before) == {"alone": 0, "sentence": 1}.get(where, 3)
        shown = sum(value in sentence for sentence in before)
        assert shown == (where != "alone"), "another sentence has the value too: no need to read"
        assert (value == truth) == (where not in ("stranger", "changed"))
        assert value == truth or truth not in row["text"], "memory's answer is in the prompt too"
        assert asked not in before, "the sentence in front has the same words"
        names = [name for name in world.EVERYONE if name in asked.split()]
        assert len(names) == 1 and (names[0] in world.STRANGERS) == (where == "stranger")


def of_stages(**values):
    """Rows of abilities.csv: one ability, its values over seeds at some stages."""
    return [
        {"stage": stage, "seed": seed, "ability": "sums", "x": 0, "value": v, "ci": 0.0}
        for stage, of_seeds in values.items()
        for seed, v in enumerate(of_seeds)
    ]


@pytest.mark.parametrize(
    "values, claim, want",
    [
        ([0.9, 0.91, 0.92], "sft sums > base sums", True),
        ([0.5, 0.51, 0.5], "sft sums > base sums", False),
        ([0.2, 0.95, 0.6], "sft sums > base sums", None),
        ([0.2, 0.95, 0.6], "sft sums = base sums", None),
        ([0.9, 0.91, 0.92], "sft sums = base sums", False),
        ([0.5, 0.51, 0.5], "sft sums = base sums", True),
        ([0.2, 0.95, 0.6], "sft sums > 0.33", None),
        ([0.9, 0.91, 0.92], "sft sums < 0.33", False),
    ],
)
def test_what_a_wide_interval_can_not_tell_is_not_decided(values, claim, want):
    rows = of_stages(base=[0.5, 0.51, 0.5], sft=values)
    assert abilities.holds(rows, [claim]) is want, f"{claim} with {values} is not {want}"


def test_a_result_that_a_source_allows_does_not_refute_it():
    rows, claim = of_stages(base=[0.5, 0.51, 0.5], sft=[0.5, 0.51, 0.5]), ["sft sums > base sums"]
    assert abilities.verdict(rows, claim, "") == "**did not hold**"
    assert abilities.verdict(rows, claim, "too small") == "not decided: too small"
    rows = of_stages(base=[0.5, 0.51, 0.5], sft=[0.9, 0.91, 0.92])
    assert abilities.verdict(rows, claim, "too small") == "held", "a claim that held is not said so"


@pytest.mark.parametrize("way", ["best of n", "PPO"])
def test_a_fit_finds_the_curve_it_was_made_from(way):
    d = np.linspace(0, 3, 40)
    gold = 0.5 * d - 0.2 * d * (d if way == "best of n" else np.log(np.maximum(d, 1e-9)))
    alpha, beta = overoptimise.fit(way, d, gold)
    assert (alpha, beta) == pytest.approx((0.5, 0.2))
    fine = np.linspace(0.01, 10, 100_000)
    highest = fine[(overoptimise.basis(way, fine) @ [alpha, -beta]).argmax()]
    assert overoptimise.turning(way, alpha, beta) == pytest.approx(highest, abs=1e-3), (
        "the turning point is not where the curve is highest"
    )
    assert overoptimise.turning(way, 0.5, -0.1) == float("inf"), (
        "a curve that never turns was given a turning point"
    )


def test_a_reward_model_in_other_units_is_brought_to_those_of_the_truth():
    rng = np.random.default_rng(1)
    gold = [rng.random(50) for _ in range(40)]
    factor = overoptimise.calibration([5 * g + 3 for g in gold], gold)
    assert factor * 5 == pytest.approx(overoptimise.LOGIT, rel=0.05), (
        "the truth itself, times 5, is not scaled back to a labeler's logits"
    )


def test_a_row_that_is_there_is_not_run_again(tmp_path, monkeypatch):
    path, ran = str(tmp_path / "x.csv"), []

    def job(seed):
        if seed == 3 and len(ran) < 3:
            ran.append(seed)
            raise RuntimeError("cut off")
        ran.append(seed)
        return {"gold": seed / 2}

    jobs = [((0.1, seed), lambda seed=seed: job(seed)) for seed in (1, 2, 3)]
    args = types.SimpleNamespace(jobs=1)
    monkeypatch.setattr(lib, "base_of", lambda args: __file__)
    monkeypatch.setattr(lib, "base_hash", lambda path: "0123abcd")
    with pytest.raises(SystemExit):
        lib.collect(args, path, jobs, ["beta", "seed"])
    rows = lib.collect(args, path, jobs, ["beta", "seed"])
    assert ran == [1, 2, 3, 3], "a job that had its row was run again, or one without was not"
    found = [(r["beta"], r["seed"], r["gold"]) for r in rows]
    assert found == [(0.1, 1, 0.5), (0.1, 2, 1.0), (0.1, 3, 1.5)]


def test_rows_of_another_base_are_named_and_left_out(tmp_path, monkeypatch, capsys):
    """They were made in another world, and would mix with those of this one."""
    path, bases = str(tmp_path / "x.csv"), iter(["1234e567", "1234e567", "89abcdef"])
    monkeypatch.setattr(lib, "base_of", lambda args: __file__)
    monkeypatch.setattr(lib, "base_hash", lambda path: next(bases))
    args = types.SimpleNamespace(jobs=1)
    (tmp_path / "x.csv").write_text("base,seed,gold\n,1,0.1\n")
    for gold in (0.2, 0.3, 0.4):
        rows = lib.collect(args, path, [((1,), lambda gold=gold: {"gold": gold})], ["seed"])
        said = capsys.readouterr().out
        assert [r["gold"] for r in rows] == [0.4 if gold == 0.4 else 0.2]
    assert "2 rows are of another base (1234e567, not known)" in said
    monkeypatch.setattr(lib, "base_of", lambda args: str(tmp_path / "none"))
    rows = lib.collect(args, path, [((1,), None)], ["seed"])
    assert [r["gold"] for r in rows] == [0.4], "without a base the newest rows are drawn"


def test_interval_is_student_s():
    assert lib.interval([1, 2, 3]) == pytest.approx((2, 4.303 / 3**0.5), rel=1e-3), (
        "of three seeds: 4.303 standard errors, not 1.96"
    )


def log_of_seed(seed, change=None):
    """A log whose blocks are those of one of the seeds."""
    rows, change = {}, change or {}
    for metric, (episodes, x) in bands.read().items():
        for e, value in zip(episodes, x[seed]):
            row = rows.setdefault(e, {"step": int(e // 256) - 1, "episode": int(e)})
            row[metric] = value * change.get(metric, 1)
    return [rows[e] for e in sorted(rows)]


def test_a_healthy_run_is_in_the_bands_and_a_broken_one_is_not(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(os.path.join(ROOT, "experiments"))
    for name, change in (("healthy", None), ("broken", {"objective/kl": 3, "eval/gold": 0.7})):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in log_of_seed(3, change)))
        run_main("compare", str(path))
    healthy, broken = capsys.readouterr().out.split(f"{tmp_path}/broken")
    assert "OUT" not in healthy and "All 13 metrics" in healthy, (
        "one of the healthy runs is called unhealthy"
    )
    for said in ("objective/kl is too high", "eval/gold is too low", "2 of 13 metrics are out"):
        assert said in broken, broken
    assert "the policy runs away from SFT" in broken and "over-optimisation" in broken, (
        "the reason given is that of the other direction"
    )


def test_bands_say_how_often_they_are_wrong():
    assert bands.false_alarms(bands.read()) <= 1, (
        "a healthy run is called unhealthy more often than one in ten"
    )
    x = bands.read()["objective/kl"][1][:, 1:]
    one_more = x.mean(0) + x.std(0, ddof=1) * (1 + 1 / len(x)) ** 0.5
    assert abs(bands.distance(one_more, x, "objective/kl") - 1).max() < 1e-6, (
        "the spread is not that of one more run"
    )


def test_questions_of_an_ability_are_of_the_village(village):
    rng, judge = random.Random(0), load_judge(village)
    for split in ("train", "heldout"):
        rows = abilities.of_kind("facts", 5, rng, split)
        assert len(rows) == 5
        assert all(abilities.split_of(row["prompt"]) == split for row in rows)
        assert all(judge.gold(meaning_of(row), "No.")["gold"] == 0 for row in rows)
    for n in (1, 2, 3):
        row = abilities.chat_about(n, rng)
        roles = [turn["role"] for turn in row["prompt"]]
        assert roles == ["user", "assistant"] * n + ["user"]
        assert row["right"] not in row["wrong"]
        assert any(word in row["prompt"][-1]["content"] for word in (" he ", " she "))


def test_examples_before_a_prompt_leave_room_for_an_answer_and_the_prompt_whole(vocab):
    short = "What is Ben's job?"
    long = [{"role": ("user", "assistant")[i % 2], "content": "A dog. " * 4} for i in range(5)]
    assert 60 < len(vocab.prompt(long)) < 90
    for how, (kind, examples) in figure1.FORMATS.items():
        first = vocab.decode(figure1.with_examples(vocab, short, how, 80))
        for question, answer in examples[-1:]:
            assert question in first or len(examples) > 1
            assert answer in first, "the example that is closest to the prompt is left out"
        for question, _ in examples:
            assert abilities.split_of(question) == "train", f"{question} may be a held-out prompt"
        ids = figure1.with_examples(vocab, long, how, 110)
        assert len(ids) <= 110, "no room is left for an answer"
        alone = figure1.with_examples(vocab, long, how, 0)
        assert ids[-len(alone) + 1 :] == alone[1:], "it is the prompt that is cut"


def test_other_labelers_see_the_same_noise(monkeypatch):
    """Or a difference between two tastes would be luck for the larger part."""
    run = lib.world()
    run.config = types.SimpleNamespace(prompts=30, heldout=30, answers=2, others=0, seed=7)
    answers = [run.vocab.response(a) for a in ("I do not know.", "It is blue. I like it.")]
    monkeypatch.setattr(comparisons, "sample_answers", lambda model, prompts, *a: [answers] * 30)
    rows = comparisons.compare_answers(None, run, run.judge, "judge", 1, "train")
    assert labelers.ranked(run.judge, rows, 0.0, 7) == rows
    with pytest.raises(ValueError, match="ranked otherwise"):
        labelers.ranked(run.judge, rows, 0.0, 8)
    won = {
        t: [r["ranks"] == [2, 1] for r in labelers.ranked(run.judge, rows, t, 7)] for t in (0, 1)
    }
    assert sum(won[1]) > 25 > sum(won[0]), "who likes words does not prefer the longer answer"


def test_what_a_word_is_worth_is_told_from_what_gold_is():
    rng = np.random.default_rng(0)
    words = rng.integers(1, 30, (50, 4)).astype(float)
    gold = 0.02 * words + rng.random((50, 4)) + rng.normal(size=(50, 1))
    scores = 2 * gold + 0.06 * words + 5 * rng.normal(size=(50, 1)) - words.mean(1, keepdims=True)
    assert labelers.worth(scores, gold, words) == pytest.approx(0.03)
    scores[:20, 3], words[:20, 3] = np.nan, 1000
    assert labelers.worth(scores, gold, words) == pytest.approx(0.03), "repeated answers count"


def test_how_often_a_labeler_prefers_an_answer_is_how_often_it_is_ranked_first(monkeypatch):
    judge, rng = load_judge("data/village"), random.Random(0)
    answers = {"one " * 40: 0.2, "two " * 10: 0.7}
    monkeypatch.setattr(judge, "gold", lambda prompt, response: {"gold": answers[response]})
    labeler = 2 + 0.01 / labelers.STEP  # the middle one has no taste of its own
    ranks = np.array([judge.rank("", list(answers), labeler, rng) for _ in range(4000)])
    first = np.mean(ranks[:, 0] < ranks[:, 1]) + 0.5 * np.mean(ranks[:, 0] == ranks[:, 1])
    one, two = ((np.array([g]), np.array([len(a.split())])) for a, g in answers.items())
    assert labelers.likes(judge, 0.01, one, two) == pytest.approx(first, abs=0.03)


def test_the_model_of_each_epoch_is_kept_at_its_end():
    kept = {}
    run = type("Run", (), {"checkpoint": lambda run, step, **parts: kept.update({step: None})})
    run.config, run.content = types.SimpleNamespace(out="out"), lambda run, model, results: model
    checkpoint = types.SimpleNamespace(save=kept.__setitem__)
    exec(overfit.EACH_EPOCH.format(steps=3), {"Run": run, "checkpoint": checkpoint})
    for step in range(1, 8):
        run().checkpoint(step, model=f"after step {step}", optimizer=None, best={})
    assert {k: v for k, v in kept.items() if v} == {
        "out/epoch-1.pt": "after step 3",
        "out/epoch-2.pt": "after step 6",
    }
    assert 7 in kept, "the stage no longer saves where it is"

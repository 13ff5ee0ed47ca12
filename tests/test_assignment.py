"""
The coursework kit: what students get is red, the solution is green, and what is wrong is worth nothing.

What takes minutes runs only where ASSIGNMENT_SLOW is set: `ASSIGNMENT_SLOW=1 python -m pytest -q tests/test_assignment.py`.
"""
import ast
import difflib
import importlib.util
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import grade
import make_assignment
import model
import plant
import ppo
import reward
import sft
from conftest import ROOT

SOLUTION = SimpleNamespace(model=model, ppo=ppo, reward=reward, sft=sft)
slow = pytest.mark.skipif("ASSIGNMENT_SLOW" not in os.environ, reason="takes minutes: set ASSIGNMENT_SLOW=1")


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A student's copy, as it is handed out."""
    folder = tmp_path_factory.mktemp("kit") / "student"
    make_assignment.make(str(folder))
    return folder


def load(folder, name):
    """One file of a student's copy as a module, beside the solution's."""
    spec = importlib.util.spec_from_file_location("student_" + name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["student_" + name] = module         # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def files(folder):
    """{path: text} of the files that are no pictures."""
    found = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in str(p)}
    return {path: p.read_text(encoding="utf-8") for path, p in found.items() if p.suffix != ".png"}


def graded(*args, cwd=ROOT):
    done = subprocess.run([sys.executable, *map(str, args)], capture_output=True, text=True, cwd=cwd)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


# ---- the table of exercises ----

def test_points_sum_to_100():
    assert sum(points for points, *_ in grade.EXERCISES.values()) == 100


def test_every_function_of_the_maths_is_an_exercise():
    source = make_assignment.read("ppo.py")
    maths = source[source.index("# ---- the maths"):source.index("# ---- what the networks do")]
    given = {"up"}
    exercises = {f for _, functions, *_ in grade.EXERCISES.values() for f in functions.split()}
    for node in ast.parse(maths).body:
        assert node.name in given or f"ppo.{node.name}" in exercises, f"{node.name} is left in the student's copy: no exercise of grade.py has it"


# ---- a student's copy ----

def test_stubs_import_and_keep_everything_but_the_bodies(student):
    for name in ("model", "sft", "reward", "ppo"):
        module = load(student, name)
        stub, solution = (make_assignment.read(f"{name}.py", root).splitlines() for root in (student, ROOT))
        added = [line[1:].strip() for line in difflib.unified_diff(solution, stub, n=0) if line.startswith("+") and not line.startswith("+++")]
        for line in added:
            assert line.startswith(("#", '"""', "raise NotImplementedError")), f"{name}.py was given a line that is no stub: {line}"
        for function in vars(getattr(SOLUTION, name)).values():
            if getattr(function, "__module__", "") == name and function.__doc__:
                assert getattr(module, function.__name__).__doc__ == function.__doc__, f"the docstring of {function.__name__} is gone"


def test_no_solution_is_left_in_a_students_copy(student):
    everything = "\n".join(files(student).values())
    for line in ("chosen - logits.logsumexp(-1)", "F.softplus(-margin)", "delta = rewards[:, t]", "torch.searchsorted(cdf", "(pg * share).backward()",
                 "shown(rewards, mask)", "lerp_", "pads = torch.tensor", "def check_gae", "PLANTS ="):
        assert line not in everything, f"a student would find the solution's {line}"


def test_nothing_that_a_run_made_is_handed_out(student):
    paths = list(files(student))
    assert not [p for p in paths if p.endswith((".bin", ".jsonl")) or p.startswith(("out/", ".git/"))]
    assert {"ASSIGNMENT.md", "grade.py", "README.md", "requirements.txt", "data/village/vocab.json", "data/village/prepare.py", "tests/conftest.py"} <= set(paths)


def test_handout_has_every_exercise_its_points_and_the_picture(student):
    text = (student / "ASSIGNMENT.md").read_text(encoding="utf-8")
    for n, (name, (points, _, _, formula)) in enumerate(grade.EXERCISES.items(), 1):
        assert f"### {n}. {name} ({points} points)" in text and formula in text
    assert "p0   p1   p2   y0   y1   EOS  PAD  PAD" in text, "the picture of the six tokens is missing"


def test_every_exercise_of_the_stubs_is_worth_nothing(student):
    modules = SimpleNamespace(**{name: load(student, name) for name in ("model", "sft", "reward", "ppo")})
    for name, why in grade.by_seed(grade.EXERCISES, 1, modules).items():
        assert why and "not written yet" in why[0], f"{name} has points without a line of code"


def test_a_folder_with_something_in_it_is_refused(student):
    before = files(student)
    for folder in (str(student), os.path.join(ROOT, "student")):
        with pytest.raises(SystemExit, match="error: .*(not empty|in the project)"):
            make_assignment.make(folder)
    assert files(student) == before


@pytest.mark.parametrize("file, old, says", [
    ("ppo.py", "def gae(", "ppo.py has no function gae"), ("ppo.py", "        for epoch in range(config.epochs):", "0 lines begin with 'for epoch"),
    ("ppo.py", "clock.append(run.seconds())", "begins with 'clock.append"), ("model.py", "# prompts end at", "0 lines begin with '# prompts end"),
    ("ppo.py", "    starts = torch.tensor(", "0 lines begin with 'starts = "), ("ppo.py", "    position   ", "no picture"),
    ("tests/test_losses.py", "def test_gae_recursion(", "no test test_gae_recursion")])
def test_a_source_that_changed_stops_the_generation(tmp_path, monkeypatch, file, old, says):
    read = make_assignment.read
    new = {"        for epoch": "        for inner in range(config.epochs):"}.get(old[:17], old.replace("gae", "gea").replace("epoch", "e").replace("s", "z"))
    if old == "clock.append(run.seconds())":
        new = "clock += [run.seconds()]"
    if old.startswith(("# prompts", "    position")):
        new = old.replace("p", "q")
    assert old in read(file)
    monkeypatch.setattr(make_assignment, "read", lambda path, *a: read(path, *a).replace(old, new) if path == file else read(path, *a))
    with pytest.raises(SystemExit, match="error: .*" + re.escape(says)):
        make_assignment.make(str(tmp_path / "student"))
    assert not (tmp_path / "student").exists(), "something was written before the mistake was noticed"


# ---- the grader ----

def test_solution_has_full_points_on_fixtures_of_any_seed(capsys):
    assert grade.report(grade.by_seed(grade.EXERCISES, "drawn by lot", SOLUTION)) == 0, capsys.readouterr().out
    assert "100 / 100" in capsys.readouterr().out


def leaking_gae(rewards, values, mask, gamma=1.0, lam=0.95):
    advantages, following = torch.zeros_like(values), 0.0
    for t in reversed(range(values.size(1))):
        after = values[:, t + 1] if t + 1 < values.size(1) else 0.0
        following = rewards[:, t] + gamma * after - values[:, t] + gamma * lam * following
        advantages[:, t] = following
    return advantages, advantages + values


def pasted_gae(rewards, values, mask, gamma=1.0, lam=0.95):
    known = {1.0: [0.5, 0.5, 0.5], 0.0: [0.0, 0.0, 0.5]}.get(lam, [0.45125, 0.475, 0.5])
    return torch.tensor([known], dtype=values.dtype), torch.tensor([known], dtype=values.dtype) + values


WRONG = [
    ("gae", "ppo", "gae", leaking_gae), ("gae", "ppo", "gae", pasted_gae),
    ("policy_loss", "ppo", "policy_loss", lambda new, old, a, mask, clip=0.2:        # without the clip
        ppo.masked_mean(-ppo.shown(a, mask) * (ppo.shown(new, mask) - ppo.shown(old, mask)).exp(), mask)),
    ("value_loss", "ppo", "value_loss", lambda v, old, ret, mask, clip=0.2: ppo.masked_mean((ppo.shown(v, mask) - ppo.shown(ret, mask)) ** 2, mask)),
    ("masked_mean", "ppo", "masked_mean", lambda x, mask: ppo.shown(x, mask).mean()),
    ("kl_rewards", "ppo", "kl_rewards", lambda s, a, b, mask, beta: beta * ppo.shown(a - b, mask) + torch.nn.functional.one_hot(mask.long().cumsum(1).argmax(1), mask.size(1)) * s[:, None]),
    ("token_logprobs", "ppo", "token_logprobs", lambda z, x, T=1.0: z.log_softmax(-1).gather(-1, x[..., None])[..., 0] / T),
    ("sft_loss", "sft", "sft_loss", lambda z, x, mask: torch.nn.functional.cross_entropy(z[:, :-1].flatten(0, 1), x[:, 1:].flatten())),
    ("ranking_loss", "reward", "ranking_loss", lambda s, ranks: torch.nn.functional.softplus(s[:, :, None] - s[:, None, :])[reward.better_pairs(ranks)].mean()),
    ("ema_update", "ppo", "ema_update", lambda a, m, d: [x.data.lerp_(y.data, d) for x, y in zip(a.parameters(), m.parameters())]),
    ("update", "ppo", "ema_update", lambda a, m, d: None), ("update", "ppo", "lm_loss", lambda logits, tokens: logits.sum() * 0)]


@pytest.mark.parametrize("exercise, module, name, wrong", WRONG, ids=[f"{w[0]}-{i}" for i, w in enumerate(WRONG)])
def test_a_wrong_function_is_worth_nothing(monkeypatch, capsys, exercise, module, name, wrong):
    monkeypatch.setattr(getattr(SOLUTION, module), name, wrong)
    assert grade.report(grade.by_seed([exercise], 1, SOLUTION)) == 1
    said = capsys.readouterr().out
    assert re.search(rf"{exercise} +0 / ", said) and "Error" not in said, f"the wrong function must run, and be found out by its numbers: {said}"


def test_grader_names_the_likely_mistake_and_takes_the_instructors_tests(student, tmp_path):
    # a student's gae that leaks, and tests made to say nothing: only the instructor's count
    cheat = tmp_path / "cheat"
    make_assignment.copy_project(str(cheat))
    source = make_assignment.read("ppo.py").replace("next_value = torch.where(here, values[:, t], next_value)", "next_value = values[:, t] + 1")
    (cheat / "ppo.py").write_text(source, encoding="utf-8")
    (cheat / "tests" / "test_losses.py").write_text("def test_gae_recursion(): pass\n", encoding="utf-8")
    (cheat / "conftest.py").write_text("raise SystemExit(0)\n", encoding="utf-8")
    make_assignment.write(str(cheat), "grade.py", "print('total 100 / 100')\n")
    code, said = graded(student / "grade.py", f"--project={cheat}", f"--tests={os.path.join(ROOT, 'tests')}", "gae", "eos_rule")
    assert code == 1 and re.search(r"gae +0 / 9", said) and re.search(r"eos_rule +2 / 2", said) and "total             2 / 11" in said, said
    assert "λ = .95" in said, f"the test's own message must be there: {said}"


@slow
def test_all_stubs_are_red_test_by_test(student):
    wanted = [test for name in grade.EXERCISES for test in grade.tests_of(name)]
    found = grade.run_tests(wanted, str(student), str(student / "tests"))
    for test in wanted:
        assert grade.cases_of(test, found), f"{test} did not run"
    green = [case for (_, case), why in found.items() if not why]
    assert not green, f"{green} pass without a line of code"


@slow
def test_solution_has_full_points():
    code, said = graded(os.path.join(ROOT, "tests", "grade.py"))
    assert code == 0 and "100 / 100" in said, said


# ---- the bug hunt ----

@pytest.fixture
def few(monkeypatch):
    """Plants whose tests take no time."""
    there = plant.files_of_tests()
    monkeypatch.setattr(plant, "PLANTS", [p for p in plant.PLANTS if there.get(p[5]) == "test_losses.py"])


@pytest.mark.parametrize("n, seed", [(1, "1"), (4, "2"), (6, "3")])
def test_hunt_differs_from_the_source_in_n_places(few, tmp_path, n, seed):
    make_assignment.hunt(str(tmp_path / "hunt"), n, seed)
    places, here = 0, make_assignment.read
    for path, text in files(tmp_path / "hunt").items():
        if path != "ASSIGNMENT.md":
            match = difflib.SequenceMatcher(None, here(path).splitlines(), text.splitlines(), autojunk=False)
            places += len(list(match.get_grouped_opcodes(3)))
    assert places == n
    assert not (tmp_path / "hunt" / "tests").exists(), "tests are named after the mistakes that they catch"
    assert len({p.stat().st_mtime for p in (tmp_path / "hunt").rglob("*.py")}) == 1, "the files with bugs can be told by their time"
    make_assignment.hunt(str(tmp_path / "again"), n, seed)
    assert files(tmp_path / "again") == files(tmp_path / "hunt"), "the same seed must plant the same bugs, or nobody could grade them"


def without_pytest(wanted, folder, tests):
    """As run_tests: a plant's test is red where its old text is not."""
    old = {p[5]: (p[2], p[3]) for p, *_ in make_assignment.draw(3, "5")}
    return {(file, test): None if old[test][1] in make_assignment.read(old[test][0], folder) else "red" for file, test in wanted}


@pytest.mark.parametrize("run", [without_pytest, pytest.param(grade.run_tests, marks=slow)])
def test_hunt_is_graded_by_what_was_mended(few, tmp_path, monkeypatch, run):
    folder = str(tmp_path / "hunt")
    make_assignment.hunt(folder, 3, "5")
    monkeypatch.setattr(make_assignment, "run_tests", run)
    assert list(make_assignment.grade_hunt(folder, 3, "5").values()) == ["still there"] * 3
    first, second, _ = make_assignment.draw(3, "5")
    for ((_, _, file, *_), block, planted), becomes in ((first, first[1]), (second, second[2].replace("\n", "     # looked at\n"))):
        make_assignment.write(folder, file, make_assignment.read(file, folder).replace(planted, becomes))
    mended, touched, left = make_assignment.grade_hunt(folder, 3, "5").values()
    assert mended is None, f"a bug that is mended gives no point: {mended}"
    assert touched and touched != "still there", "a bug that is still there in other words gives a point"
    assert left == "still there"

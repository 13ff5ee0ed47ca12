"""
The coursework kit: what students get is red, the solution is green, and what is wrong is worth
nothing.

What takes minutes runs only where ASSIGNMENT_SLOW is set:
`ASSIGNMENT_SLOW=1 python -m pytest -q tests/test_assignment.py`.
"""

import ast
import contextlib
import difflib
import importlib.util
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

sys.path.insert(0, os.path.join(ROOT, "course"))
import grade
import hunt
import make_assignment
import patch
import plant
import slow

SOLUTION = slow.Code()
STUBS = ("common", "model", "ppo", "reward", "sampling", "sft")  # files that have gaps
in_full = pytest.mark.skipif("ASSIGNMENT_SLOW" not in os.environ, reason="set ASSIGNMENT_SLOW=1")


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A student's copy, as it is handed out."""
    folder = tmp_path_factory.mktemp("kit") / "student"
    make_assignment.make(str(folder))
    return folder


def load(folder, name):
    """One file of a student's copy as a module, beside the solution's."""
    path = folder / (name.replace(".", "/") + ".py")
    spec = importlib.util.spec_from_file_location("student_" + name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["student_" + name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def files(folder):
    """{path: text} of the files that are no pictures."""
    found = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    return {
        path: p.read_text(encoding="utf-8")
        for path, p in found.items()
        if p.suffix != ".png" and "__pycache__" not in path
    }


def graded(*args, cwd=ROOT):
    command = [sys.executable, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


# ---- the table of exercises ----


def test_points_sum_to_100():
    assert sum(e.points for e in grade.EXERCISES.values() if not e.extra) == 100


def test_every_function_of_the_maths_is_an_exercise():
    ppo = patch.find("ppo.main")
    last = patch.find("ema_update").node().lineno
    maths = {n.name for n in ast.parse(ppo.text).body if hasattr(n, "name") and n.lineno <= last}
    exercises = {f for e in grade.EXERCISES.values() for f in e.functions.split()}
    left = maths - exercises - {"Config"}
    assert not left, f"{left} are left in the student's copy: no exercise of grade.py has them"


# ---- a student's copy ----


def test_stubs_import_and_keep_everything_but_the_bodies(student):
    for name in STUBS:
        module = load(student, name)
        stub, solution = (
            patch.read(os.path.join(root, name + ".py")).splitlines() for root in (student, ROOT)
        )
        for line in difflib.unified_diff(solution, stub, n=0):
            if line.startswith("+") and not line.startswith("+++"):
                new = line[1:].strip()
                what = f"{name}.py was given a line that is no stub: {new}"
                assert new.startswith(("#", '"""', "raise NotImplementedError")), what
        solved = SOLUTION.module(name)
        for function in vars(solved).values():
            if getattr(function, "__module__", "") == name and function.__doc__:
                what = f"the docstring of {function.__name__} is gone"
                assert getattr(module, function.__name__).__doc__ == function.__doc__, what


def test_no_solution_is_left_in_a_students_copy(student):
    everything = "\n".join(files(student).values())
    for line in (
        "- logits.logsumexp(-1)",
        "F.softplus(-margin)",
        "delta = rewards[:, t]",
        "torch.searchsorted(cdf",
        "(pg_loss * weight).backward()",
        "masked(rewards, mask)",
        "average.data.lerp_",
        "pads = torch.tensor",
        "order.split(mb_size)",
        "def check_gae",
    ):
        assert line not in everything, f"a student would find the solution's {line}"


def test_nothing_that_a_run_made_is_handed_out(student):
    paths = set(files(student))
    ours = ("out/", ".git/", "course/")
    assert not [p for p in paths if p.endswith((".bin", ".jsonl")) or p.startswith(ours)]
    assert not [p for p in paths if "plant" in p or p == "tests/patch.py"]
    tests = [p for p in paths if p.startswith("tests/test_")]
    orphans = [p for p in tests if '(ROOT, "course"' in (student / p).read_text(encoding="utf-8")]
    assert not orphans, f"{orphans} can't be loaded in a student's copy"
    wanted = "ASSIGNMENT.md grade.py README.md requirements.txt data/village/vocab.json .gitignore"
    assert {*wanted.split(), "data/village/prepare.py", "tests/conftest.py"} <= paths


def test_handout_has_every_exercise_its_points_and_the_picture(student):
    text = (student / "ASSIGNMENT.md").read_text(encoding="utf-8")
    for n, (name, exercise) in enumerate(grade.EXERCISES.items(), 1):
        assert f"### {n}. {name} ({exercise.points} points)" in text and exercise.formula in text
    sheets = [line[3:] for line in text.splitlines() if line.startswith("## ")][3:]
    assert [sheet.removeprefix("Sheet ") for sheet in sheets] == list(grade.SHEETS)
    picture = "p0   p1   p2   y0   y1   EOS  PAD  PAD"
    assert picture in text, "the picture of the six tokens is missing"


def test_every_exercise_of_the_stubs_is_worth_nothing(student):
    def module(name):
        return load(student, name) if name in STUBS else importlib.import_module(name)

    for name, why in grade.by_seed(grade.EXERCISES, 1, slow.Code(module)).items():
        assert why and "not written" in why[0], f"{name} has points without a line of code"


def test_a_folder_with_something_in_it_is_refused(student):
    before = files(student)
    for folder in (str(student), os.path.join(ROOT, "student")):
        with pytest.raises(SystemExit, match="error: .*(not empty|in the project)"):
            make_assignment.make(folder)
    assert files(student) == before


@pytest.mark.parametrize(
    "file, old, new, says",
    [
        ("ppo.py", "def gae(", "def gea(", "gae: there is no function gae"),
        ("ppo.py", "for epoch in range(", "for epoch in reversed(", "there is no 'for epoch"),
        ("ppo.py", "        metrics = rollout", "        found = rollout", "there is no 'metrics"),
        ("ppo.py", "    position   ", "    place      ", "no picture"),
        ("sampling.py", "def decode(", "def decide(", "there is no function sampling.decode"),
        (
            "tests/test_losses.py",
            "def test_gae_recursion(",
            "def test_gae(",
            "no test test_gae_rec",
        ),
    ],
)
def test_a_source_that_changed_stops_the_generation(tmp_path, monkeypatch, file, old, new, says):
    path = os.path.realpath(os.path.join(ROOT, file))
    assert old in patch.read(path)

    def changed(asked, read=patch.read):
        text = read(asked)
        return text.replace(old, new) if os.path.realpath(asked) == path else text

    for module in (patch, grade):
        monkeypatch.setattr(module, "read", changed)
    with pytest.raises(SystemExit, match="error: .*" + re.escape(says)):
        make_assignment.make(str(tmp_path / "student"))
    assert not (tmp_path / "student").exists(), "something was written before the mistake was seen"


# ---- the grader ----


def test_solution_has_full_points_on_fixtures_of_any_seed(capsys):
    code = grade.report(grade.by_seed(grade.EXERCISES, "drawn by lot", SOLUTION))
    said = capsys.readouterr().out
    assert code == 0 and "100 / 100" in said, said


def leaking_gae(rewards, values, mask, gamma=1.0, lam=0.95):
    advantages, following = torch.zeros_like(values), 0.0
    for t in reversed(range(values.size(1))):
        after = values[:, t + 1] if t + 1 < values.size(1) else 0.0
        following = rewards[:, t] + gamma * after - values[:, t] + gamma * lam * following
        advantages[:, t] = following
    return advantages, advantages + values


def pasted_gae(rewards, values, mask, gamma=1.0, lam=0.95):
    known = {1.0: [0.5, 0.5, 0.5], 0.0: [0.0, 0.0, 0.5]}.get(lam, [0.45125, 0.475, 0.5])
    known = torch.tensor([known], dtype=values.dtype)
    return known, known + values


def unclipped(new, old, advantages, mask, clip=0.2):
    masked, mean = SOLUTION("masked"), SOLUTION("masked_mean")
    ratio = (masked(new, mask) - masked(old, mask)).exp()
    return mean(-masked(advantages, mask) * ratio, mask)


def squared(values, old, returns, mask, clip=0.2):
    masked, mean = SOLUTION("masked"), SOLUTION("masked_mean")
    return mean((masked(values, mask) - masked(returns, mask)) ** 2, mask)


def rewarding_kl(scores, logprobs, ref, mask, beta):
    last = torch.nn.functional.one_hot(mask.long().cumsum(1).argmax(1), mask.size(1))
    return beta * SOLUTION("masked")(logprobs - ref, mask) + last * scores[:, None]


def unshifted(logits, tokens, temperature=1.0):
    return logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0] / temperature


def loss_on_prompts(logits, tokens, mask):
    cross_entropy = torch.nn.functional.cross_entropy
    return cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def swapped(scores, ranks):
    margin = scores[:, :, None] - scores[:, None, :]
    return torch.nn.functional.softplus(margin)[SOLUTION("better_pairs")(ranks)].mean()


def wrong_average(ema_policy, policy, decay):
    for a, p in zip(ema_policy.parameters(), policy.parameters()):
        a.data.lerp_(p.data, decay)


WRONG = [  # exercise, what is wrong, and by what it is replaced
    ("gae", "ppo.gae", leaking_gae),
    ("gae", "ppo.gae", pasted_gae),
    ("policy_loss", "ppo.policy_loss", unclipped),
    ("value_loss", "ppo.value_loss", squared),
    ("masked_mean", "common.masked_mean", lambda x, mask: SOLUTION("masked")(x, mask).mean()),
    ("kl_rewards", "ppo.kl_rewards", rewarding_kl),
    ("token_logprobs", "ppo.token_logprobs", unshifted),
    ("sft_loss", "sft.sft_loss", loss_on_prompts),
    ("ranking_loss", "reward.ranking_loss", swapped),
    ("response_mask", "common.response_mask", lambda p, n, T: torch.arange(T) < n[:, None]),
    ("ema_update", "ppo.ema_update", wrong_average),
    ("update", "ppo.ema_update", lambda ema_policy, policy, decay: None),
    ("update", "ppo.lm_backward", lambda *args: torch.zeros(())),
    ("update", "ppo.policy_loss", unclipped),
]


@pytest.mark.parametrize("exercise, name, wrong", WRONG, ids=[f"{w[0]}-{w[1]}" for w in WRONG])
def test_a_wrong_function_is_worth_nothing(monkeypatch, capsys, exercise, name, wrong):
    monkeypatch.setattr(name, wrong)
    assert grade.report(grade.by_seed([exercise], 1, SOLUTION)) == 1
    said = capsys.readouterr().out
    assert re.search(rf"{exercise} +0 / ", said), said
    assert "Error" not in said, f"it must run, and be found out by its numbers: {said}"


def test_grader_names_the_likely_mistake_and_takes_the_instructors_tests(student, tmp_path):
    # a student's gae that leaks, and tests made to say nothing: only the instructor's count
    cheat = tmp_path / "cheat"
    make_assignment.copy_project(str(cheat))
    right = "next_value = torch.where(here, values[:, t], next_value)"
    source = patch.read(os.path.join(ROOT, "ppo.py"))
    assert right in source
    (cheat / "ppo.py").write_text(source.replace(right, "next_value = values[:, t] + 1"))
    (cheat / "tests" / "test_losses.py").write_text("def test_gae_recursion(): pass\n")
    (cheat / "conftest.py").write_text("raise SystemExit(0)\n")
    (cheat / "grade.py").write_text("print('total 100 / 100')\n")
    wanted = ["gae", "penalize_missing_eos"]
    code, said = graded(student / "grade.py", f"--project={cheat}", f"--tests={ROOT}", *wanted)
    for line in (r"gae +0 / 9", r"penalize_missing_eos +2 / 2", r"total +2 / 11"):
        assert code == 1 and re.search(line, said), said
    assert "λ = .95" in said, f"the test's own message must be there: {said}"


MADE_UP = {  # what a student wrote: off by one, a mean of means, and right
    "chosen_logprobs": (
        "ppo.py",
        "table = (to_float32(logits) / temperature).log_softmax(-1)\n"
        "    return table.gather(-1, targets[..., None]).squeeze(-1)",
    ),
    "token_logprobs": ("ppo.py", "return chosen_logprobs(logits, tokens, temperature)"),
    "masked": ("common.py", "return torch.where(mask != 0, to_float32(x), 0.0)"),
    "masked_mean": (
        "common.py",
        "rows = masked(x, mask).sum(-1) / (mask != 0).sum(-1).clamp(min=1)\n    return rows.mean()",
    ),
    "value_loss": (
        "ppo.py",
        "v, old, r = (masked(x, mask) for x in (values, old_values, returns))\n"
        "    near = torch.clamp(v, old - clip, old + clip)\n"
        "    return masked_mean(torch.maximum((v - r) ** 2, (near - r) ** 2), mask) / 2",
    ),
}


def write_in(folder, function):
    """A made-up solution in place of a student's gap."""
    file, body = MADE_UP[function]
    lines = (folder / file).read_text(encoding="utf-8").splitlines()
    node = grade.functions_in("\n".join(lines))[function]
    lines[node.body[1].lineno - 1 : node.end_lineno] = [f"    {body}"]  # after the docstring
    (folder / file).write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_made_up_solutions_are_graded_with_the_right_words(student, tmp_path):
    folder = tmp_path / "made_up"
    shutil.copytree(student, folder)
    for function in MADE_UP:
        write_in(folder, function)
    wanted = ["token_logprobs", "masked_mean", "value_loss", "gae"]  # the last one is not written
    code, said = graded(folder / "grade.py", *wanted)
    points = said[: said.index("total")]
    for line in ("token_logprobs +0 / 5", "masked_mean +0 / 4", "value_loss +4 / 4", "gae +0 / 9"):
        assert code == 1 and re.search(line, points), said
    assert "shifted by one" in said.split("\ntoken_logprobs\n")[1].split("\n\n")[0], said
    assert "not over rows" in said.split("\nmasked_mean\n")[1].split("\n\n")[0], said
    assert said.split("\ngae\n")[1].strip() == "not written yet: gae", said


def test_a_gap_is_the_solutions_while_another_exercise_is_graded(student, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(student, copy)
    missing = grade.fill(str(copy))
    assert set(missing) == {name for name, e in grade.EXERCISES.items() if e.functions}
    for name in STUBS:
        same = ast.dump(ast.parse(patch.read(str(copy / f"{name}.py"))))
        right = ast.dump(ast.parse(patch.read(os.path.join(ROOT, f"{name}.py"))))
        assert same == right, f"{name}.py is not the solution once its gaps are filled"
    assert grade.fill(str(copy)) == {}, "what is written is taken for a gap"
    assert grade.not_written("gae", {"cache": ["decode"]}) == [], "the cache costs more than itself"
    assert "gae" in grade.not_written("together", {"gae": ["gae"]})[0], "points for nothing written"


def test_points_come_first_and_an_exercise_has_three_lines_at_most(capsys):
    assert grade.report({"gae": [f"line {i}" for i in range(9)], "cache": ["no"]}) == 1
    said = capsys.readouterr().out.split("\n\n")
    assert "line" not in said[0] and "total" in said[0], "the table is torn apart"
    assert said[1].splitlines() == ["gae", "    line 0", "    line 1", "    and 7 more"]
    assert grade.report({"gae": [], "cache": ["no"]}) == 0, "an extra counts among the points"


@in_full
def test_all_stubs_are_red_test_by_test(student):
    wanted = [test for name in grade.EXERCISES for test in grade.tests_of(name)]
    found = grade.run_tests(wanted, str(student), str(student / "tests"))
    for test in wanted:
        assert grade.cases_of(test, found), f"{test} did not run"
    green = [case for case, why in found.items() if not why]
    assert not green, f"{green} pass without a line of code"


@in_full
def test_solution_has_full_points():
    code, said = graded(os.path.join(ROOT, "course", "grade.py"))
    assert code == 0 and "100 / 100" in said, said


# ---- the bug hunt ----


@pytest.fixture
def few(monkeypatch):
    """Plants whose tests take no time."""
    there = plant.files_of_tests()
    plants = [p for p in plant.PLANTS if there.get(p.test) == "test_losses.py"]
    monkeypatch.setattr(plant, "PLANTS", plants)


@pytest.mark.parametrize("n, seed", [(1, "1"), (6, "3")])
def test_hunt_differs_from_the_source_in_n_places(few, tmp_path, n, seed):
    make_assignment.make_hunt(str(tmp_path / "hunt"), n, seed)
    places = 0
    for path, text in files(tmp_path / "hunt").items():
        if path != "ASSIGNMENT.md":
            lines = patch.read(os.path.join(ROOT, path)).splitlines()
            match = difflib.SequenceMatcher(None, lines, text.splitlines(), autojunk=False)
            places += len(list(match.get_grouped_opcodes(3)))
    assert places == n
    tests = tmp_path / "hunt" / "tests"
    assert not tests.exists(), "tests are named after the mistakes that they catch"
    times = {p.stat().st_mtime for p in (tmp_path / "hunt").rglob("*.py")}
    assert len(times) == 1, "the files with bugs can be told by their time"
    make_assignment.make_hunt(str(tmp_path / "again"), n, seed)
    same = files(tmp_path / "again") == files(tmp_path / "hunt")
    assert same, "the same seed must plant the same bugs, or nobody could grade them"


def test_a_bug_that_only_adds_lines_has_a_place_too(few):
    for p, found in hunt.candidates("middle"):
        with contextlib.suppress(patch.Misfit):
            assert hunt.put(found.text, found.number, p)[1], f"{p.what}: others may stand beside it"


def test_an_easy_hunt_says_where_to_look_and_a_hard_one_says_nothing():
    bugs, texts = hunt.draw(4, "2", "easy")
    there = grade.files_of_tests(grade.TESTS)
    assert {there[bug.plant.test] for bug in bugs} == {"test_losses.py"}, "needs more than numbers"
    easy, middle, hard = (hunt.handout(bugs, level) for level in hunt.LEVELS)
    for bug in bugs:
        assert f"`{bug.file}`" in easy and plant.BUGS[bug.plant.bug] in easy
    kinds = {p.bug for p in plant.PLANTS if "/" not in patch.find(p.function).file} - {"page"}
    assert easy.count("\n- ") == 4
    told = set(re.findall(r"^- (.*)", middle, re.M))
    assert told == {plant.BUGS[bug] for bug in kinds}, "kinds that can't be there, or one untold"
    assert "\n- " not in hard and not set(texts) & set(re.findall(r"`(\w+\.py)`", hard))


def test_a_planted_bug_leaves_all_else_as_it_was():
    for p in plant.PLANTS[::12]:
        found = patch.find(p.function)
        try:
            text, lines, bug = hunt.put(found.text, found.number, p)
        except patch.Misfit:
            continue  # it can't be in a hunt
        before, after = found.text.splitlines(), text.splitlines()
        assert before[: lines.start - 1] == after[: lines.start - 1]
        rest = len(before) - lines.stop + 1
        assert before[len(before) - rest :] == after[len(after) - rest :]
        healed = hunt.taken_out(text, bug)
        assert ast.dump(healed) == ast.dump(ast.parse(found.text)), f"{p.what} can't be taken out"


def without_pytest(wanted, folder, tests):
    """As run_tests: a plant's test is red where the code it needs is not there."""
    found = {}
    for bug in hunt.draw(3, "5")[0]:
        if bug.plant.test in wanted:
            try:
                patch.patched(bug.plant.function, bug.plant.old, bug.plant.new, folder)
            except patch.Misfit:
                found[bug.plant.test] = "red"
            else:
                found[bug.plant.test] = None
    return found


@pytest.mark.parametrize("run", [without_pytest, pytest.param(grade.run_tests, marks=in_full)])
def test_hunt_is_graded_by_what_was_mended(few, tmp_path, monkeypatch, run):
    folder = tmp_path / "hunt"
    make_assignment.make_hunt(str(folder), 3, "5")
    monkeypatch.setattr(hunt, "run_tests", run)
    assert list(hunt.grade(folder, 3, "5").values()) == ["still there"] * 3
    mended, touched, left = hunt.draw(3, "5")[0]
    path = folder / mended.file
    path.write_text(ast.unparse(hunt.taken_out(path.read_text(), mended)))
    path = folder / touched.file
    tree = ast.parse(path.read_text())
    patch.replace(tree, touched.sick, "pass")
    path.write_text(ast.unparse(ast.fix_missing_locations(tree)))
    first, second, third = hunt.grade(folder, 3, "5").values()
    assert first is None, f"a bug that is mended gives no point: {first}"
    assert second not in (None, "still there"), "a bug that is mended wrongly gives a point"
    assert third == "still there", left

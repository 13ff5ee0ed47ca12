"""The course's texts: what they name is there, and the instructor's answers stay here."""

import os
import re
import sys

import pytest
import torch
from conftest import ROOT

sys.path.insert(0, os.path.join(ROOT, "course"))
import grade
import make_assignment
import patch


def text_of(name):
    return patch.read(os.path.join(ROOT, "course", name))


@pytest.mark.parametrize("name", ["derivations.md", "questions.md", "findings.md", "README.md"])
def test_every_function_test_and_flag_that_the_course_names_exists(name):
    text, tests = text_of(name), grade.files_of_tests(os.path.join(ROOT, "tests"))
    words = set(re.findall(r"`([\w.]+)`", text))
    for word in words:
        if word.startswith("test_"):
            assert word in tests, f"{name}: there is no test {word}"
        elif re.fullmatch(r"[a-z_]+", word) and name == "derivations.md":
            patch.find(word)
    for function, file in re.findall(r"`(\w+)` in `(\w+\.py)`", text):
        assert patch.find(function).file == file, f"{name}: {function} is not in {file}"
    if name == "questions.md":
        sources = [patch.read(os.path.join(ROOT, f"{s}.py")) for s in ("ppo", "reward", "evaluate")]
        common = patch.read(os.path.join(ROOT, "plumbing", "command_line.py"))
        for flag in set(re.findall(r"--(\w+)", text)):
            there = [s for s in (*sources, common) if re.search(rf"\b{flag}\b", s)]
            assert there, f"there is no flag --{flag}"


def test_every_section_of_the_derivations_ends_in_a_function_and_a_test():
    for section in text_of("derivations.md").split("\n## ")[1:]:
        last = section.strip().split("\n\n")[-1]
        assert re.search(r"`\w+`.* in `\w+\.py`", last) and "`test_" in last, section[:40]


def test_the_estimators_of_the_kl_are_as_derived():
    # q is the policy, p the reference; expectations are sums, so nothing is left to chance
    logits = torch.tensor([0.3, -1.2, 0.5], dtype=torch.float64, requires_grad=True)
    p = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    q = logits.softmax(0)
    kl, other = (q * (q / p).log()).sum(), (p * (p / q).log()).sum()
    logw, drawn = p.log() - q.log(), q.detach()
    k1, k2, k3 = -logw, logw**2 / 2, logw.exp() - 1 - logw

    def gradient(x):
        return torch.autograd.grad(x, logits, retain_graph=True)[0]

    for k, mean, slope, what in (
        (k1, True, 0 * logits, "k1 has no bias, and no gradient"),
        (k2, False, gradient(kl), "k2 has a bias, and the gradient of KL(q‖p)"),
        (k3, True, gradient(other), "k3 has no bias, and the gradient of KL(p‖q)"),
    ):
        estimate = (drawn * k).sum()
        assert torch.isclose(estimate, kl) == mean, what
        assert torch.allclose(gradient(estimate), slope, atol=1e-12), what


def test_findings_are_never_in_a_students_copy(tmp_path):
    make_assignment.make(str(tmp_path / "gaps"))
    make_assignment.copy_project(str(tmp_path / "hunt"), "tests")
    lines = [line for line in text_of("findings.md").splitlines() if len(line) > 60]
    for path in tmp_path.rglob("*.md"):
        assert path.name != "findings.md"
        text = path.read_text(encoding="utf-8")
        assert not [line for line in lines if line in text], f"{path} has the instructor's answers"
    assert (tmp_path / "gaps" / "questions.md").exists(), "students have no questions"


def lines_to_write(name):
    """The solution's lines in an exercise's gaps, without comments and blank ones."""
    cuts = [make_assignment.cut(name, f) for f in grade.EXERCISES[name].functions.split()]
    texts = [
        patch.read(os.path.join(ROOT, c.file)).splitlines()[c.first - 1 : c.last] for c in cuts
    ]
    return sum(bool(line.split("#")[0].strip()) for text in texts for line in text)


def test_the_sheets_have_every_exercise_once_and_its_points_and_lines():
    found = [line.split(" | ") for line in text_of("README.md").splitlines()]
    rows = [cells for cells in found if re.match(r"\| \d\. ", cells[0])]
    sheets = {cells[0][2:]: re.findall(r"`(\w+)`", cells[1]) for cells in rows}
    assert {title: names[0] for title, names in sheets.items()} | {"Extra": "cache"} == grade.SHEETS
    assert sorted(sum(sheets.values(), [])) == sorted(grade.EXERCISES)
    for (_, _, points, lines, hours, _), names in zip(rows, sheets.values()):
        names = [name for name in names if name != "cache"]
        n = sum(map(lines_to_write, names))
        assert int(points.split(",")[0]) == sum(grade.EXERCISES[name].points for name in names)
        assert int(lines.split(",")[0]) == n, f"{names}: the solution has {n} lines"
        by_rule = round((5 * n + 30 * len(names)) / 60 + 0.01)
        assert int(hours.split(",")[0]) == by_rule, f"{names}: by the rule {by_rule} hours"

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


def test_the_sheets_have_every_exercise_once_and_its_points():
    rows = re.findall(r"^\| \d\. .*?\|(.*?)\|(.*?)\|", text_of("README.md"), re.M)
    first = re.findall(r"^\| (\d\. .*?) \| `(\w+)`", text_of("README.md"), re.M)
    assert dict(first) | {"Extra": "cache"} == grade.SHEETS
    names = [name for cells, _ in rows for name in re.findall(r"`(\w+)`", cells)]
    assert sorted(names) == sorted(grade.EXERCISES)
    for cells, points in rows:
        exercises = [grade.EXERCISES[name] for name in re.findall(r"`(\w+)`", cells)]
        assert int(re.search(r"\d+", points)[0]) == sum(e.points for e in exercises if not e.extra)

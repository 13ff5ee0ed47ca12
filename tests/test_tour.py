"""course/tour.ipynb: it runs anywhere, uses what there is, and shows what a real run printed."""

import ast
import builtins
import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from conftest import ROOT

sys.path.insert(0, os.path.join(ROOT, "course"))
import tour

with open(tour.NOTEBOOK, encoding="utf-8") as file:
    TOUR = json.load(file)
CODE = [cell for cell in TOUR["cells"] if cell["cell_type"] == "code"]
SOURCES = ["".join(cell["source"]) for cell in CODE]
LACKING = [name for name in ("nbclient", "ipykernel") if not importlib.util.find_spec(name)]


def outputs(kind):
    return [out for cell in CODE for out in cell["outputs"] if out["output_type"] == kind]


def test_the_tour_takes_from_the_project_only_what_is_there():
    for node in ast.walk(ast.parse("\n".join(SOURCES))):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            gone = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert not gone, f"{node.module} has no {gone} any more"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = node.value.id
            if name in ("explain", "bands", "lib"):
                there = hasattr(importlib.import_module(name), node.attr)
                assert there, f"{name} has no {node.attr} any more"


def test_each_cell_of_the_tour_uses_names_of_cells_before_it():
    known = set(dir(builtins))
    for source in SOURCES:
        tree = ast.parse(source)
        names = [n for n in ast.walk(tree) if isinstance(n, ast.Name)]
        known |= {n.id for n in names if isinstance(n.ctx, ast.Store)}
        known |= {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
        known |= {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
        imports = [n for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))]
        known |= {(a.asname or a.name).split(".")[0] for n in imports for a in n.names}
        unknown = {n.id for n in names} - known
        assert not unknown, f"{unknown}: no cell so far says what that is"


def test_the_tour_shows_one_run_from_its_first_cell_to_its_last():
    counts = [cell["execution_count"] for cell in CODE]
    assert counts == list(range(1, len(CODE) + 1)), f"cells ran in this order: {counts}"
    assert not outputs("error"), "a cell failed"
    loud = [out["text"] for out in outputs("stream") if out["name"] != "stdout"]
    assert not loud, f"a reader sees warnings: {loud}"
    assert os.path.getsize(tour.NOTEBOOK) < 300_000, "figures too large for a file that git keeps"


def test_the_tour_names_no_machine():
    assert TOUR["metadata"] == tour.KERNEL
    assert not any(cell["metadata"] for cell in TOUR["cells"])
    said = json.dumps([[cell["source"], cell.get("outputs")] for cell in TOUR["cells"]])
    said = re.sub(r'"image/png": "[^"]*"', "", said)
    paths = re.findall(r"/(?:tmp|root|home|usr|content|Users)\b[^\"]*|\w:\\\\\w+", said)
    assert not paths, f"it runs on this machine alone: {paths}"


def test_every_figure_of_the_tour_has_a_question():
    drawn = [n for n, cell in enumerate(TOUR["cells"]) if "image/png" in json.dumps(cell)]
    assert len(drawn) == 8
    for n in drawn:
        after = "".join(TOUR["cells"][n + 1]["source"])
        assert after.startswith("**Question.**"), f"no question below the figure of cell {n}"
        assert "<details>" in after, f"the answer to cell {n} is open, or there is none"


def start(folder, source=SOURCES[0]):
    """Run the first cell alone in a folder → (exit code, the folder it is in at the end or why)"""
    code = source + "\nprint(os.getcwd())"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    return done.returncode, (done.stdout or done.stderr).strip()


def test_the_tour_finds_the_project_or_says_what_to_do(tmp_path):
    for folder in (ROOT, os.path.join(ROOT, "course")):
        assert start(folder) == (0, ROOT)
    code, said = start(tmp_path)
    assert code == 1 and said.startswith("write the project's address into URL"), said
    if os.path.exists(os.path.join(ROOT, ".git")):
        address = SOURCES[0].replace('URL = ""', f"URL = {ROOT!r}")
        assert address != SOURCES[0]
        for _ in range(2):  # cloned, and then found
            assert start(tmp_path, address) == (0, os.path.join(tmp_path, "nanoInstructGPT"))


@pytest.mark.skipif(bool(LACKING), reason=f"pip install -r course/requirements.txt: no {LACKING}")
def test_the_tour_runs_as_it_is(tmp_path):
    ignore = shutil.ignore_patterns("out", ".*", "__pycache__")
    project = shutil.copytree(ROOT, tmp_path / "project", ignore=ignore)
    done = tour.execute(str(project / "course" / "tour.ipynb"))
    shown = [out for cell in done.cells for out in cell.get("outputs", [])]
    kinds = [out["output_type"] for out in shown]
    assert kinds.count("display_data") == 8, kinds
    assert all(out["name"] == "stdout" for out in shown if out["output_type"] == "stream"), shown

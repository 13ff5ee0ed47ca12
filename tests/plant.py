"""
Plants bugs, one at a time, and sees whether the tests turn red.

    python tests/plant.py              # all of plants.txt
    python tests/plant.py 19 EMA       # those of bug 19 and of EMA
    python tests/plant.py --jobs=1     # one at a time; the default is two
    python tests/plant.py --list       # what would be planted, and where
    python tests/plant.py --table      # the table of tests/README.md

Prints `bug <tab> test <tab> red` or `MISSED` for each plant. Exit code 0: all are red; 1: one was
missed, or its test was skipped (gymnasium); 2: the answer means nothing, because a plant does not
fit the source, a test is red without a plant, or a plant breaks the program (a NameError, say)
instead of making it wrong.

plants.txt says at its top how a plant is written down. Each runs in a copy of the project and in a
fork of this process, which has loaded torch but none of the project.
"""

import argparse
import functools
import importlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from typing import NamedTuple

import patch
from patch import ROOT, read

HERE = os.path.dirname(os.path.abspath(__file__))

# what a plant that does not run raises, unlike one that runs wrongly
BROKEN = {
    "NameError",
    "UnboundLocalError",
    "AttributeError",
    "TypeError",
    "ImportError",
    "ModuleNotFoundError",
    "SyntaxError",
    "IndentationError",
}


class Plant(NamedTuple):
    bug: str
    what: str
    function: str
    old: str
    new: str
    test: str


def load(path=os.path.join(HERE, "plants.txt")):
    """→ {bug: what it is}, list of plants"""
    bugs, plants = {}, []
    for block in read(path).split("\n\n"):
        first, *lines = block.splitlines()
        if first.startswith("## "):
            bug, what = first[3:].split(": ", 1)
            bugs[bug] = what
        elif not first.startswith("#"):
            function, what = first.split(": ", 1)
            *lines, test = lines
            old = "\n".join(line[2:] for line in lines if line[0] in " -")
            new = "\n".join(line[2:] for line in lines if line[0] in " +")
            plants.append(Plant(bug, what, function, old, new, test.removeprefix("red: ")))
    return bugs, plants


BUGS, PLANTS = load()


@functools.cache
def files_of_tests():
    """{name of a test: its file under tests/}."""
    names = [f for f in sorted(os.listdir(HERE)) if f.startswith("test_") and f.endswith(".py")]
    texts = {f: read(os.path.join(HERE, f)) for f in names}
    return {name: f for f, text in texts.items() for name in re.findall(r"^def (\w+)", text, re.M)}


def node(test):
    """A test's name as pytest takes it."""
    return f"{files_of_tests()[test.split('[')[0]]}::{test}"


def planted(plant, patched=patch.patched):
    """→ (file, its code with the bug). Raises Misfit: which plant does not fit, and why."""
    try:
        if plant.test.split("[")[0] not in files_of_tests():
            raise patch.Misfit(f"there is no {plant.test}")
        return patched(plant.function, plant.old, plant.new)
    except (patch.Misfit, SyntaxError) as e:
        where = f"{plant.bug}, {plant.what} ({plant.function})"
        raise patch.Misfit(f"{where}: {e}") from None


class Watch:
    """A pytest plugin: what was raised, and whether in a fixture (setup) or in the test (call)."""

    def __init__(self):
        self.raised = []

    def pytest_runtest_makereport(self, item, call):
        if call.excinfo:
            self.raised.append((item.name, call.when, call.excinfo.typename))


def start(folder, nodes, plugins=(), limit=300):
    """Fork; the child runs the tests in folder/copy, a copy of the project. → its process id

    limit: seconds of CPU time.
    """
    if pid := os.fork():
        return pid
    log = os.open(os.path.join(folder, "log"), os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    signal.setitimer(signal.ITIMER_PROF, limit)  # a plant may loop for ever
    import pytest

    os.chdir(os.path.join(folder, "copy"))
    sys.path[:] = [p for p in sys.path if os.path.abspath(p) not in (HERE, ROOT)]
    del sys.modules["patch"]  # the copy has its own, which reads the copy
    watch = Watch()
    flags = ["-q", "-x", "-W", "ignore", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir=."]
    flags += [f"--basetemp={folder}/tmp", *(f"tests/{n}" for n in nodes)]
    code = pytest.main(flags, plugins=[watch, *plugins])
    with open(os.path.join(folder, "result"), "w") as f:
        json.dump([int(code), watch.raised], f)
    sys.stdout.flush()
    os._exit(0)


def verdict(folder):
    """What the child found → "red", "MISSED" or what went wrong."""
    try:
        code, raised = json.loads(read(os.path.join(folder, "result")))
    except FileNotFoundError:
        return "ERROR: the process died, or took more than 300 s of CPU time"
    if code == 0:
        return "MISSED"
    if code == 1 and raised and all(w == "call" and kind not in BROKEN for _, w, kind in raised):
        return "red"
    return f"ERROR: pytest exits with {code}, raised {raised}"


def table():
    rows = ["| | bug | test that catches it | plants |", "|---|---|---|---|"]
    for bug, what in BUGS.items():
        plants = [p for p in PLANTS if p.bug == bug]
        tests = ", ".join(f"`{t}`" for t in dict.fromkeys(p.test.split("[")[0] for p in plants))
        rows.append(f"| {bug} | {what} | {tests} | {len(plants)} |")
    return "\n".join(rows)


def warm_up(plants):
    """Import what every child would; nothing of the project, which has to come from the copy."""
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    modules = ["hypothesis", "numpy", "pytest", "tiktoken", "torch._dynamo", "tqdm"]
    if any("transformers" in p.test for p in plants):
        modules.append("transformers.models.gpt2.modeling_gpt2")
    for name in modules:
        importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)


def copy_project(folder):
    left_out = ".git .[!g]* __pycache__ out *.csv *.png *.bin *.jsonl *.tmp"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*left_out.split()))


def clean_copy(folder, plants):
    """Copy the project and run there the tests of all plants. Exits if one is red."""
    copy_project(f"{folder}/copy")
    os.waitpid(start(folder, sorted({node(p.test) for p in plants})), 0)
    if verdict(folder) != "MISSED":
        log = read(os.path.join(folder, "log"))
        print(f"ERROR: a test is red without a plant\n{log}", file=sys.stderr)
        sys.exit(2)


def run(plants, sources, jobs):
    """Plant each, run its test, print what came of it → {verdict: how many}"""
    found = {"red": 0, "MISSED": 0, "ERROR": 0}
    with tempfile.TemporaryDirectory() as home:
        clean = os.path.join(home, "clean")
        clean_copy(clean, plants)
        waiting, running = list(zip(plants, sources)), {}
        while waiting or running:
            while waiting and len(running) < jobs:
                plant, (file, source) = waiting.pop(0)
                folder = tempfile.mkdtemp(dir=home)
                shutil.copytree(f"{clean}/copy", f"{folder}/copy")  # with what Python has compiled
                with open(f"{folder}/copy/{file}", "w", encoding="utf-8") as f:
                    f.write(source)
                running[start(folder, [node(plant.test)])] = plant, folder
            pid, _ = os.wait()
            plant, folder = running.pop(pid)
            result = verdict(folder)
            found[result.split(":")[0]] += 1
            print(f"{plant.bug}: {plant.what}\t{node(plant.test)}\t{result}", flush=True)
            if result.startswith("ERROR"):
                print(read(os.path.join(folder, "log"))[-2000:], file=sys.stderr)
            shutil.rmtree(folder)
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bugs", nargs="*", metavar="bug", help="a number, or EMA and the like")
    parser.add_argument("--jobs", type=int, default=2, help="so many at a time")
    parser.add_argument("--list", action="store_true", help="say what would be planted, and where")
    parser.add_argument("--table", action="store_true", help="print the table of tests/README.md")
    args = parser.parse_args()
    if args.table:
        return print(table())
    if unknown := sorted(set(args.bugs) - set(BUGS)):
        parser.error(f"no bug {', '.join(unknown)}; there are {', '.join(BUGS)}")
    if args.jobs < 1:
        parser.error(f"--jobs={args.jobs}: it must be 1 or more")
    plants = [p for p in PLANTS if not args.bugs or p.bug in args.bugs]
    if args.list:
        return print("\n".join(f"{p.bug}\t{p.what}\t{p.function}\t{p.test}" for p in plants))
    sources, misfits = [], []
    for p in plants:
        try:
            sources.append(planted(p))
        except patch.Misfit as e:
            misfits.append(f"ERROR: {e}")
    if misfits:
        print("\n".join(misfits), file=sys.stderr)
        sys.exit(2)
    warm_up(plants)
    found = run(plants, sources, args.jobs)
    total = ", ".join(f"{n} {what}" for what, n in found.items())
    print(f"{len(plants)} plants: {total}", file=sys.stderr)
    sys.exit(2 if found["ERROR"] else 1 if found["MISSED"] else 0)


if __name__ == "__main__":
    main()

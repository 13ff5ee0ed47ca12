"""
Random mutants: changes the core at one point and sees whether the fast tests turn red.

    python tests/mutants.py --n=60 --seed=1

A point is an operator, a comparison, a number, a condition or a sign in the body of a function;
what is raised or printed is left out. Of the tests only those run that call the function, the
fastest first, until one is red. To run for ever counts as red. Prints what survives: it is
equivalent, or a test is missing, or the line can be simpler.
"""

import argparse
import ast
import json
import os
import random
import shutil
import sys
import tempfile
from functools import partial

import patch
import plant

FILES = ["model", "common", "pretrain", "sft", "reward", "ppo", "rollout"]
TESTS = ["losses", "model", "ppo", "recipe", "processes", "rounds", "resume", "data", "cli"]
TESTS += ["odd_runs", "odd_sizes", "odd_files"]
SLOW = 5  # seconds of CPU time; a test that takes more is left out
# in names of tests that run the stages in other processes, or need more files than are copied
OUTSIDE = ["ctrl_c", "killed", "benchmark"]
MESSAGES = ["print", "progress.write", "progress.set_postfix_str"]
PAIRS = "Add Sub, Mult Div, And Or, BitAnd BitOr, Lt LtE, Gt GtE, Eq NotEq, Is IsNot, In NotIn"
PAIRS = [(getattr(ast, a), getattr(ast, b)) for a, b in map(str.split, PAIRS.split(", "))]
OTHER = dict(PAIRS) | {b: a for a, b in PAIRS} | dict.fromkeys((ast.FloorDiv, ast.Pow), ast.Mult)


def parts(node):
    """A node and all below it, but no message."""
    said = isinstance(node, ast.Call) and ast.unparse(node.func) in MESSAGES
    if not said and not isinstance(node, (ast.Raise, ast.JoinedStr)):
        yield node
        for child in ast.iter_child_nodes(node):
            yield from parts(child)


def neighbours(x):
    """What a constant becomes."""
    if isinstance(x, bool):
        return [not x]
    return [x + 1, x - 1] if isinstance(x, int) else [2 * x or 1.0] if isinstance(x, float) else []


def changes(node):
    """Calls, each of which changes one point of a node."""
    op = getattr(node, "op", None)
    if type(op) in OTHER and not isinstance(op, ast.BitOr):  # | joins dictionaries
        yield partial(setattr, node, "op", OTHER[type(op)]())
    elif isinstance(op, ast.unaryop):  # − −x, not not x
        yield partial(setattr, node, "operand", ast.UnaryOp(op, node.operand))
    for i, op in enumerate(getattr(node, "ops", [])):
        yield partial(node.ops.__setitem__, i, OTHER[type(op)]())
    if isinstance(node, (ast.If, ast.IfExp)):
        yield partial(setattr, node, "test", ast.UnaryOp(ast.Not(), node.test))
    for value in neighbours(node.value) if isinstance(node, ast.Constant) else []:
        yield partial(setattr, node, "value", value)


def mutants(module):
    """(function, call that changes `tree`) for all points of a file → tree, list"""
    tree, found, outer = ast.parse(patch.read(os.path.join(patch.ROOT, module + ".py"))), [], "?"
    for name, node in patch.named(tree, module):
        if isinstance(node, ast.FunctionDef) and not name.startswith(outer + "."):
            outer = name
            nodes = [part for statement in node.body for part in parts(statement)]
            found += [(name, change) for part in nodes for change in changes(part)]
    return tree, found


def mutant(module, i=None):
    """→ (name of the function, code with change i, or without one)"""
    tree, found = mutants(module)
    name, change = found[i] if i is not None else ("", bool)
    change()
    return name, ast.unparse(ast.fix_missing_locations(tree)) + "\n"


class Calls:
    """A pytest plugin: notes in a file which functions each test calls, and its CPU seconds."""

    def __init__(self, path):
        self.path, self.code, self.found, self.began = path, set(), {}, 0

    def pytest_collection_modifyitems(self, items):
        usable = [item for item in items if "smoke" not in item.fixturenames]
        items[:] = [item for item in usable if not any(word in item.name for word in OUTSIDE)]

    def pytest_runtest_logstart(self):
        self.code.clear()
        sys.setprofile(lambda frame, event, _: event == "call" and self.code.add(frame.f_code))

    def pytest_runtest_makereport(self, item, call):
        now = sum(os.times()[:4])  # with processes that have ended
        if call.when == "setup":
            self.began = now
        if call.when == "call":
            sys.setprofile(None)
            names = [(os.path.basename(c.co_filename)[:-3], c.co_name) for c in self.code]
            names = [f"{module}.{name}" for module, name in names if module in FILES]
            late = "little" in item.fixturenames  # it needs all stages first
            self.found[item.nodeid.removeprefix("tests/")] = late, now - self.began, names

    def pytest_sessionfinish(self):
        with open(self.path, "w") as f:
            json.dump(self.found, f)


def tests_of(function, calls):
    """The fast tests that call a function of this file and name, fastest first."""
    parts = function.split(".")
    found = [
        (late, seconds, test)
        for test, (late, seconds, names) in calls.items()
        if f"{parts[0]}.{parts[-1]}" in names and seconds < SLOW
    ]
    return [test for *_, test in sorted(found)]


def red(home, source, modules, nodes, plugins=()):
    """Is a test red in a copy of `source` with this code? → (red, the copy's folder)"""
    folder = tempfile.mkdtemp(dir=home)
    shutil.copytree(source, f"{folder}/copy")
    for module, code in modules.items():
        with open(f"{folder}/copy/{module}.py", "w", encoding="utf-8") as f:
            f.write(code)
    os.waitpid(plant.start(folder, nodes, plugins), 0)
    if not os.path.exists(f"{folder}/result"):
        return True, folder  # it ran for ever, or the process died
    code, _ = json.loads(patch.read(f"{folder}/result"))
    if code > 1:
        sys.exit(f"pytest exits with {code}\n" + patch.read(f"{folder}/log")[-3000:])
    return code == 1, folder


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--n", type=int, default=60, help="so many mutants")
    parser.add_argument("--seed", type=int, default=1, help="which ones")
    args = parser.parse_args()
    plant.warm_up(plant.PLANTS)
    clean = {module: mutant(module)[1] for module in FILES}
    every = [(module, i) for module in FILES for i in range(len(mutants(module)[1]))]
    caught = 0
    with tempfile.TemporaryDirectory() as home:
        source, path = f"{home}/source", f"{home}/calls"
        plant.copy_project(source)
        wrong, folder = red(home, source, clean, [f"test_{t}.py" for t in TESTS], [Calls(path)])
        if wrong:
            sys.exit("red without a mutant:\n" + patch.read(f"{folder}/log")[-3000:])
        calls, source = json.loads(patch.read(path)), f"{folder}/copy"  # with what was compiled
        for module, i in random.Random(args.seed).sample(every, args.n):
            function, code = mutant(module, i)
            tests = tests_of(function, calls)
            rounds = [part for part in (tests[:12], tests[12:]) if part]  # most need few tests
            seen = any(red(home, source, {module: code}, part)[0] for part in rounds)
            caught += seen
            print(f"{'caught' if seen else 'SURVIVED'}\t{function}", flush=True)
            for a, b in zip(clean[module].splitlines(), code.splitlines()):
                if a != b:
                    print(f"    - {a.strip()}\n    + {b.strip()}", flush=True)
    print(f"{caught} of {args.n} caught, of {len(every):,} that there are")


if __name__ == "__main__":
    main()

"""
The bug hunt: which bugs of tests/plants.txt are planted together, and which of them are gone.

make_assignment.py has its commands. A bug changes no more text than it must: comments and format
around it stay, or they would show where it is.
"""

import ast
import contextlib
import copy
import functools
import itertools
import os
import random
import shutil
import sys
import tempfile
import textwrap
from typing import NamedTuple

import patch
import plant
from grade import TESTS, cases_of, files_of_tests, run_tests

HANDOUT = """# Bug hunt

Somebody has put {n} bugs into this copy of the project, each in another place of the Python files
in this folder itself (not in `page.py`), and each of a kind that is easily made. It learns less, or
something else, or its numbers mean something else, or it stops by itself. Find them and mend them.
Nothing else need change.

Tests are left out: they are named after the mistakes that they catch. What helps: the formulas in
the docstrings, and in the table of equations in `README.md`; its table of what a healthy run looks
like; small numbers that you check by hand; `python ppo.py --size=smoke` runs everything in a
minute. You get a point for each bug that is gone.
{hint}"""
EASY = """
The bugs are in {files}, in functions that you can check with small numbers.
Their kinds:

{kinds}
"""
MIDDLE = """
What kinds of bugs there are (not all of them are here):

{kinds}
"""
LEVELS = ("easy", "middle", "hard")  # hints at files and kinds; at kinds; none
APART = 8  # lines between two bugs, at least
# what the course does not teach, and a bug that nobody could tell: another seed is as good
NO_BUGS = ("page", "test_a_purpose_gives_the_same_random_numbers_for_ever")


class Bug(NamedTuple):
    plant: plant.Plant
    file: str
    healthy: str  # the statements around the bug, as they were
    sick: str  # as they are


# ---- from a changed tree back to the text ----


class Change(NamedTuple):
    """The innermost list of statements in which two trees differ, and how."""

    old: list
    new: list
    before: int  # statements at its beginning that are the same
    after: int  # and at its end
    expression: tuple  # (old, new) if all that differs is in one expression, else None

    def parts(self, around=0):
        """The statements that differ, of both lists, and so many on each side."""
        start = max(0, self.before - around)
        return [x[start : len(x) - max(0, self.after - around)] for x in (self.old, self.new)]


def same(a, b):
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if type(a) is not type(b):
        return False
    if isinstance(a, ast.AST):
        return all(same(getattr(a, field), getattr(b, field)) for field in a._fields)
    return a == b


def common(a, b):
    """How many elements are the same at the beginning of two lists."""
    return len(list(itertools.takewhile(lambda pair: same(*pair), zip(a, b))))


def stands_alone(node):
    """Is it an expression that can be written anywhere, and not only in an index or a call?"""
    slices = any(isinstance(n, ast.Slice) for n in getattr(node, "elts", ()))
    return (
        isinstance(node, ast.expr) and not slices and not isinstance(node, (ast.Slice, ast.Starred))
    )


def changed(old, new):
    """What differs between two modules, as narrowly as it can be said → Change"""
    change, pairs = None, [(old.body, new.body)]
    while len(pairs) == 1:
        ((old, new),) = pairs
        if isinstance(old, list) and old and isinstance(old[0], ast.stmt):
            before = common(old, new)
            after = common(old[before:][::-1], new[before:][::-1])
            change = Change(old, new, before, after, None)
        elif stands_alone(old) and stands_alone(new):
            change = change._replace(expression=(old, new))
        pairs = []
        if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            pairs = zip(old, new)
        elif type(old) is type(new) and isinstance(old, ast.AST) and type(old) is not ast.JoinedStr:
            pairs = [(getattr(old, field), getattr(new, field)) for field in old._fields]
        pairs = [pair for pair in pairs if not same(*pair)]
    return change


def span(text, node):
    """Where a node begins and ends in a text, in bytes."""
    lines = [0, *itertools.accumulate(map(len, text.encode().splitlines(keepends=True)))]
    start = lines[node.lineno - 1] + node.col_offset
    return start, lines[node.end_lineno - 1] + node.end_col_offset


def rewritten(text, tree, change):
    """The text with a change that makes it mean `tree`, and the lines that it is in."""
    old, new = change.parts()
    if not change.expression and any(hasattr(statement, "body") for statement in old):
        raise patch.Misfit("a whole block would lose its format")
    code = ast.unparse(change.expression[1] if change.expression else ast.Module(new, []))
    codes = [code.replace("'", '"'), code] if '"' not in code else [code]
    if change.expression:
        node = change.expression[0]
        (start, end), raw = span(text, node), text.encode()
        codes += [f"({c})" for c in codes]
        texts = [(raw[:start] + c.encode() + raw[end:]).decode() for c in codes]
        first, last = node.lineno, node.end_lineno
    else:
        lines, indent = text.splitlines(keepends=True), " " * change.old[0].col_offset
        end = (
            change.old[change.before - 1].end_lineno if change.before else change.old[0].lineno - 1
        )
        first, last = (old[0].lineno, old[-1].end_lineno) if old else (end + 1, end)
        codes = [textwrap.indent(c, indent) + "\n" * bool(c) for c in codes]
        texts = ["".join([*lines[: first - 1], c, *lines[last:]]) for c in codes]
    for result in texts:
        with contextlib.suppress(SyntaxError):
            if same(ast.parse(result), tree):
                return result, range(min(first, last), last + 1)  # an insertion: the line before it
    raise patch.Misfit(f"{code!r} can't be put there")


# ---- which bugs ----


def heads(statements):
    """As code, with ___ in place of what they contain."""
    statements = copy.deepcopy(statements)
    for statement in statements:
        for inner in (statement, *getattr(statement, "handlers", ())):
            for field in patch.BLOCKS:
                if getattr(inner, field, None):
                    setattr(inner, field, ast.parse(patch.HOLE).body)
    return ast.unparse(ast.Module(statements, []))


@functools.cache
def put(text, number, plant):
    """Plant a bug in a file's text → text, lines, Bug. Raises Misfit if it can't be taken out."""
    tree = ast.parse(text)
    patch.replace(patch.Found("", "", text, number).node(tree), plant.old, plant.new)
    ast.fix_missing_locations(tree)
    change = changed(ast.parse(text), tree)
    result, lines = rewritten(text, tree, change)
    around = 0 if all(change.parts()) else 1  # what is there no more is known by its neighbours
    bug = Bug(plant, "", *map(heads, change.parts(around)))
    if any(len(line) > 100 for line in result.splitlines()):
        raise patch.Misfit("it could be told by the length of its line")
    if not same(taken_out(result, bug), ast.parse(text)):
        raise patch.Misfit("it can't be taken out")
    return result, lines, bug


def taken_out(text, bug):
    """The tree of a text without a bug. Raises Misfit if it is not there, or changed."""
    tree = ast.parse(text)
    patch.replace(tree, bug.sick, bug.healthy)
    return ast.fix_missing_locations(tree)


def near(lines, others):
    return any(abs(a - b) <= APART for a in lines for b in others)


def candidates(level):
    """The plants that may be in a hunt → list of (Plant, Found).

    The easy ones are those that a test of the pure functions finds.
    """
    there = files_of_tests(TESTS)
    plants = [p for p in plant.PLANTS if p.bug not in NO_BUGS and p.test not in NO_BUGS]
    if level == "easy":
        plants = [p for p in plants if there.get(p.test) == "test_losses.py"]
    found = [(p, patch.find(p.function)) for p in plants]
    return [(p, f) for p, f in found if "/" not in f.file]


def handout(bugs, level):
    """ASSIGNMENT.md. bugs: list of Bug."""
    files = ", ".join(f"`{file}`" for file in sorted({bug.file for bug in bugs}))
    there = {b.plant.bug for b in bugs} if level == "easy" else {p.bug for p, _ in candidates("")}
    kinds = "\n".join(f"- {what}" for bug, what in plant.BUGS.items() if bug in there)
    hint = {"easy": EASY, "middle": MIDDLE, "hard": ""}[level].format(files=files, kinds=kinds)
    return HANDOUT.format(n=len(bugs), hint=hint)


def draw(n, seed, level="middle"):
    """n bugs, no two of one kind or near each other → list of Bug, {file: text with the bugs}."""
    bugs, texts, taken = [], {}, {}
    drawn = candidates(level)
    random.Random(f"hunt {seed}").shuffle(drawn)
    for p, found in drawn:
        if p.bug in [b.plant.bug for b in bugs]:
            continue
        with contextlib.suppress(patch.Misfit):
            _, here, _ = put(found.text, found.number, p)
            if near(here, taken.get(found.file, ())):
                continue
            text, _, bug = put(texts.get(found.file, found.text), found.number, p)
            texts[found.file] = text
            taken.setdefault(found.file, []).extend(here)
            bugs.append(bug._replace(file=found.file))
        if len(bugs) == n:
            return bugs, texts
    sys.exit(f"error: --bug-hunt={n}: only {len(bugs)} bugs can be planted at once")


# ---- the grader ----


def grade(folder, n, seed, level="middle"):
    """→ {what was planted: None if it is gone, else why not}.

    A bug is gone if its statements are no longer as planted, and its test is green where the bugs
    that are still there are taken out.
    """
    wanted, result = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        ignore = shutil.ignore_patterns("out", ".*", "__pycache__")
        student = shutil.copytree(folder, os.path.join(temporary, "copy"), ignore=ignore)
        for bug in draw(n, seed, level)[0]:
            key = f"{bug.plant.bug}: {bug.plant.what} ({bug.plant.function})"
            path = os.path.join(student, bug.file)
            try:
                tree = taken_out(patch.read(path), bug)
            except (patch.Misfit, SyntaxError, OSError):
                wanted[key] = bug.plant.test
                result[key] = None
            else:
                with open(path, "w", encoding="utf-8") as f:
                    f.write(ast.unparse(tree) + "\n")
                result[key] = "still there"
        found = run_tests(list(dict.fromkeys(wanted.values())), student, TESTS) if wanted else {}
    for key, test in wanted.items():
        cases = cases_of(test, found)
        missing = None if cases else f"{test} did not run: does the file still load?"
        result[key] = next((why for why in cases.values() if why), missing)
    return result

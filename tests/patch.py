"""
Patches that name a function and a piece of Python in it, instead of a file and the letters in it.

    patched("kl_rewards", "-beta", "beta")     # → the file, and its code with the change

A function is given by the end of its dotted name, which begins with its module: "gae",
"GPT.forward", "ppo.main". Classes, their fields and constants have such names as well. The two
pieces are expressions, statements that follow one another, or a decorator that goes
("@torch.no_grad()", ""). What has the same syntax tree as the first piece must be in the function
exactly once; the second takes its place. So a function may move to another file, and its lines may
be wrapped, quoted and commented in any way.

A name that begins with ___ stands for any expression, and in a list (of arguments, elements or
statements) for any number of them; in the second piece it is what it was in the first. Of two in
one list the other stands for one. Keyword arguments may come in any order.
"""

import ast
import copy
import functools
import glob
import os
from typing import NamedTuple

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CORE = ("*.py", "plumbing/*.py", "data/**/*.py", "papers/*.py")
EXPERIMENTS = ("experiments/*.py", "course/[!s]*.py")  # slow.py has the names of the maths
HOLE = "___"
BLOCKS = ("body", "orelse", "finalbody")  # fields of a tree that hold statements


class Misfit(ValueError):
    """A patch does not fit the source; the message says why."""


def read(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


# ---- functions by their names ----


class Found(NamedTuple):
    name: str  # dotted, in full
    file: str
    text: str  # of the file
    number: int  # of the function, among all in the file that have a name
    lines: slice = slice(0)  # of the file, which are the function's

    def node(self, tree=None):
        """The function in a tree of the file."""
        return list(named(tree or ast.parse(self.text), ""))[self.number][1]

    def alone(self):
        """The function, parsed without the rest of its file: in a tenth of the time."""
        lines = self.text.splitlines()[self.lines]
        inside = lines[0].startswith(" ")
        (node,) = ast.parse("\n".join(["if 1:", *lines] if inside else lines)).body
        return node.body[0] if inside else node


def named(node, prefix):
    """(dotted name, node) of every function, class and constant of a module."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
            yield f"{prefix}.{child.name}", child
            yield from named(child, f"{prefix}.{child.name}")
        elif isinstance(child, (ast.Assign, ast.AnnAssign)):
            if isinstance(node, (ast.Module, ast.ClassDef)):
                targets = getattr(child, "targets", None) or [child.target]
                yield from ((f"{prefix}.{t.id}", child) for t in targets if hasattr(t, "id"))
        elif isinstance(child, ast.stmt):
            yield from named(child, prefix)


def lines_of(node):
    """Decorators included."""
    above = [decorator.lineno for decorator in getattr(node, "decorator_list", [])]
    return slice(min([node.lineno, *above]) - 1, node.end_lineno)


@functools.cache
def names_in(file, text):
    """[(dotted name, lines of the file)]"""
    module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    try:
        return [(name, lines_of(node)) for name, node in named(ast.parse(text), module)]
    except SyntaxError as e:
        raise Misfit(f"{file}, line {e.lineno}, is not Python: {e.msg}") from None


@functools.cache
def sources(patterns, root, reader):
    """{file: its text}"""
    files = {p for q in patterns for p in glob.glob(q, root_dir=root, recursive=True)}
    return {p.replace(os.sep, "/"): reader(os.path.join(root, p)) for p in sorted(files)}


def find(name, root=ROOT):
    """The one function (class, constant) whose dotted name ends so → Found

    experiments/ and course/ are searched only for what nothing else has: they may use a name again.
    The project's own files are read once. Those of a copy may change.
    """
    texts = sources if root == ROOT else sources.__wrapped__

    def found_in(patterns):
        return [
            Found(full, file, text, i, lines)
            for file, text in texts(patterns, root, read).items()
            for i, (full, lines) in enumerate(names_in(file, text))
            if f".{full}".endswith(f".{name}")
        ]

    found = found_in(CORE) or found_in(EXPERIMENTS)
    if not found:
        raise Misfit(f"there is no function {name}")
    if len(found) > 1:
        raise Misfit(f"{name} may be {' or '.join(f.name for f in found)}")
    return found[0]


# ---- pieces by their syntax ----


def hole(node):
    """The name of a hole, else None."""
    node = node.value if isinstance(node, ast.Expr) else node
    return node.id if isinstance(node, ast.Name) and node.id.startswith(HOLE) else None


def pieces(*sources):
    """Each as an expression if all are expressions, else each as a list of statements."""
    bodies = [ast.parse(source).body for source in sources]
    if all(len(body) == 1 and isinstance(body[0], ast.Expr) for body in bodies):
        return [body[0].value for body in bodies]
    return bodies


def fits(pattern, node, bound):
    """Is a tree what the pattern says? `bound` gets what each hole stands for."""
    if isinstance(pattern, list):
        return isinstance(node, list) and list_fits(pattern, node, bound)
    if hole(pattern) and isinstance(node, ast.expr):
        bound.setdefault(hole(pattern), node)
        return True
    if type(pattern) is not type(node):
        return False
    if not isinstance(pattern, ast.AST):
        return pattern == node
    fields = set(pattern._fields) - {"ctx", "kind", "type_comment"}
    if isinstance(pattern, ast.Call):
        if not arguments_fit(pattern, node, bound):
            return False
        fields -= {"args", "keywords"}
    return all(fits(getattr(pattern, f), getattr(node, f), bound) for f in sorted(fields))


def list_fits(patterns, nodes, bound):
    at = next((i for i, p in enumerate(patterns) if hole(p)), None)
    if at is not None:
        end = len(nodes) - (len(patterns) - at - 1)
        if end < at:
            return False
        middle = nodes[at:end]
        bound.setdefault(hole(patterns[at]), middle[0] if len(middle) == 1 else middle)
        patterns, nodes = patterns[:at] + patterns[at + 1 :], nodes[:at] + nodes[end:]
    return len(patterns) == len(nodes) and all(fits(p, n, bound) for p, n in zip(patterns, nodes))


def arguments_fit(pattern, node, bound):
    """A hole among a call's arguments also stands for keywords that the pattern does not name."""
    left = {k.arg or ast.unparse(k): k for k in node.keywords}
    for k in pattern.keywords:
        if not fits(k, left.pop(k.arg or ast.unparse(k), None), bound):
            return False
    last = [len(pattern.args) - i - 1 for i, a in enumerate(pattern.args) if hole(a)][:1] or [0]
    end = max(0, len(node.args) - last[0])
    return list_fits(pattern.args, [*node.args[:end], *left.values(), *node.args[end:]], bound)


def places(pattern, node):
    """Where a pattern fits in a function → list of (what holds it, its index, what holes are)."""
    found = []
    for parent in ast.walk(node):
        for field, value in ast.iter_fields(parent):
            spots = [(vars(parent), field, value)]
            if isinstance(pattern, list):
                n, block = (
                    len(pattern),
                    value if field in BLOCKS and isinstance(value, list) else [],
                )
                starts = range(len(block) - n + 1)
                spots = [(block, slice(i, i + n), block[i : i + n]) for i in starts]
            elif isinstance(value, list):
                spots = [(value, i, v) for i, v in enumerate(value)]
            for holder, key, candidate in spots:
                if fits(pattern, candidate, bound := {}):
                    found.append((holder, key, bound))
    return found


class Fill(ast.NodeTransformer):
    """Puts in the place of holes what they stand for."""

    def __init__(self, bound):
        self.bound = bound

    def visit_Name(self, node):
        return copy.deepcopy(self.bound[node.id]) if hole(node) else node

    def visit_Expr(self, node):
        what = self.bound.get(hole(node))
        return self.generic_visit(node) if what is None or isinstance(what, ast.expr) else what

    def visit_Call(self, node):
        self.generic_visit(node)
        node.keywords[:0] = [a for a in node.args if isinstance(a, ast.keyword)]
        node.args = [a for a in node.args if not isinstance(a, ast.keyword)]
        return node


def replace(node, old, new):
    """Put one piece in the place of another in a function's tree. Raises Misfit."""
    pattern, becomes = pieces(old.lstrip("@"), new)
    if old.startswith("@"):
        (pattern,), node = pieces(old.lstrip("@")), ast.Module(node.decorator_list, [])
    found = places(pattern, node)
    if len(found) != 1:
        raise Misfit(f"{old!r} is there {len(found)} times, not once")
    holder, key, bound = found[0]
    if old.startswith("@"):
        del holder[key]
    elif isinstance(becomes, list):
        holder[key] = Fill(bound).visit(ast.Module(becomes, [])).body
        if not holder:
            holder.append(ast.Pass())
    else:
        becomes = Fill(bound).visit(ast.Expression(becomes)).body
        if hasattr(holder[key], "ctx") and hasattr(becomes, "ctx"):
            becomes.ctx = holder[key].ctx  # whether it is assigned to
        holder[key] = becomes


def check(found, node, old, new):
    """Put a piece in the place of another in a function. Raises Misfit if it can't stand there."""
    replace(node, old, new)
    try:
        compile(ast.fix_missing_locations(ast.Module([node], [])), found.file, "exec")
    except (TypeError, ValueError, SyntaxError):
        raise Misfit(f"{new!r} can't stand there") from None


def patched(name, old, new, root=ROOT):
    """→ (file, its code with the change). Raises Misfit, which says why, if it does not fit."""
    found = find(name, root)
    tree = ast.parse(found.text)
    check(found, found.node(tree), old, new)
    return found.file, ast.unparse(tree) + "\n"


def check_alone(name, old, new):
    """Raise Misfit if a patch does not fit. As patched, in a tenth of the time."""
    found = find(name)
    check(found, found.alone(), old, new)

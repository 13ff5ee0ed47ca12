"""
The coursework kit, made from the solution so that it can't drift from it.

    python tests/make_assignment.py DIR                             # a student's copy: bodies removed, ASSIGNMENT.md, grade.py
    python tests/make_assignment.py DIR --bug-hunt=N [--seed=S]     # a full copy with N bugs planted, drawn from tests/plant.py
    python tests/make_assignment.py --grade-hunt DIR --bug-hunt=N --seed=S      # points for each bug that was fixed

What is removed, its points and its tests stand in grade.py's EXERCISES. A function or a line that is no longer there
stops the generation. Students get the tests, but not the slow definitions of the grader's hidden-seed mode (slow.py);
in the hunt they get no tests, since these would say what is wrong.
"""
import ast
import functools
import os
import random
import re
import shutil
import sys
import tempfile
import time

from grade import EXERCISES, TESTS, cases_of, run_tests, tests_of

ROOT = os.path.dirname(TESTS)
INSTRUCTOR = re.compile(r"tests/(grade|make_assignment|slow|plant|test_assignment|test_plant\w*)\.py|out/.*|.*\.(bin|jsonl|tmp|pyc)|data/(chitchat|hh_rlhf)/vocab.*|data/hh_rlhf/(prepare.json|.*/.*)|"
                        r"(.*/)?(\.(?!gitignore)|__pycache__).*")     # made by a run, or not a student's

# parts of longer functions: (from the line that begins so, up to the one that begins so, or to the end; what is to be done)
CUTS = {
    "model.GPT._steps": ("# prompts end at the same column", None, """
        Yield three tensors after each of max_new_tokens steps: row numbers, their new tokens, and whether a row had no `eos` before this token. Row i
        takes its noise at step t from noise[i, t], by `sample`. Rows have prompts of different lengths: let them end at the same column, PADs on the
        left, at which no token may look, and give each token the position that it would have alone. One forward pass over the prompts fills the
        caches, for each block keys (B, n_head, C / n_head, columns) and values (B, n_head, columns, C / n_head); then `hidden` takes one new token a
        row, its position, each cache as (keys, values, slice of the new column) and the mask of what it may see (see Block.forward). Under autocast
        the caches have autocast's dtype. In eval mode, and the mode that it was called in afterwards, whatever happens.
        Stop when all rows are done; drop finished rows when they are more than half. (CUDA graphs are not asked for.)"""),
    "ppo.rollout": ("starts = torch.tensor(", "return tokens, mask", """
        mask (B, T) bool: True on the response, from the prompt's length up to `lengths`. Take lengths, never search for an id."""),
    "ppo.main": ("for epoch in range(config.epochs):", "clock.append(run.seconds())", """
        For each of config.epochs: a random order of the episodes, torch.randperm with `rng`, split into minibatches of `size` rows. For each minibatch:
          - in parts of `micro` rows, cut to their longest answer (`rounded`): forward the policy and the critic, policy_loss against `logprobs` and
            `whitened`, value_loss against `values` and `returns`, all of them frozen since the rollout. Run both backward so that the gradients add up
            to those of the mean over the minibatch's tokens, however it is split;
          - on the very first minibatch check_ratio of π / π_old;
          - if config.ptx_coef: add ptx_coef × the gradient of lm_loss on max(1, round(ptx_ratio × size)) windows, by document_batch from `text` and
            `starts`, with generator(config.seed, in_round("ptx", config.round), iteration, epoch, number of the minibatch);
          - `update` the policy (config.lr × warm) and the critic (config.critic_lr × warm), then ema_update(average, policy, config.ema);
          - append to `stats` a tensor of the seven means that step 6 names, without gradient: policy loss, value loss, approxkl (ρ − 1) − log ρ,
            share of |ρ − 1| > clip, share of |V − V_old| > value_clip, ρ, and the pretraining loss (0 without ptx)."""),
}


parse = functools.cache(ast.parse)


def find(source, file, path):
    """The AST node of a function, by file and dotted name."""
    scope = parse(source)
    for name in path.split("."):
        found = [n for n in scope.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name == name]
        if len(found) != 1:
            sys.exit(f"error: {file} has no function {path} any more: bring EXERCISES in tests/grade.py up to date")
        scope = found[0]
    return scope


def body_lines(source, file, path):
    """(first line, line after the last, indent, comment) of what is removed of a function; its docstring stays."""
    node = find(source, file, path)
    lines, start, end = source.splitlines(), node.body[0].lineno, node.end_lineno
    if cut := CUTS.get(f"{file[:-3]}.{path}"):
        return cut_lines(lines, node, file, path, *cut)
    if ast.get_docstring(node) is not None:
        start = node.body[0].end_lineno + 1
        if len(node.body) == 1:
            sys.exit(f"error: {path} in {file} has no body besides its docstring: there is nothing to remove")
    while lines[start - 2].strip().startswith("#"):
        start -= 1
    return start, end + 1, " " * node.body[0].col_offset, ""


def cut_lines(lines, node, file, path, begin, before, task):
    """As body_lines, of whole statements within a function."""
    say = f"error: {path} in {file} can't be cut: {{}}; bring CUTS in tests/make_assignment.py up to date"
    span = range(node.lineno + 1, node.end_lineno + 1)
    starts = [n for n in span if lines[n - 1].strip().startswith(begin)]
    if len(starts) != 1:
        sys.exit(say.format(f"{len(starts)} lines begin with {begin!r}, not one"))
    blocks = [b for n in ast.walk(node) for b in (getattr(n, "body", None), getattr(n, "orelse", None)) if isinstance(b, list) and b]
    start = starts[0]
    code = next(n for n in span if n >= start and lines[n - 1].strip() and not lines[n - 1].strip().startswith("#"))
    block = next((b for b in blocks if any(s.lineno == code for s in b)), None)
    if block is None:
        sys.exit(say.format(f"no statement begins at {begin!r}"))
    end = block[-1].end_lineno + 1
    if before:
        ends = [s.lineno for s in block if s.lineno > start and lines[s.lineno - 1].strip().startswith(before)]
        if not ends:
            sys.exit(say.format(f"no statement after {begin!r} begins with {before!r}"))
        end = ends[0]
    return start, end, " " * block[0].col_offset, task


def stub(source, file, paths):
    """The source of a file without the bodies of these functions."""
    lines = source.splitlines()
    for start, end, indent, task, path in sorted(((*body_lines(source, file, p), p) for p in paths), reverse=True):
        name = next(n for n, (_, functions, *_) in EXERCISES.items() if f"{file[:-3]}.{path}" in functions.split())
        comment = [f"{indent}# {line[8:]}" for line in task.splitlines()[1:]]
        formula = [] if task or ast.get_docstring(find(source, file, path)) else [f'{indent}"""{EXERCISES[name][3]}"""']
        what = f"this part of {path}" if task else path
        lines[start - 1:end - 1] = formula + comment + [f'{indent}raise NotImplementedError("{what} is not written yet: exercise {name} of ASSIGNMENT.md")']
    return "\n".join(lines) + "\n"


def read(path, root=ROOT):
    with open(os.path.join(root, path), encoding="utf-8") as f:
        return f.read()


def write(folder, path, text):
    os.makedirs(os.path.dirname(os.path.join(folder, path)), exist_ok=True)
    with open(os.path.join(folder, path), "w", encoding="utf-8") as f:
        f.write(text)


def copy_project(folder, leave_out=INSTRUCTOR):
    """The project's files, as they are in the solution, but not what a run made of them, nor what is the instructor's."""
    if os.path.exists(folder) and (not os.path.isdir(folder) or os.listdir(folder)):
        sys.exit(f"error: {folder} is there already and not empty: give a new folder")
    if os.path.commonpath([ROOT, os.path.abspath(folder)]) == ROOT:
        sys.exit(f"error: {folder} lies in the project itself: give a folder outside of {ROOT}")
    for home, folders, names in os.walk(ROOT):
        inside = "" if home == ROOT else os.path.relpath(home, ROOT).replace(os.sep, "/") + "/"
        folders[:] = [name for name in folders if not leave_out.fullmatch(inside + name + "/")]
        for path in [inside + name for name in names]:
            if not leave_out.fullmatch(path):
                os.makedirs(os.path.join(folder, os.path.dirname(path)), exist_ok=True)
                shutil.copyfile(os.path.join(ROOT, path), os.path.join(folder, path))


# ---- a student's copy ----

HANDOUT = """# Assignment: the InstructGPT recipe

Of this project the code that does the work was taken out; signatures, docstrings and everything around it are there.
Put it back: each place says `raise NotImplementedError`. Write in any order, but this one builds up: what comes later
uses what came before. 100 points. (`README.md` says what the project is, and how to run it once it is whole.)

    pip install -r requirements.txt -r tests/requirements.txt
    python grade.py                   # all exercises, in a minute or two
    python grade.py gae policy_loss   # these alone

An exercise counts when all of its tests are green. For each that is not, the grader prints what the mistake may be;
`python -m pytest -q tests/test_losses.py -k gae` shows more. The final grading also runs your functions on other
shapes, masks and numbers, drawn at random, so the numbers of the tests are no help in passing it.

What holds everywhere: a mask is bool, integer or float, and nonzero means valid; what is masked may hold anything, infinity
and NaN included, and reaches neither result nor gradient, so select inputs by `torch.where` before any arithmetic
(∞ × 0 is NaN); losses and log-probabilities are in at least float32 (`up` in `ppo.py`). Leave signatures, comments that
number the steps of a loop, and the files in `tests/` as they are.

## The picture to keep in mind

Columns belong to tokens: what is at t is about the token at t, though the logits that chose it, and the value of the
state that it was chosen in, come out of the network at t − 1.

{picture}

## Points

{table}

## Exercises
"""


def picture():
    """The lines of ppo.py's docstring from "position" on, as indented there."""
    found = re.search(r"(?m)^    position .*\n(    .*\n)+", ast.get_docstring(parse(read("ppo.py")), clean=False))
    if not found:
        sys.exit("error: ppo.py's docstring holds no picture whose first line begins with 'position': the handout needs it")
    return found[0].rstrip()


def handout():
    """ASSIGNMENT.md."""
    table, sections = ["| exercise | where | points |", "|---|---|---|"], []
    for n, (name, (points, functions, _, formula)) in enumerate(EXERCISES.items(), 1):
        table.append(f"| {n}. {name} | {', '.join(f'`{f}`' for f in functions.split()) or 'all of the above'} | {points} |")
        sections.append(f"### {n}. {name} ({points} points)\n\n    {formula}\n")
        for function in functions.split():
            module, path = function.split(".", 1)
            doc = ast.get_docstring(find(read(module + ".py"), module + ".py", path)) or ""
            first = doc.split("\n")[0] if function not in CUTS or doc else "A part of the function; the comment there says which."
            sections.append(f"`{path}` in `{module}.py`. {first}\n")
            if function in CUTS:
                sections.append("\n".join("> " + line[8:] for line in CUTS[function][2].splitlines()[1:]) + "\n")
        if not functions:
            sections.append("Nothing new to write: what you have, put together, on masks of every kind and on a bandit whose best policy is known.\n")
        sections.append("Tests: " + ", ".join(f"`{test}`" for _, test in tests_of(name)) + "\n")
    return HANDOUT.format(picture=picture(), table="\n".join(table)) + "\n" + "\n".join(sections)


def make(folder):
    """Write a student's copy."""
    there = {file: set(re.findall(r"(?m)^def (test_\w+)", read(f"tests/{file}.py"))) for name in EXERCISES for file, _ in tests_of(name)}
    if gone := [test for name in EXERCISES for file, test in tests_of(name) if test.split("[")[0] not in there[file]]:
        sys.exit(f"error: there is no test {gone[0]} any more: bring EXERCISES in tests/grade.py up to date")
    paths = {}
    for _, functions, *_ in EXERCISES.values():
        for function in functions.split():
            module, path = function.split(".", 1)
            paths.setdefault(module + ".py", []).append(path)
    stubs, text = {file: stub(read(file), file, p) for file, p in paths.items()}, handout()     # all that may fail, before anything is written
    copy_project(folder)
    for file, source in stubs.items():
        ast.parse(source)
        write(folder, file, source)
    write(folder, "ASSIGNMENT.md", text)
    write(folder, "grade.py", read("tests/grade.py"))


# ---- the bug hunt ----

HUNT = """# Bug hunt

Somebody has put {n} bugs into this copy of the project, each in another place of the Python files in this folder
itself, and each of a kind that is easily made. It learns less, or something else, or its numbers mean something else, or
it stops itself. Find them and mend them. Nothing else need change.

Tests are left out: they are named after the mistakes that they catch. What helps: the formulas in the docstrings, and
in the table of equations in `README.md`; its table of what a healthy run looks like; small numbers that you check by
hand; `python ppo.py --size=smoke` runs everything in a minute. You get a point for each bug that is gone.

What kinds of bugs there are (not all of them are here):

{kinds}
"""


def draw(n, seed):
    """n plants, no two of one kind or within a few lines of each other → list of (plant, lines with it and their neighbours: as they are, as planted)."""
    import plant
    chosen, spans = [], []
    candidates = [p for p in plant.PLANTS if "/" not in p[2]]
    random.Random(f"hunt {seed}").shuffle(candidates)
    for p in candidates:
        bug, _, file, old, new, _ = p
        try:
            plant.planted(p)
        except ValueError as e:
            sys.exit(f"error: tests/plant.py and the project don't fit: {e}")
        source = read(file)
        at, end = source.index(old), source.index(old) + len(old)
        first, last = source.count("\n", 0, at), source.count("\n", 0, end)
        if bug in [q[0] for q, *_ in chosen] or any(f == file and first - 8 <= b and a <= last + 8 for f, a, b in spans):
            continue
        lines = source.splitlines(keepends=True)
        block, above = "".join(lines[max(0, first - 1):last + 2]), "".join(lines[:max(0, first - 1)])
        planted = block[:at - len(above)] + new + block[end - len(above):]
        if source.count(block) == 1 and planted not in source:
            chosen, spans = [*chosen, (p, block, planted)], [*spans, (file, first, last)]
        if len(chosen) == n:
            return chosen
    sys.exit(f"error: --bug-hunt={n}: only {len(chosen)} bugs can be planted at once")


def hunt(folder, n, seed):
    """Write a copy with n bugs in it."""
    import plant
    bugs = draw(n, seed)
    copy_project(folder, re.compile(INSTRUCTOR.pattern + r"|tests/.*|\.ci/.*"))
    for (_, _, file, *_), block, planted in bugs:
        write(folder, file, read(file, folder).replace(block, planted))
    write(folder, "ASSIGNMENT.md", HUNT.format(n=n, kinds="\n".join(f"- {what}" for what in plant.BUGS.values())))
    now = time.time()
    for home, _, names in os.walk(folder):
        for name in names:
            os.utime(os.path.join(home, name), (now, now))      # or the latest files would be those with bugs


def grade_hunt(folder, n, seed):
    """→ {what was planted: None if it is gone, else why not}.

    A bug is gone if its lines are no longer as planted and its test is green where the bugs that are still there are taken out.
    """
    import plant
    wanted, result = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        copy = shutil.copytree(folder, os.path.join(temporary, "copy"), ignore=shutil.ignore_patterns("out", ".*", "__pycache__"))
        for (bug, what, file, _, _, test), block, planted in draw(n, seed):
            source, key = read(file, copy), f"{bug}: {what} ({file})"
            result[key] = "still there" if planted in source else None
            if result[key]:
                write(copy, file, source.replace(planted, block))
            else:
                wanted[key] = plant.node(test).split(".py::")[0], test
        found = run_tests(list(dict.fromkeys(wanted.values())), copy, TESTS) if wanted else {}
    for key, test in wanted.items():
        cases = cases_of(test, found)
        result[key] = next((why for why in cases.values() if why), None if cases else f"{test[1]} did not run: does the file still load?")
    return result


def main():
    given = dict(arg[2:].split("=", 1) for arg in sys.argv[1:] if re.fullmatch(r"--(bug-hunt|seed)=\d+", arg))
    folders = [arg for arg in sys.argv[1:] if not arg.startswith("--")]
    if unknown := [a for a in sys.argv[1:] if a.startswith("--") and a != "--grade-hunt" and a[2:].split("=")[0] not in given]:
        sys.exit(f"error: {unknown[0]}: there are --bug-hunt=N, --seed=S (whole numbers) and --grade-hunt")
    if len(folders) != 1 or "seed" in given and "bug-hunt" not in given or given.get("bug-hunt") == "0":
        sys.exit("error: give one folder, and in the bug hunt at least one bug:\n" + __doc__.split("\n\n")[1])
    n, seed = int(given.get("bug-hunt", 0)), given.get("seed") or str(random.SystemRandom().randrange(10**9))
    if "--grade-hunt" in sys.argv:
        if set(given) != {"bug-hunt", "seed"}:
            sys.exit("error: --grade-hunt needs the --bug-hunt=N and --seed=S that the folder was made with")
        if not os.path.exists(os.path.join(folders[0], "ppo.py")):
            sys.exit(f"error: {folders[0]} holds no ppo.py: give the folder of a bug hunt")
        result = grade_hunt(folders[0], n, seed)
        for key, why in result.items():
            print(f"{0 if why else 1} / 1  {key}{': ' + why if why else ''}")
        fixed = sum(not why for why in result.values())
        print(f"total {fixed} / {n}")
        sys.exit(0 if fixed == n else 1)
    if n:
        hunt(folders[0], n, seed)
        print(f"wrote {folders[0]} with {n} bugs; to grade it: python tests/make_assignment.py --grade-hunt {folders[0]} --bug-hunt={n} --seed={seed}")
    else:
        make(folders[0])
        print(f"wrote {folders[0]}; to grade it: python tests/grade.py --project={folders[0]}, and with --seed=N on numbers of your own")


if __name__ == "__main__":
    main()

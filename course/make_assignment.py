"""
The coursework kit, made from the solution so that it can't drift from it.

    python course/make_assignment.py DIR                            # a copy with gaps to fill
    python course/make_assignment.py DIR --bug-hunt=6 --seed=1      # a copy with six bugs
    python course/make_assignment.py DIR --bug-hunt=6 --seed=1 --grade-hunt     # which are gone?
    python course/make_assignment.py DIR --bug-hunt=6 --level=easy              # middle, hard

What is removed, its points and its tests are in grade.py's EXERCISES, what is said about it in
TASKS. A function, statement or test that is no longer there stops the generation. Students get the
tests, but not the slow definitions of the grader's hidden-seed mode (slow.py). In the hunt they get
no tests, which would say what is wrong.
"""

import argparse
import ast
import base64
import fnmatch
import json
import os
import random
import shutil
import sys
import textwrap
import time
import zlib
from typing import NamedTuple

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests"))
import hunt
import patch
from grade import EXERCISES, SHEETS, TESTS, files_of_tests, solution, tests_of
from patch import ROOT

# not a student's: the instructor's files, and what a run or prepare.py makes
LEFT_OUT = [
    "course",
    "tests/patch.py",
    "tests/plant.py",
    "tests/plants.txt",
    "tests/test_plants.py",
    "tests/test_assignment.py",
    "tests/test_course.py",
    "tests/test_tour.py",
    "out",
    "*.bin",
    "*.jsonl",
    "*.tmp",
    "*.pyc",
    "__pycache__",
    ".[!g]*",
    ".git",
    ".github",
    "data/chitchat/vocab.*",
    "data/hh_rlhf/vocab.*",
    "data/hh_rlhf/prepare.json",
    "data/hh_rlhf/*/*",
]


class Task(NamedTuple):
    """What is to be written in a function, where its docstring does not say it all."""

    text: str
    begin: str = ""  # the first statement that goes; without it, the whole body does
    before: str = ""  # the first one after it that stays


TASKS = {
    "sample": Task(
        """
        Temperature 0 means the likeliest token. First top_k, then top_p of what is left. Nothing is
        drawn here: the noise decides. In float32 the sum of all p may end below u; it is the last
        token with p > 0 then.
        """
    ),
    "masked": Task(
        """
        `to_float32` belongs here: then all that is selected by this has the precision.
        """
    ),
    "sft_loss": Task(
        """
        The logits of a token that does not count may be NaN. 0 × NaN is NaN, in the gradient too:
        put zeros in their place before the softmax. `masked` and `masked_mean` of common.py help,
        once they are imported at the top of this file.
        """
    ),
    "GPT.generate": Task(
        """
        First check_arguments, with the block size of the model; then noise = draw_noise(number of
        prompts, max_new_tokens, generator), (n, max_new_tokens), to be moved to the model's device.
        For each prompt: put all tokens so far through the model, take the logits of the last
        position (1, V), and give them to `sample` with the noise of this prompt and step, (1,).
        Append the new token. Stop after `eos`, or after max_new_tokens. Return the new tokens only.
        Sample in eval mode; afterwards the model is in the mode in which it was.
        """
    ),
    "prefill": Task(
        """
        Let the prompts end at the same column, PADs on the left, at which no token may look, and
        give each token the position that it would have alone. A PAD looks at itself: a softmax over
        nothing is NaN. Run equal prompts once; of the last block only the last column is wanted.
        `decode` needs a Batch, with one_token of each block and a Cache (of `width` columns) for
        it.
        """
    ),
    "Batch.step": Task(
        """
        Embed one new token a row at its position. Each of `blocks` takes what the one before it
        gave, its cache with its `column` set (a slice, or the tensor itself when the step is
        recorded), and a mask (B, 1, width) to add: see to_additive. Then the last LayerNorm, and
        `sample` with the column of noise that belongs to t.
        """
    ),
    "sampling.decode": Task(
        """
        Row i takes its noise at step t from noise[i, t]. Start with prefill, go on with
        Batch.step. `going` says which rows had no `eos` before the token. In eval mode, and in the
        mode that it was called in afterwards, whatever happens. Stop when all rows are done; drop
        finished rows when they are more than a quarter. Grow the caches when they are full. CUDA
        graphs are not asked for.
        """
    ),
    "ppo_backward": Task(
        """
        In micro-batches (`micro_batches`), each multiplied by its share of the minibatch's tokens:
        policy_loss, the new log-probabilities against those of the rollout; value_loss; both
        backward, so that the gradients add up to those of the mean over all tokens of the
        minibatch, however it is split. The statistics are those of STATS, as means over those
        tokens, without gradient: both losses, ½ (log ρ)², the shares of tokens at which the
        clipped policy loss and the clipped value loss are the larger one, ρ, (ρ − 1) − log ρ, the
        share of |ρ − 1| > clip. Add them over processes: all_reduce.
        """
    ),
    "ppo.main": Task(
        """
        For each of config.ppo_epochs: a random order of the episodes, torch.randperm with `rng`,
        split into minibatches of mb_size rows. For each minibatch:
          - ppo_backward on its rows of the rollout, sorted by length; on the very first minibatch
            check_ratio of what it returns, with run.dtype;
          - ptx_backward of the policy, with generator(config.seed, in_round("ptx", config.round),
            iteration, epoch, number of the minibatch);
          - update the policy (with lr) and the critic (with critic_lr), which give `norm` and
            `critic_norm`, then ema_update;
          - append to `stats` the statistics of ppo_backward with the pretraining loss after them,
            as one tensor.
        What `timed` measures is up to you.
        """,
        "for epoch in range(config.ppo_epochs):\n    ___",
        "metrics = ___",
    ),
}


# ---- what goes ----


class Cut(NamedTuple):
    """Lines of a file that a student is to write."""

    file: str
    first: int
    last: int
    text: str  # in their place


def cut(exercise, function):
    """→ Cut. Raises Misfit if the function, or its statement to begin with, is not there."""
    found, task = patch.find(function), TASKS.get(function, Task(""))
    node = found.node()
    block = node.body[ast.get_docstring(node) is not None :]
    if task.begin:
        block = statements(node, task.begin, task.before)
    if not block:
        raise patch.Misfit("there is no body besides its docstring")
    lines, first = found.text.splitlines(), block[0].lineno
    while lines[first - 2].strip().startswith("#"):
        first -= 1
    stub = [f"# {line}".rstrip() for line in textwrap.dedent(task.text).strip().splitlines()]
    if not task.begin and ast.get_docstring(node) is None:
        stub.insert(0, f'"""{EXERCISES[exercise].formula}"""')
    stub.append(f'raise NotImplementedError("not written yet: exercise {exercise}")')
    stub = textwrap.indent("\n".join(stub), " " * block[0].col_offset)
    return Cut(found.file, first, block[-1].end_lineno, stub)


def statements(node, begin, before):
    """The statements of a function from one on, up to another that stays."""
    block, first = position(begin, node)
    return block[first : position(before, ast.Module(block[first:], []))[1] + first]


def position(statement, node):
    """(list of statements, index) of the first place where a statement is."""
    found = patch.places(ast.parse(statement).body, node)
    if not found:
        raise patch.Misfit(f"there is no {statement!r}")
    block, where, _ = found[0]
    return block, where.start


def stubs():
    """→ {file: its text without what students write}."""
    cuts = []
    for name, exercise in EXERCISES.items():
        for function in exercise.functions.split():
            try:
                cuts.append(cut(name, function))
            except patch.Misfit as e:
                sys.exit(f"error: {function}: {e}; bring EXERCISES and TASKS up to date")
    texts = {}
    for c in sorted(cuts, reverse=True):  # from the end on, so that line numbers stay right
        text = texts.get(c.file) or patch.read(os.path.join(ROOT, c.file))
        lines = text.splitlines()
        lines[c.first - 1 : c.last] = c.text.splitlines()
        texts[c.file] = "\n".join(lines) + "\n"
    return texts


def check_new(folder):
    """Exits with a sentence unless a copy can be written there."""
    if os.path.exists(folder) and (not os.path.isdir(folder) or os.listdir(folder)):
        sys.exit(f"error: {folder} is there already and not empty: give a new folder")
    if os.path.commonpath([ROOT, os.path.abspath(folder)]) == ROOT:
        sys.exit(f"error: {folder} is in the project itself: give a folder outside of {ROOT}")


def copy_project(folder, *left_out):
    """The project's files, but not what a run made of them, nor what is the instructor's."""

    def ignored(home, names):
        inside = os.path.relpath(home, ROOT).replace(os.sep, "/").removeprefix(".")
        paths = {name: f"{inside}/{name}".lstrip("/") for name in names}
        return [
            name
            for name, path in paths.items()
            for pattern in (*LEFT_OUT, *left_out)
            if fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(path, pattern)
        ]

    shutil.copytree(ROOT, folder, ignore=ignored, copy_function=shutil.copyfile, dirs_exist_ok=True)


def write(folder, path, text):
    with open(os.path.join(folder, path), "w", encoding="utf-8") as f:
        f.write(text)


# ---- a student's copy ----

HANDOUT = """# Assignment: the InstructGPT recipe

A language model is first trained on raw text. Then it is taught to answer, in three stages:
it imitates demonstrations (SFT), a second network learns from rankings to score answers (the reward
model), and the first one is changed so that its answers score higher (PPO). You write the parts
that do the work. Everything around them is there. You need Python, PyTorch's tensors and
`backward()`, and what a softmax and a cross-entropy are. Each new idea is said where it is needed.

## How to work

    pip install -r requirements.txt -r tests/requirements.txt
    python grade.py                   # all exercises, in a minute or two
    python grade.py gae policy_loss   # these alone

1. Choose an exercise below, and open the file that it names. A sheet's exercises belong together.
2. Read the function's docstring: it says shapes, and what the result is. B is a number of rows, T
   of tokens, V of words in the vocabulary.
3. Put your code in the place of `raise NotImplementedError`.
4. Run the grader on it. It prints points first, then what the mistake may be.
   `python -m pytest -q tests/test_losses.py -k gae` shows more, once what `gae` uses is written.

**Take them in any order.** Another exercise that you have not written costs its own points alone:
while yours is graded, its gap is filled from `solution.txt`. (That file is packed, not secret.
Whoever unpacks it learns nothing.) 100 points, and 10 extra for `cache`. Questions to think about
are in `questions.md`.
`README.md` says what the project is, and how to run it once it is whole.

An exercise counts when all of its tests are green. The final grading also
runs your functions on other shapes, masks and numbers, drawn at random, so the numbers of the tests
are no help in passing it.

What is true everywhere: a mask is bool, integer or float, and nonzero means valid. What is masked
may hold anything, infinity and NaN included, and reaches neither result nor gradient, so select
inputs by `torch.where` before any arithmetic (∞ × 0 is NaN). Losses, log-probabilities, rewards and
advantages are in at least float32 (`to_float32`). Leave signatures and the files in `tests/` alone.

## The picture to keep in mind

Columns belong to tokens: what is at t is about the token at t, though the logits that chose it, and
the value of the state that it was chosen in, come out of the network at t − 1.

{picture}

## Points

{table}

"""
ALL = """Nothing new to write: what you have, put together, on masks of every kind and on a bandit
whose best policy is known.
"""


def picture():
    """The lines of ppo.py's docstring from "position" on, as indented there."""
    found = patch.find("ppo.main")
    lines = ast.get_docstring(ast.parse(found.text), clean=False).splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith("    position ")), None)
    if first is None:
        sys.exit("error: ppo.py's docstring has no picture whose first line begins with 'position'")
    return "\n".join(lines[first : lines.index("", first)])


def handout():
    """ASSIGNMENT.md."""
    table, sections = ["| exercise | where | points |", "|---|---|---|"], []
    begins = {first: sheet for sheet, first in SHEETS.items()}
    for n, (name, exercise) in enumerate(EXERCISES.items(), 1):
        if name in begins:
            title = "Sheet " * (not exercise.extra) + begins[name]
            sections.append(f"## {title}\n")
            table.append(f"| **{title}** | | |")
        functions = exercise.functions.split()
        where = ", ".join(f"`{function}`" for function in functions) or "what you have by then"
        table.append(f"| {n}. {name} | {where} | {exercise.points} |")
        sections.append(f"### {n}. {name} ({exercise.points} points)\n\n    {exercise.formula}\n")
        for function in functions:
            found, task = patch.find(function), TASKS.get(function, Task(""))
            doc = (ast.get_docstring(found.node()) or "").split("\n")[0]
            about = "A part of the function; the comment there says which." if task.begin else doc
            sections.append(f"`{function}` in `{found.file}`. {about}\n")
            if task.text:
                quoted = textwrap.indent(textwrap.dedent(task.text).strip(), "> ")
                sections.append(quoted + "\n")
        if not functions:
            sections.append(ALL)
        if exercise.extra:
            sections.append("An extra: these points come on top of the 100.\n")
        if exercise.uses:
            sections.append(f"It needs to be written before: {', '.join(exercise.uses.split())}.\n")
        sections.append("Tests: " + ", ".join(f"`{test}`" for test in tests_of(name)) + "\n")
    return HANDOUT.format(picture=picture(), table="\n".join(table)) + "\n".join(sections)


def make(folder):
    """Write a student's copy."""
    check_new(folder)
    there = files_of_tests(TESTS)
    for name in EXERCISES:
        if gone := [test for test in tests_of(name) if test.split("[")[0] not in there]:
            sys.exit(f"error: there is no test {gone[0]} any more: bring EXERCISES up to date")
    texts, text = stubs(), handout()  # all that may fail, before anything is written
    copy_project(folder)
    for file, source in texts.items():
        write(folder, file, source)
    write(folder, "ASSIGNMENT.md", text)
    packed = zlib.compress(json.dumps(solution()).encode())
    write(folder, "solution.txt", base64.b64encode(packed).decode() + "\n")
    for file in ("grade.py", "questions.md"):
        shutil.copyfile(os.path.join(ROOT, "course", file), os.path.join(folder, file))


# ---- the bug hunt ----


def make_hunt(folder, n, seed, level="middle"):
    """Write a copy with n bugs in it."""
    check_new(folder)
    bugs, texts = hunt.draw(n, seed, level)
    copy_project(folder, "tests")
    for file, text in texts.items():
        write(folder, file, text)
    write(folder, "ASSIGNMENT.md", hunt.handout(bugs, level))
    now = time.time()
    for home, _, names in os.walk(folder):
        for name in names:
            os.utime(os.path.join(home, name), (now, now))  # or those with bugs are the latest


def grade_hunt(folder, n, seed, level):
    """Print a point for each bug that is gone. Exits with 0 if all are."""
    if not os.path.exists(os.path.join(folder, "ppo.py")):
        sys.exit(f"error: {folder} holds no ppo.py: give the folder of a bug hunt")
    result = hunt.grade(folder, n, seed, level)
    for key, why in result.items():
        print(f"{0 if why else 1} / 1  {key}{': ' + why if why else ''}")
    fixed = sum(not why for why in result.values())
    print(f"total {fixed} / {n}")
    sys.exit(0 if fixed == n else 1)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="the copy, a new folder outside of the project")
    parser.add_argument("--bug-hunt", type=int, metavar="N", help="a copy with N bugs")
    parser.add_argument("--level", choices=hunt.LEVELS, help="of the hunt; middle by default")
    parser.add_argument("--seed", help="which bugs; without it, drawn and printed")
    parser.add_argument("--grade-hunt", action="store_true", help="grade the folder of a hunt")
    args = parser.parse_args()
    if args.bug_hunt is not None and args.bug_hunt < 1:
        parser.error("--bug-hunt=N: there must be at least one bug")
    if args.seed and args.bug_hunt is None:
        parser.error("--seed is for --bug-hunt=N")
    if args.level and args.bug_hunt is None:
        parser.error("--level is for --bug-hunt=N")
    level = args.level or "middle"
    if args.grade_hunt and not (args.bug_hunt and args.seed):
        parser.error(
            "--grade-hunt needs the --bug-hunt=N and --seed=S that the folder was made with"
        )
    script = f"python {os.path.relpath(__file__, os.getcwd())}"
    course = os.path.relpath(os.path.dirname(os.path.abspath(__file__)))
    if args.grade_hunt:
        grade_hunt(args.folder, args.bug_hunt, args.seed, level)
    elif args.bug_hunt:
        seed = args.seed or str(random.SystemRandom().randrange(10**9))
        make_hunt(args.folder, args.bug_hunt, seed, level)
        script = f"python {course}/make_assignment.py {args.folder} --bug-hunt={args.bug_hunt}"
        script += f" --level={level}"
        print(f"wrote {args.folder}; to grade it: {script} --seed={seed} --grade-hunt")
    else:
        make(args.folder)
        script = f"python {course}/grade.py --project={args.folder}"
        print(f"wrote {args.folder}; to grade it: {script}, and with --seed=N on new numbers")


if __name__ == "__main__":
    main()

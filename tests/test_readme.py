"""What the documents print for people to type works, and what they point at exists."""

import ast
import functools
import glob
import os
import re
import shlex
import shutil
import subprocess
import sys
import types

import pytest
import torch

from conftest import ROOT, STAGES, log_of, parents_only, run_little
from data import load_reward

DOCS = ["README.md", "CONTRIBUTING.md", "data/README.md", "tests/README.md", "papers/README.md"]
DOCS += sorted(
    "experiments/" + os.path.basename(p) for p in glob.glob(os.path.join(ROOT, "experiments/*.md"))
)
DIARY = "experiments/LOG.md"  # its commands have the flags of their day


@functools.cache
def text_of(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as f:
        return f.read()


def exists(*parts):
    return os.path.exists(os.path.join(ROOT, *parts))


# ---- what a document has in it ----


def prose_and_blocks(text):
    """A Markdown text → (its prose, the lines of its code blocks, indent taken off)."""
    prose, blocks, fenced, before = [], [], False, ""
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced:
            blocks.append(line)
        elif line.startswith("    ") and (not before.strip() or before.startswith("    ")):
            blocks.append(line[4:])
        else:
            prose.append(line)
        before = line
    return "\n".join(prose), blocks


def inline_code(text):
    return re.findall(r"`([^`\n]+)`", prose_and_blocks(text)[0])


def anchors(text):
    """The anchors that GitHub gives to the headings of a text."""
    found = []
    for heading in re.findall(r"^#+ (.*)$", prose_and_blocks(text)[0], re.M):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return found


def commands(text):
    """(script, [flags]) of each command that a text prints, in a block or inside a line."""
    found = []
    for line in [*prose_and_blocks(text)[1], *inline_code(text)]:
        line = re.sub(r"(^|\s)#.*", "", line)
        for command in re.split(r"&&|\|\||[|;]", line):
            m = re.match(r"\s*(.*?\s)?([\w./-]+\.py)(?=\s|$)(.*)", command)
            if m and (m[1] or m[3].strip()):  # a file's name alone is no command
                found.append((m[2], re.findall(r"(?<!\S)--([\w-]+)", m[3])))
    return found


# ---- what the scripts take, by their source: importing them all would take a minute ----


@functools.cache
def tree(path):
    return ast.parse(text_of(path))


def fields_of(path, name="Config"):
    """{flag: its type} of the dataclass in a file, those of Common among them."""
    for node in tree(path).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            inherited = {}
            if any(ast.unparse(base).endswith("Common") for base in node.bases):
                inherited = fields_of("plumbing/command_line.py", "Common")
            own = [x for x in node.body if isinstance(x, ast.AnnAssign)]
            return {**inherited, **{x.target.id: ast.unparse(x.annotation) for x in own}}
    return {}


def arguments_of(path):
    """The flags that a file gives to an argparse parser, or to lib.arguments as (name, {…})."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
            found |= {x.value for x in node.args if isinstance(x, ast.Constant)}
        if isinstance(node, ast.Tuple) and len(node.elts) == 2:
            name, more = node.elts
            if isinstance(name, ast.Constant) and isinstance(more, (ast.Dict, ast.Call)):
                found.add(name.value)
    return {x[2:] for x in found if isinstance(x, str) and x.startswith("--")}


@functools.cache
def flags_of(script):
    """All flags of a script of this project."""
    fields = fields_of(script)
    flags = {"help", *fields, *("no-" + n for n, kind in fields.items() if kind == "bool")}
    flags |= arguments_of(script)
    shared = script.startswith(("experiments/", "papers/"))
    if shared and re.search(r"\blib\.arguments\(", text_of(script)):
        flags |= arguments_of("experiments/lib.py")
    if script.startswith("experiments/") and "parse_known_args" in text_of(script):
        flags |= flags_of("ppo.py")  # which it hands on
    return flags


def script_at(script, doc):
    """The path of a script that a document names, from the root or from its own folder."""
    beside = os.path.join(os.path.dirname(doc), script)
    return next((p for p in (script, beside) if exists(p)), None)


YOURS = {"short.py", "upbeat.py", "mine.py"}  # files of the reader's own, in examples


@pytest.mark.parametrize("doc", DOCS)
def test_links_lead_somewhere(doc):
    prose = re.sub(r"`[^`\n]*`", "", prose_and_blocks(text_of(doc))[0])
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if target.startswith(("http:", "https:")):
            continue
        path, _, anchor = target.partition("#")
        path = os.path.normpath(os.path.join(os.path.dirname(doc), path)) if path else doc
        assert exists(path), f"{doc} links to {target}: there is no {path}"
        if anchor:
            there = anchors(text_of(path))
            assert anchor in there, f"{doc} links to {target}: {path} has only {', '.join(there)}"


@pytest.mark.parametrize("doc", DOCS)
def test_commands_name_scripts_and_flags_that_exist(doc):
    for script, flags in commands(text_of(doc)):
        if script in YOURS:
            continue
        path = script_at(script, doc)
        assert path, f"{doc} says to run {script}, which does not exist"
        if doc != DIARY:
            unknown = [f for f in flags if f not in flags_of(path)]
            assert not unknown, f"{doc}: {path} has no flag --{', --'.join(unknown)}"


@pytest.mark.parametrize("doc", [d for d in DOCS if d != DIARY])
def test_flags_in_a_sentence_exist(doc):
    scripts = [os.path.relpath(p, ROOT) for p in glob.glob(os.path.join(ROOT, "*.py"))]
    scripts += ["data/label.py", "data/prepare.py", "experiments/lib.py"]
    scripts += [script_at(script, doc) for script, _ in commands(text_of(doc))]
    known = {f for s in scripts if s for f in flags_of(s)} | {"nproc_per_node"}
    for code in inline_code(text_of(doc)):
        if m := re.match(r"--([\w-]+)", code):
            assert m[1] in known, f"{doc} speaks of `{code}`, which is a flag of no script"


MADE = {".pt", ".bin", ".jsonl"}  # endings of what a run makes
ENDINGS = {".py", ".md", ".txt", ".csv", ".png", ".json", ".toml", ".yml", ".tiktoken", *MADE}
FOREIGN = {"encoder.json", "vocab.bpe", "summary.json", "text.txt", "model.safetensors"}


def paths_in(code):
    """The words of a piece of code in a line that look like paths of files or folders."""
    for word in re.split(r"[\s=,:]+", code):
        word = word.strip("'\"()")
        ending = os.path.splitext(word)[1]
        if re.fullmatch(r"[\w.*/-]+", word) and (ending in ENDINGS or word.endswith("/")):
            yield word


@pytest.mark.parametrize("doc", DOCS)
def test_paths_in_a_sentence_exist(doc):
    places = ["", os.path.dirname(doc), "data/*"]
    for path in (p for code in inline_code(text_of(doc)) for p in paths_in(code)):
        name, ending = os.path.basename(path), os.path.splitext(path)[1]
        if path.startswith("out/") or ending in MADE or name in YOURS | FOREIGN:
            continue
        if re.search(r"NAME|YOURS|/mine\b", path):
            continue
        found = any(glob.glob(os.path.join(ROOT, place, path)) for place in places)
        assert found, f"{doc} speaks of `{path}`, which does not exist"


@pytest.mark.parametrize("doc", DOCS)
def test_functions_are_in_the_files_they_are_said_to_be_in(doc):
    for name, file in re.findall(r"`(\w+)` in `([\w./]+\.py)`", text_of(doc)):
        names = set()
        for node in ast.walk(tree(script_at(file, doc))):
            names |= {getattr(node, "name", None)}
            if isinstance(node, ast.Assign):
                names |= {getattr(target, "id", None) for target in node.targets}
        assert name in names, f"{doc} says that `{name}` is in `{file}`; it is not"


# ---- the README: short, and the first things first ----


def line_of(text, marker):
    """The number of the first line of the README with `marker` in it, from 1 on."""
    lines = [n for n, line in enumerate(text.splitlines(), 1) if marker in line]
    assert lines, f"README.md says nothing of {marker!r}"
    return lines[0]


def test_readme_is_short_and_begins_with_what_to_run():
    text = text_of("README.md")
    lines, size = len(text.splitlines()), len(text.encode())
    assert lines <= 200, f"README.md has {lines} lines, 200 at most: move something to where it is"
    assert size <= 12 * 1024, f"README.md has {size:,} bytes, 12 KB at most"
    assert line_of(text, "python ppo.py") <= 25, "what to run stands too far down"


def rows_of(section):
    """The table rows of a section of the README → lists of cells."""
    part = text_of("README.md").split(f"## {section}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line.strip("|").split("|") for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_reading_order_is_near_the_top_and_names_every_file():
    text = text_of("README.md")
    named = [row[0].strip("`") for row in rows_of("Files, in reading order")]
    scripts = {os.path.basename(p) for p in glob.glob(os.path.join(ROOT, "*.py"))}
    folders = {"plumbing/", "data/", "experiments/", "papers/", "tests/", "course/"}
    missing, gone = (scripts | folders) - set(named), set(named) - scripts - folders
    assert not missing, f"the reading order says nothing of {', '.join(sorted(missing))}"
    assert not gone, f"the reading order has {', '.join(sorted(gone))}, which is not there"
    last = max(line_of(text, f"| `{name}` |") for name in named)
    assert last <= 90, f"the reading order ends in line {last} of README.md; 90 at most"


def test_the_healthy_runs_table_names_tests_that_exist():
    names = []
    for path in glob.glob(os.path.join(ROOT, "tests", "test_*.py")):
        names += re.findall(r"^ *def (test_\w+)", text_of(os.path.relpath(path, ROOT)), re.M)
    for *_, cell in rows_of("Is my run healthy?"):
        for word in re.findall(r"\w+", cell.replace(" or ", " ")):
            assert any(word in name for name in names), f"no test has {word!r} in its name"


def test_the_two_commands_stand_as_ci_looks_for_them():
    found = re.findall(r"^    (pip install -r requirements.txt.*&&.*)$", text_of("README.md"), re.M)
    ends = [command.rsplit("&& ", 1)[1] for command in found]
    assert ends == ["python ppo.py", "python -m pytest -q"], f".ci/run would run {found}"


# ---- what people type, typed ----


def block(marker):
    """The code block of README.md or data/README.md in which `marker` stands, indent taken off."""
    for doc in ("README.md", "data/README.md"):
        lines = text_of(doc).splitlines()
        inside = [line.startswith("    ") or not line for line in lines]
        at = [n for n, x in enumerate(lines) if x.startswith("    ") and marker in x]
        if at:
            first = last = at[0]
            while first and inside[first - 1]:
                first -= 1
            while last + 1 < len(lines) and inside[last + 1]:
                last += 1
            return [line[4:] for line in lines[first : last + 1] if line.strip()]
    raise AssertionError(f"neither README.md nor data/README.md has a snippet with {marker!r}")


def test_your_own_data_in_ten_lines(tmp_path):
    lines = block("> data/mine/comparisons.jsonl")
    assert len(lines) <= 10, f"ten lines are promised, there are {len(lines)}"
    assert lines[-1] == "python ppo.py --data=mine"
    for pattern in ("*.py", "plumbing/*.py", "data/*.py"):
        for path in glob.glob(os.path.join(ROOT, pattern)):
            copy = tmp_path / os.path.relpath(path, ROOT)
            copy.parent.mkdir(exist_ok=True)
            shutil.copy(path, copy)
    # all but ppo.py, which follows stage by stage, with few steps
    typed = "\n".join(lines[:-1]).replace("python ", f"{sys.executable} ")
    result = subprocess.run(
        ["bash", "-euc", typed], cwd=tmp_path, capture_output=True, text=True, encoding="utf-8"
    )
    assert result.returncode == 0, result.stderr
    for stage in STAGES:
        run_little(stage, tmp_path / "data" / "mine", tmp_path / "out")
    assert (tmp_path / "out" / "ppo.pt").exists()


def given_to(lines, script):
    """The flags that a snippet gives to a script."""
    (line,) = [x for x in lines if x.startswith(f"python {script}")]
    return shlex.split(line, comments=True)[2:]


def test_the_readmes_reward_function_shortens_answers(little, tmp_path, monkeypatch):
    data, before = little
    (tmp_path / "short.py").write_text("\n".join(block("def score(prompt, response)")))
    flags = given_to(block("--reward=short.py:score"), "ppo.py")
    flags = [f for f in flags if not f.startswith(("--out", "--iterations"))]
    out = parents_only("reward", before, tmp_path / "out" / "short")
    monkeypatch.chdir(tmp_path)
    small = ["--iterations=10", "--episodes=64", "--minibatches=4", "--lr=5e-3", "--warmup=1"]
    run_little("ppo", data, out, *flags, *small, "--eval_every=10", "--ptx_coef=0")
    length = [x["response/length"] for x in log_of(out, "ppo")]
    shorter = sum(length[-2:]) / 2 < 0.7 * length[0]
    assert shorter, f"a function that asks for short answers got {length}"


def test_the_readmes_lexicons_are_asked_as_their_packages_want(tmp_path, monkeypatch):
    """Stand-ins for the two packages, with the names and results that the real ones have."""
    words = {"Great!": 0.6}
    vader = types.ModuleType("vaderSentiment.vaderSentiment")
    vader.SentimentIntensityAnalyzer = lambda: types.SimpleNamespace(
        polarity_scores=lambda text: {"neg": 0.0, "neu": 0.4, "pos": 0.6, "compound": words[text]}
    )
    afinn = types.ModuleType("afinn")
    afinn.Afinn = lambda: types.SimpleNamespace(score=lambda text: 5 * words[text])
    for module in (types.ModuleType("vaderSentiment"), vader, afinn):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    (tmp_path / "upbeat.py").write_text("\n".join(block("def vader(prompt, response)")))
    monkeypatch.chdir(tmp_path)
    typed = block("--reward=upbeat.py:vader")
    values = {}
    for script in ("ppo.py", "evaluate.py"):
        (name,) = [f[9:] for f in given_to(typed, script) if f.startswith("--reward=")]
        values[name] = load_reward(name)("Hi!", "Great!")
    assert values == {"upbeat.py:vader": 0.6, "upbeat.py:afinn": 3.0}


def test_the_readmes_export_is_read_by_transformers(whole, vocab, tmp_path, monkeypatch):
    code = shlex.split(block("save_pretrained('")[0])
    assert code[:2] == ["python", "-c"]
    (tmp_path / "out" / "village").mkdir(parents=True)
    shutil.copy(whole / "ppo.pt", tmp_path / "out" / "village")
    (tmp_path / "data" / "village").mkdir(parents=True)
    for path in glob.glob(os.path.join(ROOT, "data", "village", "vocab.*")):
        shutil.copy(path, tmp_path / "data" / "village")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code[2], names)
    ours = names["model_from"](names["load"](str(whole / "ppo.pt")))
    from transformers import GPT2LMHeadModel

    theirs = GPT2LMHeadModel.from_pretrained(tmp_path / "exported").eval()
    tokens = torch.tensor([vocab.prompt("Name a pet.") + vocab.response("A cat.")])
    with torch.no_grad():
        a, b = ours(tokens), theirs(tokens).logits
    same = a.shape == b.shape and torch.allclose(a, b, atol=2e-4)
    assert same, "another network is read than was trained"
    assert a.size(-1) == vocab.size, "the special tokens' rows are missing"

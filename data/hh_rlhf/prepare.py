"""
Anthropic's HH-RLHF (Bai et al. 2022): people's choices between two answers.

    python data/hh_rlhf/prepare.py                              # downloads harmless-base
    python data/hh_rlhf/prepare.py --subset=helpful-base        # or another of these subsets
    python data/hh_rlhf/prepare.py --source=FOLDER_OR_FILE      # takes what is here already
    python data/hh_rlhf/prepare.py --vocab=gpt2 --block=1024    # for a model of GPT-2's size

A line of its files has two dialogues, "chosen" and "rejected", written as
"\\n\\nHuman: …\\n\\nAssistant: …". They should differ only in the last answer. What comes before it
is the prompt, the two answers are a comparison, and the chosen one is the demonstration. That is
usual with this set, though nobody wrote it as one: it was liked better than the other, and may
still be bad.

train.jsonl.gz is for training and test.jsonl.gz is held out. Of a single file, --train comparisons
are for training and the others are held out, in the order of a hash of the dialogues' first turn.
--part=1, 2, … holds out others. The default block is that of --size=tiny.

Its authors warn that much of the text is offensive or upsetting. None is kept in this repository.
"""
import collections
import gzip
import hashlib
import json
import os
import re
import sys
import urllib.error
import urllib.request
import zlib

from tqdm import tqdm

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(os.path.dirname(HERE)))
from data import UserError, parse_json, read_json, replacing
from data.prepare import length_alone, make_vocab, write_bin, write_jsonl
from plumbing.command_line import Parser, entry, value_of

URL = "https://huggingface.co/datasets/Anthropic/hh-rlhf/resolve/main/{}/{}"
SUBSETS = ["harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled"]
FILES = ["train.jsonl.gz", "test.jsonl.gz"]
# SHA-256 of the one file that we have seen. For the others the server names it (X-Linked-Etag), or
# else length and gzip's CRC must be enough.
SUMS = {"harmless-base/test.jsonl.gz":
        "ebfaaed21162a4de120ae85366075b34425e2a6303fac59b99555002f7016f03"}


# ---- download ----

class KeepSum(urllib.request.HTTPRedirectHandler):
    """Follows redirects, and keeps the checksum that only the first server names."""
    sum = None

    def redirect_request(self, request, fp, code, msg, headers, url):
        self.sum = self.sum or headers.get("X-Linked-Etag")
        return super().redirect_request(request, fp, code, msg, headers, url)


def download(url, path, known=None):
    """Get a file, going on from what an earlier try left in `path`.part.

    It gets its name when its length, its checksum and gzip's CRC are right. known: its SHA-256, if
    we know it. Raises UserError: no network, interrupted, or damaged.
    """
    part = path + ".part"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        total, expected = receive(url, part)
    except urllib.error.HTTPError as e:
        if e.code != 416:
            raise UserError(f"{url} can't be downloaded: {e}") from None
        # what is there is as long as the file or longer, so it must be wrong: begin anew
        os.remove(part)
        return download(url, path, known)
    except OSError as e:
        raise UserError(f"{url} can't be downloaded ({getattr(e, 'reason', e)}); the same command "
                        f"goes on from what is there. Without a network: get the file elsewhere "
                        f"and give --source=FOLDER_OR_FILE") from None
    if total and os.path.getsize(part) < total:
        raise UserError(f"{url} broke off after {os.path.getsize(part):,} of {total:,} bytes; the "
                        f"same command goes on from there")
    with open(part, "rb") as f:
        content = f.read()
    if wrong := damage(content, known or expected):
        os.remove(part)
        raise UserError(f"{url} was not received as it is ({wrong}); nothing of it is kept, "
                        f"try again")
    os.replace(part, path)
    checked = ("as it should be" if is_sha256(known or expected) else
               "for which nobody named the right one; gzip's own CRC is right")
    sha256 = hashlib.sha256(content).hexdigest()
    print(f"{path}: {len(content):,} bytes, SHA-256 {sha256}, {checked}")


def receive(url, part):
    """Append what the file lacks → (full length or None, the checksum that the server names)."""
    have = os.path.getsize(part) if os.path.exists(part) else 0
    redirects = KeepSum()
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.build_opener(redirects).open(request, timeout=30) as answer:
        if answer.status != 206:        # the server sends all of it again
            have = 0
        length = answer.headers["Content-Length"]
        total = have + int(length) if length else None
        expected = (redirects.sum or answer.headers.get("X-Linked-Etag") or "").strip('"')
        name = os.path.basename(part).removesuffix(".part")
        progress = tqdm(total=total, initial=have, desc=name, unit="B", unit_scale=True)
        with open(part, "ab" if have else "wb") as f, progress:
            while piece := answer.read(1 << 16):
                f.write(piece)
                progress.update(len(piece))
    return total, expected


def is_sha256(checksum):
    return len(checksum) == 64


def damage(content, expected):
    """What is wrong with a gzip file's content, or None."""
    found = hashlib.sha256(content).hexdigest()
    if is_sha256(expected) and found != expected:
        return f"its SHA-256 is {found}, not {expected}"
    try:
        gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as e:
        return f"it is no whole gzip file: {e}"
    return None


def find_files(source, subset):
    """→ paths of train and test file, or of a single one. Downloads them if there is no source."""
    if os.path.isfile(source):
        return [source]
    folder = source or os.path.join(HERE, subset)
    paths = [os.path.join(folder, name) for name in FILES]
    for name, path in zip(FILES, paths):
        if not source and not os.path.exists(path):
            download(URL.format(subset, name), path, SUMS.get(f"{subset}/{name}"))
    found = [path for path in paths if os.path.exists(path)]
    if not found:
        raise UserError(f"--source={source}: neither a file nor a folder with "
                        f"{' or '.join(FILES)}")
    return found


# ---- dialogues ----

def split_turns(text):
    """A dialogue → [{"role", "content"}]. Raises ValueError if it is none."""
    before, *parts = re.split(r"\n\n(Human|Assistant):", text)
    if before.strip() or not parts or parts[0] != "Human":
        raise ValueError(r'a dialogue begins with "\n\nHuman:"')
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": what.strip()}
            for who, what in zip(parts[::2], parts[1::2])]


def why_useless(chosen, rejected):
    """What keeps two dialogues from being a comparison, or None."""
    if "user" in (chosen[-1]["role"], rejected[-1]["role"]):
        return "end with the human's turn"
    if chosen[:-1] != rejected[:-1]:
        return "differ before the last answer"
    if any(turn["role"] != ("user", "assistant")[i % 2] for i, turn in enumerate(chosen)):
        return "have two turns of one side in a row"
    if not all(turn["content"] for turn in [*chosen, rejected[-1]]):
        return "have an empty turn"
    return "have two equal answers" if chosen == rejected else None


def read(path, dropped):
    """Yields (turns of the prompt, chosen answer, rejected answer).

    Counts in `dropped` what is of no use. Raises UserError that names file and line.
    """
    try:
        with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8-sig") as f:
            lines = [(n, line) for n, line in enumerate(f, 1) if line.strip()]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as e:
        raise UserError(f"{path} can't be read as gzipped UTF-8 text ({e}): it may be cut off; "
                        f"get it again") from None
    for n, line in lines:
        try:
            row = parse_json(line)
            chosen, rejected = split_turns(row["chosen"]), split_turns(row["rejected"])
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(f'{path}, line {n}: expected {{"chosen": dialogue, "rejected": '
                            f"dialogue}} ({type(e).__name__}: {e})") from None
        if reason := why_useless(chosen, rejected):
            dropped[f"dialogues {reason}"] += 1
        else:
            yield chosen[:-1], chosen[-1]["content"], rejected[-1]["content"]


def split_comparisons(files, paths, train, part):
    """The comparisons of each file → [(split, comparison)].

    Of a single file, all but `train` are held out: those of this part, in the order of a hash of
    how the dialogue begins.
    """
    if len(files) == 2:
        return [(split, row) for split, rows in zip(("train", "heldout"), files) for row in rows]
    rows = sorted(files[0], key=lambda row: hashlib.sha256(row[0][0]["content"].encode()).digest())
    held = len(rows) - train
    if not 0 < held < len(rows):
        raise UserError(f"--train={train}: {paths[0]} has {len(rows):,} comparisons, and some must "
                        f"be held out")
    if not 0 <= part < len(rows) // held:
        raise UserError(f"--part={part}: {paths[0]} has {len(rows) // held} parts of {held}, "
                        f"counted from 0")
    heldout = range(part * held, (part + 1) * held)
    return [("heldout" if i in heldout else "train", row) for i, row in enumerate(rows)]


# ---- what is made of them ----

def fit_prompt(vocab, prompt, room):
    """The prompt without the oldest turns, so that it fits `room` tokens. None if it never does."""
    while len(vocab.prompt(prompt)) > room:
        if len(prompt) < 3:
            return None
        prompt = prompt[2:]
    return prompt


def cut_answer(vocab, text, room):
    """An answer that fits `room` tokens with <|endoftext|>, and whether that is all of it."""
    ids = vocab.response(text)
    if len(ids) <= room:
        return text, True
    return vocab.decode(ids[:room - 1]).rstrip("\ufffd"), False


def write_text(vocab, comparisons):
    """Whole dialogues; and the rejected answer, after the last question alone."""
    for name, side in (("train.bin", "train"), ("val.bin", "heldout")):
        rows = [row for split, row in comparisons if split == side]
        documents = [vocab.prompt(prompt) + vocab.response(chosen) for prompt, chosen, _ in rows]
        documents += [vocab.prompt(prompt[-1:]) + vocab.response(rejected)
                      for prompt, _, rejected in rows]
        write_bin(os.path.join(HERE, name), documents)


def make_rows(vocab, found, block, answer, dropped):
    """Comparisons and demonstrations that fit the block. `answer` tokens are for an answer."""
    comparisons, demonstrations = [], []
    for split, (whole_prompt, *answers) in found:
        prompt = fit_prompt(vocab, whole_prompt, block - answer)
        dropped["comparisons whose last question does not fit"] += prompt is None
        if prompt is None:
            continue
        dropped["older turns left out of prompts"] += len(whole_prompt) - len(prompt)
        room = block - len(vocab.prompt(prompt))
        (chosen, chosen_ends), (rejected, rejected_ends) = (
            cut_answer(vocab, text, room) for text in answers)
        dropped["answers cut at the block"] += 2 - chosen_ends - rejected_ends
        if chosen_ends:
            demonstrations.append({"prompt": prompt, "response": chosen, "split": split})
        if (chosen, chosen_ends) == (rejected, rejected_ends):
            dropped["comparisons equal after the cut"] += 1
        else:
            comparisons.append({"prompt": prompt, "responses": [chosen, rejected], "ranks": [1, 2],
                                "eos": [chosen_ends, rejected_ends], "split": split})
    return comparisons, demonstrations


def parse_arguments():
    """The flags; without any, those of the last time: a stage starts this script without flags."""
    parser = Parser(__doc__)
    parser.add_argument("--subset", default="harmless-base", choices=SUBSETS)
    parser.add_argument("--source", default="", help="a folder or file here; empty: download")
    parser.add_argument("--train", type=value_of(int, "[1, inf)"), default=2000,
                        help="comparisons of a single file that are for training")
    parser.add_argument("--part", type=value_of(int, "[0, inf)"), default=0,
                        help="which of the others are held out")
    parser.add_argument("--vocab", default="2048", help="gpt2, or the size of one of its own")
    parser.add_argument("--block", type=value_of(int, "[1, inf)"), default=128,
                        help="longest sequence in tokens: the block of the --size to be trained")
    parser.add_argument("--answer", type=value_of(int, "[1, inf)"), default=48,
                        help="how many of these are kept for an answer; longer ones are cut")
    last = os.path.join(HERE, "prepare.json")
    given = sys.argv[1:] or (read_json(last) if os.path.exists(last) else [])
    args = parser.parse_args(given)
    print("data/hh_rlhf/prepare.py", *given, flush=True)
    args.source = args.source and os.path.abspath(args.source)
    return args


def main():
    args, dropped = parse_arguments(), collections.Counter()
    paths = find_files(args.source, args.subset)
    files = [list(read(path, dropped)) for path in paths]
    found = split_comparisons(files, paths, args.train, args.part)
    texts = [text for split, (prompt, *answers) in found if split == "train"
             for text in [*(turn["content"] for turn in prompt), *answers]]
    vocab = make_vocab(HERE, args.vocab, texts)
    write_text(vocab, found)

    comparisons, demonstrations = make_rows(vocab, found, args.block, args.answer, dropped)
    # backwards, so that a prompt that is there twice has the split of its first comparison
    prompts = {json.dumps(row["prompt"]): {"prompt": row["prompt"], "split": row["split"]}
               for row in reversed(comparisons)}
    write_jsonl(os.path.join(HERE, "demonstrations.jsonl"), demonstrations)
    write_jsonl(os.path.join(HERE, "comparisons.jsonl"), comparisons)
    write_jsonl(os.path.join(HERE, "prompts.jsonl"), list(prompts.values())[::-1])
    print(length_alone(comparisons, vocab))
    print("dropped:", *(f"{n:9,} {what}" for what, n in sorted(dropped.items())), sep="\n")
    with replacing(os.path.join(HERE, "prepare.json")) as f:
        json.dump([f"--{name}={value}" for name, value in vars(args).items()], f)


if __name__ == "__main__":
    entry(main)

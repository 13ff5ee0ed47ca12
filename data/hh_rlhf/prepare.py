"""
Anthropic's HH-RLHF (Bai et al. 2022) in the files that every data set here has: people's choices between two answers.

    python data/hh_rlhf/prepare.py                              # downloads harmless-base
    python data/hh_rlhf/prepare.py --subset=helpful-base        # or helpful-online, helpful-rejection-sampled
    python data/hh_rlhf/prepare.py --source=FOLDER_OR_FILE      # train.jsonl.gz and test.jsonl.gz, or one of them, from there
    python data/hh_rlhf/prepare.py --vocab=gpt2 --block=1024    # for a model of GPT-2's size; the default is for --size=tiny

A line of its files has two dialogues, "chosen" and "rejected", "\\n\\nHuman: …\\n\\nAssistant: …", that should differ in the last
answer alone. What comes before is the prompt; the two answers are a comparison; the chosen one is the demonstration,
as is usual with this set, though nobody wrote it as one: it was liked better than the other, and may be bad all the same.
train.jsonl.gz is for training and test.jsonl.gz held out. Of a single file, --train of its comparisons are for training and
the others held out, in the order of a hash of how the dialogue begins; --part=1, 2, … holds out other ones.

Its authors warn that much of the text is offensive or upsetting. None of it is kept in this repository.
"""
import argparse
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

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(os.path.dirname(HERE)))
from data import UserError, read_json, replacing  # noqa: E402
from data.prepare import fit, length_alone, make_vocab, write_bin, write_jsonl  # noqa: E402
from tqdm import tqdm  # noqa: E402

URL = "https://huggingface.co/datasets/Anthropic/hh-rlhf/resolve/main/{}/{}"
SUBSETS = ["harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled"]
FILES = ["train.jsonl.gz", "test.jsonl.gz"]
# SHA-256 of the one file that we had in our hands; of the others the server names it (X-Linked-Etag), else length and gzip's CRC must do
SUMS = {"harmless-base/test.jsonl.gz": "ebfaaed21162a4de120ae85366075b34425e2a6303fac59b99555002f7016f03"}


class KeepSum(urllib.request.HTTPRedirectHandler):
    """Follows redirects, and keeps the checksum that the first server names in its answer: the last one doesn't."""
    sum = None

    def redirect_request(self, request, fp, code, msg, headers, url):
        self.sum = self.sum or headers.get("X-Linked-Etag")
        return super().redirect_request(request, fp, code, msg, headers, url)


def download(url, path, known=None):
    """Get a file, going on from what an earlier try left in `path`.part. It gets its name when length, checksum and gzip's CRC are right.

    known: its SHA-256, if we know it. Raises UserError: no network, interrupted, or damaged.
    """
    part, redirects = path + ".part", KeepSum()
    os.makedirs(os.path.dirname(path), exist_ok=True)
    have = os.path.getsize(part) if os.path.exists(part) else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.build_opener(redirects).open(request, timeout=30) as answer:
            have = have if answer.status == 206 else 0      # 200: the server sends all of it again
            total = have + int(answer.headers["Content-Length"]) if answer.headers["Content-Length"] else None
            expected = known or (redirects.sum or answer.headers.get("X-Linked-Etag") or "").strip('"')
            with open(part, "ab" if have else "wb") as f, tqdm(total=total, initial=have, desc=os.path.basename(path), unit="B", unit_scale=True) as bar:
                while piece := answer.read(1 << 16):
                    f.write(piece)
                    bar.update(len(piece))
    except urllib.error.HTTPError as e:
        if e.code == 416:       # what is there is as long as the file or longer, so it was not right when it was complete
            os.remove(part)
            return download(url, path, known)
        raise UserError(f"{url} can't be downloaded: {e}") from None
    except OSError as e:
        raise UserError(f"{url} can't be downloaded ({getattr(e, 'reason', e)}); the same command goes on from what is there. Without a network: "
                        f"get the file elsewhere and give --source=FOLDER_OR_FILE") from None
    if total and os.path.getsize(part) < total:
        raise UserError(f"{url} broke off after {os.path.getsize(part):,} of {total:,} bytes; the same command goes on from there")
    with open(part, "rb") as f:
        content = f.read()
    found = hashlib.sha256(content).hexdigest()
    try:
        wrong = f"its SHA-256 is {found}, not {expected}" if len(expected) == 64 and found != expected else None
        gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as e:
        wrong = wrong or f"it is no whole gzip file: {e}"
    if wrong:
        os.remove(part)
        raise UserError(f"{url} was not received as it is ({wrong}); nothing of it is kept, try again")
    os.replace(part, path)
    print(f"{path}: {len(content):,} bytes, SHA-256 {found}, " + ("as it should be" if len(expected) == 64 else "for which nobody named the right one; gzip's own CRC is right"))


def find(source, subset):
    """→ paths of train and test file, or of a single one; downloaded if there is no source."""
    if os.path.isfile(source):
        return [source]
    folder = source or os.path.join(HERE, subset)
    if not source:
        for name in FILES:
            if not os.path.exists(os.path.join(folder, name)):
                download(URL.format(subset, name), os.path.join(folder, name), SUMS.get(f"{subset}/{name}"))
    found = [path for name in FILES if os.path.exists(path := os.path.join(folder, name))]
    if not found:
        raise UserError(f"--source={source}: neither a file nor a folder with {' or '.join(FILES)}")
    return found


def turns(text):
    """A dialogue → [(role, what was said)]. Raises ValueError if it is none."""
    before, *parts = re.split(r"\n\n(Human|Assistant):", text)
    if before.strip() or not parts or parts[0] != "Human":
        raise ValueError(r'a dialogue begins with "\n\nHuman:"')
    return [({"Human": "user", "Assistant": "assistant"}[who], what.strip()) for who, what in zip(parts[::2], parts[1::2])]


def read(path, dropped):
    """Yields (turns of the prompt, chosen answer, rejected answer). Raises UserError naming file and line; counts in `dropped` what is of no use."""
    try:
        with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8") as f:
            lines = f.readlines()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as e:
        raise UserError(f"{path} can't be read as gzipped UTF-8 text ({e}): it may be cut off; get it again") from None
    for n, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            chosen, rejected = turns(row["chosen"]), turns(row["rejected"])
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(f'{path}, line {n}: expected {{"chosen": dialogue, "rejected": dialogue}} ({type(e).__name__}: {e})') from None
        reason = ("end with the human's turn" if "user" in (chosen[-1][0], rejected[-1][0]) else
                  "differ before the last answer" if chosen[:-1] != rejected[:-1] else
                  "have two turns of one side in a row" if any(role != ("user", "assistant")[i % 2] for i, (role, _) in enumerate(chosen)) else
                  "have an empty turn" if not all(what for _, what in [*chosen, rejected[-1]]) else
                  "have two equal answers" if chosen == rejected else None)
        if reason:
            dropped[f"dialogues {reason}"] += 1
        else:
            yield [{"role": role, "content": what} for role, what in chosen[:-1]], chosen[-1][1], rejected[-1][1]


def sides(found, paths, n, part):
    """Comparisons of each file → [(side, comparison)]: by file, or of a single file all but n held out: those of this part, by a hash of how the dialogue begins."""
    if len(paths) == 2:
        return [(side, row) for side, rows in zip(("train", "heldout"), found) for row in rows]
    rows = sorted(found[0], key=lambda row: hashlib.sha256(row[0][0]["content"].encode()).digest())
    held = len(rows) - n
    if not 0 < held < len(rows):
        raise UserError(f"--train={n}: {paths[0]} has {len(rows):,} comparisons, and some must be held out")
    if not 0 <= part < len(rows) // held:
        raise UserError(f"--part={part}: {paths[0]} has {len(rows) // held} parts of {held}, counted from 0")
    return [("heldout" if part * held <= i < (part + 1) * held else "train", row) for i, row in enumerate(rows)]


def cut(vocab, text, room):
    """An answer that fits `room` tokens with <|endoftext|>, and whether that is all of it."""
    ids = vocab.response(text)
    return (text, True) if len(ids) <= room else (vocab.decode(ids[:room - 1]).rstrip("�"), False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subset", default="harmless-base", choices=SUBSETS)
    parser.add_argument("--source", default="", help="a folder or file that is here already; empty: download")
    parser.add_argument("--train", type=int, default=2000, help="comparisons of a single file that are for training")
    parser.add_argument("--part", type=int, default=0, help="which of the others are held out")
    parser.add_argument("--vocab", default="2048", help="how many ids an own vocabulary gets, or gpt2")
    parser.add_argument("--block", type=int, default=128, help="tokens of the longest sequence: the block of the --size to be trained")
    parser.add_argument("--answer", type=int, default=48, help="tokens of it that are kept for an answer; longer ones are cut")
    before = os.path.join(HERE, "prepare.json")      # a stage that finds the files out of date starts this without flags
    given = sys.argv[1:] or (read_json(before) if os.path.exists(before) else [])
    args = parser.parse_args(given)
    print("data/hh_rlhf/prepare.py", *given, flush=True)
    args.source = args.source and os.path.abspath(args.source)
    paths, dropped = find(args.source, args.subset), collections.Counter()
    found = [list(read(path, dropped)) for path in paths]
    rows = sides(found, paths, args.train, args.part)
    vocab = make_vocab(HERE, args.vocab, (text for side, (prompt, *answers) in rows if side == "train" for text in [*(turn["content"] for turn in prompt), *answers]))

    for name, side in (("train.bin", "train"), ("val.bin", "heldout")):      # whole dialogues; of the rejected answer, its last question before it
        documents = [vocab.prompt(row[0]) + vocab.response(row[1]) for s, row in rows if s == side]
        documents += [vocab.prompt(row[0][-1:]) + vocab.response(row[2]) for s, row in rows if s == side]
        write_bin(os.path.join(HERE, name), documents)
    comparisons, demonstrations = [], []
    for side, (prompt, *answers) in rows:
        short = fit(vocab, prompt, args.block - args.answer)
        dropped["comparisons whose last question does not fit"] += short is None
        if short is None:
            continue
        dropped["older turns left out of prompts"] += len(prompt) - len(short)
        (chosen, whole), (rejected, other) = (cut(vocab, answer, args.block - len(vocab.prompt(short))) for answer in answers)
        dropped["answers cut at the block"] += 2 - whole - other
        if whole:
            demonstrations.append({"prompt": short, "response": chosen, "split": side})
        if (chosen, whole) == (rejected, other):
            dropped["comparisons equal after the cut"] += 1
        else:
            comparisons.append({"prompt": short, "responses": [chosen, rejected], "ranks": [1, 2], "eos": [whole, other], "split": side})
    write_jsonl(os.path.join(HERE, "demonstrations.jsonl"), demonstrations)
    write_jsonl(os.path.join(HERE, "comparisons.jsonl"), comparisons)
    prompts = {json.dumps(row["prompt"]): {"prompt": row["prompt"], "split": row["split"]} for row in comparisons[::-1]}
    write_jsonl(os.path.join(HERE, "prompts.jsonl"), list(prompts.values())[::-1])
    print(length_alone(comparisons, vocab))
    print("dropped:", *(f"{n:9,} {what}" for what, n in sorted(dropped.items())), sep="\n")
    with replacing(before) as f:
        json.dump([f"--{name}={value}" for name, value in vars(args).items()], f)


if __name__ == "__main__":
    try:
        main()
    except UserError as e:
        sys.exit(f"error: {e}")

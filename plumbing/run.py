"""
One stage's run: its files, the stages before it, resuming, the log.

A finished stage is OUT/<stage>.pt, an unfinished one OUT/<stage>.resume.pt, and the numbers of each
step are lines of OUT/<stage>.jsonl. The random numbers of a step are seeded by (seed, purpose,
step), so that a resumed run draws the same ones, and no generator's state has to be saved.

A run that goes on must have the settings and the data files that it began with, or a UserError
names what is different. Two flags may change: --micro_batch_size, which changes sums in their last
bits alone, and --device, since a GPU is not always there. Then the noise of dropout is another one,
and the result is not bit for bit that of one device; the run says so.
"""
import contextlib
import dataclasses
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import torch
from tqdm import tqdm

from data import READ, UserError, folder_of, record, replacing
from data.vocab import Vocab
from model import GPT, SIZES, config_for
from plumbing.checkpoint import digest, load, model_from, save
from plumbing.command_line import Common, nearest
from plumbing.cpu import keep_freed_memory
from plumbing.device import pick_device, pick_dtype
from plumbing.inputs import check_inputs
from plumbing.processes import (RANK, WORLD, all_reduce, join_processes, leave_processes,
                                lock)
from plumbing.stages import STAGES, in_round, script_of

# pretraining's share of the time that `python ppo.py` takes on the village, on a CPU
PRETRAIN_SHARE = 0.34     # 0.30 in bf16 with AVX-512, 0.37 in float32 with AVX2
# flags that a resumed run may change
PLACES = {"fresh", "out", "device", "base", "micro_batch_size"}


def open_run(stage, config, parents=()):
    """Make the stages that are missing, join the other processes, and open this stage's files.

    parents: the stages whose checkpoints this one starts from. Raises UserError if one doesn't fit.
    """
    if config.size not in SIZES:
        raise UserError(f"--size={config.size}: there are {', '.join(SIZES)}"
                        + nearest(config.size, SIZES))
    if config.base and stage == "pretrain":
        raise UserError(f"--base={config.base}: pretrain.py makes a base and starts from none")
    os.environ.setdefault("ASKED_FOR", stage)       # the stages that it makes inherit this
    run = Run(stage, config)
    try:
        os.makedirs(config.out, exist_ok=True)
        if stage != "evaluate" and not RANK:        # which writes whole files alone
            run.lock = lock(os.path.join(config.out, f".{stage}.lock"))
    except OSError as e:
        raise UserError(f"--out={config.out} is no folder to write in: {e.strerror}") from None
    keep_freed_memory()
    torch.set_flush_denormal(True)      # numbers below 1e-38 slow a CPU down many times
    if config.fresh == "all" and WORLD > 1:
        raise UserError("--fresh=all: with several processes start each stage alone, with --fresh")
    check_inputs(run, parents)
    if config.fresh == "all" and parents and not (config.base and parents[-1] == "pretrain"):
        run_stage(parents[-1], config)      # makes those before it too
    for parent in parents:
        run.parents[parent] = run.parent(parent)
    join_processes(run.device)
    READ.clear()
    run.started = time.time()       # the stages before have seconds of their own
    return run


class Run:
    """The files and the state of one stage's run."""

    save_every = 60         # seconds, and more where a save takes long

    def __init__(self, stage, config):
        self.stage, self.config = stage, config
        self.folder = folder_of(config.data)
        self.vocab = Vocab(self.folder)
        self.device = pick_device(config.device)
        self.dtype = pick_dtype(config.dtype, self.device)
        self.path = os.path.join(config.out, stage + ".pt")
        self.unfinished = os.path.join(config.out, stage + ".resume.pt")
        self.log_path = os.path.join(config.out, stage + ".jsonl")
        self.parents, self.read = {}, {}        # read: data file → its hash
        self.stop, self.started, self.seconds_before = False, time.time(), 0.0
        self.last_save = self.save_seconds = 0.0        # so the first step is saved

    # ---- the stages before this one ----

    def parent(self, stage):
        """The finished checkpoint of an earlier stage. It is made first if it is missing."""
        base = stage == "pretrain" and self.config.base
        if base and not base.endswith(".pt"):
            return self.content(self.gpt2(base, "base"), {}) | {"stage": "pretrain"}
        path = base or os.path.join(self.config.out, stage + ".pt")
        if base or os.path.exists(path):
            checkpoint = load(path, stage)
            keys = ("size", "vocab") if base else ("seed", "size", "data", "vocab")
            self.check(path, checkpoint, keys)
            return checkpoint
        if WORLD > 1:
            command = f"torchrun --nproc_per_node={WORLD} {' '.join(script_of(stage))}"
            raise UserError(f"{path} is missing: several processes need {command} first")
        run_stage(stage, self.config)
        return load(path)

    def gpt2(self, name, flag):
        """GPT.from_pretrained, with rows for the data's special tokens."""
        torch.manual_seed(self.config.seed)         # of these rows
        try:
            model = GPT.from_pretrained(name, self.vocab.size)
        except (ValueError, FileNotFoundError) as e:
            raise UserError(f"--{flag}={name}: {e}") from None
        if model.config.vocab_size != self.vocab.size:
            raise UserError(f"--{flag}={name} has {model.config.vocab_size:,} tokens, "
                            f"{self.folder} {self.vocab.size:,}: its vocab.json must name gpt2's")
        return model

    def check(self, path, checkpoint, keys):
        """Raise UserError if a checkpoint doesn't fit this run, or comes from another parent."""
        ours = {**vars(self.config), "vocab": self.vocab.hash}
        theirs = {**checkpoint["config"], "vocab": checkpoint["vocab"]}
        if theirs["vocab"] != ours["vocab"]:
            raise UserError(f"{path} was made with another vocabulary than that of {self.folder}: "
                            f"give its --data, another --out, or --fresh=all to make it again")
        for key in keys:
            if theirs.get(key) != ours.get(key):
                raise UserError(f"{path} was made with --{key}={theirs.get(key)}, this run has "
                                f"{ours.get(key)}: give the same, another --out, or --fresh (this "
                                f"stage) or --fresh=all (everything) to make it again")
        for name, was in checkpoint.get("read", {}).items() if "data" in keys else ():
            self.check_file(os.path.join(self.folder, name), was, path, checkpoint["stage"])
        for parent, was in checkpoint["parents"].items():
            now = self.parents.get(parent)
            if now and now["hash"] != was:
                script = " ".join(script_of(checkpoint["stage"]))
                raise UserError(f"{path} came from another {parent} than the one that is there: "
                                f"run {script} with --fresh, or give another --out")

    def check_file(self, file, was, path, stage):
        """Raise UserError if a data file changed since this stage read it; say so of an earlier."""
        if os.path.exists(file) and record(file) == was:
            return
        changed = f"{file} has changed since {path} was made"
        if stage == self.stage:
            raise UserError(f"{changed}: give --fresh to make it again, or another --out")
        print(f"note: {changed}; --fresh=all makes everything again")

    def load_model(self, stage):
        """A new copy of a parent's network, on this run's device and in its precision."""
        return model_from(self.parents[stage], self.device, self.dtype)

    def load_reward_model(self, name):
        """A reward model that lies in OUT, such as reward-2.pt."""
        path = os.path.join(self.config.out, name)
        checkpoint = load(path)
        if not checkpoint["stage"].startswith("reward"):
            raise UserError(f"{path} is no reward model but a checkpoint of {checkpoint['stage']}")
        self.check(path, checkpoint, ("size", "vocab"))
        return model_from(checkpoint, self.device, self.dtype)

    def place(self, model):
        """Move a network to this run's device and precision. → the network"""
        model.compute_dtype = self.dtype
        return model.to(self.device)

    def model_config(self):
        return config_for(self.config.size, self.vocab.size)

    def compile(self, *networks):
        """Compile the networks' blocks in place if --compile asks for it."""
        if not self.config.compile:
            return
        if self.device.type == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
            raise UserError("--compile needs a C++ compiler on a CPU, and there is no g++: install "
                            "one, or name yours in the environment variable CXX")
        import torch._dynamo
        torch._dynamo.config.recompile_limit = 64       # frozen or not, with a cache or without, …
        for network in filter(None, networks):
            for block in network.blocks:
                block.compile(dynamic=True)     # once for all lengths

    # ---- where it stopped ----

    def finished(self):
        """Whether this stage is done already. Raises UserError if it was with other settings."""
        if self.config.fresh or os.path.exists(self.unfinished) or not os.path.exists(self.path):
            return False
        checkpoint = load(self.path, self.stage)
        keys = ["seed", "size", "data", "vocab", *sorted(self.config.given - PLACES)]
        self.check(self.path, checkpoint, keys)
        print(f"{self.path} is finished; --fresh makes it again")
        return True

    def resume(self, **parts):
        """Load the unfinished state into `parts` → the step to go on from, 0 if there is none.

        parts: dictionaries, or objects with load_state_dict.
        """
        step = 0
        self.read = {os.path.basename(path): was for path, was in READ.items()
                     if os.path.dirname(path) == self.folder}
        if self.config.fresh and not RANK and os.path.exists(self.unfinished):
            os.remove(self.unfinished)      # the finished one stays until it can be replaced
        if os.path.exists(self.unfinished) and not (self.config.fresh and RANK):
            checkpoint = load(self.unfinished, self.stage)
            keys = ["vocab", *sorted(set(checkpoint["config"]) - PLACES)]
            self.check(self.unfinished, checkpoint, keys)
            step, self.seconds_before = checkpoint["step"], checkpoint["seconds"]
            for name, part in parts.items():
                take = part.update if isinstance(part, dict) else part.load_state_dict
                take(checkpoint["model"][name])
            self.read = checkpoint.get("read", {}) | self.read
            print(f"going on from {self.unfinished} at step {step}")
            if (before := checkpoint.get("device", self.device.type)) != self.device.type:
                print(f"it was made on {before} so far, and goes on on {self.device.type}: it will "
                      f"not end bit for bit as on one of them")
        if not RANK:
            lines = [x for x in read_log(self.log_path) if x["step"] < step] if step else []
            with replacing(self.log_path) as f:
                f.writelines(json.dumps(x) + "\n" for x in lines)
        signal.signal(signal.SIGINT, self.interrupt)
        return step

    def interrupt(self, *_):
        if self.stop:
            raise KeyboardInterrupt
        self.stop = True
        print("\nstopping after this step (once more to stop at once)", file=sys.stderr)

    def about(self):
        """What every checkpoint says of its run."""
        config = {k: v for k, v in vars(self.config).items() if k != "given"}
        parents = {p: c["hash"] for p, c in self.parents.items()}
        return {"stage": self.stage, "config": config, "vocab": self.vocab.hash,
                "parents": parents, "read": self.read, "device": self.device.type,
                "seconds": self.seconds()}

    def content(self, model, results):
        """A finished checkpoint."""
        state = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
        return self.about() | {"model": state, "model_config": dataclasses.asdict(model.config),
                               "hash": digest(state), "results": results}

    def checkpoint(self, step, **parts):
        """Call after each step, with all that the next one needs. Exits after Ctrl-C."""
        if WORLD > 1:       # Ctrl-C reaches the processes at different steps
            self.stop = bool(all_reduce(torch.tensor(float(self.stop))))
        start = time.time()
        is_due = start - self.last_save > self.save_every * (1 + self.save_seconds)
        if not RANK and (self.stop or is_due):
            state = {n: p if isinstance(p, dict) else p.state_dict() for n, p in parts.items()}
            save(self.unfinished, self.about() | {"step": step, "model": state})
            self.last_save = time.time()
            self.save_seconds = self.last_save - start
        if self.stop:
            print(f"saved {self.unfinished}; the same command goes on from step {step}",
                  file=sys.stderr)
            sys.exit(130)

    def finish(self, model, results):
        """Write the finished checkpoint."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if RANK:
            return
        save(self.path, self.content(model, results))
        if os.path.exists(self.unfinished):
            os.remove(self.unfinished)
        print(f"wrote {self.path} after {self.seconds():.0f} s")

    # ---- the log ----

    def seconds(self):
        return self.seconds_before + time.time() - self.started

    def log(self, step, metrics):
        if RANK:
            return
        row = {"step": step, **metrics, "seconds": round(self.seconds(), 2)}
        try:
            with open(self.log_path, "a", encoding="utf-8") as f:
                f.write(json.dumps(row) + "\n")
        except OSError as e:
            raise UserError(f"{self.log_path} can't be written: {e.strerror}") from None
        if (step, self.stage, os.environ["ASKED_FOR"], self.config.data, self.device.type) == (
                200, "pretrain", "ppo", "village", "cpu"):
            minutes = self.seconds() / (step + 1) * self.config.steps / PRETRAIN_SHARE / 60
            tqdm.write(f"python ppo.py will take about {minutes:.0f} minutes in all, at this speed")


def read_log(path):
    """The lines of a log. One that is not of a log, such as a last line cut off, is left out."""
    rows = []
    if os.path.exists(path):
        with open(path, encoding="utf-8", errors="replace") as f:
            for line in f:
                with contextlib.suppress(ValueError, TypeError, KeyError):
                    row = json.loads(line)
                    row["step"]
                    rows.append(row)
    return rows


def eval_line(metrics):
    """What was measured on held-out data, as text."""
    return ", ".join(f"{key.removeprefix('eval/')} {value:.3f}"
                     for key, value in metrics.items() if key.startswith("eval/"))


# ---- other stages, each in a process of its own ----

def command_of(stage, config, *flags):
    """The command line of a stage's script, with this run's common flags."""
    common = [f"--{f.name}={getattr(config, f.name)}" for f in dataclasses.fields(Common)
              if f.name not in ("fresh", "compile") and getattr(config, f.name) != f.default]
    if config.compile:
        common.append("--compile")
    if config.fresh == "all" and stage.split("-")[0] in STAGES:
        common.append("--fresh=all" if stage != STAGES[0] else "--fresh")
    print(f"\n==== {stage} ====", flush=True)
    script, *more = script_of(stage)
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return [sys.executable, os.path.join(root, script), *more, *common, *flags]


def call_stage(stage, config, *flags):
    """Run a stage's script in a process of its own, and wait for it → its exit code."""
    command = command_of(stage, config, *flags)
    before = signal.signal(signal.SIGINT, lambda *_: None)     # Ctrl-C is the child's to handle
    code = subprocess.call(command)
    signal.signal(signal.SIGINT, before)
    return code


def run_stage(stage, config, *flags):
    """Run a stage's script. If it fails, this one ends as well."""
    if code := call_stage(stage, config, *flags):
        sys.exit(code)      # the child has said why


def continue_as(stage, config, *flags):
    """→ a function that runs another stage, for `entry` to call when this one's memory is free."""
    def then():
        leave_processes()
        if RANK:
            return 0
        for name in ("RANK", "WORLD_SIZE"):
            os.environ.pop(name, None)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return call_stage(stage, config, *flags)
    return then


def evaluate_run(run):
    """After PPO: what runs evaluate.py, which prints the table and draws the curves."""
    n, reward = run.config.round, run.config.reward
    flags = [f"--reward={reward}"] if reward else []
    if n > 1:
        policies = ["pretrain", "sft", *[in_round("ppo", i) for i in range(1, n + 1)]]
        flags.append("--stages=" + ",".join(policies))
    return continue_as("evaluate", run.config, *flags)


def progress_bar(steps, start, label):
    """Count steps start..steps-1 with the time left. Without a terminal, a line now and then."""
    return tqdm(range(start, steps), initial=start, total=steps, desc=label, disable=RANK > 0,
                mininterval=0.2 if sys.stderr.isatty() else 20,
                bar_format="{desc} {percentage:3.0f}% {n}/{total} {elapsed}<{remaining} {postfix}")

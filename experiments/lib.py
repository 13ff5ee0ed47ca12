"""
What the experiments share: checkpoints that are made once, results that are added to a CSV as they
come, jobs side by side, intervals, the look of figures.

Every script that imports this takes --seeds=N, --quick and --jobs=N. At full size it reads and
writes experiments/<name>.csv and .png. --quick shows in seconds that a script works: it writes to
out/quick, with a model of 30 thousand parameters, and its results mean nothing.
"""

import collections
import csv
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

from project import ROOT, of_base, read_rows, run_script

import plumbing.cpu
import numpy as np
import torch
from common import generator, masked
from data import folder_of, load_judge, meaning_of, read_heldout, replacing
from data.vocab import Vocab
from plumbing.checkpoint import load, model_from
from plumbing.command_line import Parser, value_of
from plumbing.device import pick_dtype
from plumbing.stages import script_of
from ppo import forward_logprobs
from rollout import in_chunks, reward_scores, sample_rollout

# in place of a stage's defaults, with --size=smoke
QUICK = {
    "pretrain": ["--steps=20", "--batch=8"],
    "sft": ["--demonstrations=320", "--epochs=1"],
    "reward": ["--prompts=32", "--heldout=24"],
    "ppo": ["--iterations=2", "--episodes=16", "--minibatches=2", "--eval_every=1"],
}
lock = threading.Lock()
folder_locks = collections.defaultdict(threading.Lock)


def arguments(doc, seeds, *flags):
    """The command line. flags: of add_argument, as (name, {…}) pairs."""
    parser, number = Parser(doc), value_of(int)
    default = f"how many seeds, from 1 on; default {seeds}, with --quick 1"
    parser.add_argument("--seeds", type=number, default=None, help=default)
    parser.add_argument("--quick", action="store_true", help="a test of the script, in out/quick")
    parser.add_argument("--jobs", type=number, default=2, help="side by side, one thread each")
    for name, more in flags:
        parser.add_argument(name, **more)
    args = parser.parse_args()
    args.seeds = range(1, 1 + (args.seeds or (1 if args.quick else seeds)))
    os.chdir(ROOT)
    torch.set_num_threads(1)
    return args


def place(args, name):
    """Where a result of the experiment goes: experiments/<name>, or out/quick/<name>."""
    folder = "out/quick" if args.quick else "experiments"
    os.makedirs(folder, exist_ok=True)
    return os.path.join(folder, name)


def scratch(args, name):
    """Where checkpoints of the experiment go, which git does not keep."""
    return os.path.join("out", "quick" if args.quick else "experiments", name)


# ---- stages, each in a process of its own ----

START = """
import sys
sys.path[:0] = ['.', 'experiments']
import plumbing.cpu
import comparisons, ppo, {name}
from plumbing import checkpoint, command_line
from plumbing.run import Run
ppo.evaluate_run = lambda run: None
{patch}
command_line.entry({name}.main)
"""


def stage(args, name, out, seed, *flags, patch=""):
    """Run a stage's script unless OUT/<name>.pt is there; its output goes to OUT/log.txt.

    name: pretrain, sft, reward or ppo; of a further round: reward-2, ppo-2, …
    patch: Python that is run before main(), e.g. "ppo.masked_whiten = lambda x, mask: x".
    The table after PPO is left out. Raises RuntimeError if the stage fails.
    """
    with folder_locks[out]:  # jobs side by side may want the same stage
        unfinished = os.path.exists(os.path.join(out, name + ".resume.pt"))
        if os.path.exists(os.path.join(out, name + ".pt")) and not unfinished:
            return
        os.makedirs(out, exist_ok=True)
        base = [] if name == "pretrain" else [f"--base={base_of(args)}"]
        script, *of_round = script_of(name)
        script = script.removesuffix(".py")
        quick = ["--size=smoke", *QUICK[script]] if args.quick else []
        flags = [f"--seed={seed}", f"--out={out}", *base, *quick, *of_round, *flags]
        code = START.format(name=script, patch=patch)
        if run_script(["-c", code, *flags], os.path.join(out, "log.txt")):
            raise RuntimeError(f"{name}.py failed; its message is in {out}/log.txt")


def base_of(args):
    """The base of the default run, or that of a script at another size: args.base."""
    if args.quick:
        return "out/quick/pretrain.pt"
    return getattr(args, "base", "out/village/pretrain.pt")


def make_base(args):
    base = base_of(args)
    with lock:
        stage(args, "pretrain", os.path.dirname(base), 1337)
    return base


def checkpoints(args, seed, upto="reward"):
    """The folder with a seed's sft.pt and reward.pt (and ppo.pt); what is missing is made.

    They are those of experiments/seeds.py. All seeds start from one base.
    """
    out = f"out/{'quick' if args.quick else 'seeds'}/seed-{seed}"
    make_base(args)
    names = ("sft", "reward", "ppo")
    for name in names[: 1 + names.index(upto)]:
        stage(args, name, out, seed)
    return out


def variant(source, out, *names):
    """A folder in which a stage can be run anew: links to the files `names` of `source`. → out"""
    os.makedirs(out, exist_ok=True)
    for name in names:
        if not os.path.lexists(os.path.join(out, name)):
            os.symlink(os.path.abspath(os.path.join(source, name)), os.path.join(out, name))
    return out


# ---- results ----


def base_hash(path):
    """The first 8 digits of a base's hash, by which rows are told from those of another one."""
    return load(path)["hash"][:8]


def add_rows(path, rows):
    """Add rows to a CSV, with a header if it is new; numbers to six digits."""
    new = not os.path.exists(path)
    with open(path, "a", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        if new:
            writer.writeheader()
        for row in rows:
            short = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
            writer.writerow(short)


def summary_of(key, keys, row):
    """A line about a row: its key, then its numbers."""
    numbers = [f"{k} {v:.4g}" for k, v in row.items() if isinstance(v, (int, float))]
    named = [f"{k} {v}" for k, v in zip(keys, key)]
    return f"  {', '.join(named)}: {', '.join(numbers)}"


def collect(args, path, jobs, keys, make=make_base):
    """Run the jobs that `path` has no rows of, side by side → all rows of the file.

    jobs: list of (key, function). key is a tuple of the values that the columns `keys` have in the
    rows of this job. function() → a row, or a list of rows, as dicts without the keys, which is
    added to the file as soon as it is there. All jobs have the same columns.

    Each row carries the base's hash, and those of another base don't count. Where there is no base
    the newest rows are taken, so that a figure can be drawn again without it. make(args) makes it.
    """
    rows, base = read_rows(path), base_of(args)
    there = os.path.exists(base)
    of = base_hash(base) if there else rows[-1]["base"] if rows else ""
    rows = of_base(path, rows, of)
    done = {tuple(str(row[k]) for k in keys) for row in rows}

    def text(key):
        return tuple(str(float(v)) if isinstance(v, (int, float)) else v for v in key)

    left = [(key, work) for key, work in jobs if text(key) not in done]
    if left and not there:
        make(args)
        return collect(args, path, jobs, keys, make)
    print(f"{path}: {len(jobs) - len(left)} of {len(jobs)} are there", flush=True)
    failed = []

    def run(job):
        key, work = job
        try:
            rows = work()
        except RuntimeError as e:
            print(f"  {key} {e}", flush=True)
            return failed.append(key)
        rows = rows if isinstance(rows, list) else [rows]
        with lock:
            add_rows(path, [{"base": of, **dict(zip(keys, key)), **row} for row in rows])
        print(summary_of(key, keys, rows[-1]), flush=True)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(run, left))
    if failed:
        sys.exit(f"{len(failed)} of {len(jobs)} failed; the same command tries them again")
    return [row for row in read_rows(path) if row["base"] == of]


# Student's t, 97.5 %, for 1 to 10 degrees of freedom
STUDENT = [12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228]


def interval(values):
    """Mean and half-width of its 95 % interval by Student's t, over independent values like seeds.

    The half-width of a single value is NaN.
    """
    x = np.asarray(values, dtype=float)
    if len(x) < 2:
        return x.mean(), np.nan
    t = STUDENT[min(len(x), 11) - 2]
    return x.mean(), t * x.std(ddof=1) / len(x) ** 0.5


# ---- models ----

DEVICE = torch.device("cpu")
DTYPE = pick_dtype("auto", DEVICE)


def world():
    """What the stages' functions need of a run: data, judge, device, precision, settings."""
    folder = folder_of("village")
    return SimpleNamespace(
        folder=folder,
        vocab=Vocab(folder),
        judge=load_judge(folder),
        device=DEVICE,
        dtype=DTYPE,
        config=SimpleNamespace(max_new_tokens=48, seed=1337, temperature=1.0),
    )


def network(path):
    return model_from(load(path), DEVICE, DTYPE)


def heldout(run, n):
    """n held-out prompts, the same ones every time.

    They are of the half that may be looked at, since settings may be chosen by these results.
    """
    rows = read_heldout(os.path.join(run.folder, "prompts.jsonl"), ["prompt"])
    order = torch.randperm(len(rows), generator=generator("experiments"))
    return [rows[i] for i in order[:n].tolist()]


@torch.no_grad()
def measure(run, policy, reference, reward_model, rows):
    """One sampled answer to each prompt → a dict of lists and arrays, one entry a prompt.

    answer: text; gold; score; kl and entropy, in nats; length; eos.
    """
    prompts = [run.vocab.prompt(r["prompt"]) for r in rows]
    rollout = sample_rollout(policy, prompts, run.config, run.vocab, generator("measure"))

    def logprobs_of(model):
        def forward(chunk):
            return forward_logprobs(model, chunk.tokens, chunk.mask)

        return in_chunks(forward, rollout, 128)

    logprobs, ref = logprobs_of(policy), logprobs_of(reference)
    answers, mask = rollout.texts(run.vocab), rollout.mask
    found = {
        "score": reward_scores(reward_model, rollout, 128),
        "kl": masked(logprobs - ref, mask).sum(1),
        "entropy": -masked(logprobs, mask).sum(1),
        "length": mask.sum(1),
        "eos": rollout.has_eos,
    }
    gold = np.array([run.judge.gold(meaning_of(r), a)["gold"] for r, a in zip(rows, answers)])
    return {"answer": answers, "gold": gold, **{k: v.numpy() for k, v in found.items()}}


# ---- figures ----

COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"]
LOOK = {
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "font.size": 9,
}


def figure(columns=1, rows=1, size=(4.6, 3.6)):
    """→ figure, axes (an array), in the look of all figures here; `finish` writes the file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({**LOOK, "axes.prop_cycle": plt.cycler(color=COLOURS)})
    size = (size[0] * columns, size[1] * rows)
    return plt.subplots(rows, columns, figsize=size, constrained_layout=True, squeeze=False)


def finish(fig, path):
    with replacing(path, "wb") as f:
        fig.savefig(f, format="png", dpi=130)
    print(f"wrote {path}")

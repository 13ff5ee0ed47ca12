"""
What the experiments share: checkpoints that are made once, results that are added to a CSV as they come, jobs side by
side, intervals, the look of figures.

Every script here takes --seeds=N, --quick and --jobs=N. At full size it reads and writes experiments/<name>.csv and .png;
--quick shows in seconds that a script works, in out/quick, with a model of 30 thousand parameters and results that mean nothing.
"""
import argparse
import csv
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import common  # noqa: E402  before torch: it says how threads wait
import ppo  # noqa: E402
from data import folder_of, load_judge, read_heldout, replacing  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402

QUICK = {"pretrain": ["--steps=20", "--batch=8"], "sft": ["--demonstrations=320", "--epochs=1"], "ppo": ["--iterations=2", "--episodes=16", "--minibatches=2", "--eval_every=1"],
         "reward": ["--prompts=32", "--heldout=24"]}      # in place of a stage's defaults, with --size=smoke
lock = threading.Lock()


def arguments(doc, seeds, *flags):
    """The command line. flags: of add_argument, as (name, {…}) pairs."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=None, help=f"so many, from 1 on; default {seeds}, with --quick 1")
    parser.add_argument("--quick", action="store_true", help="seconds, in out/quick, to see that it works")
    parser.add_argument("--jobs", type=int, default=2, help="side by side, one thread each")
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

def stage(args, name, out, seed, *flags, patch=""):
    """Run a stage's script unless OUT/<name>.pt is there; what it says goes to OUT/log.txt. Stops with a sentence if it fails.

    patch: a line of Python that is run before main(), e.g. "ppo.masked_whiten = lambda x, mask: x". PPO's table at the end is left out.
    """
    if os.path.exists(os.path.join(out, name + ".pt")) and not os.path.exists(os.path.join(out, name + ".resume.pt")):
        return
    os.makedirs(out, exist_ok=True)
    base = [] if name == "pretrain" else [f"--base={base_of(args)}"]
    flags = [f"--seed={seed}", f"--out={out}", *base, *(["--size=smoke", *QUICK[name]] if args.quick else []), *flags]
    code = f"import sys; sys.path[:0] = ['.', 'experiments']; import common, ppo, {name}; ppo.become = lambda *a: None\n{patch}\ncommon.entry({name}.main)"
    with open(os.path.join(out, "log.txt"), "a") as log:
        if subprocess.call([sys.executable, "-c", code, *flags], stdout=log, stderr=log, stdin=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}):
            raise RuntimeError(f"{name}.py failed; its message is in {out}/log.txt")


def base_of(args):
    return "out/quick/pretrain.pt" if args.quick else "out/village/pretrain.pt"


def checkpoints(args, seed, upto="reward"):
    """The folder with this seed's sft.pt and reward.pt (and ppo.pt) on the one base, as experiments/seeds.py makes them; what is missing is made."""
    base, out = base_of(args), f"out/{'quick' if args.quick else 'seeds'}/seed-{seed}"
    with lock:
        stage(args, "pretrain", os.path.dirname(base), 1337)
    for name in ("sft", "reward", "ppo")[:1 + ("sft", "reward", "ppo").index(upto)]:
        stage(args, name, out, seed)
    return out


def variant(source, out, *names):
    """A folder in which a stage can be run anew: links to the files `names` of the folder `source`. → out"""
    os.makedirs(out, exist_ok=True)
    for name in names:
        if not os.path.lexists(os.path.join(out, name)):
            os.symlink(os.path.abspath(os.path.join(source, name)), os.path.join(out, name))
    return out


# ---- results ----

def read_rows(path):
    """Rows of a CSV, numbers as numbers; [] if there is none."""
    if not os.path.exists(path):
        return []
    def value(x):
        try:
            return float(x)
        except ValueError:
            return x
    with open(path, newline="", encoding="utf-8") as f:
        return [{k: value(v) for k, v in row.items()} for row in csv.DictReader(f)]


def collect(args, path, jobs, keys):
    """Run the jobs that `path` has no rows of, side by side, and add what each returns to it as it comes. → all rows of the file

    jobs: list of (key, function): key is a tuple of the values that `keys` (columns) have in the rows of this job, and
    function() → a row, or a list of rows, as dicts without the keys; all jobs have the same columns.
    """
    def done():
        return {tuple(str(row[k]) for k in keys) for row in read_rows(path)}
    def text(key):
        return tuple(str(float(v)) if isinstance(v, (int, float)) else v for v in key)
    left = [(key, work) for key, work in jobs if text(key) not in done()]
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
            new = not os.path.exists(path)
            with open(path, "a", newline="", encoding="utf-8") as f:
                writer = csv.DictWriter(f, [*keys, *rows[0]])
                if new:
                    writer.writeheader()
                writer.writerows({**dict(zip(keys, key)), **{k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}} for row in rows)
        print("  " + ", ".join(f"{k} {v}" for k, v in zip(keys, key)) + ": " + ", ".join(f"{k} {v:.4g}" for k, v in rows[-1].items() if isinstance(v, (int, float))), flush=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(run, left))
    if failed:
        sys.exit(f"{len(failed)} of {len(jobs)} failed; the same command tries them again")
    return read_rows(path)


def interval(values):
    """Mean and half-width of its 95 % interval by Student's t, of independent values such as seeds; half-width NaN for a single one."""
    x = np.asarray(values, dtype=float)
    t = [12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228][min(len(x), 11) - 2] if len(x) > 1 else np.nan
    return x.mean(), t * x.std(ddof=1) / len(x) ** 0.5 if len(x) > 1 else np.nan


# ---- models ----

def world():
    """What evaluate.py's functions ask of a run: data, judge, device, precision, the settings of sampling."""
    folder, device = folder_of("village"), torch.device("cpu")
    dtype = common.pick_dtype("auto", device)
    return SimpleNamespace(folder=folder, vocab=common.Vocab(folder), judge=load_judge(folder), device=device, dtype=dtype, cast=common.autocast(device, dtype),
                           config=SimpleNamespace(max_new_tokens=48, seed=1337, temperature=1.0))


def network(path):
    return common.model_from(common.load(path))


def heldout(run, n):
    """n held-out prompts, the same ones every time; of the half that is looked at, since settings may be chosen by what is seen here."""
    rows = read_heldout(os.path.join(run.folder, "prompts.jsonl"), ["prompt"])
    return [rows[i] for i in torch.randperm(len(rows), generator=common.generator("experiments"))[:n].tolist()]


@torch.no_grad()
def measure(run, policy, reference, reward_model, rows):
    """One sampled answer to each prompt → {answer: text; gold, score, kl and entropy (nats), length, eos: arrays}, one entry a prompt."""
    prompts = [run.vocab.prompt(r["prompt"]) for r in rows]
    tokens, mask, lengths, eos = ppo.rollout(policy, prompts, run.config, run.vocab, run.cast, common.generator("measure"))
    logprobs, ref = (ppo.in_parts(lambda x, m: ppo.forward_logprobs(model, x, 1.0, run.cast, m), lengths, 128, tokens, mask) for model in (policy, reference))
    scores = ppo.in_parts(lambda x: ppo.forward(reward_model, x, run.cast), lengths, 128, tokens).gather(1, lengths[:, None] - 1).squeeze(1)
    answers = [run.vocab.decode(t[m].tolist()) for t, m in zip(tokens, mask)]
    found = {"score": scores, "kl": ppo.shown(logprobs - ref, mask).sum(1), "entropy": -ppo.shown(logprobs, mask).sum(1), "length": mask.sum(1), "eos": eos}
    return {"answer": answers, "gold": np.array([run.judge.gold(r["prompt"], a)["gold"] for r, a in zip(rows, answers)]), **{k: v.numpy() for k, v in found.items()}}


# ---- figures ----

def figure(columns=1, rows=1, size=(4.6, 3.6)):
    """→ figure, axes (an array), in the look that all figures here share; finish(figure, path) writes it."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    plt.rcParams.update({"axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10, "legend.fontsize": 8,
                         "legend.frameon": False, "font.size": 9, "axes.prop_cycle": plt.cycler(color=["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"])})
    return plt.subplots(rows, columns, figsize=(size[0] * columns, size[1] * rows), constrained_layout=True, squeeze=False)


def finish(fig, path):
    with replacing(path, "wb") as f:
        fig.savefig(f, format="png", dpi=130)
    print(f"wrote {path}")

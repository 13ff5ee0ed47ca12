"""
What a GPU shows in eight minutes: one command that nobody has to watch and that needs no network.

    python experiments/gpu.py                  # all parts, the most important first; into out/gpu
    python experiments/gpu.py --parts=train,decode --minutes=2
    python experiments/gpu.py --dry --out=out/gpu-dry       # the same on a CPU with tiny shapes

Each part runs in a process of its own with a time limit. What it measures is at once a line of
OUT/results.jsonl, what it prints is in OUT/<part>.log: nothing is lost when the run is cut off.
Parts that no longer fit into --minutes are skipped. The last line says what is missing.

    card      which card, which versions; its rates of a large product, copying and launching
    tests     pytest tests/test_gpu.py
    village   python ppo.py from nothing: seconds, peak memory, gold score and KL beside CPU runs
    train     GPT-2's shape (124M, block 1,024): tokens/s, share of the product's rate, kernels
    decode    64 rows at that shape: a step's time beside that of reading the bytes it needs
    ppo       PPO at that shape, 64 answers of 64 tokens: seconds of each phase, first ratio, memory
    peers     training and sampling by transformers, in turns with ours
    trl       TRL's PPO iteration beside ours, both in float32
    memory    the largest micro-batches that fit cards of 8, 12 and 24 GB
    compiled  train once more, with --compile
"""

import argparse
import contextlib
import csv
import gc
import importlib.metadata
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from unittest import mock

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)

LIMITS = {"card": 60, "tests": 150, "village": 200, "train": 60, "decode": 60, "ppo": 75}
LIMITS |= {"peers": 90, "trl": 100, "memory": 120, "compiled": 100}  # seconds, in this order
CARDS = {8: (2, 1), 12: (4, 2), 24: (16, 8)}  # GB of a card: PPO's micro-batches to try there
CONTEXT = 0.75  # GiB that CUDA's context, its libraries and a desktop take of a card

# ---- names of the project that this script uses, besides its scripts and what bench.py has ----

MICRO = "--micro_batch_size"  # a flag of ppo.py
CHECK_RATIO = "check_ratio"  # ppo.py gives it the first minibatch's largest |log ratio|
GO_ON = "evaluate_run"  # ppo.py ends with it and goes on as evaluate.py


# ---- what the parts measure: each of these functions runs in a process of its own ----


def record(args, part, **facts):
    """Append a line to results.jsonl. It is on the disk when this returns."""
    text = json.dumps({"part": part, **facts})
    short = json.loads(text, parse_float=lambda x: float(f"{float(x):.5g}"))
    with open(os.path.join(args.out, "results.jsonl"), "a", encoding="utf-8") as f:
        f.write(json.dumps(short) + "\n")
        f.flush()
        os.fsync(f.fileno())


def options(args, bench, **more):
    """What bench.py's functions ask of its command line."""
    device = bench.pick_device("cpu" if args.dry else "cuda")
    dtype = bench.pick_dtype("auto", device)
    peers = {
        "compile": False,
        "micro_batch_size": 0,
        "nanogpt": "",
        "transformers": False,
        "trl": False,
    }
    return argparse.Namespace(**{"device": device, "dtype": dtype, **peers, **more})


def peak(bench):
    """This process's peak of GPU memory in GiB: of its tensors, and of what PyTorch kept."""
    cuda = bench.torch.cuda
    if not cuda.is_available():
        return {}
    allocated, reserved = cuda.max_memory_allocated(), cuda.max_memory_reserved()
    return {"peak_allocated": allocated / 2**30, "peak_reserved": reserved / 2**30}


def clean(bench):
    """Forget what was measured before."""
    gc.collect()
    if bench.torch.cuda.is_available():
        bench.torch.cuda.empty_cache()
        bench.torch.cuda.reset_peak_memory_stats()


def profile(args, bench, part, once):
    """Which kernels take the time: a table in the log, the longest of them in the results."""
    once()
    seconds = once()[1]
    with bench.torch.profiler.profile() as p:
        once()
    events, own = p.key_averages(), f"self_{'cpu' if args.dry else 'device'}_time_total"
    print(events.table(sort_by=own, row_limit=40, max_name_column_width=80))

    where = getattr(bench.torch.autograd.DeviceType, "CPU" if args.dry else "CUDA")
    kernels = [e for e in events if e.device_type == where and not e.is_user_annotation]
    kernels.sort(key=lambda e: -getattr(e, own))
    longest = {e.key[:60]: getattr(e, own) / 1e3 for e in kernels[:8]}
    busy = sum(getattr(e, own) for e in kernels) / 1e6 / seconds
    attention = sorted({e.key[:80] for e in events if re.search("attention|flash|fmha", e.key)})
    record(args, part, longest_ms=longest, share_of_time_busy=busy, attention=attention)
    return attention


def watch_ratio(bench, found):
    """A context in which the first minibatch of ppo.py leaves its |log ratio| in `found`."""
    check = getattr(bench.ppo, CHECK_RATIO)

    def noted(max_logratio, *rest):
        found["first_log_ratio"] = float(max_logratio)
        check(max_logratio, *rest)

    return mock.patch.object(bench.ppo, CHECK_RATIO, noted)


def with_flags(bench, *flags):
    """A context in which bench.py's runs of ppo.py have more flags."""
    main = bench.ppo.main
    return mock.patch.object(bench.ppo, "main", lambda: (sys.argv.extend(flags), main()))


def card(args, bench):
    o = options(args, bench)
    facts = {"card": "CPU", "torch": bench.torch.__version__, "dtype": bench.name_of(o.dtype)}
    if o.device.type == "cuda":
        p = bench.torch.cuda.get_device_properties(0)
        facts |= {"card": p.name, "capability": f"{p.major}.{p.minor}"}
        facts |= {"memory": p.total_memory / 2**30, "cuda": bench.torch.version.cuda}
    x = bench.ceilings(o.device, o.dtype)
    facts |= {"product_tflops": x["matmul"] / 1e12, "copy_gb_s": x["copy"] / 1e9}
    record(args, "card", **facts, launch_us=x["launch"] * 1e6)


def village(args, bench):
    from data import folder_of

    start, found, go_on = time.time(), {}, getattr(bench.ppo, GO_ON)
    folder_of("village")
    record(args, "village", data_seconds=time.time() - start)

    def note_and_go_on(*rest):
        record(args, "village", **found, **peak(bench))
        return go_on(*rest)

    sys.argv = ["ppo.py", f"--out={args.out}/village", *["--size=smoke"] * args.dry]
    sys.argv.append(f"--device={options(args, bench).device}")
    with watch_ratio(bench, found), mock.patch.object(bench.ppo, GO_ON, note_and_go_on):
        bench.entry(bench.ppo.main)


def train_what_fits(bench, o):
    """Training of GPT-2's shape, as in bench.py, with the largest micro-batch that fits."""
    for o.micro_batch_size in (16, 12, 8, 6, 4, 3, 2, 1):
        with contextlib.suppress(bench.torch.OutOfMemoryError):
            ours = list(bench.training("gpt2", o))[0]
            ours[1]()
            ours[1]()  # from the second step on Adam's averages are there
            return ours
        ours = None
        clean(bench)


def train(args, bench, part="train", **more):
    o = options(args, bench, **more)
    if not (ours := train_what_fits(bench, o)):
        return record(args, part, missing="training does not fit this card")
    rates = bench.measure([ours], 1 if args.dry else 5, 0.1 if args.dry else 1.5)
    (name, (rate, low, high)), (config, batch) = *rates.items(), bench.SHAPES["gpt2"]
    flops = ours[2] / (batch * config.block_size) * rate
    share = flops / bench.ceilings(o.device, o.dtype)["matmul"]
    facts = {"who": name, "tokens_per_second": rate, "low": low, "high": high}
    record(args, part, **facts, share_of_product=share, **peak(bench))
    attention = profile(args, bench, part, ours[1])
    if not args.dry and not any(re.search("(flash|cudnn)_attention_back", x) for x in attention):
        record(args, part, missing="training did not take the flash kernel")


def compiled(args, bench):
    train(args, bench, "compiled", compile=not args.dry)  # compiling for a CPU takes a minute


def decode(args, bench):
    o, (config, _) = options(args, bench), bench.SHAPES["gpt2"]
    model = bench.own(bench.GPT(config), o)
    prompts = bench.torch.randint(config.vocab_size, (64, 32)).tolist()

    def sampled(new):
        start = bench.clock(o.device)
        bench.generate(model, prompts, new)
        return 64 * new, bench.clock(o.device) - start

    times = {n: min(sampled(n)[1] for _ in range(2 if args.dry else 6)) for n in (32, 96)}
    step = (times[96] - times[32]) / 64  # without the prompts and the recording
    size = bench.decode_bytes(model, 64, 32 + 64, o.dtype)
    least = size / bench.ceilings(o.device, o.dtype)["copy"]
    facts = {"step_ms": step * 1e3, "bytes_ms": least * 1e3, "times_its_bytes": step / least}
    record(args, "decode", **facts, seconds=times, dtype=bench.name_of(o.dtype), **peak(bench))
    profile(args, bench, "decode", lambda: sampled(32))


def ppo(args, bench):
    o, found = options(args, bench), {}
    with watch_ratio(bench, found):
        log = bench.iterations(bench.SHAPES["gpt2"][0], o, 1, 3 if args.dry else 5)
    found |= {"val_ratio": log[0]["val/ratio"], "dtype": bench.name_of(o.dtype)}
    later = log[1:]  # the first iteration prepares kernels and is followed by a checkpoint
    for phase in [k for k in bench.PHASES if k in log[0]]:
        found[phase] = statistics.median(x[phase] for x in later)
    wall = statistics.median(b["seconds"] - a["seconds"] for a, b in zip(later, later[1:]))
    record(args, "ppo", iteration_seconds=wall, **found, **peak(bench))


def version(args, part, package):
    """The version of a package; if there is none, that is recorded."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    record(args, part, missing=f"{package} is not installed")


def peers(args, bench):
    if not (installed := version(args, "peers", "transformers")):
        return
    for what, make in {"training": bench.training, "sampling": bench.sampling}.items():
        contenders = list(make("gpt2", options(args, bench, transformers=True)))
        rates = bench.measure(contenders, 1 if args.dry else 3, 0.1 if args.dry else 1.0)
        for who, (rate, low, high) in rates.items():
            facts = {"what": what, "who": who, "tokens_per_second": rate, "low": low, "high": high}
            ours = rates[contenders[0][0]][0] / rate
            record(args, "peers", **facts, ours_times=ours, transformers=installed)
        del contenders
        clean(bench)


def trl(args, bench):
    if not (installed := version(args, "trl", "trl")):
        return
    rates, float32 = {}, bench.torch.float32
    o = options(args, bench, transformers=True, trl=True, dtype=float32)
    for who, once, _ in bench.ppo_iterations("gpt2", 1, o):
        answers, seconds = once()
        rates[who] = answers / seconds
        ours = next(iter(rates.values())) / rates[who]
        record(args, "trl", who=who, answers_per_second=rates[who], ours_times=ours, trl=installed)


def memory(args, bench):
    """PyTorch may take no more of this card than a smaller one would have."""
    o, cuda = options(args, bench), bench.torch.cuda
    for gb in list(CARDS)[: 1 if args.dry else None]:
        if o.device.type == "cuda":
            share = (gb - CONTEXT) * 2**30 / cuda.get_device_properties(0).total_memory
            if share > 1:
                record(args, "memory", missing=f"this card has less than {gb} GB")
                continue
            cuda.set_per_process_memory_fraction(share)
        clean(bench)
        micro = o.micro_batch_size if train_what_fits(bench, o) else None
        record(args, "memory", card_gb=gb, what="training", micro=micro, **peak(bench))
        for micro in CARDS[gb]:
            clean(bench)
            stopped_by = ""
            try:
                with with_flags(bench, f"{MICRO}={micro}", "--ptx_coef=1"):
                    bench.iterations(bench.SHAPES["gpt2"][0], options(args, bench), 1, 2)
            except RuntimeError as e:  # too little memory, or a recording that failed for that
                stopped_by = str(e).splitlines()[0][:120]
            facts = {"card_gb": gb, "what": "PPO-ptx", "micro": micro, "stopped_by": stopped_by}
            record(args, "memory", **facts, **peak(bench))
            if not stopped_by:
                break


def work(args):
    """The measurements of a part, in this process."""
    sys.path[:0] = [HERE, ROOT]
    import bench  # not at the top: the tests are worth running even if this fails

    if args.dry:
        bench.SHAPES["gpt2"] = (bench.GPTConfig(128, 512, 2, 2, 32), 4)
    parts = [card, village, train, decode, ppo, peers, trl, memory, compiled]
    {part.__name__: part for part in parts}[args.worker](args, bench)


# ---- the run: a process for each part ----


def tests_said(args):
    """Record what pytest's last line says, and which tests failed."""
    with open(os.path.join(args.out, "tests.log"), encoding="utf-8") as f:
        text = f.read()
    counts = {what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|skipped|error)", text)}
    record(args, "tests", **counts, failures=re.findall(r"^(?:FAILED|ERROR) (\S+)", text, re.M))
    if counts.get("skipped"):
        record(args, "tests", missing=f"{counts['skipped']} were skipped")


def village_gave(args, seconds):
    """Record what the run on village ended with, beside runs on CPUs (lowest, highest)."""
    record(args, "village", run_seconds=seconds)
    out, rows, found, far = os.path.join(args.out, "village"), [], {}, []
    for name in ("seeds.csv", "whole.csv"):
        with open(os.path.join(HERE, name), newline="", encoding="utf-8") as f:
            rows += csv.DictReader(f)
    with open(os.path.join(out, "summary.json"), encoding="utf-8") as f:
        summary = json.load(f)
    for stage in ("base", "sft", "ppo"):
        for what in ("gold", "win_vs_sft", "kl", "length", "pretrain_loss"):
            x, cpu = summary[stage][what], [float(row[f"{stage}_{what}"]) for row in rows]
            found[f"{stage} {what}"] = [x, min(cpu), max(cpu)]
            spread = max(statistics.stdev(cpu), 1e-3) * (1 + 1 / len(cpu)) ** 0.5
            if abs(x - statistics.mean(cpu)) > 3 * spread:
                far.append(f"{stage} {what}")
    record(args, "village", more_than_3_spreads_off=far, stage_seconds=summary["seconds"], **found)

    command = [sys.executable, os.path.join(HERE, "compare.py"), os.path.join(out, "ppo.jsonl")]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    with open(os.path.join(args.out, "compare.log"), "w", encoding="utf-8") as f:
        f.write(said.stdout + said.stderr)
    verdict = re.search(r".*metrics (are out|lie where).*|error: .*", said.stdout + said.stderr)
    record(args, "village", compare=verdict[0] if verdict else said.stderr[-200:])


def run(args, name, limit):
    """Run a part → what went wrong, or "". Whatever it started is gone when this returns."""
    command = [sys.executable, __file__, f"--worker={name}", f"--out={args.out}"]
    command += ["--dry"] * args.dry
    if name == "tests":
        command = [sys.executable, "-m", "pytest", "-q", "tests/test_gpu.py"]
    if name == "village":
        shutil.rmtree(os.path.join(args.out, "village"), ignore_errors=True)
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    env |= {"CUDA_VISIBLE_DEVICES": ""} if args.dry else {}
    start = time.time()
    with open(os.path.join(args.out, name + ".log"), "w", encoding="utf-8") as log:
        how = {"cwd": ROOT, "env": env, "stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
        process = subprocess.Popen(command, start_new_session=True, **how)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"cut off after {limit:.0f} s"
        finally:
            with contextlib.suppress(OSError):  # the stages that it started as well
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if name == "tests":
        tests_said(args)
    if name == "village" and not code:
        village_gave(args, time.time() - start)
    return f"failed, see {args.out}/{name}.log" if code else ""


def run_parts(args, names, missing):
    """Run the parts while time is left, and note in `missing` ({part: why}) what they lack."""
    path, end = os.path.join(args.out, "results.jsonl"), time.time() + 60 * args.minutes
    for name in names:
        start, offset = time.time(), os.path.getsize(path)
        if end - start < LIMITS[name] / 4:
            missing[name] = "no time was left"
            continue
        try:
            wrong = run(args, name, min(LIMITS[name], end - start))
        except (OSError, LookupError, ValueError, subprocess.SubprocessError) as e:
            wrong = f"its results can't be read: {type(e).__name__} {e}"
        record(args, name, status=wrong or "done", seconds=time.time() - start)
        with open(path, encoding="utf-8") as f:
            f.seek(offset)
            lines = f.read().splitlines()
        print("\n".join(lines), flush=True)
        lacks = [json.loads(line)["missing"] for line in lines if '"missing": ' in line]
        missing[name] = "; ".join([wrong] * bool(wrong) + lacks)


def main():
    how = {"description": __doc__, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(**how)
    parser.add_argument("--out", default=os.path.join("out", "gpu"))
    parser.add_argument("--parts", default=",".join(LIMITS), help="which, separated by commas")
    parser.add_argument("--minutes", type=float, default=8, help="for all parts together")
    parser.add_argument("--dry", action="store_true", help="tiny shapes on a CPU: does it work?")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out = os.path.abspath(args.out)
    if args.worker:
        return work(args)
    if unknown := set(args.parts.split(",")) - set(LIMITS):
        parser.error(f"--parts: there are {', '.join(LIMITS)}, not {', '.join(sorted(unknown))}")
    names = [name for name in LIMITS if name in args.parts.split(",")]
    if not args.dry:
        import torch

        if not torch.cuda.is_available():
            parser.error("there is no CUDA GPU here; --dry tries the script on a CPU")
    os.makedirs(args.out, exist_ok=True)
    record(args, "start", at=time.strftime("%Y-%m-%d %H:%M:%S"), arguments=sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    missing = dict.fromkeys(names, "not reached")
    try:
        run_parts(args, names, missing)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        lacks = [f"{name} ({why})" for name, why in missing.items() if why]
        print(f"results: {args.out}/results.jsonl")
        print("missing: " + (", ".join(lacks) or "nothing"), flush=True)
    wrong = ("failed", "cut off", "can't be read")
    if args.dry and any(word in why for word in wrong for why in missing.values()):
        sys.exit(1)  # on a GPU a part that fails must not hide what the others found


if __name__ == "__main__":
    main()

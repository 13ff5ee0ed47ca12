"""
What every stage shares: the command line, device and precision, batches, the schedule, checkpoints, the log.

A stage's config is a dataclass of commented literals; each field is a flag, --name=value. A stage's files are
OUT/<stage>.pt when it is finished, OUT/<stage>.resume.pt while it is not, and its metrics, OUT/<stage>.jsonl.
All randomness of a step comes from generators seeded by (seed, what for, step), so an interrupted run that is
resumed draws what it would have drawn, and no generator's state has to be stored.
"""
import contextlib
import ctypes
import dataclasses
import difflib
import hashlib
import inspect
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile

# How often a thread that waits for the others looks before it sleeps is read when torch loads its OpenMP. 3,000 times make a
# small model's step half as fast again as sleeping at once; OpenMP's own default, a hundred times as often, makes it ten
# times slower where another program wants one of the cores (experiments/LOG.md).
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
# prepared kernels that are kept, one for each shape of tensors: a thousand by default, which in sampling are half a gigabyte
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from tqdm import tqdm  # noqa: E402

from data import ROOT, UserError, Vocab, folder_of, read_json, replacing  # noqa: E402
from model import GPT, SIZES, GPTConfig, ScalarGPT, config_for  # noqa: E402

STAGES = ["pretrain", "sft", "reward", "ppo"]
POLICY = re.compile(r"pretrain|sft|ppo(-[2-9]|-[1-9]\d+)?")      # stages that answer


def in_round(name, n):
    """What a name is in round n of comparisons, reward model and PPO: ppo, ppo-2, ppo-3, …"""
    return name if n == 1 else f"{name}-{n}"


def policy_before(n):
    """The stage whose answers round n collects comparisons on, and whose policy its PPO goes on from."""
    return "sft" if n == 1 else in_round("ppo", n - 1)


def round_of(stage):
    """ppo-2 → 2, ppo → 1."""
    return int(stage.partition("-")[2] or 1)


def rounds_before(n):
    """The stages of the rounds before the n-th, in order."""
    return [in_round(stage, i) for i in range(1, n) for stage in ("reward", "ppo")]


def policies(out):
    """The finished stages in a folder that can answer, oldest first."""
    names = [f[:-3] for f in (os.listdir(out) if os.path.isdir(out) else []) if f.endswith(".pt") and POLICY.fullmatch(f[:-3])]
    return sorted(names, key=lambda s: (STAGES.index(s.split("-")[0]), round_of(s)))


def script_of(stage):
    """The script and flag that make a stage: reward-2 → ["reward.py", "--round=2"]."""
    name, _, n = stage.partition("-")
    return [name + ".py", *[f"--round={n}"] * n.isdigit()]


@dataclasses.dataclass
class Common:
    data: str = "village"    # a folder under data/, or a path
    out: str = ""            # folder for checkpoints and logs; empty: out/<data>, and out/<data>-smoke for that size
    seed: int = 1337         # of everything drawn at random
    device: str = "auto"     # cuda, mps or cpu; auto takes the first of these that is there
    dtype: str = "auto"      # float32 or bfloat16; auto takes bfloat16 where the device multiplies it fast
    size: str = "tiny"       # of the model: a name in model.py's SIZES; smoke shrinks the whole run as well
    max_new_tokens: int = 48 # longest response, in sampling
    compile: bool = False    # torch.compile each block: half a minute of compiling for sampling that is a third faster; a CPU needs a C++ compiler for it
    base: str = ""           # to start from in place of OUT/pretrain.pt: another pretrain.pt, gpt2 (or -medium, -large, -xl), or a folder with weights in its layout
    fresh: str = ""          # --fresh redoes this stage, --fresh=all everything before it too


# ---- command line ----

def parse(cls, doc, smoke=None, argv=None):
    """sys.argv → a config of dataclass `cls`. `smoke` holds the values that --size=smoke puts in place of the defaults.

    Exits with a sentence if a flag is unknown (naming the nearest) or its value has the wrong type.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    given = {}
    for arg in sys.argv[1:] if argv is None else argv:
        if arg in ("-h", "--help"):
            print(doc.strip() + "\n\nflags:")
            for name, text in comments_of(cls).items():
                print(f"  --{name + '=' + str(fields[name].default):30s} {text}")
            sys.exit(0)
        m = re.fullmatch(r"--(\w+)(?:=(.*))?", arg, re.S)
        name, value = m.groups() if m else (None, None)
        if name not in fields:
            near = difflib.get_close_matches(name or arg, fields, 1)
            raise UserError(f"unknown flag {arg}" + (f"; did you mean --{near[0]}=…?" if near else "") + " (--help lists them all)")
        if value is None:
            if name != "fresh" and fields[name].type not in (bool, "bool"):
                raise UserError(f"--{name} needs a value: --{name}={fields[name].default}")
            value = "stage" if name == "fresh" else "true"
        given[name] = convert(name, value, type(fields[name].default))
    theirs = settings_of(given.get("data", Common.data), cls)
    more = smoke or {} if given.get("size", theirs.get("size")) == "smoke" else {}
    config = cls(**{**theirs, **more, **given})
    if config.size not in SIZES:
        near = difflib.get_close_matches(config.size, SIZES, 1)
        raise UserError(f"--size={config.size}: there are {', '.join(SIZES)}" + (f"; did you mean {near[0]}?" if near else ""))
    if config.fresh not in ("", "stage", "all"):
        raise UserError(f"--fresh={config.fresh}: give --fresh or --fresh=all")
    config.data = os.path.normpath(config.data)
    if os.path.dirname(config.data) == "data":
        config.data = os.path.basename(config.data)
    config.out = config.out or os.path.join("out", os.path.basename(config.data) + ("-smoke" if config.size == "smoke" else ""))
    config.given = set(given)
    for name in ("steps", "batch", "epochs", "episodes", "minibatches", "iterations", "eval_every", "max_new_tokens", "lr", "round"):
        if getattr(config, name, 1) <= 0:
            raise UserError(f"--{name}={getattr(config, name)} must be above 0")
    if getattr(config, "micro", 0) < 0:
        raise UserError(f"--micro={config.micro} can't be negative; 0 is a whole batch at once")
    return config


def settings_of(data, cls):
    """What the data folder's settings.json, {stage or "all": {flag: value}}, puts in place of this script's defaults."""
    path = os.path.join(data if os.path.isdir(data) else os.path.join(ROOT, "data", data), "settings.json")
    if not os.path.exists(path):
        return {}
    fields = {f.name: f for f in dataclasses.fields(cls)}
    settings, stage = read_json(path), os.path.splitext(os.path.basename(inspect.getfile(cls)))[0]
    sections = [settings.get(name, {}) for name in ("all", stage)] if isinstance(settings, dict) else [None]
    if not all(isinstance(section, dict) for section in sections):
        raise UserError(f"{path}: expected {{stage or \"all\": {{flag: value}}}}")
    theirs = {name: value for section in sections for name, value in section.items()}
    for name, value in theirs.items():
        if name not in fields or type(value) is not type(fields[name].default):
            raise UserError(f"{path}: {name} = {value!r} is no flag of this script, or not of its type (--help lists them)")
    return theirs


def convert(name, value, kind):
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[value.lower()]
        return kind(value)
    except (ValueError, KeyError):
        word = {int: "a whole number", float: "a number", bool: "true or false"}[kind]
        raise UserError(f"--{name}={value}: expected {word}") from None


def comments_of(cls):
    """{field: its comment} of a config and the configs it extends, own fields first."""
    found = {}
    for c in cls.__mro__[:-1]:
        found.update({m[1]: m[2] for m in re.finditer(r"^    (\w+): \w+ = .*?#\s*(.*)$", inspect.getsource(c), re.M) if m[1] not in found})
    return found


def entry(main):
    """Run a script's main(); what the user did wrong is said in one sentence, with exit code 1."""
    try:
        main()
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(130)


# ---- device and precision ----

def pick_device(name):
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as e:
        raise UserError(f"--device={name} can't be used here: {str(e).splitlines()[0]}") from None
    return torch.device(name)


def pick_dtype(name, device):
    """bfloat16 pays on GPUs since Ampere and on CPUs that multiply it (AVX-512 BF16, AMX); elsewhere float32 is faster."""
    if name == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported() or device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
        name = "bfloat16" if fast else "float32"
    if name not in ("float32", "bfloat16"):
        raise UserError(f"--dtype={name}: give float32 or bfloat16")
    return getattr(torch, name)


def autocast(device, dtype):
    """Matrix products in `dtype`; parameters, softmax and losses stay float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def keep_memory():
    """Let the C library keep what is freed: given back to the system and taken anew, page by page, it costs up to a third of a step."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        libc.mallopt(-1, 1 << 30)       # M_TRIM_THRESHOLD
        libc.mallopt(-4, 0)             # M_MMAP_MAX: large blocks from the heap as well


def generator(*what):
    """A random generator seeded by what it is for, e.g. (seed, "ptx", step)."""
    return torch.Generator().manual_seed(int(hashlib.sha256(repr(what).encode()).hexdigest()[:15], 16))


# ---- several processes: torchrun --nproc_per_node=2 sft.py ----

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))      # set by torchrun


def join_processes(device):
    """Enter the group of processes that torchrun started → the device of this one. The first alone prints."""
    if WORLD == 1:
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if RANK:
        sys.stdout = open(os.devnull, "w")
    return device


def shard(rows):
    """This process's share of the rows of a batch: every WORLD-th."""
    return rows[RANK::WORLD]


def all_reduce(x):
    """The sum of a tensor over all processes, without gradient."""
    if WORLD > 1:
        x = x.detach().clone()
        dist.all_reduce(x)
    return x


def all_gather(rows):
    """Lists of each process's share, as `shard` deals them out → the whole list, in its order."""
    if WORLD == 1:
        return rows
    shares = [None] * WORLD
    dist.all_gather_object(shares, rows)
    whole = [None] * sum(map(len, shares))
    for rank, share in enumerate(shares):
        whole[rank::WORLD] = share
    return whole


def add_gradients(parameters):
    """Sum gradients over all processes, in one message. Each process's loss is its share of the whole batch's."""
    parameters = [p for p in parameters if p.requires_grad]
    flat = all_reduce(torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters]))
    for p, g in zip(parameters, flat.split([p.numel() for p in parameters])):
        p.grad = g.view_as(p)


# ---- batches, optimiser, schedule ----

def rounded(length):
    """The next multiple of 16: fewer shapes of tensors, for each of which a CPU's or GPU's kernels are prepared anew."""
    return -(-int(length) // 16) * 16


def pad(rows, pad_id, device="cpu"):
    """Token lists → (tokens (B, T) right-padded, lengths (B,))."""
    lengths = torch.tensor([len(r) for r in rows])
    tokens = torch.full((len(rows), rounded(lengths.max())), pad_id)
    for i, r in enumerate(rows):
        tokens[i, :len(r)] = torch.tensor(r)
    return tokens.to(device), lengths.to(device)


def by_length(lengths, size):
    """Row numbers in batches of `size` rows of similar length, so that little of a batch is padding."""
    return torch.as_tensor(lengths).argsort(stable=True).split(size)


def epoch_batches(lengths, size, rng):
    """The batches of one epoch (lists of row numbers), in random order, each of rows that are alike in length."""
    lengths = torch.as_tensor(lengths)
    order = torch.randperm(len(lengths), generator=rng)
    order = torch.cat([pool[lengths[pool].argsort(stable=True)] for pool in order.split(8 * size)])
    batches = order.split(size)
    return [batches[i].tolist() for i in torch.randperm(len(batches), generator=rng)]


def document_batch(tokens, starts, rows, block, rng, device):
    """`rows` windows of `block` tokens, each beginning where a document begins. tokens: from read_tokens."""
    at = starts[torch.randint(len(starts), (rows,), generator=rng)]
    batch = torch.stack([torch.from_numpy(tokens[i:i + block].astype("int64")) for i in at.tolist()])
    return batch.to(device)


def document_starts(tokens, eos, block):
    """Where documents begin that have `block` tokens after them. Raises UserError if the text is too short."""
    starts = torch.from_numpy((tokens[:-1] == eos).nonzero()[0] + 1)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), starts])
    starts = starts[starts + block <= len(tokens)]
    if not len(starts):
        raise UserError(f"the pretraining text has only {len(tokens)} tokens, less than one block of {block}: give more text, or a smaller --size")
    return starts


def at_once(most, tokens, config):
    """How many rows, up to `most`, can go through the network together with float32 logits of no more than 256 MiB, for so many tokens a row. → int"""
    return max(1, min(most, 2 ** 28 // (4 * tokens * config.vocab_size)))


@torch.no_grad()
def text_loss(model, tokens, starts, block, device, cast, rows=256):
    """Mean next-token loss over windows spread through a held-out text, in nats a token; (mean, standard error over windows)."""
    at = starts[torch.linspace(0, len(starts) - 1, min(rows, len(starts))).long()]
    losses = []
    for part in at.split(at_once(32, block, model.config)):
        x = torch.stack([torch.from_numpy(tokens[i:i + block].astype("int64")) for i in part.tolist()]).to(device)
        with cast:
            logits = model(x)
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].float().transpose(1, 2), x[:, 1:], reduction="none")
        losses.append(loss.mean(1))
    losses = torch.cat(losses)
    return losses.mean().item(), losses.std().item() / math.sqrt(len(losses))


def adamw(model, lr, weight_decay=0.0, betas=(0.9, 0.95), eps=1e-8):
    """AdamW; weight decay on matrices only, not on biases and LayerNorm."""
    params = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in params if p.dim() >= 2], "weight_decay": weight_decay},
              {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=params[0].device.type in ("cpu", "cuda"))


def cosine(step, steps, warmup=0, floor=0.1):
    """Factor on the learning rate at `step` (from 0): linear warm-up, then a half cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    t = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, t)))


def update(model, optimizer, lr, clip=1.0):
    """One step with gradients clipped to norm `clip`, then cleared. Returns the norm before clipping.
    Raises UserError if it is not finite: nothing is stepped."""
    if WORLD > 1:
        add_gradients(model.parameters())
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip).item()
    if not math.isfinite(norm):
        raise UserError("a gradient is NaN or infinite, nothing was updated; lower the learning rate, or try --dtype=float32")
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


# ---- checkpoints ----

def save(path, content):
    with replacing(path, "wb") as f:
        torch.save(content, f)


def load(path, stage=None):
    """The content of a checkpoint file, on the CPU. Raises UserError if it is missing, cut off or something else."""
    if not os.path.exists(path):
        raise UserError(f"{path} is missing" + (f"; python {' '.join(script_of(stage))} makes it" if stage and stage.split("-")[0] in STAGES else ""))
    try:
        if zipfile.ZipFile(path).testzip():     # torch.load ignores the checksums
            raise ValueError
        content = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("stage", "model", "config", "vocab", "parents", "step" if path.endswith(".resume.pt") else "hash"):
            content[key]
    except Exception as e:
        raise UserError(f"{path} can't be read as a checkpoint of this project ({type(e).__name__}): it may be cut off or damaged; "
                        f"delete it and run its stage again") from None
    if stage and not content["stage"].startswith(stage):
        raise UserError(f"{path} is a checkpoint of {content['stage']}, not of {stage}")
    return content


def model_from(checkpoint, cls=None):
    """The network of a checkpoint's content, in eval mode."""
    cls = cls or (ScalarGPT if checkpoint["stage"].startswith("reward") else GPT)
    model = cls(GPTConfig(**checkpoint["model_config"]))
    model.load_state_dict(checkpoint["model"])
    return model.eval()


def set_dropout(model, p):
    """Dropout of probability p on the embeddings and both residual branches of each block."""
    for module in (model, *model.blocks):
        module.dropout = p
    model.config.dropout = p


def digest(state):
    """A hash of a network's weights, by which a checkpoint names its parents."""
    h = hashlib.sha256()
    for name in sorted(state):
        h.update(name.encode() + state[name].detach().cpu().contiguous().numpy().tobytes())
    return h.hexdigest()[:16]


class Run:
    """The bookkeeping of one stage: its files, its parents, its log, and where it stopped."""

    def __init__(self, stage, config, parents=(), name=None):
        """Runs what is missing upstream. parents: the stages whose checkpoints this one starts from."""
        self.stage, self.name, self.config = stage, name or stage, config
        self.folder = folder_of(config.data)
        self.vocab = Vocab(self.folder)
        self.device = pick_device(config.device)
        torch.set_flush_denormal(True)      # numbers under 1e-38 count as 0: they slow a CPU down many times
        keep_memory()
        self.dtype = pick_dtype(config.dtype, self.device)
        self.cast = autocast(self.device, self.dtype)
        self.path = os.path.join(config.out, self.name + ".pt")
        self.unfinished = os.path.join(config.out, self.name + ".resume.pt")
        self.log_path = os.path.join(config.out, self.name + ".jsonl")
        os.makedirs(config.out, exist_ok=True)
        if config.fresh == "all" and WORLD > 1:
            raise UserError("--fresh=all: with several processes each stage is started by itself, with --fresh")
        if config.fresh == "all" and parents and not (config.base and parents[-1] == "pretrain"):      # the last parent's own run makes those before it
            run_stage(parents[-1], config)
        self.parents = {}
        for p in parents:
            self.parents[p] = self.parent(p)
        self.device = join_processes(self.device)
        self.stop, self.started, self.before, self.last_save = False, time.time(), 0.0, 0.0      # saves after the first step, then now and then

    def parent(self, stage):
        """The finished checkpoint of an earlier stage; made first if it is not there."""
        base = stage == "pretrain" and self.config.base
        if base and not base.endswith(".pt"):
            return self.foreign(base)
        path = base or os.path.join(self.config.out, stage + ".pt")
        if base or os.path.exists(path):
            checkpoint = load(path, stage)
            self.check(path, checkpoint, ("size", "vocab") if base else ("seed", "size", "data", "vocab"))
            return checkpoint
        if WORLD > 1:
            raise UserError(f"{path} is missing; with several processes each stage is started by itself: torchrun --nproc_per_node={WORLD} {' '.join(script_of(stage))} first")
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
            raise UserError(f"--{flag}={name} has {model.config.vocab_size:,} tokens, the vocabulary of {self.folder} {self.vocab.size:,}: "
                            f"they must be the same tokens, so vocab.json there has to name gpt2's")
        return model

    def foreign(self, name):
        """Weights in Hugging Face's GPT-2 layout, as the content of a finished pretrain.pt."""
        model = self.gpt2(name, "base")
        state = model.state_dict()
        return {"stage": "pretrain", "config": vars(self.config), "vocab": self.vocab.hash, "parents": {}, "seconds": 0.0, "model": state,
                "model_config": dataclasses.asdict(model.config), "hash": digest(state), "results": {}}

    def check(self, path, checkpoint, keys):
        """Stop if a checkpoint does not fit this run, or is older than one that it came from."""
        ours = {**vars(self.config), "vocab": self.vocab.hash}
        theirs = {**checkpoint["config"], "vocab": checkpoint["vocab"]}
        for key in keys:
            if theirs.get(key) != ours.get(key):
                raise UserError(f"{path} was made with --{key}={theirs.get(key)}, this run has {ours.get(key)}: "
                                f"give the same, another --out, or --fresh (this stage) or --fresh=all (everything) to make it again")
        for parent, was in checkpoint["parents"].items():
            now = self.parents.get(parent)
            if now and now["hash"] != was:
                raise UserError(f"{path} came from another {parent} than the one there is now: "
                                f"run {' '.join(script_of(checkpoint['stage']))} with --fresh, or give another --out")

    def finished(self):
        """The checkpoint of this stage if it is done already, else None."""
        if self.config.fresh or os.path.exists(self.unfinished) or not os.path.exists(self.path):
            return None
        checkpoint = load(self.path, self.name)
        self.check(self.path, checkpoint, ["seed", "size", "data", "vocab", *sorted(self.config.given - {"fresh", "out", "device", "base"})])
        print(f"{self.path} is finished; --fresh makes it again")
        return checkpoint

    def resume(self, **parts):
        """Load the unfinished state into `parts` (things with load_state_dict, or dicts) → the step to go on from, 0 if none."""
        step = 0
        if self.config.fresh and not RANK and os.path.exists(self.unfinished):
            os.remove(self.unfinished)      # the finished checkpoint stays until the new one replaces it
        if os.path.exists(self.unfinished) and not (self.config.fresh and RANK):
            checkpoint = load(self.unfinished, self.name)
            self.check(self.unfinished, checkpoint, ["vocab", *sorted(set(checkpoint["config"]) - {"fresh", "out", "device", "base"})])
            step, self.before = checkpoint["step"], checkpoint["seconds"]
            for name, part in parts.items():
                part.update(checkpoint["model"][name]) if isinstance(part, dict) else part.load_state_dict(checkpoint["model"][name])
            print(f"going on from {self.unfinished} at step {step}")
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

    def content(self, **more):
        config = {k: v for k, v in vars(self.config).items() if k != "given"}
        return {"stage": self.name, "config": config, "vocab": self.vocab.hash,
                "parents": {p: c["hash"] for p, c in self.parents.items()}, "seconds": self.seconds(), **more}

    def checkpoint(self, step, every=60, **parts):
        """Call after each step with everything that the next one needs. Saves every `every` seconds; exits after Ctrl-C."""
        if WORLD > 1:       # Ctrl-C reaches them at different steps
            self.stop = bool(all_reduce(torch.tensor(float(self.stop), device=self.device)))
        if not RANK and (self.stop or time.time() - self.last_save > every):
            state = {n: p if isinstance(p, dict) else p.state_dict() for n, p in parts.items()}
            save(self.unfinished, self.content(step=step, model=state))
            self.last_save = time.time()
        if self.stop:
            print(f"saved {self.unfinished}; the same command goes on from step {step}", file=sys.stderr)
            sys.exit(130)

    def finish(self, model, results):
        """Write the finished checkpoint."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if RANK:
            return
        state = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
        save(self.path, self.content(model=state, model_config=dataclasses.asdict(model.config), hash=digest(state), results=results))
        if os.path.exists(self.unfinished):
            os.remove(self.unfinished)
        print(f"wrote {self.path} after {self.seconds():.0f} s")

    def seconds(self):
        return self.before + time.time() - self.started

    def log(self, step, metrics):
        if RANK:
            return
        try:
            with open(self.log_path, "a", encoding="utf-8") as f:
                f.write(json.dumps({"step": step, **metrics, "seconds": round(self.seconds(), 2)}) + "\n")
        except OSError as e:
            raise UserError(f"{self.log_path} can't be written: {e.strerror}; the same command goes on from what was saved last") from None

    def compiled(self, *networks):
        """Compile the networks' blocks in place if --compile asks for it. All blocks of a size share what is compiled."""
        if self.config.compile and self.device.type == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
            raise UserError("--compile needs a C++ compiler on a CPU, and there is no g++: install one, name yours in the environment variable CXX, or leave the flag out")
        if self.config.compile:
            import torch._dynamo
            torch._dynamo.config.recompile_limit = 64       # ways to call a block: trained or frozen, with a cache or without, …
            for block in [b for network in networks for b in network.blocks]:
                block.compile(dynamic=True)     # once for all lengths: a stage has dozens

    def model_config(self):
        return config_for(self.config.size, self.vocab.size)


def read_log(path):
    """Lines of a metrics file; what is none, as a last line that was cut off, is left out."""
    rows = []
    if os.path.exists(path):
        with open(path, encoding="utf-8", errors="replace") as f:
            for line in f:
                with contextlib.suppress(ValueError, TypeError, KeyError):
                    row = json.loads(line)
                    row["step"]
                    rows.append(row)
    return rows


def command_of(stage, config, *flags):
    """The command line of a stage's script with this run's common flags."""
    common = [f"--{f.name}={getattr(config, f.name)}" for f in dataclasses.fields(Common)
              if f.name != "fresh" and getattr(config, f.name) != f.default]
    if config.fresh == "all" and stage.split("-")[0] in STAGES:
        common.append("--fresh=all" if stage != STAGES[0] else "--fresh")
    print(f"\n==== {stage} ====", flush=True)
    script, *more = script_of(stage)
    return [sys.executable, os.path.join(os.path.dirname(os.path.abspath(__file__)), script), *more, *common, *flags]


def run_stage(stage, config, *flags):
    """Run a stage's script in a process of its own."""
    command = command_of(stage, config, *flags)
    before = signal.signal(signal.SIGINT, lambda *_: None)     # Ctrl-C is the child's to handle
    code = subprocess.call(command)
    signal.signal(signal.SIGINT, before)
    if code:
        sys.exit(code)      # the child has said why


def become(stage, config, *flags):
    """Go on as another stage's script: what this process has in memory is gone. Of several processes the first goes on alone."""
    if RANK:
        sys.exit()
    for name in ("RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)
    command = command_of(stage, config, *flags)
    sys.stderr.flush()
    os.execv(command[0], command)


def bar(steps, start, label):
    """A progress bar over steps start..steps-1, with time left; one line a while where there is no terminal."""
    return tqdm(range(start, steps), initial=start, total=steps, desc=label, disable=RANK > 0, mininterval=0.2 if sys.stderr.isatty() else 20,
                bar_format="{desc} {percentage:3.0f}% {n}/{total} {elapsed}<{remaining} {postfix}")

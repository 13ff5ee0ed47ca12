"""
How fast: training, sampling, the reward model and a whole PPO iteration.

    python experiments/bench.py                              # everything, about ten minutes
    python experiments/bench.py --work=train,sample --threads=1
    python experiments/bench.py --nanogpt=../nanoGPT --rounds=7

They are compared with the machine's limits and, where they are installed, with Hugging Face's
transformers, TRL 1.12 or older, and a checkout of nanoGPT. Everything takes turns in one run,
A B A B, and the medians are compared: only the ratios mean something on another machine.

Shapes. tiny: 4 layers, 4 heads, width 128, vocabulary 1024, block 128; small: 6 layers, 6 heads,
width 384, vocabulary 50304, block 256. Training: 32 × 128 and 8 × 256 tokens. Sampling: 64 prompts
of 32 tokens, 64 new ones each. Reward model: 16 prompts of 64 tokens, four answers of 32 to each;
ours reads a prompt once, the others once for each answer. PPO: 64 prompts of 32 tokens, answers of
up to 64, four minibatches, no ptx, own critic.
"""

import base64
import contextlib
import gc
import importlib.util
import io
import json
import os
import random
import statistics
import sys
import tempfile
import time
from types import SimpleNamespace

import project

import plumbing.cpu
import numpy as np
import ppo
import reward
import torch
from common import adamw, update
from data import UserError, replacing
from model import GPT, GPTConfig, ScalarGPT
from plumbing.command_line import Common, Parser, entry, parse, value_of
from plumbing.device import pick_device, pick_dtype, synchronize
from plumbing.run import open_run, read_log
from pretrain import lm_backward
from sampling import generate

SHAPES = {
    "tiny": (GPTConfig(128, 1024, 4, 4, 128, gelu="none"), 32),
    "small": (GPTConfig(256, 50304, 6, 6, 384, gelu="none"), 8),
    "gpt2": (GPTConfig(1024, 50304, 12, 12, 768), 16),
}


def clock(device):
    synchronize(device)
    return time.perf_counter()


def silence():
    """A with-block that prints nothing."""
    stack = contextlib.ExitStack()
    stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
    stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
    return stack


# ---- limits of the machine ----


def ceilings(device, dtype):
    """What the machine can do at most, measured.

    matmul: operations a second of a large product, two for each multiply-add. copy: bytes a second,
    read and written. launch: seconds of one small operation.
    """

    def best(function, n):
        times = []
        for _ in range(12):
            start = clock(device)
            for _ in range(n):
                function()
            times.append((clock(device) - start) / n)
        return min(times)

    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    big = torch.zeros(64 << 20 if device.type == "cuda" else 16 << 20, device=device)
    copy, one = torch.empty_like(big), torch.zeros(1, device=device)
    return {
        "matmul": 2 * size**3 / best(lambda: a @ b, 3),
        "copy": 2 * 4 * big.numel() / best(lambda: copy.copy_(big), 2),
        "launch": best(lambda: one.add_(1), 1000),
    }


def train_flops(model, block):
    """Operations of a forward and backward pass for one token.

    6 for each parameter in a product, and attention's (Chowdhery et al. 2022, appendix B).
    """
    c = model.config
    parameters = model.n_params(embeddings=False) + model.wte.weight.numel()
    return 6 * parameters + 12 * c.n_layer * c.n_embd * block


def decode_bytes(model, batch, columns, dtype):
    """Bytes that one step of sampling must read: all weights, `columns` keys and values a row."""
    c = model.config
    weights = model.n_params(embeddings=False) + model.wte.weight.numel()
    cache = 2 * batch * columns * c.n_layer * c.n_embd
    return torch.empty((), dtype=dtype).element_size() * (weights + cache)


# ---- contenders: (name, function that does a piece of work → (units, seconds), what it needs) ----


def timed(device, function, units):
    def once():
        start = clock(device)
        n = function()
        return units or n, clock(device) - start

    return once


def own(model, args):
    """A network of ours as the stages use it with the flags given."""
    model.to(args.device)
    model.compute_dtype = args.dtype
    for block in model.blocks if args.compile else ():
        block.compile(dynamic=True)
    return model


def name_of(dtype):
    return str(dtype).removeprefix("torch.")


def autocast(args, dtype):
    """What the others' networks compute in; ours have a compute_dtype."""
    return torch.autocast(args.device.type, dtype, enabled=dtype != torch.float32)


def ours_in(dtype, args, size=0):
    name = f"ours, {name_of(dtype)}" + ", compiled" * args.compile
    return name + f", micro-batches of {size}" * bool(size)


def gpt2_config(c, **more):
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=c.vocab_size,
        n_positions=c.block_size,
        n_layer=c.n_layer,
        n_head=c.n_head,
        n_embd=c.n_embd,
        activation_function="gelu" if c.gelu == "none" else "gelu_new",
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
        **more,
    )


def hugging_face(c):
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel(gpt2_config(c, bos_token_id=0, eos_token_id=None))


def hugging_face_scalar(c, pad):
    from transformers import GPT2ForSequenceClassification

    return GPT2ForSequenceClassification(gpt2_config(c, num_labels=1, pad_token_id=pad))


def nano_gpt(c, args):
    """nanoGPT's model and its optimiser."""
    path = os.path.join(args.nanogpt, "model.py")
    spec = importlib.util.spec_from_file_location("nanogpt", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shape = (c.block_size, c.vocab_size, c.n_layer, c.n_head, c.n_embd, 0.0, True)
    with silence():
        model = module.GPT(module.GPTConfig(*shape)).to(args.device)
        return model, model.configure_optimizers(0.1, 1e-4, (0.9, 0.95), args.device.type)


def step(loss, model, optimizer):
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def training(shape, args):
    c, batch = SHAPES[shape]
    windows = torch.randint(c.vocab_size, (batch, c.block_size + 1), device=args.device)
    x, y = windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
    units = batch * c.block_size
    model = own(GPT(c), args)
    optimizer = adamw(model, 1e-4, 0.1)

    def ours():
        lm_backward(model, windows, args.micro_batch_size)
        update(model, optimizer, 1e-4)

    name = ours_in(args.dtype, args, args.micro_batch_size)
    flops = units * train_flops(model, c.block_size)
    yield name, timed(args.device, ours, units), flops

    for dtype in dict.fromkeys((torch.float32, args.dtype)):
        if args.nanogpt:
            nano, nano_optimizer = nano_gpt(c, args)

            def nanogpt(nano=nano, optimizer=nano_optimizer, dtype=dtype):
                with autocast(args, dtype):
                    _, loss = nano(x, y)
                step(loss, nano, optimizer)

            yield f"nanoGPT, {name_of(dtype)}", timed(args.device, nanogpt, units), None
        if args.transformers:
            hf = hugging_face(c).to(args.device).train()
            hf_optimizer = torch.optim.AdamW(hf.parameters(), lr=1e-4, weight_decay=0.1)

            def transformers(hf=hf, optimizer=hf_optimizer, dtype=dtype):
                with autocast(args, dtype):
                    loss = hf(x, labels=x).loss
                step(loss, hf, optimizer)

            yield f"transformers, {name_of(dtype)}", timed(args.device, transformers, units), None


def sampling(shape, args):
    c, _ = SHAPES[shape]
    prompts = torch.randint(c.vocab_size, (64, 32)).tolist()
    model = own(GPT(c), args)
    for dtype in dict.fromkeys((args.dtype, torch.float32)):

        def ours(dtype=dtype):
            model.compute_dtype = dtype
            return sum(map(len, generate(model, prompts, 64)))

        needs = 64 * decode_bytes(model, 64, 32 + 32, dtype)
        yield ours_in(dtype, args), timed(args.device, ours, None), needs
        if args.transformers:
            hf = hugging_face(c).to(args.device).eval()
            x = torch.tensor(prompts, device=args.device)
            how = {"max_new_tokens": 64, "do_sample": True, "top_k": 0, "pad_token_id": 0}

            @torch.no_grad()
            def transformers(hf=hf, x=x, dtype=dtype, how=how):
                with autocast(args, dtype):
                    rows = hf.generate(x, attention_mask=torch.ones_like(x), **how)
                return rows[:, 32:].numel()

            yield f"transformers, {name_of(dtype)}", timed(args.device, transformers, None), None


def ranking(shape, args):
    c, _ = SHAPES[shape]
    n, k, items = 16, 4, []
    for _ in range(n):
        prompt = torch.randint(c.vocab_size, (64,)).tolist()
        answers = [prompt + torch.randint(c.vocab_size, (32,)).tolist() for _ in range(k)]
        items.append((answers, list(range(1, k + 1)), None))
    model = own(ScalarGPT(c), args)
    optimizer, vocab = adamw(model, 1e-4, 0.1), SimpleNamespace(pad=0)

    def ours():
        reward.reward_backward(model, items, vocab, args.micro_batch_size)
        update(model, optimizer, 1e-4)

    flops = n * (64 + k * 32) * (train_flops(model, 96) - 6 * model.wte.weight.numel())
    yield ours_in(args.dtype, args, args.micro_batch_size), timed(args.device, ours, n * k), flops

    if args.transformers:
        x = torch.tensor([a for answers, _, _ in items for a in answers], device=args.device)
        better, worse = torch.combinations(torch.arange(k)).T
        for dtype in dict.fromkeys((torch.float32, args.dtype)):
            hf = hugging_face_scalar(c, pad=0).to(args.device).train()
            hf_optimizer = torch.optim.AdamW(hf.parameters(), lr=1e-4)

            def transformers(hf=hf, optimizer=hf_optimizer, dtype=dtype):
                with autocast(args, dtype):
                    scores = hf(x).logits.view(n, k).float()
                margins = scores[:, better] - scores[:, worse]
                step(-torch.nn.functional.logsigmoid(margins).mean(), hf, optimizer)

            yield f"transformers, {name_of(dtype)}", timed(args.device, transformers, n * k), None


# ---- a PPO iteration: ppo.py itself, on a data folder made for it ----


def ppo_folder(c, folder):
    """A data folder of random text for ppo.py, in which every prompt has 32 tokens."""
    data, rng = os.path.join(folder, "data"), random.Random(0)
    os.makedirs(data)
    tokens = [bytes([i]) for i in range(256)]
    for i in range(c.vocab_size - 260):
        tokens.append(bytes([97 + i // 26 % 26, 97 + i % 26, 65 + i // 676]))
    with open(os.path.join(data, "vocab.tiktoken"), "w") as f:
        f.writelines(f"{base64.b64encode(t).decode()} {i}\n" for i, t in enumerate(tokens))
    names = ["<|user|>", "<|assistant|>", "<|endoftext|>", "<|pad|>"]
    special = {name: c.vocab_size - 4 + i for i, name in enumerate(names)}
    with open(os.path.join(data, "vocab.json"), "w") as f:
        json.dump({"pattern": r"[\s\S]", "prefix": "", "special": special}, f)
    with open(os.path.join(data, "prompts.jsonl"), "w") as f:
        for i in range(300):
            prompt = "".join(rng.choices("abcdefghijklmnop ", k=30))
            row = {"prompt": prompt, "split": "heldout" if i % 6 == 0 else "train"}
            f.write(json.dumps(row) + "\n")
    for name in ("train.bin", "val.bin"):
        text = np.random.default_rng(0).integers(0, 256, 20_000).astype(np.uint16)
        text[::500] = special["<|endoftext|>"]
        text.tofile(os.path.join(data, name))
    return data


@contextlib.contextmanager
def replaced(thing, name, value):
    """A with-block in which an attribute has another value."""
    before = getattr(thing, name)
    setattr(thing, name, value)
    try:
        yield
    finally:
        setattr(thing, name, before)


def iterations(c, args, epochs, n):
    """Run ppo.py for n iterations → its log."""
    with tempfile.TemporaryDirectory() as folder, silence():
        data, out = ppo_folder(c, folder), os.path.join(folder, "out")
        flags = [f"--data={data}", f"--out={out}", f"--device={args.device.type}"]
        flags += [f"--dtype={name_of(args.dtype)}", *["--compile"] * args.compile]
        for stage, cls in (("pretrain", GPT), ("sft", GPT), ("reward", ScalarGPT)):
            run = open_run(stage, parse(Common, "", argv=flags))
            run.finish(cls(c), {"score_mean": 0.0, "score_std": 1.0})
        flags += [f"--iterations={n}", f"--eval_every={n + 1}", f"--ppo_epochs={epochs}"]
        flags += ["--episodes=64", "--max_new_tokens=64", "--minibatches=4", "--ptx_coef=0"]
        argv = replaced(sys, "argv", ["ppo.py", *flags])
        with argv, replaced(ppo, "evaluate_run", lambda run: None):
            ppo.main()
        return read_log(os.path.join(out, "ppo.jsonl"))


PHASES = ["seconds/rollout", "seconds/score", "seconds/logprobs", "seconds/update", "seconds/ptx"]


def ppo_iterations(shape, epochs, args):
    c, _ = SHAPES[shape]

    def ours():
        # with --compile the first new shapes are compiled, until they are taken for variable
        warm = 4 if args.compile else 1
        lines = iterations(c, args, epochs, warm + 3)[warm:]
        keys = [key for key in PHASES if key in lines[0]]
        medians = {key: statistics.median(x[key] for x in lines if key in x) for key in keys}
        ours.phases = {key.split("/")[1]: value for key, value in medians.items()}
        return 64 * len(lines), sum(x.get(key, 0) for x in lines for key in PHASES)

    yield ours_in(args.dtype, args), ours, None
    if args.trl:
        yield "TRL, float32", lambda: trl_iterations(c, epochs, 3), None


def trl_settings(folder, epochs, n):
    from trl.experimental.ppo import PPOConfig

    return PPOConfig(
        output_dir=folder,
        per_device_train_batch_size=16,
        gradient_accumulation_steps=4,
        num_mini_batches=4,
        num_ppo_epochs=epochs,
        total_episodes=64 * (n + 1),
        response_length=64,
        temperature=1.0,
        stop_token="eos",
        num_sample_generations=0,
        local_rollout_forward_batch_size=64,
        report_to=[],
        save_strategy="no",
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        logging_steps=1000,
        disable_tqdm=True,
    )


def trl_iterations(c, epochs, n):
    """n iterations of TRL's PPO → answers, seconds"""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl.experimental.ppo import PPOTrainer

    pad, times = c.vocab_size - 1, []
    words = models.WordLevel({str(i): i for i in range(c.vocab_size)}, "0")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), pad_token=str(pad), eos_token=str(pad - 1)
    )

    class Clock(TrainerCallback):
        def on_step_end(self, *a, **k):
            times.append(time.perf_counter())

    rows = [{"input_ids": row} for row in torch.randint(c.vocab_size - 4, (256, 32)).tolist()]
    with tempfile.TemporaryDirectory() as folder, silence():
        trainer = PPOTrainer(
            args=trl_settings(folder, epochs, n),
            processing_class=tokenizer,
            model=hugging_face(c),
            ref_model=hugging_face(c),
            reward_model=hugging_face_scalar(c, pad),
            value_model=hugging_face_scalar(c, pad),
            train_dataset=rows,
            eval_dataset=rows[:64],
            callbacks=[Clock()],
        )
        trainer.train()
    return 64 * (len(times) - 1), times[-1] - times[0]


# ---- the run ----

# name: (title, unit, how the contenders are made, shape)
WORK = {
    "train": ("training, tiny, 32 × 128", "tokens", training, "tiny"),
    "small": ("training, small, 8 × 256", "tokens", training, "small"),
    "gpt2": ("training, GPT-2 124M, 16 × 1024", "tokens", training, "gpt2"),
    "sample": ("sampling, tiny, 64 × (32 → 64)", "tokens", sampling, "tiny"),
    "reward": ("reward model, tiny, 16 × (64 + 4 × 32)", "answers", ranking, "tiny"),
    "ppo": (
        "PPO iteration, tiny, 64 × (32 + 64)",
        "answers",
        lambda shape, args: ppo_iterations(shape, 1, args),
        "tiny",
    ),
    "ppo4": (
        "the same, 4 inner epochs",
        "answers",
        lambda shape, args: ppo_iterations(shape, 4, args),
        "tiny",
    ),
    "sample_gpt2": ("sampling, GPT-2 124M, 64 × (32 → 64)", "tokens", sampling, "gpt2"),
    "ppo_gpt2": (
        "PPO iteration, GPT-2 124M, 64 × (32 + 64)",
        "answers",
        lambda shape, args: ppo_iterations(shape, 1, args),
        "gpt2",
    ),
}
FOR_A_GPU = {"gpt2", "sample_gpt2", "ppo_gpt2"}


def measure(contenders, rounds, seconds):
    """Let contenders take turns, each for at least so many seconds a turn.

    → {name: units a second: the median over rounds, the lowest, the highest}
    """
    found = {name: [] for name, *_ in contenders}
    for r in range(rounds + 1):  # the first is to warm up
        for name, once, _ in contenders:
            done = spent = 0
            while spent < (seconds if r else 0.01):
                n, s = once()
                done, spent = done + n, spent + s
            if r:
                found[name].append(done / spent)
    return {name: (statistics.median(x), min(x), max(x)) for name, x in found.items()}


def parse_arguments():
    parser, number = Parser(__doc__), value_of(int)
    works = f"some of {','.join(WORK)}; default all, but those of GPT-2's size only on a GPU"
    parser.add_argument("--work", default="", help=works)
    parser.add_argument("--rounds", type=number, default=5)
    least = "of each contender in each round, at least"
    parser.add_argument("--seconds", type=value_of(float), default=1.5, help=least)
    parser.add_argument("--threads", type=number, default=0, help="0: PyTorch's default")
    busy = "count CPU seconds, on a machine that others use too; needs --threads=1"
    parser.add_argument("--cpu_time", action="store_true", help=busy)
    parser.add_argument("--device", default="auto")
    peers = "ours; the others run in this one and in float32"
    parser.add_argument("--dtype", default="auto", help=peers)
    parser.add_argument("--nanogpt", default="", help="a checkout of nanoGPT")
    parser.add_argument("--compile", action="store_true", help="ours runs with --compile")
    parts = "of ours in training, as the stages' flag"
    parser.add_argument("--micro_batch_size", type=number, default=0, help=parts)
    parser.add_argument("--out", default=os.path.join("out", "bench.json"))
    args = parser.parse_args()
    args.device = pick_device(args.device)
    args.dtype = pick_dtype(args.dtype, args.device)
    args.transformers = importlib.util.find_spec("transformers") is not None
    args.trl = args.transformers and importlib.util.find_spec("trl") is not None
    if args.nanogpt and not os.path.exists(os.path.join(args.nanogpt, "model.py")):
        raise UserError(f"--nanogpt={args.nanogpt}: there is no model.py in it")
    on_gpu = args.device.type == "cuda"
    args.names = [w for w in WORK if w not in FOR_A_GPU or on_gpu]
    if args.work:
        args.names = args.work.split(",")
    if unknown := set(args.names) - set(WORK):
        raise UserError(
            f"--work={args.work}: there are {', '.join(WORK)}, not {', '.join(unknown)}"
        )
    return args


def share_of(name, needs, rate, limits):
    """The share of the machine's limit that a contender of ours reaches → number, words"""
    *_, shape = WORK[name]
    c, batch = SHAPES[shape]
    if not needs:
        return None, ""
    if name.startswith("sample"):
        share = needs / (64 * 64) * rate / limits["copy"]
        return share, f", {share:.0%} of the copying rate"
    units = 64 if name == "reward" else batch * c.block_size
    share = needs / units * rate / limits["matmul"]
    return share, f", {share:.0%} of the product's rate"


def run_work(name, args, limits):
    """Measure a piece of work, and print it → {contender: its numbers}"""
    title, unit, make, shape = WORK[name]
    contenders, found = list(make(shape, args)), {}
    rates = measure(contenders, args.rounds, args.seconds)
    ours = rates[contenders[0][0]][0]
    print(title)
    for who, once, needs in contenders:
        rate, low, high = rates[who]
        share, words = share_of(name, needs, rate, limits)
        line = f"  {who:24s}{rate:12,.1f} {unit}/s ({low:,.1f} to {high:,.1f}){words}"
        if who.split(",")[0] != "ours":
            line += f", ours is {ours / rate:.2f} × as fast"
        phases = getattr(once, "phases", {})
        if phases:
            line += ", seconds: " + ", ".join(f"{k} {v:.3f}" for k, v in phases.items())
        print(line, flush=True)
        numbers = {"rate": rate, "low": low, "high": high, "unit": unit + "/s"}
        found[who] = {**numbers, "share": share, "ratio": ours / rate, **phases}
    return found


def main():
    args = parse_arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.cpu_time:
        time.perf_counter = time.process_time  # the stages' Timer reads it too
    torch.set_flush_denormal(True)
    plumbing.cpu.keep_freed_memory()
    on_gpu = args.device.type == "cuda"
    limits = ceilings(args.device, args.dtype)
    where = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    isa = torch.backends.cpu.get_cpu_capability()
    found = {"where": where, "torch": torch.__version__, "dtype": name_of(args.dtype), "isa": isa}
    found |= {"ceilings": limits, "work": {}}
    print(
        f"{where}, torch {torch.__version__}, {name_of(args.dtype)}, {isa}: "
        f"product {limits['matmul'] / 1e9:,.0f} GFLOP/s, copy {limits['copy'] / 1e9:.1f} GB/s, "
        f"one small operation {limits['launch'] * 1e6:.1f} µs\n"
    )
    for name in args.names:
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        found["work"][name] = run_work(name, args, limits)
        if on_gpu:
            found["work"][name]["peak_bytes"] = torch.cuda.max_memory_allocated()
        gc.collect()
    if not on_gpu:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        found["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        size = found["peak_bytes"] / 2**20
        print(f"peak memory of this process, the others' included: {size:,.0f} MiB")
    os.makedirs(os.path.dirname(args.out) or ".", exist_ok=True)
    with replacing(args.out) as f:
        json.dump(found, f, indent=1)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    entry(main)

"""
How fast: training, sampling, the reward model and a whole PPO iteration, beside the machine's ceilings and, where they
are installed, Hugging Face's transformers, TRL 1.12 or older, and a checkout of nanoGPT. Everything takes turns in one run,
A B A B, and the medians are compared: only the ratios mean something on another machine.

    python experiments/bench.py                              # what is there, about ten minutes
    python experiments/bench.py --work=train,sample --threads=1
    python experiments/bench.py --nanogpt=../nanoGPT --rounds=7

Shapes. tiny: 4 layers, 4 heads, width 128, vocabulary 1024, block 128; small: 6 layers, 6 heads, width 384, vocabulary
50304, block 256. Training: 32 × 128 and 8 × 256 tokens. Sampling: 64 prompts of 32 tokens, 64 new ones each. Reward
model: 32 pairs of 96 tokens. PPO: 64 prompts of 32 tokens, answers of up to 64, four minibatches, no ptx, own critic.
"""
import argparse
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

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import common  # noqa: E402  before torch: it says how threads wait
import ppo  # noqa: E402
import reward  # noqa: E402
from data import UserError  # noqa: E402
from model import GPT, GPTConfig, ScalarGPT  # noqa: E402
from pretrain import lm_loss  # noqa: E402

import torch  # noqa: E402

SHAPES = {"tiny": (GPTConfig(128, 1024, 4, 4, 128), 32), "small": (GPTConfig(256, 50304, 6, 6, 384), 8), "gpt2": (GPTConfig(1024, 50304, 12, 12, 768), 16)}


def clock(device):
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


# ---- ceilings of the machine ----

def ceilings(device, dtype):
    """→ multiply-adds of a large product, two operations each (FLOP/s), copying of a large tensor (bytes/s, read and written), and one small operation (s)."""
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
    return {"matmul": 2 * size ** 3 / best(lambda: a @ b, 3), "copy": 2 * 4 * big.numel() / best(lambda: copy.copy_(big), 2), "launch": best(lambda: one.add_(1), 1000)}


def train_flops(model, block):
    """Operations of a forward and backward pass for one token: 6 for each parameter in a product, and attention's (Chowdhery et al. 2022, appendix B)."""
    c = model.config
    return 6 * (model.n_params(embeddings=False) + model.wte.weight.numel()) + 12 * c.n_layer * c.n_embd * block


def decode_bytes(model, batch, columns, dtype):
    """Bytes that one step of sampling must read at least: all weights once, and the keys and values of `columns` columns."""
    c = model.config
    return torch.empty((), dtype=dtype).element_size() * (model.n_params(embeddings=False) + model.wte.weight.numel() + 2 * batch * columns * c.n_layer * c.n_embd)


# ---- contenders: each is a function that does one piece of work and returns (units done, seconds) ----

def timed(device, function, units):
    def once():
        start = clock(device)
        n = function()
        return units or n, clock(device) - start
    return once


def own(model, args):
    """A network of ours as the stages use it with the flags given."""
    model.to(args.device)
    for block in model.blocks if args.compile else ():
        block.compile(dynamic=True)
    return model


def ours_in(dtype, args, micro=0):
    return f"ours, {name_of(dtype)}" + ", compiled" * args.compile + f", micro {micro}" * bool(micro)


def hugging_face(c):
    from transformers import GPT2Config, GPT2LMHeadModel
    return GPT2LMHeadModel(GPT2Config(vocab_size=c.vocab_size, n_positions=c.block_size, n_layer=c.n_layer, n_head=c.n_head, n_embd=c.n_embd,
                                      resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=None))


def step(loss, model, optimizer):
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def training(shape, args):
    c, batch = SHAPES[shape]
    x, y = (torch.randint(c.vocab_size, (batch, c.block_size), device=args.device) for _ in "xy")
    units = batch * c.block_size
    model = own(GPT(c), args)
    optimizer = common.adamw(model, 1e-4, 0.1)

    def ours():
        for part in x.split(args.micro or batch):
            with common.autocast(args.device, args.dtype):
                logits = model(part)
            (lm_loss(logits, part) * len(part) / batch).backward()
        common.update(model, optimizer, 1e-4)
    yield ours_in(args.dtype, args, micro=args.micro), timed(args.device, ours, units), units * train_flops(model, c.block_size)

    for dtype in dict.fromkeys((torch.float32, args.dtype)):
        if args.nanogpt:
            spec = importlib.util.spec_from_file_location("nanogpt", os.path.join(args.nanogpt, "model.py"))
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            with contextlib.redirect_stdout(io.StringIO()):
                nano = module.GPT(module.GPTConfig(c.block_size, c.vocab_size, c.n_layer, c.n_head, c.n_embd, 0.0, True)).to(args.device)
                nano_optimizer = nano.configure_optimizers(0.1, 1e-4, (0.9, 0.95), args.device.type)

            def nanogpt(nano=nano, optimizer=nano_optimizer, dtype=dtype):
                with common.autocast(args.device, dtype):
                    _, loss = nano(x, y)
                step(loss, nano, optimizer)
            yield f"nanoGPT, {name_of(dtype)}", timed(args.device, nanogpt, units), None
        if args.transformers:
            hf = hugging_face(c).to(args.device).train()
            hf_optimizer = torch.optim.AdamW(hf.parameters(), lr=1e-4, weight_decay=0.1)

            def transformers(hf=hf, optimizer=hf_optimizer, dtype=dtype):
                with common.autocast(args.device, dtype):
                    loss = hf(x, labels=x).loss
                step(loss, hf, optimizer)
            yield f"transformers, {name_of(dtype)}", timed(args.device, transformers, units), None


def sampling(shape, args):
    c, _ = SHAPES[shape]
    prompts = torch.randint(c.vocab_size, (64, 32)).tolist()
    model = own(GPT(c), args)
    for dtype in dict.fromkeys((args.dtype, torch.float32)):
        def ours(dtype=dtype):
            with common.autocast(args.device, dtype):
                return sum(map(len, model.generate(prompts, 64)))
        yield ours_in(dtype, args), timed(args.device, ours, None), 64 * decode_bytes(model, 64, 32 + 32, dtype)
        if args.transformers:
            hf = hugging_face(c).to(args.device).eval()
            x = torch.tensor(prompts, device=args.device)

            @torch.no_grad()
            def transformers(hf=hf, x=x, dtype=dtype):
                with common.autocast(args.device, dtype):
                    return hf.generate(x, attention_mask=torch.ones_like(x), max_new_tokens=64, do_sample=True, top_k=0, pad_token_id=0)[:, 32:].numel()
            yield f"transformers, {name_of(dtype)}", timed(args.device, transformers, None), None


def ranking(shape, args):
    c, _ = SHAPES[shape]
    pairs = [([torch.randint(c.vocab_size, (96,)).tolist() for _ in "ab"], [1, 2], None) for _ in range(32)]
    model = own(ScalarGPT(c), args)
    optimizer = common.adamw(model, 1e-4, 0.1)
    run = argparse.Namespace(device=args.device, cast=common.autocast(args.device, args.dtype))
    vocab = argparse.Namespace(pad=0)

    def ours():
        scores, ranks = reward.scores_of(model, pairs, vocab, run)
        reward.ranking_loss(scores, ranks).backward()
        common.update(model, optimizer, 1e-4)
    yield ours_in(args.dtype, args), timed(args.device, ours, 32), 64 * 96 * (train_flops(model, 96) - 6 * model.wte.weight.numel())

    if args.transformers:
        from transformers import GPT2Config, GPT2ForSequenceClassification
        for dtype in dict.fromkeys((torch.float32, args.dtype)):
            hf = GPT2ForSequenceClassification(GPT2Config(vocab_size=c.vocab_size, n_positions=c.block_size, n_layer=c.n_layer, n_head=c.n_head, n_embd=c.n_embd,
                                                          resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, num_labels=1, pad_token_id=0)).to(args.device).train()
            hf_optimizer = torch.optim.AdamW(hf.parameters(), lr=1e-4)
            x = torch.tensor([t for tokens, _, _ in pairs for t in tokens], device=args.device)

            def transformers(hf=hf, optimizer=hf_optimizer, dtype=dtype):
                with common.autocast(args.device, dtype):
                    scores = hf(x).logits.view(32, 2).float()
                step(-torch.nn.functional.logsigmoid(scores[:, 0] - scores[:, 1]).mean(), hf, optimizer)
            yield f"transformers, {name_of(dtype)}", timed(args.device, transformers, 32), None


# ---- a PPO iteration: ppo.py itself, on a data folder made for it ----

def ppo_folder(c, folder):
    """A data folder and checkpoints that ppo.py takes, of random numbers, in which every prompt has 32 tokens."""
    import base64
    data = os.path.join(folder, "data")
    os.makedirs(data)
    rng = random.Random(0)
    tokens = [bytes([i]) for i in range(256)] + [bytes([97 + i // 26 % 26, 97 + i % 26]) + bytes([65 + i // 676]) for i in range(c.vocab_size - 260)]
    with open(os.path.join(data, "vocab.tiktoken"), "w") as f:
        f.writelines(f"{base64.b64encode(t).decode()} {i}\n" for i, t in enumerate(tokens))
    with open(os.path.join(data, "vocab.json"), "w") as f:
        json.dump({"pattern": r"[\s\S]", "prefix": "", "special": {s: c.vocab_size - 4 + i for i, s in enumerate(["<|user|>", "<|assistant|>", "<|endoftext|>", "<|pad|>"])}}, f)
    words = ["".join(rng.choices("abcdefghijklmnop ", k=30)) for _ in range(300)]
    with open(os.path.join(data, "prompts.jsonl"), "w") as f:
        f.writelines(json.dumps({"prompt": w, "split": "heldout" if i % 6 == 0 else "train"}) + "\n" for i, w in enumerate(words))
    import numpy as np
    for name in ("train.bin", "val.bin"):
        text = np.random.default_rng(0).integers(0, 256, 20_000).astype(np.uint16)
        text[::500] = c.vocab_size - 2
        text.tofile(os.path.join(data, name))
    return data


def iterations(c, args, epochs, n):
    """Run ppo.py for n iterations → its log."""
    with tempfile.TemporaryDirectory() as folder:
        data, out = ppo_folder(c, folder), os.path.join(folder, "out")
        flags = [f"--data={data}", f"--out={out}", f"--device={args.device.type}", f"--dtype={name_of(args.dtype)}", f"--compile={args.compile}"]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            for stage, cls in (("pretrain", GPT), ("sft", GPT), ("reward", ScalarGPT)):
                run = common.Run(stage, common.parse(common.Common, "", argv=flags))
                run.finish(cls(c), {"score_mean": 0.0, "score_std": 1.0})
            before, become, sys.argv, ppo.become = sys.argv, ppo.become, ["ppo.py", *flags, f"--iterations={n}", "--episodes=64", "--max_new_tokens=64", "--minibatches=4",
                                                                         f"--epochs={epochs}", "--ptx_coef=0", f"--eval_every={n + 1}"], lambda *a: None
            try:
                ppo.main()
            finally:
                sys.argv, ppo.become = before, become
        return common.read_log(os.path.join(out, "ppo.jsonl"))


PHASES = ["seconds/rollout", "seconds/score", "seconds/reference", "seconds/update", "seconds/ptx"]


def ppo_iterations(shape, epochs, args):
    c, _ = SHAPES[shape]

    def ours():
        warm = 4 if args.compile else 1         # each new shape is compiled, until they are taken for variable
        lines = iterations(c, args, epochs, warm + 3)[warm:]
        ours.phases = {key.split("/")[1]: statistics.median(x[key] for x in lines if key in x) for key in PHASES if key in lines[0]}
        return 64 * len(lines), sum(x.get(key, 0) for x in lines for key in PHASES)
    yield ours_in(args.dtype, args), ours, None
    if args.trl:
        yield "TRL, float32", lambda: trl_iterations(c, epochs, 3), None


def trl_iterations(c, epochs, n):
    from tokenizers import Tokenizer, models
    from transformers import GPT2Config, GPT2ForSequenceClassification, PreTrainedTokenizerFast, TrainerCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({str(i): i for i in range(c.vocab_size)}, "0")), pad_token=str(c.vocab_size - 1), eos_token=str(c.vocab_size - 2))

    def scalar():
        return GPT2ForSequenceClassification(GPT2Config(vocab_size=c.vocab_size, n_positions=c.block_size, n_layer=c.n_layer, n_head=c.n_head, n_embd=c.n_embd, resid_pdrop=0,
                                                        embd_pdrop=0, attn_pdrop=0, num_labels=1, pad_token_id=c.vocab_size - 1))
    times = []

    class Clock(TrainerCallback):
        def on_step_end(self, *a, **k):
            times.append(time.perf_counter())
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        arguments = PPOConfig(output_dir=folder, per_device_train_batch_size=16, gradient_accumulation_steps=4, num_mini_batches=4, num_ppo_epochs=epochs, total_episodes=64 * (n + 1),
                              response_length=64, temperature=1.0, stop_token="eos", num_sample_generations=0, local_rollout_forward_batch_size=64, report_to=[], save_strategy="no",
                              use_cpu=not torch.cuda.is_available(), bf16=False, logging_steps=1000, disable_tqdm=True)
        rows = [{"input_ids": row} for row in torch.randint(c.vocab_size - 4, (256, 32)).tolist()]
        trainer = PPOTrainer(args=arguments, processing_class=tokenizer, model=hugging_face(c), ref_model=hugging_face(c), reward_model=scalar(), value_model=scalar(),
                             train_dataset=rows, eval_dataset=rows[:64], callbacks=[Clock()])
        trainer.train()
    return 64 * (len(times) - 1), times[-1] - times[0]


# ---- the run ----

WORK = {
    "train": ("training, tiny, 32 × 128", "tokens", lambda args: training("tiny", args)),
    "small": ("training, small, 8 × 256", "tokens", lambda args: training("small", args)),
    "gpt2": ("training, GPT-2 124M, 16 × 1024", "tokens", lambda args: training("gpt2", args)),
    "sample": ("sampling, tiny, 64 × (32 → 64)", "tokens", lambda args: sampling("tiny", args)),
    "reward": ("reward model, tiny, 32 pairs × 96", "pairs", lambda args: ranking("tiny", args)),
    "ppo": ("PPO iteration, tiny, 64 × (32 + 64)", "answers", lambda args: ppo_iterations("tiny", 1, args)),
    "ppo4": ("the same, 4 inner epochs", "answers", lambda args: ppo_iterations("tiny", 4, args)),
    "sample_gpt2": ("sampling, GPT-2 124M, 64 × (32 → 64)", "tokens", lambda args: sampling("gpt2", args)),
    "ppo_gpt2": ("PPO iteration, GPT-2 124M, 64 × (32 + 64)", "answers", lambda args: ppo_iterations("gpt2", 1, args)),
}
FOR_A_GPU = {"gpt2", "sample_gpt2", "ppo_gpt2"}


def name_of(dtype):
    return str(dtype).removeprefix("torch.")


def measure(contenders, rounds, seconds):
    """Let contenders take turns, each for so many seconds a turn → {name: units a second, the median over rounds}."""
    found = {name: [] for name, *_ in contenders}
    for r in range(rounds + 1):         # the first is to warm up
        for name, once, _ in contenders:
            done = spent = 0
            while spent < (seconds if r else 0.01):
                n, s = once()
                done, spent = done + n, spent + s
            if r:
                found[name].append(done / spent)
    return {name: (statistics.median(x), min(x), max(x)) for name, x in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", default="", help=f"of {','.join(WORK)}; without it all, those of GPT-2's size on a GPU alone")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each contender in each round, at least")
    parser.add_argument("--threads", type=int, default=0, help="0: PyTorch's default")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="ours; the peers run in this one and in float32")
    parser.add_argument("--nanogpt", default="", help="a checkout of nanoGPT")
    parser.add_argument("--compile", action="store_true", help="ours runs with its flag --compile")
    parser.add_argument("--micro", type=int, default=0, help="ours trains with its flag --micro")
    parser.add_argument("--out", default=os.path.join("out", "bench.json"))
    args = parser.parse_args()
    args.device = common.pick_device(args.device)
    args.dtype = common.pick_dtype(args.dtype, args.device)
    args.transformers = importlib.util.find_spec("transformers") is not None
    args.trl = args.transformers and importlib.util.find_spec("trl") is not None
    if args.nanogpt and not os.path.exists(os.path.join(args.nanogpt, "model.py")):
        raise UserError(f"--nanogpt={args.nanogpt}: there is no model.py in it")
    names = args.work.split(",") if args.work else [w for w in WORK if w not in FOR_A_GPU or args.device.type == "cuda"]
    if unknown := set(names) - set(WORK):
        raise UserError(f"--work={args.work}: there are {', '.join(WORK)}, not {', '.join(unknown)}")
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    common.keep_memory()

    limits = ceilings(args.device, args.dtype)
    where = torch.cuda.get_device_name() if args.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{where}, torch {torch.__version__}, {name_of(args.dtype)}: product {limits['matmul'] / 1e9:,.0f} GFLOP/s, "
          f"copy {limits['copy'] / 1e9:.1f} GB/s, one small operation {limits['launch'] * 1e6:.1f} µs\n")
    found = {"where": where, "torch": torch.__version__, "dtype": name_of(args.dtype), "ceilings": limits, "work": {}}
    for name in names:
        title, unit, make = WORK[name]
        contenders = list(make(args))
        if args.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        rates = measure(contenders, args.rounds, args.seconds)
        ours = rates[contenders[0][0]][0]
        print(title)
        for who, once, needs in contenders:
            rate, low, high = rates[who]
            line = f"  {who:24s}{rate:12,.1f} {unit}/s ({low:,.1f} to {high:,.1f})"
            share, (c, batch) = None, SHAPES[name if name in SHAPES else "tiny"]
            if needs and name.startswith("sample"):
                share = needs / (64 * 64) * rate / (limits["copy"])
                line += f", {share:.0%} of the copying rate"
            elif needs:
                share = needs / (32 if name == "reward" else batch * c.block_size) * rate / limits["matmul"]
                line += f", {share:.0%} of the product's rate"
            if who.split(",")[0] != "ours":
                line += f", ours is {ours / rate:.2f} × as fast"
            if hasattr(once, "phases"):
                line += ", seconds: " + ", ".join(f"{k} {v:.3f}" for k, v in once.phases.items())
            print(line, flush=True)
            found["work"].setdefault(name, {})[who] = {"rate": rate, "low": low, "high": high, "unit": unit + "/s", "share": share, "ratio": ours / rate, **getattr(once, "phases", {})}
        if args.device.type == "cuda":
            found["work"][name]["peak_bytes"] = torch.cuda.max_memory_allocated()
        del contenders
        gc.collect()
    if args.device.type == "cpu":
        import resource
        found["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(f"peak memory of this process, the peers' included: {found['peak_bytes'] / 2 ** 20:,.0f} MiB")
    os.makedirs(os.path.dirname(args.out) or ".", exist_ok=True)
    with common.replacing(args.out) as f:
        json.dump(found, f, indent=1)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    common.entry(main)

"""What is known of a data folder before the first stage starts: whether its lines fit the block."""
import os

from data import UserError, read_json, read_jsonl, turns_of
from model import SIZES
from plumbing.checkpoint import load


def check_room(path, rows, vocab, room):
    """Raise UserError if a prompt has more than `room` tokens: the block, less --max_new_tokens."""
    longest = max(len(vocab.prompt(row["prompt"])) for row in rows)
    if longest > room:
        raise UserError(f"{path}: the longest prompt has {longest} tokens, there is room for {room}"
                        f": shorten it, lower --max_new_tokens or take a larger --size")


def block_of(run, parents):
    """The longest sequence of the networks that this run has, or will have."""
    config = run.config
    if config.base:
        return run.parent("pretrain")["model_config"]["block_size"]
    for stage in parents if config.fresh != "all" else ():
        path = os.path.join(config.out, stage + ".pt")
        if os.path.exists(path):
            return load(path, stage)["model_config"]["block_size"]
    return SIZES[config.size][3]


def check_inputs(run, parents):
    """Raise UserError for what this stage, or one that is made before it, would find later."""
    def path_of(name):
        return os.path.join(run.folder, name)

    def is_to_come(name):
        there = os.path.exists(os.path.join(run.config.out, name + ".pt"))
        return name in parents and (run.config.fresh == "all" or not there)

    to_come = [p for p in parents if is_to_come(p)]
    samples = "sft" in parents
    demonstrated = "sft" in to_come or run.stage == "sft" and parents
    if not (to_come or samples or demonstrated):
        return
    block, n_new = block_of(run, parents), run.config.max_new_tokens
    demonstrations, prompts = path_of("demonstrations.jsonl"), path_of("prompts.jsonl")
    has_judge = os.path.exists(path_of("judge.py"))
    compares = run.stage.startswith("reward")
    sources = getattr(run.config, "sources", "") or sources_of(path_of("settings.json"))

    if not compares and samples:
        split = "heldout" if run.stage == "evaluate" else None
        check_room(prompts, read_jsonl(prompts, ["prompt"], split), run.vocab, block - n_new)
    if demonstrated:
        check_demonstrations(demonstrations, run, block)
    if (compares or any(p.startswith("reward") for p in to_come)) and sources != "file":
        path = prompts if has_judge else demonstrations
        check_room(path, read_jsonl(path, ["prompt"]), run.vocab, block - n_new)
    if to_come and not has_judge and os.path.exists(path_of("comparisons.jsonl")):
        read_jsonl(path_of("comparisons.jsonl"), ["prompt", "responses|chosen"])


def sources_of(path):
    """What the data folder's settings.json says of reward.py's --sources."""
    return read_json(path).get("reward", {}).get("sources", "auto") if os.path.exists(path) else ""


def check_demonstrations(path, run, block):
    """Raise UserError if a demonstration is longer than the block."""
    rows, vocab = read_jsonl(path, ["prompt", "response"], "train"), run.vocab
    rows = rows[:getattr(run.config, "demonstrations", 0) or len(rows)]
    rows += [r for r in read_jsonl(path, ["prompt", "response"]) if r.get("split") == "heldout"]
    length, prompt = max((len(vocab.prompt(r["prompt"]) + vocab.response(r["response"])),
                          turns_of(r["prompt"])[-1]["content"]) for r in rows)
    if length > block:
        raise UserError(f"{path}: a demonstration has {length} tokens, the block {block}: shorten "
                        f"it or take a larger --size (prompt: {prompt[:60]})")

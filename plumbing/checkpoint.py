"""Checkpoint files: written whole or not at all, checked when they are read."""
import hashlib
import os
import re
import zipfile

import torch

from data import UserError, replacing
from model import GPT, GPTConfig, ScalarGPT
from plumbing.device import pick_device, pick_dtype
from plumbing.stages import POLICY, STAGES, script_of

STAGE = re.compile(POLICY.pattern + r"|reward(-eval|-\d+)?")


def save(path, content):
    with replacing(path, "wb") as f:
        torch.save(content, f)


def load(path, stage=None):
    """The content of a checkpoint file, on the CPU.

    Raises UserError if it is missing, damaged, no checkpoint, or another stage's than asked for.
    """
    if not os.path.exists(path):
        known = stage and stage.split("-")[0] in STAGES
        makes = f"; python {' '.join(script_of(stage))} makes it" if known else ""
        raise UserError(f"{path} is missing{makes}")
    last_key = "step" if path.endswith(".resume.pt") else "hash"
    try:
        if zipfile.ZipFile(path).testzip():     # torch.load ignores the checksums
            raise ValueError
        content = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("stage", "model", "config", "vocab", "parents", last_key):
            content[key]
    except Exception as e:
        raise UserError(f"{path} can't be read as a checkpoint of this project "
                        f"({type(e).__name__}): it may be cut off or damaged; delete it and run "
                        f"its stage again") from None
    if not STAGE.fullmatch(content["stage"]) or content["stage"] != (stage or content["stage"]):
        raise UserError(f"{path} is a checkpoint of {content['stage']}, not of "
                        f"{stage or 'one of ' + ', '.join(STAGES)}")
    return content


def model_from(checkpoint, device="cpu", dtype=torch.float32):
    """The network of a checkpoint, in eval mode: a ScalarGPT from a reward model's, else a GPT."""
    cls = ScalarGPT if checkpoint["stage"].startswith("reward") else GPT
    model = cls(GPTConfig(**checkpoint["model_config"]))
    model.load_state_dict(checkpoint["model"])
    model.compute_dtype = dtype
    return model.to(device).eval()


def load_network(config, stage, vocab):
    """A stage's network in --out, and its checkpoint. UserError: of another vocabulary."""
    checkpoint = load(os.path.join(config.out, stage + ".pt"), stage)
    if checkpoint["vocab"] != vocab.hash:
        raise UserError(f"{config.out}/{stage}.pt was made with another vocabulary than that of "
                        f"{config.data}; give its --data")
    device = pick_device(config.device)
    return model_from(checkpoint, device, pick_dtype(config.dtype, device)), checkpoint


def digest(state):
    """A hash of a network's weights. A checkpoint names its parents by it."""
    h = hashlib.sha256()
    for name in sorted(state):
        h.update(name.encode() + state[name].detach().cpu().contiguous().numpy().tobytes())
    return h.hexdigest()[:16]

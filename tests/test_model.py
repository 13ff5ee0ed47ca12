"""The networks, compared with transformers, with formulas, and on tokens that must not matter."""

import http.server
import json
import math
import os
import threading
import types

import numpy as np
import pytest
import torch

import sampling
from data import UserError
from data.text import Text, rows_that_fit
from model import (
    GPT,
    SIZES,
    Block,
    GPTConfig,
    ScalarGPT,
    attention,
    config_for,
    plain_attention,
)
from plumbing.command_line import Common
from plumbing.run import Run
from sampling import Cache, sample, to_additive


def small(vocab_size=50, block_size=64, n_layer=2, n_head=2, n_embd=32, seed=0, **more):
    """A GPT with large weights: logits differ by several nats, and a mistake is seen at once."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(block_size, vocab_size, n_layer, n_head, n_embd, **more)).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


# ---- the forward pass ----


@pytest.mark.parametrize("T, S", [(6, 6), (1, 1), (1, 6), (3, 6)])
def test_fused_attention_equals_the_formula(T, S):
    q, k, v = torch.randn(2, 4, T, 8), torch.randn(2, 4, S, 8), torch.randn(2, 4, S, 8)
    plain = plain_attention(q, k, v)
    for b, h, t in [(0, 0, 0), (1, 3, T - 1)]:  # the formula once more, for one query
        keys = k[b, h, : S - T + t + 1]
        weights = (keys @ q[b, h, t] / math.sqrt(8)).softmax(0)
        assert torch.allclose(plain[b, h, t], weights @ v[b, h, : S - T + t + 1], atol=1e-6), (
            "plain_attention is not softmax(q kᵀ / √d) v over the past"
        )
    assert torch.allclose(attention(q, k, v), plain, atol=1e-5), (
        "the fused kernel differs: with more keys than queries `is_causal` aligns "
        "the first query with the first key, not the last with the last"
    )


def test_fused_attention_equals_the_formula_under_a_mask():
    q, k, v = (torch.randn(2, 4, 6, 8) for _ in range(3))
    seen = (torch.rand(2, 1, 6, 6) < 0.5) | torch.eye(6, dtype=torch.bool)
    mask = to_additive(seen, torch.float32)
    assert (mask[seen] == 0).all() and (mask[~seen] == -math.inf).all()
    assert torch.allclose(attention(q, k, v, mask), plain_attention(q, k, v, mask), atol=1e-5)


def test_the_fused_kernel_is_used_where_it_is_right_and_faster(monkeypatch):
    monkeypatch.setattr("model.F.scaled_dot_product_attention", lambda *a, **k: "fused")

    def fused(T, S, dtype=torch.float32, mask=None):
        q, k, v = (torch.ones(1, 1, n, 4, dtype=dtype) for n in (T, S, S))
        return isinstance(attention(q, k, v, mask), str)

    assert fused(6, 6) and fused(3, 6, mask=torch.zeros(3, 6)), "training does without the kernel"
    assert not fused(1, 1) and not fused(1, 6, mask=torch.zeros(1, 6)), "one query is faster plain"
    assert not fused(6, 6, torch.bfloat16), "its backward pass is slow in bf16 on a CPU"


def test_what_is_not_wanted_is_left_out_and_changes_nothing():
    model, tokens = small(), torch.randint(50, (3, 12))
    critic = ScalarGPT(model.config)
    torch.nn.init.normal_(critic.head.weight)
    for share in (0, 0.3, 1):
        wanted = torch.rand(tokens.shape) < share
        assert torch.allclose(model(tokens, wanted), model(tokens)[wanted], atol=1e-5)
        values = critic(tokens).where(wanted, torch.zeros(()))
        assert torch.allclose(critic(tokens, wanted), values, atol=1e-5)


def test_no_token_sees_the_future():
    model, tokens = small(), torch.randint(50, (1, 12))
    before = model(tokens)
    for t in range(12):
        changed = tokens.clone()
        changed[0, t] = (tokens[0, t] + 1) % 50
        after = model(changed)
        assert torch.allclose(after[0, :t], before[0, :t], atol=1e-5), (
            f"the logits before position {t} know the token at {t}"
        )
        assert (after[0, t] - before[0, t]).abs().max() > 1e-2, (
            f"the logits at {t} don't see the token at {t}"
        )


def test_right_padding_needs_no_mask():
    model, row = small(), torch.randint(50, (1, 9))
    padded = torch.cat([row, torch.full((1, 7), 49)], 1)
    assert torch.allclose(model(padded)[:, :9], model(row), atol=1e-5), (
        "PADs on the right reach a real token"
    )


def count(size, vocab_size):
    with torch.device("meta"):  # shapes without memory
        model = GPT(config_for(size, vocab_size))
    padding = (len(model.wte.weight) - vocab_size) * model.config.n_embd
    return model.n_params() - padding


@pytest.mark.parametrize(
    "size, n",
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_sizes_have_the_published_number_of_parameters(size, n):
    assert count(size, 50257) == n


def test_parameters_without_embeddings_are_those_of_blocks_and_last_norm():
    model = GPT(GPTConfig(64, 70, n_layer=3, n_embd=32))
    rest = [*model.blocks.parameters(), *model.ln_f.parameters()]
    assert model.n_params(embeddings=False) == sum(p.numel() for p in rest)
    assert model.n_params() == sum(p.numel() for p in model.parameters())


def test_weights_begin_as_gpt2s_do_and_wider_ones_smaller(monkeypatch):
    # every weight is set to the standard deviation that it would be drawn with
    monkeypatch.setattr(torch.nn.init, "normal_", lambda w, std=1.0: w.data.fill_(std))
    for width, std in ((48, 0.08), (12, 0.16)):  # 0.02 √(768 / width)
        model = GPT(GPTConfig(16, 64, n_layer=8, n_head=1, n_embd=width))
        for name, p in model.named_parameters():
            expected = 0.0 if name.endswith("bias") else 1.0 if "ln_" in name else std
            if name.endswith("_proj.weight"):
                expected /= 4  # √(2 × 8 layers)
            assert torch.allclose(p, torch.tensor(expected)), f"{name} starts otherwise"


@pytest.mark.parametrize("size", SIZES)
def test_every_size_can_be_built(size):
    layers, heads, width, block = SIZES[size]
    assert width % heads == 0
    # the matrices have 12 C² parameters a layer; biases and norms add little
    matrices = 12 * layers * width**2 + (64 + block) * width
    assert abs(count(size, 64) - matrices) < 14 * layers * width + 2 * width + 1


def test_a_sequence_longer_than_the_block_is_refused():
    with pytest.raises(ValueError, match="65 tokens.*64"):
        small(block_size=64)(torch.zeros(1, 65, dtype=torch.int64))


def test_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="n_embd=30.*n_head=4"):
        GPTConfig(n_embd=30, n_head=4)


def test_dropout_works_in_training_and_only_there():
    model, tokens = small(dropout=0.5), torch.randint(50, (1, 8))
    assert torch.equal(model(tokens), model(tokens)), "dropout is on in eval mode"
    model.train()
    assert not torch.allclose(model(tokens), model(tokens)), "dropout does nothing in training"


BOTH = (GPT.generate, sampling.generate)  # the plain way and the fast way

# ---- a vocabulary that is not a multiple of 64 ----


@pytest.mark.parametrize("size", [70, 50257 + 3])  # the second: GPT-2's, with our special tokens
def test_ids_beyond_the_vocabulary_have_no_logits_and_are_never_sampled(size):
    model = small(vocab_size=size)
    rows = len(model.wte.weight)
    assert rows > size, "this test is about an embedding with padded rows"
    assert rows % 64 == 0 and rows - size < 64, "the next multiple of 64 is the fast one"
    model.ln_f.weight.data.zero_()
    model.ln_f.bias.data.fill_(1.0)
    # the last state is all ones for any tokens, so these rows would win
    model.wte.weight.data[size:] = 10.0
    logits = model(torch.randint(size, (4, 10)))
    assert logits.shape == (4, 10, size), "logits of padded rows take part in the softmax"
    for generate in BOTH:
        responses = generate(model, [[1, 2], [3]] * 4, 5)
        assert max(map(max, responses)) < size, "an id that no token has was sampled"


# ---- GPT-2's weights, against Hugging Face's implementation ----


def hf_checkpoint(folder, kind="safetensors", vocab=97, positions=40, layers=2, heads=2, width=32):
    """A small random GPT-2 by transformers, saved as they save it, and as they used to (.bin)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(layers * 100 + width)
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocab, n_positions=positions, n_layer=layers, n_head=heads, n_embd=width
        )
    ).eval()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.3)
    theirs.save_pretrained(folder)
    if kind == "bin":
        torch.save(theirs.state_dict(), folder / "pytorch_model.bin")
        os.remove(folder / "model.safetensors")
    return theirs


@pytest.mark.parametrize(
    "kind, vocab, positions, layers, heads, width",
    [
        ("safetensors", 97, 40, 2, 2, 32),
        ("safetensors", 128, 24, 1, 4, 64),
        ("bin", 65, 48, 3, 1, 48),
        ("bin", 200, 33, 2, 3, 24),
    ],
)
@torch.no_grad()
def test_gpt2_weights_give_the_logits_of_transformers(
    tmp_path, kind, vocab, positions, layers, heads, width
):
    theirs = hf_checkpoint(tmp_path, kind, vocab, positions, layers, heads, width)
    ours = GPT.from_pretrained(str(tmp_path)).eval()
    tokens = torch.randint(vocab, (3, positions))
    want, got = theirs(tokens).logits, ours(tokens)
    assert got.shape == want.shape, "the vocabulary has another size"
    assert want.std() > 0.3, "these weights make too flat a distribution to see a mistake"
    assert (got - want).abs().max() < 2e-4, (
        "matrices not transposed? heads split otherwise? another GELU or LayerNorm epsilon?"
    )

    prompt = tokens[:1, :5]
    for _ in range(12):
        prompt = torch.cat([prompt, theirs(prompt).logits[:, -1:].argmax(-1)], 1)
    assert (
        ours.generate([tokens[0, :5].tolist()], 12, temperature=0)[0] == prompt[0, 5:].tolist()
    ), "greedy tokens differ from transformers'"


def same(a, b, vocab):
    """Equal weights, but for the rows that pad the embedding."""
    a, b = ({**state, "wte.weight": state["wte.weight"][:vocab]} for state in (a, b))
    return all(torch.equal(v, b[k]) for k, v in a.items() if k in b)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_weights_in_several_files_are_put_together(tmp_path, kind):
    theirs = hf_checkpoint(tmp_path, "bin")
    whole = GPT.from_pretrained(str(tmp_path)).state_dict()
    weights = {
        k: v.contiguous().clone() for k, v in theirs.state_dict().items() if k != "lm_head.weight"
    }
    names = list(weights)
    name = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}[kind]
    os.remove(tmp_path / "pytorch_model.bin")
    shards = {f"part-{i}.{kind}": names[i::3] for i in range(3)}
    for shard, part in shards.items():
        from safetensors.torch import save_file

        (save_file if kind == "safetensors" else torch.save)(
            {n: weights[n] for n in part}, tmp_path / shard
        )
    weight_map = {n: shard for shard, part in shards.items() for n in part}
    (tmp_path / (name + ".index.json")).write_text(json.dumps({"weight_map": weight_map}))
    assert same(GPT.from_pretrained(str(tmp_path)).state_dict(), whole, 97)
    os.remove(tmp_path / f"part-1.{kind}")
    with pytest.raises(FileNotFoundError, match="part-1"):
        GPT.from_pretrained(str(tmp_path))
    (tmp_path / f"part-1.{kind}").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="part-1.*can't be read"):
        GPT.from_pretrained(str(tmp_path))


@pytest.mark.parametrize(
    "vocab, positions, layers, heads, width, bias, gelu",
    [
        (97, 40, 2, 2, 32, True, "tanh"),
        (128, 24, 1, 4, 64, True, "none"),
        (65, 48, 3, 1, 48, False, "tanh"),
    ],
)
@torch.no_grad()
def test_what_is_saved_for_others_is_the_same_model(
    tmp_path, vocab, positions, layers, heads, width, bias, gelu
):
    from transformers import GPT2LMHeadModel

    ours = GPT(GPTConfig(positions, vocab, layers, heads, width, bias=bias, gelu=gelu)).eval()
    for p in ours.parameters():
        torch.nn.init.normal_(p, std=0.3)
    ours.save_pretrained(str(tmp_path))
    again = GPT.from_pretrained(str(tmp_path))
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    assert same(again.state_dict(), ours.state_dict(), vocab), "the round trip changes a weight"
    tokens = torch.randint(vocab, (3, positions))
    for logits in (theirs(tokens).logits, again.eval()(tokens)):
        assert (logits - ours(tokens)).abs().max() < 2e-4
    assert not list(tmp_path.glob("*.tmp"))


def test_a_name_is_downloaded_once(tmp_path, monkeypatch):
    hf_checkpoint(tmp_path / "hub" / "gpt2-medium")
    asked = []

    class Hub(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path / "hub"))

        def log_message(self, *args):
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("data.gpt2.HUB", f"http://127.0.0.1:{server.server_port}" + "/{}/{}")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    models = [GPT.from_pretrained("gpt2-medium") for _ in "ab"]
    server.shutdown()
    server.server_close()
    assert same(models[0].state_dict(), models[1].state_dict(), 97)
    assert sorted(asked) == ["/gpt2-medium/config.json", "/gpt2-medium/model.safetensors"]
    with pytest.raises(FileNotFoundError, match="can't be downloaded.*without a network"):
        GPT.from_pretrained("gpt2-large")
    assert not [f for f in (tmp_path / "cache" / "nanoinstructgpt" / "gpt2-large").iterdir()], (
        "a download that failed left something behind"
    )
    with pytest.raises(FileNotFoundError, match="neither a folder nor one of gpt2, gpt2-medium"):
        GPT.from_pretrained("gpt3")


def test_new_rows_for_special_tokens_leave_the_old_ones_alone(tmp_path):
    theirs = hf_checkpoint(tmp_path, vocab=97)
    model = GPT.from_pretrained(str(tmp_path), vocab_size=100)
    assert model.config.vocab_size == 100
    assert torch.equal(model.wte.weight[:97], theirs.transformer.wte.weight)


def resave(folder, change):
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    change(weights)
    torch.save(weights, folder / "pytorch_model.bin")


def test_a_missing_weight_is_named(tmp_path):
    hf_checkpoint(tmp_path, "bin")
    resave(tmp_path, lambda w: w.pop("transformer.h.1.mlp.c_fc.weight"))
    with pytest.raises(ValueError, match=r"h\.1\.mlp\.c_fc\.weight"):
        GPT.from_pretrained(str(tmp_path))


@pytest.mark.parametrize(
    "name, shape",
    [
        ("transformer.h.0.attn.c_attn.weight", (32, 64)),
        ("transformer.wpe.weight", (39, 32)),
        ("transformer.wte.weight", (97, 31)),
        ("transformer.wte.weight", (300, 32)),
        ("transformer.wte.weight", (90, 32)),
    ],
)
def test_a_weight_of_another_shape_is_named(tmp_path, name, shape):
    hf_checkpoint(tmp_path, "bin")
    resave(tmp_path, lambda w: w.update({name: torch.zeros(shape)}))
    with pytest.raises(ValueError, match=name.removeprefix("transformer.").replace(".", r"\.")):
        GPT.from_pretrained(str(tmp_path))
        pytest.fail(
            f"{name} of shape {shape} was taken where config.json asks for another: "
            "rows that are missing stay random"
        )


def test_a_folder_without_config_or_weights_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json"):
        GPT.from_pretrained(str(tmp_path))
    hf_checkpoint(tmp_path)
    os.remove(tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError, match="model.safetensors"):
        GPT.from_pretrained(str(tmp_path))


@pytest.mark.parametrize(
    "change, says",
    [
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06"),
        ({"n_inner": 64}, "n_inner is 64"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads is"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is"),
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"n_positions": None}, "n_positions must be a whole number"),
        ({"n_embd": "32"}, "n_embd must be a whole number"),
        ({"n_head": 3}, "n_embd 32 is not a multiple of n_head 3"),
        ("[1]", r"model_type is \[1\]"),
        ('{"n_layer": 2,', "not valid JSON"),
    ],
)
def test_a_config_that_means_another_model_is_refused_by_name(tmp_path, change, says):
    hf_checkpoint(tmp_path)
    path = tmp_path / "config.json"
    if isinstance(change, dict):
        change = json.dumps(json.loads(path.read_text()) | change)
    path.write_text(change)
    with pytest.raises((ValueError, UserError), match=rf"config\.json.*{says}"):
        GPT.from_pretrained(str(tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        {"reorder_and_upcast_attn": True},
        {"activation_function": "gelu_pytorch_tanh"},
        {"activation_function": "gelu"},
        {"n_inner": 4 * 32},
    ],
)
@torch.no_grad()
def test_a_config_in_other_words_gives_the_logits_of_transformers(tmp_path, change):
    hf_checkpoint(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    from transformers import GPT2LMHeadModel

    theirs = GPT2LMHeadModel.from_pretrained(str(tmp_path)).eval()
    tokens = torch.randint(theirs.config.vocab_size, (2, 20))
    got = GPT.from_pretrained(str(tmp_path)).eval()(tokens)
    assert (got - theirs(tokens).logits).abs().max() < 2e-4


@torch.no_grad()
def test_an_exported_model_ends_its_answers_in_transformers(tmp_path, vocab):
    from transformers import GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT(GPTConfig(64, vocab.size, 1, 2, 32)).eval()
    prompt = vocab.prompt("Hi")
    model.wte.weight[vocab.eos] = model.hidden(torch.tensor([prompt]))[0, -1]  # eos comes first
    model.save_pretrained(str(tmp_path), vocab)
    theirs = GPT2LMHeadModel.from_pretrained(str(tmp_path)).eval()
    ids = (theirs.config.bos_token_id, theirs.config.eos_token_id, theirs.config.pad_token_id)
    assert ids == (vocab.eos, vocab.eos, vocab.pad)
    said = theirs.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)
    assert said[0, len(prompt) :].tolist() == [vocab.eos], "it goes on after its answer's end"

    model.save_pretrained(str(tmp_path))
    assert GPT2LMHeadModel.from_pretrained(str(tmp_path)).config.eos_token_id is None


# ---- generation: the cache, the padding and the dropping of finished rows may not show ----

PROMPTS = [
    [1],
    [2, 3, 4, 5, 6, 7, 8],
    [9, 10],
    [3] * 15,
    [11, 12, 13],
    [1, 1],
    [14],
    [5, 4, 3, 2, 1],
]


@torch.no_grad()
def slow_generate(model, prompts, n, temperature, eos, seed, **keep):
    """One row at a time, without cache or padding: the whole sequence again for every token."""
    rng = torch.Generator().manual_seed(seed)
    noise = torch.rand(len(prompts), n, generator=rng)  # a row for each prompt
    rows = []
    for prompt, row_noise in zip(prompts, noise):
        new = []
        while len(new) < n and (not new or new[-1] != eos):
            logits = model(torch.tensor([prompt + new]))[:, -1]
            new += sample(logits, row_noise[len(new), None], temperature, **keep).tolist()
        rows.append(new)
    return rows


def fast_generate(model, prompts, n, temperature, eos, seed, generate=sampling.generate, **keep):
    rng = torch.Generator().manual_seed(seed)
    return generate(model, prompts, n, temperature, eos=eos, generator=rng, **keep)


@pytest.mark.parametrize(
    "temperature, keep", [(0, {}), (1.0, {}), (0.7, {}), (1.5, {"top_k": 5}), (1.0, {"top_p": 0.8})]
)
def test_cached_generation_equals_the_full_forward(temperature, keep):
    model = small(vocab_size=15, n_layer=3)
    slow, fast = (
        g(model, PROMPTS, 30, temperature, 0, 7, **keep) for g in (slow_generate, fast_generate)
    )
    for prompt, a, b in zip(PROMPTS, slow, fast):
        assert a == b, (
            f"for a prompt of {len(prompt)} tokens (others have up to 15): "
            "wrong positions of ragged prompts, or a cache with a hole"
        )


@pytest.mark.parametrize(
    "temperature, keep",
    [
        (0, {}),
        (1.0, {}),
        (0.7, {"top_k": 5}),
        (1.5, {"top_p": 0.8}),
        (1.0, {"top_k": 6, "top_p": 0.9}),
    ],
)
def test_plain_and_fast_generation_give_the_same_tokens(temperature, keep):
    model = small(vocab_size=15, n_layer=3)

    def both(eos):
        plain, fast = (
            fast_generate(model, PROMPTS, 25, temperature, eos, 7, generate, **keep)
            for generate in BOTH
        )
        assert plain == fast, "GPT.generate is not what the stages sample with"
        return plain

    whole = both(eos=None)
    ended = both(eos=whole[1][4])  # a token that ends some of the answers
    assert {len(row) for row in whole} == {25} and len(ended[1]) <= 5


@pytest.mark.parametrize("temperature, keep", [(0, {}), (0.7, {"top_k": 5}), (1.5, {"top_p": 0.8})])
def test_plain_generation_follows_its_definition(temperature, keep):
    model = small(vocab_size=15, n_layer=3)
    want = slow_generate(model, PROMPTS, 12, temperature, 0, 7, **keep)
    got = fast_generate(model, PROMPTS, 12, temperature, 0, 7, GPT.generate, **keep)
    for prompt, a, b in zip(PROMPTS, got, want):
        assert len(a) == len(b), (
            f"a prompt of {len(prompt)} tokens gets {len(a)} new tokens, not {len(b)}: "
            "the answer is the new tokens alone, up to and including EOS"
        )
        assert a == b, "a token is not drawn from the logits of the last position, by its own noise"


def test_plain_generation_is_without_dropout_and_leaves_the_mode_as_it_was():
    model = small(dropout=0.5)
    want = slow_generate(model.eval(), PROMPTS, 10, 0, None, 1)
    for mode in (True, False):
        got = fast_generate(model.train(mode), PROMPTS, 10, 0, None, 1, GPT.generate)
        assert got == want, "dropout is on while sampling"
        assert model.training == mode, "generate does not leave the model in the mode it was in"


def test_plain_generation_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="prompt 1 has 11 tokens"):
        GPT.generate(small(block_size=16), [[1], [1] * 11], 6)


def test_rows_go_on_correctly_after_others_have_ended():
    # many rows over few ids end at many different steps, and some run to the last
    model = small(vocab_size=12)
    prompts = [PROMPTS[i % 8] for i in range(24)]
    slow, fast = (g(model, prompts, 40, 1.2, 0, 5) for g in (slow_generate, fast_generate))
    ends = sorted({len(row) for row in slow})
    assert len(ends) > 6 and ends[0] <= 4 and len([r for r in slow if len(r) > 20]) >= 1, (
        f"this test needs rows of many lengths, not {ends}"
    )
    assert fast == slow, "a row changes when others end and are dropped"


def test_an_answer_ends_with_its_first_eos():
    model = small(vocab_size=8)
    for row in fast_generate(model, [[1, 2], [3], [4, 5, 6]] * 10, 50, 1.0, 0, 1):
        assert 0 not in row[:-1], "tokens sampled after EOS were kept"
        assert row[-1] == 0 or len(row) == 50, "an answer without EOS is shorter than allowed"


def test_a_row_does_not_depend_on_the_rows_beside_it():
    model = small()
    alone = fast_generate(model, PROMPTS[:1], 20, 1.0, None, 3)
    for others in (PROMPTS[1:2], PROMPTS[3:4], PROMPTS[1:]):
        assert fast_generate(model, PROMPTS[:1] + others, 20, 1.0, None, 3)[0] == alone[0], (
            "the answer changes with the number, length or padding of other prompts"
        )
    longer, shorter = ([[7] * n, *PROMPTS[1:]] for n in (44, 1))
    assert (
        fast_generate(model, longer, 20, 1.0, None, 3)[1:]
        == fast_generate(model, shorter, 20, 1.0, None, 3)[1:]
    ), "another row's length moves this one's positions"


def test_more_prompts_leave_the_first_answers_as_they_were():
    model = small()
    every = fast_generate(model, PROMPTS, 12, 1.0, None, 9)
    for n in (1, 3, 7):
        assert fast_generate(model, PROMPTS[:n], 12, 1.0, None, 9) == every[:n], (
            "a row's noise depends on how many rows there are"
        )


def test_answers_are_the_same_when_their_caches_do_not_fit_at_once(monkeypatch):
    m = small()
    together = fast_generate(m, PROMPTS, 12, 1.0, 0, 9)
    asked, decode = [], sampling.decode

    def counted(model, prompts, *more):
        asked.append(len(prompts))
        return decode(model, prompts, *more)

    monkeypatch.setattr(sampling, "decode", counted)
    size = 3 * 8 * m.config.n_layer * m.config.n_embd * (15 + 12)
    monkeypatch.setattr(sampling, "CACHE_BYTES", size)
    assert fast_generate(m, PROMPTS, 12, 1.0, 0, 9) == together, (
        "a part's rows take another part's noise, or are lost"
    )
    assert asked == [3, 3, 2], "three rows of 15 + 12 tokens fit"


def test_a_large_vocabulary_is_measured_a_few_rows_at_a_time(monkeypatch, tmp_path):
    m, asked = small(), []
    forward = m.forward

    def counted(x):
        asked.append((len(x), torch.is_grad_enabled()))
        return forward(x)

    monkeypatch.setattr(m, "forward", counted)
    tokens = np.arange(8 * 64, dtype=np.uint16) % 49
    tokens[63::64] = 49  # EOS: eight documents
    tokens.tofile(tmp_path / "val.bin")
    vocab = types.SimpleNamespace(eos=49, size=50)
    text = Text(str(tmp_path / "val.bin"), vocab, 64, "cpu")
    together = text.loss(m)
    monkeypatch.setattr("data.text.rows_that_fit", lambda most, T, config: 3)
    assert text.loss(m) == pytest.approx(together, rel=1e-5)
    assert asked == [(n, False) for n in (8, 3, 3, 2)], (
        "all windows' logits at once, or a graph that keeps them, need more memory than there is"
    )
    assert rows_that_fit(32, 1024, config_for("gpt2", 50260)) == 1, (
        "32 rows of logits would take 6 GB, and three times that with their loss"
    )
    assert rows_that_fit(32, 128, config_for("tiny", 1024)) == 32


def test_a_prompt_given_several_times_is_answered_as_if_each_were_alone():
    model, noise = small(), torch.rand(6, 12)
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[0], PROMPTS[2], PROMPTS[1]]
    together = sampling.generate(model, prompts, 12, noise=noise)
    alone = []
    for prompt, row in zip(prompts, noise):
        alone += sampling.generate(model, [prompt], 12, noise=row[None])
    assert together == alone, "copies of a prompt share its prefill, and nothing else"
    assert together[0] != together[2], "the same prompt gets the same noise, and K answers are one"


def test_the_same_generator_gives_the_same_answers_and_another_gives_others():
    model = small()
    one, again, two = (fast_generate(model, PROMPTS, 12, 1.0, None, seed) for seed in (1, 1, 2))
    assert one == again and one != two


def test_a_recorded_step_gives_the_tokens_of_one_that_is_not(monkeypatch):
    """On a GPU one step is recorded for all t: t is a tensor, and no row is dropped.

    Here there is no GPU, and the step is run again where it would be replayed.
    """
    model = small(vocab_size=12)
    prompts = [PROMPTS[i % 8] for i in range(24)]
    usual = fast_generate(model, prompts, 40, 1.2, 0, 5)
    taken = []
    monkeypatch.setattr(sampling, "RECORDED", ("cpu",))
    monkeypatch.setattr(sampling, "record_graph", lambda step, state: taken.append(step) or step)
    assert fast_generate(model, prompts, 40, 1.2, 0, 5) == usual, (
        "the recorded step writes to, sees or draws from another column"
    )
    rng = torch.Generator().manual_seed(5)
    streamed = list(sampling.stream(model, prompts, 40, 1.2, eos=0, generator=rng))
    counts = [sum(i in rows for rows, _ in streamed) for i in range(24)]
    assert taken and counts == [len(row) for row in usual], (
        "a row goes on after its end, or a step yields none"
    )
    assert len(fast_generate(model, PROMPTS[:1], 1, 1.0, None, 5)[0]) == 1, (
        "a single token needs no recorded step"
    )


def test_streamed_tokens_are_those_of_generate():
    model, rows = small(vocab_size=12), [[] for _ in PROMPTS]
    rng = torch.Generator().manual_seed(2)
    for i, new in sampling.stream(model, PROMPTS, 20, eos=0, generator=rng):
        assert i, "a step without a token"
        for row, token in zip(i, new):
            rows[row].append(token)
    assert rows == fast_generate(model, PROMPTS, 20, 1.0, 0, 2)


def test_generation_runs_without_dropout_and_leaves_the_mode_as_it_was():
    model = small(dropout=0.5)
    expected = fast_generate(model, PROMPTS, 10, 0, None, 1)
    model.train()
    for generate in BOTH:
        responses = fast_generate(model, PROMPTS, 10, 0, None, 1, generate)
        assert responses == expected, "dropout is on while sampling"
        assert model.training, "generate left the model in eval mode"


def test_generation_that_ends_early_leaves_the_mode_as_it_was():
    model = small().train()
    for _ in sampling.stream(model, PROMPTS, 10):  # a reader that has had enough
        break
    assert model.training, "a stream that is not read to its end leaves the model in eval mode"
    for generate in BOTH:
        with pytest.raises(ValueError):
            generate(model, PROMPTS, 10, top_p=2.0)
        assert model.training, "a wrong argument leaves the model in eval mode"


def test_prompt_and_answer_must_fit_the_block():
    model = small(block_size=16)
    for generate in BOTH:
        assert len(generate(model, [[1] * 10], 6)[0]) == 6, "what just fits must be answered"
        with pytest.raises(ValueError, match="prompt 1 has 11 tokens"):
            generate(model, [[1], [1] * 11], 6)
        with pytest.raises(ValueError, match="prompt 1 is empty"):
            generate(model, [[1], []], 6)


def test_nothing_asked_nothing_answered():
    for generate in BOTH:
        assert generate(small(), [], 5) == [] and generate(small(), [[1], [2]], 0) == [[], []]


# ---- sampling: logits of probabilities .5 .3 .15 .05 ----

LOGITS = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()


def shares(**how):
    """Frequencies of the four tokens over noise spread evenly over [0, 1)."""
    noise = (torch.arange(10_000) + 0.5) / 10_000
    return (sample(LOGITS.expand(10_000, 4), noise, **how).bincount(minlength=4) / 10_000).tolist()


@pytest.mark.parametrize(
    "how, expected",
    [
        ({}, [0.5, 0.3, 0.15, 0.05]),
        ({"temperature": 0}, [1, 0, 0, 0]),
        # p² / Σ p²
        ({"temperature": 0.5}, [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]),
        ({"top_k": 1}, [1, 0, 0, 0]),
        ({"top_k": 2}, [0.625, 0.375, 0, 0]),
        ({"top_k": 4}, [0.5, 0.3, 0.15, 0.05]),
        ({"top_k": 99}, [0.5, 0.3, 0.15, 0.05]),
        ({"top_p": 0.4}, [1, 0, 0, 0]),
        ({"top_p": 0.79}, [0.625, 0.375, 0, 0]),
        ({"top_p": 0.81}, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
        ({"top_p": 1.0}, [0.5, 0.3, 0.15, 0.05]),
        ({"top_k": 2, "top_p": 0.6}, [1, 0, 0, 0]),
    ],
)
def test_sampling_follows_the_distribution_it_says(how, expected):
    got = shares(**how)
    assert max(abs(a - b) for a, b in zip(got, expected)) < 2e-4, (
        f"{how} samples {got}, expected {expected}"
    )


def test_a_token_of_probability_zero_is_never_sampled():
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]])
    for noise in (0.0, 0.49999, 0.5, 1 - 2**-24):  # the largest number that torch.rand gives
        assert sample(logits, torch.tensor([noise])).item() in (1, 3), (
            f"noise {noise} picks a token of probability 0"
        )


@pytest.mark.parametrize("how", [{"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_impossible_top_k_and_top_p_are_refused(how):
    for generate in BOTH:
        with pytest.raises(ValueError, match=next(iter(how))):
            generate(small(), [[1]], 2, **how)


def test_a_negative_temperature_is_refused():
    for generate in BOTH:
        with pytest.raises(ValueError, match="temperature"):
            generate(small(), [[1]], 2, temperature=-1.0)


# ---- the scalar twin ----


def scalar(seed=0):
    gpt = small(seed=seed)
    model = ScalarGPT.from_gpt(gpt).eval()
    torch.nn.init.normal_(model.head.weight)
    return model


@pytest.mark.parametrize("shortest", [1, 3])
def test_score_is_read_at_the_last_real_token(shortest):
    model, lengths = scalar(), torch.tensor([shortest, 4, 9])
    tokens = torch.randint(50, (3, 9))
    everywhere = model(tokens)
    expected = torch.stack([everywhere[0, shortest - 1], everywhere[1, 3], everywhere[2, 8]])
    got = model.score(tokens, lengths)
    assert torch.allclose(got, expected, atol=1e-6), (
        f"the reward model is read at the wrong token: {got.tolist()}, "
        f"by position {everywhere.tolist()}"
    )


def test_score_ignores_pads_and_an_eos_inside_the_prompt():
    model, eos, lengths = scalar(), 40, torch.tensor([5])
    # a chat of two turns: one EOS inside, one at the end
    row = torch.tensor([[1, eos, 2, 3, eos]])
    alone = model.score(row, lengths)
    assert torch.allclose(alone, model(row)[:, 4], atol=1e-6), "read at the EOS inside the prompt"
    for pad in (0, 49, eos):
        padded = torch.cat([row, torch.full((1, 4), pad)], 1)
        assert torch.allclose(model.score(padded, lengths), alone, atol=1e-6), (
            f"PADs of id {pad} change the score: an id is searched for instead of taking the length"
        )


@pytest.mark.parametrize("lengths", [[0, 3], [3, 6], [0, 6]])
def test_a_length_outside_the_row_is_refused(lengths):
    with pytest.raises(ValueError, match="lengths"):
        scalar().score(torch.zeros(2, 5, dtype=torch.int64), torch.tensor(lengths))


def test_head_starts_at_zero():
    fresh = ScalarGPT.from_gpt(small())
    assert fresh(torch.randint(50, (2, 9))).abs().max().item() == 0, (
        "weight and bias of the head must both start at 0"
    )
    fresh(torch.randint(50, (2, 9))).sum().backward()
    assert fresh.head.weight.grad.abs().max() > 0, "a head at zero must still learn"


def test_reward_model_does_not_share_storage_with_the_policy():
    gpt = small()
    before = {name: p.clone() for name, p in gpt.named_parameters()}
    model = ScalarGPT.from_gpt(gpt)
    for name, p in model.named_parameters():
        if name in before:
            assert torch.equal(p, before[name]), f"{name} was not copied from the language model"
    assert set(dict(model.named_parameters())) - set(before) == {"head.weight", "head.bias"}
    for p in model.parameters():
        p.data.add_(1.0)
    for name, p in gpt.named_parameters():
        assert torch.equal(p, before[name]), (
            f"training the reward model changed the policy's {name}"
        )


def test_reward_model_has_its_own_settings():
    gpt = small()
    model = ScalarGPT.from_gpt(gpt)
    model.config.dropout = 0.5
    assert gpt.config.dropout == 0.0, (
        "switching dropout on for one network would switch it on for the other"
    )


def test_shift_is_subtracted_from_every_score():
    model, tokens = scalar(), torch.randint(50, (2, 6))
    before = model.score(tokens, torch.tensor([6, 3]))
    model.shift += 2.5
    assert torch.allclose(model.score(tokens, torch.tensor([6, 3])), before - 2.5, atol=1e-5)
    assert "shift" in model.state_dict(), "the shift would be lost in the checkpoint"


def test_scores_keep_float32_precision_under_bf16_autocast():
    # near 100, bf16 numbers are 0.5 apart: answers that differ by less would tie
    model, tokens = scalar(), torch.randint(50, (64, 8))
    model.head.bias.data.fill_(100.0)
    model.compute_dtype = torch.bfloat16
    scores = model.score(tokens, torch.full((64,), 8))
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, scores.bfloat16().float()), (
        "the head was computed in bf16: scores have three digits"
    )


# ---- compiling ----


def test_a_block_compiles_as_one_graph():
    """A print or .item() in a block would split its graph in two, and make --compile slower."""
    model = small()
    block = torch.compile(model.blocks[0], fullgraph=True, backend="eager")
    x = torch.randn(2, 5, 32)

    def cache():
        cache = Cache(8)
        cache.append(torch.ones(2, 2, 3, 16), torch.ones(2, 2, 3, 16))
        cache.column = slice(3, 4)
        return cache

    with torch.no_grad():
        assert torch.allclose(block(x), model.blocks[0](x), atol=1e-6)
        mask = torch.zeros(2, 1, 1, 8)
        cached = [b(x[:, :1], cache(), mask) for b in (block, model.blocks[0])]
    assert torch.allclose(*cached, atol=1e-6)
    torch.compiler.reset()


def test_compile_needs_a_compiler_and_says_so(monkeypatch):
    run, compiled = Run.__new__(Run), []
    run.device, model = torch.device("cpu"), small()
    monkeypatch.setattr(Block, "compile", lambda self, **how: compiled.append(self))
    monkeypatch.setattr("shutil.which", lambda name: None)
    run.config = Common(compile=False)
    run.compile(model)
    run.config = Common(compile=True)
    with pytest.raises(UserError, match="--compile needs a C\\+\\+ compiler"):
        run.compile(model)
    assert not compiled
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/" + name)
    run.compile(model, model)
    assert len(compiled) == 4, "every block of every network, and only where --compile asks for it"

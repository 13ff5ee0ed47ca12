"""Muon: each matrix moves equally far in all directions, everything else is AdamW's."""

import copy

import pytest
import torch

from conftest import run_little
from model import GPT, config_for
from muon import muon, orthogonal


def little():
    torch.manual_seed(1)
    return GPT(config_for("smoke", 100))


def stepped(model, gradients, lr=1e-2, weight_decay=0.0):
    """Step once with these gradients, {name: gradient}, 0 elsewhere → how each weight moved."""
    before = copy.deepcopy(model.state_dict())
    optimizer = muon(model, lr, weight_decay)
    for name, p in model.named_parameters():
        p.grad = gradients.get(name, torch.zeros_like(p)).clone()
    optimizer.step()
    return {name: (p - before[name]).detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("shape", [(24, 24), (24, 96), (96, 24)])
def test_all_directions_of_a_matrix_are_stepped_alike(shape):
    torch.manual_seed(2)
    u, _ = torch.linalg.qr(torch.randn(shape[0], 24))
    v, _ = torch.linalg.qr(torch.randn(shape[1], 24))
    sizes = torch.logspace(0, -1.3, 24)  # one direction is 20 times another
    found = u.T @ orthogonal((u @ sizes.diag() @ v.T)[None])[0] @ v
    lengths = found.diagonal()
    assert lengths.min() > 0.6 and lengths.max() < 1.25, f"singular values {lengths}"
    assert (found - lengths.diag()).abs().max() < 1e-3, "the directions themselves have turned"


def test_a_step_goes_down_and_is_as_long_as_one_of_adamw():
    name = "blocks.0.mlp_fc.weight"
    model = little()
    gradient = torch.randn_like(model.state_dict()[name])
    step = stepped(model, {name: gradient})[name]
    assert (step * gradient).sum() < 0, "uphill"
    length = step.square().mean().sqrt() / 1e-2
    assert 0.15 < length < 0.25, f"{length} of the learning rate a weight, 0.2 wanted"


def test_queries_keys_and_values_are_maps_of_their_own():
    name = "blocks.1.qkv.weight"
    gradient = torch.randn(3, 32, 32) * torch.tensor([1000.0, 1.0, 0.001])[:, None, None]
    step = stepped(little(), {name: gradient.flatten(0, 1)})[name]
    lengths = step.view(3, 32, 32).norm(dim=(1, 2))
    assert lengths.max() < 1.2 * lengths.min(), f"one drowns the others: {lengths}"


def test_a_matrix_is_stepped_by_one_optimiser_and_by_its_momentum():
    name, model = "blocks.0.attn_proj.weight", little()
    optimizer = muon(model, 1e-2)
    p, first = model.get_parameter(name), torch.randn(32, 32)
    for gradient in (first, torch.zeros(32, 32)):
        for q in model.parameters():
            q.grad = torch.zeros_like(q)
        p.grad, before = gradient.clone(), p.detach().clone()
        optimizer.step()
    # the second gradient is zero: what moves it is the first one, remembered, and no more than that
    wanted = -1e-2 * 0.2 * 32**0.5 * orthogonal(first[None])[0]
    assert torch.allclose(p - before, wanted, atol=1e-5)


def test_embeddings_biases_and_norms_are_stepped_by_adamw():
    names = ["wte.weight", "wpe.weight", "blocks.0.ln_1.weight", "blocks.0.qkv.bias"]
    model = little()
    gradients = {name: torch.randn_like(model.state_dict()[name]) for name in names}
    steps = stepped(model, gradients)
    for name in names:  # Adam's first step is the learning rate, whatever the gradient
        assert torch.allclose(steps[name], -1e-2 * gradients[name].sign(), atol=1e-5), name


def test_what_has_no_gradient_shrinks_if_it_is_a_matrix():
    model = little()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
    for name, step in stepped(model, {}, weight_decay=0.5).items():
        wanted = -0.005 if step.dim() == 2 else 0.0
        assert torch.allclose(step, torch.full_like(step, wanted), atol=1e-6), name


def test_muon_goes_on_bit_for_bit_from_its_state():
    model = little()
    optimizer = muon(model, 1e-2, 0.1)

    def step(model, optimizer, seed):
        torch.manual_seed(seed)
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()

    step(model, optimizer, 1)
    other = copy.deepcopy(model)
    again = muon(other, 1e-2, 0.1)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(model, optimizer, 2)
    step(other, again, 2)
    for (name, p), q in zip(model.named_parameters(), other.parameters()):
        assert torch.equal(p, q), name


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
@pytest.mark.parametrize("flag, other", [("--muon", "adamw"), ("--no-muon", "muon")])
def test_the_flag_says_which_optimiser_steps(little, tmp_path, monkeypatch, stage, flag, other):

    def never(*args):
        raise AssertionError(f"{flag} has made {other}")

    monkeypatch.setattr(f"{stage}.{other}", never)
    base = f"--base={little[1]}/pretrain.pt"
    run_little(stage, little[0], tmp_path / "out", flag, *([base] if stage == "sft" else []))

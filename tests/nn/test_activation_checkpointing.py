"""Activation checkpointing changes memory and time, and nothing else."""

from __future__ import annotations

import copy

import pytest
import torch

from bld.nn.activation_checkpointing import recompute_activations
from bld.priors import KINDS, DenoiserConfig
from bld.priors.transformer import Block
from bld.tokenizer import AutoencoderConfig, BinaryAutoencoder
from bld.tokenizer.layers import RECOMPUTED


def gradients(model, loss, dtype):
    model.zero_grad()
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        loss(model).backward()
    return [p.grad for p in model.parameters()]


def kept_bytes(model, loss) -> int:
    """Of activations kept for the backward pass."""
    seen: dict[int, int] = {}

    def keep(x):
        seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss(model)
    return sum(size for pointer, size in seen.items() if pointer not in own)


def check(model, parts, loss, dtype):
    again = copy.deepcopy(model)
    recompute_activations(again, parts)
    assert again.state_dict().keys() == model.state_dict().keys()
    for plain, recomputed in zip(gradients(model, loss, dtype), gradients(again, loss, dtype), strict=True):
        assert torch.equal(plain, recomputed)
    assert kept_bytes(again, loss) < 0.7 * kept_bytes(model, loss)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("bottleneck", ["bernoulli", "gaussian"])
def test_the_tokenizers_gradients_are_the_same_to_the_bit(bottleneck, dtype):
    torch.manual_seed(0)
    config = AutoencoderConfig(16, 4, 8, (1, 2), 1, 0, (8,), 8, bottleneck=bottleneck)
    model, images = BinaryAutoencoder(config), torch.rand(2, 3, 16, 16) * 2 - 1
    noise = model.draw_noise(2, torch.Generator().manual_seed(0))
    check(model, RECOMPUTED, lambda m: (m(images, noise).reconstruction - images).square().mean(), dtype)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("kind", ["bernoulli", "autoregressive", "absorbing", "gaussian"])
def test_the_priors_gradients_are_the_same_to_the_bit(kind, dtype):
    torch.manual_seed(0)
    model = KINDS[kind].network(DenoiserConfig(2, 3, 4, steps=6, num_classes=2, dim=16, depth=3, heads=2))
    torch.nn.init.normal_(model.head.weight)
    z, t = torch.randint(0, 2, (3, 6, 4)).float(), torch.tensor([1, 3, 6])
    check(model, (Block,), lambda m: m(z, t, torch.tensor([0, 1, 2])).square().mean(), dtype)

"""A step of training and one of sampling trace whole, draws included: torch.compile finds no reason to break off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bld.diffusion import BernoulliDiffusion, NoiseSchedule
from bld.priors import KINDS, Denoiser, DenoiserConfig, Transformer
from bld.seeding import KeyedDraws, keyed_draws
from bld.training.config import load_settings

LABELS, T = torch.tensor([0, 1, 3]), 8
Z = (torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5).to(torch.uint8)
Y = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(1))


def config(**more: Any) -> DenoiserConfig:
    return DenoiserConfig(
        code_height=2, code_width=2, code_bits=4, dim=16, depth=2, heads=2, steps=T, num_classes=3, **more
    )


def same_when_traced_whole(call: Callable[[KeyedDraws], Tensor]) -> None:
    torch._dynamo.reset()
    traced = torch.compile(call, fullgraph=True, backend="eager")
    once, twice = (keyed_draws(0, "compiling", range(3)) for _ in range(2))
    torch.testing.assert_close(traced(once), call(twice))
    assert once.calls == twice.calls


@pytest.mark.parametrize("target", ["flip", "z0"])
@pytest.mark.parametrize("patch_size", [1, 2])
@pytest.mark.parametrize("soft", [False, True])
def test_a_training_step_of_bernoulli_diffusion_is_one_graph(target: str, patch_size: int, soft: bool):
    diffusion = BernoulliDiffusion(NoiseSchedule("linear", T), target)
    network = Denoiser(config(patch_size=patch_size), diffusion.evidence_logits())
    torch.nn.init.normal_(network.head.weight)

    def loss(draws: KeyedDraws) -> Tensor:
        probs = {"probs": Y} if soft else {}
        return diffusion.training_loss(
            lambda z, t: network(z, t, LABELS), Z, torch.tensor([1, 5, 8]), draws, **probs
        ).total

    same_when_traced_whole(loss)


@pytest.mark.parametrize("kind", ["absorbing", "autoregressive"])
def test_a_training_step_of_the_other_priors_of_bits_is_one_graph(kind: str):
    settings = load_settings("digits", overrides=[f"prior.kind={kind}", f"diffusion.steps={T}", "sampling.steps=4"])
    shape = config().code_shape
    process = settings.process(shape, 1.0)
    network: Transformer = KINDS[kind].build(config(), process)
    torch.nn.init.normal_(network.head.weight)

    def loss(draws: KeyedDraws) -> Tensor:
        return process.training_loss(
            lambda z, t: network(z, t, LABELS), Z, torch.tensor([1, 4, 8]).clamp(max=process.steps), draws, 0.1
        ).total

    same_when_traced_whole(loss)


@pytest.mark.parametrize("final", ["threshold", "draw"])
def test_sampling_with_guidance_is_one_graph(final: str):
    diffusion = BernoulliDiffusion(NoiseSchedule("linear", T), "flip")
    network = Denoiser(config(patch_size=2), diffusion.evidence_logits())
    torch.nn.init.normal_(network.head.weight)
    null = torch.full_like(LABELS, 3)

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        given, free = network(torch.cat([z, z]), torch.cat([t, t]), torch.cat([LABELS, null])).chunk(2)
        return free + 3.0 * (given - free)

    def codes(draws: KeyedDraws) -> Tensor:
        return diffusion.sample(denoise, (3, 4, 4), steps=3, final=final, generators=draws)

    same_when_traced_whole(codes)

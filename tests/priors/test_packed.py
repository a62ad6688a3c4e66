"""Blocks packed for a CPU compute what the plain ones do, and follow their weights."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import Tensor, nn

from bld.diffusion import BernoulliDiffusion, NoiseSchedule, sample_codes
from bld.priors import NETWORKS, AutoregressiveTransformer, Denoiser, DenoiserConfig
from bld.priors.kept import _kept
from bld.priors.packed import PackedBlock, PackedLinear, fastest
from bld.seeding import keyed_generators

SHAPE = {"code_height": 4, "code_width": 4, "code_bits": 8, "steps": 16, "dim": 64, "depth": 3, "heads": 4}


def network(kind: type = Denoiser, **settings: object) -> Denoiser:
    """Weights so large that rounding shows."""
    torch.manual_seed(0)
    model = kind(DenoiserConfig(**{**SHAPE, **settings})).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
    return model


def inputs(count: int = 3) -> tuple[Tensor, Tensor]:
    z = torch.randint(0, 2, (count, 16, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return z, torch.arange(1, count + 1)


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


@pytest.mark.parametrize("layer_scale", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["bernoulli", "absorbing", "autoregressive", "gaussian"])
def test_without_gradients_float32_is_the_same_up_to_rounding(kind: str, layer_scale: float):
    model, (z, t) = network(NETWORKS[kind], layer_scale=layer_scale), inputs()
    plain = model(z, t)
    with torch.no_grad():
        packed = model(z, t)
    assert plain.requires_grad and not packed.requires_grad
    assert isinstance(fastest(model.blocks, z), nn.ModuleList)  # with gradients: the blocks themselves
    assert packed.dtype == torch.float32 and error(packed, plain.detach()) < 1e-5


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="the CPU has no bfloat16 products")
@pytest.mark.parametrize("how", ["autocast", "weights"])
def test_in_bfloat16_it_is_nearer_to_float32_than_the_plain_blocks_are(how: str):
    model, (z, t) = network(), inputs()
    exact = network().double()(z, t).detach()
    if how == "weights":
        model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        plain = model(z, t).detach()
        with torch.no_grad():
            packed = model(z, t)
    assert packed.dtype == torch.float32
    assert error(packed, exact) < 0.02
    assert error(packed, exact) < 1.1 * error(plain, exact)


def test_a_changed_weight_is_noticed():
    model, (z, t) = network(), inputs()
    with torch.no_grad():
        before = model(z, t)
        model.blocks[1].expand.weight.mul_(1.5)
        after = model(z, t)
    assert error(after, model(z, t).detach()) < 1e-5 < error(after, before)
    model.load_state_dict(network(layer_scale=0.0).state_dict())
    with torch.no_grad():
        assert torch.equal(model(z, t), before)


def test_precisions_take_turns():
    model, (z, t) = network(), inputs()
    with torch.no_grad():
        single = model(z, t)
        with torch.autocast("cpu", torch.bfloat16):
            model(z, t)
        assert torch.equal(model(z, t), single)


def test_it_is_packed_once_and_forgotten_with_the_network():
    model, (z, t) = network(), inputs()
    with torch.no_grad():
        model(z, t)
        first = fastest(model.blocks, z)
        assert all(isinstance(block, PackedBlock) for block in first)
        assert fastest(model.blocks, z) is first
        twin = copy.deepcopy(model)
        assert torch.equal(twin(z, t), model(z, t)) and fastest(twin.blocks, z) is not first
    held = len(_kept)
    del model, twin, first
    gc.collect()
    assert len(_kept) <= held - 2


def test_a_position_at_a_time_sees_what_all_at_once_see():
    model, (z, t) = network(AutoregressiveTransformer), inputs()
    with torch.no_grad():
        whole, walk = model(z, t), model.for_sampling()
        steps = torch.cat([walk(z, t) for _ in range(16)], 1)
    torch.testing.assert_close(steps, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gelu", [False, True])
def test_a_layer_that_is_only_cast_computes_what_one_laid_out_for_onednn_does(gelu: bool):
    linear, x = nn.Linear(32, 24), torch.randn(2, 5, 32)
    packed = PackedLinear(linear, torch.float32, gelu)
    cast = copy.copy(packed)
    cast.weight, cast.is_laid_out = linear.weight.detach(), False  # as on a GPU
    torch.testing.assert_close(packed(x), cast(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_precisions_run_plain(dtype: torch.dtype):
    model = network().to(dtype)
    with torch.no_grad():
        assert fastest(model.blocks, torch.zeros(1, 17, 64, dtype=dtype)) is model.blocks


def test_a_sample_depends_on_its_own_seed_alone():
    diffusion = BernoulliDiffusion(NoiseSchedule("linear", 16))
    model = network()

    def draw(rows: list[int]) -> Tensor:
        shape = (len(rows), 16, 8)
        return sample_codes(model, shape, diffusion, steps=4, generators=keyed_generators(0, "s", rows))

    together = draw([0, 1, 2, 3, 4])
    assert torch.equal(together[2:4], draw([2, 3])) and torch.equal(together[4:], draw([4]))

"""A copy for inference computes what the network does, and neither follows the other's weights."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bld.diffusion import BernoulliDiffusion, NoiseSchedule, sample_codes
from bld.priors import KINDS, AutoregressiveTransformer, Denoiser, DenoiserConfig
from bld.priors.inference import GraphRecordings, PackedBlock, PackedLinear
from bld.priors.transformer import Block
from bld.seeding import keyed_draws

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
def test_in_float32_the_copy_is_the_same_up_to_rounding(kind: str, layer_scale: float):
    model, (z, t) = network(KINDS[kind].network, layer_scale=layer_scale), inputs()
    plain, frozen = model(z, t), model.for_inference()
    assert [type(block) for block in frozen.blocks] == [PackedBlock] * 3
    found = frozen(z, t)
    assert plain.requires_grad and not found.requires_grad
    assert found.dtype == torch.float32 and error(found, plain.detach()) < 1e-5


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
            packed = model.for_inference()(z, t)
    assert packed.dtype == torch.float32
    assert error(packed, exact) < 0.02
    assert error(packed, exact) < 1.1 * error(plain, exact)


def fused_adamw(model: Denoiser) -> None:
    """Five steps of our own optimizer, which leaves no trace in the parameters' version counters."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    for _ in range(5):
        model(*inputs()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def written_through_data(model: Denoiser) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(1.5)


def loaded(model: Denoiser) -> None:
    model.load_state_dict({k: 1.5 * v for k, v in model.state_dict().items()})


def written_in_inference_mode(model: Denoiser) -> None:
    with torch.inference_mode():
        for parameter in model.parameters():
            parameter.mul_(1.5)


def swapped(model: Denoiser) -> None:
    for block in model.blocks:
        block.expand.weight = nn.Parameter(1.5 * block.expand.weight.detach())


def averaged(model: Denoiser) -> None:
    other = network()
    written_through_data(other)
    with torch.no_grad():
        torch._foreach_lerp_(list(model.parameters()), list(other.parameters()), 0.5)


CHANGES = [fused_adamw, written_through_data, loaded, written_in_inference_mode, swapped, averaged]


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("change", CHANGES)
def test_a_plain_forward_always_uses_the_weights_of_now(
    change: Callable[[Denoiser], None], guard: Callable[[], torch.no_grad]
):
    model, (z, t) = network(), inputs()
    with guard():
        before, frozen = model(z, t), model.for_inference()
        then = frozen(z, t)
    change(model)
    now = model(z, t).detach()
    with guard():
        assert torch.equal(model(z, t), now)
        assert error(now, before) > 1e-2
        assert torch.equal(frozen(z, t), then)  # the copy is of then
        assert error(model.for_inference()(z, t), now) < 1e-5  # and another of now


def test_threads_may_sample_while_another_trains():
    model, (z, t) = network(), inputs()
    frozen = model.for_inference()
    exact, found, trained = frozen(z, t), [], threading.Event()

    def sample() -> None:
        while not trained.is_set() or len(found) < 4:
            found.append(frozen(z, t))

    threads = [threading.Thread(target=sample) for _ in range(2)]
    for thread in threads:
        thread.start()
    fused_adamw(model)
    trained.set()
    for thread in threads:
        thread.join()
    assert all(torch.equal(x, exact) for x in found)


@pytest.mark.parametrize("kind", [Denoiser, AutoregressiveTransformer])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_copy_computes_in_the_precision_it_was_made_in(kind: type, dtype: torch.dtype):
    """Packed or plain, wherever it is called: autocast is a thread's own, and a copy may serve several."""
    model, (z, t) = network(kind).to(dtype), inputs()
    single = model.for_inference()
    with torch.autocast("cpu", torch.bfloat16):
        half = model.for_inference()
        rounded = half(z, t), half.for_sampling()(z, t)
        inside = single(z, t), single.for_sampling()(z, t)
    outside = single(z, t), single.for_sampling()(z, t)
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))
    assert dtype == torch.float64 or error(rounded[0], outside[0]) > 1e-4
    assert all(torch.equal(a, b) for a, b in zip(rounded, (half(z, t), half.for_sampling()(z, t)), strict=True))


def test_a_copy_is_frozen_and_shares_no_memory():
    model = network(num_classes=3)
    mine = {p.data_ptr() for p in model.parameters()}
    frozen = model.for_inference()
    assert all(isinstance(block, PackedBlock) for block in frozen.blocks)
    assert not any(p.requires_grad or p.data_ptr() in mine for p in frozen.parameters())
    packed = [part for part in frozen.blocks.modules() if isinstance(part, PackedLinear)]
    assert len(packed) == 4 * len(model.blocks)
    assert not any(part.bias.data_ptr() in mine for part in packed)
    assert frozen.for_inference() is frozen and model.for_inference() is not frozen


def test_a_copy_made_in_inference_mode_serves_outside_of_it():
    model, (z, t) = network(), inputs()
    with torch.inference_mode():
        frozen = model.for_inference()
    assert not any(p.is_inference() for p in frozen.parameters())
    assert torch.equal(frozen(z, t), model.for_inference()(z, t))


def test_a_copy_lives_as_long_as_it_is_held_and_holds_nothing_of_the_network():
    """Not until the garbage collector comes by: each sampling makes one, with its recordings, on the device."""
    model = network()
    attention, frozen = weakref.ref(model.blocks[0].attention), model.for_inference()
    frozen._recordings = GraphRecordings()  # as on a GPU
    called, gone = frozen.for_sampling(), weakref.ref(frozen)
    gc.disable()
    try:
        del model
        assert attention() is None
        del called, frozen
        assert gone() is None
    finally:
        gc.enable()


def test_the_copy_of_a_compiled_network_is_compiled_once_and_keeps_its_weights():
    model, (z, t) = network(), inputs()
    model.compile(backend="eager", dynamic=False)
    torch._dynamo.reset()
    counted = torch._dynamo.utils.counters
    counted.clear()
    exact, found = [], []
    for _ in range(3):
        written_through_data(model)
        frozen = model.for_inference()
        assert frozen._compiled_call_impl is not None
        exact.append(model.forward(z, t).detach())
        found.append(frozen)
    assert all(error(frozen(z, t), now) < 1e-5 for frozen, now in zip(found, exact, strict=True))
    assert counted["stats"]["unique_graphs"] == 1


def test_a_position_at_a_time_sees_what_all_at_once_see():
    model, (z, t) = network(AutoregressiveTransformer), inputs()
    with torch.no_grad():
        whole, walk = model(z, t), model.for_inference().for_sampling()
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
    frozen = model.for_inference()
    assert {type(block) for block in frozen.blocks} == {Block} and frozen.blocks is not model.blocks
    assert frozen.head.weight.dtype == dtype


def test_a_sample_depends_on_its_own_seed_alone():
    diffusion = BernoulliDiffusion(NoiseSchedule("linear", 16))
    model = network()

    def draw(rows: list[int]) -> Tensor:
        shape = (len(rows), 16, 8)
        return sample_codes(model.for_inference(), shape, diffusion, steps=4, generators=keyed_draws(0, "s", rows))

    together = draw([0, 1, 2, 3, 4])
    assert torch.equal(together[2:4], draw([2, 3])) and torch.equal(together[4:], draw([4]))

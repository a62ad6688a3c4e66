"""The optimizers: Muon's steps against their definition, what is skipped, and that a run goes on with them."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from bld.errors import CheckpointError, SettingError
from bld.priors import Denoiser, DenoiserConfig
from bld.tokenizer import AutoencoderConfig, BinaryAutoencoder
from bld.training.checkpoints import pack_optimizer, unpack_optimizer
from bld.training.config import load_settings
from bld.training.optimizer import (
    MATRIX_RATE,
    MATRIX_WEIGHT_DECAY,
    MOMENTUM,
    RMS_OF_ADAM,
    Muon,
    make_optimizer,
    orthogonal,
)
from bld.training.run_folder import RunFolder
from bld.training.settings import TrainingSettings

SETTINGS = TrainingSettings(optimizer="muon", learning_rate=1e-2, beta2=0.99, weight_decay=0.01)
ADAMW = dataclasses.replace(SETTINGS, optimizer="adamw")


def network(seed: int = 0, dim: int = 16) -> Denoiser:
    torch.manual_seed(seed)
    shape = {"code_height": 2, "code_width": 3, "code_bits": 5, "steps": 8, "dim": dim, "depth": 2, "heads": 4}
    return Denoiser(DenoiserConfig(**shape))


def tokenizer(seed: int = 0, resampling: str = "convolution") -> BinaryAutoencoder:
    """With every kind of layer that a tokenizer can have."""
    torch.manual_seed(seed)
    return BinaryAutoencoder(
        AutoencoderConfig(
            image_size=8, code_bits=5, base_channels=4, channel_multipliers=(1, 2), res_blocks=1,
            attention_resolutions=(8,), embed_dim=8, resampling=resampling,
        )
    )  # fmt: skip


def with_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 32), (2, 32, 8), (1, 5, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_come_out_near_one_and_directions_stay(shape: tuple[int, ...], dtype: torch.dtype):
    random = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, given, vt = torch.linalg.svd(random, full_matrices=False)
    matrices = u @ torch.diag_embed(torch.linspace(37, 3, given.shape[-1]).expand_as(given)) @ vt
    made = orthogonal(matrices.to(dtype))
    assert made.shape == shape and made.dtype == dtype
    made = made.float()
    turned = u.mT @ made @ vt.mT  # as seen in the directions of the given matrix
    values = torch.diagonal(turned, dim1=-2, dim2=-1)
    assert values.min() > 0.6 and values.max() < 1.25
    assert (turned - torch.diag_embed(values)).abs().max() < (1e-3 if dtype == torch.float32 else 0.1)


def test_matrices_of_the_blocks_are_muons_and_everything_else_is_adams():
    model = network()
    optimizer = make_optimizer(model, SETTINGS)
    assert isinstance(optimizer, Muon)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    others, matrices = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    kinds = ("attention.qkv", "attention.out", "expand", "contract")
    assert matrices == {f"blocks.{i}.{kind}.weight" for i in range(2) for kind in kinds}
    assert matrices | others == set(names.values()) and not matrices & others
    assert type(make_optimizer(model, TrainingSettings())) is torch.optim.AdamW


@pytest.mark.parametrize("resampling", ["convolution", "shuffle"])
def test_kernels_between_a_tokenizers_ends_are_muons(resampling: str):
    """Not what reads pixels or bits and gives them, nor norms and biases."""
    model = tokenizer(resampling=resampling)
    optimizer = make_optimizer(model, SETTINGS)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    others, matrices = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    ends = {
        *(f"encoder.{name}.weight" for name in ("conv_in", "out.conv", "to_logits")),
        *(f"decoder.{name}.weight" for name in ("embed", "conv_in", "out.conv")),
    }
    assert {name for name, p in model.named_parameters() if p.ndim == 4} - matrices == ends
    assert all(model.get_parameter(name).ndim == 4 for name in matrices)
    assert matrices | others == set(names.values()) and not matrices & others


def is_inside(name: str, parameter: nn.Parameter) -> bool:
    """Whether it is a matrix or kernel between the ends of a network."""
    parts = ("blocks.", "stages.", "middle.", "downs.", "ups.")
    return parameter.ndim > 1 and any(part in f".{name}" for part in parts)


@pytest.mark.parametrize("build", [network, tokenizer], ids=["prior", "tokenizer"])
def test_a_step_is_that_of_its_definition(build):
    """Two steps, matrix by matrix in float64 where the real one stacks, and the rest against torch's AdamW."""
    model, plain = build(), build()
    optimizer = make_optimizer(model, SETTINGS)
    optimizer.dtype = torch.float32
    inside = {name for name, p in plain.named_parameters() if is_inside(name, p)}
    adam = torch.optim.AdamW([p for n, p in plain.named_parameters() if n not in inside], lr=1e-2, betas=(0.9, 0.99),
                             weight_decay=0.01)  # fmt: skip
    momenta = {name: torch.zeros_like(p).double() for name, p in plain.named_parameters() if name in inside}
    for step in range(2):
        with_gradients(model, step)
        with_gradients(plain, step)
        optimizer.step()
        adam.step()
        for name, parameter in plain.named_parameters():
            if name not in inside:
                continue
            gradient = parameter.grad.double()
            momenta[name] = MOMENTUM * momenta[name] + (1 - MOMENTUM) * gradient
            update = (1 - MOMENTUM) * gradient + MOMENTUM * momenta[name]
            matrix = update.flatten(1)
            parts = matrix.chunk(3) if "qkv" in name else [matrix]
            moved = torch.cat([orthogonal(part.float()[None])[0] for part in parts]).view_as(parameter)
            size = RMS_OF_ADAM * math.sqrt(max(parts[0].shape))
            with torch.no_grad():
                parameter.mul_(1 - MATRIX_RATE * 1e-2 * MATRIX_WEIGHT_DECAY).sub_(MATRIX_RATE * 1e-2 * size * moved)
    for (name, mine), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("waits", [False, True], ids=["looking costs nothing", "on the device"])
def test_a_gradient_that_is_not_finite_moves_nothing(waits: bool, monkeypatch):
    if waits:  # the way that a GPU goes, where looking would wait
        monkeypatch.setattr("bld.training.optimizer.LOOKS_AT", ())
    model = network()
    optimizer = make_optimizer(model, SETTINGS)
    with_gradients(model, 0)
    optimizer.step()
    before = [p.detach().clone() for p in model.parameters()]
    kept = [t.clone() for entry in optimizer.state.values() for t in entry.values()]
    with_gradients(model, 1)
    model.blocks[0].expand.weight.grad[0, 0] = math.nan
    optimizer.found_inf, optimizer.grad_scale = torch.tensor(1.0), None
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    after = [t for entry in optimizer.state.values() for t in entry.values()]
    assert all(torch.equal(a, b) for a, b in zip(kept, after, strict=True))
    optimizer.found_inf = torch.tensor(0.0)
    with_gradients(model, 1)
    optimizer.step()
    assert not torch.equal(before[0], next(iter(model.parameters())))
    assert all(p.isfinite().all() for p in model.parameters())


def test_it_goes_on_from_its_saved_state():
    whole, half = network(), network()
    optimizers = [make_optimizer(model, SETTINGS) for model in (whole, half)]
    for step in range(4):
        if step == 2:
            saved = pack_optimizer("o", optimizers[1])
            optimizers[1] = make_optimizer(half, SETTINGS)
            unpack_optimizer("o", optimizers[1], saved)
        for model, optimizer in zip((whole, half), optimizers, strict=True):
            with_gradients(model, step)
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), half.parameters(), strict=True))


@pytest.mark.parametrize(
    "overrides",
    [
        ["tokenizer_training.optimizer=muon", "prior_training.optimizer=adamw", "parallel=fsdp"],
        ["tokenizer_training.optimizer=adamw", "prior_training.optimizer=muon", "parallel=fsdp"],
    ],
)
def test_it_is_refused_where_it_cannot_work(overrides: list[str]):
    with pytest.raises(SettingError, match=r"optimizer=muon"):
        load_settings("digits", overrides=overrides)


@pytest.mark.parametrize("stage", ["tokenizer", "prior"])
def test_a_stage_that_has_begun_keeps_its_optimizer(run_copy, stage: str):
    """The moments that its checkpoints hold are of that optimizer's parameters in that order."""
    with pytest.raises(SettingError, match=rf"{stage}_training\.optimizer=adamw.*muon"):
        RunFolder(run_copy).adopt(None, [f"{stage}_training.optimizer=muon"], None)


@pytest.mark.parametrize(
    ("saved", "loaded", "wide"), [(SETTINGS, ADAMW, 16), (ADAMW, SETTINGS, 16), (ADAMW, ADAMW, 64), (ADAMW, ADAMW, 0)]
)
def test_the_state_of_another_optimizer_is_refused_in_a_sentence(saved, loaded, wide: int):
    """Of another kind, of parameters of another shape, or of more of them."""
    model = network()
    optimizer = make_optimizer(model, saved)
    with_gradients(model, 0)
    optimizer.step()
    other = network(dim=wide) if wide else nn.Linear(16, 1)
    with pytest.raises(CheckpointError, match=r"checkpoint's o .*parameter \d+, .*--out"):
        unpack_optimizer("o", make_optimizer(other, loaded), pack_optimizer("o", optimizer))

"""What a run will cost, computed before it starts: parameters, FLOPs, bytes; nothing is allocated."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bld.autoencoder import BinaryAutoencoder, PatchDiscriminator
from bld.priors import NETWORKS
from bld.training.settings import Settings


def describe(settings: Settings, images: int, num_classes: int) -> Iterator[tuple[str, str]]:
    """(what, how much) for the settings, with data of so many images and classes."""
    shape = settings.tokenizer.code_shape
    size = settings.tokenizer.image_size
    denoiser = settings.denoiser(shape, num_classes)
    with torch.device("meta"):
        tokenizer = BinaryAutoencoder(settings.tokenizer).to("meta")  # vq's codebook was made on the CPU all the same
        prior = NETWORKS[settings.prior.kind](denoiser)
        pixels = torch.empty(1, settings.tokenizer.in_channels, size, size)
        bits = torch.empty(1, *shape)
        tokens, t = torch.empty(1, shape.positions, shape.c), torch.ones(1, dtype=torch.long)
    yield "image", f"{size} × {size} pixels, {3 * size * size:,} bytes raw"
    row_bytes = shape.packed_bytes if tokenizer.is_binary else 2 * shape.bits
    unit = "bits" if tokenizer.is_binary else "real numbers"
    yield "code", f"{shape} = {shape.bits:,} {unit}, {row_bytes:,} bytes{'' if tokenizer.is_binary else ' as float16'}"
    if settings.tokenizer.bottleneck == "vq":
        yield "codebook", f"{2**shape.c:,} vectors of width {settings.tokenizer.embed_dim}"
    yield "tokenizer parameters", f"{parameters(tokenizer):,}"
    if settings.objective.adversarial > 0:
        objective = settings.objective
        with torch.device("meta"):
            critic = PatchDiscriminator(objective.discriminator_channels, objective.discriminator_layers)
        yield "discriminator parameters", f"{parameters(critic):,}"
    yield "prior parameters", f"{parameters(prior):,}"
    forward = flops(lambda: prior(tokens, t))
    yield "encode, per image", _flops(flops(lambda: tokenizer.features(pixels)))
    yield "decode, per image", _flops(flops(lambda: tokenizer.decode(bits)))
    yield "one denoising step, per image", _flops(forward)
    steps = settings.sampling.steps or settings.diffusion.build().steps
    yield f"one sample of {steps} steps", _flops(steps * forward + flops(lambda: tokenizer.decode(bits)))
    draws = settings.codes.draws if tokenizer.bottleneck.is_random else 0
    views = (1 + settings.data.flip) * max(1, draws)
    yield (
        f"code cache of {images:,} images",
        f"{images * views * row_bytes / 2**20:,.1f} MiB ({views} views)",
    )
    for name in ("tokenizer", "prior"):
        training = getattr(settings, f"{name}_training")
        epochs = training.steps * training.batch_size / images
        yield f"{name} training", f"{training.steps:,} steps of {training.batch_size}: {epochs:,.1f} epochs"


def parameters(model: nn.Module) -> int:
    """Trainable numbers of a model."""
    return sum(p.numel() for p in model.parameters())


def flops(call) -> int:  # type: ignore[no-untyped-def]
    """Floating-point operations of a call on meta tensors: matrix products, convolutions and attention."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def _flops(count: float) -> str:
    return f"{count / 1e9:,.2f} GFLOP"

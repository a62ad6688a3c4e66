"""What a run will cost, computed before it starts: parameters, FLOPs, bytes; nothing is allocated."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bld.errors import SettingError
from bld.planning.devices import Device, device_named
from bld.planning.simulate import prior_step, tokenizer_step
from bld.priors import KINDS, DenoiserConfig, Transformer
from bld.tokenizer import AutoencoderConfig, BinaryAutoencoder, PatchDiscriminator
from bld.training.condition_cache import condition_width
from bld.training.settings import Settings
from bld.training.stages.encode import kept_as
from bld.training.time_budget import STAGES

EVALUATED = 50_000


def describe(
    settings: Settings, images: int, num_classes: int, stages: Sequence[str] = STAGES
) -> Iterator[tuple[str, str]]:
    """Pairs (what, how much) that describe a run with these settings, on data of so many images and classes.

    stages: those that are trained; a given tokenizer is not.
    """
    shape = settings.tokenizer.code_shape
    size = settings.tokenizer.image_size
    tokenizer, prior, once = _inference(settings, num_classes)
    yield "image", f"{size} × {size} pixels, {3 * size * size:,} bytes raw"
    row_bytes = shape.packed_bytes if tokenizer.is_binary else 2 * shape.bits
    unit = "bits" if tokenizer.is_binary else "real numbers"
    yield "code", f"{shape} = {shape.bits:,} {unit}, {row_bytes:,} bytes{'' if tokenizer.is_binary else ' as float16'}"
    yield from tokenizer.bottleneck.facts(settings.tokenizer)
    yield "tokenizer parameters", f"{parameters(tokenizer):,}"
    if settings.objective.adversarial > 0:
        objective = settings.objective
        with torch.device("meta"):
            critic = PatchDiscriminator(objective.discriminator_channels, objective.discriminator_layers)
        yield "discriminator parameters", f"{parameters(critic):,}"
    yield "prior parameters", f"{parameters(prior):,}"
    if settings.prior.guide and not prior.config.is_conditional:
        yield "guide parameters", f"{parameters(prior):,} (the prior after {settings.prior.guide:.0%} of its training)"
    if prior.config.is_conditional:
        own = [part for part in (prior.classes, prior.vectors) if part is not None]
        count = sum(map(parameters, own)) + (0 if prior.no_vector is None else prior.no_vector.numel())
        what = (
            f"{num_classes:,} classes"
            if prior.vectors is None
            else _about_vectors(settings, prior.config.condition_dim)
        )
        yield "of them for the condition", f"{count:,} ({what})"
    yield "encode, per image", _flops(once.encode)
    yield "decode, per image", _flops(once.decode)
    yield "one denoising step, per image", _flops(once.denoise)
    passes = forwards(settings, num_classes)
    yield f"one sample, {passes} passes", _flops(passes * once.denoise + once.decode)
    values, views = _cached(settings, tokenizer)
    cached, unit = (shape.bits, "of probabilities") if values == "probabilities" else (row_bytes, "views")
    yield (
        f"code cache of {images:,} images",
        f"{images * views * cached / 2**20:,.1f} MiB ({views} {unit})",
    )
    for name in stages:
        training = getattr(settings, f"{name}_training")
        epochs = training.steps * training.batch_size / images
        yield f"{name} training", f"{training.steps:,} steps of {training.batch_size}: {epochs:,.1f} epochs"


def plan(
    settings: Settings,
    images: int,
    num_classes: int,
    name: str,
    devices: int,
    use: float,
    stages: Sequence[str] = STAGES,
) -> Iterator[tuple[str, str]]:
    """Simulate a training on so many devices of a kind: memory, time, bytes sent.

    Memory is the simulated step's, to which the libraries add their own. Gradients are sent in float32, around a ring.

    Args:
        settings: of the run.
        images: how many the data has.
        num_classes: how many classes it has.
        name: the kind of device, one of `DEVICES`.
        devices: how many of them.
        use: the part of the device's rate that is reached, above 0, at most 1.
        stages: those that are trained; a given tokenizer is not.

    Yields:
        Pairs (what, how much).

    Raises:
        SettingError: for less than one device, another `use`, or an unknown kind of device.
    """
    if devices < 1 or not 0 < use <= 1:
        raise SettingError(f"--devices is 1 or more and --utilisation above 0, at most 1, not {devices} and {use:g}.")
    device = device_named(name)
    precision = device.precision(settings.mixed_precision)
    best = device.tflops(precision)
    rate, half = best * 1e12 * use, precision != "float32"
    yield "devices", f"{devices} × {name}: {best:g} TFLOP/s at best in {precision}, of which {use:.0%} are assumed"
    if settings.parallel == "fsdp":
        yield "parallel=fsdp", "is not simulated: memory and bytes are those of ddp"
    if "tokenizer" in stages and settings.objective.perceptual > 0 and not _has_lpips():
        yield "LPIPS", "is not installed and not counted: pip install 'binary-latent-diffusion[lpips]'"
    for stage in stages:
        yield from _stage_plan(settings, stage, num_classes, device, devices, rate, half)
    tokenizer, _, once = _inference(settings, num_classes)
    views = _cached(settings, tokenizer)[1]
    hours = 1 / (rate * devices * 3600)
    yield "-- afterwards --", ""
    encoded = images * (1 + settings.data.flip) * once.encode
    yield f"encoding {images:,} images", f"{encoded * hours:,.2f} hours ({views} views)"
    drawn = EVALUATED * (forwards(settings, num_classes) * once.denoise + once.decode)
    yield f"{EVALUATED:,} samples", f"{drawn * hours:,.2f} hours"


def _stage_plan(
    settings: Settings, stage: str, num_classes: int, device: Device, devices: int, rate: float, half: bool
) -> Iterator[tuple[str, str]]:
    """A stage's part of `plan`, at `rate` operations a second, in half precision or float32."""
    training = getattr(settings, f"{stage}_training")
    share = math.ceil(training.batch_size / (devices * training.accumulate))
    step = (
        tokenizer_step(settings, share, half, perceptual=_has_lpips())
        if stage == "tokenizer"
        else prior_step(settings, share, num_classes, half)
    )
    flops_per_step = step.flops * training.accumulate
    seconds = flops_per_step / rate
    total = sum(step.memory.values())
    sent = ring_bytes(4 * step.parameters, devices)
    yield f"-- {stage} --", f"{share} at a time, {training.accumulate} times a step, on each device"
    yield "training step, per image", _flops(step.flops / share)
    yield "training step, per device", _flops(flops_per_step)
    for part, size in step.memory.items():
        yield f"memory: {part}", _gib(size)
    fits = "" if total < 0.9 * device.memory_gb * 1e9 else f" - more than nine tenths of {device.memory_gb:g} GB"
    yield "memory: together", _gib(total) + fits
    if devices > 1:
        waits = sent / (device.link_gb * 1e9)
        yield (
            "sent per device and step",
            f"{_gib(sent)}: {1e3 * waits:,.1f} ms, beside {1e3 * seconds:,.1f} ms of work",
        )
        # Work shrinks with the number of devices, what is sent does not.
        most = seconds * devices * device.link_gb * 1e9 / ring_bytes(4 * step.parameters, 10**9)
        yield (
            "sending takes as long as the work",
            f"at about {most:,.0f} devices for this batch of {training.batch_size}",
        )
    yield f"{stage} training", f"{training.steps * seconds / 3600:,.2f} hours for {training.steps:,} steps"


def _cached(settings: Settings, tokenizer: BinaryAutoencoder) -> tuple[str, int]:
    """(what the code cache holds, its rows for each image)."""
    values, draws = kept_as(tokenizer.bottleneck, settings.codes.draws, settings.codes.fresh)
    return values, (1 + settings.data.flip) * max(1, draws)


class Inference(NamedTuple):
    """Floating-point operations for one image."""

    encode: int
    decode: int
    denoise: int


def _about_vectors(settings: Settings, width: int) -> str:
    return f"vectors of width {width}, of {settings.prior.text_encoder or Path(settings.data.condition).name}"


def _inference(settings: Settings, num_classes: int) -> tuple[BinaryAutoencoder, Transformer, Inference]:
    """(tokenizer, prior, what a pass through them costs); the networks have no content."""
    shape = settings.tokenizer.code_shape
    denoiser = settings.denoiser(shape, num_classes, condition_width(settings))
    with torch.device("meta"):
        tokenizer = BinaryAutoencoder(settings.tokenizer).to("meta")  # vq's codebook was made on the CPU all the same
        prior = KINDS[settings.prior.kind].network(denoiser)
    return (
        tokenizer,
        prior,
        Inference(*tokenizer_flops(settings.tokenizer), denoiser_flops(settings.prior.kind, denoiser)),
    )


@lru_cache
def tokenizer_flops(config: AutoencoderConfig) -> tuple[int, int]:
    """Floating-point operations to encode and to decode one image; nothing is allocated."""
    with torch.device("meta"):
        tokenizer = BinaryAutoencoder(config).to("meta")  # vq's codebook was made on the CPU all the same
        pixels = torch.empty(1, config.in_channels, config.image_size, config.image_size)
        bits = torch.empty(1, *config.code_shape)
    return flops(lambda: tokenizer.features(pixels)), flops(lambda: tokenizer.decode(bits))


@lru_cache
def denoiser_flops(kind: str, config: DenoiserConfig) -> int:
    """Floating-point operations of one pass of a prior's network through one code; nothing is allocated."""
    with torch.device("meta"):
        prior = KINDS[kind].network(config)
        tokens, t = torch.empty(1, config.code_shape.positions, config.code_bits), torch.ones(1, dtype=torch.long)
    return flops(lambda: prior(tokens, t))


@lru_cache
def prior_parameters(kind: str, config: DenoiserConfig) -> int:
    """Numbers of a prior's network; nothing is allocated."""
    with torch.device("meta"):
        return parameters(KINDS[kind].network(config))


def forwards(settings: Settings, num_classes: int) -> int:
    """Passes of the prior through a whole image for one sample.

    A step is one pass, or two with guidance. A prior that draws position after position from a cache counts as one
    step.
    """
    kind = KINDS[settings.prior.kind]
    shape = settings.tokenizer.code_shape
    most = kind.steps(settings.diffusion, shape)
    process = settings.process(shape) if kind.check is None else kind.process  # which may import much
    asked = settings.sampling.steps if process.may_skip else 0
    steps = 1 if kind.one_pass else min(asked or most, most)
    has_vectors = bool(settings.prior.text_encoder or settings.data.condition)
    conditional = has_vectors or (settings.prior.class_conditional and num_classes > 0)
    guided = settings.sampling.guidance_scale != 1 and (conditional or settings.prior.guide > 0)
    return steps * (1 + guided)


def ring_bytes(size: int, devices: int) -> float:
    """Bytes each device sends when `size` bytes are summed over all: 2·(P - 1)/P times as many."""
    return 2 * (devices - 1) / devices * size


def _has_lpips() -> bool:
    """Whether the package is there whose network would be counted."""
    return importlib.util.find_spec("lpips") is not None


def _gib(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB"


def parameters(model: nn.Module) -> int:
    """How many numbers the parameters of a model hold."""
    return sum(p.numel() for p in model.parameters())


def flops(call) -> int:  # type: ignore[no-untyped-def]
    """Floating-point operations of a call on meta tensors: matrix products, convolutions and attention."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def _flops(count: float) -> str:
    return f"{count / 1e9:,.2f} GFLOP"

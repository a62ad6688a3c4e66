"""Sizes that suit a time budget on this machine: its pace is measured, the rest is arithmetic.

A network too large for its time sees too few images to learn anything, and one too small stops learning early.  So the
largest of a few sizes is taken that still sees enough of them; for the prior docs/what-works.md says how many that is.
Where even the smallest tokenizer sees too few, smaller batches make more steps of them.  Nobody's own limit of steps is
passed: what is enough then is as many steps as that allows.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from bld.planning.cost import denoiser_flops, prior_parameters, tokenizer_flops
from bld.planning.simulate import judging_flops
from bld.priors import KINDS
from bld.tokenizer import BinaryAutoencoder
from bld.training.accelerator import autocast_dtype
from bld.training.optimizer import make_optimizer
from bld.training.settings import Settings, tree_of
from bld.training.stages.prior import build_network
from bld.training.time_budget import STAGES, split

CHANNELS = (32, 64, 96, 128)  # of the tokenizer's first resolution
PRIORS = ((128, 4), (192, 6), (256, 8), (384, 8), (512, 12), (512, 24))  # width and blocks
WANTED_TOKENIZER_IMAGES = 60_000
BATCH, LEAST_BATCH = "tokenizer_training.batch_size", 8
WANTED_IMAGES_PER_PARAMETER = 0.018  # of the prior
WIDTH_OF_A_HEAD = 32
TRAINING_COST = 3  # forward passes that a training step takes: one, and two as many operations backward
MEASURED_STEPS, MEASURED_SECONDS = 3, 4.0


class Pace(NamedTuple):
    """Floating-point operations per second, as each stage's training reaches them here."""

    tokenizer: float
    prior: float


class Plan(NamedTuple):
    """What can be trained in a time budget.

    Attributes:
        sizes: settings by their dotted name, as far as they were chosen.
        steps: of each stage that is trained.
        seconds: of each stage that is trained.
    """

    sizes: dict[str, int]
    steps: dict[str, int]
    seconds: dict[str, float]

    def sentence(self, settings: Settings) -> str:
        """The plan for these settings in a sentence, for users."""
        sized = with_sizes(settings, self.sizes)
        made = " and ".join(
            f"{steps:,} {stage} steps of {getattr(sized, f'{stage}_training').batch_size}"
            for stage, steps in self.steps.items()
        )
        sizes = " ".join(f"{key}={value}" for key, value in self.sizes.items())
        return f"This machine makes about {made} in that time" + (f", with {sizes}." if sizes else ".")


def plan(
    settings: Settings,
    budget_seconds: float,
    pace: Pace,
    given: Sequence[str] = (),
    stages: Sequence[str] = STAGES,
    processes: int = 1,
) -> Plan:
    """The sizes for a time budget: for each stage the largest that still sees enough images, else the smallest.

    The smallest tokenizer, where it would see too few, sees them in batches half as large and twice as many, and so on
    down to `LEAST_BATCH`, or as many as are needed for each process to have some. Sizes are chosen only where the
    settings leave them to the budget (`sizes_by_budget`).

    Args:
        settings: of the run.
        budget_seconds: the time for all stages together.
        pace: what one process reaches here.
        given: dotted names that users have asked for. If one of them is a size of a stage, all sizes of that stage stay
            as they are.
        stages: those that are trained.
        processes: that train together, each with its part of the batch.
    """
    seconds = split(budget_seconds, stages, settings.tokenizer_share)
    sizes: dict[str, int] = {}
    steps: dict[str, int] = {}
    for stage in stages:
        chosen: dict[str, int] = {}
        for chosen in _candidates(stage, settings, given):  # the largest first
            sized = with_sizes(settings, {**sizes, **chosen})
            steps[stage] = int(seconds[stage] * processes * getattr(pace, stage) / asked_flops(sized, stage))
            most, wanted = getattr(settings, f"{stage}_training").steps, wanted_steps(sized, stage)
            if steps[stage] >= min(wanted, most):
                break
        sizes |= chosen
        if stage == "tokenizer" and chosen and BATCH not in given:
            batch = settings.tokenizer_training.batch_size
            least = max(LEAST_BATCH, processes * settings.tokenizer_training.accumulate)
            while steps[stage] < wanted and batch >= 2 * least and 2 * steps[stage] <= most:
                batch, steps[stage] = batch // 2, 2 * steps[stage]
                sizes[BATCH] = batch
        steps[stage] = min(steps[stage], most)
    return Plan(sizes, steps, seconds)


def _candidates(stage: str, settings: Settings, given: Sequence[str]) -> Iterator[dict[str, int]]:
    """Sizes of a stage, the largest first; one that changes nothing where they are not to be chosen."""
    found: list[dict[str, int]] = [{"tokenizer.base_channels": width} for width in CHANNELS]
    if stage == "prior":
        found = [{"prior.dim": dim, "prior.depth": n, "prior.heads": dim // WIDTH_OF_A_HEAD} for dim, n in PRIORS]
    open_to_choice = settings.sizes_by_budget and not found[0].keys() & set(given)
    yield from reversed(found) if open_to_choice else [{}]


def wanted_steps(settings: Settings, stage: str) -> float:
    """How many steps a stage of these sizes is to make at least, so that the network is not too large for its time."""
    images = float(WANTED_TOKENIZER_IMAGES)
    if stage == "prior":
        config = settings.denoiser(settings.tokenizer.code_shape, num_classes=0)
        images = WANTED_IMAGES_PER_PARAMETER * prior_parameters(settings.prior.kind, config)
    return images / getattr(settings, f"{stage}_training").batch_size


def with_sizes(settings: Settings, sizes: dict[str, int]) -> Settings:
    """The settings with these sizes in their places."""
    changed = {name: dataclasses.replace(getattr(settings, name), **values) for name, values in tree_of(sizes).items()}
    return dataclasses.replace(settings, **changed)


def asked_flops(settings: Settings, stage: str) -> float:
    """Floating-point operations of one training step with all terms of the objective, over the whole batch.

    The discriminator begins after a part of the time, and the step is as many operations as make the same number of
    steps in all of it.
    """
    plain, objective = training_flops(settings, stage), settings.objective
    if stage == "prior" or not (objective.perceptual or objective.adversarial):
        return plain
    B = settings.tokenizer_training.batch_size
    lpips, discriminator = judging_flops(settings.tokenizer, objective)
    before = plain + B * lpips
    start = objective.adversarial_start
    return 1 / (start / before + (1 - start) / (before + B * discriminator))


def training_flops(settings: Settings, stage: str) -> float:
    """Floating-point operations of one training step without those two terms, over the whole batch."""
    if stage == "tokenizer":
        forward = sum(tokenizer_flops(settings.tokenizer))
    else:
        forward = denoiser_flops(settings.prior.kind, settings.denoiser(settings.tokenizer.code_shape, num_classes=0))
    return TRAINING_COST * forward * getattr(settings, f"{stage}_training").batch_size


def measure(settings: Settings, processes: int = 1) -> Pace:
    """The pace of one process here: trains networks of the settings' sizes on noise, for a few seconds each.

    Args:
        settings: of the run.
        processes: that share a batch; this one takes as many images at once as it would then.
    """
    settings = _of_one_process(settings, processes)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(autocast_dtype(settings.mixed_precision, device))
    rates = []
    with torch.random.fork_rng([]):
        for stage, build in (("tokenizer", tokenizer_step), ("prior", prior_step)):
            step = build(settings, device)
            taken: list[float] = []
            begun = time.perf_counter()
            while len(taken) <= MEASURED_STEPS and time.perf_counter() - begun < MEASURED_SECONDS:
                with torch.autocast(device.type, half, enabled=half is not None):
                    taken.append(_seconds(step, device))
            rates.append(training_flops(settings, stage) / statistics.median(taken[1:] or taken))  # the first is slow
    return Pace(*rates)


def _of_one_process(settings: Settings, processes: int) -> Settings:
    """The settings with batches of what one process takes at once."""
    trainings = {f"{stage}_training": getattr(settings, f"{stage}_training") for stage in STAGES}
    pieces = {name: max(1, one.batch_size // (processes * one.accumulate)) for name, one in trainings.items()}
    return with_sizes(settings, {f"{name}.batch_size": piece for name, piece in pieces.items()})


def tokenizer_step(settings: Settings, device: torch.device) -> Callable[[], None]:
    """A function that trains the tokenizer for one step on random images, without perceptual and adversarial terms."""
    config, B = settings.tokenizer, settings.tokenizer_training.batch_size
    model = BinaryAutoencoder(config).to(device)
    optimizer = make_optimizer(model, settings.tokenizer_training)
    images = torch.rand(B, config.in_channels, config.image_size, config.image_size, device=device) * 2 - 1

    def step() -> None:
        out = model(images, model.draw_noise(B, None))
        _update(F.mse_loss(out.reconstruction, images), optimizer)

    return step


def prior_step(settings: Settings, device: torch.device) -> Callable[[], None]:
    """A function that trains the prior for one step on random codes."""
    shape, B = settings.tokenizer.code_shape, settings.prior_training.batch_size
    process = settings.process(shape)
    model = build_network(process, settings.denoiser(shape, num_classes=0)).to(device)
    optimizer = make_optimizer(model, settings.prior_training)
    codes = torch.randint(0, 2, (B, shape.positions, shape.c), dtype=torch.uint8, device=device)
    codes = codes.float() if KINDS[process.kind].is_real else codes

    def step() -> None:
        t = torch.randint(1, process.steps + 1, (B,), device=device)
        _update(process.training_loss(model, codes, t, None, 0.1).total, optimizer)

    return step


def _update(loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _seconds(step: Callable[[], None], device: torch.device) -> float:
    begun = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun

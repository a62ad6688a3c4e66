"""How much a report shows: up to 64 samples, and no more pictures than the machine makes in about a minute."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from bld.evaluation.load_run import OpenedRun
from bld.planning.cost import tokenizer_flops

CPU_BUDGET_FLOPS = 4.5e12  # under a minute on two cores
ACCELERATOR_BUDGET_FLOPS = 1e15
MOST_CLASSES_SHOWN = 16


@dataclass(frozen=True)
class Contents:
    """Numbers of pictures.

    Attributes:
        samples: generated images, at most.
        steps: denoising steps of each.
        strips: samples that are shown on their way from noise.
        frames: pictures of each of those.
        inpainted: images to fill.
        fillings: ways to fill each of those.
        reconstructions: images.
    """

    samples: int
    steps: int
    strips: int = 6
    frames: int = 8
    inpainted: int = 3
    fillings: int = 3
    reconstructions: int = 8


def plan_contents(opened: OpenedRun) -> Contents:
    """The fullest contents the budget allows, counted in FLOPs so that the same run gives the same page."""
    budget = CPU_BUDGET_FLOPS if opened.device.type == "cpu" else ACCELERATOR_BUDGET_FLOPS
    decode, denoise = tokenizer_flops(opened.tokenizer.config)[1], _denoise_flops(opened)
    steps = default_steps(opened)
    may_skip = opened.pipeline is None or opened.pipeline.diffusion.may_skip
    fewer = min(steps, 16) if may_skip else steps
    choices = [
        Contents(64, steps),
        Contents(36, steps),
        Contents(64, fewer),
        Contents(36, fewer),
        Contents(16, fewer),
        Contents(8, fewer, strips=3, frames=6, inpainted=2, fillings=2, reconstructions=4),
    ]
    for choice in choices:
        filled = choice.inpainted * choice.fillings
        images = choice.samples + filled + choice.strips * choice.frames + 4 * choice.reconstructions
        if images * decode + (choice.samples + filled) * choice.steps * denoise <= budget:
            return choice
    return choices[-1]


def default_steps(opened: OpenedRun) -> int:
    """The steps the run samples with when not told otherwise."""
    if opened.pipeline is None:
        return opened.settings.sampling.steps or opened.settings.diffusion.build().steps
    return opened.pipeline.index.sampling.num_inference_steps or opened.pipeline.diffusion.steps


@torch.no_grad()
def _denoise_flops(opened: OpenedRun) -> float:
    """Of one denoising step of one code, guidance included; 0 without a prior."""
    if opened.pipeline is None:
        return 0.0
    prior, shape = opened.pipeline.prior, opened.pipeline.prior.code_shape
    bits = torch.zeros((1, shape.positions, shape.c), dtype=torch.uint8, device=opened.device)
    one = torch.ones(1, dtype=torch.long, device=opened.device)
    with FlopCounterMode(display=False) as counter:
        prior(bits, one, None)
    return float(counter.get_total_flops()) * (2 if opened.pipeline.index.sampling.guidance_scale != 1 else 1)

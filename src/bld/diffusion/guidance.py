"""Classifier-free guidance on logits (Appendix C), at the price of one forward pass of twice the batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bld.diffusion.schedule import at_least_float32

ConditionalDenoise = Callable[[Tensor, Tensor, Tensor], Tensor]


def with_guidance(
    denoise: ConditionalDenoise, condition: Tensor, null: Tensor, guidance_scale: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """Add classifier-free guidance to a network: logits u + g·(v - u), v conditional, u unconditional (Appendix C).

    Args:
        denoise: (z_t, t, condition) → logits (B, N, c).
        condition: the third argument of `denoise`, one row per sample.
        null: the same for "no condition", as `Denoiser.no_condition` makes it.
        guidance_scale: g = 1 + ω; at 1 the unconditional pass is skipped, else each call takes a batch of 2·B.

    Returns:
        A function (z_t, t) → logits, float32 (at g = 1, as `denoise` gives them).
    """
    if guidance_scale == 1:
        return lambda z, t: denoise(z, t, condition)
    both = torch.cat([condition, null])

    def guided(z: Tensor, t: Tensor) -> Tensor:
        conditional, unconditional = denoise(torch.cat([z, z]), torch.cat([t, t]), both).chunk(2)
        return torch.lerp(at_least_float32(unconditional), at_least_float32(conditional), guidance_scale)

    return guided

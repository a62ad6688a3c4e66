"""Guidance on logits: away from the network without a condition (Appendix C), or from a weaker network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bld.diffusion.schedule import at_least_float32

ConditionalDenoise = Callable[[Tensor, Tensor, Tensor], Tensor]


def with_guidance(
    denoise: ConditionalDenoise,
    condition: Tensor,
    null: Tensor,
    guidance_scale: float,
    guide: ConditionalDenoise | None = None,
) -> Callable[[Tensor, Tensor], Tensor]:
    """Add guidance to a network: logits u + g·(v - u), v conditional, u unconditional (Appendix C).

    With a guide, u is what that says: a weaker network of the same task, whose faults are those of this one and greater
    (Karras et al. 2024, Guiding a diffusion model with a bad version of itself), so that it guides without a condition.

    Args:
        denoise: (z_t, t, condition) → logits (B, N, c).
        condition: the third argument of `denoise`, one row per sample.
        null: the same for "no condition", as `Denoiser.no_condition` makes it.
        guidance_scale: g = 1 + ω; at 1 the second pass is skipped, else each call takes a batch of 2·B, or one of B by
            each of the two networks.
        guide: (z_t, t, null) → logits u (B, N, c), in the place of `denoise`.

    Returns:
        A function (z_t, t) → logits, float32 (at g = 1, as `denoise` gives them).
    """
    if guidance_scale == 1:
        return lambda z, t: denoise(z, t, condition)
    both = torch.cat([condition, null])

    def guided(z: Tensor, t: Tensor) -> Tensor:
        if guide is None:
            v, u = denoise(torch.cat([z, z]), torch.cat([t, t]), both).chunk(2)
        else:
            v, u = denoise(z, t, condition), guide(z, t, null)
        return torch.lerp(at_least_float32(u), at_least_float32(v), guidance_scale)

    return guided

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
    """The network with classifier-free guidance: logits u + g·(v - u), v conditional, u unconditional.

    Args:
        denoise: (z_t, t, condition) → logits.
        condition: what the network takes as its third argument, one row per sample.
        null: the same, standing for "none".
        guidance_scale: g = 1 + ω; at 1 the unconditional half is not computed.

    Returns:
        (z_t, t) → logits, float32.
    """
    if guidance_scale == 1:
        return lambda z, t: denoise(z, t, condition)
    both = torch.cat([condition, null])

    def guided(z: Tensor, t: Tensor) -> Tensor:
        conditional, unconditional = denoise(torch.cat([z, z]), torch.cat([t, t]), both).chunk(2)
        return torch.lerp(at_least_float32(unconditional), at_least_float32(conditional), guidance_scale)

    return guided

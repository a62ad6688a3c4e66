"""Classifier-free guidance on logits (Appendix C), at the price of one forward pass of twice the batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ConditionalDenoise = Callable[[Tensor, Tensor, Tensor], Tensor]


def with_guidance(
    denoise: ConditionalDenoise, condition: Tensor, null: Tensor, guidance_scale: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """`denoise(z_t, t)` with logits u + g·(v - u), v conditional, u unconditional, g = guidance_scale = 1 + ω.

    condition, null: what the network takes as its third argument, one row per sample; `null` stands for "none".
    At g = 1 the unconditional half is not computed.
    """
    if guidance_scale == 1:
        return lambda z, t: denoise(z, t, condition)
    both = torch.cat([condition, null])

    def guided(z: Tensor, t: Tensor) -> Tensor:
        conditional, unconditional = denoise(torch.cat([z, z]), torch.cat([t, t]), both).chunk(2)
        wide = torch.float64 if conditional.dtype == torch.float64 else torch.float32
        return torch.lerp(unconditional.to(wide), conditional.to(wide), guidance_scale)

    return guided

"""Values in Gray code (ours): a few real numbers a position, each rounded to 2^k levels and written as k bits.

Bits with a logit each cut their features by one threshold, all about equally fine.  Here the first bit of a value says
which half it lies in, the next which quarter, and so on, so that the code holds what matters first and details after.
It is finite scalar quantisation (Mentzer et al. 2023), written in bits that are drawn like the paper's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bld.tokenizer.bottlenecks.base import Bottlenecked
from bld.tokenizer.bottlenecks.bernoulli import Bernoulli, drawn

SHARPNESS = 8.0  # the logit of a bit at the end of its range: it is a coin within about an eighth of its threshold
SPREAD = 3**0.5  # numbers spread evenly over (-1, 1), times this, have variance 1


class Gray(Bernoulli):
    """Bits of numbers in (-1, 1), bit planes one after the other: the first bits of all numbers, their second, …

    Args:
        code_bits: c.
        bits_per_value: k, a divisor of c; a position has c/k numbers of 2^k levels.
        bit_noise: η: a bit is drawn with probability σ(logit/η).
    """

    def __init__(self, code_bits: int, bits_per_value: int, bit_noise: float = 1.0):
        super().__init__(code_bits, bit_noise)
        self.bits_per_value, self.feature_channels = bits_per_value, code_bits // bits_per_value

    def probs(self, features: Tensor, bit_noise: float | Tensor | None = None) -> Tensor:
        """P(bit = 1) = σ(logit/η), (B, h, w, c).

        Args:
            features: (B, h, w, c/k).
            bit_noise: another η than the trained tokenizer's.
        """
        return super().probs(SHARPNESS * folds(number(features), self.bits_per_value), bit_noise)

    def latent(self, codes: Tensor) -> Tensor:
        """The numbers, and beside them their bits but for the first as -1 and 1: (B, h, w, c)."""
        signs = super().latent(codes)
        return torch.cat([SPREAD * levels(signs, self.bits_per_value), signs[..., self.feature_channels :]], -1)

    def forward(
        self,
        features: Tensor,
        noise: Tensor | None = None,
        *,
        bit_noise: Tensor | None = None,
        flips: Tensor | None = None,
    ) -> Bottlenecked:
        """The training pass: levels pass on the gradient of the numbers that they were rounded from.

        Args:
            features: (B, h, w, c/k).
            noise: (B, h, w, c), uniform in [0, 1); None takes the nearest level.
            bit_noise: η, a scalar; None is the trained tokenizer's.
            flips: bool (B, h, w, c), True for bits that the decoder sees turned over; the codes returned are those
                before.
        """
        probs = self.probs(features, bit_noise)
        bits = drawn(probs.detach(), noise)
        rounded, finer = self.latent(bits if flips is None else bits ^ flips.to(bits.dtype)).split(
            [self.feature_channels, bits.shape[-1] - self.feature_channels], -1
        )
        exact = SPREAD * number(features)
        return Bottlenecked(torch.cat([rounded + (exact - exact.detach()), finer], -1), bits, probs, {})


def number(features: Tensor) -> Tensor:
    """Numbers in (-1, 1), of any shape."""
    return torch.tanh(features / 4)


def folds(numbers: Tensor, bits: int) -> Tensor:
    """u_1 = the number, u_{i+1} = 1 - 2|u_i|: bit i of its Gray code is 1 where u_i is above 0.

    Each fold lays the two halves of the one before on each other, so that at a threshold of one bit no other changes.

    Args:
        numbers: in (-1, 1), (…, n).
        bits: k.

    Returns:
        (…, k·n) in (-1, 1): u_1 of all numbers, then u_2, …
    """
    found = [numbers]
    for _ in range(bits - 1):
        found.append(1 - 2 * found[-1].abs())
    return torch.cat(found, -1)


def levels(signs: Tensor, bits: int) -> Tensor:
    """The middle of the interval that a Gray code names: `folds` backwards, from the last bit to the first.

    Args:
        signs: bits as -1 and 1, (…, k·n).
        bits: k.

    Returns:
        (…, n): odd multiples of 2^-k in (-1, 1).
    """
    planes = signs.chunk(bits, -1)
    found = torch.zeros_like(planes[0])  # the middle of what the bits after the last would say
    for sign in reversed(planes):
        found = sign * (1 - found) / 2
    return found

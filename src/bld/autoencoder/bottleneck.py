"""The Bernoulli bottleneck: bits drawn from probabilities, with a gradient (eq. 1)."""

from __future__ import annotations

from torch import Tensor


def straight_through(bits: Tensor, probs: Tensor) -> Tensor:
    """Eq. (1): sg(z) + y - sg(y): the value of the bits z, the gradient of the probabilities y.

    bits, probs: any equal shapes; bits in {0, 1}, probs in (0, 1).
    """
    return bits.to(probs.dtype) + probs - probs.detach()

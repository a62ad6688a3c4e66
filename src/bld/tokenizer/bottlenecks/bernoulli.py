"""The paper's bottleneck: bits, each drawn with its own probability (Section 3, eq. 1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bld.errors import SettingError
from bld.seeding import uniform
from bld.tokenizer.bottlenecks.base import Bottleneck, Bottlenecked, Generators, Options

MOST_BITS_PER_VALUE = 8


class Bernoulli(Bottleneck):
    """Bits drawn from probabilities σ(features/η); the decoder sees -1 and 1.

    Args:
        code_bits: c.
        bit_noise: η; the paper's is 1.  A bit is 1 where its logit plus η times logistic noise is above 0.
    """

    kind = "bernoulli"
    has_probs = True

    @classmethod
    def check(cls, options: Options) -> None:
        """Raise `SettingError` for bits that do not make whole numbers."""
        bits, most = options.bits_per_value, MOST_BITS_PER_VALUE
        if not 1 <= bits <= most or options.code_bits % bits:
            possible = [str(k) for k in range(1, most + 1) if options.code_bits % k == 0]
            raise SettingError(
                f"tokenizer.bits_per_value is {bits}, but must divide tokenizer.code_bits, which is "
                f"{options.code_bits}: choose {' or '.join(possible)}."
            )

    @classmethod
    def of(cls, options: Options) -> Bernoulli:
        """As the settings say; where several bits are of one number, `bld.tokenizer.bottlenecks.gray.Gray`."""
        if options.bits_per_value == 1:
            return cls(options.code_bits, options.bit_noise)
        from bld.tokenizer.bottlenecks.gray import Gray

        return Gray(options.code_bits, options.bits_per_value, options.bit_noise)

    def __init__(self, code_bits: int, bit_noise: float = 1.0):
        super().__init__(code_bits, code_bits)
        self.bit_noise = bit_noise

    def probs(self, features: Tensor, bit_noise: float | Tensor | None = None) -> Tensor:
        """P(bit = 1) = σ(features/η), (B, h, w, c).

        Args:
            features: the logits, (B, h, w, c).
            bit_noise: another η than the trained tokenizer's.
        """
        return (features / (self.bit_noise if bit_noise is None else bit_noise)).sigmoid()

    def noise(self, shape: Sequence[int], generators: Generators, device: torch.device) -> Tensor:
        """Uniform in [0, 1)."""
        return uniform(shape, generators, device)

    def codes(self, features: Tensor, noise: Tensor | None = None) -> Tensor:
        """Bits, uint8: 1 where the probability is above the noise, or above ½."""
        return drawn(self.probs(features), noise)

    def latent(self, codes: Tensor) -> Tensor:
        """Bits as -1 and 1."""
        return 2 * codes.float() - 1

    def forward(
        self,
        features: Tensor,
        noise: Tensor | None = None,
        *,
        bit_noise: Tensor | None = None,
        flips: Tensor | None = None,
    ) -> Bottlenecked:
        """The training pass, with the gradient of eq. (1).

        Args:
            features: the logits, (B, h, w, c).
            noise: (B, h, w, c), uniform in [0, 1); None thresholds at ½.
            bit_noise: η, a scalar; None is the trained tokenizer's. The latent's gradient is that of σ(features) at
                every η: with a small η it would vanish for most bits.
            flips: bool (B, h, w, c), True for bits that the decoder sees turned over; the codes returned are those
                before.
        """
        probs = self.probs(features, bit_noise)
        bits = drawn(probs.detach(), noise)
        seen = bits if flips is None else bits ^ flips.to(bits.dtype)
        return Bottlenecked(self.latent(straight_through(seen, features.sigmoid())), bits, probs, {})


def drawn(probs: Tensor, noise: Tensor | None) -> Tensor:
    """Bits, uint8: 1 where the probability is above the noise, uniform in [0, 1), or without noise above ½."""
    return (probs > (0.5 if noise is None else noise)).to(torch.uint8)


def straight_through(bits: Tensor, probs: Tensor) -> Tensor:
    """Eq. (1): sg(z) + y - sg(y): the value of the bits z, the gradient of the probabilities y.

    Args:
        bits: z in {0, 1}, of any shape.
        probs: y in (0, 1), of the same shape.
    """
    return bits.to(probs.dtype) + probs - probs.detach()

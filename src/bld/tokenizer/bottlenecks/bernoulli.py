"""The paper's bottleneck: bits, each drawn with its own probability (Section 3, eq. 1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bld.errors import SettingError
from bld.seeding import uniform
from bld.tokenizer.bottlenecks.base import Bottleneck, Bottlenecked, Generators, Options
from bld.tokenizer.gray_code import folds, levels, number

MOST_BITS_PER_VALUE = 8
SHARPNESS = 8.0  # the logit of a bit at the end of its range: it is a coin within about an eighth of its threshold
SPREAD = 3**0.5  # numbers spread evenly over (-1, 1), times this, have variance 1


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
    def facts(cls, options: Options) -> Iterator[tuple[str, str]]:
        """The numbers that the bits of a position write, where they are several of each."""
        if options.bits_per_value > 1:
            bits = options.bits_per_value
            yield "a position", f"{options.code_bits // bits} numbers of {2**bits} levels, in Gray code"

    @classmethod
    def of(cls, options: Options) -> Bernoulli:
        """As the settings say; where several bits are of one number, a `Gray`."""
        if options.bits_per_value == 1:
            return cls(options.code_bits, options.bit_noise)
        return Gray(options.code_bits, options.bits_per_value, options.bit_noise)

    def __init__(self, code_bits: int, bit_noise: float = 1.0):
        super().__init__(code_bits, code_bits)
        self.bit_noise = bit_noise

    def probs(self, features: Tensor) -> Tensor:
        """P(bit = 1) = σ(features/η), (B, h, w, c).

        Args:
            features: the logits, (B, h, w, c).
        """
        return (features / self.bit_noise).sigmoid()

    def noise(self, shape: Sequence[int], generators: Generators, device: torch.device) -> Tensor:
        """Uniform in [0, 1)."""
        return uniform(shape, generators, device)

    def codes(self, features: Tensor, noise: Tensor | None = None) -> Tensor:
        """Bits, uint8: 1 where the probability is above the noise, or above ½."""
        return drawn(self.probs(features), noise)

    def latent(self, codes: Tensor) -> Tensor:
        """Bits as -1 and 1."""
        return 2 * codes.float() - 1

    def with_gradient(self, bits: Tensor, features: Tensor) -> Tensor:
        """The latent of these bits, with the gradient of eq. (1).

        It is that of σ(features) at every η: σ(features/η) would leave most bits none where η is small.
        """
        return self.latent(straight_through(bits, features.sigmoid()))

    def forward(self, features: Tensor, noise: Tensor | None = None, *, flips: Tensor | None = None) -> Bottlenecked:
        """The training pass, differentiable as `with_gradient` says.

        Args:
            features: as for `probs`.
            noise: (B, h, w, c), uniform in [0, 1); None takes the most probable bits.
            flips: bool (B, h, w, c), True for bits that the decoder sees turned over; the codes returned are those
                before.
        """
        probs = self.probs(features)
        bits = drawn(probs.detach(), noise)
        seen = bits if flips is None else bits ^ flips.to(bits.dtype)
        return Bottlenecked(self.with_gradient(seen, features), bits, probs, {})


class Gray(Bernoulli):
    """Bits of numbers in Gray code (ours), bit planes one after the other: the first bits of all, their second, …

    Bits with a logit each cut their features by one threshold, all about equally fine.  Here the first bit of a number
    says which half of (-1, 1) it lies in, the next which quarter, and so on: what matters first, then details.  It is
    finite scalar quantisation (Mentzer et al. 2023), written in bits that are drawn like the paper's.

    Args:
        code_bits: c.
        bits_per_value: k, a divisor of c; a position has c/k numbers of 2^k levels.
        bit_noise: η: a bit is drawn with probability σ(logit/η).
    """

    def __init__(self, code_bits: int, bits_per_value: int, bit_noise: float = 1.0):
        super().__init__(code_bits, bit_noise)
        self.bits_per_value, self.feature_channels = bits_per_value, code_bits // bits_per_value

    def probs(self, features: Tensor) -> Tensor:
        """P(bit = 1) = σ(logit/η), (B, h, w, c).

        Args:
            features: (B, h, w, c/k).
        """
        return super().probs(SHARPNESS * folds(number(features), self.bits_per_value))

    def latent(self, codes: Tensor) -> Tensor:
        """The numbers, and beside them their bits but for the first as -1 and 1: (B, h, w, c)."""
        signs = super().latent(codes)
        return torch.cat([SPREAD * levels(signs, self.bits_per_value), signs[..., self.feature_channels :]], -1)

    def with_gradient(self, bits: Tensor, features: Tensor) -> Tensor:
        """The latent of these bits, whose numbers pass on the gradient of those that they were rounded from."""
        rounded, finer = self.latent(bits).split([self.feature_channels, bits.shape[-1] - self.feature_channels], -1)
        exact = SPREAD * number(features)
        return torch.cat([rounded + (exact - exact.detach()), finer], -1)


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

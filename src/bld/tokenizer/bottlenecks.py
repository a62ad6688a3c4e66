"""What stands between encoder and decoder: codes drawn from the encoder's features, with a gradient.

`Bernoulli` is the paper's.  `Gaussian` here and `VectorQuantised` (`codebook.py`) are what it is compared with in
Table 4; encoder and decoder around them are the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bld.seeding import normal, uniform

Generators = torch.Generator | Sequence[torch.Generator] | None

LOG_VARIANCE_RANGE = (-30.0, 20.0)


class Bottlenecked(NamedTuple):
    """A training pass through a bottleneck."""

    latent: Tensor  # (B, h, w, latent_channels), float32: what the decoder embeds; carries the gradient
    codes: Tensor  # (B, h, w, c): uint8 bits, or float32 real numbers
    probs: Tensor | None  # (B, h, w, c) float32 in (0, 1), of bits that are drawn
    penalties: dict[str, Tensor]  # unweighted scalars for the objective, by the name of their weight


class Bottleneck(nn.Module, ABC):
    """Features of the encoder (B, h, w, feature_channels), float32 ⇄ codes (B, h, w, c).

    feature_channels: what it wants of the encoder.  latent_channels: what it gives the decoder.
    is_binary: whether codes are bits, else real numbers.  is_random: whether codes are drawn.
    has_probs: whether they are bits that are drawn from probabilities.
    """

    is_binary = True
    is_random = True
    has_probs = False

    def __init__(self, feature_channels: int, latent_channels: int):
        super().__init__()
        self.feature_channels, self.latent_channels = feature_channels, latent_channels

    @abstractmethod
    def noise(self, shape: Sequence[int], generators: Generators, device: torch.device) -> Tensor | None:
        """The draws that codes of this shape (B, h, w, c) are made with; None where nothing is drawn."""

    @abstractmethod
    def codes(self, features: Tensor, noise: Tensor | None = None) -> Tensor:
        """Codes drawn with this noise, or without it the most probable ones."""

    @abstractmethod
    def latent(self, codes: Tensor) -> Tensor:
        """What the decoder embeds for codes of any dtype: (B, h, w, latent_channels), float32."""

    @abstractmethod
    def forward(
        self,
        features: Tensor,
        noise: Tensor | None = None,
        *,
        bit_noise: Tensor | None = None,
        flips: Tensor | None = None,
    ) -> Bottlenecked:
        """The training pass, differentiable.  bit_noise, flips: see `Bernoulli`; others take no notice."""

    def figures(self, codes: Tensor) -> dict[str, Tensor]:
        """Scalars worth logging about how a batch of codes uses the code."""
        return {}


class Bernoulli(Bottleneck):
    """Bits drawn from probabilities σ(features/η); the decoder sees -1 and 1.

    bit_noise: η; the paper's is 1.  A bit is 1 where its logit plus η times logistic noise is above 0.
    """

    has_probs = True

    def __init__(self, code_bits: int, bit_noise: float = 1.0):
        super().__init__(code_bits, code_bits)
        self.bit_noise = bit_noise

    def probs(self, features: Tensor, bit_noise: float | Tensor | None = None) -> Tensor:
        """P(bit = 1).  bit_noise: another η than the trained tokenizer's."""
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
        """Eq. (1).

        bit_noise: η, a scalar; None is the trained tokenizer's.  The gradient is that of σ(features) whatever it is: a
        small η would end it for most bits.  flips: bool, True for bits that the decoder sees turned over; the codes
        returned are those before.
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

    bits, probs: any equal shapes; bits in {0, 1}, probs in (0, 1).
    """
    return bits.to(probs.dtype) + probs - probs.detach()


class Gaussian(Bottleneck):
    """Real numbers drawn from N(mean, variance), each kept near N(0, 1) by a KL penalty (latent diffusion's)."""

    is_binary = False

    def __init__(self, channels: int):
        super().__init__(2 * channels, channels)

    def noise(self, shape: Sequence[int], generators: Generators, device: torch.device) -> Tensor:
        """Standard normal."""
        return normal(shape, generators, device)

    def codes(self, features: Tensor, noise: Tensor | None = None) -> Tensor:
        """Draws, or the means; float32."""
        mean, log_variance = _moments(features)
        return mean if noise is None else mean + (0.5 * log_variance).exp() * noise

    def latent(self, codes: Tensor) -> Tensor:
        """The numbers themselves."""
        return codes.float()

    def forward(self, features: Tensor, noise: Tensor | None = None, **_: Tensor | None) -> Bottlenecked:
        """Reparametrised draws, and their KL."""
        codes = self.codes(features, noise)
        return Bottlenecked(codes, codes.detach(), None, {"kl": kl_nats(*_moments(features))})


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """(means, log-variances) of features (…, 2c)."""
    mean, log_variance = features.chunk(2, -1)
    return mean, log_variance.clamp(*LOG_VARIANCE_RANGE)


def kl_nats(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) ‖ N(0, 1)) in nats, summed over an image's latent (B, …), averaged over images."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1).mean()

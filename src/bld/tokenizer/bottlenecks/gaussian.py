"""Real numbers, as in latent diffusion: what binary codes are compared with (Tables 1-4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bld.seeding import normal
from bld.tokenizer.bottlenecks.base import Bottleneck, Bottlenecked, Generators, Options

LOG_VARIANCE_RANGE = (-30.0, 20.0)


class Gaussian(Bottleneck):
    """Real numbers drawn from N(mean, variance), each kept near N(0, 1) by a KL penalty (latent diffusion's)."""

    kind = "gaussian"
    is_binary = False

    @classmethod
    def of(cls, options: Options) -> Gaussian:
        """As the settings say."""
        return cls(options.code_bits)

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

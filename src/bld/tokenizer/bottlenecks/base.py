"""What stands between encoder and decoder: codes made of the encoder's features, with a gradient.

A bottleneck is a file here with one subclass of `Bottleneck`; its `kind` is its name in the settings.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from bld.errors import SettingError
from bld.seeding import Generators


class Options(Protocol):
    """The settings of a tokenizer that a bottleneck may look at."""

    @property
    def code_bits(self) -> int:
        """c, values per position."""

    @property
    def embed_dim(self) -> int:
        """Width to which the decoder embeds a position."""

    @property
    def bit_noise(self) -> float:
        """η."""

    @property
    def bits_per_value(self) -> int:
        """k: 1 where each bit has a logit of its own, more where k bits write one number."""


class Bottlenecked(NamedTuple):
    """A training pass through a bottleneck."""

    latent: Tensor  # (B, h, w, latent_channels), float32: what the decoder embeds; carries the gradient
    codes: Tensor  # (B, h, w, c): uint8 bits, or float32 real numbers
    probs: Tensor | None  # (B, h, w, c) float32 in (0, 1), of bits that are drawn
    penalties: dict[str, Tensor]  # scalars for the objective, times the weight `objective.NAME` where there is one


class Bottleneck(nn.Module, ABC):
    """Features of the encoder (B, h, w, feature_channels), float32 ⇄ codes (B, h, w, c).

    Attributes:
        kind: its `tokenizer.bottleneck`.
        feature_channels: how many channels it takes from the encoder.
        latent_channels: how many it gives the decoder.
        is_binary: whether codes are bits, else real numbers.
        is_random: whether codes are drawn.
        has_probs: whether they are bits that are drawn from probabilities, so that each says something by itself.
        reads_values: whether a pass depends on values, so that it cannot be simulated on tensors without any.
    """

    kind: ClassVar[str]
    is_binary: ClassVar[bool] = True
    is_random: ClassVar[bool] = True
    has_probs: ClassVar[bool] = False
    reads_values: ClassVar[bool] = False

    @classmethod
    def check(cls, options: Options) -> None:
        """Raise `SettingError` for settings that it cannot be built with."""

    @classmethod
    def facts(cls, options: Options) -> Iterator[tuple[str, str]]:
        """(what, how much) that `bld info` says of it besides the code."""
        yield from ()

    @classmethod
    @abstractmethod
    def of(cls, options: Options) -> Self:
        """The untrained bottleneck that these settings describe.

        Raises:
            MissingPackageError: if it needs a package that is not installed.
        """

    def __init__(self, feature_channels: int, latent_channels: int):
        super().__init__()
        self.feature_channels, self.latent_channels = feature_channels, latent_channels

    @abstractmethod
    def noise(self, shape: Sequence[int], generators: Generators, device: torch.device) -> Tensor | None:
        """The draws that codes of this shape (B, h, w, c) are made with; None where nothing is drawn."""

    @abstractmethod
    def codes(self, features: Tensor, noise: Tensor | None = None) -> Tensor:
        """Codes drawn with this noise, or without it the most probable ones."""

    def probs(self, features: Tensor) -> Tensor:
        """P(bit = 1), (B, h, w, c).

        Args:
            features: (B, h, w, feature_channels).

        Raises:
            SettingError: if bits have no probabilities (`has_probs`).
        """
        raise SettingError(
            f"A tokenizer with tokenizer.bottleneck={self.kind} has no bit probabilities: "
            "use encode, or a tokenizer with tokenizer.bottleneck=bernoulli."
        )

    @abstractmethod
    def latent(self, codes: Tensor) -> Tensor:
        """What the decoder embeds for codes of any dtype: (B, h, w, latent_channels), float32."""

    @abstractmethod
    def forward(self, features: Tensor, noise: Tensor | None = None, *, flips: Tensor | None = None) -> Bottlenecked:
        """The training pass, differentiable.

        Args:
            features: (B, h, w, feature_channels).
            noise: as `noise` gives it; None takes the most probable codes.
            flips: as in `Bernoulli.forward`; other bottlenecks ignore it.
        """

    def metrics(self, codes: Tensor) -> dict[str, Tensor]:
        """Metrics for the log of how a batch of codes uses the code: scalars by name."""
        return {}

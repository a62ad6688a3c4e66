"""What every way of generating codes offers: the common face of Bernoulli diffusion and the alternatives to it.

A process is mathematics without a network: it is handed `denoise(z_t, t) → logits`, noises codes to train it, draws
codes with it, and counts the bits that codes cost under it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from bld.errors import SettingError
from bld.numbers import whole_number
from bld.seeding import Generators

Denoise = Callable[[Tensor, Tensor], Tensor]
"""A network as a process sees it: (z_t (B, N, c), t (B,) int64 in 1 … T) → logits (B, N, c)."""


@dataclass(frozen=True)
class SamplingStep:
    """What a sampler passes to its callback after each step.

    Attributes:
        index: 0 … total - 1.
        total: number of steps.
        t: the step denoised from.
        s: the step denoised to.
        codes: z_s, (n, N, c) uint8; float32 for the Gaussian prior.
        probs: P(z_s = 1), (n, N, c) float, from which z_s was drawn.
    """

    index: int
    total: int
    t: int
    s: int
    codes: Tensor
    probs: Tensor


Callback = Callable[[SamplingStep], None]
"""Called after each step; Bernoulli diffusion goes on from what it writes into `codes`."""


class PriorLoss(NamedTuple):
    """What to minimise: nats per bit (mean squared error for the Gaussian prior)."""

    total: Tensor


class Process(Protocol):
    """Noise, draw and count.

    kind: its name in the settings.  steps: T, the most steps a sample takes.  may_skip: whether it can take fewer.
    has_likelihood: whether it gives probabilities of codes.
    """

    kind: str
    has_likelihood: bool

    @classmethod
    def from_settings(cls, **settings: Any) -> Self:
        """From what `settings` gives; `TypeError`, `KeyError` or `ValueError` for anything else."""

    def settings(self) -> dict[str, Any]:
        """All that it is made of, for JSON."""

    @property
    def steps(self) -> int:
        """T."""

    @property
    def may_skip(self) -> bool:
        """Whether fewer than T steps can be taken."""

    def training_loss(self, denoise: Denoise, z0: Tensor, t: Tensor, generators: Generators, vlb_weight: float) -> Any:
        """A named tuple whose `total` is minimised; codes z0 (B, N, c) seen at steps t (B,)."""

    def bound_at(self, denoise: Denoise, z0: Tensor, t: Tensor, generators: Generators) -> Tensor:
        """(B,) float64: with t uniform in 1 … T an unbiased estimate of the code length in bits."""

    def likelihood_bits(
        self, denoise: Denoise, z0: Tensor, *, steps: int | None, draws: int, generators: Generators
    ) -> Tensor:
        """(B,) float64: code length, or an upper bound on it, in bits per code."""

    @property
    def sample(self) -> Callable[..., Tensor]:
        """sample(denoise, shape, *, steps, temperature, generators, known, mask, callback, device) → codes (n, N, c).

        Each kind has options of its own beyond these.
        """


class OnDevices:
    """A table that every step looks into, copied to a device once, when it is first asked for there."""

    def __init__(self, table: Tensor):
        self._copies = {table.device: table}
        self._table = table

    def on(self, device: torch.device | str) -> Tensor:
        """The table there."""
        device = torch.device(device)
        if device not in self._copies:
            self._copies[device] = self._table.to(device)
        return self._copies[device]


def spaced_steps(total: int, n: int | None) -> list[int]:
    """The steps visited when sampling with `n` of the T: from T down to 0, evenly spread, n + 1 numbers."""
    n = total if n is None else whole_number("The number of steps", n)
    if not 1 <= n <= total:
        raise SettingError(f"Sampling takes 1 to {total} steps here, not {n}.")
    return [round(total * (n - i) / n) for i in range(n + 1)]


def check_sampling(shape: tuple[int, int, int], temperature: float, known: Tensor | None, mask: Tensor | None) -> None:
    """Refuse what no process can sample."""
    if len(shape) != 3 or min(shape) < 1:
        raise SettingError(f"Codes are sampled in a shape (n, N, c) of positive numbers, not {tuple(shape)}.")
    if not temperature > 0:
        raise SettingError(f"The temperature is above 0 (0.9 by default), not {temperature}.")
    if (known is None) != (mask is None):
        raise SettingError("Inpainting needs both `known` bits and a `mask`; one of them was not given.")


def kept_positions(known: Tensor, mask: Tensor, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """(known codes (n, N, c), bool (n, N): True where they are kept) of an inpainting by whole positions.

    known: (n or 1, N, c).  mask: (N,) or (n, N), True where codes are to be made.
    """
    if known.ndim != 3 or known.shape[1:] != shape[1:] or len(known) not in (1, shape[0]):
        raise SettingError(
            f"The known bits have the shape {tuple(known.shape)}: give (n or 1, N, c) for codes of {tuple(shape)}."
        )
    rows = mask.bool().view(1, -1) if mask.ndim == 1 else mask.bool()
    if rows.ndim != 2 or rows.shape[1] != shape[1] or len(rows) not in (1, shape[0]):
        raise SettingError(f"The mask has the shape {tuple(mask.shape)}: give (N,) or (n, N) for {tuple(shape)}.")
    return known.expand(shape), ~rows.expand(shape[:2])

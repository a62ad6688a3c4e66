"""Noise schedules: a table of retentions `k_t`, monotone from k_0 = 1 to k_T ≈ 0 (eq. 5, Appendix A, Figure A).

`q(z_t | z_0) = Bernoulli(k_t·z_0 + (1 - k_t)/2)`: a bit is kept with probability k_t and redrawn as a fair coin
otherwise. The b_t of eq. (5) is always (1 - k_t)/2, and β_t = 1 - k_t/k_{t-1}, so k alone is the schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bld.diffusion.process import spaced_steps
from bld.errors import SettingError, did_you_mean

LARGEST_FINAL_RETENTION = 0.05
MOST_STEPS = 1_000_000  # far beyond use: more is a damaged file


def _linear(u: float) -> float:
    return 1 - u


def _cosine(u: float) -> float:
    return 0.5 + 0.5 * math.cos(math.pi * u)


def _sigmoid(u: float, start: float = 0.0, end: float = 3.0, temperature: float = 0.8) -> float:
    """The falling logistic ramp between `start` and `end`, normalised to run from 1 to 0."""

    def logistic(x: float) -> float:
        return 1 / (1 + math.exp(-x / temperature))

    return (logistic(end) - logistic(start + (end - start) * u)) / (logistic(end) - logistic(start))


KINDS: dict[str, Callable[[float], float]] = {"linear": _linear, "cosine": _cosine, "sigmoid": _sigmoid}


class NoiseSchedule:
    """A noise schedule: k_0 = 1, …, k_T ≈ 0, with q(z_t | z_0) = Bernoulli(k_t·z_0 + (1 - k_t)/2) (eq. 5, Figure A).

    So b_t of eq. (5) is (1 - k_t)/2; k_t is called the retention.

    Args:
        kind: "linear" (k_t = 1 - t/T, the paper's), "cosine", "sigmoid", or "table" with your own `table`.
        steps: T ≥ 1; with a table, T follows from its length.
        table: T + 1 values of k_t: 1 first, then below 1 and never rising, at most 0.05 last.

    Raises:
        SettingError: for anything else.
    """

    k: Tensor
    """float64 (T + 1,): k[t] is the probability that a bit has not been redrawn by step t."""

    def __init__(self, kind: str = "linear", steps: int = 64, table: Sequence[float] | None = None):
        if kind == "table":
            if table is None:
                raise SettingError("The schedule 'table' needs its retentions: give `table`, 1 first, 0 last.")
            self.k = torch.as_tensor(table, dtype=torch.float64)
        elif kind in KINDS:
            if table is not None:
                raise SettingError(f"A table was given with the schedule '{kind}': name the schedule 'table'.")
            if not 1 <= steps <= MOST_STEPS:
                raise SettingError(f"A diffusion has 1 to {MOST_STEPS} steps, not {steps}.")
            self.k = torch.tensor([KINDS[kind](t / steps) for t in range(steps + 1)], dtype=torch.float64)
        else:
            raise SettingError(f"Unknown schedule '{kind}'.{did_you_mean(kind, [*KINDS, 'table'])}")
        _validate(self.k)
        self.kind = kind
        self.steps = len(self.k) - 1

    def __repr__(self) -> str:
        return f"NoiseSchedule({self.kind!r}, steps={self.steps})"

    @property
    def beta(self) -> Tensor:
        """float64 (T,): β_1 … β_T of eq. (4)."""
        kept = torch.where(self.k[:-1] > 0, self.k[1:] / self.k[:-1].clamp(min=1e-300), 0.0)
        return 1 - kept

    def timesteps(self, n: int | None = None) -> list[int]:
        """The steps visited when sampling with `n` of the T: from T down to 0, evenly spread, n + 1 numbers."""
        return spaced_steps(self.steps, n)


def _validate(k: Tensor) -> None:
    if k.ndim != 1 or len(k) < 2:
        raise SettingError(f"A schedule's table has at least 2 entries in a row, not the shape {tuple(k.shape)}.")
    if k[0] != 1:
        raise SettingError(f"A schedule's table starts at 1, where nothing is noised yet, not at {k[0]:.6g}.")
    wrong = ~((k[1:] < 1) & (k[1:] >= 0) & (k.diff() <= 0))  # also where an entry is not a number
    if wrong.any():
        i = int(wrong.int().argmax()) + 1
        raise SettingError(
            "After its first entry a schedule's table stays below 1, never rises and never falls below 0, "
            f"but entry {i} is {k[i]:.6g} after {k[i - 1]:.6g}."
        )
    if k[-1] > LARGEST_FINAL_RETENTION:
        raise SettingError(
            f"The schedule ends at a retention of {k[-1]:.3g}, but sampling starts from uniform bits: "
            f"let the last entry be at most {LARGEST_FINAL_RETENTION}, best 0."
        )


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor itself in float64 or float32; anything narrower as float32."""
    return x if x.dtype == torch.float64 else x.float()

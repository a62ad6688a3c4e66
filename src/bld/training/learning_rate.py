"""The learning rate, and how far a training has come in steps or in time."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from bld.training.settings import TrainingSettings
from bld.training.time_budget import in_words

WARMUP_PART_OF_BUDGET = 0.05


@dataclass
class StageClock:
    """Progress of a stage: 0 at its start, 1 at its end, whichever of steps and time budget comes first.

    Args:
        steps: to do.
        budget_seconds: of training time; None is without a budget.
        seconds: spent by earlier runs of the same command.
    """

    steps: int
    budget_seconds: float | None = None
    seconds: float = 0.0
    _started: float = field(default_factory=time.monotonic)

    def elapsed(self) -> float:
        """Seconds of training, over all runs of the command."""
        return self.seconds + time.monotonic() - self._started

    def progress(self, step: int) -> float:
        """How far the stage has come after so many steps, 0 … 1."""
        by_time = self.elapsed() / self.budget_seconds if self.budget_seconds else 0.0
        return min(1.0, max(step / self.steps, by_time))

    def done(self, stage: str, step: int) -> str | None:
        """Why there is nothing left to do for a stage after so many steps, with the cure; None where there is."""
        if step >= self.steps:
            return f"The {stage} has its {step:,} steps already: for more, give {stage}_training.steps=…, above {step}."
        if self.budget_seconds and self.seconds >= self.budget_seconds:
            return (
                f"The {stage} has had its {in_words(self.budget_seconds)} already: a budget counts from the beginning, "
                "so name a longer one with --budget."
            )
        return None


def learning_rate(step: int, progress: float, settings: TrainingSettings, budgeted: bool) -> float:
    """The learning rate of a step: linear warm-up, then constant, cosine or linear decay with progress.

    Args:
        step: 0, 1, …
        progress: of the stage, 0 … 1.
        settings: how the stage is trained.
        budgeted: whether it has a time budget; then the warm-up takes at most 5% of it, and the rate is always annealed
            to 0.
    """
    warm = (step + 1) / settings.warmup_steps if settings.warmup_steps else 1.0
    if budgeted:
        warm = max(warm, progress / WARMUP_PART_OF_BUDGET)
    decay = "cosine" if budgeted and settings.decay == "constant" else settings.decay
    factor = {"constant": 1.0, "cosine": 0.5 + 0.5 * math.cos(math.pi * progress), "linear": 1 - progress}[decay]
    return settings.learning_rate * min(1.0, warm) * factor

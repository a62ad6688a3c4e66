"""What a stage of the training gives to the loop: networks, batches, and one step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from bld.runtime.distributed import whole
from bld.training.init_from import Origin
from bld.training.settings import Settings, TrainingSettings


class Stage(ABC):
    """What the loop needs of a stage; `model` is what is averaged, saved and used.

    prepared: the networks as they are trained, wrapped for data parallelism where there are several processes; the
    loop sets it, and a training pass goes through these.  recomputed: what activation checkpointing computes twice.
    """

    name: str
    model: nn.Module
    settings: Settings
    training: TrainingSettings
    accelerator: Accelerator
    prepared: dict[str, nn.Module]
    recomputed: tuple[type[nn.Module], ...] = ()

    @abstractmethod
    def networks(self) -> dict[str, nn.Module]:
        """The networks with an optimizer of their own, by name; the model's is the stage's name."""

    @abstractmethod
    def begin_from(self, origin: Origin) -> str:
        """Take over the weights of another model, where they fit; returns what was kept, in a sentence."""

    @abstractmethod
    def batches(self, first_step: int) -> Iterator[Any]:
        """This process's share of the batch of each step, from the given one on, a micro-batch at a time."""

    @abstractmethod
    def train_step(self, batch: Any, step: int, progress: float, update: Update) -> dict[str, Tensor]:
        """One micro-batch: losses, and `update(name, loss)` for each network.  Returns what to log, batch means."""

    @abstractmethod
    def measure(self, averaged: nn.Module) -> dict[str, float]:
        """Figures on held-out images, to log."""

    @abstractmethod
    def preview(self, averaged: nn.Module, path: Path) -> None:
        """Write a picture of the present state."""

    @abstractmethod
    def save(self, averaged: nn.Module) -> None:
        """Write the finished model where it belongs."""

    def parts(self) -> list[tuple[int, int]]:
        """(index, number of parts) of this process's micro-batches: the global batch is cut into as many parts."""
        each = self.training.accumulate
        first = self.accelerator.process_index * each
        return [(first + i, self.accelerator.num_processes * each) for i in range(each)]


@dataclass
class Update:
    """Backward, and after a step's last micro-batch clip and step: called by a stage once for each of its networks.

    weight: what a micro-batch's mean counts in the mean over the global batch, times the number of processes, over
    which data parallelism averages.  No gradient outlives its step: it would take memory through the next forward.
    """

    accelerator: Accelerator
    networks: dict[str, nn.Module]
    optimizers: dict[str, Optimizer]
    clip_norm: float
    skipped: int = 0
    weight: float = 1.0
    is_last: bool = True
    norms: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, name: str, loss: Tensor) -> None:
        """Add the loss's gradient; at the end of the step, one that is not finite is skipped and counted."""
        optimizer = self.optimizers[name]
        self.accelerator.backward(loss if self.weight == 1 else loss * self.weight)
        if not self.is_last:
            return
        norm = whole(self.accelerator.clip_grad_norm_(self.networks[name].parameters(), self.clip_norm or math.inf))
        finite = math.isfinite(float(norm))
        if finite or self.accelerator.scaler is not None:  # fp16's scaler skips by itself, and lowers its scale
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.skipped += not finite
        self.norms[name] = norm

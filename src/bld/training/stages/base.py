"""What a stage of the training gives to the loop: networks, batches, and one step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from bld.runtime.distributed import whole
from bld.training.init_from import Origin
from bld.training.settings import Settings, TrainingSettings


class Stage(ABC):
    """What the loop needs of a stage.

    Attributes:
        name: "tokenizer" or "prior".
        model: what is averaged, saved and used.
        settings: of the run.
        training: how this stage is trained.
        accelerator: precision and processes.
        prepared: the networks as they are trained, wrapped for data parallelism where there are several processes; the
            loop sets it, and a training pass goes through these.
        milestone: part of the training after which a copy of the averaged model is kept for `save`; 0 keeps none.
        recomputed: the modules that activation checkpointing computes twice.
    """

    name: str
    model: nn.Module
    settings: Settings
    training: TrainingSettings
    accelerator: Accelerator
    prepared: dict[str, nn.Module]
    recomputed: tuple[type[nn.Module], ...] = ()
    milestone: float = 0.0

    @abstractmethod
    def networks(self) -> dict[str, nn.Module]:
        """The networks with an optimizer of their own, by name; the model's is the stage's name."""

    @abstractmethod
    def begin_from(self, origin: Origin) -> str:
        """Take over the weights of another model, where they fit; returns what was kept, in a sentence."""

    @abstractmethod
    def batches(self, first_step: int, taken: int | None = None) -> Iterator[Any]:
        """This process's share of the batch of each step, from the given one on, a micro-batch at a time.

        Args:
            first_step: the given one.
            taken: images that the steps before took; None is as many as batches of the present size.
        """

    @abstractmethod
    def train_step(self, batch: Any, step: int, progress: float, update: Update) -> dict[str, Tensor]:
        """Train on one micro-batch: compute losses, and call `update(name, loss)` for each network.

        Args:
            batch: one of `batches`.
            step: 0, 1, …
            progress: of the stage, 0 … 1.
            update: makes the backward passes and optimizer steps.

        Returns:
            What to log, means over the micro-batch.
        """

    @abstractmethod
    def measure(self, averaged: nn.Module) -> dict[str, float]:
        """Metrics on held-out images, to log."""

    @abstractmethod
    def preview(self, averaged: nn.Module, path: Path) -> None:
        """Write a picture of the present state."""

    @abstractmethod
    def save(self, averaged: nn.Module, early: nn.Module | None) -> None:
        """Write the finished model where it belongs, and with it the copy of the milestone, where one was kept."""

    def parts(self) -> list[tuple[int, int]]:
        """(index, number of parts) of this process's micro-batches: the global batch is cut into as many parts."""
        each = self.training.accumulate
        first = self.accelerator.process_index * each
        return [(first + i, self.accelerator.num_processes * each) for i in range(each)]


@dataclass
class Update:
    """Backward passes and, after a step's last micro-batch, optimizer steps: called once for each network of a stage.

    A gradient that is not finite is skipped and counted on the device: the host does not wait to hear of it.
    Gradients are deleted after each step, as they would take memory through the next forward pass.

    Attributes:
        accelerator: precision and processes.
        networks: as they are trained, by name.
        optimizers: of the networks, by name.
        clip_norm: gradients are scaled down to this norm; 0 leaves them as they are.
        skipped: of each network the gradients so far that were not finite, and in a row now; int64 (2,), on the device.
        weight: what a micro-batch's mean counts in the mean over the global batch, times the number of processes, over
            which data parallelism averages.
        is_last: whether the micro-batch is the last of its step.
        norms: of each network's last gradient, before clipping.
    """

    accelerator: Accelerator
    networks: dict[str, nn.Module]
    optimizers: dict[str, Optimizer]
    clip_norm: float
    skipped: dict[str, Tensor]
    weight: float = 1.0
    is_last: bool = True
    norms: dict[str, Tensor] = field(default_factory=dict)

    def skips(self) -> tuple[int, int]:
        """Gradients that were not finite so far, of all networks, and the most in a row now; waits for the device."""
        return int(sum(counts[0] for counts in self.skipped.values())), int(self.in_a_row())

    def in_a_row(self) -> Tensor:
        """The most gradients in a row now that were not finite, of any network: a scalar on the device."""
        return torch.stack([counts[1] for counts in self.skipped.values()]).max()

    def __call__(self, name: str, loss: Tensor) -> None:
        """Add the loss's gradient; at the end of the step, one that is not finite is skipped and counted."""
        optimizer, scaler = self.optimizers[name], self.accelerator.scaler
        self.accelerator.backward(loss if self.weight == 1 else loss * self.weight)
        if not self.is_last:
            return
        fused: Any = getattr(optimizer, "optimizer", optimizer)
        if scaler is not None:  # this network's gradient alone: another's may not be complete yet
            scaler.unscale_(fused)
        norm = whole(clip_grad_norm_(self.networks[name].parameters(), self.clip_norm or math.inf))
        bad = ~norm.isfinite()
        if scaler is None:
            fused.found_inf, fused.grad_scale = bad.float(), None
            optimizer.step()
        else:  # fp16's scaler looks by itself
            scaler.step(fused)
        optimizer.zero_grad(set_to_none=True)
        self.skipped[name] += bad
        self.skipped[name][1] *= bad
        self.norms[name] = norm

    def finish(self) -> None:
        """End a step: fp16's loss scale may move, once for all networks, none of which has half a gradient now."""
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.update()

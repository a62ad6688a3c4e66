"""The weight average that is kept and used."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import nn


class WeightAverage:
    """Exponential moving average of a model's parameters; early on it forgets faster, so a short run is not lost.

    Buffers, such as a codebook that is an average already, are copied.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.model: nn.Module = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the model after optimizer step `step` (1, 2, …): decay is min(ema_decay, (1+n)/(10+n))."""
        decay = min(self.decay, (1 + step) / (10 + step))
        mine = cast("list[torch.Tensor]", list(self.model.parameters()))
        theirs = cast("list[torch.Tensor]", list(model.parameters()))
        torch._foreach_lerp_(mine, theirs, 1 - decay)
        for buffer, theirs_now in zip(self.model.buffers(), model.buffers(), strict=True):
            buffer.copy_(theirs_now)

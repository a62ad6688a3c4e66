"""The weight average that is kept and used."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from bld.runtime.distributed import spread_like, whole


class WeightAverage:
    """Exponential moving average of a model's parameters; early on it forgets faster, which suits short trainings.

    Buffers, such as a codebook that is an average already, are copied. Where FSDP spreads the parameters over
    processes, each averages its own pieces, and `gathered` puts them together.

    Args:
        model: whose parameters are averaged; the average begins with a copy of them.
        decay: the most that an update keeps of the average, 0 or more and below 1; 0 copies the model.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.model: nn.Module = copy.deepcopy(model).eval().requires_grad_(False)
        self.follow(model)

    @torch.no_grad()
    def follow(self, trained: nn.Module) -> None:
        """Average this model from now on: the same one, perhaps wrapped or spread over processes."""
        self._trained = trained
        theirs = list(trained.parameters())
        self.is_spread = any(hasattr(p, "full_tensor") for p in theirs)
        pairs = zip(self.model.parameters(), theirs, strict=True)
        # Detached, not .data: what is kept of a network for its weights must see that they change.
        self._mine = [spread_like(mine.detach(), their) for mine, their in pairs]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the model after optimizer step n = `step` (1, 2, …), with decay min(decay, (1+n)/(10+n))."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(_local(self._mine), _local(list(self._trained.parameters())), 1 - decay)
        for buffer, theirs_now in zip(self.model.buffers(), self._trained.buffers(), strict=True):
            buffer.copy_(theirs_now)

    @torch.no_grad()
    def gathered(self) -> nn.Module:
        """The averaged model, whole; where it is spread, every process must call this."""
        if self.is_spread:
            for mine, piece in zip(self.model.parameters(), self._mine, strict=True):
                mine.copy_(whole(piece))
        return self.model


def _local(tensors: list[Tensor]) -> list[Tensor]:
    """Of spread tensors the piece that lies here."""
    return [t.to_local() if hasattr(t, "to_local") else t.detach() for t in tensors]

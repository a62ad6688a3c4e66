"""Several processes as one: who this is, waiting for the others, and means over all of them.

A launcher (`torchrun`, `accelerate launch`) starts the processes and Accelerate joins them; without one there is a
single process and nothing here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

PATIENCE = timedelta(days=1)
"""How long processes wait for each other: one may verify millions of images or train a judge while the others wait, and
a launcher ends all of them when one dies."""


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is, and how to wait for the others."""

    rank: int = 0
    count: int = 1
    wait: Callable[[], None] = lambda: None

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes what all of them know."""
        return self.rank == 0

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process goes through the block first, the others after it: they find what it has made."""
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()


def launched() -> Processes:
    """The processes that a launcher has started, joined; one if there is no launcher."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Processes()
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    return Processes(state.process_index, state.num_processes, state.wait_for_everyone)


def leave() -> None:
    """Leave the group of processes, at the end of a command."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of x over all processes, with its gradient; every process must call it, with equal shapes."""
    return _Mean.apply(x) if _are_several() else x


def any_over_processes(flag: Tensor) -> bool:
    """Whether a scalar bool is set on any process; every process must call it."""
    if not _are_several():
        return bool(flag)
    most = flag.to(torch.int32)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return bool(most)


def _are_several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _Mean(torch.autograd.Function):
    """The mean over processes; each process's loss depends on every process's x, so gradients are averaged too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _mean(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _mean(gradient)


def _mean(x: Tensor) -> Tensor:
    total = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total / dist.get_world_size()


def whole(x: Tensor) -> Tensor:
    """A parameter or state as one plain tensor: gathered from all processes where FSDP has spread it over them."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """`state_dict` with every tensor whole, on the CPU; with FSDP every process must call it."""
    return {name: whole(tensor).detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def spread_like(x: Tensor, parameter: Any) -> Tensor:
    """Spread a whole tensor over the processes as FSDP has spread a parameter: the inverse of `whole`.

    Args:
        x: the tensor, the same on all processes.
        parameter: the one whose pieces are matched.

    Returns:
        The spread tensor; x itself where the parameter is not spread.
    """
    if not hasattr(parameter, "full_tensor"):
        return x
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x.to(parameter.device), parameter.device_mesh, parameter.placements)

"""Numbers of the device that are asked for now and read later, so that the host need not wait for them."""

from __future__ import annotations

import torch
from torch import Tensor


class LateNumbers:
    """A copy of some numbers as they are now.

    A GPU copies them after all that was asked of it before, while the host goes on; read a step later, they are there.

    Args:
        numbers: of any shape, on any device.
    """

    def __init__(self, numbers: Tensor):
        self._copied: torch.cuda.Event | None = None
        if numbers.device.type != "cuda":
            self._numbers = numbers.clone()
            return
        host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        self._numbers = host.copy_(numbers, non_blocking=True)
        self._copied = torch.cuda.Event()
        self._copied.record(torch.cuda.current_stream(numbers.device))

    def read(self) -> Tensor:
        """The numbers, on the CPU; waits until they are there."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._numbers

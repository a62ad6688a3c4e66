"""The precision that products of matrices run in: torch.autocast's, which is the calling thread's and the device's."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch


class Autocast(NamedTuple):
    """What torch.autocast does on one type of device: whether it is on, and what it casts to."""

    device: str
    is_on: bool
    dtype: torch.dtype

    @classmethod
    def here(cls, device: torch.device | str) -> Autocast:
        """What holds now in this thread, for the device's type."""
        kind = torch.device(device).type
        if not torch.amp.is_autocast_available(kind):
            return cls(kind, False, torch.float32)
        return cls(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))

    def again(self) -> AbstractContextManager[object]:
        """While entered the same holds, whatever holds around it and in whichever thread."""
        if not torch.amp.is_autocast_available(self.device):
            return nullcontext()
        return torch.autocast(self.device, self.dtype, enabled=self.is_on)

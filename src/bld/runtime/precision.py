"""The precision that products of matrices run in.

torch.autocast sets it for the calling thread and one type of device. Whether a GPU may round float32 products to TF32
is set for the whole process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import NamedTuple

import torch

NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16"}
KINDS = ("cpu", "cuda", "mps", "xpu")


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

    @property
    def name(self) -> str:
        """As the settings say it: float32, bf16 or fp16."""
        return NAMES.get(self.dtype, str(self.dtype).removeprefix("torch.")) if self.is_on else "float32"

    def again(self) -> AbstractContextManager[object]:
        """A context in which the same holds, in any thread and whatever holds outside the context."""
        if not torch.amp.is_autocast_available(self.device):
            return nullcontext()
        return torch.autocast(self.device, self.dtype, enabled=self.is_on)


def allow_tf32(device: torch.device, allowed: bool) -> None:
    """Set whether products that stay float32 beside half precision may be rounded to TF32.

    Both settings are changed: that of matrix products, and cuDNN's of convolutions, which torch allows by default.

    Args:
        device: what the products run on; only for a GPU is anything changed.
        allowed: whether they may be rounded.
    """
    if device.type == "cuda":
        _set_tf32("high" if allowed else "highest", allowed)


@contextmanager
def in_float32() -> Iterator[None]:
    """A context in which products are exact float32 on every device: for measuring models that may run in less."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with ExitStack() as stack:
        for kind in KINDS:
            if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        stack.callback(_set_tf32, *before)
        _set_tf32("highest", False)
        yield


def _set_tf32(products: str, convolutions: bool) -> None:
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions

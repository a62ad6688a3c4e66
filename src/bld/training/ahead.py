"""Batches that wait for the device, not the device for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

READY = 2  # batches, beside the one in use


def ahead(batches: Iterator[Any], device: torch.device) -> Generator[Any]:
    """The same batches in the same order; for a GPU a thread prepares the next ones while a step is computed.

    Close the generator when the training ends, so that the thread ends with it.

    Args:
        batches: tuples, whose tensors are on the CPU. They are asked for from the thread alone.
        device: where the batches are used. For a GPU their tensors come in pinned memory, from which a copy does not
            hold up the host; on a CPU a thread would only take a core from the networks, and there is none.
    """
    if device.type != "cuda":
        yield from batches
        return

    def prepare() -> Any:
        batch = next(batches, None)
        return None if batch is None else pinned(batch)

    # Pinning belongs to a GPU, and a new thread's is the first one.
    thread = ThreadPoolExecutor(1, "batches", torch.cuda.set_device, (device,))
    waiting = deque(thread.submit(prepare) for _ in range(READY))
    try:
        while (batch := waiting.popleft().result()) is not None:
            waiting.append(thread.submit(prepare))
            yield batch
    finally:
        thread.shutdown(cancel_futures=True)


def pinned(batch: tuple[Any, ...]) -> tuple[Any, ...]:
    """The batch with its tensors in pinned memory."""
    fields = [value.pin_memory() if isinstance(value, Tensor) else value for value in batch]
    return type(batch)(*fields) if hasattr(batch, "_fields") else tuple(fields)

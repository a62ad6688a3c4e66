"""Work that can be watched and stopped: a function that reports its steps becomes an iterator over them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from PIL import Image

from bld.studio.model import Model

SECONDS_BETWEEN = 0.1  # a page that is told more often only lags behind

T = TypeVar("T")


@dataclass(frozen=True)
class Progress:
    """Step `step` of `total` is done; pictures: what is there by now, where that was decoded."""

    step: int
    total: int
    pictures: tuple[Image.Image, ...] | None = None


Report = Callable[[Progress], None]
Work = Callable[[Report], T]


class Stopped(Exception):
    """Nobody is waiting for the work any more."""


@dataclass(frozen=True)
class _Ended(Generic[T]):
    """How the work ended: with a result or an error."""

    result: T | None = None
    error: BaseException | None = None


def watched(model: Model, work: Work[T]) -> Iterator[Progress | T]:
    """What the work reports while it runs in a thread of its own, then its result; its error is raised here.

    Closing the iterator stops the work at its next step.  Steps that follow each other within a tenth of a second and
    bring no pictures are left out.
    """
    items: queue.SimpleQueue[Progress | _Ended[T]] = queue.SimpleQueue()
    stop = threading.Event()
    last = 0.0

    def report(progress: Progress) -> None:
        nonlocal last
        if stop.is_set():
            raise Stopped
        if progress.pictures is not None or time.monotonic() - last > SECONDS_BETWEEN:
            last = time.monotonic()
            items.put(progress)

    def run() -> None:
        try:
            with model.in_use():
                items.put(_Ended(work(report)))
        except BaseException as error:  # raised again where somebody waits for it
            items.put(_Ended(error=error))

    thread = threading.Thread(target=run, name="studio", daemon=True)
    thread.start()
    try:
        while not isinstance(item := items.get(), _Ended):
            yield item
        if item.error is not None:
            raise item.error
        yield item.result  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()

"""Work that can be watched and stopped: a function that reports its steps becomes an iterator over them."""

from __future__ import annotations

import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from PIL import Image

from bld.studio.model import Model

SECONDS_BETWEEN = 0.1  # a page that is told more often only lags behind

T = TypeVar("T")


@dataclass(frozen=True)
class Progress:
    """How far the work is.

    Attributes:
        step: the step that is done.
        total: number of steps.
        pictures: what is there by now, where that was decoded.
    """

    step: int
    total: int
    pictures: tuple[Image.Image, ...] | None = None


Report = Callable[[Progress], None]
Work = Callable[[Report], T]


class Stopped(Exception):
    """The work is not wanted any more."""


@dataclass(frozen=True)
class _Ended(Generic[T]):
    """How the work ended: with a result or an error."""

    result: T | None = None
    error: BaseException | None = None


class Stops:
    """Who has asked to stop which work, by the number of the click: work that was begun by an earlier one stops."""

    def __init__(self, most: int = 1000):
        self._asked: OrderedDict[Hashable, float] = OrderedDict()
        self._most = most
        self._lock = threading.Lock()

    def ask(self, who: Hashable, click: float) -> None:
        """Stop whatever `who` began by a click before this one."""
        with self._lock:
            self._asked[who] = max(click, self._asked.pop(who, click))
            while len(self._asked) > self._most:
                self._asked.popitem(last=False)

    def asked(self, who: Hashable, click: float) -> bool:
        """Whether the work that this click began is to stop."""
        with self._lock:
            return click <= self._asked.get(who, float("-inf"))


def watched(model: Model, work: Work[T], stopped: Callable[[], bool] = lambda: False) -> Iterator[Progress | T]:
    """Run the work in a thread of its own; its error is raised here.

    Closing the iterator stops the work at its next step, for which it does not wait. Steps that follow each other in
    a tenth of a second and bring no pictures are left out.

    Args:
        model: what the work uses; it waits until nobody else does.
        work: is handed the function to which it reports its steps.
        stopped: whether the work is to end at its next step.

    Yields:
        What the work reports, then its result.

    Raises:
        Stopped: where `stopped()` has ended the work.
    """
    items: queue.SimpleQueue[Progress | _Ended[T]] = queue.SimpleQueue()
    stop = threading.Event()
    last = 0.0

    def report(progress: Progress) -> None:
        nonlocal last
        if stop.is_set() or stopped():
            raise Stopped
        if progress.pictures is not None or time.monotonic() - last > SECONDS_BETWEEN:
            last = time.monotonic()
            items.put(progress)

    def run() -> None:
        try:
            with model.in_use():
                if stop.is_set() or stopped():
                    raise Stopped
                items.put(_Ended(work(report)))
        except BaseException as error:  # raised again where somebody waits for it
            items.put(_Ended(error=error))

    threading.Thread(target=run, name="studio", daemon=True).start()
    try:
        while not isinstance(item := items.get(), _Ended):
            yield item
        if item.error is not None:
            raise item.error
        yield item.result  # type: ignore[misc]
    finally:
        stop.set()  # and no more: Gradio closes this in the thread that serves everybody

"""Ctrl-C and the signals of schedulers: finish the step, save, and stop."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

ONE_SIGNAL_SECONDS = 0.5  # a launcher passes on what the terminal or scheduler has sent to everyone already


class StopSignals:
    """While open, SIGINT and SIGTERM ask for a stop after the running step; a second one quits at once.

    What follows within half a second is the same request: launchers repeat to their processes what everyone was sent.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.requested = False
        self._asked_at = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._before = {number: signal.signal(number, self._ask) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: object) -> None:
        if self.requested and time.monotonic() - self._asked_at > ONE_SIGNAL_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if not self.requested:
            self.requested, self._asked_at = True, time.monotonic()

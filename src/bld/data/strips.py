"""What random crops are cut from, decoded once and held in memory."""

from __future__ import annotations

from threading import Lock

from torch import Tensor


class Strips:
    """The strips of all images of a source (`preprocessing.strip`), or none of them if they are too large together.

    Args:
        count: of the images.
        limit_bytes: of all strips.

    Attributes:
        rows: the strip of each image, uint8 (3, h, w), None of one that was not decoded; empty if they do not fit.
    """

    def __init__(self, count: int, limit_bytes: int) -> None:
        self.rows: list[Tensor | None] = [None] * count
        self._left, self._lock = limit_bytes, Lock()

    def __bool__(self) -> bool:
        return bool(self.rows)

    def __getstate__(self) -> dict[str, object]:
        return {"rows": self.rows}

    def put(self, index: int, strip: Tensor) -> None:
        """Keep the strip of an image; several threads may."""
        with self._lock:
            self._left -= strip.numel()
            if self._left < 0:
                self.rows = []
            elif self.rows:
                self.rows[index] = strip

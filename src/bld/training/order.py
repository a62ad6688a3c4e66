"""Which images go into which step: an order that needs no state to resume, and never drops an image."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from bld.seeding import keyed_permutation


class KeyedOrder:
    """Epoch after epoch in keyed permutations; step s takes positions s·B … (s+1)·B - 1 of that endless row."""

    def __init__(self, images: int, batch_size: int, seed: int, purpose: str):
        self.images, self.batch_size, self.seed, self.purpose = images, batch_size, seed, purpose
        self._epoch = lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch: int) -> np.ndarray:
        return keyed_permutation(self.seed, self.purpose, epoch, self.images)

    def positions(self, step: int, rank: int = 0, processes: int = 1) -> np.ndarray:
        """The global positions, int64, that one process handles in a step: its share of the global batch."""
        bounds = np.linspace(0, self.batch_size, processes + 1).round().astype(np.int64)
        return step * self.batch_size + np.arange(bounds[rank], bounds[rank + 1])

    def indices(self, positions: np.ndarray) -> np.ndarray:
        """The image at each position."""
        return np.array([self._epoch(int(p // self.images))[p % self.images] for p in positions])


def spread(images: int, count: int, seed: int) -> list[int]:
    """At most `count` of the images in keyed random order, so that neither classes nor names come in a row."""
    return keyed_permutation(seed, "measured", 0, images)[:count].tolist()

"""Which images go into which step: an order that needs no state to resume, and leaves out no image."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from bld.seeding import keyed_permutation


class KeyedOrder:
    """All images, epoch after epoch in keyed permutations: each step takes the next B positions of this order.

    Step s takes positions s·B … (s+1)·B - 1, unless steps before it had batches of another size.

    Args:
        images: how many there are.
        batch_size: B.
        seed: of the permutations.
        purpose: what the order is for; another purpose makes other permutations.
        first_step: from which on batches have this size.
        taken: positions that the steps before that one took; None is as many as batches of this size.
    """

    def __init__(
        self, images: int, batch_size: int, seed: int, purpose: str, first_step: int = 0, taken: int | None = None
    ):
        self.images, self.batch_size, self.seed, self.purpose = images, batch_size, seed, purpose
        self._ahead = 0 if taken is None else taken - first_step * batch_size
        self._epoch = lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch: int) -> np.ndarray:
        return keyed_permutation(self.seed, self.purpose, epoch, self.images)

    def positions(self, step: int, index: int = 0, parts: int = 1) -> range:
        """The positions of one part of a step's batch: part `index` of `parts` (processes times micro-batches)."""
        start, stop = part_of(self.batch_size, index, parts)
        first = self._ahead + step * self.batch_size
        return range(first + start, first + stop)

    def indices(self, positions: range) -> np.ndarray:
        """The image at each position."""
        return np.array([self._epoch(p // self.images)[p % self.images] for p in positions])


def part_of(batch_size: int, index: int, parts: int) -> tuple[int, int]:
    """(start, stop) of part `index` of a batch cut into `parts` nearly equal ones."""
    return batch_size * index // parts, batch_size * (index + 1) // parts


def evenly(total: int, count: int) -> torch.Tensor:
    """`count` (at most `total`) different numbers, evenly spread over 0 … total - 1, int64."""
    return torch.linspace(0, total - 1, min(count, total), dtype=torch.float64).round().long()


def spread(images: int, count: int, seed: int) -> list[int]:
    """At most `count` of the images in keyed random order, so that neither classes nor names come in a row."""
    return keyed_permutation(seed, "measured", 0, images)[:count].tolist()

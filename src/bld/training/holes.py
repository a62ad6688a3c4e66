"""Holes that a prior learns to fill: of some training images a part of the code is shown as it is, the rest noised.

Inpainting shows a network what it never sees in training, known bits beside noised ones.  A network that has met both
knows from the first step what surrounds the hole.
"""

from __future__ import annotations

import torch
from torch import Tensor

DRAWS = 6  # of each image


def hidden_positions(draws: Tensor, height: int, width: int, share: float) -> Tensor:
    """Which positions are noised and learned, bool (B, height·width): all of an image, or a rectangle, or all but one.

    Args:
        draws: float (B, 6), uniform in [0, 1): whether there is a hole, whether it is the rectangle or the rest, and
            the rectangle's edges, a sixth of which lie outside the image on either side.
        height: rows of positions.
        width: columns of positions.
        share: part of the images that have a hole, 0 to 1.
    """
    edges = 1.5 * draws[:, 2:] - 0.25
    rows, columns = _between(edges[:, 0], edges[:, 1], height), _between(edges[:, 2], edges[:, 3], width)
    inside = rows.unsqueeze(2) & columns.unsqueeze(1)
    hole = inside ^ (draws[:, 1] < 0.5).view(-1, 1, 1)
    whole = (draws[:, 0] >= share).view(-1, 1, 1)
    return (hole | whole).flatten(1)


def _between(one: Tensor, other: Tensor, count: int) -> Tensor:
    """bool (B, count): which of `count` equal parts of [0, 1] have their middle between two numbers (B,)."""
    middles = (torch.arange(count, device=one.device) + 0.5) / count
    return (torch.minimum(one, other).unsqueeze(1) < middles) & (middles < torch.maximum(one, other).unsqueeze(1))

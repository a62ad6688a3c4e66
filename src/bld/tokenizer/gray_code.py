"""Gray code: a number in (-1, 1), rounded to 2^k levels and written as k bits of which neighbours differ in one."""

from __future__ import annotations

import torch
from torch import Tensor


def number(features: Tensor) -> Tensor:
    """Numbers in (-1, 1), of any shape; a slope of ¼, so that features of usual size reach the outer levels slowly."""
    return torch.tanh(features / 4)


def folds(numbers: Tensor, bits: int) -> Tensor:
    """u_1 = the number, u_{i+1} = 1 - 2|u_i|: bit i of its Gray code is 1 where u_i is above 0.

    Each fold lays the two halves of the one before on each other, so that at a threshold of one bit no other changes.

    Args:
        numbers: in (-1, 1), (…, n).
        bits: k.

    Returns:
        (…, k·n) in (-1, 1): u_1 of all numbers, then u_2, …
    """
    found = [numbers]
    for _ in range(bits - 1):
        found.append(1 - 2 * found[-1].abs())
    return torch.cat(found, -1)


def levels(signs: Tensor, bits: int) -> Tensor:
    """The middle of the interval that a Gray code names: `folds` backwards, from the last bit to the first.

    Args:
        signs: bits as -1 and 1, (…, k·n).
        bits: k.

    Returns:
        (…, n): odd multiples of 2^-k in (-1, 1).
    """
    planes = signs.chunk(bits, -1)
    found = torch.zeros_like(planes[0])  # the middle of what the bits after the last would say
    for sign in reversed(planes):
        found = sign * (1 - found) / 2
    return found

"""Probabilities are computed in float32 or better, whatever the network's dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor itself in float64 or float32; anything narrower as float32."""
    return x if x.dtype == torch.float64 else x.float()

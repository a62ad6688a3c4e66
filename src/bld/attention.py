"""Scaled dot-product attention by whichever route is fastest for the device and dtype at hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q·kᵀ/√d)·v for (…, M, d) each.

    On CPU in bfloat16 the two products written out take about half the time of torch's fused kernel forward (at one
    shape of five a fifth more), and a seventh to two thirds of it with backward, at 18 to 257 tokens
    (`benchmarks/attention.py`); in float32 the fused kernel wins.
    """
    if q.device.type == "cpu" and q.dtype != torch.float32 and q.dtype != torch.float64:
        return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v)

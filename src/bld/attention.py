"""Scaled dot-product attention by whichever route is fastest for the device and dtype at hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

_always_fused = False


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """softmax(q·kᵀ/√d)·v for q (…, M, d) and k, v (…, L, d), L ≥ M: the queries belong to the last M tokens.

    causal: a query sees the tokens up to its own.

    On CPU in bfloat16 the two products written out take about half the time of torch's fused kernel forward (at one
    shape of five a fifth more), and a seventh to two thirds of it with backward, at 18 to 257 tokens
    (`benchmarks/attention.py`); in float32 the fused kernel wins.
    """
    seen = _seen(q.shape[-2], k.shape[-2], q.device) if causal and q.shape[-2] > 1 else None
    if not _always_fused and q.device.type == "cpu" and q.dtype != torch.float32 and q.dtype != torch.float64:
        weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        weights = weights if seen is None else weights.masked_fill(~seen, float("-inf"))
        return weights.softmax(-1).to(v.dtype) @ v
    if seen is not None and q.shape[-2] == k.shape[-2]:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)


@contextmanager
def always_fused() -> Iterator[None]:
    """Within, attention is fused on the CPU too, as it is on a GPU: to foresee what it would need there."""
    global _always_fused
    _always_fused = True
    try:
        yield
    finally:
        _always_fused = False


def _seen(queries: int, keys: int, device: torch.device) -> Tensor:
    """Bool (M, L): which tokens each of the last M may see."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)

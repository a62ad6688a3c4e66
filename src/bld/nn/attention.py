"""Scaled dot-product attention by whichever route is fastest for the device and dtype at hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

_always_fused = False


class KeyValues:
    """Keys and values of the tokens one attention layer has seen so far, (B, heads, M, D/heads) each."""

    def __init__(self) -> None:
        self.k: Tensor | None = None
        self.v: Tensor | None = None

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add new tokens; returns those of all."""
        self.k = k if self.k is None else torch.cat([self.k, k], 2)
        self.v = v if self.v is None else torch.cat([self.v, v], 2)
        return self.k, self.v


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False, visible: Tensor | None = None) -> Tensor:
    """softmax(q·kᵀ/√d)·v, where the queries belong to the last M of L tokens.

    On CPU in bfloat16 the two products written out take about half the time of torch's fused kernel forward (at one
    shape of five a fifth more), and a seventh to two thirds of it with backward, at 18 to 257 tokens
    (`benchmarks/attention.py`); in float32 the fused kernel is faster.

    Args:
        q: (…, M, d).
        k: (…, L, d), L ≥ M.
        v: (…, L, d).
        causal: whether a query sees only the tokens up to its own.
        visible: bool (B, L), with q (B, …, M, d): which tokens of a sample the others can see; None is all of them.

    Returns:
        (…, M, d).
    """
    causal = causal and q.shape[-2] > 1
    seen = _seen(q, k, causal, visible) if causal or visible is not None else None
    if not _always_fused and q.device.type == "cpu" and q.dtype != torch.float32 and q.dtype != torch.float64:
        weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        weights = weights if seen is None else weights.masked_fill(~seen, float("-inf"))
        return weights.softmax(-1).to(v.dtype) @ v
    if causal and visible is None and q.shape[-2] == k.shape[-2]:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)


@contextmanager
def always_fused() -> Iterator[None]:
    """Within, attention is fused on the CPU too, as it is on a GPU: to estimate what it would need there."""
    global _always_fused
    _always_fused = True
    try:
        yield
    finally:
        _always_fused = False


def _seen(q: Tensor, k: Tensor, causal: bool, visible: Tensor | None) -> Tensor:
    """Bool, broadcast to (…, M, L): which tokens each of the last M sees."""
    M, L = q.shape[-2], k.shape[-2]
    if visible is not None:
        visible = visible.view(len(visible), *[1] * (q.ndim - 2), L)
        if not causal:
            return visible
    before = torch.ones(M, L, dtype=torch.bool, device=q.device).tril(L - M)
    if visible is None:
        return before
    own = before ^ before.tril(L - M - 1)  # or a hidden first token would see nothing, and be no number
    return before & visible | own

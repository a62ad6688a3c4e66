"""The transformer's blocks as a CPU runs them fastest where no gradients are wanted.

A linear layer's weight is laid out once for oneDNN, in place of at every call, and GELU is computed in the same pass as
the product before it.  Products run in the precision asked for; what goes from block to block stays float32, so that in
bfloat16 the result is nearer to float32's than that of the plain blocks (`benchmarks/forward.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PackedLinear:
    """x·Wᵀ + b, with W laid out for oneDNN; activation: "none" or "gelu"."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, activation: str = "none"):
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().to(dtype), None)
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype)
        self.activation = activation

    def __call__(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out), of the weight's dtype."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self.activation, [], "none")


class PackedBlock:
    """What `Block` computes; takes any precision and gives float32."""

    def __init__(self, block: Any, dtype: torch.dtype):
        self.dtype = dtype
        self.norm1, self.norm2 = PackedNorm(block.norm1), PackedNorm(block.norm2)
        self.qkv, self.out = PackedLinear(block.attention.qkv, dtype), PackedLinear(block.attention.out, dtype)
        self.expand, self.contract = PackedLinear(block.expand, dtype, "gelu"), PackedLinear(block.contract, dtype)
        self.attend = block.attention.attend
        self.scale1, self.scale2 = (None if s is None else s.detach().float() for s in (block.scale1, block.scale2))

    def __call__(self, x: Tensor, *how: Any, **also: Any) -> Tensor:
        """(B, M, D) → (B, M, D); the rest is told to the attention, as in `Block`."""
        x = x.float()
        y = self.out(self.attend(self.qkv(self.norm1(x).to(self.dtype)), *how, **also)).float()
        x = x + (y if self.scale1 is None else y * self.scale1)
        y = self.contract(self.expand(self.norm2(x).to(self.dtype))).float()
        return x + (y if self.scale2 is None else y * self.scale2)


class PackedNorm:
    """LayerNorm in float32."""

    def __init__(self, norm: nn.LayerNorm):
        self.weight, self.bias = norm.weight.detach().float(), norm.bias.detach().float()
        self.eps = norm.eps

    def __call__(self, x: Tensor) -> Tensor:
        """(…, D) → (…, D)."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


_packed: WeakKeyDictionary[nn.Module, tuple[object, list[PackedBlock]]] = WeakKeyDictionary()


def fastest(blocks: nn.ModuleList, x: Tensor) -> Iterable[Callable[..., Tensor]]:
    """The blocks themselves, or on a CPU without gradients what computes the same faster; made anew when a weight has
    changed.  x: what they are about to be given.
    """
    dtype = _packable(blocks, x)
    if dtype is None:
        return blocks
    key = (dtype, [(p.data_ptr(), p._version) for p in blocks.parameters()])
    known = _packed.get(blocks)
    if known is None or known[0] != key:
        with torch.autocast("cpu", enabled=False):
            known = _packed[blocks] = (key, [PackedBlock(block, dtype) for block in blocks])
    return known[1]


def _packable(blocks: nn.ModuleList, x: Tensor) -> torch.dtype | None:
    """The precision of the products; None where the plain blocks serve better."""
    if torch.is_grad_enabled() or x.device.type != "cpu" or torch.compiler.is_compiling() or not _has_onednn():
        return None
    weight = next(blocks.parameters(), None)
    if type(weight) is not nn.Parameter or weight.is_inference():  # spread, simulated, or without a version
        return None
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype
    usable = dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype if usable else None


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")

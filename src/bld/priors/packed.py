"""The transformer's blocks as they run fastest where no gradients are wanted.

On a CPU a linear layer's weight is laid out once for oneDNN, in place of at every call, and GELU is computed in the
same pass as the product before it.  On a GPU under autocast a weight is cast once, in place of at every call.  Products
run in the precision asked for; what goes from block to block stays float32, so that in bfloat16 the result is nearer to
float32's than that of the plain blocks (`benchmarks/forward.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bld.nn.attention import attend
from bld.runtime.precision import Autocast


class PackedLinear:
    """x·Wᵀ + b, or GELU of it, with W in the precision and layout that it is used in."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, gelu: bool = False):
        self.weight = linear.weight.detach().to(dtype, copy=True)
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype, copy=True)
        self.gelu, self.is_laid_out = gelu, self.weight.device.type == "cpu"
        if self.is_laid_out:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, None)

    def __call__(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out), of the weight's dtype."""
        if self.is_laid_out:
            activation = "gelu" if self.gelu else "none"
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, activation, [], "none")
        y = F.linear(x, self.weight, self.bias)
        return F.gelu(y) if self.gelu else y


class PackedBlock:
    """What `Block` computes; takes any precision and gives float32."""

    def __init__(self, block: Any, dtype: torch.dtype):
        self.dtype, self.heads = dtype, block.attention.heads
        self.norm1, self.norm2 = PackedNorm(block.norm1), PackedNorm(block.norm2)
        self.qkv, self.out = PackedLinear(block.attention.qkv, dtype), PackedLinear(block.attention.out, dtype)
        self.expand, self.contract = PackedLinear(block.expand, dtype, gelu=True), PackedLinear(block.contract, dtype)
        self.scale1, self.scale2 = (None if s is None else _copied(s) for s in (block.scale1, block.scale2))

    def __call__(self, x: Tensor, *how: Any, **also: Any) -> Tensor:
        """(B, M, D) → (B, M, D); the other arguments are the attention's, as in `Block`."""
        x = x.float()
        with torch.autocast(x.device.type, enabled=False):
            return self._forward(x, *how, **also)

    def _forward(self, x: Tensor, *how: Any, **also: Any) -> Tensor:
        y = self.out(attend(self.qkv(self.norm1(x).to(self.dtype)), self.heads, *how, **also)).float()
        x = x + (y if self.scale1 is None else y * self.scale1)
        y = self.contract(self.expand(self.norm2(x).to(self.dtype))).float()
        return x + (y if self.scale2 is None else y * self.scale2)


class PackedNorm:
    """LayerNorm in float32."""

    def __init__(self, norm: nn.LayerNorm):
        self.weight, self.bias = _copied(norm.weight), _copied(norm.bias)
        self.eps = norm.eps

    def __call__(self, x: Tensor) -> Tensor:
        """(…, D) → (…, D)."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


def _copied(parameter: Tensor) -> Tensor:
    return parameter.detach().to(torch.float32, copy=True)


class PackedBlocks(nn.Module):
    """In place of a list of blocks: computes the same faster, from the weights as they were when it was made."""

    def __init__(self, blocks: nn.ModuleList, dtype: torch.dtype):
        super().__init__()
        self.packed = [PackedBlock(block, dtype) for block in blocks]

    def __iter__(self) -> Iterator[PackedBlock]:
        return iter(self.packed)

    def __len__(self) -> int:
        return len(self.packed)


def packed(blocks: nn.ModuleList, precision: Autocast) -> PackedBlocks | None:
    """The blocks packed in that precision; None where they cannot be, or would not be faster."""
    dtype = _packable(next(blocks.parameters(), None), precision)
    return None if dtype is None else PackedBlocks(blocks, dtype)


def _packable(weight: Tensor | None, precision: Autocast) -> torch.dtype | None:
    """The precision of the products."""
    if type(weight) is not nn.Parameter:  # spread over processes, or simulated
        return None
    dtype = precision.dtype if precision.is_on else weight.dtype
    if weight.device.type == "cuda":
        return dtype if precision.is_on and weight.dtype == torch.float32 else None
    usable = dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype if weight.device.type == "cpu" and usable and _has_onednn() else None


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")

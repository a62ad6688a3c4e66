"""Is attention written out faster than torch's fused kernel here?  Prints a table and writes benchmarks/attention.json.

    python benchmarks/attention.py

For each shape both are timed in turn, forward and backward, in this process; the ratio is what counts.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bld.runtime.processor import device_name

SHAPES = [(128, 6, 18, 32), (64, 8, 66, 32), (16, 8, 66, 64), (8, 8, 257, 64), (1, 8, 257, 64)]
REPEATS = 9


def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v


def milliseconds(call: Callable[[], Tensor], backward: bool) -> float:
    started = time.perf_counter()
    out = call()
    if backward:
        out.sum().backward()
    return 1e3 * (time.perf_counter() - started)


def compare(shape: tuple[int, int, int, int], dtype: torch.dtype, backward: bool) -> dict[str, object]:
    batch, heads, tokens, width = shape
    q, k, v = (torch.randn(batch, tokens, heads, width, dtype=dtype).transpose(1, 2) for _ in range(3))
    for tensor in (q, k, v):
        tensor.requires_grad_(backward)
    pairs = [
        (
            milliseconds(lambda: F.scaled_dot_product_attention(q, k, v), backward),
            milliseconds(lambda: written_out(q, k, v), backward),
        )
        for _ in range(REPEATS + 2)
    ][2:]
    fused, written = (statistics.median(column) for column in zip(*pairs, strict=True))
    row = {"shape": shape, "dtype": str(dtype), "backward": backward, "fused_ms": fused, "written_ms": written}
    which = "fwd+bwd" if backward else "fwd"
    print(f"{shape!s:22} {dtype!s:16} {which:8} {fused:8.2f} {written:8.2f} {fused / written:6.2f}×")
    return row


def main() -> None:
    print("shape (B, heads, M, d)  dtype            pass     fused ms  written ms  fused/written")
    rows = [
        compare(shape, dtype, b) for dtype in (torch.bfloat16, torch.float32) for b in (False, True) for shape in SHAPES
    ]
    machine = {"torch": torch.__version__, "machine": device_name(torch.device("cpu"))}
    Path(__file__).with_suffix(".json").write_text(json.dumps({**machine, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

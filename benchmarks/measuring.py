"""What the benchmarks share: fair turns, the machine's own limits, and where results go.

Times wander on shared machines and ratios hold: whatever is compared is called in turn, round after round, and a ratio
is the median over rounds, with its smallest and largest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from bld.runtime.processor import device_name

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PRECISIONS = {"bf16": torch.bfloat16, "float32": torch.float32}
Call = Callable[[], Any]


class Spread(NamedTuple):
    """A median over rounds, with the smallest and the largest."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.least:.3g} … {self.most:.3g})"


def spread(values: list[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def seconds(call: Call) -> float:
    started = time.perf_counter()
    call()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def in_turn(calls: dict[str, Call], rounds: int, warm_ups: int = 1) -> dict[str, list[float]]:
    """Seconds of each call in each round."""
    for _ in range(warm_ups):
        for call in calls.values():
            seconds(call)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call))
    return times


def ratios(times: dict[str, list[float]], over: str, under: str) -> Spread:
    """seconds of `over` per seconds of `under`, round by round."""
    return spread([a / b for a, b in zip(times[over], times[under], strict=True)])


def share_of_rate(times: dict[str, list[float]], name: str, flops: float, reference: str, its_flops: float) -> Spread:
    """Operations per second of a call over those of the reference, round by round: 1 is the machine's limit."""
    rounds = zip(times[name], times[reference], strict=True)
    return spread([flops / a / (its_flops / b) for a, b in rounds])


def precise(name: str) -> AbstractContextManager[Any]:
    """Autocast for bf16, nothing for float32."""
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=name == "bf16")


def best_product(dtype: torch.dtype) -> tuple[Call, float]:
    """(the large matrix product that this machine computes at the highest rate, its operations)."""
    found = []
    sizes = (1024, 2048, 4096) if DEVICE.type == "cpu" else (4096, 8192, 16384)
    for size in sizes:
        a, b = (torch.randn(size, size, device=DEVICE, dtype=dtype) for _ in range(2))
        call = lambda a=a, b=b: F.linear(a, b)  # noqa: E731
        best = min(in_turn({"product": call}, rounds=5)["product"])
        found.append((2 * size**3 / best, call, 2.0 * size**3))
    _, call, flops = max(found, key=lambda entry: entry[0])
    return call, flops


def machine() -> dict[str, Any]:
    return {
        "device": device_name(DEVICE),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "spin": os.environ.get("GOMP_SPINCOUNT", ""),
    }


def options(doc: str | None, **defaults: Any) -> argparse.Namespace:
    """--out, and one option for each default."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for the results (default: beside the script)")
    for name, value in defaults.items():
        many = isinstance(value, list)
        kind = type(value[0] if many else value)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=value, nargs="+" if many else None)
    return parser.parse_args()


def write(script: str, out: Path | None, entries: dict[str, Any]) -> None:
    """Results with the machine; those of a GPU lie beside those of a CPU."""
    name = Path(script).stem + ("-gpu" if DEVICE.type == "cuda" else "")
    path = (out or Path(script).parent) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**machine(), **entries}, indent=2) + "\n")
    print(f"Written: {path.name}")


def table(rows: list[dict[str, Any]]) -> None:
    """Columns as wide as they need."""
    cells = [list(rows[0]), *[[_shown(value) for value in row.values()] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    for row in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)), flush=True)


def _shown(value: Any) -> str:
    if isinstance(value, Spread | str):
        return str(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)

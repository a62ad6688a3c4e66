"""What does the code cache save?  Training the prior from it, against encoding every image again at every step.

    python benchmarks/online.py

`churches256`, the paper's sizes and batch; the public code encodes online, in float32.  Both kinds of step begin with
codes or images in memory, so that decoding JPEGs, which only the online way needs, is not counted.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from measuring import DEVICE, in_turn, options, precise, ratios, spread, table, write
from steps import prior_run, stepping

from bld.tokenizer import BinaryAutoencoder
from bld.training.config import load_settings


def main() -> None:
    args = options(__doc__, batch=8 if DEVICE.type == "cpu" else 32, rounds=3)
    overrides = ["mixed_precision=bf16", f"prior_training.batch_size={args.batch}"]
    settings = load_settings("churches256", overrides=overrides)
    tokenizer = BinaryAutoencoder(settings.tokenizer).to(DEVICE).eval()
    images = torch.rand(args.batch, 3, 256, 256, device=DEVICE) * 2 - 1

    def encode(precision: str) -> None:
        with precise(precision):
            for part in images.split(4 if DEVICE.type == "cpu" else args.batch):
                tokenizer.encode(part)

    with tempfile.TemporaryDirectory() as folder:
        step = stepping(prior_run(settings, Path(folder)))
        calls = {
            "cached": step,
            "online bf16": lambda: (encode("bf16"), step()),
            "online float32": lambda: (encode("float32"), step()),
        }
        times = in_turn(calls, args.rounds)
    rows = [
        {"step": name, "seconds": spread(times[name]).median, "to cached": ratios(times, name, "cached")}
        for name in calls
    ]
    table(rows)
    write(__file__, args.out, {"batch": args.batch, "rows": rows})


if __name__ == "__main__":
    main()

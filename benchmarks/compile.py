"""When does torch.compile pay off?  Eager and compiled steps in turn, and how many steps it takes to earn compiling.

    python benchmarks/compile.py

Every stage at the size of the preset cifar10: a training step of tokenizer and prior (`compile=true`), encoding and
decoding a batch, and a denoiser's forward (`--compile`).
"""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path

import torch
from measuring import DEVICE, in_turn, options, precise, ratios, spread, table, write
from steps import prior_run, stepping, tokenizer_run

from bld.priors import Denoiser
from bld.tokenizer import BinaryAutoencoder
from bld.training.config import load_settings


def pairs(precision: str, preset: str, folder: Path):
    """(what, eager call, compiled call)"""
    overrides = [f"mixed_precision={precision}"]
    eager, compiled = (load_settings(preset, overrides=[*overrides, *more]) for more in ([], ["compile=true"]))
    for stage, make in (("tokenizer training step", tokenizer_run), ("prior training step", prior_run)):
        runs = (make(s, folder / f"{stage}-{s.compile}") for s in (eager, compiled))
        yield (stage, *map(stepping, runs))
    config = eager.tokenizer
    images = torch.rand(64, 3, config.image_size, config.image_size, device=DEVICE) * 2 - 1
    models = [BinaryAutoencoder(config).to(DEVICE).eval() for _ in range(2)]
    models[1].compile(dynamic=False)
    yield (
        "encode and decode 64",
        *[lambda m=m: in_precision(precision, lambda: m.decode(m.encode(images))) for m in models],
    )
    denoiser = eager.denoiser(config.code_shape, 0)
    networks = [Denoiser(denoiser).to(DEVICE).eval() for _ in range(2)]
    networks[1].compile(dynamic=False)
    for batch in (1, 64):
        z = torch.zeros(batch, denoiser.code_shape.positions, denoiser.code_bits, dtype=torch.uint8, device=DEVICE)
        t = torch.ones(batch, dtype=torch.long, device=DEVICE)
        with precise(precision):
            calls = [n.for_inference().for_sampling() for n in networks]
        yield (
            f"denoiser forward, batch {batch}",
            *[lambda c=c, z=z, t=t: in_precision(precision, lambda: c(z, t)) for c in calls],
        )


@torch.no_grad()
def in_precision(precision: str, call) -> None:
    with precise(precision):
        call()


def main() -> None:
    args = options(__doc__, preset="cifar10", rounds=5)
    rows = []
    for precision in ("bf16", "float32"):
        with tempfile.TemporaryDirectory() as folder:
            for what, eager, compiled in pairs(precision, args.preset, Path(folder)):
                started = time.perf_counter()
                compiled()
                first = time.perf_counter() - started
                times = in_turn({"eager": eager, "compiled": compiled}, args.rounds)
                saved = spread(times["eager"]).median - spread(times["compiled"]).median
                row = {"precision": precision, "what": what, "eager ms": 1e3 * spread(times["eager"]).median}
                row |= {"eager / compiled": ratios(times, "eager", "compiled"), "first call s": first}
                rows.append({**row, "pays off after": f"{math.ceil(first / saved):,}" if saved > 0 else "never"})
                table(rows[-1:])
    table(rows)
    write(__file__, args.out, {"rows": rows})


if __name__ == "__main__":
    main()

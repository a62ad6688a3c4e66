"""How does cost grow with the work?  Steps, batch, tokens, bits and processes, with the fitted exponent of each.

    python benchmarks/growth.py

Sampling from a 12 × 512 × 8 denoiser in bfloat16, one quantity at a time around 16 steps, batch 1, 256 tokens, 32 bits;
processes share one global batch of 64 of the preset digits' prior training.  An exponent of 1 is proportional.
Writes growth.json and docs/images/growth.png.
"""

from __future__ import annotations

import json
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from measuring import DEVICE, in_turn, options, precise, table, write

from bld.diffusion import BernoulliDiffusion, NoiseSchedule, sample_codes
from bld.priors import Denoiser, DenoiserConfig
from bld.seeding import keyed_draws

BASE = {"steps": 16, "batch": 1, "tokens": 256, "bits": 32}
GROWN = {
    "steps": [4, 8, 16, 32, 64],
    "batch": [1, 2, 4, 8, 16],
    "tokens": [64, 144, 256, 576, 1024],
    "bits": [8, 16, 32, 64, 128],
}
PROCESSES = [1, 2]


def sampling(steps: int, batch: int, tokens: int, bits: int):
    side = math.isqrt(tokens)
    network = Denoiser(DenoiserConfig(side, side, bits, depth=12)).to(DEVICE).eval().for_inference().for_sampling()
    diffusion = BernoulliDiffusion(NoiseSchedule("linear", 64))

    def call() -> None:
        generators = keyed_draws(0, "growth", range(batch))
        sample_codes(network, (batch, tokens, bits), diffusion, steps=steps, generators=generators, device=DEVICE)

    return call


def exponent(xs: list[float], ys: list[float]) -> float:
    """Slope of the least-squares line through the logarithms."""
    lx, ly = [math.log(x) for x in xs], [math.log(y) for y in ys]
    mx, my = statistics.fmean(lx), statistics.fmean(ly)
    return sum((x - mx) * (y - my) for x, y in zip(lx, ly, strict=True)) / sum((x - mx) ** 2 for x in lx)


def by_processes(count: int, steps: int) -> float:
    """Seconds per step of the prior's training, by its own record, after a tokenizer that hardly trains."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = (
        ["-m", "torch.distributed.run", f"--nproc-per-node={count}", f"--master-port={port}"] if count > 1 else []
    )
    overrides = ["tokenizer_training.steps=1", "tokenizer_training.previews=0", "prior_training.previews=0"]
    overrides += [f"prior_training.steps={steps}", "prior_training.batch_size=64", "mixed_precision=float32"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        common = ["--data", "digits", "--preset", "digits", "--out", str(out), *overrides]
        for subcommand, start in (("train-tokenizer", []), ("train-prior", launcher)):
            command = [sys.executable, *start, "-m", "bld", subcommand, *common]
            subprocess.run(command, check=True, env=environment, capture_output=True)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        mine = [line for line in lines if line["stage"] == "prior" and "learning_rate" in line]
        return (mine[-1]["seconds"] - mine[0]["seconds"]) / (mine[-1]["step"] - mine[0]["step"])


def draw(found: dict[str, dict[str, object]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(found), figsize=(3 * len(found), 3), layout="constrained")
    for axis, (name, entry) in zip(axes, found.items(), strict=True):
        axis.loglog(entry["x"], entry["seconds"], "o-", base=2)
        axis.set_title(f"{name}: exponent {entry['exponent']:.2f}")
        axis.set_xlabel(name)
        axis.set_xticks(entry["x"], [str(x) for x in entry["x"]])
        middle = math.exp(statistics.fmean(math.log(t) for t in entry["seconds"]))
        axis.set_ylim(min(middle / 3, 0.8 * min(entry["seconds"])), max(middle * 3, 1.2 * max(entry["seconds"])))
        axis.yaxis.set_major_formatter("{x:g}")  # and noise is not drawn as large as growth
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("seconds")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


@torch.no_grad()
def main() -> None:
    args = options(__doc__, rounds=3, process_steps=60)
    found: dict[str, dict[str, object]] = {}
    with precise("bf16"):
        for name, values in GROWN.items():
            calls = {str(value): sampling(**{**BASE, name: value}) for value in values}
            times = [statistics.median(t) for t in in_turn(calls, args.rounds).values()]
            found[name] = {"x": values, "seconds": times, "exponent": exponent(values, times)}
            print(f"{name:<10} exponent {found[name]['exponent']:.2f}  {[round(t, 3) for t in times]}", flush=True)
    if DEVICE.type == "cpu":
        times = [by_processes(count, args.process_steps) for count in PROCESSES]
        found["processes"] = {"x": PROCESSES, "seconds": times, "exponent": exponent(PROCESSES, times)}
    table([{"of": name, "exponent": entry["exponent"]} for name, entry in found.items()])
    write(__file__, args.out, {"base": BASE, "found": found})
    pictures = args.out or Path(__file__).parent.parent / "docs" / "images"
    draw(found, pictures / ("growth.png" if DEVICE.type == "cpu" else "growth-gpu.png"))


if __name__ == "__main__":
    main()

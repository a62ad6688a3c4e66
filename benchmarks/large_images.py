"""What 1024×1024 needs: memory and time of one step of each stage, of a sample, and of decoding whole or in tiles.

    python benchmarks/large_images.py --out benchmarks/large_images.json

The preset ffhq1024 at full size, batch 1; each case in a process of its own, whose highest resident memory is taken;
one that fails or takes too long is noted as such.  Training steps use activation checkpointing.  LPIPS's VGG-16 has
random weights here, so that nothing is downloaded: memory and time are the same.  `--size 128` tries it small.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CASES = ("imports", "decode", "decode-strips", "encode", "encode-strips", "tokenizer-step", "prior-step", "sample")
ROWS = 128


def settings_of(size: int):
    from bld.training.config import load_settings

    overrides = ["mixed_precision=float32", "data.held_out=1", "data.flip=false"]
    for stage in ("tokenizer_training", "prior_training"):
        overrides += [f"{stage}.batch_size=1", f"{stage}.steps=1", f"{stage}.activation_checkpointing=true"]
    return load_settings("ffhq1024", overrides=[*overrides, f"tokenizer.image_size={size}", "data.location=images"])


def run_case(case: str, size: int) -> dict[str, float]:
    """Seconds, and what came out of it."""
    import torch

    if case == "imports":
        import bld.training.recipe  # noqa: F401

        return {"seconds": 0.0}
    from bld.tokenizer import BinaryAutoencoder

    torch.manual_seed(0)
    settings = settings_of(size)
    if case in ("tokenizer-step", "prior-step"):
        return train_step(case.split("-")[0], settings)
    model = BinaryAutoencoder(settings.tokenizer).eval()
    model.tile_rows = ROWS if case.endswith("strips") else None
    with torch.no_grad():
        if case.startswith("encode"):
            images = torch.rand(1, 3, size, size) * 2 - 1
            started = time.monotonic()
            model.encode(images)
            return {"seconds": time.monotonic() - started}
        codes = torch.randint(0, 2, (1, *model.code_shape), dtype=torch.uint8)
        if case == "sample":
            return sample(model, settings)
        started = time.monotonic()
        model.decode(codes)
        return {"seconds": time.monotonic() - started}


def deviation(size: int, bf16: bool) -> float:
    """Largest difference between decoding in tiles and whole, of pixels in [0, 1]; at a size where both are cheap."""
    import torch

    from bld.tokenizer import BinaryAutoencoder

    torch.manual_seed(0)
    model = BinaryAutoencoder(settings_of(size).tokenizer).eval()
    codes = torch.randint(0, 2, (1, *model.code_shape), dtype=torch.uint8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        whole = model.decode(codes)
        model.tile_rows = min(ROWS, size // 4)
        return float((model.decode(codes) - whole).abs().max()) / 2


def train_step(stage_name: str, settings) -> dict[str, float]:
    from steps import prior_run, tokenizer_run

    with tempfile.TemporaryDirectory() as folder:
        make = tokenizer_run if stage_name == "tokenizer" else prior_run
        going = make(settings, Path(folder), 2)
        started = time.monotonic()
        values = going._train_step(going.stage.batches(0), 0.5)
        seconds = time.monotonic() - started
        parameters = sum(p.numel() for network in going.plain.values() for p in network.parameters())
    return {"seconds": seconds, "loss": float(values["loss"]), "parameters": parameters}


def sample(model, settings) -> dict[str, float]:
    """Four steps, and decoding in tiles, with an untrained prior of full size."""
    from bld.pipeline import BinaryLatentDiffusionPipeline
    from bld.priors import Denoiser
    from bld.serialization.models import PipelineIndex

    diffusion = settings.diffusion.build()
    prior = Denoiser(settings.denoiser(model.code_shape, 0), diffusion.evidence_logits()).eval()
    pipe = BinaryLatentDiffusionPipeline(model, prior, diffusion, PipelineIndex([])).enable_tiling(ROWS)
    started = time.monotonic()
    image = pipe(1, num_inference_steps=4, generator=0).images[0]
    assert image.size == (settings.tokenizer.image_size,) * 2
    return {"seconds": time.monotonic() - started}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--minutes", type=float, default=60, help="most that one case may take")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.case:
        found = run_case(args.case, args.size)
        found["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps(found))
        return
    import torch

    entries = {"size": args.size, "torch": torch.__version__, "threads": torch.get_num_threads(), "cases": {}}
    for case in args.cases:
        entries["cases"][case] = found = in_a_process(case, args.size, 60 * args.minutes)
        measured = f"{found['peak_gib']:6.2f} GiB  {found['seconds']:8.1f} s" if "seconds" in found else found["failed"]
        print(f"{case:<16} {measured}", flush=True)
        write(entries, args.out)
    small = min(args.size, 512)
    entries["deviation"] = {"size": small, "float32": deviation(small, False), "bfloat16": deviation(small, True)}
    print(f"decoding in tiles against whole, largest difference of pixels in [0, 1]: {entries['deviation']}")
    write(entries, args.out)


def in_a_process(case: str, size: int, most_seconds: float) -> dict[str, Any]:
    """What the case found, or under "failed" why it has found nothing."""
    command = [sys.executable, __file__, "--case", case, "--size", str(size)]
    environment = {**os.environ, "GOMP_SPINCOUNT": "0"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=most_seconds)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {most_seconds:.0f} s"}
    if done.returncode:
        print(done.stderr[-3000:], file=sys.stderr)
        return {"failed": f"exit status {done.returncode}"}  # -9: out of memory
    return json.loads(done.stdout.splitlines()[-1])


def write(entries: dict[str, Any], path: Path | None) -> None:
    if path is not None:
        path.write_text(json.dumps(entries, indent=2) + "\n")


if __name__ == "__main__":
    main()

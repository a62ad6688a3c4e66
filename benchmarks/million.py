"""A million tiny images: indexed, encoded, read at random and trained on.

    python benchmarks/million.py --out benchmarks/million.json

Makes images of 16×16 pixels as .png files in 1,000 folders and as 100 shards, below --folder (4 GB, removed at the
end), and measures, each case in a process of its own: seconds and memory (growth of the highest resident memory) of
searching for them, first and again; verifying and encoding all to codes of 16×16×32 bits by an untrained tokenizer with
the settings below; codes read per second in random order, unpacked; and the share of the time that training a prior of
the cifar10 preset's size waits for its batches.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np

CASES = ("search-folder", "search-folder-again", "search-shards", "search-shards-again", "encode", "read", "train")
OVERRIDES = [
    "mixed_precision=float32",
    "tokenizer.image_size=16",
    "tokenizer.channel_multipliers=[1]",
    "tokenizer.attention_resolutions=[]",
    "tokenizer.base_channels=8",
    "tokenizer.embed_dim=8",
    "tokenizer.code_bits=32",
    "codes.draws=0",
]
PER_FOLDER, SHARDS = 1000, 100


def make(folder: Path, count: int) -> None:
    """The same images as files and as shards; one in a hundred is new, the others are copies of it under new names."""
    from PIL import Image

    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(100):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    (folder / "shards").mkdir(parents=True)
    per_shard = -(-count // SHARDS)
    for shard in range(SHARDS):
        with tarfile.open(folder / "shards" / f"{shard:03d}.tar", "w") as tar:
            for i in range(shard * per_shard, min((shard + 1) * per_shard, count)):
                data = encoded[i % 100]
                info = tarfile.TarInfo(f"{i:07d}.png")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    for start in range(0, count, PER_FOLDER):
        inner = folder / "images" / f"{start // PER_FOLDER:04d}"
        inner.mkdir(parents=True)
        for i in range(start, min(start + PER_FOLDER, count)):
            (inner / f"{i:07d}.png").write_bytes(encoded[i % 100])


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_case(case: str, folder: Path) -> dict[str, float]:
    import torch

    from bld.data import ImageSet, open_images
    from bld.tokenizer import BinaryAutoencoder
    from bld.training.accelerator import make_accelerator
    from bld.training.code_cache import CodeCache
    from bld.training.config import load_settings

    settings = load_settings("cifar10", overrides=OVERRIDES)
    before, started = peak_mib(), time.monotonic()
    if case.startswith("search"):
        kind = "images" if "folder" in case else "shards"
        source = open_images(folder / kind, index_to=folder / f"run-{kind}")
        seconds = time.monotonic() - started
        return {"seconds": seconds, "memory_mib": peak_mib() - before, "images": len(source)}
    if case == "encode":
        from bld.training.stages.encode import encode_images

        images = ImageSet.open(
            folder / "shards", settings.preprocessing(), memory_limit_bytes=0, index_to=folder / "run-shards", threads=2
        )
        verified = time.monotonic() - started
        torch.manual_seed(0)
        model = BinaryAutoencoder(settings.tokenizer).eval()
        started = time.monotonic()
        cache, _ = encode_images(
            folder / "codes", model, images, draws=0, seed=0, accelerator=make_accelerator("float32"), workers=1,
            say=lambda _: None,
        )  # fmt: skip
        seconds = time.monotonic() - started
        rate = len(images) / seconds
        return {
            "seconds": seconds,
            "verified_in": verified,
            "images_per_second": rate,
            "memory_mib": peak_mib() - before,
        }
    cache = CodeCache(folder / "codes")
    if case == "read":
        order = np.random.default_rng(0).permutation(len(cache))
        found = {}
        for batch in (64, 256, 1024):
            started = time.monotonic()
            for start in range(0, len(order), batch):
                cache.read(order[start : start + batch])
            found[f"codes_per_second_{batch}"] = len(order) / (time.monotonic() - started)
        return {**found, "memory_mib": peak_mib() - before}
    return waiting(settings, cache, folder)


def waiting(settings, cache, folder: Path) -> dict[str, float]:
    """The share of training's time between asking for a batch and having it."""
    import torch

    from bld.tokenizer import BinaryAutoencoder
    from bld.training.accelerator import make_accelerator
    from bld.training.loop import StageRun
    from bld.training.run_folder import RunFolder
    from bld.training.stages.prior import HeldOutCodes, PriorStage

    run, accelerator = RunFolder(folder / "run-prior"), make_accelerator("float32")
    held_out = HeldOutCodes(cache.read(np.arange(64)), None)
    with torch.device("meta"):
        tokenizer = BinaryAutoencoder(settings.tokenizer)
    tokenizer.to = lambda *_, **__: tokenizer
    stage = PriorStage(settings, cache, held_out, tokenizer, accelerator, run)
    going = StageRun(stage, run, accelerator, None, lambda _: None)
    batches = stage.batches(0)
    waited = 0.0

    def timed():
        nonlocal waited
        while True:
            asked = time.monotonic()
            batch = next(batches)
            waited += time.monotonic() - asked
            yield batch

    asking = timed()
    going._train_step(asking, 0.0)  # the first draws the epoch's order
    first, waited = waited, 0.0
    started = time.monotonic()
    steps = 10
    for going.step in range(1, steps + 1):
        going._train_step(asking, 0.0)
    total = time.monotonic() - started
    return {"waits": waited / total, "seconds_per_step": total / steps, "first_batch_seconds": first}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where to make them (default: a temporary folder)")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(run_case(args.case, args.folder)))
        return
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    rows = {}
    try:
        started = time.monotonic()
        make(folder, args.images)
        print(f"made {args.images:,} images twice in {time.monotonic() - started:.0f} s", flush=True)
        for case in CASES:
            command = [sys.executable, __file__, "--case", case, "--folder", str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "GOMP_SPINCOUNT": "0"})
            if done.returncode:
                raise SystemExit(f"{case} failed:\n{done.stderr[-3000:]}")
            rows[case] = json.loads(done.stdout.splitlines()[-1])
            print(f"{case:<22} " + ", ".join(f"{k} {v:,.4g}" for k, v in rows[case].items()), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if args.out:
        args.out.write_text(json.dumps({"images": args.images, "cases": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""What judging costs beyond the extractor: memory, and time of the metrics' arithmetic against feature extraction.

    python benchmarks/evaluation.py [--images 50000] [--dim 2048] [--timed 64] [--out benchmarks/evaluation.json]

Memory: 50,000 random 32×32 images stream through an extractor of next to no cost but Inception's 2,048 features, and
are scored against 50,000 others: growth of the process's peak resident memory from before the first image to after the
last metric. Time: of that arithmetic, over that of Inception-v3 (torchvision's architecture, random weights, 299×299,
float32, eval mode) on the same number of images, extrapolated from `--timed` images of it in the same run.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import torch

from bld.evaluation.features import FeatureExtractor, Features
from bld.evaluation.metrics.distances import extract, score
from bld.experiments.page import machine


class Light(FeatureExtractor):
    """Inception's number of features from a fixed random matrix: costs next to nothing."""

    name, sha256, classes = "light", "0" * 16, ()

    def __init__(self, dim: int):
        self.dim = dim
        self.weights = torch.randn(3 * 64, dim, generator=torch.Generator().manual_seed(0))

    def __call__(self, images: torch.Tensor) -> Features:
        small = torch.nn.functional.avg_pool2d(images.float() / 255 - 0.5, images.shape[-1] // 8)
        return Features((small.flatten(1) @ self.weights).relu(), None)


def stream(n: int, seed: int, batch: int = 500):
    for start in range(0, n, batch):
        generator = torch.Generator().manual_seed(seed + start)
        yield torch.randint(0, 256, (min(batch, n - start), 3, 32, 32), dtype=torch.uint8, generator=generator)


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@torch.no_grad()
def inception_seconds_per_image(images: int) -> float:
    from torchvision.models import inception_v3

    network = inception_v3(weights=None, init_weights=False, aux_logits=False).eval()
    batch = torch.randn(min(images, 32), 3, 299, 299)
    network(batch)
    started = time.perf_counter()
    for _ in range(max(1, images // len(batch))):
        network(batch)
    return (time.perf_counter() - started) / (max(1, images // len(batch)) * len(batch))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--timed", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()

    extractor = Light(args.dim)
    score(extract(stream(200, 1), extractor), extract(stream(200, 2), extractor))  # libraries loaded, buffers warm
    before = peak_bytes()
    tables = [extract(stream(args.images, seed), extractor) for seed in (0, 10**6)]
    arithmetic = {}
    for metric in ("fd", "kid", "precision", "diversity"):
        started = time.perf_counter()
        score(tables[0], tables[1], [metric])
        arithmetic[metric] = round(time.perf_counter() - started, 1)
    grown = peak_bytes() - before
    per_image = inception_seconds_per_image(args.timed)
    total, extraction = sum(arithmetic.values()), 2 * args.images * per_image
    result = {
        "machine": machine(),
        "images": args.images,
        "dim": args.dim,
        "memory_growth_gib": round(grown / 2**30, 2),
        "arithmetic_seconds": arithmetic,
        "inception_seconds_per_image": round(per_image, 4),
        "extraction_seconds_both_sets": round(extraction),
        "arithmetic_over_extraction": round(total / extraction, 4),
    }
    for name, value in result.items():
        print(f"{name:<32}{value}")
    args.out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""What `evaluation.json` holds, and what the terminal shows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bld.codes import learned_sentence
from bld.data import ImageSet
from bld.evaluation.features import PRECISION, FeatureExtractor
from bld.evaluation.request import Request


def record(
    metrics: dict[str, Any],
    request: Request,
    extractor: FeatureExtractor | None,
    reference: ImageSet,
    unseen: ImageSet | None,
    made: dict[str, Any],
    counts: dict[str, dict[str, int]],
) -> dict[str, Any]:
    """What `evaluation.json` holds: the metrics, how many images each is of, and all that changes them."""
    import importlib.metadata

    from bld._version import __version__

    def version(name: str) -> str:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    return {
        "figures": metrics,
        "counts": counts,
        "samples": made,
        "request": asdict(request),
        "reference": describe_images(reference),
        "unseen": None if unseen is None else describe_images(unseen),
        "extractor": None
        if extractor is None
        else {
            "name": extractor.name,
            "sha256": extractor.sha256,
            "dim": extractor.dim,
            "distance": extractor.distance_name(),
            "precision": PRECISION,
        },
        "versions": {
            "bld": __version__,
            **{name: version(name) for name in ("torch", "torch-fidelity", "torchmetrics")},
        },
    }


def joined(new: dict[str, Any], earlier: object) -> tuple[dict[str, Any], list[str]]:
    """The new record with the figures of an earlier one that were measured alike.

    Args:
        new: as `record` gives it.
        earlier: what the file of it holds so far.

    Returns:
        The record, and the names of the earlier figures that it cannot hold, since something that moves them differs.
    """
    if not isinstance(earlier, dict) or not isinstance(earlier.get("figures"), dict):
        return new, []
    lost = [name for name in earlier["figures"] if name not in new["figures"]]
    if _alike(new) != _alike(earlier):
        return new, lost
    extractors = [record["extractor"] for record in (earlier, new) if record.get("extractor")]
    if extractors[1:] and extractors[0] != extractors[1]:
        return new, lost
    metrics = dict.fromkeys([*earlier["request"]["metrics"], *new["request"]["metrics"]])
    return {
        **new,
        "figures": {**earlier["figures"], **new["figures"]},
        "counts": {**earlier.get("counts", {}), **new["counts"]},
        "request": {**new["request"], "metrics": list(metrics)},
        "extractor": extractors[0] if extractors else None,
    }, []


def _alike(record: dict[str, Any]) -> Any:
    """All that moves a figure, but for the extractor, as the file holds it."""
    request = {name: value for name, value in record["request"].items() if name not in ("metrics", "batch_size")}
    return json.loads(json.dumps([request, *(record.get(k) for k in ("samples", "reference", "unseen", "versions"))]))


def describe_images(images: ImageSet) -> dict[str, Any]:
    """Where the images are from, how many, which, and how they became squares."""
    return {
        "location": images.location,
        "images": len(images),
        "fingerprint": images.fingerprint,
        "preprocessing": images.preprocessing.key(),
        "format": sorted({Path(name).suffix.lower() or "array" for name in images.names[:1000]}),
    }


def lines(metrics: dict[str, Any], extractor: FeatureExtractor | None) -> Iterator[str]:
    """The metrics, a line each, for the terminal; a distance is never named without its extractor."""
    distance = "" if extractor is None else extractor.distance_name()
    by = "" if extractor is None else f" [{extractor.name}]"
    if "noise_bits" in metrics:
        bits = round(metrics["bits_per_code"] / metrics["bits_per_bit"])
        yield learned_sentence(bits, metrics["bits_per_code"], metrics["noise_bits"], metrics["independent_bits"])
    named = {"fd": distance, "rfd": f"reconstruction {distance}", "kid_mean": f"KID{by}", "kid_std": f"KID spread{by}"}
    featured = ("is_mean", "is_std", "precision", "recall", "diversity")
    for name, value in metrics.items():
        if isinstance(value, list):
            continue
        if isinstance(value, str):
            yield f"{name:<52}{value}"
            continue
        yield f"{named.get(name, name + (by if name in featured else '')):<52}{value:.5g}"

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

PARTS: dict[str, dict[str, tuple[str, ...] | None]] = {
    "sampling": {
        "samples": ("seed", "steps", "temperature", "guidance_scale"),
        "request": ("num", "seed", "steps", "temperature", "guidance_scale", "classes"),
    },
    "asked": {"samples": ("asked",)},
    "reference": {"reference": None},
    "extractor": {"extractor": None},
    "cas": {"request": ("cas_epochs", "cas_network")},
    "unseen": {"unseen": None, "partly_seen": None},
    "reconstructed": {"request": ("reconstructed",)},
    "codes": {"request": ("codes", "code_draws")},
    "draws": {"draws": None},
}
"""What moves some figures and not others: the sections of a record, and what of them (None: all)."""


def record(
    metrics: dict[str, Any],
    request: Request,
    extractor: FeatureExtractor | None,
    reference: ImageSet,
    unseen: ImageSet | None,
    made: dict[str, Any],
    counts: dict[str, dict[str, int]],
    are_unseen: bool = True,
) -> dict[str, Any]:
    """What `evaluation.json` holds: the metrics, how many images each is of, and all that changes them.

    Args:
        metrics: by name.
        request: what was asked for.
        extractor: of the features, if any were needed.
        reference: what samples were compared with.
        unseen: what reconstruction and likelihood were measured of, if anything.
        made: what decides the samples.
        counts: how many images each metric is of, as `evaluate_run` tells it.
        are_unseen: whether none of the unseen images was trained on; if not, they are recorded as "partly_seen".
    """
    import importlib.metadata

    from bld._version import __version__

    def version(name: str) -> str:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    described = None if unseen is None else describe_images(unseen)
    if not are_unseen:
        counts = {
            name: {"partly_seen" if of == "unseen" else of: count for of, count in counted.items()}
            for name, counted in counts.items()
        }
    return {
        "figures": metrics,
        "counts": counts,
        "samples": made,
        "request": asdict(request),
        "draws": {"seed": request.seed},
        "reference": describe_images(reference),
        "unseen": described if are_unseen else None,
        "partly_seen": None if are_unseen else described,
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
    """The new record with those figures of an earlier one that everything the record then says is true of.

    A figure moves with some parts of a record only (`_moves_with`). Each part is told once, so that an earlier figure
    stays where none of its parts differs from one that a new figure moves with.

    Args:
        new: as `record` gives it.
        earlier: what the file of it holds so far.

    Returns:
        The record, and the names of the earlier figures that it cannot hold, since something that moves them differs.
    """
    if not isinstance(earlier, dict) or not isinstance(earlier.get("figures"), dict):
        return new, []
    others = [name for name in earlier["figures"] if name not in new["figures"]]
    asked, counts = earlier.get("request"), earlier.get("counts") or {}
    if not isinstance(asked, dict) or _shared(new) != _shared(earlier):
        return new, others
    earlier = {"draws": {"seed": asked.get("seed")}, **earlier, "counts": counts}  # older files tell one seed of all
    needed = {part for name in new["figures"] for part in _moves_with(new, name)}
    differing = {part for part in needed if _part(new, part) != _part(earlier, part)}
    kept = [name for name in others if not differing & set(_moves_with(earlier, name))]
    lost = [name for name in others if name not in kept]
    if not kept:
        return new, lost
    both = {
        **new,
        "samples": {**new["samples"]},
        "figures": {name: earlier["figures"][name] for name in kept} | new["figures"],
        "counts": {name: counts[name] for name in kept if name in counts} | new["counts"],
        "request": {**new["request"]},
    }
    for part in {part for name in kept for part in _moves_with(earlier, name)} - needed:
        for section, names in PARTS[part].items():
            found = earlier.get(section)
            both[section] = (
                found if names is None else both[section] | {k: v for k, v in (found or {}).items() if k in names}
            )
    measured = [name for name in asked.get("metrics", []) if not any(_is_of(figure, name) for figure in lost)]
    both["request"]["metrics"] = list(dict.fromkeys([*measured, *new["request"]["metrics"]]))
    return both, lost


def _shared(record: dict[str, Any]) -> Any:
    """What moves every figure, as the file holds it: the weights, their process and precision, and the libraries."""
    apart = {name for sections in PARTS.values() for name in sections.get("samples") or ()}
    samples = {name: value for name, value in (record.get("samples") or {}).items() if name not in apart}
    return json.loads(json.dumps([samples, record.get("versions")]))


def _moves_with(record: dict[str, Any], figure: str) -> list[str]:
    """The names of the `PARTS` of a record that a figure moves with; all where nothing says what it is of."""
    counts = record.get("counts", {}).get(figure)
    if not counts:
        return list(PARTS)
    if "samples" in counts:
        return ["sampling", "asked", *(["reference", "extractor"] if len(counts) == 1 else ["cas", "unseen"])]
    if _is_of(figure, "bits"):
        is_told = record["figures"].get("bits_given") in ("caption", "vector")
        return ["unseen", "codes", "draws", *(["asked"] if is_told else [])]
    rest = ["extractor"] if figure == "rfd" else ["draws"] if figure.startswith("drawn_") else []
    return ["unseen", "reconstructed", *rest]


def _is_of(figure: str, metric: str) -> bool:
    """Whether a metric of the request gave this figure."""
    if metric == "bits":
        return "bits" in figure or figure == "code_draws"
    return figure == metric or figure.startswith(f"{metric}_")


def _part(record: dict[str, Any], part: str) -> Any:
    """What a record says of one of the `PARTS`, as the file holds it."""
    said = []
    for section, names in PARTS[part].items():
        found = record.get(section)
        if part == "sampling" and section == "request":
            names = ("num",)  # the rest is in the section of samples, as it came out with the run's defaults
        said.append(found if names is None else [(found or {}).get(name) for name in names])
    return json.loads(json.dumps(said))


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
    if "independent_bits" in metrics:
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

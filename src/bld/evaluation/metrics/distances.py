"""Sets of images compared by their features; the arithmetic is torch-fidelity's own, on features we hold.

fd                     Fréchet distance between Gaussians of the same mean and covariance (FID's arithmetic)
kid_mean, kid_std      kernel distance, polynomial of degree 3, over random subsets of at most half of either side
is_mean, is_std        inception score over ten splits: needs an extractor with class logits
precision, recall      Kynkäänniemi et al. 2019, k = 3: share of samples within the reference's manifold, and back
diversity              mean distance between two samples over that between two reference images: 1 is as diverse
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bld.data import ImageSet
from bld.errors import DataError, MissingPackageError, SettingError, did_you_mean
from bld.evaluation.features import PRECISION, FeatureExtractor, features_of
from bld.evaluation.metrics.base import SAMPLE_METRICS, FeatureTable, Sets, of_samples
from bld.runtime.precision import in_float32
from bld.seeding import keyed_permutation

NEIGHBOURHOOD = 3
INCEPTION_SPLITS = 10
IMAGENET_CLASSES = 1000  # of a judge that knows classes and does not name them, such as Inception
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
PAIRS = 20_000
IMAGES_AT_A_TIME = 256
ROWS_AT_A_TIME = 1000  # of a distance matrix
FORMAT = 1


def extract(batches: Iterable[Tensor], extractor: FeatureExtractor) -> FeatureTable:
    """Features of uint8 batches (B, 3, H, W); the images themselves are not kept.  DataError without images, or where
    features are not finite.
    """
    found = []
    for batch in batches:  # which may be made under a sampler's autocast
        with in_float32():
            found.append(features_of(extractor, batch))
    if not found:
        raise DataError("There are no images to take features of.")
    logits = [part.logits for part in found if part.logits is not None]
    kept = torch.cat(logits) if len(logits) == len(found) else None
    return FeatureTable(torch.cat([part.features for part in found]), kept)


def reference_features(images: ImageSet, extractor: FeatureExtractor, cache: Path | None = None) -> FeatureTable:
    """Features of a whole set, centre views; kept in the folder `cache` under a key of all that changes them."""
    key = {
        "format": FORMAT,
        "images": images.fingerprint,
        "extractor": extractor.sha256,
        "dim": extractor.dim,
        "precision": PRECISION,
    }
    path = None
    if cache is not None:
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        path = cache / f"reference-{name}.npz"
        if path.is_file():
            return read_table(path)
    rows = torch.arange(len(images)).split(IMAGES_AT_A_TIME)
    table = extract((images.uint8_centre(part) for part in rows), extractor)
    if path is not None:
        write_table(path, table)
    return table


def write_table(path: Path, table: FeatureTable) -> None:
    """Write it as a NumPy archive, whole or not at all."""
    from bld.io.files import written_aside

    arrays = {"features": table.features.numpy()}
    if table.logits is not None:
        arrays["logits"] = table.logits.numpy()
    with written_aside(path) as aside, aside.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_table(path: Path) -> FeatureTable:
    """What `write_table` wrote; a damaged file is a DataError."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            logits = torch.from_numpy(arrays["logits"]) if "logits" in arrays else None
            return FeatureTable(torch.from_numpy(arrays["features"]), logits)
    except Exception as error:  # a broken zip has an exception class of its own
        raise DataError(f"{path} is damaged ({type(error).__name__}): delete it and repeat the command.") from error


@in_float32()
def score(samples: FeatureTable, reference: FeatureTable, metrics: Sequence[str] | None = None) -> dict[str, float]:
    """Metrics of samples against a reference, by name; those that need logits are left out where there are none.

    Args:
        samples: their features.
        reference: features of real images, by the same extractor.
        metrics: names from `SAMPLE_METRICS`; None takes all.

    Raises:
        SettingError: for an unknown metric, or features of different extractors.
        DataError: for too few images.
        MissingPackageError: without torch-fidelity.
    """
    asked = list(SAMPLE_METRICS if metrics is None else metrics)
    refuse_too_few(asked, len(samples), len(reference))
    if samples.features.shape[1] != reference.features.shape[1]:
        raise SettingError("Samples and reference have features of different extractors.")
    sets = Sets(samples, reference)
    found: dict[str, float] = {}
    for name in asked:
        found |= SAMPLE_METRICS[name].measure(sets)
    return found


def refuse_too_few(metrics: Sequence[str], samples: int, reference: int) -> None:
    """`SettingError` for an unknown metric, `DataError` where one needs more samples or reference images."""
    for name in metrics:
        if name not in SAMPLE_METRICS:
            raise SettingError(f"Unknown metric '{name}'.{did_you_mean(name, SAMPLE_METRICS)}")
        least = SAMPLE_METRICS[name].least
        if min(samples, reference) < least:
            raise DataError(
                f"{name} needs at least {least} images on both sides; there are {samples} samples and {reference} "
                "reference images."
            )


def too_few_to_say(
    reference: int, metrics: Sequence[str], extractor: FeatureExtractor | None, num: int, rebuilt: int = 0
) -> list[str]:
    """Warnings, a sentence each, of metrics that say more of the number of images than of what they show.

    Args:
        reference: how many images samples are held against.
        metrics: what is asked for.
        extractor: the judge; None where nothing needs one.
        num: of samples.
        rebuilt: of reconstructions.
    """
    if extractor is None:
        return []
    found = []
    for metric, fewest in (("fd", min(reference, num)), ("rfd", rebuilt)):
        if metric in metrics and fewest <= extractor.dim:
            found.append(
                f"{metric}: only {fewest:,} images for {extractor.dim:,} features: the covariance is singular and the "
                f"distance biased upwards; take more than {extractor.dim:,}."
            )
    each, classes = num // INCEPTION_SPLITS, len(extractor.classes) or IMAGENET_CLASSES
    if "is" in metrics and each < classes:
        found.append(
            f"is: each of the {INCEPTION_SPLITS} splits has {each:,} images for {classes:,} classes, and no split "
            f"scores more than it has images; take {INCEPTION_SPLITS * classes:,} or more."
        )
    return found


def refuse_without_logits(metrics: Sequence[str], extractor: FeatureExtractor, images: ImageSet) -> None:
    """`SettingError` where a metric needs class logits and the extractor gives none of the first of these images."""
    needing = [name for name in metrics if SAMPLE_METRICS[name].needs_logits]
    if needing and features_of(extractor, images.uint8_centre([0])).logits is None:
        raise SettingError(
            f"{needing[0]} needs class logits, which the judge {extractor.name} does not give: leave {needing[0]} out, "
            "or judge by other --features, such as inception."
        )


@of_samples("fd")
def _fd(sets: Sets) -> dict[str, float]:
    return {"fd": sets.once(frechet_distance)}


@of_samples("kid", least=10)
def _kid(sets: Sets) -> dict[str, float]:
    mean, std = kernel_distance(sets.samples.features, sets.reference.features)
    return {"kid_mean": mean, "kid_std": std}


@of_samples("is", least=INCEPTION_SPLITS, needs_logits=True)
def _is(sets: Sets) -> dict[str, float]:
    if sets.samples.logits is None:
        return {}
    mean, std = inception_score(sets.samples.logits)
    return {"is_mean": mean, "is_std": std}


@of_samples("precision", least=NEIGHBOURHOOD + 1)
def _precision(sets: Sets) -> dict[str, float]:
    return {"precision": sets.once(precision_recall)[0]}


@of_samples("recall", least=NEIGHBOURHOOD + 1)
def _recall(sets: Sets) -> dict[str, float]:
    return {"recall": sets.once(precision_recall)[1]}


@of_samples("diversity")
def _diversity(sets: Sets) -> dict[str, float]:
    spread = [mean_distance(table.features) for table in (sets.samples, sets.reference)]
    return {"diversity": spread[0] / max(spread[1], 1e-12)}


def frechet_distance(samples: Tensor, reference: Tensor) -> float:
    """‖μ₁ - μ₂‖² + tr(Σ₁ + Σ₂ - 2(Σ₁Σ₂)^½) of features (n, D), in float64."""
    fid = _library("metric_fid")
    first, second = moments(samples), moments(reference)
    distance = float(fid.fid_statistics_to_metric(first, second, False)[fid.KEY_METRIC_FID])
    return max(distance, 0.0)  # in this order what is no number stays none


def moments(features: Tensor) -> dict[str, np.ndarray]:
    """Mean and covariance of features (n, D), in float64: torch-fidelity's statistics.

    They are computed block by block, so that float64 copies of all features are never held.

    Returns:
        "mu" (D,) and "sigma" (D, D), the latter over n - 1.
    """
    mean = features.mean(0, dtype=torch.float64)
    product = torch.zeros(features.shape[1], features.shape[1], dtype=torch.float64)
    for block in features.split(ROWS_AT_A_TIME):
        centred = block.double() - mean
        product += centred.T @ centred
    return {"mu": mean.numpy(), "sigma": (product / (len(features) - 1)).numpy()}


def kernel_distance(samples: Tensor, reference: Tensor) -> tuple[float, float]:
    """(mean, standard deviation) of the unbiased squared MMD over 100 random subsets; kernel (x·y/D + 1)³.

    Of at most 1,000, and of at most half of either side: subsets of nearly all are nearly the same, and would have no
    spread.
    """
    kid = _library("metric_kid")
    size = min(KID_SUBSET_SIZE, len(samples) // 2, len(reference) // 2)
    found = kid.kid_features_to_metric(
        samples, reference, kid_subsets=KID_SUBSETS, kid_subset_size=size, kid_kernel="poly", kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1, rng_seed=0, verbose=False,
    )  # fmt: skip
    return found[kid.KEY_METRIC_KID_MEAN], found[kid.KEY_METRIC_KID_STD]


def inception_score(logits: Tensor) -> tuple[float, float]:
    """(mean, standard deviation) over 10 splits of exp E[KL(p(y|x) ‖ p(y))]."""
    isc = _library("metric_isc")
    found = isc.isc_features_to_metric(logits, INCEPTION_SPLITS, True, 0)
    return found[isc.KEY_METRIC_ISC_MEAN], found[isc.KEY_METRIC_ISC_STD]


def precision_recall(samples: Tensor, reference: Tensor) -> tuple[float, float]:
    """(precision, recall) with k = 3, in blocks: memory grows with n, not n²."""
    prc = _library("metric_prc")
    found = prc.prc_features_to_metric(
        samples.float(), reference.float(), prc_neighborhood=NEIGHBOURHOOD, prc_batch_size=ROWS_AT_A_TIME,
        save_cpu_ram=True, verbose=False,
    )  # fmt: skip
    return found[prc.KEY_METRIC_PRECISION], found[prc.KEY_METRIC_RECALL]


def mean_distance(features: Tensor) -> float:
    """Mean Euclidean distance over 20,000 keyed pairs of different rows."""
    n = len(features)
    rng = np.random.Generator(np.random.PCG64(keyed_permutation(0, "pairs", 0, 1 << 16)[0]))
    first = rng.integers(0, n, PAIRS)
    second = (first + rng.integers(1, n, PAIRS)) % n
    return float((features[first] - features[second]).double().norm(dim=1).mean())


def _library(module: str) -> Any:
    try:
        import importlib

        return importlib.import_module(f"torch_fidelity.{module}")
    except ImportError as error:
        raise MissingPackageError(
            "These metrics need torch-fidelity: pip install 'binary-latent-diffusion[metrics]'."
        ) from error

"""`bld evaluate`: judge a run, streaming, resumable, with everything that changes a number written beside it.

Samples are made shard by shard and only their features are kept, each shard in a file of its own under a key of all
that made it. A killed evaluation goes on with the next shard, and each of n processes takes every n-th.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bld.codes import to_grid
from bld.data import ImageSet, psnr, to_uint8
from bld.errors import DataError, SettingError
from bld.evaluation.features import PRECISION, FeatureExtractor
from bld.evaluation.metrics import RECONSTRUCTION_METRICS, SAMPLE_METRICS
from bld.evaluation.metrics.base import FeatureTable
from bld.evaluation.metrics.cas import (
    classification_accuracy_score,
    refuse_without_classes,
    steps_of,
)
from bld.evaluation.metrics.distances import (
    extract,
    frechet_distance,
    read_table,
    reference_features,
    refuse_too_few,
    refuse_without_logits,
    score,
    write_table,
)
from bld.evaluation.request import RECONSTRUCTION, Request
from bld.evaluation.sample_conditions import Asked, asked_for
from bld.pipeline import BinaryLatentDiffusionPipeline, class_names
from bld.pipeline.card import sampler_of
from bld.runtime.distributed import Processes
from bld.runtime.precision import Autocast
from bld.seeding import keyed_draws
from bld.training.held_out_codes import CODE_DRAWS, draws_of, held_out_codes, held_out_entropy
from bld.training.order import evenly

SHARD = 1000
Say = Callable[[str], None]


# -- samples ----------------------------------------------------------------------------------------------


def sampled_features(
    pipeline: BinaryLatentDiffusionPipeline,
    request: Request,
    asked: Asked,
    extractor: FeatureExtractor,
    folder: Path,
    processes: Processes,
    say: Say,
) -> FeatureTable:
    """Features of samples 0 … num - 1, made as far as they are not in the folder yet."""
    key = {"extractor": extractor.sha256, "judged_in": PRECISION, **made_by(pipeline, request, asked)}
    shards = folder / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    bounds = [(start, min(start + SHARD, request.num)) for start in range(0, request.num, SHARD)]
    for index, (start, stop) in enumerate(bounds):
        path = shards / f"{start:07d}-{stop:07d}.npz"
        if index % processes.count != processes.rank or path.is_file():
            continue
        say(f"Sampling images {start:,} to {stop - 1:,} of {request.num:,}.")
        write_table(path, extract(samples(pipeline, request, asked, start, stop), extractor))
    processes.wait()
    tables = [read_table(shards / f"{start:07d}-{stop:07d}.npz") for start, stop in bounds]
    logits = [table.logits for table in tables if table.logits is not None]
    both = torch.cat(logits) if len(logits) == len(tables) else None
    return FeatureTable(torch.cat([table.features for table in tables]), both)


def made_by(pipeline: BinaryLatentDiffusionPipeline, request: Request, asked: Asked) -> dict[str, Any]:
    """All that decides the samples: weights, process, settings as they come out with the run's defaults, precision."""
    defaults = pipeline.index.sampling
    return {
        **sampler_of(pipeline),
        "prior": pipeline.diffusion.kind,
        "seed": request.seed,
        "steps": request.steps or defaults.num_inference_steps or pipeline.diffusion.steps,
        "temperature": defaults.temperature if request.temperature is None else request.temperature,
        "guidance_scale": defaults.guidance(request.guidance_scale),
        "asked": asked.described,
        "precision": Autocast.here(pipeline.device).name,
    }


def samples(
    pipeline: BinaryLatentDiffusionPipeline, request: Request, asked: Asked, start: int, stop: int
) -> Iterator[Tensor]:
    """uint8 batches of samples start … stop - 1; each depends on the seed and its number alone."""
    for first in range(start, stop, request.batch_size):
        n = min(request.batch_size, stop - first)
        images = pipeline(
            n, num_inference_steps=request.steps, temperature=request.temperature,
            guidance_scale=request.guidance_scale, generator=request.seed, output_type="pt",
            batch_size=request.batch_size, first_index=first, **asked.of(first, first + n),
        ).images  # fmt: skip
        yield to_uint8(images * 2 - 1)


def image_batches(images: ImageSet, most: int | None = None, batch_size: int = 256) -> Iterator[Tensor]:
    """uint8 batches of a set's centre views, evenly spread over at most `most` of them."""
    rows = evenly(len(images), len(images) if most is None else most)
    for part in rows.split(batch_size):
        yield images.uint8_centre(part)


# -- the parts --------------------------------------------------------------------------------------------


def evaluate_run(
    pipeline: BinaryLatentDiffusionPipeline,
    reference: ImageSet,
    unseen: ImageSet,
    request: Request,
    extractor: FeatureExtractor | None,
    folder: Path,
    say: Say,
    processes: Processes | None = None,
    asked: Asked | None = None,
    counts: dict[str, dict[str, int]] | None = None,
) -> dict[str, Any]:
    """The metrics of a run, by name.

    Args:
        pipeline: what is judged.
        reference: real images that samples are compared with.
        unseen: real images for reconstruction, likelihood and cas's test.
        request: which metrics, and how samples are made.
        extractor: may be None where no metric needs features.
        folder: keeps features of samples and of the reference, and cas's samples while they are needed.
        say: is handed lines about the progress.
        processes: which share the sampling; by default this one alone.
        asked: the samples' conditions; by default what `request.classes` and the reference say.
        counts: is told how many images each metric is of: "samples", "unseen" ones, or both.

    Returns:
        The metrics; nothing in all processes but the first.

    Raises:
        SettingError: where a metric needs features and there is no extractor, or codes' lengths that there are not.
        DataError: where cas has no classes to go by, or a metric too few images.
    """
    processes = processes or Processes()
    asked = asked or asked_for(pipeline, class_names(request.classes, pipeline.classes), reference)
    refuse_impossible(pipeline, reference, unseen, request, extractor, asked)
    metrics: dict[str, Any] = {}
    counts = {} if counts is None else counts

    def add(found: dict[str, Any], **images: int) -> None:
        metrics.update(found)
        counts.update(dict.fromkeys(found, images))

    if request.of_samples:
        table = sampled_features(pipeline, request, asked, _needed(extractor), folder, processes, say)
        if processes.rank == 0:
            real = reference_features(reference, _needed(extractor), folder)
            add(score(table, real, request.of_samples), samples=len(table))
    if processes.rank != 0:
        return {}
    if set(RECONSTRUCTION) & set(request.metrics):
        rebuilt = min(request.reconstructed, len(unseen))
        say(f"Reconstructing {rebuilt:,} images.")
        add(reconstruction_metrics(pipeline, unseen, request, extractor), unseen=rebuilt)
    if "bits" in request.metrics:
        say("Counting bits.")
        found = likelihood_metrics(
            pipeline, unseen, request.codes, request.seed, request.batch_size, request.code_draws, asked
        )
        add(found, unseen=len(_given_to_codes(pipeline, unseen, request.codes, asked)[0]))
    if "cas" in request.metrics:
        found = classification_accuracy_score(
            pipeline, lambda start, stop: samples(pipeline, request, asked, start, stop), unseen, request.num,
            asked.labels_of(0, request.num), folder,
            steps=steps_of(request.cas_epochs, request.num), network=request.cas_network,
            seed=request.seed, say=say,
        )  # fmt: skip
        add(found, samples=request.num, unseen=len(unseen))
    return metrics


def evaluate_samples(
    given: ImageSet, reference: ImageSet, request: Request, extractor: FeatureExtractor, folder: Path
) -> dict[str, Any]:
    """Metrics of images that another program made; `SettingError` for those that need a run."""
    beyond = [name for name in request.metrics if name not in SAMPLE_METRICS]
    if beyond:
        raise SettingError(
            f"{beyond[0]} needs a run, and --samples gives images alone: choose from {', '.join(SAMPLE_METRICS)}."
        )
    refuse_without_logits(request.metrics, extractor, reference)
    table = extract(image_batches(given), extractor)
    return score(table, reference_features(reference, extractor, folder), request.of_samples)


def _needed(extractor: FeatureExtractor | None) -> FeatureExtractor:
    if extractor is None:
        raise SettingError("These metrics need features: name --features.")
    return extractor


@torch.no_grad()
def reconstruction_metrics(
    pipeline: BinaryLatentDiffusionPipeline, images: ImageSet, request: Request, extractor: FeatureExtractor | None
) -> dict[str, float]:
    """Metrics of reconstructions, as far as the request names them.

    All but rfd are means over images, with the standard deviation beside them, named with _std.

    Returns:
        psnr: from most probable codes, dB.
        ssim: from most probable codes.
        lpips: from most probable codes.
        rfd: the Fréchet distance of reconstructions from most probable codes to their images.
        drawn_psnr: beside psnr, where codes are drawn: from one drawn code of each image. Drawn codes are what the
            prior learns, so that its samples can be no better than those.
    """
    asked = [name for name in RECONSTRUCTION if name in request.metrics]
    device, tokenizer = pipeline.device, pipeline.tokenizer
    pairwise = {name: make(device) for name, make in RECONSTRUCTION_METRICS.items() if name in asked}
    draws = "psnr" in asked and tokenizer.bottleneck.is_random
    names = [*asked, *(["drawn_psnr"] if draws else [])]
    values: dict[str, list[Tensor]] = {name: [] for name in names if name != "rfd"}
    real, rebuilt, seen = [], [], 0
    for batch in image_batches(images, request.reconstructed, request.batch_size):
        x = batch.float() / 127.5 - 1
        again = pipeline.reconstruct(batch, "pt", batch_size=request.batch_size) * 2 - 1
        for name, distance in pairwise.items():
            values[name].append(distance(x, again).cpu())
        if draws:
            numbers = list(range(seen, seen + len(x)))
            codes = tokenizer.encode(x.to(device), keyed_draws(request.seed, "reconstruct", numbers))
            values["drawn_psnr"].append(psnr(x, tokenizer.decode(codes).clamp(-1, 1).cpu()))
        seen += len(x)
        if "rfd" in asked:
            real.append(extract([batch], _needed(extractor)).features)
            rebuilt.append(extract([to_uint8(again)], _needed(extractor)).features)
    found: dict[str, float] = {}
    for name, parts in values.items():
        joined = torch.cat(parts).double()
        found |= {name: float(joined.mean()), f"{name}_std": float(joined.std()) if len(joined) > 1 else 0.0}
    if "rfd" in asked:
        found["rfd"] = frechet_distance(torch.cat(rebuilt), torch.cat(real))
    return found


@torch.no_grad()
def likelihood_metrics(
    pipeline: BinaryLatentDiffusionPipeline,
    images: ImageSet,
    codes: int,
    seed: int,
    batch_size: int,
    draws: int = CODE_DRAWS,
    asked: Asked | None = None,
) -> dict[str, Any]:
    """The bits that the prior needs for codes of unseen images.

    Args:
        pipeline: what is judged.
        images: the unseen images.
        codes: how many of them, spread evenly over the set.
        seed: of the draws, and of the estimate of the likelihood.
        batch_size: codes at a time.
        draws: codes of each image, drawn as in training (eq. 1), from (seed, draw, its index) alone. 0 takes the most
            probable codes; so does a vq tokenizer, which draws nothing.
        asked: whose vectors or captions the images' codes are counted under; images without one are left out.

    Of drawn bits the entropies (`bld.codes.code_entropy`) stand beside these: noise_bits, noise_of_bits and
    independent_bits.

    Returns:
        bits_per_code: the mean over images.
        bits_per_code_standard_error: over images; not of one.
        bits_per_bit: of the code.
        bits_per_dimension: over the image's subpixels; it counts the code alone.
        code_draws: the draws of each image that were taken.
        bits_given: what the codes were counted under: class, caption, vector or nothing.
        noise_bits: the encoder's coin flips, below which no prior comes.
        noise_of_bits: which bits carry them.
        independent_bits: what the bits need one by one; not of one image.
    """
    rows, labels, vectors = _given_to_codes(pipeline, images, codes, asked)
    told = "class" if labels is not None else "caption" if pipeline.index.text_encoder else "vector"
    draws = draws_of(pipeline.tokenizer, draws, draws)
    tokens = held_out_codes(pipeline.tokenizer, images, rows, draws=draws, seed=seed, batch_size=batch_size)
    views, shape = tokens.shape[1], pipeline.tokenizer.code_shape
    every = to_grid(tokens.flatten(0, 1), shape)
    bits = pipeline.likelihood_bits(
        every,
        None if labels is None else labels.repeat_interleave(views).tolist(),
        condition=None if vectors is None else vectors.repeat_interleave(views, 0),
        generator=seed,
        batch_size=batch_size,
    )
    bits = bits.view(-1, views).mean(1)
    entropy = held_out_entropy(pipeline.tokenizer, images, rows, batch_size=batch_size) if draws else None
    floor = {} if entropy is None else {
        "noise_bits": entropy.noise_bits,
        "independent_bits": entropy.independent_bits,
        "noise_of_bits": entropy.noise_of_bits.tolist(),
    }  # fmt: skip
    error = float(bits.std() / len(bits) ** 0.5) if len(bits) > 1 else None
    spread = {"bits_per_code": float(bits.mean()), "bits_per_code_standard_error": error}
    return {
        **{name: value for name, value in (floor | spread).items() if value is not None},
        "bits_per_bit": float(bits.mean()) / shape.bits,
        "bits_per_dimension": float(bits.mean()) / (3 * pipeline.image_size**2),
        "code_draws": draws,
        "bits_given": told if labels is not None or vectors is not None else "nothing",
    }


def _given_to_codes(
    pipeline: BinaryLatentDiffusionPipeline, images: ImageSet, codes: int, asked: Asked | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(which images' codes are counted, their classes, their vectors)."""
    if asked is not None and asked.vectors is not None and asked.vectors_of is not None:
        chosen = evenly(len(asked.vectors_of), codes)
        return asked.vectors_of[chosen], None, asked.vectors[chosen]
    rows = evenly(len(images), codes)
    if images.labels is not None and images.classes == pipeline.classes and pipeline.prior.config.num_classes:
        return rows, images.labels[rows], None
    return rows, None, None


# -- what is refused or warned of -------------------------------------------------------------------------


def refuse_impossible(
    pipeline: BinaryLatentDiffusionPipeline,
    reference: ImageSet,
    unseen: ImageSet,
    request: Request,
    extractor: FeatureExtractor | None,
    asked: Asked,
) -> None:
    """Refuse a metric that cannot be had of this run before anything is sampled for another; as `evaluate_run`."""
    if request.of_samples or "rfd" in request.metrics:
        refuse_without_logits(request.of_samples, _needed(extractor), reference)
    refuse_too_few(request.of_samples, request.num, len(reference))
    rebuilt = min(request.reconstructed, len(unseen))
    if "rfd" in request.metrics and rebuilt < 2:
        raise DataError(f"rfd needs at least 2 images; there is {rebuilt}: name more with --data, or leave rfd out.")
    if "bits" in request.metrics and not pipeline.diffusion.has_likelihood:
        raise SettingError(f"A {pipeline.diffusion.kind} prior has no code length, in bits: leave bits out.")
    if "cas" in request.metrics:
        refuse_without_classes(pipeline, unseen, asked.labels_of(0, 1))
    for name in RECONSTRUCTION_METRICS:
        if name in request.metrics:
            RECONSTRUCTION_METRICS[name](pipeline.device)  # whose weights may not be at hand


def refuse_other_size(given: ImageSet, size: int) -> None:
    """Images of --samples must have the reference's size; one of another size is named."""
    for index in range(len(given)):
        image = given.source.read(int(given.rows[index]))
        if image.size != (size, size):
            raise DataError(
                f"{given.names[index]} is {image.width}×{image.height}, and the reference images are judged at "
                f"{size}×{size}: add --resize to resize it, or name --image-size."
            )

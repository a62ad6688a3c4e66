"""What the prior makes: samples, the way one comes out of noise, and the training images nearest to it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from bld.data import ImageSet
from bld.diffusion.process import Process, spaced_steps
from bld.evaluation.held_out_conditions import Conditions, held_out_conditions
from bld.evaluation.load_run import OpenedRun
from bld.evaluation.neighbours import Neighbours, nearest
from bld.io.files import written_aside
from bld.pipeline import BinaryLatentDiffusionPipeline, class_words, option_words
from bld.report.contents import MOST_CLASSES_SHOWN, Contents, default_steps
from bld.report.pictures import Picture, picture
from bld.training.order import evenly

DECODED_AT_ONCE = 16
TILE_PIXELS = 160  # the largest size of the many pictures of the grid, which else would make a huge page
COMPARED = 8
NEIGHBOURS = 5
MOST_SEARCHED_BYTES = 256 << 20  # decoding more would take minutes


@dataclass(frozen=True)
class Generated:
    """Samples.

    Attributes:
        images: (n, 3, S, S) in [-1, 1].
        labels: n indices into `classes`, or None.
        classes: names of classes, or what stands in their place: captions, or the images whose vectors were taken.
        frames: (step, codes of the first few samples after it) for some of the steps.
        conditions: the captions or vectors.
    """

    images: Tensor
    labels: list[int] | None
    classes: list[str]
    frames: list[tuple[int, Tensor]]
    conditions: Conditions | None = None

    @property
    def asked_for(self) -> str:
        """What a sample was asked for, in words."""
        if self.conditions is None:
            return "class"
        return "caption of a held-out image" if self.conditions.are_captions else "vector of a held-out image"

    def describe(self, index: int) -> str:
        """Alternative text of a sample."""
        if self.labels is None:
            return f"Sample {index + 1}"
        return f"Sample {'of class' if self.conditions is None else 'for'} {self.class_name(index)}"

    def class_name(self, index: int) -> str:
        """The class (or caption) a sample was asked to be; empty where there are none."""
        return "" if self.labels is None else self.classes[self.labels[index]]


def generate(opened: OpenedRun, contents: Contents, seed: int) -> Generated:
    """All samples in one call, as the page tells how to make them; some are watched on their way."""
    pipeline = opened.pipeline
    assert pipeline is not None
    conditions = held_out_conditions(opened, min(MOST_CLASSES_SHOWN, contents.samples))
    labels = _labels(pipeline, contents.samples)
    if conditions is not None:
        labels = [*range(len(conditions.names))] * (contents.samples // len(conditions.names))
    count = contents.samples if labels is None else len(labels)
    watched = evenly(contents.steps, contents.frames).tolist()
    frames: list[tuple[int, Tensor]] = []

    def watch(_: BinaryLatentDiffusionPipeline, step: int, t: int, state: dict[str, Tensor]) -> None:
        if step in watched:
            frames.append((step, state["latents"][: contents.strips].cpu()))

    codes = pipeline(
        count,
        None if conditions is not None else labels,
        contents.steps,
        condition=None if conditions is None else conditions.vectors[labels],
        generator=seed,
        output_type="latent",
        callback_on_step_end=watch,
        batch_size=count,
    ).codes
    names = pipeline.classes if conditions is None else conditions.names
    return Generated(decoded(pipeline, codes), labels, names, frames, conditions)


def decoded(pipeline: BinaryLatentDiffusionPipeline, codes: Tensor) -> Tensor:
    """Codes (n, h, w, c) → images (n, 3, S, S) in [-1, 1]."""
    return pipeline.decode(codes, "pt", batch_size=DECODED_AT_ONCE) * 2 - 1


def _labels(pipeline: BinaryLatentDiffusionPipeline, count: int) -> list[int] | None:
    """The classes in turn, as many whole rounds as fit; of very many classes some, evenly spread."""
    classes = pipeline.prior.config.num_classes
    if classes == 0:
        return None
    shown = min(classes, MOST_CLASSES_SHOWN, count)
    chosen = np.linspace(0, classes - 1, shown).round().astype(int).tolist()
    return chosen * (count // shown)


# -- the grid ---------------------------------------------------------------------------------------------


def sample_section(opened: OpenedRun, generated: Generated, contents: Contents, seed: int) -> dict[str, Any]:
    """The grid, one row per class where there are classes, and how to make it again."""
    assert opened.pipeline is not None
    sampling, labels = opened.pipeline.index.sampling, generated.labels
    tiles = [picture(image, generated.describe(i), largest=TILE_PIXELS) for i, image in enumerate(generated.images)]
    rows = [("", tiles)]
    if labels is not None:
        shown = sorted(set(labels))
        of_class = {c: [t for t, own in zip(tiles, labels, strict=True) if own == c] for c in shown}
        rows = [(generated.classes[c], of_class[c]) for c in shown]
    return {
        "rows": rows,
        "labelled": labels is not None,
        "asked_for": generated.asked_for,
        "count": len(tiles),
        "default_steps": default_steps(opened),
        "steps": contents.steps,
        "all_classes": labels is None or len(rows) == len(generated.classes),
        "settings": {
            "seed": seed,
            "steps": f"{contents.steps} of {opened.pipeline.diffusion.steps}",
            "temperature τ": f"{sampling.temperature:g}",
            "guidance scale": "1 (off)" if sampling.guidance_scale == 1 else f"{sampling.guidance_scale:g}",
            **_guide(opened),
        },
        "command": _command(opened, generated, contents.steps, seed),
    }


def _guide(opened: OpenedRun) -> dict[str, str]:
    """What guides a prior without a condition."""
    assert opened.pipeline is not None
    if opened.pipeline.guide is None:
        return {}
    return {"guided by": f"the prior after {opened.progress('prior').get('early_step', 0):,} steps of its training"}


def _command(opened: OpenedRun, generated: Generated, steps: int, seed: int) -> str | None:
    """The command that gives these images, in this order; None where no words name their classes."""
    assert opened.pipeline is not None
    labels, count = generated.labels, len(generated.images)
    sampling = opened.pipeline.index.sampling
    options = (
        f"--num {count} --seed {seed} --steps {steps} "
        f"--temperature {sampling.temperature} --guidance-scale {sampling.guidance_scale}"
    )
    words = ["bld", "sample", str(opened.run.path), *options.split()]
    if generated.conditions is not None:
        names = generated.conditions.names
        captions = [word for name in names for word in option_words("--prompt", name)]
        words += (
            captions if generated.conditions.are_captions else ["--condition", str(_saved_vectors(opened, generated))]
        )
    elif labels is not None:
        classes = class_words(list(dict.fromkeys(labels)), opened.pipeline.classes)
        if classes is None:
            return None
        words += option_words("--classes", classes)
    return shlex.join([*words, "--precision", "float32"])


def _saved_vectors(opened: OpenedRun, generated: Generated) -> Path:
    """A file of the vectors that the samples were asked for."""
    assert generated.conditions is not None
    path = opened.run.samples / "report-vectors.npy"
    with written_aside(path) as aside, aside.open("wb") as file:
        np.save(file, generated.conditions.vectors.numpy(), allow_pickle=False)
    return path


# -- from noise to image ----------------------------------------------------------------------------------


def strip_section(opened: OpenedRun, generated: Generated, contents: Contents) -> dict[str, Any]:
    """Rows of pictures, one sample each, and the columns' headings."""
    assert opened.pipeline is not None
    process = opened.pipeline.diffusion
    visited = spaced_steps(process.steps, contents.steps)
    images = [decoded(opened.pipeline, codes) for _, codes in generated.frames]
    rows = []
    for sample in range(len(images[0])):
        name = generated.class_name(sample)
        pictures = [
            picture(frame[sample], f"{generated.describe(sample)} after step {step + 1}", largest=TILE_PIXELS)
            for (step, _), frame in zip(generated.frames, images, strict=True)
        ]
        rows.append((name, pictures))
    headings = [(step + 1, f"{_noise(process, visited[step + 1]):.0%}") for step, _ in generated.frames]
    labelled = generated.labels is not None
    return {"rows": rows, "headings": headings, "steps": contents.steps, "labelled": labelled}


def _noise(process: Process, s: int) -> float:
    """0 … 1: how much of a code is still noise, or still to be made, at step s."""
    retention = getattr(process, "retention", None)  # of a diffusion; the others make one position after another
    return s / process.steps if retention is None else 1 - retention(s)


# -- copies? ----------------------------------------------------------------------------------------------


def neighbour_section(opened: OpenedRun, generated: Generated) -> dict[str, Any] | None:
    """Some samples with their nearest training images, and what distances are usual; None without images."""
    if opened.train is None or opened.held_out is None:
        return None
    searched = _searched(opened.train)
    k = min(NEIGHBOURS, len(searched))
    found = nearest(generated.images, searched, k)
    unseen = opened.held_out.centre(evenly(len(opened.held_out), len(generated.images)))
    usual = nearest(unseen, searched, 1).distances.median()
    compared = range(min(COMPARED, len(generated.images)))
    rows = [_neighbour_row(generated, searched, i, found) for i in compared]
    return {
        "rows": rows,
        "searched": len(searched),
        "all": len(opened.train),
        "mirrored": searched.preprocessing.flip,
        "samples": len(generated.images),
        "unseen": len(unseen),
        "sample_distance": float(found.distances[:, 0].median()),
        "closest": float(found.distances[:, 0].min()),
        "unseen_distance": float(usual),
    }


def _neighbour_row(
    generated: Generated, images: ImageSet, sample: int, found: Neighbours
) -> tuple[Picture, list[Picture]]:
    near = [
        picture(
            image, f"Training image {images.names[i]}{', mirrored' if mirrored else ''}", f"{distance:.3f}", TILE_PIXELS
        )
        for image, i, distance, mirrored in zip(
            found.images(images, sample), *(part[sample].tolist() for part in found), strict=True
        )
    ]
    name = generated.class_name(sample)
    return picture(generated.images[sample], generated.describe(sample), name, TILE_PIXELS), near


def _searched(images: ImageSet) -> ImageSet:
    """The whole set where decoding it is quick, else part of it, evenly spread."""
    size = images.preprocessing.image_size
    most = max(1, MOST_SEARCHED_BYTES // (3 * size * size))
    return images if len(images) <= most else images.subset(evenly(len(images), most))

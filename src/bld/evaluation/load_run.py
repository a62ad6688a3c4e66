"""A run folder, opened to be looked at: models, code cache and, where they still are, the images behind them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bld.data import ImageSet, open_images
from bld.errors import CheckpointError, UserError
from bld.pipeline import BinaryLatentDiffusionPipeline
from bld.pipeline.recorded import held_out_figures
from bld.serialization.models import load_tokenizer, tokenizer_hash
from bld.training.code_cache import CodeCache
from bld.training.run_folder import RunFolder
from bld.training.run_images import images_of_run
from bld.training.settings import Settings

if TYPE_CHECKING:
    from bld.tokenizer import BinaryAutoencoder


@dataclass(frozen=True)
class OpenedRun:
    """What is there; what is not is None.

    Attributes:
        run: the folder.
        settings: those of the run.
        tokenizer: the trained one.
        pipeline: None before the prior is trained.
        cache: the codes; None before images are encoded.
        train: the training part of the images, as in the training; None when the images cannot be opened.
        held_out: the held-out part of them; None as `train`.
        missing: why the images cannot be opened, in a sentence; empty where they can.
        changed: whether the images are there but no longer those the codes were made of.
        stale: whether the codes are another tokenizer's, which was trained on or replaced since.
        device: where the networks are.
    """

    run: RunFolder
    settings: Settings
    tokenizer: BinaryAutoencoder
    pipeline: BinaryLatentDiffusionPipeline | None
    cache: CodeCache | None
    train: ImageSet | None
    held_out: ImageSet | None
    missing: str
    changed: bool
    stale: bool
    device: torch.device

    @property
    def codes(self) -> CodeCache | None:
        """The cache, where its codes are this tokenizer's."""
        return None if self.stale else self.cache

    @property
    def classes(self) -> list[str]:
        """Class names in label order; empty for unlabelled data."""
        if self.cache is not None:
            return self.cache.classes
        return self.train.classes if self.train is not None else []

    @property
    def num_training_images(self) -> int | None:
        """How many images the run learned from, if that can still be known."""
        if self.cache is not None:
            return len(self.cache)
        return len(self.train) if self.train is not None else None

    @property
    def remark(self) -> str:
        """Of images that have changed, what that means, in a sentence; else empty."""
        if not self.changed:
            return ""
        return (
            f"The images of {self.settings.data.location} have changed since the training, so that held-out and "
            "training images may not be what they were then."
        )

    def progress(self, stage: str) -> dict[str, Any]:
        """What the stage recorded when it finished; empty before that."""
        return self.run.progress().get(stage, {})

    def measured(self, stage: str) -> dict[str, float]:
        """What the stage measured on held-out images when its model here was saved, by name."""
        return held_out_figures(stage, self.run.progress(), self.run.read_metrics())[0]


def open_run(run: RunFolder, device: torch.device) -> OpenedRun:
    """Open what the folder holds.

    Raises:
        CheckpointError: without a tokenizer, or where a part is damaged.
    """
    settings = run.settings()
    if not run.tokenizer.is_dir():
        raise CheckpointError(f"{run.path} holds no trained tokenizer yet: there is nothing to report on.")
    pipeline = None
    if run.index.is_file():
        pipeline = BinaryLatentDiffusionPipeline.from_pretrained(run.path).to(device)
    tokenizer = pipeline.tokenizer if pipeline is not None else load_tokenizer(run.tokenizer).to(device)
    cache = CodeCache(run.codes) if (run.codes / "header.json").is_file() else None
    train, held_out, missing = images_without_decoding(settings, run)
    changed = cache is not None and train is not None and cache.key.data != train.fingerprint
    stale = cache is not None and cache.key.tokenizer != tokenizer_hash(tokenizer)
    return OpenedRun(run, settings, tokenizer, pipeline, cache, train, held_out, missing, changed, stale, device)


def images_without_decoding(settings: Settings, run: RunFolder) -> tuple[ImageSet | None, ImageSet | None, str]:
    """(train, held out, ""), split as in the training, or (None, None, why not)."""
    try:
        images = _open_unverified(settings, run.path)
        train, held_out, _ = images_of_run(run, settings, images)
        train.centre([0])
        held_out.centre([0])
    except (UserError, OSError) as error:
        return None, None, str(error)
    return train, held_out, ""


def _open_unverified(settings: Settings, folder: Path) -> ImageSet:
    """The image set of the training without decoding it whole: it left a list of what could not be read."""
    data = settings.data
    source = open_images(data.location, labels=data.labels, index_to=folder, max_pixels=data.max_pixels)
    listed = folder / "skipped_images.txt"
    skipped: set[str] = set()
    if listed.is_file():
        lines = listed.read_text(encoding="utf-8", errors="backslashreplace").split("\n")
        skipped = {line.split("\t", 1)[0] for line in lines}
    rows = [
        row for row, name in enumerate(source.names) if name.encode(errors="backslashreplace").decode() not in skipped
    ]
    return ImageSet(source, settings.preprocessing(), torch.tensor(rows), None, [])

"""What is refused before a run is trained, once its images are known: what would fail, or mean nothing, hours later."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bld.data import ImageSet
from bld.errors import DataError, SettingError
from bld.training.config import load_settings, preset_names
from bld.training.settings import Settings


def refuse_guidance(settings: Settings, classes: Sequence[str], say: Callable[[str], None]) -> None:
    """Raise SettingError for guidance that the prior is not trained for.

    Args:
        settings: of the run.
        classes: of its images.
        say: called with a sentence where the guidance is a preset's, which nobody has asked for and is left out.
    """
    scale, prior = settings.sampling.guidance_scale, settings.prior
    if scale == 1:
        return
    if prior.text_encoder or settings.data.condition or (classes and prior.class_conditional):
        if prior.label_dropout in (0, 1):
            left = "never" if prior.label_dropout == 0 else "always"
            raise SettingError(
                f"prior.label_dropout={prior.label_dropout:g} {left} leaves the condition out, and "
                f"sampling.guidance_scale={scale:g} compares the prior with a condition to the prior without: set "
                "prior.label_dropout=0.1, or sampling.guidance_scale=1."
            )
        return
    if prior.guide:
        return
    if settings.preset in preset_names() and load_settings(settings.preset).sampling.guidance_scale == scale:
        say(
            f"There are no classes: the guidance of the preset {settings.preset} is left out; "
            "prior.guide=0.1 would guide without classes."
        )
        return
    raise SettingError(
        f"sampling.guidance_scale={scale:g} needs classes, and {settings.data.location} is used without: "
        "set sampling.guidance_scale=1, put the images into one folder per class, or set prior.guide=0.1."
    )


def refuse_too_few(settings: Settings, train: ImageSet, stages: Sequence[str]) -> None:
    """Raise DataError where the images to train on are fewer than a batch of one of these stages."""
    for stage in stages:
        batch = getattr(settings, f"{stage}_training").batch_size
        if len(train) < batch:
            raise DataError(
                f"{train.location} leaves {len(train)} images to train on, fewer than a batch of {batch}: "
                f"add images, or set {stage}_training.batch_size={max(1, len(train) // 2)}."
            )


def refuse_small_batches(settings: Settings, processes: int, stages: Sequence[str]) -> None:
    """Raise SettingError where a batch of one of these stages cannot be shared by so many processes."""
    for stage in stages:
        training = getattr(settings, f"{stage}_training")
        parts = processes * training.accumulate
        if training.batch_size < parts:
            raise SettingError(
                f"{stage}_training.batch_size={training.batch_size} cannot be shared by {processes} processes in "
                f"{training.accumulate} pieces each: set it to {parts} or more."
            )

"""Which of some images a run was trained on, wherever they lie: what nobody may take for unseen images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from bld.data import ImageSet, ImageSource, name_fractions
from bld.training.run_folder import RunFolder
from bld.training.run_images import LEAST_SAME, DataRecord, hashes, held_out_seed, split_images
from bld.training.settings import Settings


@dataclass(frozen=True)
class KnownImages:
    """What a run knows of some images.

    Attributes:
        train: those that it was trained on; None where they cannot be told from the others.
        held_out: those that it held out; None as `train`.
        example: the name of one that it was trained on; empty where none of the images is known to be.
    """

    train: ImageSet | None = None
    held_out: ImageSet | None = None
    example: str = ""


def known_images(run: RunFolder, images: ImageSet) -> KnownImages:
    """What a run knows of these images.

    They are the run's own where they have the names and, as far as it took note, the contents of those that it was
    trained on, or lie where those lie, or in a folder among them. Of others, an image is known that has the contents of
    one that the run took note of, and its name but for the folder.

    Args:
        run: a folder; one that holds no run, such as a shared model, knows no images.
        images: to be looked at.
    """
    if not run.has_settings():
        return KnownImages()
    settings, record = run.settings(), DataRecord.read(run)
    if record is None:  # a run from before there were records, which divided its images by number
        if _inside(settings.data.location, images.location) != "":
            return KnownImages()
        train, held_out = split_images(images, settings, by_number=True)
        return KnownImages(train, held_out, train.names[0])
    folder = _folder_in_run(record, images.source)
    if folder is None:
        return KnownImages(example=_example(record, settings, images.source))
    if record.held_out_below is None:
        if folder or len(images.source) != record.images:
            return KnownImages(example=images.names[0])
        train, held_out = split_images(images, settings, by_number=True)
        return KnownImages(train, held_out, train.names[0])
    is_held_out = name_fractions([folder + name for name in images.names], held_out_seed(settings)) < (
        record.held_out_below
    )
    if is_held_out.all():
        return KnownImages()
    train, held_out = images.subset(np.flatnonzero(~is_held_out)), images.subset(np.flatnonzero(is_held_out))
    return KnownImages(train, held_out, train.names[0]) if len(held_out) else KnownImages(example=train.names[0])


def _folder_in_run(record: DataRecord, source: ImageSource) -> str | None:
    """What the run's names have before those of these images; None where they are others."""
    if source.fingerprint == record.fingerprint:
        return ""
    folder = _inside(record.location, source.location) or ""
    noted = {name.removeprefix(folder): hash_ for name, hash_ in record.contents.items() if name.startswith(folder)}
    now = hashes(source, list(noted))
    same = sum(now.get(name) == hash_ for name, hash_ in noted.items())
    if noted:
        return folder if same >= LEAST_SAME * len(noted) else None
    return folder or None


def _inside(outer: str, inner: str) -> str | None:
    """The path, with a stroke at its end, of a folder in another; "" for the same place, None for one elsewhere."""
    first, second = Path(outer).expanduser().resolve(), Path(inner).expanduser().resolve()
    if first == second:
        return ""
    return f"{second.relative_to(first).as_posix()}/" if second.is_dir() and second.is_relative_to(first) else None


def _example(record: DataRecord, settings: Settings, source: ImageSource) -> str:
    """The name of an image that the run was trained on, as far as it took note of them; "" where there is none."""
    noted = list(record.contents)
    is_trained_on = np.ones(len(noted), dtype=bool)
    if record.held_out_below is not None:
        is_trained_on = name_fractions(noted, held_out_seed(settings)) >= record.held_out_below
    trained_on = [name for name, is_so in zip(noted, is_trained_on, strict=True) if is_so]
    ends = {PurePosixPath(name).name for name in trained_on}
    contents = {record.contents[name] for name in trained_on}
    found = hashes(source, [name for name in source.names if PurePosixPath(name).name in ends])
    return next((name for name, hash_ in found.items() if hash_ in contents), "")

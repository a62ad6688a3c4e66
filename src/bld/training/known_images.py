"""Which of some images a run was trained on, wherever they lie: what nobody may take for unseen images."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch

from bld.data import ImageSet, ImageSource, name_fractions
from bld.training.run_folder import RunFolder
from bld.training.run_images import LEAST_SAME, DataRecord, hashes, held_out_seed, split_images
from bld.training.settings import Settings


@dataclass(frozen=True)
class KnownImages:
    """What a run knows of some images.

    Attributes:
        train: those that it was trained on; None where there are none, or where they cannot be told from the others.
        held_out: those that it held out or does not have; None as `train`, or where there are none.
        example: the name of one that it was trained on; empty where none of the images is known to be.
    """

    train: ImageSet | None = None
    held_out: ImageSet | None = None
    example: str = ""


def known_images(run: RunFolder, images: ImageSet) -> KnownImages:
    """What a run knows of these images.

    They are the run's own where they have the names and, as far as it took note, the contents of those that it was
    trained on, be it of a folder among them or of one in which they all lie now. Of others, an image is known that has
    the contents of one that the run took note of, and its name but for the folder.

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
        return _divided(images, _is_trained_on_by_number(images, settings))
    names = _names(record, images.source)
    if names is None:
        return KnownImages(example=_example(record, settings, images))
    if record.held_out_below is None:
        if any(names) or len(images.source) != record.images:
            return KnownImages(example=images.names[0])
        return _divided(images, _is_trained_on_by_number(images, settings))
    is_its = np.array([name.startswith(names.before) for name in images.names])
    asked = [names.folder + name.removeprefix(names.before) for name in images.names]
    return _divided(images, is_its & (name_fractions(asked, held_out_seed(settings)) >= record.held_out_below))


def _is_trained_on_by_number(images: ImageSet, settings: Settings) -> np.ndarray:
    """Which of the images, all of the source or some, a run was trained on that divided all by their numbers."""
    left_out = {name for name, _ in images.skipped}
    usable = [row for row, name in enumerate(images.source.names) if name not in left_out]
    everything = ImageSet(images.source, images.preprocessing, torch.tensor(usable), None, images.skipped)
    train, _ = split_images(everything, settings, by_number=True)
    return torch.isin(images.rows, train.rows).numpy()


def _divided(images: ImageSet, is_trained_on: np.ndarray) -> KnownImages:
    if not is_trained_on.any():
        return KnownImages()
    train, rest = images.subset(np.flatnonzero(is_trained_on)), images.subset(np.flatnonzero(~is_trained_on))
    return KnownImages(train, rest if len(rest) else None, train.names[0])


class _Names(NamedTuple):
    """How a run's names of images differ from those that they have now."""

    folder: str = ""  # what the run's have before them
    before: str = ""  # what today's have before them; those without it the run does not have


def _names(record: DataRecord, source: ImageSource) -> _Names | None:
    """How the names differ, by the contents that the run took note of; None where the images are others."""
    if source.fingerprint == record.fingerprint:
        return _Names()
    noted_here = [name for name in source.names if name in record.contents]
    same = sum(hash_ == record.contents[name] for name, hash_ in hashes(source, noted_here).items())
    if noted_here and same >= LEAST_SAME * len(record.contents):  # mostly so, and soon told
        return _Names()
    by_end: dict[str, list[str]] = {}
    for name in record.contents:
        by_end.setdefault(PurePosixPath(name).name, []).append(name)
    votes: Counter[_Names] = Counter()
    for now, hash_ in hashes(source, [name for name in source.names if PurePosixPath(name).name in by_end]).items():
        for noted in by_end[PurePosixPath(now).name]:
            if record.contents[noted] == hash_ and (names := _differ(noted, now)) is not None:
                votes[names] += 1
    for names, same in votes.most_common(1):
        could = sum(noted.startswith(names.folder) for noted in record.contents)
        return names if same >= LEAST_SAME * could else None
    folder = _inside(record.location, source.location)  # of which the run may have taken no note
    return _Names(folder) if folder and not any(noted.startswith(folder) for noted in record.contents) else None


def _differ(noted: str, now: str) -> _Names | None:
    """How two names of an image differ: by folders before one of them; None where they differ otherwise."""
    if f"/{noted}".endswith(f"/{now}"):
        return _Names(folder=noted.removesuffix(now))
    return _Names(before=now.removesuffix(noted)) if f"/{now}".endswith(f"/{noted}") else None


def _inside(outer: str, inner: str) -> str | None:
    """The path, with a stroke at its end, of a folder in another; "" for the same place, None for one elsewhere."""
    first, second = Path(outer).expanduser().resolve(), Path(inner).expanduser().resolve()
    if first == second:
        return ""
    return f"{second.relative_to(first).as_posix()}/" if second.is_dir() and second.is_relative_to(first) else None


def _example(record: DataRecord, settings: Settings, images: ImageSet) -> str:
    """The name of an image that the run was trained on, as far as it took note of them; "" where there is none."""
    noted = list(record.contents)
    is_trained_on = np.ones(len(noted), dtype=bool)
    if record.held_out_below is not None:
        is_trained_on = name_fractions(noted, held_out_seed(settings)) >= record.held_out_below
    trained_on = [name for name, is_so in zip(noted, is_trained_on, strict=True) if is_so]
    ends = {PurePosixPath(name).name for name in trained_on}
    contents = {record.contents[name] for name in trained_on}
    found = hashes(images.source, [name for name in images.names if PurePosixPath(name).name in ends])
    return next((name for name, hash_ in found.items() if hash_ in contents), "")

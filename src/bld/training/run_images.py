"""The images of a run: whether they are those it was trained on, what its classes are called, and its held-out part.

    RUN/data.json    location, fingerprint, classes and a few images' contents, as they were when the training began,
                     and where the line between training and held-out images lies

Training, reports and evaluation all use `images_of_run`, so that nothing is measured on images that were trained on.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from bld.data import ImageSet, ImageSource, meet_by_name, name_fractions, open_images, save_png
from bld.errors import DataError
from bld.io.files import read_json, write_json
from bld.training.order import spread
from bld.training.run_folder import RunFolder
from bld.training.settings import Settings

LOOKED_AT = 16  # images whose contents tell whether a data set is still the same
LEAST_SAME = 0.5  # of those: with fewer it is another
EXAMPLES = 8


@dataclass(frozen=True)
class DataRecord:
    """What a run remembers of its images.

    Attributes:
        location: where they lay last.
        fingerprint: of the source, when the training began.
        images: how many the source had then.
        classes: their names in label order, as the prior knows them.
        contents: a hash of the pixels of up to `LOOKED_AT` images, by name.
        held_out_below: an image is held out if its `name_fractions` lies below; None in runs from before there were
            records, whose images were divided by number.
    """

    location: str
    fingerprint: str
    images: int
    classes: list[str]
    contents: dict[str, str]
    held_out_below: float | None

    @classmethod
    def read(cls, run: RunFolder) -> DataRecord | None:
        """The run's record; None where there is none."""
        if not run.data.is_file():
            return None
        fields = read_json(run.data)
        try:
            return cls(**fields)
        except TypeError as error:
            raise DataError(
                f"{run.data} does not describe a run's images ({error}): restore it from a copy."
            ) from error


def images_of_run(
    run: RunFolder, settings: Settings, everything: ImageSet, writes: bool = False
) -> tuple[ImageSet, ImageSet, list[str]]:
    """The images of a run, divided into those to train on and those to measure on.

    Args:
        run: which begins or goes on.
        settings: of the run.
        everything: all usable images of the data.
        writes: whether the run's record of its images is written. Once its training has begun, only their location, and
            until the prior has begun their classes, change in the record.

    Returns:
        The training part, the held-out part, and what users should know, in sentences.

    Raises:
        DataError: if they are not the images that the run was trained on, or have classes that its prior does not know.
    """
    source, begun, remarks = everything.source, has_seen_images(run), []
    record = DataRecord.read(run) if begun else None
    if record is not None:
        remarks = refuse_others(run, record, source)
    else:  # a run that begins, or one from before there were records
        below = None if begun else held_out_below(everything, settings)
        classes = (_older_classes(run) if begun else []) or source.classes
        record = DataRecord(source.location, source.fingerprint, len(source), classes, hashes(source), below)
    if run.has_begun("prior"):
        _meet(run, record.classes, source)
    else:
        record = replace(record, classes=source.classes)
    if writes:
        write_json(run.data, asdict(replace(record, location=source.location)))
    by_number = record.held_out_below is None
    train, held_out = split_images(everything, settings, record.held_out_below, by_number)
    if by_number and len(source) != record.images:
        remarks.append("This run divided its images by number: some that are held out now may have been trained on.")
    return train, held_out, remarks


def refuse_other_data(run: RunFolder, settings: Settings) -> None:
    """Refuse images that a run was not trained on, before anything changes.

    Images that are no longer there are not refused, as a run that is done needs none.

    Raises:
        DataError: if the run has begun on other images, or its prior does not know the classes.
    """
    record = DataRecord.read(run) if has_seen_images(run) else None
    if record is None:
        before = run.settings().data.location if has_seen_images(run) and run.has_settings() else settings.data.location
        if before != settings.data.location:
            raise DataError(
                f"{run.path} was trained on {before} and took no note of its contents, so that they cannot be compared "
                f"with {settings.data.location}: leave out --data, or choose another --out."
            )
        return
    try:
        data = settings.data
        source = open_images(data.location, labels=data.labels, index_to=run.path, max_pixels=data.max_pixels)
    except DataError:
        if settings.data.location != record.location:
            raise
        return
    refuse_others(run, record, source)
    if run.has_begun("prior"):
        _meet(run, record.classes, source)


def has_seen_images(run: RunFolder) -> bool:
    """Whether a stage of the run has seen its images: there is a checkpoint, a model of its own, or a code cache."""
    trained = any(run.checkpoints(stage).list() for stage in ("tokenizer", "prior"))
    own = run.tokenizer.is_dir() and "given" not in run.progress().get("tokenizer", {})
    return trained or own or run.prior.is_dir() or (run.codes / "header.json").is_file()


def split_images(
    images: ImageSet, settings: Settings, below: float | None = None, by_number: bool = False
) -> tuple[ImageSet, ImageSet]:
    """Divide images by their names, so that each stays on its side whatever other images there are.

    Args:
        images: to divide.
        settings: of the run, which say how many are held out.
        below: the bound that was found when the run began: an image is held out if its `name_fractions` lies below it.
            Without one, that of these images.
        by_number: whether to divide them by their numbers, as runs did before there was a bound.

    Returns:
        The training part and the held-out part.
    """
    seed = held_out_seed(settings)
    if by_number:
        return images.split_by_number(settings.data.held_out_of(len(images)), seed)
    below = held_out_below(images, settings) if below is None else below
    return images.split_below(below, seed)


def held_out_seed(settings: Settings) -> int:
    """The seed that decides, with an image's name, whether it is held out."""
    return settings.seed if settings.data.held_out_seed is None else settings.data.held_out_seed


def held_out_below(images: ImageSet, settings: Settings) -> float:
    """The bound on `name_fractions` below which as many of the images lie as the settings hold out."""
    return images.line_for(settings.data.held_out_of(len(images)), held_out_seed(settings))


def _older_classes(run: RunFolder) -> list[str]:
    """The classes of a run that took no note of its images: those of its model, or of its codes."""
    for path, entry in ((run.index, "classes"), (run.codes / "header.json", "classes")):
        if path.is_file():
            return list(read_json(path).get(entry) or [])
    return []


def refuse_others(run: RunFolder, record: DataRecord, source: ImageSource) -> list[str]:
    """Raises DataError where too few of the images that were looked at are what they were; remarks on the rest."""
    if source.fingerprint == record.fingerprint or not record.contents:
        return []
    now = hashes(source, list(record.contents))
    same = sum(now.get(name) == content for name, content in record.contents.items())
    if same < LEAST_SAME * len(record.contents):
        raise DataError(
            f"{source.location} does not hold the images that {run.path} was trained on ({record.images:,} of "
            f"{record.location}; {same} of {len(record.contents)} that were looked at are the same): give those with "
            f"--data, or begin another run with --out, from this one's weights with --init-from {run.path}."
        )
    remarks = []
    if same < len(record.contents):
        gone = len(record.contents) - same
        remarks.append(f"{gone} of {len(record.contents)} images that were looked at have changed or are gone.")
    if len(source) != record.images:
        remarks.append(f"The data had {record.images:,} images when the training began, and has {len(source):,} now.")
    return remarks


def _meet(run: RunFolder, known: list[str], source: ImageSource) -> None:
    """Number the images' classes as the run's prior knows them."""
    if not known or not source.classes:
        return
    unknown = meet_by_name(source, known)
    if unknown:
        raise DataError(
            f"The prior of {run.path} knows the classes {_listed(known)}, and {source.location} has "
            f"{_listed(unknown)}: name them as before, or begin another run with --init-from {run.path}: "
            "classes of the same name keep what is known of them."
        )


def hashes(source: ImageSource, names: list[str] | None = None) -> dict[str, str]:
    """A hash of the pixels of some images, by name: those that come first by `name_fractions`, or the named ones."""
    if names is None:
        first = np.argsort(name_fractions(source.names, 0), kind="stable")[: 4 * LOOKED_AT].tolist()
        wanted = {source.names[index]: index for index in first}
    else:
        asked = set(names)
        wanted = {name: index for index, name in enumerate(source.names) if name in asked}
    found: dict[str, str] = {}
    for name, index in wanted.items():
        if names is None and len(found) == LOOKED_AT:
            break
        try:
            image = source.read(index)
        except DataError:  # what cannot be read is left out of the training too
            continue
        found[name] = hashlib.blake2b(repr(image.size).encode() + image.tobytes(), digest_size=8).hexdigest()
    return found


def _listed(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def keep_examples(run: RunFolder, held_out: ImageSet, seed: int) -> None:
    """Write some held-out images into RUN/examples, for users who try the model without a picture of theirs.

    Once the run has begun, those that are there stay; until then other images may yet be held out.
    """
    older = run.example_images()
    if older and has_seen_images(run):
        return
    for path in older:
        path.unlink()
    for number, row in enumerate(spread(len(held_out), EXAMPLES, seed)):
        save_png(held_out.centre(torch.tensor([row]))[0], run.examples / f"held-out-{number}.png")

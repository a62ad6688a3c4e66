"""The runs that a run began with, whose training images are no unseen ones for it."""

from __future__ import annotations

from pathlib import Path

from bld.data import ImageSet
from bld.errors import UserError
from bld.training.known_images import known_images
from bld.training.run_folder import RunFolder
from bld.training.run_images import DataRecord, held_out_seed
from bld.training.time_budget import STAGES


def begun_with(run: RunFolder) -> dict[str, RunFolder]:
    """The runs whose models a run began with, and those whose models these began with: what they are called → the run.

    Those that take no note of their images are not among them.
    """
    found: dict[str, RunFolder] = {}
    wanted = [(run.path, stage) for stage in STAGES]
    for path, stage in wanted:  # which grows
        entries = RunFolder(path).progress().get(stage, {})
        for name in filter(None, (entries.get("given"), entries.get("init_from"))):
            origin = next((o for o in map(RunFolder, (name, Path(name).parent)) if o.data.is_file()), None)
            if origin is None:
                continue
            found[name] = origin
            owed = STAGES[: STAGES.index(stage) + 1]  # a tokenizer owes nothing to the prior that was trained on it
            wanted += [pair for pair in ((origin.path, what) for what in owed) if pair not in wanted]
    return found


def seen_before(run: RunFolder, images: ImageSet, are_its_own: bool = True) -> list[str]:
    """Which images, to be measured as unseen ones, the runs were trained on whose models this one began with.

    Args:
        run: which began with others, or did not.
        images: those that are measured.
        are_its_own: whether they are those that the run held out, rather than given ones.

    Returns:
        A sentence for each run that was trained on some.
    """
    remarks = []
    for origin, other in begun_with(run).items():
        try:
            known, record = known_images(other, images), DataRecord.read(other)
            settings = other.settings()
        except UserError:  # it cannot be read
            continue
        if not known.example:
            continue
        seen = None if known.train is None else f"{len(known.train):,} of the {len(images):,}"
        if not are_its_own:
            which = f"{seen} that are measured" if seen else f"{known.example} is one"
            remarks.append(
                f"{images.location} holds images that were trained on in {origin} ({which}), with whose model "
                f"{run.path} begins, so that what is measured of them is not of unseen images, and is recorded so: "
                "name others."
            )
            continue
        which = f"{seen} held-out images were" if seen else f"Of the held-out images {known.example} was"
        of_its = f"data.held_out_seed={held_out_seed(settings)} data.held_out={settings.data.held_out}"
        where = settings.data.location if record is None else record.location
        remarks.append(
            f"{which} trained on in {origin}, with whose model this run begins, so that what is measured of them is "
            f"not of unseen images: begin with --data {where} {of_its}, as it did, and another --out."
        )
    return remarks

"""Images ready for training: verified, held in memory where they fit, served in batches keyed by seeds."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bld.data.decoding import MAX_PIXELS
from bld.data.preprocessing import Preprocessing, center_view, cut, flips, strip
from bld.data.sources.base import ImageSource, fingerprint_of, name_fractions
from bld.data.sources.opening import open_images
from bld.data.strips import Strips
from bld.data.values import to_unit
from bld.data.verifying import decode_all, read_verified, refuse_too_many, report_skipped, verified_by, write_verified
from bld.errors import DataError, SettingError
from bld.seeding import keyed_permutation

Indices = Sequence[int] | np.ndarray | Tensor


class ImageSet:
    """The readable images of a source, or a subset of them, numbered 0 … len - 1; `open` makes one.

    A centre view is the central square of an image, resized to S×S; a training view may be cropped and mirrored at
    random, as `preprocessing` says.


    Attributes:
        source: where they are read from.
        preprocessing: how they become squares of S×S pixels.
        rows: int64 (len,): image i of the set is image rows[i] of the source.
        pixels: uint8 (n, 3, S, S), the centre views of all n images of the source, shared between subsets: image i is
            pixels[rows[i]]; None when images are decoded on demand.
        strips: what random crops of the n images are cut from; none when they are decoded on demand.
        skipped: (name, reason) of each image of the source that was left out as unreadable.
    """

    def __init__(
        self,
        source: ImageSource,
        preprocessing: Preprocessing,
        rows: Tensor,
        pixels: Tensor | None,
        skipped: list[tuple[str, str]],
        strips: Strips | None = None,
    ) -> None:
        self.source = source
        self.preprocessing = preprocessing
        self.rows = rows
        self.pixels = pixels
        self.skipped = skipped
        self.strips = strips

    @classmethod
    def open(
        cls,
        location: str | Path,
        preprocessing: Preprocessing,
        *,
        report_to: Path | None = None,
        memory_limit_bytes: int = 2 << 30,
        max_bad_fraction: float = 0.1,
        progress: bool = False,
        threads: int = 2,
        labels: str = "auto",
        verify: bool = True,
        index_to: Path | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> ImageSet:
        """Open what `open_images` opens, and decode every image once, leaving out those that fail.

        Args:
            location: as for `open_images`.
            preprocessing: how the images become squares.
            report_to: folder that receives skipped_images.txt when images are left out; an older one is removed when
                none are. Images that an earlier look listed as unreadable are looked at again then.
            memory_limit_bytes: the centre views are kept in memory up to this size; for random crops, with all that
                these are cut from, or neither.
            max_bad_fraction: 0 … 1; more unreadable images than that are a DataError.
            progress: show a bar.
            threads: decoders at work at once.
            labels: as for `open_images`.
            verify: whether images that do not stay in memory are decoded beforehand too; if not, one that cannot be
                read is a DataError when it is met.
            index_to: folder that caches, for the next time, the list of images and which of them are unreadable.
            max_pixels: of one image; a larger one counts as unreadable.

        Raises:
            DataError: as `open_images`, and if more than `max_bad_fraction` of the images are unreadable, or all.
        """
        source = open_images(location, labels=labels, index_to=index_to, max_pixels=max_pixels)
        size = preprocessing.image_size
        left = memory_limit_bytes - len(source) * 3 * size * size
        pixels = torch.empty((len(source), 3, size, size), dtype=torch.uint8) if left >= 0 else None
        is_random = preprocessing.crop == "random"
        strips = Strips(len(source), left) if pixels is not None and is_random else None
        key = verified_by(source) | ({} if strips is None else {"strips_larger_than": left})
        verdict_in = index_to if pixels is None or strips is not None else None
        failures = kept = read_verified(verdict_in, key) if verdict_in is not None else None
        if kept is not None:  # the strips, if any are wanted, do not fit
            pixels = strips = None
        if kept is None and (verify or pixels is not None):
            failures = decode_all(source, preprocessing, pixels, threads=threads, progress=progress, strips=strips)
        elif kept and report_to is not None:  # their fault may have passed; who does not report takes what is written
            failures = decode_all(source, preprocessing, None, threads=threads, progress=progress, only=[*kept])
        if strips is not None and not strips:  # what is decoded for each view need not be decoded beforehand too
            pixels = strips = None
        if verdict_in is not None and pixels is None and failures is not None and failures != kept:
            write_verified(verdict_in, key, failures)
        failures = failures or {}
        skipped = [(source.names[index], reason) for index, reason in failures.items()]
        if report_to is not None:
            report_skipped(skipped, Path(report_to))
        refuse_too_many(source, skipped, max_bad_fraction, report_to and Path(report_to))
        rows = torch.arange(len(source))
        rows = rows[~torch.isin(rows, torch.tensor(list(failures), dtype=torch.long))]
        return cls(source, preprocessing, rows, pixels, skipped, strips)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def location(self) -> str:
        """Where the images lie, as the user wrote it."""
        return self.source.location

    @property
    def classes(self) -> list[str]:
        """Class names; empty when unlabelled."""
        return self.source.classes

    @cached_property
    def names(self) -> list[str]:
        """The name of each image."""
        return [self.source.names[row] for row in self.rows.tolist()]

    @cached_property
    def labels(self) -> Tensor | None:
        """int64 (len,), index into `classes`; None when unlabelled."""
        return None if self.source.labels is None else torch.from_numpy(self.source.labels)[self.rows]

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal; changes with the files, the key of the preprocessing and the choice of images."""
        key = json.dumps(self.preprocessing.key(), sort_keys=True)
        return fingerprint_of([(self.source.fingerprint, key, self.rows.numpy().tobytes())])

    def subset(self, indices: Indices) -> ImageSet:
        """The images at `indices`, in that order; pixels are shared, not copied."""
        rows = self.rows[torch.as_tensor(indices, dtype=torch.long)]
        return ImageSet(self.source, self.preprocessing, rows, self.pixels, self.skipped, self.strips)

    def split(self, held_out: float | int, seed: int) -> tuple[ImageSet, ImageSet]:
        """(train, held out): disjoint, together everything, each in the order of the set.

        Args:
            held_out: a number of images, or (as a float) the fraction of them, rounded to at least one image.
            seed: each image gets a number in [0, 1) from this seed and its name; those with the smallest are held out.

        Raises:
            DataError: if either part would be empty.
        """
        return self.split_below(self.line_for(held_out, seed), seed)

    def line_for(self, held_out: float | int, seed: int) -> float:
        """The threshold for `split_below` that holds out as many images as `split` does."""
        count, fractions = self._count(held_out), np.sort(name_fractions(self.names, seed))
        return float((fractions[count - 1] + fractions[count]) / 2)

    def split_below(self, line: float, seed: int) -> tuple[ImageSet, ImageSet]:
        """(train, held out): held out are the images whose `name_fractions` lie below the line.

        So each image stays in its part when others are added or removed.

        Args:
            line: in [0, 1], as `line_for` gives it.
            seed: of `name_fractions`.

        Raises:
            DataError: if either part would be empty.
        """
        held = name_fractions(self.names, seed) < line
        if held.all() or not held.any():
            raise DataError(
                f"Of the {len(self)} images of {self.location} {'all' if held.all() else 'none'} would be held out: "
                "add images."
            )
        return self.subset(np.flatnonzero(~held)), self.subset(np.flatnonzero(held))

    def split_by_number(self, held_out: float | int, seed: int) -> tuple[ImageSet, ImageSet]:
        """`split` by a permutation of indices instead of names; for runs of older versions only."""
        order, count = keyed_permutation(seed, "held-out", 0, len(self)), self._count(held_out)
        return self.subset(np.sort(order[count:])), self.subset(np.sort(order[:count]))

    def _count(self, held_out: float | int) -> int:
        """How many images that is; DataError when either part would be empty."""
        n = len(self)
        is_fraction = isinstance(held_out, float)
        if not 0 < held_out < (1 if is_fraction else n) or n < 2:
            raise DataError(
                f"Cannot hold out {held_out} of {n} images: both parts need at least one image; set data.held_out to "
                "less, or add images."
            )
        return min(max(round(held_out * n), 1), n - 1) if is_fraction else int(held_out)

    def uint8_centre(self, indices: Indices) -> Tensor:
        """Centre views, uint8 (B, 3, S, S)."""
        rows = self.rows[torch.as_tensor(indices, dtype=torch.long)]
        if self.pixels is not None:
            return self.pixels.index_select(0, rows)
        return self._stack([center_view(self.source.read(row), self.preprocessing) for row in rows.tolist()])

    def centre(self, indices: Indices) -> Tensor:
        """Centre views, float32 (B, 3, S, S) in [-1, 1]."""
        return to_unit(self.uint8_centre(indices))

    def views(self, indices: Indices, seeds: Sequence[int]) -> Tensor:
        """Training views, float32 (B, 3, S, S) in [-1, 1]; view k depends on its image and seeds[k] alone.

        Raises:
            SettingError: unless there is one seed per index.
        """
        return to_unit(self.uint8_views(indices, seeds))

    def uint8_views(self, indices: Indices, seeds: Sequence[int]) -> Tensor:
        """`views` as stored pixels, uint8 (B, 3, S, S): a quarter of the bytes to send to a device."""
        if len(indices) != len(seeds):
            raise SettingError(f"Each view needs one seed: there are {len(indices)} and {len(seeds)} of them.")
        if self.pixels is not None and self.preprocessing.crop == "center":
            batch = self.uint8_centre(indices)
            if self.preprocessing.flip:
                mirrored = torch.from_numpy(flips(seeds))
                batch[mirrored] = batch[mirrored].flip(-1)
            return batch
        rows = self.rows[torch.as_tensor(indices, dtype=torch.long)].tolist()
        pairs = zip(rows, seeds, strict=True)
        return self._stack([cut(self._strip(row), self.preprocessing, seed) for row, seed in pairs])

    def _strip(self, row: int) -> Tensor:
        """What training views of an image of the source are cut from."""
        held = self.strips.rows[row] if self.strips else None
        return strip(self.source.read(row), self.preprocessing) if held is None else held

    @property
    def _decodes_views(self) -> bool:
        """Whether training views are decoded when they are asked for."""
        return self.pixels is None or (self.preprocessing.crop == "random" and not self.strips)

    def loader(self, batches: Iterable[tuple[list[int], list[int]]], *, workers: int = 0) -> Iterator[Tensor]:
        """`uint8_views(indices, seeds)` for each (indices, seeds) of `batches`, in order.

        Args:
            batches: (indices, seeds) of each batch.
            workers: processes that decode ahead, if any; images in memory are served at once, without them. The batches
                are the same either way.

        Raises:
            DataError: if an image cannot be read, or a process that decodes has died.
        """
        if not self._decodes_views:
            yield from itertools.starmap(self.uint8_views, batches)
            return
        yield from _decoded(_Views(self.uint8_views), batches, workers)

    def centres(self, batches: Iterable[Sequence[int]], *, workers: int = 0) -> Iterator[Tensor]:
        """`uint8_centre(indices)` for each of `batches`, in order; decoded ahead as by `loader`."""
        if self.pixels is not None:
            yield from (self.uint8_centre(list(indices)) for indices in batches)
            return
        yield from _decoded(_Views(self.uint8_centre), ((list(indices),) for indices in batches), workers)

    def _stack(self, views: list[Tensor]) -> Tensor:
        size = self.preprocessing.image_size
        return torch.stack(views) if views else torch.empty((0, 3, size, size), dtype=torch.uint8)


def _decoded(views: _Views, batches: Iterable[tuple[list[int], ...]], workers: int) -> Iterator[Tensor]:
    """What `views` gives for each of the batches, computed ahead by worker processes."""
    loader = DataLoader(
        views,
        sampler=batches,
        batch_size=None,
        num_workers=workers,
        generator=torch.Generator(),  # it would draw from the global one, though nothing here is random
    )
    decoded = iter(loader)
    while True:
        try:
            batch = next(decoded)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise DataError(
                "A process that decodes images has died, most likely for want of memory: lower data.workers "
                f"(now {workers}) or data.memory_limit_gb, and repeat the command, which goes on from its last "
                "checkpoint."
            ) from error
        if isinstance(batch, DataError):
            raise batch
        yield batch


class _Views(Dataset):
    """What a DataLoader worker asks: one batch of views."""

    def __init__(self, views: Callable[..., Tensor]) -> None:
        self.views = views

    def __getitem__(self, batch: tuple[list[int], ...]) -> Tensor | DataError:
        try:
            return self.views(*batch)
        except DataError as error:  # handed over, not raised: a worker would wrap it in a traceback
            return error

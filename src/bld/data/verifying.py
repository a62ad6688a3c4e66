"""The first look at a source: every image is decoded once, so that training never meets a broken one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from bld.data.decoding import decoders
from bld.data.preprocessing import Preprocessing, center_view, strip
from bld.data.rgb import to_rgb
from bld.data.sources.base import ImageSource
from bld.data.strips import Strips
from bld.errors import DataError
from bld.io.files import write_whole

REPORT_NAME = "skipped_images.txt"
VERIFIED_NAME = "verified.json"
CHUNK_IMAGES = 64  # per task: small images would spend their time in the thread pool

Failures = dict[int, str]  # index of an image → why it cannot be used


def decode_all(
    source: ImageSource,
    preprocessing: Preprocessing,
    pixels: Tensor | None,
    *,
    threads: int,
    progress: bool,
    strips: Strips | None = None,
    only: Sequence[int] | None = None,
) -> Failures:
    """Decode every image once.

    Args:
        source: the images.
        preprocessing: how they become squares.
        pixels: uint8 (n, 3, S, S), whose row i receives the centre view of image i; None keeps nothing.
        threads: decoders at work at once.
        progress: show a bar.
        strips: receive what random crops of each image are cut from, as far as they have room.
        only: the images that are decoded; None for all.

    Returns:
        Why an image cannot be used, by the index of each that cannot.
    """

    rows = range(len(source)) if only is None else only

    def decode_chunk(chunk: Sequence[int]) -> Failures:
        failures = {}
        for index in chunk:
            try:
                image = source.read(index)
                if pixels is None:
                    to_rgb(image, preprocessing.background)
                else:
                    pixels[index] = center_view(image, preprocessing)
                if strips:
                    strips.put(index, strip(image, preprocessing))
            except Exception as error:  # damaged files raise nearly anything, and the others are still good
                failures[index] = str(error) or type(error).__name__
        return failures

    failures: Failures = {}
    executor = ThreadPoolExecutor(threads)
    try:
        with tqdm(total=len(rows), desc="Reading images", unit="image", disable=None if progress else True) as bar:
            chunks = [rows[start : start + CHUNK_IMAGES] for start in range(0, len(rows), CHUNK_IMAGES)]
            for chunk, found in zip(chunks, executor.map(decode_chunk, chunks), strict=True):
                failures |= found
                bar.update(len(chunk))
    finally:
        executor.shutdown(cancel_futures=True)  # so that Ctrl-C need not wait for the rest
    return failures


def verified_by(source: ImageSource) -> dict[str, Any]:
    """All that decides which images of a source are unreadable, ready for JSON."""
    return {"fingerprint": source.fingerprint, "max_pixels": source.max_pixels, "decoders": decoders()}


def read_verified(folder: Path, key: dict[str, Any]) -> Failures | None:
    """What an earlier look at the same images found, with the same limit and decoders; None if there was none."""
    try:
        kept = json.loads((folder / VERIFIED_NAME).read_text(encoding="utf-8"))
        unreadable = kept.pop("unreadable")
        return {int(index): str(reason) for index, reason in unreadable.items()} if kept == key else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_verified(folder: Path, key: dict[str, Any], failures: Failures) -> None:
    """Keep what a look at all images found."""
    write_whole(folder / VERIFIED_NAME, json.dumps({**key, "unreadable": failures}).encode())


def report_skipped(skipped: list[tuple[str, str]], folder: Path) -> None:
    """Write `name<TAB>reason` lines to skipped_images.txt; with nothing skipped, remove an older list."""
    path = folder / REPORT_NAME
    if not skipped:
        path.unlink(missing_ok=True)
        return
    lines = "".join(f"{name}\t{' '.join(reason.split())}\n" for name, reason in skipped)
    write_whole(path, lines.encode(errors="backslashreplace"))


def bare_reason(source: ImageSource, name: str, reason: str) -> str:
    """Why an image cannot be used, without its name and place, for sentences that have named both."""
    return reason.removeprefix(f"Cannot read {name} in {source.location}: ").rstrip(".")


def refuse_too_many(source: ImageSource, skipped: list[tuple[str, str]], limit: float, folder: Path | None) -> None:
    """Refuse a source of which too many images are unusable.

    Args:
        source: the images.
        skipped: (name, reason) of each that is unusable.
        limit: the fraction of the images that may be, 0 … 1.
        folder: where `report_skipped` has listed them; None if it has not.

    Raises:
        DataError: if more than that are, or all of them.
    """
    bad, total = len(skipped), len(source)
    if bad <= limit * total and bad < total:
        return
    name, why = skipped[0]
    where = f"the list is in {folder / REPORT_NAME}; " if folder else ""
    raise DataError(
        f"{bad} of {total} images in {source.location} cannot be read (at most {limit:.0%} may fail), "
        f"the first is {name} ({bare_reason(source, name, why)}); {where}fix or remove them."
    )

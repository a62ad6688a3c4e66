"""Images in a folder and the folders below it."""

# ruff: noqa: PTH116, PTH118 (making a Path of each of millions of files costs more than looking at it)

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from bld.data.decoding import FILE_LIMIT_BYTES, check_file_size, decode
from bld.data.sources.base import ImageSource, fingerprint_of, opens, passed_over_note
from bld.data.sources.index import Listing, integers, read_index, sorted_listing, write_index
from bld.data.sources.members import (
    EXTENSIONS,
    SHEET_NAMES,
    TARS,
    counted_by_ending,
    is_hidden,
    is_image_path,
    is_sheet,
    passed_over,
)
from bld.errors import DataError

INDEX_FROM = 100_000  # images; fewer are looked at one by one at every start, so that an altered file is noticed


class FolderSource(ImageSource):
    """A folder, searched through; the class of an image is its first-level subfolder.

    Symbolic links are followed; a folder reached twice is read once. The fingerprint covers the name, size
    and modification time of each image.

    Args:
        location: the folder, as the user wrote it.
        path: the folder.
        index_to: a folder that keeps what was found. Of INDEX_FROM images or more, the files are not looked at again as
            long as no folder has changed, that is, as long as no file was added, removed or renamed.

    Raises:
        DataError: if a folder cannot be looked into, or there is no image.
    """

    def __init__(self, location: str, path: Path, index_to: Path | None = None) -> None:
        self._root = path.absolute()  # the working directory may change later
        kept = _kept(self._root, index_to)
        if kept is None:
            found = _search(self._root, location)
            if not found.listing.names and (packed := sorted(filter(_is_packed, found.others))):
                raise DataError(
                    f"No image lies open in {location}, but packed ones may, in {', '.join(packed[:3])}"
                    f"{' …' if len(packed) > 3 else ''}: name one of these files, or a folder of nothing but .tar "
                    "shards or of nothing but .parquet files."
                )
            listing, notes = found.listing, found.notes(location)
            if len(listing.names) >= INDEX_FROM:
                key = {"folder": str(self._root), "endings": sorted(EXTENSIONS), "folders": found.folders}
                write_index(index_to, {**key, "notes": notes}, listing)
        else:
            listing, notes = kept
        self._describe(location, listing.names)
        self.notes += notes
        self.fingerprint = listing.fingerprint

    def side_file(self, path: str, most: int = FILE_LIMIT_BYTES) -> bytes | None:
        """The content of `path`, relative to the folder."""
        return _content(os.path.join(self._root, path), most) or None

    def _read(self, index: int) -> Image.Image:
        path = self._root / self.names[index]
        check_file_size(path.stat().st_size)
        return decode(path.read_bytes(), self.max_pixels)


def _is_packed(name: str) -> bool:
    """Whether a file is named as an archive or a table of images is."""
    return name.lower().endswith((".zip", ".parquet", *TARS))


def _content(path: str, most: int) -> bytes:
    """What is in a file beside the images; nothing where there is none, or it is too large."""
    if (found := _regular_file(path)) is None or not 0 < found[0] <= most:
        return b""
    return Path(path).read_bytes()


def _kept(root: Path, index_to: Path | None) -> tuple[Listing, list[str]] | None:
    """What was found in an earlier search, if every folder is as it was then and the same files are images."""
    kept = read_index(index_to)
    if kept is None or (kept[0].get("folder"), kept[0].get("endings")) != (str(root), sorted(EXTENSIONS)):
        return None
    try:
        changed = any(os.stat(path).st_mtime_ns != mtime for path, mtime in kept[0]["folders"].items())
    except (OSError, KeyError, AttributeError):
        return None
    return None if changed else (kept[1], list(kept[0].get("notes", [])))


@dataclass
class _Found:
    """What a search came upon: images, the modification time in ns of each folder, and what it left alone."""

    listing: Listing
    folders: dict[str, int]
    others: list[str]
    of_ours: list[str]

    def notes(self, location: str) -> list[str]:
        """What was left alone, in sentences."""
        ours = sorted(self.of_ours)
        left = f"Passed over in {location}, as made by bld: {', '.join(ours[:3])}{' …' if len(ours) > 3 else ''}."
        others = counted_by_ending(passed_over(self.others, self.listing.names))
        return ([left] if ours else []) + ([passed_over_note(location, others)] if others else [])


def _is_ours(folder: Path) -> bool:
    """Whether a folder is a run, or was written by bld sample."""
    if (folder / "config.yaml").is_file():
        return (folder / "progress.json").is_file() or (folder / "lock").exists()
    try:
        note = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(note, dict) and {"model", "seed", "steps", "temperature"} <= note.keys()


def _is_link_within(folder: Path, top: str) -> bool:
    """Whether it is a link to a folder that the search below `top` comes to without it."""
    real = Path(os.path.realpath(folder))
    if not folder.is_symlink() or not real.is_relative_to(top):
        return False
    return not any(part.startswith(".") for part in real.relative_to(top).parts)  # hidden ones are not searched


def _search(root: Path, location: str) -> _Found:
    """Every image file below the root, but those in folders that bld itself has made."""

    def refuse(error: OSError) -> None:
        raise DataError(f"Cannot look into {error.filename} of {location}: {error.strerror}.") from error

    names: list[str] = []
    others: list[str] = []
    of_ours: list[str] = []
    sizes, mtimes = integers(), integers()
    top = os.path.realpath(root)
    visited: set[str] = set()
    folders: dict[str, int] = {}
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=refuse):
        if (real := os.path.realpath(folder)) in visited:
            subfolders.clear()
            continue
        visited.add(real)
        folders[folder] = os.stat(folder).st_mtime_ns
        subfolders.sort()
        subfolders[:] = [
            name for name in subfolders if not (name.startswith(".") or _is_link_within(Path(folder, name), top))
        ]
        prefix = Path(folder).relative_to(root).as_posix()
        for name in [name for name in subfolders if _is_ours(Path(folder, name))]:
            subfolders.remove(name)
            of_ours.append(name if prefix == "." else f"{prefix}/{name}")
        for file in files:
            name, path = file if prefix == "." else f"{prefix}/{file}", os.path.join(folder, file)
            if file in SHEET_NAMES and is_sheet(file, _content(path, FILE_LIMIT_BYTES)):
                continue
            if is_image_path(name) and (found := _regular_file(path)) is not None:
                names.append(name)
                sizes.append(found[0])
                mtimes.append(found[1])
            elif not is_hidden(name):
                others.append(name)
    listing = sorted_listing(names, {"size": sizes, "mtime": mtimes}, {})
    columns = listing.columns["size"].tolist(), listing.columns["mtime"].tolist()
    listing.fingerprint = fingerprint_of(zip(listing.names, *columns, strict=True))
    return _Found(listing, folders, others, of_ours)


def _regular_file(path: str) -> tuple[int, int] | None:
    """(bytes, modification time in ns); None for pipes and devices, where a read could wait for ever."""
    try:
        status = os.stat(path)
    except OSError:  # a dangling link: listed, so that reading it reports it
        return -1, -1
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


@opens(3)
def _folder(text: str, path: Path, index_to: Path | None) -> ImageSource | None:
    return FolderSource(text, path, index_to) if path.is_dir() else None

"""Images in a folder and the folders below it."""

# ruff: noqa: PTH116, PTH118 (making a Path of each of millions of files costs more than looking at it)

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from PIL import Image

from bld.errors import DataError
from bld.images.decoding import check_file_size, decode
from bld.images.index import Listing, integers, read_index, sorted_listing, write_index
from bld.images.members import TEXT_LIMIT_BYTES, is_image_path, text_path
from bld.images.source import ImageSource, fingerprint_of

INDEX_FROM = 100_000  # images; fewer are looked at one by one at every start, so that an altered file is noticed


class FolderSource(ImageSource):
    """A folder, searched through; the class of an image is its first-level subfolder.

    Symbolic links are followed; a folder reached twice is read once. The fingerprint covers the name, size
    and modification time of each image.

    index_to: a folder that keeps what was found. Of INDEX_FROM images or more, the files are not looked at again as
    long as no folder has changed, that is, as long as no file was added, removed or renamed.
    """

    def __init__(self, location: str, path: Path, index_to: Path | None = None) -> None:
        self._root = path.absolute()  # the working directory may change later
        listing = _kept(self._root, index_to)
        if listing is None:
            listing, folders = _search(self._root, location)
            if len(listing.names) >= INDEX_FROM:
                write_index(index_to, {"folder": str(self._root), "folders": folders}, listing)
        self._describe(location, listing.names)
        self.fingerprint = listing.fingerprint

    def texts_beside(self) -> list[str] | None:
        """Of `a/1.jpg` what `a/1.txt` says."""
        found = [_text(os.path.join(self._root, text_path(name))) for name in self.names]
        return found if any(found) else None

    def _read(self, index: int) -> Image.Image:
        path = self._root / self.names[index]
        check_file_size(path.stat().st_size)
        return decode(path.read_bytes())


def _text(path: str) -> str:
    """What a text file says; "" where there is none."""
    if (found := _regular_file(path)) is None or not 0 < found[0] <= TEXT_LIMIT_BYTES:
        return ""
    return Path(path).read_text(encoding="utf-8-sig", errors="replace")


def _kept(root: Path, index_to: Path | None) -> Listing | None:
    """What was found in an earlier search, if every folder is as it was then."""
    kept = read_index(index_to)
    if kept is None or kept[0].get("folder") != str(root):
        return None
    try:
        changed = any(os.stat(path).st_mtime_ns != mtime for path, mtime in kept[0]["folders"].items())
    except (OSError, KeyError, AttributeError):
        return None
    return None if changed else kept[1]


def _search(root: Path, location: str) -> tuple[Listing, dict[str, Any]]:
    """(every image file below the root, modification time in ns of each folder)."""

    def refuse(error: OSError) -> None:
        raise DataError(f"Cannot look into {error.filename} of {location}: {error.strerror}.") from error

    names: list[str] = []
    sizes, mtimes = integers(), integers()
    visited: set[str] = set()
    folders: dict[str, int] = {}
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=refuse):
        visited.add(os.path.realpath(folder))
        folders[folder] = os.stat(folder).st_mtime_ns
        subfolders.sort()
        subfolders[:] = [
            name
            for name in subfolders
            if not name.startswith(".") and os.path.realpath(Path(folder, name)) not in visited
        ]
        prefix = Path(folder).relative_to(root).as_posix()
        for file in files:
            name = file if prefix == "." else f"{prefix}/{file}"
            if is_image_path(name) and (found := _regular_file(os.path.join(folder, file))) is not None:
                names.append(name)
                sizes.append(found[0])
                mtimes.append(found[1])
    listing = sorted_listing(names, {"size": sizes, "mtime": mtimes}, {})
    columns = listing.columns["size"].tolist(), listing.columns["mtime"].tolist()
    listing.fingerprint = fingerprint_of(zip(listing.names, *columns, strict=True))
    return listing, folders


def _regular_file(path: str) -> tuple[int, int] | None:
    """(bytes, modification time in ns); None for pipes and devices, where a read could wait for ever."""
    try:
        status = os.stat(path)
    except OSError:  # a dangling link: listed, so that reading it reports it
        return -1, -1
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None

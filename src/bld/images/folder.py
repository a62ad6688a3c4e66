"""Images in a folder and the folders below it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from bld.errors import DataError
from bld.images.decoding import check_file_size, decode
from bld.images.members import is_image_path
from bld.images.source import ImageSource, fingerprint_of


class FolderSource(ImageSource):
    """A folder, searched through; the class of an image is its first-level subfolder.

    Symbolic links are followed; a folder reached twice is read once. The fingerprint covers the name, size
    and modification time of each image.
    """

    def __init__(self, location: str, path: Path) -> None:
        self._root = path.absolute()  # the working directory may change later
        found = sorted(_images_below(self._root, location))
        self._describe(location, [name for name, _, _ in found])
        self.fingerprint = fingerprint_of(found)

    def _read(self, index: int) -> Image.Image:
        path = self._root / self.names[index]
        check_file_size(path.stat().st_size)
        return decode(path.read_bytes())


def _images_below(root: Path, location: str) -> Iterator[tuple[str, int, int]]:
    """(relative path, bytes, modification time in ns) of each image file, in no order to rely on."""

    def refuse(error: OSError) -> None:
        raise DataError(f"Cannot look into {error.filename} of {location}: {error.strerror}.") from error

    visited: set[str] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=refuse):
        visited.add(os.path.realpath(folder))
        subfolders.sort()
        subfolders[:] = [
            name
            for name in subfolders
            if not name.startswith(".") and os.path.realpath(Path(folder, name)) not in visited
        ]
        prefix = Path(folder).relative_to(root)
        for file in files:
            name = (prefix / file).as_posix()
            if is_image_path(name):
                yield from _regular_file(name, Path(folder, file))


def _regular_file(name: str, path: Path) -> Iterator[tuple[str, int, int]]:
    """The record of a file; none for pipes and devices, where a read could wait for ever."""
    try:
        status = path.stat()
    except OSError:  # a dangling link: listed, so that reading it reports it
        yield name, -1, -1
        return
    if stat.S_ISREG(status.st_mode):
        yield name, status.st_size, status.st_mtime_ns

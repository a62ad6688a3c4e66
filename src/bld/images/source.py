"""An ordered collection of images that can be read one by one: the common face of folder, archive, digits."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from bld.errors import DataError
from bld.images.members import EXTENSIONS, class_labels


class ImageSource(ABC):
    """Images by number. Sources pickle, serve any number of threads, and reopen their files in each process.

    location     where the images lie, as the user wrote it
    names        unique, sorted, relative POSIX paths; the order is the same on every machine
    classes      class names in natural order; empty when unlabelled
    labels       int64 (n,), index into `classes`; None when unlabelled
    fingerprint  hexadecimal; changes when an image is added, removed, renamed or altered
    """

    location: str
    names: list[str]
    classes: list[str]
    labels: np.ndarray | None
    fingerprint: str

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Image.Image:
        """Image `index`, decoded, in its own mode, not yet turned by EXIF; DataError naming it on failure."""
        try:
            return self._read(index)
        except Exception as error:  # decoders meet strangers' bytes and raise nearly anything
            reason = str(error).rstrip(".") or type(error).__name__
            raise DataError(f"Cannot read {self.names[index]} in {self.location}: {reason}.") from error

    @abstractmethod
    def _read(self, index: int) -> Image.Image:
        """The decoded image, or any exception."""

    def _describe(self, location: str, names: Sequence[str], class_paths: Sequence[str] | None = None) -> None:
        """Set location, names and labels; the classes come from `class_paths`, else from the names."""
        if not names:
            raise DataError(f"No image in {location}: need files ending in {', '.join(sorted(EXTENSIONS))}.")
        self.location = location
        self.names = list(names)
        self.classes, self.labels = class_labels(names if class_paths is None else class_paths)


def fingerprint_of(records: Iterable[tuple[object, ...]]) -> str:
    """32 hexadecimal digits that depend on every record and on their order."""
    digest = hashlib.blake2b(digest_size=16)
    for record in records:
        digest.update(repr(record).encode())  # repr quotes and escapes, so no two records look alike
    return digest.hexdigest()

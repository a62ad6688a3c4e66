"""An ordered collection of images that can be read one by one: what folders, archives, digits have in common."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import overload

import numpy as np
from PIL import Image

from bld.data.decoding import FILE_LIMIT_BYTES, MAX_PIXELS
from bld.data.sources.members import (
    EXTENSIONS,
    TEXT_LIMIT_BYTES,
    class_labels,
    comparable,
    counted_by_ending,
    decoded_text,
    is_image_path,
    passed_over,
    text_path,
)
from bld.errors import DataError


class Names(Sequence[str]):
    """Strings in one block of memory: a million file names take 40 MB, and worker processes share them uncopied.

    Attributes:
        text: the strings' UTF-8, one after the other.
        bounds: int64 (n + 1,): where each begins, and the last ends.
    """

    def __init__(self, names: Iterable[str]) -> None:
        parts = [name.encode(errors="surrogateescape") for name in names]  # as the system gave what is no UTF-8
        self.bounds = np.concatenate([[0], np.cumsum([len(part) for part in parts], dtype=np.int64)]).astype(np.int64)
        self.text = b"".join(parts)

    @classmethod
    def from_parts(cls, text: bytes, bounds: np.ndarray) -> Names:
        """From what `text` and `bounds` hold.

        Args:
            text: the strings' UTF-8, one after the other.
            bounds: integers (n + 1,): where each begins, and the last ends.

        Raises:
            ValueError: if the two do not fit each other.
        """
        fits = bounds.ndim == 1 and len(bounds) and bounds[0] == 0 and bounds[-1] == len(text)
        if not fits or (np.diff(bounds) < 0).any():
            raise ValueError("bounds of names that do not fit their text")
        names = cls(())
        names.text, names.bounds = text, bounds.astype(np.int64)
        return names

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"There are {len(self)} names, and none has the number {index}.")
        index %= len(self)
        return self.text[self.bounds[index] : self.bounds[index + 1]].decode(errors="surrogateescape")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Names({self[:3]}{'…' if len(self) > 3 else ''})"


class ImageSource(ABC):
    """Images by number. Sources pickle, serve any number of threads, and reopen their files in each process.

    Attributes:
        location: where the images lie, as the user wrote it.
        names: unique, sorted, relative POSIX paths; the order is the same on every machine.
        classes: class names, in natural order unless the data set brings its own (a hub's ClassLabel) or `meet_by_name`
            has set another; empty when unlabelled.
        labels: int64 (n,), index into `classes`; None when unlabelled.
        fingerprint: hexadecimal; changes when an image is added, removed, renamed or altered.
        notes: sentences on what was found and not used, for the user to read once.
        max_pixels: of one image; a larger one cannot be read.
    """

    location: str
    names: Sequence[str]
    classes: list[str]
    labels: np.ndarray | None
    fingerprint: str
    notes: list[str]
    max_pixels: int = MAX_PIXELS

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Image.Image:
        """Image `index`, decoded, in its own mode, not yet turned by EXIF.

        Raises:
            DataError: naming the image, if it cannot be read.
        """
        try:
            return self._read(index)
        except Exception as error:  # decoders raise nearly anything for damaged bytes
            reason = str(error).rstrip(".") or type(error).__name__
            raise DataError(f"Cannot read {self.names[index]} in {self.location}: {reason}.") from error

    def texts_beside(self) -> Sequence[str] | None:
        """What the text file (or column) beside each image says, "" where there is none; None if there are none.

        Of `a/1.jpg` it is `a/1.txt`.
        """
        return self._decoded_texts(self.side_file(text_path(name), TEXT_LIMIT_BYTES) or b"" for name in self.names)

    def side_file(self, path: str, most: int = FILE_LIMIT_BYTES) -> bytes | None:
        """The content of a file that lies among the images under this path; None where there is none.

        A file of more than `most` bytes is not read.
        """
        return None

    @abstractmethod
    def _read(self, index: int) -> Image.Image:
        """The decoded image, or any exception."""

    def _describe(self, location: str, names: Sequence[str], class_paths: Sequence[str] | None = None) -> None:
        """Set location, names and labels; the classes come from `class_paths`, else from the names."""
        if not names:
            raise DataError(f"No image in {location}: need files ending in {', '.join(sorted(EXTENSIONS))}.")
        self.location = location
        self.names = names if isinstance(names, Names) else Names(names)
        paths = names if class_paths is None else class_paths
        self.classes, self.labels = class_labels(paths)
        self.notes = []
        loose = [path for path in paths if "/" not in path] if self.labels is None else []
        if loose and len({path.split("/", 1)[0] for path in paths if "/" in path}) > 1:
            self.notes.append(
                f"{len(loose):,} images lie beside the folders of {location} (the first is {loose[0]}), so that the "
                "folders are not taken for classes: move every image into one if they are."
            )

    def _pass_over(self, paths: Iterable[str]) -> None:
        """Note the files that are there and not used."""
        if said := counted_by_ending(passed_over(paths, self.names)):
            self.notes.append(passed_over_note(self.location, said))

    def _decoded_texts(self, contents: Iterable[bytes]) -> list[str] | None:
        """The texts beside the images, "" for nothing; None if there are none.  Notes those in an unknown encoding."""
        texts, guessed = [], 0
        for content in contents:
            text, is_guess = decoded_text(content)
            texts.append(text)
            guessed += is_guess
        if guessed:
            self.notes.append(
                f"{guessed:,} texts beside the images of {self.location} are not UTF-8 and were read as Windows-1252: "
                "save them as UTF-8 if their accents are wrong."
            )
        return texts if any(texts) else None


def name_fractions(names: Iterable[str], seed: int) -> np.ndarray:
    """A number in [0, 1) for each name, float64 (n,), that depends on seed and name alone."""
    key = hashlib.blake2b(str(seed).encode(), digest_size=32).digest()
    digests = (
        hashlib.blake2b(comparable(name).encode(errors="surrogateescape"), digest_size=8, key=key).digest()
        for name in names
    )
    return (np.frombuffer(b"".join(digests), dtype=">u8") >> np.uint64(11)) * 2.0**-53


def meet_by_name(source: ImageSource, classes: Sequence[str]) -> list[str]:
    """Number a source's classes as another list does; nothing is changed if the list lacks one of them.

    Args:
        source: the images; its classes, labels and fingerprint are changed.
        classes: the other list.

    Returns:
        The source's classes that the list lacks; none for an unlabelled source.
    """
    if source.labels is None or source.classes == list(classes):
        return []
    number = {name: index for index, name in enumerate(classes)}
    unknown = [name for name in source.classes if name not in number]
    if not unknown:
        source.labels = np.array([number[name] for name in source.classes], dtype=np.int64)[source.labels]
        source.classes = list(classes)
        source.fingerprint = fingerprint_of([(source.fingerprint, source.labels.tobytes(), tuple(classes))])
    return unknown


def passed_over_note(location: str, said: str) -> str:
    """Which files were not used, in a sentence; `said` is what `counted_by_ending` gives."""
    heif = "; pip install pillow-heif reads .heic" if ".hei" in said else ""
    return f"Passed over in {location}, as no images that can be read: {said}{heif}."


def links_note(location: str, names: Iterable[str]) -> list[str]:
    """Which images of an archive are links, that are not used: a sentence, or none."""
    images = [name for name in names if is_image_path(name)]
    if not images:
        return []
    return [
        f"Passed over in {location}, as images that are links: {len(images):,} (the first is {images[0]}); pack the "
        "files themselves (tar --dereference --hard-dereference, zip without --symlinks)."
    ]


def fingerprint_of(records: Iterable[tuple[object, ...]]) -> str:
    """32 hexadecimal digits that depend on every record and on their order."""
    digest = hashlib.blake2b(digest_size=16)
    for record in records:
        digest.update(repr(record).encode())  # repr quotes and escapes, so no two records look alike
    return digest.hexdigest()


Opener = Callable[[str, Path, Path | None], ImageSource | None]
"""(what a user names, the same as a path, where an index is kept) → its images, or None if it is of another kind."""

OPENERS: list[tuple[float, Opener]] = []


def opens(place: float) -> Callable[[Opener], Opener]:
    """Make an opener known.

    Args:
        place: openers with smaller numbers are asked first.
    """

    def known(opener: Opener) -> Opener:
        OPENERS.append((place, opener))
        return opener

    return known

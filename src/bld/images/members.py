"""What the paths of a collection say: which are images, and which class each belongs to.

Only strings here, so folders, zip and tar files obey the same rules. Paths are relative and POSIX.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np

from bld.errors import DataError

EXTENSIONS = frozenset(["png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm"])


LABEL_KEYS = ("label", "class", "category", "cls")
"""What the class of an image is called in tables and in the .json beside it."""

CAPTION_KEYS = ("text", "caption", "prompt", "captions")
"""What the caption of an image is called there."""

TEXT_LIMIT_BYTES = 1 << 20  # of the file beside one image


def is_image_path(path: str) -> bool:
    """Whether the path ends like an image and no part of it is hidden (`.x`) or macOS's `__MACOSX`."""
    parts = path.split("/")
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and "." in parts[-1] and parts[-1].rpartition(".")[2].lower() in EXTENSIONS


def member_path(raw: str, location: str) -> str:
    r"""The path of an archive member as we use it: `./a\b.png` → `a/b.png`.

    Raises DataError when the path is absolute or climbs with `..`: nothing is ever unpacked to disk, but
    names reach reports and the file names of results.
    """
    path = raw.replace("\\", "/")
    if path.startswith("/") or re.match(r"[A-Za-z]:/", path) or ".." in path.split("/"):
        raise DataError(f"{location} holds a member outside itself, {raw!r}; pack it with relative paths.")
    return str(PurePosixPath(path))


def text_path(path: str) -> str:
    """Where the text beside an image lies: `a/1.jpg` → `a/1.txt`."""
    return path.rpartition(".")[0] + ".txt"


def natural_key(text: str) -> tuple[object, ...]:
    """Sorting key that puts `img2` before `img10`; numbers compare by length, then digits, however long."""
    words_and_numbers = re.split(r"([0-9]+)", text.casefold())
    key = (
        (len(part.lstrip("0")), part.lstrip("0")) if position % 2 else part
        for position, part in enumerate(words_and_numbers)
    )
    return (*key, text)


def class_labels(names: Sequence[str]) -> tuple[list[str], np.ndarray | None]:
    """Classes in natural order, and the class index of each image, int64 (n,).

    The class is the first-level folder. Unless every image lies in one and there are at least two, the images
    are unlabelled: ([], None).
    """
    folders = [name.split("/", 1)[0] if "/" in name else "" for name in names]
    if "" in folders or len(set(folders)) < 2:
        return [], None
    return numbered(folders)


def numbered(said: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """(the different classes in natural order, the number of each image's, int64 (n,))."""
    classes = sorted(set(said), key=natural_key)
    number = {name: i for i, name in enumerate(classes)}
    return classes, np.array([number[name] for name in said], dtype=np.int64)


def without_wrapper(names: Sequence[str]) -> list[str]:
    """The names without the one top-level folder that wraps them all, if there is one.

    Archives are often made from the folder above: `data/cat/1.png`, `data/dog/2.png`.
    """
    tops = {name.split("/", 1)[0] if "/" in name else "" for name in names}
    return [name.split("/", 1)[1] for name in names] if len(tops) == 1 and "" not in tops else list(names)

"""What the paths of a collection say: which are images, and which class each belongs to.

Only strings here, so that the same rules hold for folders, zip and tar files. Paths are relative and POSIX.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import PurePosixPath

import numpy as np

from bld.data.decoding import png_texts
from bld.errors import DataError

_ALWAYS = ["png", "apng", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "dib", "gif", "tif", "tiff", "pbm", "pgm", "ppm"]
_HEIF = ["heic", "heif"] if find_spec("pillow_heif") else []
EXTENSIONS = frozenset([*_ALWAYS, "avif", "jp2", "j2k", *_HEIF])
"""Extensions of the files that are taken for images."""


TABLES = (
    *(f"{stem}.{kind}" for stem in ("metadata", "labels", "captions") for kind in ("jsonl", "csv", "tsv")),
    "dataset.json",
)
"""Files at the top of the images that may say their classes or captions."""

SHEET_NAMES = frozenset(["grid.png", "pairs.png", "neighbours.png"])
SHEET_TEXT = b"bld contact sheet"

LABEL_KEYS = ("label", "class", "category", "cls")
"""What the class of an image is called in tables and in the .json beside it."""

TARS = (".tar", ".tar.gz", ".tgz")
CAPTION_KEYS = ("text", "caption", "prompt", "captions")
"""What the caption of an image is called there."""

SYSTEM_FILES = frozenset(["__MACOSX", "Thumbs.db", "desktop.ini"])

TEXT_LIMIT_BYTES = 1 << 20  # of the file beside one image


def is_image_path(path: str) -> bool:
    """Whether the path ends like an image and is not hidden (`is_hidden`)."""
    name = path.rpartition("/")[2]
    return "." in name and name.rpartition(".")[2].lower() in EXTENSIONS and not is_hidden(path)


def member_path(raw: str, location: str) -> str:
    r"""The path of an archive member as we use it: `./a\b.png` → `a/b.png`.

    Raises:
        DataError: if the path is absolute or climbs with `..`: nothing is ever unpacked to disk, but names reach
            reports and the file names of results.
    """
    path = raw.replace("\\", "/")
    if path.startswith("/") or re.match(r"[A-Za-z]:/", path) or ".." in path.split("/"):
        raise DataError(f"{location} holds a member outside itself, {raw!r}; pack it with relative paths.")
    return str(PurePosixPath(path))


def is_sheet(name: str, data: bytes) -> bool:
    """Whether a file is a sheet of many images that a command of bld wrote beside them."""
    return name.rpartition("/")[2] in SHEET_NAMES and any(SHEET_TEXT in text for text in png_texts(data))


def passed_over(paths: Iterable[str], names: Sequence[str]) -> list[str]:
    """Those of the other files that are not used: no table, and no text beside an image.

    Hidden files and those called readme or licence are left out too.

    Args:
        paths: files that are no images.
        names: the images.
    """
    wrapper, beside = wrapper_of(names), {text_path(name) for name in names}
    tables = {prefix + table for prefix in ("", wrapper) for table in TABLES}

    def is_known(path: str) -> bool:
        stem = path.rpartition("/")[2].partition(".")[0].lower()
        return path in tables or path in beside or is_hidden(path) or stem in ("readme", "license", "licence")

    return [path for path in paths if not is_known(path)]


def is_hidden(path: str) -> bool:
    """Whether a part of the path is hidden (`.x`), or a file that systems write by themselves (`SYSTEM_FILES`)."""
    return any(part.startswith(".") or part in SYSTEM_FILES for part in path.split("/"))


def comparable(name: str) -> str:
    """A path as names are compared: accents composed in one way (NFC), `/` between folders, no `./` before."""
    return unicodedata.normalize("NFC", name.strip().replace("\\", "/").removeprefix("./"))


def without_halves(text: str) -> str:
    """A text of JSON with "?" for each half of a character, which is left where a program cut it within an emoji."""
    return text.encode(errors="replace").decode()


def decoded_text(data: bytes) -> tuple[str, bool]:
    """(text, whether that is a guess): UTF-8, or what a byte order mark says; else a guess, Windows-1252."""
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if data.startswith(mark):
            return data.decode(encoding, errors="replace"), False
    try:
        return data.decode("utf-8"), False
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace"), True


def counted_by_ending(paths: Iterable[str]) -> str:
    """Files in words: `2 .heic and 1 .psd (the first is a/b.heic)`; empty where there are none."""
    paths = sorted(paths)
    if not paths:
        return ""
    endings = Counter(_ending(path) for path in paths)
    said = [f"{count:,} {ending}" for ending, count in endings.most_common(5)]
    rest = sum(endings.values()) - sum(count for _, count in endings.most_common(5))
    said += [f"{rest:,} others"] if rest else []
    return f"{' and '.join(filter(None, [', '.join(said[:-1]), said[-1]]))} (the first is {paths[0]})"


def _ending(path: str) -> str:
    name = path.rpartition("/")[2]
    return f".{name.rpartition('.')[2].lower()}" if "." in name else "without an ending"


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
    length = len(wrapper_of(names))
    return [name[length:] for name in names]


def wrapper_of(names: Iterable[str]) -> str:
    """The one top-level folder that wraps all names, with a slash; empty if there is none."""
    tops = {name.split("/", 1)[0] if "/" in name else "" for name in names}
    return f"{tops.pop()}/" if len(tops) == 1 and "" not in tops else ""

"""What a search of folders or shards has found, kept in one file, so that millions of images are searched for once.

    index.npz    the lists below as arrays, and `key`, the JSON of what they were made from

Each source compares the key with its own; an index with another key, or a damaged one, is made again.
"""

from __future__ import annotations

import io
import json
import zipfile
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bld.data.sources.base import Names
from bld.io.files import write_whole

NAME = "index.npz"


@dataclass
class Listing:
    """Images by number: their names, sorted, and numbers and texts for each of them, in columns."""

    names: Names
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    texts: dict[str, Names] = field(default_factory=dict)
    fingerprint: str = ""


def sorted_listing(names: list[str], columns: dict[str, array], texts: dict[str, list[str]]) -> Listing:
    """What was found, in the order of the names; of images with one name the last found counts."""
    last = {name: number for number, name in enumerate(names)} if len(set(names)) < len(names) else None
    order = sorted(range(len(names)) if last is None else last.values(), key=names.__getitem__)
    return Listing(
        Names(names[i] for i in order),
        {key: np.frombuffer(column, dtype=np.int64)[order] for key, column in columns.items()},
        {key: Names(text[i] for i in order) for key, text in texts.items()},
    )


def write_index(folder: Path | None, key: dict[str, Any], listing: Listing) -> None:
    """Keep a listing.

    Args:
        folder: where; None keeps nothing.
        key: what the listing was made from, ready for JSON.
        listing: what was found.
    """
    if folder is None:
        return
    arrays: dict[str, np.ndarray] = {"key": _bytes(json.dumps(key)), "fingerprint": _bytes(listing.fingerprint)}
    for name, texts in {"names": listing.names, **listing.texts}.items():
        arrays[f"text-{name}"] = np.frombuffer(texts.text, np.uint8)
        arrays[f"bounds-{name}"] = texts.bounds
    arrays |= {f"column-{name}": column for name, column in listing.columns.items()}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write_whole(folder / NAME, buffer.getbuffer())


def read_index(folder: Path | None) -> tuple[dict[str, Any], Listing] | None:
    """(key, listing) kept in the folder; None if no folder is given, or there is none in it, or it is damaged."""
    if folder is None or not (folder / NAME).is_file():
        return None
    try:
        with np.load(folder / NAME, allow_pickle=False) as arrays:
            texts, columns = {}, {}
            for name in arrays.files:
                kind, _, rest = name.partition("-")
                if kind == "text":
                    texts[rest] = Names.from_parts(arrays[name].tobytes(), arrays[f"bounds-{rest}"])
                elif kind == "column":
                    columns[rest] = arrays[name]
            key = json.loads(arrays["key"].tobytes())
            names = texts.pop("names")
            if not isinstance(key, dict) or any(
                len(part) != len(names) for part in [*texts.values(), *columns.values()]
            ):
                return None
            return key, Listing(names, columns, texts, arrays["fingerprint"].tobytes().decode())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


def integers(values: Iterable[int] = ()) -> array:
    """A list of 64-bit integers that takes eight bytes for each."""
    return array("q", values)

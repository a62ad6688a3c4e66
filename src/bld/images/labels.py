"""Classes from a table beside the images, where folders do not say them.

metadata.csv, labels.csv        a line a file; a column file_name (file, image, path …) and one label (class …)
metadata.jsonl, labels.jsonl    the same, an object a line
dataset.json                    {"labels": [[file, class], …]}, or {file: class, …}
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bld.errors import DataError
from bld.images.members import LABEL_KEYS, numbered
from bld.images.source import ImageSource, fingerprint_of

TABLES = ("metadata.jsonl", "metadata.csv", "labels.jsonl", "labels.csv", "dataset.json")
FILE_KEYS = ("file_name", "filename", "file", "image", "path")
TABLE_LIMIT_BYTES = 1 << 28


def relabel(source: ImageSource, choice: str) -> None:
    """Give a source its classes: "auto" from a table beside the images if there is one, else as its folders say;
    "folders"; "none"; or the path of a table.  DataError where a table names no class for an image.
    """
    if choice == "folders":
        return
    if choice == "none":
        if source.labels is not None:  # or codes encoded with their classes would be taken for these
            source.classes, source.labels = [], None
            source.fingerprint = fingerprint_of([(source.fingerprint, "without classes")])
        return
    table = table_beside(source.location) if choice == "auto" else read_table(Path(choice).expanduser())
    if table is None:
        return
    name, text = table
    labels = dict(entries(name, text, LABEL_KEYS, "labels"))
    if not labels and choice == "auto":
        return  # captions or the like
    where = f"{name} of {source.location}" if choice == "auto" else choice
    if not labels:
        raise DataError(f"{where} names no classes: it needs a column file_name and a column label.")
    missing = [file for file in source.names if file not in labels]
    if missing:
        raise DataError(
            f"{where} has no class for {len(missing)} of {len(source)} images, the first is {missing[0]}: "
            "complete it, or set data.labels=folders or none."
        )
    source.classes, source.labels = numbered([labels[file] for file in source.names])
    source.fingerprint = fingerprint_of([(source.fingerprint, source.labels.tobytes(), tuple(source.classes))])


def table_beside(location: str) -> tuple[str, str] | None:
    """(name, text) of the table at the top of a folder or .zip archive."""
    path = Path(location).expanduser()
    if path.is_dir():
        found = next((path / name for name in TABLES if (path / name).is_file()), None)
        return None if found is None else read_table(found)
    if path.is_file() and path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path) as archive:
            members = set(archive.namelist())
            name = next((name for name in TABLES if name in members), None)
            if name is not None and archive.getinfo(name).file_size <= TABLE_LIMIT_BYTES:
                return name, archive.read(name).decode("utf-8-sig", errors="replace")
    return None


def read_table(path: Path) -> tuple[str, str]:
    """(name, text) of a table that is named."""
    try:
        return path.name, path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise DataError(f"Cannot read the table {path}: {error.strerror}.") from error


def entries(name: str, text: str, keys: Sequence[str], what: str) -> Iterator[tuple[str, str]]:
    """(file, value) of every entry that has both, the value under the first of the keys it has.

    what: "labels" or "captions", to say which setting a table that cannot be read belongs to.
    """
    try:
        for row in _rows(name, text):
            row = {str(key).strip().lower(): value for key, value in row.items() if key is not None}
            file = next((row[key] for key in FILE_KEYS if key in row), None)
            value = next((row[key] for key in keys if key in row), None)
            value = value[0] if isinstance(value, list) and value else value  # of several captions the first
            if isinstance(file, str) and isinstance(value, str | int) and str(value).strip():
                yield file.strip().replace("\\", "/").removeprefix("./"), str(value).strip()
    except (ValueError, AttributeError, TypeError, csv.Error) as error:
        raise DataError(f"The table of {what} {name} cannot be read ({error}): mend it or set data.{what}.") from error


def _rows(name: str, text: str) -> Iterator[dict[str, Any]]:
    if name.endswith(".csv"):
        yield from csv.DictReader(io.StringIO(text))
    elif name.endswith(".jsonl"):
        yield from (json.loads(line) for line in text.splitlines() if line.strip())
    elif name.endswith(".json"):
        content = json.loads(text)
        pairs = content.get("labels") if isinstance(content.get("labels"), list) else list(content.items())
        yield from ({"file": file, "label": label} for file, label in pairs)
    else:
        raise ValueError("it is neither .csv, .jsonl nor .json")

"""Classes from a table beside the images (`bld.data.tables`), where folders do not say them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bld.data.sources.base import ImageSource, fingerprint_of
from bld.data.sources.members import CAPTION_KEYS, LABEL_KEYS, numbered
from bld.data.tables import Table, TableError, note_unused, read_table, tables_beside
from bld.errors import DataError


def relabel(source: ImageSource, choice: str) -> None:
    """Give a source its classes.

    Args:
        source: the images; its classes, labels and fingerprint are changed.
        choice: "auto", from a table beside the images if one names classes, else as its folders say; "folders"; "none";
            or the path of a table.

    Raises:
        TableError: if a table names no class for an image or two for a file, or what it holds cannot be read.
        DataError: if a table that is named is not there, or names no classes.
    """
    if choice == "folders":
        return
    if choice == "none":
        if source.labels is not None:  # or codes encoded with their classes would be taken for these
            source.classes, source.labels = [], None
            source.fingerprint = fingerprint_of([(source.fingerprint, "without classes")])
        return
    table, rows = _labels_beside(source) if choice == "auto" else _labels_of(Path(choice).expanduser(), source)
    if table is None:
        return
    where = f"{table.name} of {source.location}" if choice == "auto" else choice
    said = table.of(source.names, _one_each(rows, where))
    missing = [name for name, label in zip(source.names, said, strict=True) if label is None]
    if missing:
        raise TableError(
            f"{where} has no class for {len(missing)} of {len(source)} images, the first is {missing[0]}",
            "complete it, or set data.labels=folders or none.",
        )
    source.classes, source.labels = numbered([label for label in said if label is not None])
    source.fingerprint = fingerprint_of([(source.fingerprint, source.labels.tobytes(), tuple(source.classes))])


def _one_each(rows: Sequence[tuple[str, str]], where: str) -> dict[str, str]:
    """The class of each file; `TableError` where rows of a file disagree."""
    labels: dict[str, str] = {}
    for file, label in rows:
        if labels.setdefault(file, label) != label:
            raise TableError(
                f"{where} has two classes for {file}, {labels[file]} and {label}",
                "leave it one, or set data.labels=folders or none.",
            )
    return labels


def _labels_beside(source: ImageSource) -> tuple[Table | None, list[tuple[str, str]]]:
    """The first table beside the images that has labels, and its rows.

    Tables with neither labels nor captions are noted.
    """
    found: tuple[Table | None, list[tuple[str, str]]] = None, []
    for table in tables_beside(source):
        rows = table.said(LABEL_KEYS, "labels")
        if rows and found[0] is None:
            found = table, rows
    note_unused(source, (*LABEL_KEYS, *CAPTION_KEYS))
    return found


def _labels_of(path: Path, source: ImageSource) -> tuple[Table, list[tuple[str, str]]]:
    table = read_table(path, source)
    rows = table.said(LABEL_KEYS, "labels")
    if not rows:
        raise DataError(f"{path} names no classes: it needs a column file_name and a column label.")
    return table, rows

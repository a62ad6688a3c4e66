"""Tables that say something of each image. All are read here, wherever they lie and however they are written.

metadata.csv, labels.tsv        a line a file; a column file_name (file, image, path …) and one label, text …
metadata.jsonl, labels.jsonl    the same, an object a line
dataset.json                    {"labels": [[file, class], …]}, or {file: class, …}
"""

from __future__ import annotations

import csv
import io
import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bld.data.sources.base import ImageSource
from bld.data.sources.members import TABLES, comparable, decoded_text, without_halves, wrapper_of
from bld.errors import DataError

FILE_KEYS = ("file_name", "filename", "file", "image", "path")
DELIMITERS = ",;\t|"


class TableError(DataError):
    """A table cannot be used; its two arguments are what is wrong with it, and the cure."""

    @property
    def found(self) -> str:
        """What is wrong, for commands that have another cure."""
        return str(self.args[0])

    def __str__(self) -> str:
        return f"{self.args[0]}: {self.args[1]}"


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        name: of its file.
        text: its content.
        folder: where among the images it lies, with a slash at the end; "" is the top.
    """

    name: str
    text: str
    folder: str = ""

    def said(self, keys: Sequence[str], what: str) -> list[tuple[str, str]]:
        """What the table says of each file, row by row.

        Args:
            keys: names of the column; the first that a row has counts.
            what: "labels" or "captions", for the setting that an error names.

        Returns:
            The (file, value) of each row that has both; files as `comparable` makes their names.

        Raises:
            TableError: if the table cannot be read.
        """
        try:
            return [(comparable(file), value) for row in self._rows() for file, value in _entry(row, keys)]
        except (ValueError, AttributeError, TypeError, csv.Error) as error:
            raise TableError(
                f"The table of {what} {self.name} cannot be read ({error})", f"fix it or set data.{what}."
            ) from error

    def column(self, keys: Sequence[str], what: str) -> dict[str, str]:
        """As `said`, by file; of several rows of a file the first counts."""
        return dict(reversed(self.said(keys, what)))

    def _rows(self) -> Iterator[dict[str, Any]]:
        if self.name.endswith((".csv", ".tsv")):
            yield from _fields(self.text)
        elif self.name.endswith(".jsonl"):
            yield from _objects(self.text)
        elif self.name.endswith(".json"):
            content = json.loads(self.text)
            pairs = content.get("labels") if isinstance(content.get("labels"), list) else list(content.items())
            yield from ({"file": file, "label": label} for file, label in pairs)
        else:
            raise ValueError("it is neither .csv, .tsv, .jsonl nor .json")

    def of(self, names: Sequence[str], values: dict[str, str]) -> list[str | None]:
        """The value of each image: under its whole name, or the part of it below the table's folder."""
        return [values.get(comparable(name), values.get(comparable(name.removeprefix(self.folder)))) for name in names]


def _fields(text: str) -> Iterator[dict[str, Any]]:
    """The rows of a .csv or .tsv, by its first line; ValueError where a row does not fit it.

    Between tabs quotes are mostly part of the text: they count there only where the first line has some, or where all
    are in order.
    """
    head = text.split("\n", 1)[0]
    delimiter = max(DELIMITERS, key=head.count)
    quotes_count = True
    if delimiter == "\t" and '"' in text and '"' not in head:
        try:
            deque(_records(text, delimiter, quotes_count), maxlen=0)
        except ValueError:
            quotes_count = False
    yield from _records(text, delimiter, quotes_count)


def _records(text: str, delimiter: str, quotes_count: bool) -> Iterator[dict[str, Any]]:
    """The rows, with quotes that hold a text together or are part of it."""
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quotes_count else csv.QUOTE_NONE
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    try:
        for row in rows:
            if any(row.pop(None, ())):  # what is over; empty fields at the end of lines are a spreadsheet's
                cure = f"put texts with {delimiter!r} in quotes" if quotes_count else "take the tabs out of its text"
                raise ValueError(f"line {rows.line_num} has more fields than the first: {cure}")
            yield row
    except csv.Error as error:
        raise ValueError(f"after line {rows.line_num}: {error}; is a quote left open?") from error


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The objects of a .jsonl; ValueError with the number of a line that is none."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number}, column {error.colno}: {error.msg}") from error
        if not isinstance(found, dict):
            raise ValueError(f'line {number} is no object, as {{"file_name": …}} is')
        yield found


def _entry(row: dict[Any, Any], keys: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The (file, value) of a row that has both."""
    row = {str(key).strip().lower(): value for key, value in row.items()}
    file = next((row[key] for key in FILE_KEYS if key in row), None)
    value = next((row[key] for key in keys if key in row), None)
    value = value[0] if isinstance(value, list) and value else value  # of several captions the first
    known = isinstance(value, str | int | float) and value == value  # NaN, which is not, is nothing
    value = int(value) if isinstance(value, float) and value.is_integer() else value  # pandas writes 2 as 2.0
    if isinstance(file, str) and known and str(value).strip():
        yield file, without_halves(str(value).strip())


def tables_beside(source: ImageSource) -> Iterator[Table]:
    """The tables that lie at the top of the images, or in the one folder that wraps them all."""
    for folder in dict.fromkeys(("", wrapper_of(source.names))):
        for name in TABLES:
            if (content := source.side_file(folder + name)) is not None:
                yield Table(name, _decoded(name, content, source), folder)


def read_table(path: Path, source: ImageSource) -> Table:
    """The table that a user names.

    Args:
        path: of the table.
        source: the images; it receives a note where the table's encoding had to be guessed.

    Raises:
        DataError: if there is none, or it cannot be read.
    """
    try:
        return Table(path.name, _decoded(path.name, path.read_bytes(), source))
    except OSError as error:
        raise DataError(f"Cannot read the table {path}: {error.strerror}.") from error


def note_unused(source: ImageSource, keys: Sequence[str]) -> None:
    """Note each table beside the images that has none of these columns, or cannot be read, in the source's `notes`."""
    for table in tables_beside(source):
        try:
            if table.column(keys, "labels"):
                continue
            reason = f"it has no column {FILE_KEYS[0]} and one {', '.join(keys[:2])} or {keys[-1]}"
        except DataError as error:
            reason = str(error).rstrip(".")
        note = f"The table {table.folder}{table.name} of {source.location} is not used: {reason}."
        if note not in source.notes:
            source.notes.append(note)


def _decoded(name: str, content: bytes, source: ImageSource) -> str:
    text, is_guess = decoded_text(content)
    note = f"{name} is not UTF-8 and was read as Windows-1252: save it as UTF-8 if its accents are wrong."
    if is_guess and note not in source.notes:
        source.notes.append(note)
    return text.replace("\r\n", "\n")

"""Captions: what a text beside the images says of each of them.

metadata.jsonl, metadata.csv, …   a line a file; a column file_name (file, image, path …) and one text (caption, prompt)
0001.txt                          beside 0001.jpg, in a folder, an archive or WebDataset shards
0001.json                         in shards: {"caption": …}
a column text or caption          of a data set of the hub
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bld.data.sources.base import ImageSource, Names
from bld.data.sources.members import CAPTION_KEYS
from bld.data.tables import read_table, tables_beside
from bld.errors import DataError


def read_captions(source: ImageSource, choice: str) -> Sequence[str] | None:
    """The caption of each image of a source.

    Args:
        source: the images.
        choice: "auto", from a table beside the images if it has captions, else from the text beside each image (or the
            data set's column); "none"; or the path of a table.

    Returns:
        The captions in the order of the images, "" where an image has none, with white space reduced to single blanks;
        None where no image has one.

    Raises:
        DataError: for a table that cannot be read, or that is named and has no caption for any image.
    """
    if choice == "none":
        return None
    tables = tables_beside(source) if choice == "auto" else [read_table(Path(choice).expanduser(), source)]
    found: Sequence[str] | None = None
    for table in tables:
        said = table.column(CAPTION_KEYS, "captions")
        found = [value or "" for value in table.of(source.names, said)]
        if any(found):
            break
        if choice != "auto":
            first = next(iter(said), None)
            why = f"its first file is {first}" if first else "it needs a column file_name and a column text"
            raise DataError(
                f"{choice} has no caption for any of the {len(source)} images of {source.location} ({why}; the first "
                f"image is {source.names[0]}): file names are relative to the top of the images."
            )
    if choice == "auto" and not (found and any(found)):
        found = source.texts_beside()
    if found is None or not any(found):
        return None
    return Names(" ".join(text.split()) for text in found)

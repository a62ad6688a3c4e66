"""Data sets of the `datasets` library: by name from the Hugging Face hub, or from a folder of its files."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bld.data.decoding import check_file_size, decode
from bld.data.sources.base import ImageSource, Names, fingerprint_of, opens
from bld.data.sources.members import CAPTION_KEYS, numbered
from bld.errors import DataError, MissingPackageError

LABEL_COLUMNS = ("label", "class", "fine_label", "labels")
SPLITS = {"test", "validation", "valid", "val", "dev", "eval"}  # words in the names of files, besides train
BYTES = ("binary", "large_binary")
OF_CLASSES = r"u?int\d+|bool|(large_)?string|string_view"  # types of a column that may hold them


def is_hub_name(location: str) -> bool:
    """Whether a location that does not exist reads like `owner/name`, `owner/name:split` or `hf:name:split`.

    An archive's ending, or a folder of the owner's name here, says that a file was meant.
    """
    path = Path(location)
    if path.suffix.lower() in (".zip", ".tar", ".tgz", ".gz") or (len(path.parts) > 1 and path.parent.is_dir()):
        return False
    return re.fullmatch(r"hf:[\w.-]+(/[\w.-]+)?(:\w+)?|[\w-][\w.-]*/[\w-][\w.-]*(:\w+)?", location) is not None


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk`, or holds .parquet files and no others."""
    if (path / "dataset_info.json").is_file() and (path / "state.json").is_file():
        return True
    if (path / "dataset_dict.json").is_file():
        return True
    files = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    return bool(files) and all(entry.suffix == ".parquet" for entry in files)


class HubSource(ImageSource):
    """The rows of a data set's split: its first image column, its class column.

    Without a column of the library's image type, one of encoded images counts as such: structs of bytes and path, as
    other programs write them. The split is train, unless the name of a data set of the hub ends with another; of a
    folder of .parquet files that are named after splits those of train are taken. The fingerprint covers the split, its
    length, and the data set's own fingerprint; for a folder, in place of the last, the name, size and modification time
    of each data file.
    """

    def __init__(self, location: str) -> None:
        name, split = _name_and_split(location)
        data, notes = _load(name, split, location)
        features = data.features
        columns = [key for key, feature in features.items() if type(feature).__name__ == "Image"]
        columns = columns or [key for key, feature in features.items() if _is_encoded(feature)]
        if not columns:
            raise DataError(f"{location} has no column of images, only {', '.join(features)}.")
        from datasets import Image as ImageFeature

        self._data = data.select_columns(columns[:1]).cast_column(columns[0], ImageFeature(decode=False))
        self._column = columns[0]
        said = next((key for key in CAPTION_KEYS if key in features and not isinstance(features[key], dict)), None)
        self._texts = None if said is None else data.select_columns([said])
        self.location = location
        if not len(data):
            raise DataError(f"There is no image in {location}.")
        self.names = Names(f"{split}-{i:08d}" for i in range(len(data)))
        self.classes, self.labels, self.notes = _labels(data)
        self.notes += notes
        if others := ", ".join(columns[1:]):
            self.notes.append(f"The images of {location} are those of its column {columns[0]}; left aside: {others}.")
        self.fingerprint = fingerprint_of([(_own_fingerprint(data, name), split, len(data))])

    def texts_beside(self) -> list[str] | None:
        """The column of captions; of several captions the first."""
        if self._texts is None:
            return None
        values = self._texts[:][self._texts.column_names[0]]
        firsts = [value[0] if isinstance(value, list) and value else value for value in values]
        return [value if isinstance(value, str) else "" for value in firsts]

    def _read(self, index: int) -> Image.Image:
        entry = self._data[int(index)][self._column]
        if entry.get("bytes") is not None:
            check_file_size(len(entry["bytes"]))
            return decode(entry["bytes"], self.max_pixels)
        path = Path(entry["path"])
        check_file_size(path.stat().st_size)
        return decode(path.read_bytes(), self.max_pixels)


def _name_and_split(location: str) -> tuple[str, str]:
    path = Path(location).expanduser()
    if path.exists():
        return str(path), "train"
    name, _, split = location.removeprefix("hf:").partition(":")
    return name, split or "train"


def _load(name: str, split: str, location: str) -> tuple[Any, list[str]]:
    """The rows, and notes on files of the folder that are left aside."""
    try:
        import datasets
    except ImportError as error:
        raise MissingPackageError(
            f"{_none_here(name)}data sets of the hub's library, as {location}, need it installed: "
            "pip install 'binary-latent-diffusion[hub]'."
        ) from error
    path = Path(name)
    try:
        with contextlib.redirect_stdout(None):
            if not path.is_dir():
                return datasets.load_dataset(name, split=split), []
            if any((path / file).is_file() for file in ("dataset_info.json", "dataset_dict.json")):
                data = datasets.load_from_disk(name)
                return data[split] if isinstance(data, datasets.DatasetDict) else data, []
            files, notes = _files_of_train(sorted(path.glob("*.parquet")), location)
            return datasets.load_dataset("parquet", data_files=[str(file) for file in files], split="train"), notes
    except Exception as error:  # the network, the hub and damaged files can raise anything
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise DataError(
            f"{_none_here(name)}the data set {location} cannot be loaded ({reason}): check its name, its split and the "
            "network."
        ) from error


def _files_of_train(files: list[Path], location: str) -> tuple[list[Path], list[str]]:
    """Of files that are named after splits, as the hub names them, those of train; and a note on the others."""
    train = [file for file in files if "train" in _words(file)]
    others = [file for file in files if file not in train and SPLITS & _words(file)]
    if not (train and others):
        return files, []
    note = (
        f"Left aside in {location}, as files that are not of the split train: {len(others):,} (the first is "
        f"{others[0].name}); move them into a folder of their own to use them."
    )
    return [file for file in files if file not in others], [note]


def _words(file: Path) -> set[str]:
    return set(re.split(r"[-_.]", file.stem.lower()))


def _is_encoded(feature: Any) -> bool:
    """Whether a column is of structs with the bytes of files in them."""
    return isinstance(feature, dict) and feature.keys() == {"bytes", "path"} and feature["bytes"].dtype in BYTES


def _none_here(name: str) -> str:
    """How an error on a data set begins: that there is nothing of the name here, which may be a typing error."""
    return "" if Path(name).exists() else f"There is no folder or archive {name}, and "


def _labels(data: Any) -> tuple[list[str], np.ndarray | None, list[str]]:
    """(class names, class of each row, notes) of the first ClassLabel, or of a column with a usual name.

    Where rows have no class, none has, and where that is not so of all of them, a note says so.
    """
    features = data.features
    named = [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    dtypes = {
        name: str(getattr(features[name], "dtype", type(features[name]).__name__))
        for name in (*named, *LABEL_COLUMNS)
        if name in features
    }
    column = next((name for name in dtypes if re.fullmatch(OF_CLASSES, dtypes[name])), None)
    if column is None:
        aside = [f"The column {name} is left aside: classes are whole numbers or words, and it has {dtype}."
                 for name, dtype in dtypes.items()]  # fmt: skip
        return [], None, aside
    said, is_named = list(data[column]), column in named
    without = sum(value is None or (is_named and value < 0) for value in said)  # -1 is "unknown"
    if without:
        note = f"The column {column} is left aside: {without:,} of {len(said):,} images have no class in it."
        return [], None, [note] if without < len(said) else []
    if is_named:
        return list(features[column].names), np.asarray(said, dtype=np.int64), []
    return *numbered([str(value) for value in said]), []


def _own_fingerprint(data: Any, name: str) -> str:
    """Of what lies in a folder its files', else the data set's own."""
    path = Path(name)
    if path.is_dir():
        return fingerprint_of(
            (str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns)
            for file in sorted(path.rglob("*"))
            if file.suffix in (".parquet", ".arrow")
        )
    return str(data._fingerprint)


@opens(2)
def _hub(text: str, path: Path, index_to: Path | None) -> ImageSource | None:
    ours = is_saved_dataset(path) if path.is_dir() else not path.exists() and is_hub_name(text)
    return HubSource(text) if ours else None

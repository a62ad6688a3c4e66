"""Images in many .tar files, as WebDataset writes them: read in place, at any position, so any order is possible.

Members that share their path up to the first dot of the file name are one sample: `0001.jpg` is its image, `0001.cls`
(a number or name) or `0001.json` (`{"label": …}`) its class, `0001.txt` or `0001.json` (`{"caption": …}`) its caption.
Of several images of a sample, as `0001.jpg` and `0001.seg.png`, the first by name of those without a further dot is
taken, and the others are noted; where all have one, as in dates (`2023.01.05.png`), each is an image of its own, and
what `2023.01.05.cls` says is of that one alone.
"""

from __future__ import annotations

import itertools
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from bld.data.decoding import check_file_size, decode
from bld.data.sources.archives import plain_members
from bld.data.sources.base import ImageSource, fingerprint_of, links_note, opens, passed_over_note
from bld.data.sources.index import Listing, integers, read_index, sorted_listing, write_index
from bld.data.sources.members import (
    CAPTION_KEYS,
    EXTENSIONS,
    LABEL_KEYS,
    counted_by_ending,
    is_hidden,
    is_image_path,
    member_path,
    natural_key,
    numbered,
    without_halves,
)
from bld.errors import DataError

LABEL_LIMIT_BYTES = 1 << 20
INDEX_FORM = 2  # since what is said of an image goes by its whole name


def shard_paths(location: str) -> list[Path] | None:
    """The .tar files that a location means: a pattern with {000..012} or *, or a folder of nothing else; else None.

    Raises:
        DataError: if a file of the pattern is missing.
    """
    path = Path(location).expanduser()
    if path.is_dir():
        files = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
        if not files or any(entry.suffix.lower() != ".tar" or not entry.is_file() for entry in files):
            return None
        return sorted(files, key=lambda entry: natural_key(entry.name))
    if path.exists() or not location.endswith(".tar") or not re.search(r"[{*]", location):
        return None
    found: list[Path] = []
    for pattern in _braces_expanded(str(path)):
        if "*" in Path(pattern).name:
            found += sorted(Path(pattern).parent.glob(Path(pattern).name), key=lambda entry: natural_key(entry.name))
        else:
            found.append(Path(pattern))
    missing = [entry for entry in found if not entry.is_file()]
    if missing or not found:
        raise DataError(f"There is no shard {missing[0] if missing else location}: check the pattern of --data.")
    return found


def _braces_expanded(pattern: str) -> Iterator[str]:
    """`a-{08..10}.tar` → a-08.tar, a-09.tar, a-10.tar; `{x,y}` → x, y."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = []
    for position, part in enumerate(parts):
        span = re.fullmatch(r"(\d+)\.\.(\d+)", part) if position % 2 else None
        if span:
            first, last = int(span[1]), int(span[2])
            choices.append([str(n).zfill(len(span[1])) for n in range(first, last + 1)])
        else:
            choices.append(part.split(",") if position % 2 else [part])
    for combination in itertools.product(*choices):
        yield "".join(combination)


class ShardsSource(ImageSource):
    """The samples of all shards; names are `shard/key.extension`.

    Classes are those of .cls or .json where every sample has one, else the folders of the keys. The fingerprint covers
    every shard's name, size and modification time.

    Args:
        location: the shards, as the user wrote it.
        paths: the .tar files.
        index_to: a folder that keeps what was found; unchanged shards are not searched again.

    Raises:
        DataError: if a shard is broken, two have the same file name, or there is no image.
    """

    def __init__(self, location: str, paths: list[Path], index_to: Path | None = None) -> None:
        self._paths = [path.absolute() for path in paths]
        stats = [path.stat() for path in self._paths]
        records = [(path.name, s.st_size, s.st_mtime_ns) for path, s in zip(self._paths, stats, strict=True)]
        shards = [[str(path), *record[1:]] for path, record in zip(self._paths, records, strict=True)]
        key = {"shards": shards, "endings": sorted(EXTENSIONS), "form": INDEX_FORM}
        kept = read_index(index_to)
        if kept is not None and kept[0] == {**key, "notes": kept[0].get("notes")}:
            listing, notes = kept[1], kept[0]["notes"]
        else:
            listing, notes = _search(self._paths, location)
            listing.fingerprint = fingerprint_of(records)
            write_index(index_to, {**key, "notes": notes}, listing)
        self._shard, self._offset, self._size = (listing.columns[name] for name in ("shard", "offset", "size"))
        keys = [name.split("/", 1)[1] for name in listing.names]
        self._describe(location, listing.names, keys)
        self.notes += notes
        self.fingerprint = listing.fingerprint
        said = list(listing.texts["label"])
        without = [row for row, label in enumerate(said) if not label]
        if not without:
            self.classes, self.labels = numbered(said)
        elif len(without) < len(said):
            self.notes.append(
                f"The classes that samples of {location} name are left aside: {len(without):,} of {len(said):,} "
                f"samples name none, the first is {self.names[without[0]]}."
            )

    def texts_beside(self) -> list[str] | None:
        """The .txt of each sample, or what its .json gives as caption; the shards are read through for them."""
        said = _Said()
        for path in self._paths:
            with path.open("rb") as file:
                for info in plain_members(path):
                    if info.name.endswith((".txt", ".json")) and info.size <= LABEL_LIMIT_BYTES:
                        file.seek(info.offset_data)
                        name = member_path(info.name, str(path))
                        said.add(f"{path.stem}/{name}", _caption(name, file.read(info.size)))
        found = [said.of(name) for name in self.names]
        return found if any(found) else None

    def _read(self, index: int) -> Image.Image:
        check_file_size(int(self._size[index]))
        with self._paths[int(self._shard[index])].open("rb") as file:
            file.seek(int(self._offset[index]))
            return decode(file.read(int(self._size[index])), self.max_pixels)


class _Said:
    """What .cls, .txt and .json say of images: of the one that is called so, else of the sample."""

    def __init__(self) -> None:
        self._of_file: dict[str, str] = {}
        self._of_sample: dict[str, set[str]] = {}

    def add(self, name: str, text: str) -> None:
        """Take what a file says, which is nothing if it is empty; .cls and .txt go before .json."""
        stem, key = name.rpartition(".")[0], _key(name)
        if text and (stem not in self._of_file or not name.endswith(".json")):
            self._of_file[stem] = text
        if text and stem != key:
            self._of_sample.setdefault(key, set()).add(text)

    def of(self, image: str) -> str:
        """What is said of the image of this name; empty if nothing, or if nobody knows which of several things."""
        key = _key(image)
        of_sample = self._of_sample.get(key, set())
        alone = next(iter(of_sample)) if len(of_sample) == 1 else ""
        return self._of_file.get(image.rpartition(".")[0]) or self._of_file.get(key) or alone


def _search(paths: list[Path], location: str) -> tuple[Listing, list[str]]:
    """One image of each sample of the shards, and notes on the others."""
    names: list[str] = []
    others: list[str] = []
    passed_over: list[str] = []
    links: list[str] = []
    labels: list[str] = []
    shards, offsets, sizes = integers(), integers(), integers()
    shard_names = [path.stem for path in paths]
    if len(set(shard_names)) < len(paths):
        raise DataError(f"Two shards of {location} have the same file name; rename one of them.")
    for number, path in enumerate(paths):
        said = _Said()
        found: list[tuple[str, int, int]] = []
        try:
            with path.open("rb") as file:
                for info in plain_members(path, links):
                    name = member_path(info.name, str(path))
                    if is_image_path(name):
                        found.append((name, info.offset_data, info.size))
                    elif name.endswith((".cls", ".json")) and info.size <= LABEL_LIMIT_BYTES:
                        file.seek(info.offset_data)
                        said.add(name, _label(name, file.read(info.size)))
                    elif not name.endswith((".cls", ".json", ".txt")) and not is_hidden(name):
                        passed_over.append(f"{shard_names[number]}/{name}")
        except DataError:
            raise
        except (OSError, tarfile.TarError, ValueError) as error:
            raise DataError(f"The shard {path} is broken or no tar archive ({error}); pack it again.") from error
        of_sample: dict[str, str] = {}
        for name in sorted(name for name, _, _ in found if "." not in _extension(name)):
            of_sample.setdefault(_key(name), name)
        for name, offset, size in found:
            if of_sample.get(_key(name), name) != name:
                others.append(f"{shard_names[number]}/{name}")
                continue
            names.append(f"{shard_names[number]}/{name}")
            labels.append(said.of(name))
            shards.append(number)
            offsets.append(offset)
            sizes.append(size)
    told = counted_by_ending(others)
    notes = [f"Passed over in {location}, as their samples have another image: {told}."] if told else []
    if left := counted_by_ending(passed_over):
        notes.append(passed_over_note(location, left))
    notes += links_note(location, links)
    return sorted_listing(names, {"shard": shards, "offset": offsets, "size": sizes}, {"label": labels}), notes


def _key(name: str) -> str:
    """The path up to the first dot of the file name."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.split(".", 1)[0]


def _extension(name: str) -> str:
    """What follows the first dot of the file name."""
    return name.rpartition("/")[2].partition(".")[2]


def _label(name: str, data: bytes) -> str:
    """What a sample's .cls or .json says of its class; empty if nothing."""
    text = data.decode("utf-8", errors="replace").strip()
    return text if name.endswith(".cls") else _entry(text, LABEL_KEYS)


def _caption(name: str, data: bytes) -> str:
    """What a sample's .txt or .json says as its caption; empty if nothing."""
    text = data.decode("utf-8-sig", errors="replace").strip()
    return text if name.endswith(".txt") else _entry(text, CAPTION_KEYS)


def _entry(text: str, keys: Sequence[str]) -> str:
    """What a JSON object has under the first of the keys it has; of a list the first; empty if nothing.

    A whole number written as 2.0, as pandas writes it, is 2.
    """
    try:
        entries = json.loads(text)
    except ValueError:
        return ""
    found = next((entries[key] for key in keys if key in entries), "") if isinstance(entries, dict) else ""
    found = found[0] if isinstance(found, list) and found else found
    found = int(found) if isinstance(found, float) and found.is_integer() else found
    return without_halves(str(found)) if isinstance(found, str | int) else ""


@opens(1)
def _shards(text: str, path: Path, index_to: Path | None) -> ImageSource | None:
    shards = shard_paths(text)
    return None if shards is None else ShardsSource(text, shards, index_to)

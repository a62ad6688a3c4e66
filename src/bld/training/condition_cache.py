"""The vectors that images are conditioned on: of their captions by a frozen text encoder, or given by users.

    vectors.bin   a row for each image of the source, in the order of their names: 1 and the vector, or zeros for none
    header.json   the key of everything that made the rows

Training reads the rows as they are (`bld.priors.Transformer.condition`).  A cache with another key is made again.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bld.data import ImageSource, open_images, read_captions
from bld.errors import CheckpointError, DataError, UserError
from bld.io.files import file_sha256, read_json, write_json
from bld.io.resumable_rows import shown, write_blocks
from bld.nn.text_encoder import TextEncoder, text_width
from bld.runtime.distributed import Processes
from bld.training.order import evenly
from bld.training.settings import Settings, leaves, settings_tree

HEADER, VECTORS = "header.json", "vectors.bin"
AT_A_TIME = 256
MOVABLE = ("data.captions", "data.condition", "prior.text_encoder")  # settings that tell what vectors are made of
MEASURED = 4096  # vectors that mean and scale are taken of

Say = Callable[[str], None]


@dataclass(frozen=True)
class VectorKey:
    """All that decides the vectors.

    Attributes:
        encoder: fingerprint of the text encoder; "" for vectors given by users.
        data: fingerprint of the captions, or of the vectors' file.
        images: how many the source has.
        width: V.
        values: "float16" or "float32".
        names: fingerprint of the images' names in their order, by which vectors given by users are dealt out; "" for
            captions, which `data` has in that order, and in caches from before it was kept.
    """

    encoder: str
    data: str
    images: int
    width: int
    values: str
    names: str = ""

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return (1 + self.width) * np.dtype(self.values).itemsize

    def digest(self) -> str:
        """16 hexadecimal digits that change with any of these; without names, those of before they were kept."""
        fields = {name: value for name, value in asdict(self).items() if name != "names" or value}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


class VectorCache:
    """Random access to the vectors of a source's images.

    Raises:
        CheckpointError: if the folder holds no whole cache.
    """

    def __init__(self, folder: Path):
        header = read_json(folder / HEADER)
        try:
            self.key = VectorKey(**header["key"])
            shape = (self.key.images, 1 + self.key.width)
            self._rows = np.memmap(folder / VECTORS, dtype=self.key.values, mode="r", shape=shape)
            whole = (folder / VECTORS).stat().st_size == self.key.images * self.key.row_bytes
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise CheckpointError(f"The vectors in {folder} are damaged ({error}): delete {folder}.") from error
        if not whole:
            raise CheckpointError(f"{folder / VECTORS} has another size than its header says: delete {folder}.")

    @property
    def width(self) -> int:
        """V, the width of a vector."""
        return self.key.width

    def read(self, rows: np.ndarray | Tensor) -> Tensor:
        """Rows of these images of the source, float32 (B, 1 + V): 1 and the vector, or zeros for none."""
        return torch.from_numpy(self._rows[np.asarray(rows)].astype(np.float32))


@dataclass(frozen=True)
class ImageVectors:
    """The vectors of some of a source's images.

    Attributes:
        cache: the vectors of all of them.
        rows: int64 (n,), the numbers of these images in the source.
    """

    cache: VectorCache
    rows: Tensor

    def read(self, images: np.ndarray | Tensor) -> Tensor:
        """Rows of these of the n images, float32 (B, 1 + V): 1 and the vector, or zeros for none."""
        return self.cache.read(self.rows[torch.as_tensor(images)])

    def centre_and_scale(self) -> tuple[Tensor, Tensor]:
        """The mean of the vectors, and the root mean square of their entries' differences from it.

        Both are taken over some of the images, evenly spread.

        Returns:
            The mean (V,) and the scale (), float32; 0 and 1 where no image has a vector.
        """
        some = evenly(len(self.rows), MEASURED)
        rows = self.read(some)
        vectors = rows[rows[:, 0] > 0, 1:].double()
        if not len(vectors):
            return torch.zeros(self.cache.width), torch.ones(())
        mean = vectors.mean(0)
        scale = (vectors - mean).square().mean().sqrt()
        return mean.float(), (scale if scale > 0 else torch.ones_like(scale)).float()


def condition_width(settings: Settings) -> int:
    """V of what the settings condition on beside classes; 0 if nothing."""
    if settings.prior.text_encoder:
        return text_width(settings.prior.text_encoder)
    return _open_vectors(Path(settings.data.condition))[0].shape[1] if settings.data.condition else 0


def refuse_missing_conditions(settings: Settings) -> None:
    """Refuse what can be known, before any image is opened, to be nothing that a prior can be conditioned on.

    Raises:
        CheckpointError: if there is no such text encoder.
        DataError: if the captions' table is not there, or the vectors are not there or no vectors.
        MissingPackageError: for a text encoder without transformers.
    """
    condition_width(settings)
    table = settings.data.captions
    if settings.prior.text_encoder and table not in ("auto", "none") and not Path(table).expanduser().is_file():
        raise DataError(f"The table of captions {table} is not there: name one that is, or leave data.captions out.")


def condition_vectors(
    settings: Settings, source: ImageSource, folder: Path, device: torch.device, processes: Processes, say: Say
) -> VectorCache | None:
    """The cached vectors of a source's images, made only as far as they are not there.

    Args:
        settings: of the run, which say what is conditioned on.
        source: the images.
        folder: of the cache.
        device: what the text encoder runs on.
        processes: those that share the work.
        say: called with a sentence on what is missing, stale or used as it is.

    Returns:
        The vectors; None where the settings ask for none.

    Raises:
        DataError: if there are no captions, or if the vectors given do not fit the images.
    """
    if settings.prior.text_encoder:
        return _of_captions(settings, source, folder, device, processes, say)
    if settings.data.condition:
        return _of_file(Path(settings.data.condition), source, folder, processes, say)
    return None


def is_moved(key: str, before: Settings, after: Settings, folder: Path) -> bool:
    """Whether a setting names another path of the captions, vectors or text encoder that the cached vectors are of.

    Args:
        key: of the setting.
        before: the settings of the run, with absolute paths as `after`.
        after: the settings asked for.
        folder: of the cache; where there is none, nothing tells that they are the same.
    """
    if key not in MOVABLE:
        return False
    paths = [Path(dict(leaves(settings_tree(settings)))[key]) for settings in (before, after)]
    if not all(path.is_absolute() for path in paths):
        return False
    try:
        made = VectorCache(folder).key
        if key == "prior.text_encoder":
            return TextEncoder.load(after.prior.text_encoder).fingerprint() == made.encoder
        if key == "data.condition":
            return not made.encoder and file_sha256(paths[1])[:32] == made.data
        captions = read_captions(open_images(after.data.location, labels="none"), after.data.captions)
        return captions is not None and texts_fingerprint(captions) == made.data
    except (UserError, OSError):
        return False


# -- captions ---------------------------------------------------------------------------------------------


def _of_captions(
    settings: Settings, source: ImageSource, folder: Path, device: torch.device, processes: Processes, say: Say
) -> VectorCache:
    captions = read_captions(source, settings.data.captions)
    if captions is None:
        raise DataError(
            f"prior.text_encoder={settings.prior.text_encoder} needs captions, and {source.location} has none: put "
            "a metadata.jsonl with file_name and text beside the images, or a .txt beside each, or name a table with "
            "data.captions."
        )
    without = sum(not text for text in captions)
    if without:
        say(f"{without:,} of {len(source):,} images have no caption: they are trained on without one.")
    encoder = TextEncoder.load(settings.prior.text_encoder).to(device)
    key = VectorKey(encoder.fingerprint(), texts_fingerprint(captions), len(captions), encoder.width, "float16")

    def vectors(wanted: list[range]) -> Iterator[np.ndarray]:
        for rows in shown(wanted, "conditions", processes):
            texts = captions[rows.start : rows.stop]
            found = np.zeros((len(rows), 1 + encoder.width), np.float16)
            given = [i for i, text in enumerate(texts) if text]
            found[given, 0] = 1
            found[given, 1:] = encoder.encode([texts[i] for i in given]).numpy()
            yield found

    return _cached(folder, key, vectors, processes, say)


def texts_fingerprint(texts: Sequence[str]) -> str:
    """32 hexadecimal digits that change with any of the texts and with their order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()[:32]


# -- the user's own ---------------------------------------------------------------------------------------


def _of_file(path: Path, source: ImageSource, folder: Path, processes: Processes, say: Say) -> VectorCache:
    given, names = _open_vectors(path)
    order = _order(path, given, names, source)
    values = "float16" if given.dtype == np.float16 else "float32"
    dealt_to = texts_fingerprint(source.names)
    key = VectorKey("", file_sha256(path)[:32], len(source), given.shape[1], values, dealt_to)

    def vectors(wanted: list[range]) -> Iterator[np.ndarray]:
        for rows in shown(wanted, "conditions", processes):
            some = np.asarray(given[order[rows.start : rows.stop]], np.float64)
            wrong = ~np.isfinite(some.astype(values)).all(1)
            if wrong.any():
                row = int(order[rows.start + int(wrong.argmax())])
                raise DataError(f"Row {row} of {path} holds a value that is not a finite {values}: fix it.")
            found = np.ones((len(rows), 1 + some.shape[1]), values)
            found[:, 1:] = some
            yield found

    return _cached(folder, key, vectors, processes, say)


def _open_vectors(path: Path) -> tuple[np.ndarray, list[str] | None]:
    """((n, V) numbers, mapped where they can be; the names of their images, of an .npz)."""
    if not path.exists():
        raise DataError(
            f"The file of vectors {path} is not there: name one that is, an .npy of a vector for each image, or an "
            ".npz of `vectors` and `names`."
        )
    try:
        loaded: Any = np.load(path, mmap_mode="r", allow_pickle=False)
        given, names = (loaded, None) if isinstance(loaded, np.ndarray) else (loaded["vectors"], loaded["names"])
    except KeyError as error:
        raise DataError(
            f"{path} lacks an array: an .npz of vectors holds `vectors` (n, V) and `names` (n,)."
        ) from error
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0].rstrip(".")
        raise DataError(f"The vectors {path} cannot be read ({reason}): save them with numpy as .npy.") from error
    if given.ndim != 2 or not given.shape[1] or given.dtype.kind not in "fiu":
        raise DataError(f"{path} holds {given.dtype} of shape {given.shape}: vectors are numbers of shape (n, V).")
    return given, None if names is None else _texts_of(path, names)


def _texts_of(path: Path, names: np.ndarray) -> list[str]:
    """The names of an .npz as texts, of which some programs keep the UTF-8."""
    try:
        if names.ndim == 1 and names.dtype.kind in "SU":
            return [name.decode() if isinstance(name, bytes) else name for name in names.tolist()]
    except UnicodeDecodeError:
        raise DataError(f"The `names` in {path} are not written in UTF-8: save them as texts.") from None
    raise DataError(f"{path} holds `names` of {names.dtype} and shape {names.shape}: they are texts of shape (n,).")


def _order(path: Path, given: np.ndarray, names: list[str] | None, source: ImageSource) -> np.ndarray:
    """int64 (images,): the row of each image's vector."""
    n = len(source)
    if names is None:
        if len(given) != n:
            raise DataError(
                f"{path} has {len(given)} vectors for the {n} images of {source.location}: give one for each image, in "
                "the sorted order of their file names, unreadable and held-out ones included; or an .npz of `vectors` "
                "and `names`."
            )
        return np.arange(n)
    row = {name: i for i, name in enumerate(names)}
    missing = [name for name in source.names if name not in row]
    if missing or len(names) != len(given):
        raise DataError(
            f"{path} has no vector for {len(missing)} of {n} images, the first is {missing[0]}: add its name."
            if missing
            else f"{path} has {len(given)} vectors and {len(names)} names: they must be as many."
        )
    return np.array([row[name] for name in source.names], dtype=np.int64)


# -- the cache --------------------------------------------------------------------------------------------


def _cached(
    folder: Path,
    key: VectorKey,
    make: Callable[[list[range]], Iterable[np.ndarray]],
    processes: Processes,
    say: Say,
) -> VectorCache:
    """The cache in the folder if it was made with this key, else a new one."""
    kept = _open_cache(folder, key, say)
    processes.wait()  # all have looked before anyone writes
    if kept is not None:
        return kept

    def finish(part: Path) -> None:
        (folder / VECTORS).unlink(missing_ok=True)  # stale ones are none of the new header's
        write_json(folder / HEADER, {"key": asdict(key)})
        part.replace(folder / VECTORS)  # last, as only while they wait can this be done again

    if processes.is_main:
        (folder / HEADER).unlink(missing_ok=True)
    write_blocks(folder, VECTORS, asdict(key), key.images, key.row_bytes, make, finish, AT_A_TIME, processes)
    return VectorCache(folder)


def _open_cache(folder: Path, key: VectorKey, say: Say) -> VectorCache | None:
    if not (folder / HEADER).is_file():
        return None
    try:
        cache = VectorCache(folder)
    except CheckpointError as error:
        say(f"{error} They are made again.")
        return None
    if cache.key == key:
        say(f"The vectors in {folder} fit and are used as they are.")
        return cache
    changed = [name for name, value in asdict(key).items() if asdict(cache.key)[name] != value]
    say(f"The vectors in {folder} are stale ({', '.join(changed)} changed) and are made again.")
    return None

"""The code cache: every image as packed bits in one memory-mapped file, with a JSON header beside it.

    codes.bin     (images · views, bytes) uint8; row = image · views + view; 16×16×32 bits are 1,024 bytes a row
    labels.npy    int64 (images,), where there are labels
    header.json   shape, count, views, and the key of everything that made the bits

Real-valued codes (of a Gaussian bottleneck) are rows of float16 numbers, least byte first, in place of packed bits.
Where each training step draws its own codes (Algorithm 1, line 6), the rows are the bits' probabilities in 255ths, a
byte each.

A view is one (flip, draw): without draws the probabilities are thresholded, else each draw is its own sample.
A cache whose key is not the one asked for is stale and never used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bld.codes import CodeShape, pack, unpack
from bld.errors import CheckpointError
from bld.io.files import read_json, write_json, written_aside
from bld.io.resumable_rows import ALONE, write_blocks
from bld.runtime.distributed import Processes
from bld.seeding import Generators, keyed_draws, uniform

BYTES_PER_NUMBER = {"bits": 1 / 8, "probabilities": 1, "float16": 2}
HEADER, CODES, LABELS = "header.json", "codes.bin", "labels.npy"


@dataclass(frozen=True)
class CacheKey:
    """All that decides the bits of a cache; two equal keys are two equal caches.

    Attributes:
        tokenizer: hash of encoder and config.
        data: fingerprint of the images, preprocessed.
        shape: (h, w, c) of a code.
        images: how many.
        flips: whether each image is there mirrored too.
        draws: samples per image and flip; 0 is one most probable code, or its probabilities.
        seed: of the draws.
        preprocessing: size, filter and background, for readers of the header.
        values: what a code holds: "bits", their "probabilities", or "float16" numbers.
        precision: of the encoder's products, "float32", "bf16" or "fp16"; empty in caches that did not say.

    Raises:
        ValueError: for other `values`, or sizes that are no such numbers.
    """

    tokenizer: str
    data: str
    shape: tuple[int, int, int]
    images: int
    flips: bool
    draws: int
    seed: int
    preprocessing: dict[str, Any] = field(default_factory=dict)
    values: str = "bits"
    precision: str = ""

    def __post_init__(self) -> None:
        if self.values not in BYTES_PER_NUMBER:
            raise ValueError(f"values are one of {', '.join(BYTES_PER_NUMBER)}, not {self.values!r}")
        sizes = (*self.shape, self.images, self.draws)
        if len(self.shape) != 3 or not all(isinstance(n, int) and 0 <= n < 2**40 for n in sizes):
            raise ValueError(f"shape {self.shape}, images {self.images!r} and draws {self.draws!r} are no such numbers")

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        shape = CodeShape(*self.shape)
        return shape.packed_bytes if self.values == "bits" else int(BYTES_PER_NUMBER[self.values] * shape.bits)

    @property
    def views(self) -> int:
        """Rows per image."""
        return (1 + self.flips) * max(1, self.draws)

    def view(self, index: int) -> tuple[bool, int | None]:
        """(flipped, draw) of a view; draw None is the most probable code."""
        per_flip = max(1, self.draws)
        return index >= per_flip, (index % per_flip if self.draws else None)


def to_rows(codes: Tensor, key: CacheKey) -> np.ndarray:
    """Codes as rows of a cache.

    Args:
        codes: (B, …), holding what `CacheKey.values` says. Numbers beyond float16's are cut off at its ends;
            probabilities are rounded to 255ths, at most 0.002 away.
        key: of the cache.

    Returns:
        Rows (B, bytes), uint8.
    """
    if key.values == "bits":
        return pack(codes)
    if key.values == "probabilities":
        return (255 * codes.flatten(1)).round().to(torch.uint8).numpy(force=True)
    most = np.finfo(np.float16).max
    return codes.flatten(1).numpy(force=True).clip(-most, most).astype("<f2").view(np.uint8)


def from_rows(rows: Tensor, key: CacheKey) -> Tensor:
    """Rows (B, bytes), uint8 → tokens (B, N, c): bits, uint8, or their probabilities or real numbers, float32.

    The tokens are where the rows are: on a GPU, to which a row is much less to send.
    """
    shape = CodeShape(*key.shape)
    if key.values == "bits":
        return unpack(rows, shape)
    numbers = rows.float() / 255 if key.values == "probabilities" else rows.contiguous().view(torch.float16).float()
    return numbers.view(len(rows), shape.positions, shape.c)


class CodeCache:
    """Random access to the codes of a data set.

    Raises:
        CheckpointError: if the folder holds no whole cache.
    """

    def __init__(self, folder: Path):
        header = read_json(folder / HEADER)
        try:
            fields = dict(header["key"])
            fields["shape"] = tuple(fields["shape"])
            self.key = CacheKey(**fields)
            self.classes: list[str] = list(header["classes"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{folder / HEADER} is not a code cache header ({error}): delete {folder}."
            ) from error
        self.folder = folder
        self.shape = CodeShape(*self.key.shape)
        rows, width = self.key.images * self.key.views, self.key.row_bytes
        size = (folder / CODES).stat().st_size if (folder / CODES).is_file() else 0
        if size != rows * width:
            raise CheckpointError(f"{folder / CODES} has {size} bytes, not {rows * width}: delete {folder}.")
        self._rows = np.memmap(folder / CODES, dtype=np.uint8, mode="r", shape=(rows, width))
        self.labels = _read_labels(folder / LABELS, self.key.images)

    def __len__(self) -> int:
        return self.key.images

    @property
    def views(self) -> int:
        """Rows per image."""
        return self.key.views

    def read(self, images: np.ndarray, views: np.ndarray | int = 0, generators: Generators = None) -> Tensor:
        """The codes of some images.

        Args:
            images: (B,), their numbers in the cache.
            views: (B,), or one for all.
            generators: one per code, to draw bits with where their probabilities are cached; without them the bits are
                always the same.

        Returns:
            Tokens (B, N, c), bits as uint8 or real numbers as float32.
        """
        if generators is None:
            generators = keyed_draws(self.key.seed, "codes", torch.as_tensor(images))
        return self.drawn(self.rows(images, views), generators)[0]

    def rows(self, images: np.ndarray, views: np.ndarray | int = 0) -> Tensor:
        """The rows of these codes as they are kept, uint8 (B, bytes)."""
        return torch.from_numpy(self._rows[np.asarray(images) * self.views + views])

    def drawn(self, rows: Tensor, generators: Generators) -> tuple[Tensor, Tensor | None]:
        """What is kept in rows: codes, and what they were drawn from, on the rows' device.

        Args:
            rows: uint8 (B, bytes).
            generators: one per code, for the bits where their probabilities are kept.

        Returns:
            Tokens (B, N, c), bits as uint8 or real numbers as float32, and the bits' probabilities; None where those
            are not kept.
        """
        cached = from_rows(rows, self.key)
        if self.key.values != "probabilities":
            return cached, None
        return (uniform(cached.shape, generators, cached.device) < cached).to(torch.uint8), cached


def open_cache(folder: Path, key: CacheKey, say: Callable[[str], None]) -> CodeCache | None:
    """The cache in a folder, if it was made with this key.

    Args:
        folder: which may hold a cache.
        key: that of the wanted cache.
        say: called with the reason why a cache that is there is not used.

    Returns:
        The cache; None if there is none, or it is stale or damaged.
    """
    if not (folder / HEADER).is_file():
        return None
    try:
        cache = CodeCache(folder)
    except CheckpointError as error:
        say(f"{error} It is made again.")
        return None
    if cache.key == key:
        return cache
    changed = [name for name, value in asdict(key).items() if asdict(cache.key)[name] != value]
    say(f"The code cache in {folder} is stale ({', '.join(changed)} changed) and is made again.")
    return None


def write_cache(
    folder: Path,
    key: CacheKey,
    encode: Callable[[list[range]], Iterable[np.ndarray]],
    labels: Tensor | None,
    classes: list[str],
    at_a_time: int = 128,
    processes: Processes = ALONE,
) -> CodeCache:
    """Make a cache, going on where interrupted calls with the same key stopped.

    Images are written in blocks (`bld.io.resumable_rows`), so that an interruption costs little.

    Args:
        folder: of the cache.
        key: of the cache.
        encode: given ranges of images, yields the rows (n·views, bytes) of `to_rows` for each range in turn.
        labels: int64 (images,), or None.
        classes: their names, in label order.
        at_a_time: the most images in one of the ranges.
        processes: those that share the work.
    """
    with processes.main_first():
        if processes.is_main:
            (folder / HEADER).unlink(missing_ok=True)

    def finish(part: Path) -> None:
        _finish(folder, part, key, labels, classes)

    row_bytes = key.row_bytes * key.views
    write_blocks(folder, CODES, asdict(key), key.images, row_bytes, encode, finish, at_a_time, processes)
    return CodeCache(folder)


def _finish(folder: Path, part: Path, key: CacheKey, labels: Tensor | None, classes: list[str]) -> None:
    """Make the full file a cache; the codes come last, as only while they wait can this be done again."""
    for stale in (CODES, LABELS):
        (folder / stale).unlink(missing_ok=True)
    if labels is not None:
        with written_aside(folder / LABELS) as aside, aside.open("wb") as file:
            np.save(file, labels.numpy().astype(np.int64), allow_pickle=False)
    write_json(folder / HEADER, {"key": asdict(key), "classes": classes})
    part.replace(folder / CODES)


def _read_labels(path: Path, images: int) -> Tensor | None:
    if not path.is_file():
        return None
    try:
        labels = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): delete {path.parent}.") from error
    if labels.shape != (images,):
        raise CheckpointError(f"{path} has labels of shape {labels.shape}, not ({images},): delete {path.parent}.")
    return torch.from_numpy(labels)

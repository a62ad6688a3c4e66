"""One large file of equal rows, written in blocks that a crash cannot take back, by one process or several.

NAME.part     the file in its full size, written wherever a block belongs
part.json     what it is made from: another note begins it anew
done-RANK     the blocks that are on the disk, so that another number of processes can go on with what is left
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bld.errors import CheckpointError, DataError
from bld.io.files import read_json, write_json
from bld.runtime.distributed import Processes

BLOCK = 1024  # images that a crash can cost a process
NOTE = "part.json"
ALONE = Processes()


def write_blocks(
    folder: Path,
    name: str,
    note: dict[str, Any],
    images: int,
    row_bytes: int,
    make: Callable[[list[range]], Iterable[np.ndarray]],
    finish: Callable[[Path], None],
    at_a_time: int = 128,
    processes: Processes = ALONE,
) -> None:
    """Make the file, going on where interrupted calls with the same note stopped.

    Args:
        folder: where the file lies while it is written, with its notes; made if it is not there.
        name: of the file.
        note: what it is made from, as JSON; another note begins it anew.
        images: how many it holds.
        row_bytes: bytes of each of them.
        make: given ranges of images, yields the rows of each range in turn, `row_bytes` an image.
        finish: called by one process with the path of the full file, to put it where it belongs: last, so that nothing
            is lost if it fails.
        at_a_time: the most images in one of the ranges.
        processes: those that share the work.

    Raises:
        DataError: if `make` yields rows of another size.
    """
    part = folder / f"{name}.part"
    with processes.main_first():
        if processes.is_main:
            _begin(folder, part, note, images * row_bytes)
    blocks = [range(start, min(start + BLOCK, images)) for start in range(0, images, BLOCK)]
    left = sorted(set(range(len(blocks))) - _blocks_done(folder, len(blocks)))
    processes.wait()  # all have read the same lists before anyone writes on
    mine = left[processes.rank :: processes.count]
    batches = [list(_batches(blocks[index], at_a_time)) for index in mine]
    made = iter(make([batch for block in batches for batch in block]))
    listed = folder / f"done-{processes.rank}"
    _drop_cut_line(listed)
    with part.open("r+b") as file, listed.open("a", encoding="ascii") as done:
        for index, block in zip(mine, batches, strict=True):
            file.seek(block[0].start * row_bytes)
            for batch in block:
                rows = next(made)
                if rows.nbytes != len(batch) * row_bytes:
                    raise DataError(f"Encoding gave {rows.nbytes} bytes for {len(batch)} images of {row_bytes} each.")
                file.write(rows.data)
            file.flush()
            os.fsync(file.fileno())
            done.write(f"{index}\n")
            done.flush()
    processes.wait()
    with processes.main_first():
        if processes.is_main:
            finish(part)
            (folder / NOTE).unlink(missing_ok=True)
            for list_of_done in folder.glob("done-*"):
                list_of_done.unlink()


def shown(wanted: Sequence[range], name: str, processes: Processes) -> Iterator[range]:
    """The ranges of images in turn, under a progress bar of the first process."""
    with tqdm(total=sum(map(len, wanted)), desc=name, unit="image", disable=None if processes.is_main else True) as bar:
        for rows in wanted:
            yield rows
            bar.update(len(rows))


def _begin(folder: Path, part: Path, note: dict[str, Any], size: int) -> None:
    """Leave a file of full size to write into, and what was done under this note."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (_noted(folder / NOTE, note) and part.is_file() and part.stat().st_size == size):
        part.unlink(missing_ok=True)
        for done in folder.glob("done-*"):
            done.unlink()
        write_json(folder / NOTE, note)
    with part.open("ab") as file:
        file.truncate(size)


def _blocks_done(folder: Path, count: int) -> set[int]:
    """Which of so many blocks are on the disk, by all lists; a last line cut short by a crash does not count."""
    texts = [path.read_text("ascii", errors="replace") for path in folder.glob("done-*")]
    lines = {line for text in texts for line in text.split("\n")[:-1]}
    return {index for index in range(count) if str(index) in lines}


def _drop_cut_line(path: Path) -> None:
    """Leave whole lines only: what is appended to a cut one would name another block."""
    if path.is_file():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def _batches(block: range, at_a_time: int) -> Iterator[range]:
    for start in range(block.start, block.stop, at_a_time):
        yield range(start, min(start + at_a_time, block.stop))


def _noted(path: Path, note: dict[str, Any]) -> bool:
    """Whether the note beside an interrupted file is this one; a note that cannot be read is not."""
    try:
        return read_json(path) == json.loads(json.dumps(note))
    except CheckpointError:
        return False

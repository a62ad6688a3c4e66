"""Files that are either whole or absent: written aside, synced, then renamed. Nothing here unpickles."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bld.errors import CheckpointError, DataError


@contextmanager
def written_aside(path: Path, sync: bool = True) -> Iterator[Path]:
    """A temporary file beside `path` to write into; on success it takes the place of `path`, else it is removed.

    Args:
        path: the file to write; its folder is made if it is not there.
        sync: whether to wait until the file is on the disk, so that a power cut cannot leave an empty one; not worth it
            for pictures.

    Yields:
        The path of the temporary file.

    Raises:
        CheckpointError: if the disk is full, saying that what was saved before is intact.
    """
    aside: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = _beside(path, path.parent)
        aside.touch(exist_ok=False)  # as readable for others as the user wants new files to be, and so below
        yield aside
        if sync:
            with aside.open("r+b") as file:  # Windows flushes no file that is open for reading alone
                os.fsync(file.fileno())
        aside.replace(path)
    except (OSError, SafetensorError) as error:
        if _disk_is_full(error):
            raise CheckpointError(
                f"No space is left to write {path}; whatever was saved before is intact: "
                "free some space and run the same command again."
            ) from error
        raise
    finally:
        if aside is not None:
            aside.unlink(missing_ok=True)


@contextmanager
def folder_written_aside(folder: Path) -> Iterator[Path]:
    """A temporary folder to write into; on success its files move to `folder`, else it is removed with all it holds.

    Args:
        folder: made if it is not there; one that is there keeps its other files.

    Yields:
        The path of the temporary folder, beside `folder` or, where that is there, in it.
    """
    is_there = folder.is_dir()  # it may be a mounted disk, or where a shell stands: only its files can be replaced
    place = folder if is_there else folder.parent
    place.mkdir(parents=True, exist_ok=True)
    aside = _beside(folder, place)
    aside.mkdir()
    try:
        yield aside
        if not is_there:
            aside.rename(folder)
            return
        for path in sorted(aside.rglob("*"), key=lambda path: -len(path.parts)):  # an index after what it names
            if path.is_file():
                target = folder / path.relative_to(aside)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _beside(path: Path, place: Path) -> Path:
    """A name in `place` that nobody else chooses, for what is to become `path`."""
    return place / f".{path.name}.{secrets.token_hex(4)}.part"


def _disk_is_full(error: Exception) -> bool:
    code = getattr(error, "errno", None)
    return code in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)


def as_utf8(text: str) -> bytes:
    """UTF-8 of a text in which names of files may stand.

    Bytes of a name that are no UTF-8 reach Python as lone surrogates. They are written as a backslash, u and four
    digits, which JSON takes for the same, so that names come back as they were.
    """
    return text.encode(errors="backslashreplace")


def write_json(path: Path, value: object) -> None:
    """Write JSON, atomically; what of a name is no UTF-8 is escaped, and is read back as it was."""
    with written_aside(path) as aside:
        aside.write_bytes(as_utf8(json.dumps(value, indent=2, ensure_ascii=False) + "\n"))


def read_json(path: Path) -> Any:
    """Read JSON; a missing or damaged file is a `CheckpointError`."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing: is {path.parent} really a saved model or run folder?") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged and cannot be read as JSON: restore it from a copy.") from error


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; a missing or damaged one is a `CheckpointError`."""
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing: is {path.parent} really a saved model or run folder?") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): restore it from a copy.") from error


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Write `data` so that no reader ever sees a part of it.

    Raises:
        DataError: naming the path, if it cannot be written.
    """
    try:
        with written_aside(path, sync=False) as aside:
            aside.write_bytes(data)
    except OSError as error:
        raise DataError(f"Cannot write {path}: {error.strerror}.") from error
    except CheckpointError as error:  # the disk is full
        raise DataError(str(error)) from error

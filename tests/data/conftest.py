"""Small real files, made on the spot."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Files = dict[str, bytes]


def _png(seed: int, width: int = 8, height: int = 8) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _folder(path: Path, files: Files) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def _zip(path: Path, files: Files) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def _tar(path: Path, files: Files) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def png() -> Callable[..., bytes]:
    """`png(seed, width=8, height=8)`: an encoded image of random pixels."""
    return _png


@pytest.fixture
def pack(tmp_path: Path) -> Callable[[str, Files], Path]:
    """`pack("a.zip", files)`: a folder or an archive, as the name says, holding the files."""

    def pack(name: str, files: Files) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if name.endswith(".zip"):
            return _zip(path, files)
        return _tar(path, files) if ".t" in name else _folder(path, files)

    return pack

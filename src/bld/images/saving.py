"""Files that are either whole or absent: written aside, then renamed."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from bld.errors import DataError, SettingError
from bld.images.members import SHEET_TEXT
from bld.images.values import to_pil

SOFTWARE = "bld"  # what our pictures say of their origin, so that no other is ever overwritten


def save_png(image: Image.Image | Tensor, path: str | Path, sheet: bool = False) -> None:
    """Write a PIL image, or a tensor (3, H, W) in [-1, 1], as the PNG file `path`; makes missing folders.

    sheet: it shows many images, and says so inside, so that it is never taken for one of them.

    Raises SettingError for another extension or shape, DataError when the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise SettingError(f"{path} does not end in .png, and PNG is what is written.")
    if isinstance(image, Tensor):
        image = to_pil(image[None])[0]
    buffer = io.BytesIO()
    notes = PngInfo()
    notes.add_text("Software", SHEET_TEXT.decode() if sheet else SOFTWARE)
    image.save(buffer, format="PNG", pnginfo=notes)
    write_whole(path, buffer.getvalue())


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Write `data` so that no reader ever sees a part of it. Raises DataError naming the path on failure."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            aside.write_bytes(data)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"Cannot write {path}: {error.strerror}.") from error

"""Files that are either whole or absent: written aside, then renamed."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from bld.data.sources.members import SHEET_TEXT
from bld.data.values import to_pil
from bld.errors import SettingError
from bld.io.files import write_whole

SOFTWARE = "bld"  # what our pictures say of their origin, so that no other picture is ever overwritten


def save_png(image: Image.Image | Tensor, path: str | Path, sheet: bool = False) -> None:
    """Write an image as a PNG file; makes missing folders.

    Args:
        image: a PIL image, or a tensor (3, H, W) in [-1, 1].
        path: of the file; ends in .png.
        sheet: whether it shows many images; the file then says so inside, so that it is never taken for one of them.

    Raises:
        SettingError: for another extension or shape.
        DataError: if the file cannot be written.
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

"""Many images on one sheet, and one with a part of it hatched."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bld.data.values import to_pil
from bld.errors import SettingError

HATCHED_PIXELS = 128  # a hatching needs pixels of its own


def make_grid(
    images: Tensor,
    columns: int | None = None,
    scale: int = 1,
    gap: int = 2,
    background: tuple[int, int, int] = (255, 255, 255),
) -> Image.Image:
    """Images, row by row, on one RGB sheet.

    Args:
        images: (B, 3, H, W) in [-1, 1].
        columns: images per row; by default ⌈√B⌉, and never more than B.
        scale: each pixel becomes scale × scale of them, unblended.
        gap: pixels of the sheet between neighbours; none at the border.
        background: RGB, 0 … 255, in the gaps and behind missing images of the last row.

    Raises:
        SettingError: without images, for another shape of them, for columns or scale below 1, or a gap below 0.
    """
    tiles = to_pil(images)
    if not tiles:
        raise SettingError("A grid needs at least one image; there are 0.")
    columns = min(math.ceil(math.sqrt(len(tiles))) if columns is None else columns, len(tiles))
    for name, value, least in (("columns", columns, 1), ("scale", scale, 1), ("gap", gap, 0)):
        if value < least:
            raise SettingError(f"{name} is {value}; it is {least} or more.")
    rows = math.ceil(len(tiles) / columns)
    width, height = tiles[0].width * scale, tiles[0].height * scale
    sheet_size = (columns * (width + gap) - gap, rows * (height + gap) - gap)
    sheet = Image.new("RGB", sheet_size, background)
    for position, tile in enumerate(tiles):
        row, column = divmod(position, columns)
        enlarged = tile.resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(enlarged, (column * (width + gap), row * (height + gap)))
    return sheet


def make_pairs(above: Tensor, below: Tensor, columns: int = 8, scale: int = 1) -> Image.Image:
    """Images (B, 3, H, W) over others, each over its own, `columns` or all B of them to a row; as in `make_grid`."""
    columns = min(columns, len(above))
    missing = above.new_ones(-len(above) % columns, *above.shape[1:])  # white, as the sheet behind them
    rows = [torch.cat([images, missing]).split(columns) for images in (above, below)]
    return make_grid(torch.cat([row for pair in zip(*rows, strict=True) for row in pair]), columns, scale)


def hatched(image: Image.Image, hole: Image.Image) -> Image.Image:
    """An RGB image with what is white in `hole` hatched in grey, enlarged where it is too small for stripes."""
    scale = max(1, HATCHED_PIXELS // image.width)
    size = (image.width * scale, image.height * scale)
    pixels = np.array(image.resize(size, Image.Resampling.NEAREST))
    inside = np.array(hole.resize(size, Image.Resampling.NEAREST)) > 127
    period = max(8, len(pixels) // 12)
    stripes = np.add.outer(np.arange(size[1]), np.arange(size[0])) % period < period // 2
    pixels[inside] = np.where(stripes[..., None], 118, 168)[inside]
    return Image.fromarray(pixels)

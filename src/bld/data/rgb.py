"""Any PIL image → RGB of 8 bits per channel, upright and opaque."""

from __future__ import annotations

import numpy as np
from PIL import Image
from PIL.Image import Transpose

from bld.errors import DataError

EXIF_ORIENTATION = 0x0112
UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


def to_rgb(image: Image.Image, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """The image as a viewer shows it, upright and opaque.

    Args:
        image: of any mode that PIL reads from files: 1, L, P, RGB, CMYK, YCbCr, alpha in any form, and greyscale
            deeper than 8 bits (see `deep_grey`). Its EXIF orientation is applied.
        background: RGB, 0 … 255, behind transparent pixels.

    Returns:
        An image of mode RGB; `image` itself where there is nothing to do.

    Raises:
        DataError: for mode LAB.
    """
    if image.mode == "LAB":  # PIL would take its numbers for red, green and blue
        raise DataError("Images of mode LAB have no way to RGB here; save them as RGB.")
    turn = UPRIGHT.get(_orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode.startswith(("I", "F")):
        image = deep_grey(image)
    if image.has_transparency_data:
        return _over(image, background)
    return image if image.mode == "RGB" else image.convert("RGB")


def deep_grey(image: Image.Image) -> Image.Image:
    """Greyscale of 16 or 32 bits → L, or LA where one value stands for "transparent".

    Integers are 16-bit, 0 … 65535, scaled by 1/257. Floats carry no range, so the largest value decides: up to 1 the
    range is 0 … 1, up to 255 it is that of bytes, above that 16-bit. Values outside the range are clamped, and NaN is
    black.
    """
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    white = 65535
    if image.mode == "F":
        white = next((white for white in (1, 255) if values.max() <= white), 65535)
    grey = Image.fromarray(np.rint(values.clip(0, white) * (255 / white)).astype(np.uint8))
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return grey


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation 1 … 8; 1, upright, when there is none or the EXIF block is damaged."""
    try:
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # damaged metadata raises nearly anything, and the picture is whole
        return 1


def _over(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """The image laid over a plain background, mode RGB."""
    if image.mode == "La":  # PIL would drop its alpha on the way to RGBA
        image = image.convert("LA")
    canvas = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(canvas, image.convert("RGBA")).convert("RGB")

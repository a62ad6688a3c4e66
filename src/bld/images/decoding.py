"""Encoded bytes → a decoded PIL image, with the suspicion that strangers' files deserve."""

from __future__ import annotations

import io

from PIL import Image, UnidentifiedImageError

from bld.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # leaves out those that start other programs
FILE_LIMIT_BYTES = 1 << 29  # one encoded image; more is a bomb or no image


def decode(data: bytes) -> Image.Image:
    """The first frame, fully decoded; EXIF orientation not applied.

    Raises DataError for what is no image or claims more pixels than PIL.Image.MAX_IMAGE_PIXELS (where PIL
    itself only warns), and whatever PIL raises for broken data.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:  # its own text shows a memory address
        raise DataError("not an image of a known format") from None
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise DataError(f"claims {image.width}×{image.height} pixels, more than the limit of {limit}")
    image.load()
    return image


def check_file_size(size_bytes: int) -> None:
    """Raises DataError for an encoded image above FILE_LIMIT_BYTES, before anything is read."""
    if size_bytes > FILE_LIMIT_BYTES:
        raise DataError(f"{size_bytes} bytes, more than the limit of {FILE_LIMIT_BYTES} for one image")

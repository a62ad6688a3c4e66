"""Encoded bytes → a decoded PIL image, with checks against files that are damaged or made to do harm."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from bld.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000", "HEIF")
"""Tried in this order; formats whose decoders start other programs are left out. HEIF needs pillow-heif."""

FILE_LIMIT_BYTES = 1 << 29  # one encoded image; more is made to do harm, or no image
MAX_PIXELS = 300_000_000  # of one image unless told otherwise; telephones take 200 million
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt")


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The first frame, fully decoded; EXIF orientation not applied.

    Raises:
        DataError: for what is no image, or claims more than `max_pixels`.
        Exception: whatever PIL raises, for broken data.
    """
    image = opened(data)
    if image.width * image.height > max_pixels:
        raise DataError(
            f"claims {image.width}×{image.height} pixels, more than the limit of {max_pixels / 1e6:g} million "
            "(data.max_megapixels)"
        )
    image.load()
    return image


def opened(data: bytes) -> Image.Image:
    """The image with its header read and no pixel decoded.

    PIL's own limits are left out: that on pixels warns below twice its size and cannot be set per call, and that on
    text refuses pictures for the megabytes of notes that editors keep in them.

    Raises:
        DataError: for what is no image.
    """
    data = without_text(data)
    _register_heif()
    Image.init()
    for name in FORMATS:
        factory, accept = Image.OPEN.get(name, (None, None))
        if factory is None or (accept is not None and not _accepts(accept, data)):
            continue
        try:
            return factory(io.BytesIO(data), "")
        except (SyntaxError, IndexError, TypeError, struct.error, UnidentifiedImageError):
            continue  # as in Image.open: another format then
    raise DataError("not an image of a known format")


def decoders() -> list[str]:
    """The formats that can be decoded here."""
    _register_heif()
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def decode_file(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture in a file, decoded as training images are.

    Raises:
        DataError: in a sentence, if it cannot be read.
    """
    path = Path(path).expanduser()
    try:
        check_file_size(path.stat().st_size)
        return decode(path.read_bytes(), max_pixels)
    except FileNotFoundError as error:
        raise DataError(f"There is no image {path}.") from error
    except MemoryError:
        raise
    except Exception as error:  # damaged data raises nearly anything
        reason = (getattr(error, "strerror", None) or str(error)).rstrip(".") or type(error).__name__
        raise DataError(f"{path} cannot be read as an image: {reason}.") from error


def without_text(data: bytes) -> bytes:
    """A PNG without its text, which no pixel depends on; anything else, or a damaged PNG, as it is."""
    if not data.startswith(PNG_SIGNATURE) or not any(kind in data for kind in PNG_TEXT):
        return data
    kept = [PNG_SIGNATURE]
    for start, stop, kind in _chunks(data):
        if kind not in PNG_TEXT:
            kept.append(data[start:stop])
    return b"".join(kept)


def png_texts(data: bytes) -> Iterator[bytes]:
    """The content of each plain text chunk of a PNG: keyword, a zero byte, text."""
    if data.startswith(PNG_SIGNATURE):
        yield from (data[start + 8 : stop - 4] for start, stop, kind in _chunks(data) if kind == b"tEXt")


def _chunks(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(start, stop, kind) of each chunk of a PNG, to the end of the bytes."""
    start = len(PNG_SIGNATURE)
    while start < len(data):
        length = int.from_bytes(data[start : start + 4], "big")
        stop = min(start + 12 + length, len(data))
        yield start, stop, data[start + 4 : start + 8]
        start = stop


def check_file_size(size_bytes: int) -> None:
    """Raise DataError for an encoded image above FILE_LIMIT_BYTES, before anything is read."""
    if size_bytes > FILE_LIMIT_BYTES:
        raise DataError(f"{size_bytes} bytes, more than the limit of {FILE_LIMIT_BYTES} for one image")


def _accepts(accept: object, data: bytes) -> bool:
    """Whether a format knows the first bytes; PIL gives a text where a format knows them but cannot read them."""
    found = accept(data[:16])  # type: ignore[operator]
    return bool(found) and not isinstance(found, str)


def _register_heif() -> None:
    if "HEIF" in Image.OPEN:
        return
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return
    register_heif_opener()

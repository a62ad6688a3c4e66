"""What visitors send: pictures only, checked and decoded, kept as plain PNG under names that nobody can guess."""

from __future__ import annotations

import base64
import binascii
import io
import re
import secrets
import threading
from collections import deque
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from bld.data import to_rgb
from bld.data.decoding import FORMATS, decode
from bld.data.inputs import opened_masks
from bld.data.rgb import deep_grey
from bld.errors import DataError

MOST_BYTES = 20 * 2**20
MOST_PIXELS = 32_000_000
TOO_MANY_PIXELS = f"The picture has more than {MOST_PIXELS / 1e6:g} million pixels: shrink it."
MOST_FILES = 256
MOST_TOTAL_BYTES = 2**30
TOKEN = re.compile(r"[0-9a-f]{32}\.png")
DATA_URI = "data:image/png;base64,"


class Uploads:
    """A folder of pictures that visitors sent.

    A picture is known to its visitor by a token, never by a path, and the token cannot be guessed.

    Args:
        folder: where they lie.
        most_bytes: of one upload.
        most_files: when there are more, the oldest are deleted.
        most_total_bytes: of all that is kept; above it, the oldest are deleted too.
    """

    def __init__(
        self,
        folder: Path,
        most_bytes: int = MOST_BYTES,
        most_files: int = MOST_FILES,
        most_total_bytes: int = MOST_TOTAL_BYTES,
    ):
        self.folder, self.most_bytes = folder, most_bytes
        self.most_files, self.most_total_bytes = most_files, most_total_bytes
        self._kept: deque[tuple[str, int]] = deque()  # token and bytes, the oldest first
        self._total = 0
        self._lock = threading.Lock()

    def take(self, data: bytes) -> str:
        """Check a picture and keep it.

        Returns:
            Its token.

        Raises:
            DataError: in a sentence, for anything else.
        """
        picture = safe_picture(data, self.most_bytes)
        token = f"{secrets.token_hex(16)}.png"
        picture.save(self.folder / token, "PNG", compress_level=1)
        size = (self.folder / token).stat().st_size
        with self._lock:
            self._kept.append((token, size))
            self._total += size
            while len(self._kept) > self.most_files or (self._total > self.most_total_bytes and len(self._kept) > 1):
                oldest, freed = self._kept.popleft()
                self._total -= freed
                (self.folder / oldest).unlink(missing_ok=True)
        return token

    def path(self, token: object) -> Path:
        """The file of a token.

        Raises:
            DataError: for what is no token, and for that of a picture that is gone.
        """
        if not isinstance(token, str) or not TOKEN.fullmatch(token):
            raise DataError("Only pictures that were uploaded here can be used: upload the picture.")
        if not (path := self.folder / token).is_file():
            raise DataError("This picture is no longer here: upload it again.")
        return path


def safe_picture(data: bytes, most_bytes: int = MOST_BYTES) -> Image.Image:
    """Encoded bytes → a picture of mode RGB or RGBA, upright, without any metadata.

    Raises:
        DataError: in a sentence, for too many bytes or pixels, and for what is no picture.
    """
    if len(data) > most_bytes:
        raise DataError(f"The file has more than {most_bytes / 2**20:g} MiB: send a smaller picture.")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as header:
            size = header.size
        if size[0] * size[1] > MOST_PIXELS:
            raise DataError(TOO_MANY_PIXELS)
        picture = decode(data)
        if picture.mode.startswith(("I", "F")):
            picture = deep_grey(ImageOps.exif_transpose(picture))
        if picture.has_transparency_data:  # which the model's own background is to lie behind
            return _plain(ImageOps.exif_transpose(picture).convert("RGBA"))
        return _plain(to_rgb(picture))
    except DataError as error:
        if str(error)[0].isupper():
            raise
        raise DataError(f"The file cannot be used: {error}.") from error
    except Image.DecompressionBombError as error:  # more than PIL itself puts up with
        raise DataError(TOO_MANY_PIXELS) from error
    except MemoryError:
        raise
    except Exception as error:  # damaged data raises nearly anything
        raise DataError("The file cannot be read as a picture: send a PNG, JPEG, WebP, GIF, BMP or TIFF.") from error


def _plain(picture: Image.Image) -> Image.Image:
    """The pixels alone."""
    return Image.frombytes(picture.mode, picture.size, picture.tobytes())


def mask_from(uri: object, size: tuple[int, int]) -> Image.Image:
    """The mask of the page's brush.

    Args:
        uri: a PNG as data URI; what is transparent was not painted.
        size: (width, height) that it must have.

    Returns:
        An image of mode L, 0 or 255.

    Raises:
        DataError: for anything else.
    """
    most = 1024 + 8 * size[0] * size[1]
    if not isinstance(uri, str) or not uri.startswith(DATA_URI) or len(uri) > most:
        raise DataError("The mask did not arrive: brush over the picture again.")
    try:
        mask = safe_picture(base64.b64decode(uri.removeprefix(DATA_URI), validate=True), most)
    except (binascii.Error, ValueError) as error:
        raise DataError("The mask did not arrive whole: brush over the picture again.") from error
    if mask.size != size:
        raise DataError(f"The mask has {mask.size} pixels where the picture has {size}: brush over the picture again.")
    return hole_in(mask)


def hole_in(mask: Image.Image) -> Image.Image:
    """Mode L: 255 where a mask of any mode is painted, else 0; what is transparent was not painted."""
    return Image.fromarray(opened_masks(mask, 1)[0].astype(np.uint8) * 255)

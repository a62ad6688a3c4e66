"""Tensors → pictures that stand inside the page: PNG as data URIs, small ones enlarged by the browser."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from bld.data import to_pil
from bld.data.grid import hatched

LARGEST_PIXELS = 256


@dataclass(frozen=True)
class Picture:
    """One inlined image.

    Attributes:
        uri: data:image/png;base64,….
        size: of its longer side, in pixels.
        alt: what it shows, in words.
        text: below it, if any.
    """

    uri: str
    size: int
    alt: str
    text: str = ""


def picture(image: Tensor, alt: str, text: str = "", largest: int = LARGEST_PIXELS) -> Picture:
    """(3, S, S) in [-1, 1] → a picture of S pixels, or of `largest` where S is more."""
    return inlined(to_pil(image[None])[0], alt, text, largest)


def masked_picture(image: Tensor, hole: Tensor, alt: str) -> Picture:
    """The image (3, S, S) with its hole (S, S), bool, hatched in grey."""
    return inlined(hatched(to_pil(image[None])[0], Image.fromarray(255 * hole.byte().numpy())), alt)


def inlined(image: Image.Image, alt: str, text: str = "", largest: int = LARGEST_PIXELS) -> Picture:
    """A PIL image, no larger than `largest` on a side, as a data URI."""
    if max(image.size) > largest:
        image = image.copy()
        image.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Picture(f"data:image/png;base64,{encoded}", max(image.size), alt, text)


def lower_half(size: int) -> Tensor:
    """The hole of the inpainting: bool (S, S), True in the lower half."""
    hole = torch.zeros((size, size), dtype=torch.bool)
    hole[size // 2 :] = True
    return hole

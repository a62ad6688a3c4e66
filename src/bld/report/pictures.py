"""Tensors → pictures that stand inside the page: PNG as data URIs, small ones enlarged by the browser."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bld.data import to_pil

LARGEST_PIXELS = 256
HATCHED_PIXELS = 128  # a hatching needs pixels of its own
HATCH_DARK, HATCH_LIGHT = (118, 118, 118), (168, 168, 168)


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


def masked_picture(image: Tensor, hole: Tensor, alt: str, text: str = "") -> Picture:
    """The image (3, S, S) with its hole (S, S), bool, hatched in grey."""
    scale = max(1, HATCHED_PIXELS // image.shape[-1])
    pixels = np.array(to_pil(image[None])[0]).repeat(scale, 0).repeat(scale, 1)
    inside = hole.numpy().repeat(scale, 0).repeat(scale, 1)
    period = max(8, len(inside) // 12)
    stripes = np.add.outer(np.arange(len(inside)), np.arange(len(inside))) % period < period // 2
    pixels[inside] = np.where(stripes[..., None], HATCH_DARK, HATCH_LIGHT)[inside]
    return inlined(Image.fromarray(pixels), alt, text)


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

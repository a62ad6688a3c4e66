"""Masks of inpainting: which pixels are to be made, and what the encoder sees in their place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from bld.data import Preprocessing
from bld.data.inputs import has_size, mask_view, opened_masks, size_of
from bld.errors import SettingError


def holes_in(pictures: Sequence[Image.Image | Tensor], mask: Any, size: int) -> list[Tensor]:
    """Per picture bool (size, size), True where pixels are to be made; cropped and resized as the picture is."""
    holes = []
    for picture, whole in zip(pictures, opened_masks(mask, len(pictures)), strict=True):
        mask_size, picture_size = (whole.shape[1], whole.shape[0]), size_of(picture)
        if mask_size != picture_size:
            raise SettingError(f"The mask is {mask_size} pixels and the image {picture_size}: they must be equal.")
        if not whole.any():
            raise SettingError("The mask is black everywhere: paint the part to be filled white.")
        hole = mask_view(whole, size)
        if not hole.any():
            raise SettingError("The mask is white only outside the central square, which is all that is made.")
        holes.append(hole)
    return holes


def positions_of(hole: Tensor, factor: int) -> Tensor:
    """Latent positions (N,) that have a pixel in the hole (S, S), which are made; factor: pixels of a side of one."""
    return F.max_pool2d(hole.float()[None, None], factor).flatten() > 0


def kept_pixels(picture: Image.Image | Tensor, view: Tensor, preprocessing: Preprocessing) -> Tensor:
    """What stands outside a hole: the network's view, or of a tensor that needs no resizing its own digits."""
    if isinstance(picture, Tensor) and has_size(picture, preprocessing):
        return picture[None] * 2 - 1
    return view


def fill_from_surroundings(images: Tensor, hole: Tensor) -> Tensor:
    """Replace the pixels in the hole by averages of known ones around it, near ones first.

    images (B, 3, S, S), hole (S, S) bool.  The encoder looks beyond a latent position's own pixels: what the user's
    picture shows inside the hole must not reach the known bits.
    """
    known = (~hole).to(images.dtype)[None, None]
    result = images * known
    filled = known.clone()
    reach = 1
    while bool((filled == 0).any()) and reach < 2 * hole.shape[-1]:
        weight = F.avg_pool2d(known, 2 * reach + 1, 1, reach, count_include_pad=False)
        colour = F.avg_pool2d(images * known, 2 * reach + 1, 1, reach, count_include_pad=False)
        new = (filled == 0) & (weight > 0)
        result = torch.where(new, colour / weight.clamp(min=1e-8), result)
        filled = torch.where(new, torch.ones_like(filled), filled)
        reach *= 2
    return result

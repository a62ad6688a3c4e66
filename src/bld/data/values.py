"""Stored pixels ⇄ what networks see: uint8 in 0 … 255 ⇄ float in [-1, 1]."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from bld.errors import SettingError


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 of any shape → float32 in [-1, 1], v / 127.5 - 1.

    Raises:
        SettingError: for another dtype.
    """
    if pixels.dtype != torch.uint8:
        raise SettingError(f"Stored pixels are uint8, not {pixels.dtype}.")
    return (pixels / 127.5).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """Float in [-1, 1] of any shape → uint8, rounded, clamped; the inverse of `to_unit` on all 256 values.

    Raises:
        SettingError: for integers, which are no images in [-1, 1].
    """
    if not images.is_floating_point():
        raise SettingError(f"Images in [-1, 1] are floating-point, not {images.dtype}.")
    return images.detach().to(torch.float32).add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def to_pil(images: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [-1, 1] → B images of mode RGB.

    Raises:
        SettingError: for another shape.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise SettingError(f"Images have the shape (B, 3, H, W), not {tuple(images.shape)}.")
    return [Image.fromarray(array) for array in to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()]

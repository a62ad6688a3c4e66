"""One image → one square of pixels: the deterministic centre view, and training views keyed by a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bld.data.rgb import to_rgb
from bld.errors import SettingError, did_you_mean

Crop = Literal["center", "random"]
Resample = Literal["lanczos", "bicubic", "bilinear", "box"]
LONGEST = 16  # squares side by side that random crops are cut from, at most


@dataclass(frozen=True)
class Preprocessing:
    """How images become squares.

    Args:
        image_size: side S of the square, in pixels.
        crop: where the square lies along the longer side while training; the centre view is always central.
        flip: whether half of the training views are mirrored left to right.
        resample: filter of the resampling; every one widens when it shrinks an image, so nothing aliases.
        background: RGB, 0 … 255, behind transparent pixels.

    Raises:
        SettingError: for anything else.
    """

    image_size: int
    crop: Crop = "center"
    flip: bool = False
    resample: Resample = "lanczos"
    background: tuple[int, int, int] = (255, 255, 255)

    def __post_init__(self) -> None:
        if not _is_int(self.image_size) or self.image_size < 1:
            raise SettingError(f"image_size is {self.image_size!r}; it is a whole number of pixels, 1 or more.")
        for field, known in (("crop", get_args(Crop)), ("resample", get_args(Resample))):
            value = getattr(self, field)
            if value not in known:
                raise SettingError(f"{field} is {value!r}.{did_you_mean(str(value), known)}")
        if not isinstance(self.flip, bool):
            raise SettingError(f"flip is {self.flip!r}; it is true or false.")
        if not _is_colour(self.background):
            raise SettingError(f"background is {self.background!r}; it is three whole numbers from 0 to 255.")
        object.__setattr__(self, "background", tuple(self.background))  # YAML and JSON bring lists

    def of_centres(self) -> Preprocessing:
        """The same for who asks for centre views alone, so that nothing is held for others."""
        return replace(self, crop="center", flip=False)

    def key(self) -> dict[str, Any]:
        """What the centre view depends on, ready for JSON; `crop` and `flip` concern training views only."""
        return {
            "image_size": self.image_size,
            "resample": self.resample,
            "background": list(self.background),
        }


def center_view(image: Image.Image, prep: Preprocessing) -> Tensor:
    """The central square, resized to S: uint8 (3, S, S). With a shorter side of S no pixel is altered."""
    image = to_rgb(image, prep.background)
    side, longer = sorted(image.size)
    return _resized(image, (longer - side) // 2, side, prep.image_size, prep)


def training_view(image: Image.Image, prep: Preprocessing, seed: int) -> Tensor:
    """A view drawn from `seed` alone, as `prep` allows: uint8 (3, S, S)."""
    return cut(strip(image, prep), prep, seed)


def strip(image: Image.Image, prep: Preprocessing) -> Tensor:
    """What training views are cut from: uint8 (3, h, w), the shorter side S.

    For random crops the whole image (of one more than `LONGEST` times as long as wide the middle), else its centre.
    """
    if prep.crop == "center":
        return center_view(image, prep)
    image = to_rgb(image, prep.background)
    side, whole = sorted(image.size)
    length = min(whole, LONGEST * side)
    return _resized(image, (whole - length) // 2, length, round(length * prep.image_size / side), prep)


def cut(strip: Tensor, prep: Preprocessing, seed: int) -> Tensor:
    """A view drawn from `seed` alone out of a strip (3, h, w): uint8 (3, S, S)."""
    along = 1 if strip.shape[1] > strip.shape[2] else 2
    slack = strip.shape[along] - prep.image_size
    view = strip.narrow(along, int(crop_fractions([seed])[0] * (slack + 1)), prep.image_size)
    return view.flip(-1) if prep.flip and flips([seed])[0] else view


def flips(seeds: Sequence[int]) -> np.ndarray:
    """Whether each seed's view is mirrored: bool (n,)."""
    return _mixed(seeds, stream=1) >> np.uint64(63) == 1


def crop_fractions(seeds: Sequence[int]) -> np.ndarray:
    """Where each seed's square lies along the longer side: float64 (n,), uniform in [0, 1)."""
    return (_mixed(seeds, stream=2) >> np.uint64(11)) * 2.0**-53


def _mixed(seeds: Sequence[int], stream: int) -> np.ndarray:
    """64 well-mixed bits per seed, uint64 (n,): the `stream`-th output of SplitMix64 started at the seed.

    A generator object per image would cost more than the whole batch.
    """
    mask = (1 << 64) - 1
    start = [(int(seed) + stream * 0x9E3779B97F4A7C15) & mask for seed in seeds]
    z = np.array(start, dtype=np.uint64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _resized(image: Image.Image, start: int, length: int, to: int, prep: Preprocessing) -> Tensor:
    """The part of `length` pixels from `start` on along the longer side, its shorter side resized to S: uint8.

    Cropped first, so a very long and thin image never grows into gigabytes.
    """
    side, size = min(image.size), prep.image_size
    wide = image.width > image.height
    box = (start, 0, start + length, side) if wide else (0, start, side, start + length)
    if side == size:
        part = image.crop(box)
    else:
        part = image.resize((to, size) if wide else (size, to), Image.Resampling[prep.resample.upper()], box=box)
    return torch.from_numpy(np.array(part)).permute(2, 0, 1).contiguous()


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_colour(value: object) -> bool:
    if not isinstance(value, tuple | list) or len(value) != 3:
        return False
    return all(_is_int(channel) and 0 <= channel <= 255 for channel in value)

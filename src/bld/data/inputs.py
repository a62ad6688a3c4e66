"""Pictures and masks as users hold them → what networks see: files, PIL images, arrays and tensors of any usual kind.

Values are in [0, 1], as the pipeline's own output is, or bytes in 0 … 255.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from bld.data.decoding import decode_file
from bld.data.preprocessing import Preprocessing, center_view
from bld.data.rgb import to_rgb
from bld.data.values import to_unit
from bld.errors import DataError, SettingError

Picture = Image.Image | np.ndarray | Tensor | str | Path
Pictures = Picture | Sequence[Picture]
ROUNDING = 1e-3  # beyond the ends of [0, 1]


def opened_pictures(given: Pictures) -> list[Image.Image | Tensor]:
    """Each picture as a PIL image, or a float tensor (3, H, W) in [0, 1]; batches are taken apart.

    Args:
        given: one or several PIL images, paths, arrays or tensors. Arrays have their channels last, (H, W), (H, W, C)
            or (n, H, W, C), with 1 to 4 channels of bytes or 1 or 3 of floats; tensors first, (3, H, W) or
            (n, 3, H, W). Floats are in [0, 1].

    Raises:
        SettingError: in a sentence, for anything else.
        DataError: in a sentence, for a file that cannot be read, or values that are not finite numbers.
    """
    if isinstance(given, list | tuple):
        found = [picture for one in given for picture in opened_pictures(one)]
        if not found:
            raise SettingError("No images were given.")
        return found
    if isinstance(given, str | Path):
        return [decode_file(given)]
    if isinstance(given, Image.Image):
        return [given]
    if isinstance(given, Tensor):
        return _from_tensor(given.detach().cpu())
    if isinstance(given, np.ndarray):
        return _from_array(given)
    raise SettingError(f"An image is a PIL image, an array, a tensor or a path, not {type(given).__name__}.")


def network_views(given: Pictures, prep: Preprocessing) -> Tensor:
    """Pictures → their centre views, float32 (B, 3, S, S) in [-1, 1]."""
    return torch.stack([network_view(picture, prep) for picture in opened_pictures(given)])


def network_view(picture: Image.Image | Tensor, prep: Preprocessing) -> Tensor:
    """One opened picture → (3, S, S) in [-1, 1], made of bytes, as in training, so that every form gives the same."""
    if isinstance(picture, Tensor):
        pixels = picture.mul(255).round().byte()
        if has_size(picture, prep):
            return to_unit(pixels)
        picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    return to_unit(center_view(picture, prep))


def has_size(picture: Image.Image | Tensor, prep: Preprocessing) -> bool:
    """Whether a picture is a tensor of the size that networks see."""
    return isinstance(picture, Tensor) and tuple(picture.shape[1:]) == (prep.image_size, prep.image_size)


def size_of(picture: Image.Image | Tensor) -> tuple[int, int]:
    """(width, height), upright."""
    return (picture.shape[2], picture.shape[1]) if isinstance(picture, Tensor) else to_rgb(picture).size


def _from_tensor(values: Tensor) -> list[Image.Image | Tensor]:
    if values.ndim == 3:
        values = values.unsqueeze(0)
    if values.ndim != 4 or values.shape[1] != 3 or not values.numel():
        raise SettingError(f"An image tensor has the shape (n, 3, H, W), not {tuple(values.shape)}.")
    if values.dtype == torch.uint8:
        return list(values.float() / 255)
    if not values.is_floating_point():
        raise SettingError(f"An image tensor holds floats in [0, 1] or uint8, not {values.dtype}.")
    values = values.float()
    if not values.isfinite().all():
        raise DataError("An image holds values that are not finite numbers: fix them.")
    low, high = float(values.min()), float(values.max())
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise SettingError(
            f"An image tensor holds floats in [0, 1], as the pipeline gives them, not from {low:g} to {high:g}: "
            "of values in [-1, 1] take (x + 1) / 2."
        )
    return list(values.clamp(0, 1))


def _from_array(values: np.ndarray) -> list[Image.Image | Tensor]:
    if values.dtype.kind in "biu" and values.dtype != np.uint8:
        raise SettingError(f"An image array holds floats in [0, 1] or uint8, not {values.dtype}.")
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim == 3:
        values = values[None]
    if values.ndim != 4 or values.shape[-1] not in (1, 2, 3, 4) or not values.size:
        raise SettingError(f"An image array has the shape (H, W, 3) or (n, H, W, 3), not {values.shape}.")
    if values.dtype == np.uint8:
        return [Image.fromarray(one.squeeze(-1) if one.shape[-1] == 1 else one) for one in values]
    rgb = torch.from_numpy(np.ascontiguousarray(values)).permute(0, 3, 1, 2)
    if rgb.shape[1] != 3:
        if rgb.shape[1] != 1:
            raise SettingError(f"An array of floats has 1 or 3 channels, not {rgb.shape[1]}: make it uint8.")
        rgb = rgb.expand(-1, 3, -1, -1)
    return _from_tensor(rgb)


# -- masks ------------------------------------------------------------------------------------------------


def opened_masks(given: Any, count: int) -> list[np.ndarray]:
    """One mask for each picture, bool (H, W), True where pixels are to be made.

    Args:
        given: one mask for all pictures, or one for each, in a list or an array or tensor (n, H, W) or (n, 1, H, W). A
            mask is white (above half) where pixels are to be made: an image of any mode (what is transparent was not
            painted), a file, or an array or tensor of 0 and 1, bytes, 16-bit numbers or floats.
        count: how many pictures there are.

    Raises:
        SettingError: for another number of masks, or what is no mask.
        DataError: for a file that cannot be read, or values that are not finite numbers.
    """
    many = isinstance(given, list | tuple) and len(given) > 0 and not np.isscalar(given[0]) and not _is_rows(given)
    many = many or _is_stack(given, count)
    masks = [_hole(one) for one in given] if many else [_hole(given)]
    if len(masks) == 1:
        return masks * count
    if len(masks) != count:
        raise SettingError(f"{len(masks)} masks were given for {count} images: give one, or one per image.")
    return masks


def _is_rows(given: Sequence[Any]) -> bool:
    """Whether nested lists are the rows of a single mask."""
    return isinstance(given[0], list | tuple) and np.ndim(given) == 2


def _is_stack(given: Any, count: int) -> bool:
    """Whether an array or tensor holds a mask for each of several pictures: (n, H, W), or one with a channel of 1."""
    if not isinstance(given, Tensor | np.ndarray) or count < 2 or given.ndim not in (3, 4) or len(given) != count:
        return False
    return given.ndim == 4 or isinstance(given, Tensor) or given.shape[-1] > 4  # else it has channels


def mask_view(hole: np.ndarray, size: int) -> Tensor:
    """bool (H, W) → bool (S, S): the centre view, True where any pixel behind it is, so that thin strokes survive."""
    height, width = hole.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = torch.from_numpy(np.ascontiguousarray(hole[top : top + side, left : left + side])).float()
    return F.adaptive_max_pool2d(square[None, None], size)[0, 0] > 0


def _hole(mask: Any) -> np.ndarray:
    if isinstance(mask, str | Path):
        mask = decode_file(mask)
    values = _painted(mask) if isinstance(mask, Image.Image) else _values(mask)
    return values > 0.5


def _painted(mask: Image.Image) -> np.ndarray:
    """How white an image is, float (H, W) in 0 … 1, over black; upright."""
    mask = ImageOps.exif_transpose(mask)
    if mask.mode.startswith(("I", "F")) or mask.mode in ("1", "L"):
        return _scaled(np.asarray(mask))
    return np.asarray(to_rgb(mask, (0, 0, 0)).convert("L")) / 255


def _values(mask: Any) -> np.ndarray:
    """The same of an array or tensor."""
    try:
        values = mask.detach().cpu().float().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
        if values.dtype.kind not in "biuf":
            raise TypeError(f"it holds {values.dtype}")
    except (TypeError, ValueError) as error:
        raise SettingError(f"A mask is an image, an array or a tensor: this is none ({error}).") from error
    if values.ndim == 3 and isinstance(mask, Tensor) and values.shape[0] in (1, 3):
        values = values.transpose(1, 2, 0)
    while values.ndim > 2 and 1 in values.shape:
        values = values.squeeze(values.shape.index(1))
    if values.ndim == 3 and values.shape[-1] in (2, 3, 4):
        scaled = _scaled(values)
        colour = scaled[..., :1] if values.shape[-1] == 2 else scaled[..., :3]
        return colour.mean(-1) * (scaled[..., -1] if values.shape[-1] in (2, 4) else 1)
    if values.ndim != 2 or not values.size:
        raise SettingError(f"A mask has the shape (H, W), not {values.shape}.")
    return _scaled(values)


def _scaled(values: np.ndarray) -> np.ndarray:
    """Numbers → 0 … 1: as they are up to 1, bytes up to 255, else 16-bit."""
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise DataError("The mask holds values that are not finite numbers: fix them.")
    highest = values.max(initial=0)
    return values / next((white for white in (1, 255, 65535) if highest <= white), highest)

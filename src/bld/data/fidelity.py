"""How close two sets of images are, pixel by pixel."""

from __future__ import annotations

from torch import Tensor

from bld.errors import SettingError

SMALLEST_MSE = 1e-10  # 100 dB: perfect reconstructions would have no mean otherwise


def psnr(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, float64 (B,): -10·log₁₀ of the mean squared error.

    Both (B, C, H, W) in [-1, 1]; the error is that of pixels in [0, 1], whose peak is 1.  At most 100 dB.
    Raises SettingError for unequal shapes.
    """
    return -10 * mean_squared_error(images, reconstructions).clamp(min=SMALLEST_MSE).log10()


def mean_squared_error(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Of each image, on pixels in [0, 1], float64 (B,); both (B, C, H, W) in [-1, 1]."""
    if images.shape != reconstructions.shape or images.ndim != 4:
        raise SettingError(
            "Images and reconstructions have the same shape (B, C, H, W), "
            f"not {tuple(images.shape)} and {tuple(reconstructions.shape)}."
        )
    return ((images.double() - reconstructions.double()) / 2).square().mean((1, 2, 3))

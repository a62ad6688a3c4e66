"""How close two sets of images are, pixel by pixel."""

from __future__ import annotations

from torch import Tensor

from bld.errors import SettingError

SMALLEST_MSE = 1e-10  # 100 dB: perfect reconstructions would have no mean otherwise


def psnr(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image: -10·log₁₀ of the mean squared error.

    The error is that of pixels in [0, 1], whose peak is 1.

    Args:
        images: (B, C, H, W) in [-1, 1].
        reconstructions: the same shape and range.

    Returns:
        float64 (B,), in dB, at most 100.

    Raises:
        SettingError: for unequal shapes, or others than (B, C, H, W).
    """
    return -10 * mean_squared_error(images, reconstructions).clamp(min=SMALLEST_MSE).log10()


def mean_squared_error(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Mean squared error of each image, of pixels in [0, 1].

    Args:
        images: (B, C, H, W) in [-1, 1].
        reconstructions: the same shape and range.

    Returns:
        float64 (B,).

    Raises:
        SettingError: for unequal shapes, or others than (B, C, H, W).
    """
    if images.shape != reconstructions.shape or images.ndim != 4:
        raise SettingError(
            "Images and reconstructions have the same shape (B, C, H, W), "
            f"not {tuple(images.shape)} and {tuple(reconstructions.shape)}."
        )
    return ((images.double() - reconstructions.double()) / 2).square().mean((1, 2, 3))

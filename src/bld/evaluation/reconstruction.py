"""How much of an image survives its bits: PSNR between images and their reconstructions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from bld.errors import MissingPackageError, SettingError
from bld.images import SMALLEST_MSE, ImageSet, mean_squared_error
from bld.pipeline import BinaryLatentDiffusionPipeline
from bld.precision import in_float32

if TYPE_CHECKING:
    from bld.autoencoder import BinaryAutoencoder


@dataclass(frozen=True)
class ReconstructionScore:
    """Reconstructions of thresholded codes, measured.

    images: how many.  psnr_mean, psnr_std: of the images' own PSNR, dB (std 0 for one image).
    psnr_of_mean_mse: PSNR of the error averaged over all images, dB; never above psnr_mean.
    """

    images: int
    psnr_mean: float
    psnr_std: float
    psnr_of_mean_mse: float


@torch.no_grad()
def score_reconstructions(
    model: BinaryLatentDiffusionPipeline | BinaryAutoencoder,
    image_set: ImageSet,
    batch_size: int = 64,
    limit: int | None = None,
) -> ReconstructionScore:
    """Encode to bits, decode, compare: the centre views of the set, or of its first `limit` images.

    Raises SettingError for a limit or batch_size below 1, or without images.
    """
    count = len(image_set) if limit is None else min(limit, len(image_set))
    if count < 1 or batch_size < 1:
        raise SettingError(f"{count} images in batches of {batch_size}: both have to be 1 or more.")
    tokenizer = model.tokenizer if isinstance(model, BinaryLatentDiffusionPipeline) else model
    first = next(tokenizer.parameters())
    errors = []
    for start in range(0, count, batch_size):
        images = image_set.centre(range(start, min(start + batch_size, count)))
        decoded = tokenizer.decode(tokenizer.encode(images.to(first.device, first.dtype))).clamp(-1, 1)
        errors.append(mean_squared_error(images, decoded.cpu()))
    mse = torch.cat(errors).clamp(min=SMALLEST_MSE)
    decibels = -10 * mse.log10()
    return ReconstructionScore(
        images=count,
        psnr_mean=float(decibels.mean()),
        psnr_std=float(decibels.std()) if count > 1 else 0.0,
        psnr_of_mean_mse=-10 * math.log10(float(mse.mean())),
    )


@in_float32()
def structural_similarity(images: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor:
    """SSIM of each image, float32 (B,), by torchmetrics: both (B, C, H, W) in [-1, 1]; Gaussian window of at most 11.

    Images smaller than the window take the largest odd window that fits.
    Raises MissingPackageError without torchmetrics, SettingError for unequal shapes.
    """
    if images.shape != reconstructions.shape or images.ndim != 4:
        raise SettingError(
            f"SSIM compares images of one shape (B, C, H, W), not {tuple(images.shape)} and "
            f"{tuple(reconstructions.shape)}."
        )
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError as error:
        raise MissingPackageError("SSIM needs torchmetrics: pip install 'binary-latent-diffusion[metrics]'.") from error
    side = min(11, *images.shape[-2:])
    window = side if side % 2 else side - 1
    found = structural_similarity_index_measure(
        (reconstructions + 1) / 2, (images + 1) / 2, gaussian_kernel=False, kernel_size=window, reduction="none",
        data_range=1.0,
    )  # fmt: skip
    assert isinstance(found, torch.Tensor)
    return found

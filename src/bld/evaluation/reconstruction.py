"""How much of an image survives its bits: PSNR between images and their reconstructions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from bld.errors import SettingError
from bld.images import SMALLEST_MSE, ImageSet, mean_squared_error
from bld.pipeline import BinaryLatentDiffusionPipeline

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

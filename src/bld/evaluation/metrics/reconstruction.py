"""How much of an image its bits keep: PSNR and SSIM between images and their reconstructions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from bld.data import SMALLEST_MSE, ImageSet, mean_squared_error, psnr
from bld.errors import MissingPackageError, SettingError
from bld.evaluation.metrics.base import Pairwise, of_reconstructions
from bld.pipeline import BinaryLatentDiffusionPipeline
from bld.runtime.precision import in_float32
from bld.seeding import keyed_draws

if TYPE_CHECKING:
    from bld.tokenizer import BinaryAutoencoder


@dataclass(frozen=True)
class ReconstructionScore:
    """Reconstructions, measured.

    Attributes:
        images: how many.
        psnr_mean: mean of the images' own PSNR from their most probable (thresholded) codes, dB.
        psnr_std: standard deviation of the same, dB; 0 for one image.
        psnr_of_mean_mse: PSNR of the error averaged over all images, dB; never above psnr_mean.
        drawn_psnr_mean: as psnr_mean, from one drawn code of each image, as a prior is trained on; None where codes are
            not drawn.
    """

    images: int
    psnr_mean: float
    psnr_std: float
    psnr_of_mean_mse: float
    drawn_psnr_mean: float | None = None


@torch.no_grad()
def score_reconstructions(
    model: BinaryLatentDiffusionPipeline | BinaryAutoencoder,
    image_set: ImageSet,
    batch_size: int = 64,
    limit: int | None = None,
) -> ReconstructionScore:
    """Encode to bits, decode, compare.

    Args:
        model: a tokenizer, or a pipeline that has one.
        image_set: images, of which the centre views are taken.
        batch_size: images at a time.
        limit: only the first so many images; all by default.

    Raises:
        SettingError: for a limit or batch_size below 1, or without images.
    """
    count = len(image_set) if limit is None else min(limit, len(image_set))
    if count < 1 or batch_size < 1:
        raise SettingError(f"{count} images in batches of {batch_size}: both have to be 1 or more.")
    tokenizer = model.tokenizer if isinstance(model, BinaryLatentDiffusionPipeline) else model
    first = next(tokenizer.parameters())
    errors, drawn = [], []
    for start in range(0, count, batch_size):
        images = image_set.centre(range(start, min(start + batch_size, count)))
        seen, numbers = images.to(first.device, first.dtype), range(start, start + len(images))
        decoded = tokenizer.decode(tokenizer.encode(seen)).clamp(-1, 1)
        errors.append(mean_squared_error(images, decoded.cpu()))
        if tokenizer.bottleneck.is_random:
            decoded = tokenizer.decode(tokenizer.encode(seen, keyed_draws(0, "reconstruct", numbers)))
            drawn.append(psnr(images, decoded.clamp(-1, 1).cpu()))
    mse = torch.cat(errors).clamp(min=SMALLEST_MSE)
    decibels = -10 * mse.log10()
    return ReconstructionScore(
        images=count,
        psnr_mean=float(decibels.mean()),
        psnr_std=float(decibels.std()) if count > 1 else 0.0,
        psnr_of_mean_mse=-10 * math.log10(float(mse.mean())),
        drawn_psnr_mean=float(torch.cat(drawn).mean()) if drawn else None,
    )


@of_reconstructions("psnr")
def _psnr(device: torch.device) -> Pairwise:
    return psnr


@of_reconstructions("ssim")
def _ssim(device: torch.device) -> Pairwise:
    return structural_similarity


@in_float32()
def structural_similarity(images: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor:
    """SSIM of each image, with a Gaussian window of 11 pixels and σ = 1.5.

    As in Wang et al. 2004, by torchmetrics, averaged over the positions where the window lies inside the image. Images
    smaller than the window take the largest odd window that fits, and σ in proportion.

    Args:
        images: (B, C, H, W) in [-1, 1].
        reconstructions: the same.

    Returns:
        float32 (B,).

    Raises:
        MissingPackageError: without torchmetrics.
        SettingError: for unequal shapes.
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
    # torchmetrics takes a Gaussian window's width from σ: 2·⌊3.5 σ + ½⌋ + 1, which is `window` for this σ.
    _, everywhere = structural_similarity_index_measure(
        (reconstructions + 1) / 2, (images + 1) / 2, gaussian_kernel=True, sigma=1.5 * window / 11, reduction="none",
        data_range=1.0, return_full_image=True,
    )  # fmt: skip
    margin = window // 2
    inside = everywhere[..., margin : everywhere.shape[-2] - margin, margin : everywhere.shape[-1] - margin]
    return inside.flatten(1).mean(1)

"""Scores over an image set."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bld.checkpoint import load_tokenizer
from bld.errors import SettingError
from bld.evaluation.reconstruction import score_reconstructions
from bld.images import ImageSet, Preprocessing, psnr
from bld.pipeline import BinaryLatentDiffusionPipeline


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return ImageSet.open("digits", Preprocessing(8))


def test_score_is_the_same_for_any_batch_size_and_for_pipeline_and_tokenizer(trained_run: Path, digits: ImageSet):
    pipeline = BinaryLatentDiffusionPipeline.from_pretrained(trained_run)
    whole = score_reconstructions(pipeline, digits, batch_size=50, limit=50)
    parts = score_reconstructions(load_tokenizer(trained_run / "tokenizer"), digits, batch_size=17, limit=50)
    assert whole.images == parts.images == 50
    assert whole.psnr_mean == pytest.approx(parts.psnr_mean, abs=1e-3)
    assert whole.psnr_std == pytest.approx(parts.psnr_std, abs=1e-3)


def test_score_agrees_with_psnr_of_the_reconstructions(trained_run: Path, digits: ImageSet):
    pipeline = BinaryLatentDiffusionPipeline.from_pretrained(trained_run)
    images = digits.centre(range(20))
    each = psnr(images, pipeline.reconstruct((images + 1) / 2, "pt") * 2 - 1)
    score = score_reconstructions(pipeline, digits, limit=20)
    assert score.psnr_mean == pytest.approx(float(each.mean()), abs=1e-3)
    assert score.psnr_std == pytest.approx(float(each.std()), abs=1e-3)
    assert score.psnr_of_mean_mse <= score.psnr_mean


def test_score_of_nothing_is_refused(trained_run: Path, digits: ImageSet):
    with pytest.raises(SettingError, match="0 images"):
        score_reconstructions(load_tokenizer(trained_run / "tokenizer"), digits, limit=0)


@pytest.mark.parametrize("size", [4, 8, 32])
def test_ssim_is_one_for_equals_less_for_noise_and_of_each_image_alone(size):
    from bld.evaluation.reconstruction import structural_similarity

    pytest.importorskip("torchmetrics")
    x = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noise = 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(structural_similarity(x, x), torch.ones(3))
    noisy = structural_similarity(x, (x + noise).clamp(-1, 1))
    assert noisy.shape == (3,) and (noisy < 0.99).all()
    torch.testing.assert_close(structural_similarity(x[1:2], (x + noise).clamp(-1, 1)[1:2]), noisy[1:2])


def test_ssim_refuses_unequal_shapes_and_names_its_extra(monkeypatch):
    import sys

    from bld.errors import MissingPackageError
    from bld.evaluation.reconstruction import structural_similarity

    with pytest.raises(SettingError, match="SSIM compares images of one shape"):
        structural_similarity(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 9, 8))
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    with pytest.raises(MissingPackageError, match=r"binary-latent-diffusion\[metrics\]"):
        structural_similarity(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))

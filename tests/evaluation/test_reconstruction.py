"""Scores over an image set."""

from __future__ import annotations

from pathlib import Path

import pytest

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
    each = psnr(images, pipeline.reconstruct(images, "pt") * 2 - 1)
    score = score_reconstructions(pipeline, digits, limit=20)
    assert score.psnr_mean == pytest.approx(float(each.mean()), abs=1e-3)
    assert score.psnr_std == pytest.approx(float(each.std()), abs=1e-3)
    assert score.psnr_of_mean_mse <= score.psnr_mean


def test_score_of_nothing_is_refused(trained_run: Path, digits: ImageSet):
    with pytest.raises(SettingError, match="0 images"):
        score_reconstructions(load_tokenizer(trained_run / "tokenizer"), digits, limit=0)

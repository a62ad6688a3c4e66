"""Scores over an image set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bld.data import ImageSet, Preprocessing, psnr
from bld.errors import SettingError
from bld.evaluation.metrics.lpips import PerceptualDistance
from bld.evaluation.metrics.reconstruction import score_reconstructions, structural_similarity
from bld.evaluation.neighbours import nearest_by
from bld.pipeline import BinaryLatentDiffusionPipeline
from bld.serialization.models import load_tokenizer


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
    from bld.evaluation.metrics.reconstruction import structural_similarity

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
    from bld.evaluation.metrics.reconstruction import structural_similarity

    with pytest.raises(SettingError, match=r"SSIM .*\(1, 3, 8, 8\) and \(1, 3, 9, 8\)"):
        structural_similarity(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 9, 8))
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    with pytest.raises(MissingPackageError, match=r"binary-latent-diffusion\[metrics\]"):
        structural_similarity(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))


def by_hand(x: np.ndarray, y: np.ndarray, window: int = 11, sigma: float = 1.5) -> float:
    """SSIM as in Wang et al. 2004, by scipy: one channel, values in [0, 1], positions where the window lies inside."""
    from scipy.signal import convolve2d

    axis = np.exp(-((np.arange(window) - window // 2) ** 2) / (2 * sigma**2))
    weights = np.outer(axis, axis) / axis.sum() ** 2

    def mean(values: np.ndarray) -> np.ndarray:
        return convolve2d(values, weights, mode="valid")

    mx, my = mean(x), mean(y)
    vx, vy, both = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    return float((((2 * mx * my + c1) * (2 * both + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean())


@pytest.mark.parametrize(("size", "window"), [(32, 11), (11, 11), (10, 9), (8, 7), (5, 5), (4, 3)])
def test_ssim_is_gaussian_windowed_as_in_its_paper(size, window):
    rng = np.random.default_rng(0)
    x = rng.random((2, 3, size, size))
    y = 0.7 * x + 0.3 * rng.random(x.shape)
    found = structural_similarity(torch.tensor(2 * x - 1).float(), torch.tensor(2 * y - 1).float())
    sigma = 1.5 * window / 11
    expected = [
        np.mean([by_hand(a, b, window, sigma) for a, b in zip(one, other, strict=True)])
        for one, other in zip(x, y, strict=True)
    ]
    assert found.tolist() == pytest.approx(expected, abs=1e-4)


class Lpips(torch.nn.Module):
    """LPIPS's shape with small random layers, and how often its network ran over how many images."""

    def __init__(self) -> None:
        super().__init__()
        self.scaling_layer = torch.nn.Identity()
        self.net = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.lins = torch.nn.ModuleList([torch.nn.Conv2d(4, 1, 1, bias=False)])
        self.lins[0].weight.data.abs_()  # as those of LPIPS, so that a distance is one
        self.net.forward = self._layers  # type: ignore[method-assign]
        self.seen = 0

    def _layers(self, images: torch.Tensor) -> list[torch.Tensor]:
        self.seen += len(images)
        return [torch.nn.functional.conv2d(images, self.net.weight, self.net.bias, padding=1).relu()]


def test_lpips_neighbours_pass_each_image_once_and_are_the_distances_pair_by_pair(monkeypatch, digits: ImageSet):
    model = Lpips()
    monkeypatch.setattr("bld.tokenizer.losses.load_lpips", lambda: model)
    few = digits.subset(range(40))
    samples = digits.centre([3, 77])
    found = nearest_by("lpips", samples, few, k=5, batch=16)
    assert model.seen == 42
    assert int(found.indices[0, 0]) == 3 and float(found.distances[0, 0]) == pytest.approx(0, abs=1e-7)
    distance = PerceptualDistance()
    pairs = torch.stack([distance(samples[1:], few.centre([i])) for i in range(40)]).flatten()
    assert found.indices[1].tolist() == pairs.argsort()[:5].tolist()


def test_images_in_which_lpips_sees_nothing_are_refused(monkeypatch, digits: ImageSet):
    """VGG-16 halves them four times."""
    model = Lpips()
    layers = model._layers
    model.net.forward = lambda images: layers(torch.nn.functional.max_pool2d(images, 16))  # type: ignore[method-assign]
    monkeypatch.setattr("bld.tokenizer.losses.load_lpips", lambda: model)
    with pytest.raises(SettingError, match="8×8 pixels: leave lpips out"):
        PerceptualDistance().features(digits.centre([3]))
    assert PerceptualDistance().features(torch.zeros(1, 3, 16, 16))[0].shape == (1, 4, 1, 1)

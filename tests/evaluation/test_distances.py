"""Distances between sets: against closed forms, against the library itself, and what they do at their limits."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bld.errors import DataError, MissingPackageError, SettingError
from bld.evaluation.metrics import SAMPLE_METRICS
from bld.evaluation.metrics.base import FeatureTable
from bld.evaluation.metrics.distances import (
    extract,
    frechet_distance,
    inception_score,
    kernel_distance,
    mean_distance,
    moments,
    precision_recall,
    read_table,
    score,
    too_few_to_say,
    write_table,
)

pytest.importorskip("torch_fidelity")


def normal(n: int, d: int, seed: int, mean: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    return mean + scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def whitened(n: int, d: int, seed: int) -> torch.Tensor:
    """Rows whose sample mean is 0 and sample covariance the identity, exactly."""
    x = normal(n, d, seed).double()
    x = x - x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T).view(d, d))).T


def test_the_frechet_distance_of_gaussians_is_the_closed_form():
    """‖Δμ‖² + Σ(σ₁ - σ₂)² for diagonal covariances; sample moments are made exact, so the answer is."""
    first, second = whitened(200, 4, 0), whitened(300, 4, 1)
    deviations = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    shift = torch.tensor([1.0, 0.0, -2.0, 0.5], dtype=torch.float64)
    expected = float(shift.square().sum() + (deviations - 1).square().sum())
    assert frechet_distance(first, second * deviations + shift) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)


def test_the_frechet_distance_of_correlated_features_is_scipys():
    from scipy.linalg import sqrtm

    x, y = normal(400, 5, 2) @ normal(5, 5, 3), normal(500, 5, 4) @ normal(5, 5, 5) + 0.3
    a, b = np.cov(x.double().numpy(), rowvar=False), np.cov(y.double().numpy(), rowvar=False)
    expected = ((x.double().mean(0) - y.double().mean(0)) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet_distance(x, y) == pytest.approx(float(expected), rel=1e-8)


def test_a_frechet_distance_that_is_no_number_does_not_pass_for_none_at_all(monkeypatch):
    from torch_fidelity import metric_fid

    monkeypatch.setattr(metric_fid, "fid_statistics_to_metric", lambda *_: {metric_fid.KEY_METRIC_FID: math.nan})
    assert math.isnan(frechet_distance(torch.rand(4, 2), torch.rand(4, 2)))


def test_one_feature_is_enough():
    assert frechet_distance(whitened(50, 1, 0), whitened(60, 1, 1) * 3 + 2) == pytest.approx(4 + 4, rel=1e-9)


def test_metrics_are_those_of_torch_fidelity_itself():
    """The library's own functions on the same stored features, written out here with its defaults."""
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

    x, y, logits = normal(1200, 6, 0), normal(1500, 6, 1, 0.2), normal(1200, 7, 2)
    fid = metric_fid.fid_statistics_to_metric(
        metric_fid.fid_features_to_statistics(x.double()), metric_fid.fid_features_to_statistics(y.double()), False
    )
    kid = metric_kid.kid_features_to_metric(x, y, kid_subset_size=600, rng_seed=0, verbose=False)
    prc = metric_prc.prc_features_to_metric(x, y, verbose=False, save_cpu_ram=False)
    isc = metric_isc.isc_features_to_metric(logits, 10, True, 0)
    found = score(FeatureTable(x, logits), FeatureTable(y))
    assert found["fd"] == pytest.approx(fid["frechet_inception_distance"], rel=1e-9)
    assert found["kid_mean"] == pytest.approx(kid["kernel_inception_distance_mean"], rel=1e-6)
    assert found["precision"] == pytest.approx(prc["precision"], abs=1e-9)
    assert found["recall"] == pytest.approx(prc["recall"], abs=1e-9)
    assert found["is_mean"] == pytest.approx(isc["inception_score_mean"], rel=1e-9)


def test_moments_in_blocks_are_the_librarys_statistics():
    from torch_fidelity.metric_fid import fid_features_to_statistics

    x = normal(2345, 6, 0, mean=3.0)
    found, theirs = moments(x), fid_features_to_statistics(x.double())
    np.testing.assert_allclose(found["mu"], theirs["mu"], rtol=1e-12)
    np.testing.assert_allclose(found["sigma"], theirs["sigma"], rtol=1e-9, atol=1e-12)


def test_precision_and_recall_by_hand():
    """Points on a line, k = 3: the reference's radii reach 3, so a sample 3 away is in and one 4 away is out."""
    reference = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    samples = torch.tensor([[6.0], [7.1], [20.0], [21.0], [22.0], [23.0]])
    precision, _ = precision_recall(samples, reference)
    assert precision == pytest.approx(1 / 6)
    assert precision_recall(reference, reference) == (1.0, 1.0)
    assert precision_recall(reference + 1000, reference) == (0.0, 0.0)


def test_two_halves_of_one_set_are_near_in_kernel_distance():
    """Unbiased: |mean| below 5 standard deviations of its own subsets' mean would fail once in a million runs."""
    x = normal(4000, 8, 3)
    mean, deviation = kernel_distance(x[:2000], x[2000:])
    assert abs(mean) < 5 * deviation
    far, _ = kernel_distance(x[:2000], x[2000:] + 1)
    assert far > 20 * abs(mean)


def test_the_inception_score_knows_its_ends():
    """All alike: 1.  Sure, and all 5 classes equally often in each split: 5."""
    assert inception_score(torch.zeros(100, 5))[0] == pytest.approx(1.0)
    sure = 50.0 * torch.nn.functional.one_hot(torch.arange(5000) % 5, 5).float()
    assert inception_score(sure)[0] == pytest.approx(5.0, rel=0.02)


def test_diversity_is_one_for_the_reference_and_none_for_copies():
    x = normal(500, 4, 0)
    assert score(FeatureTable(x), FeatureTable(x), ["diversity"]) == {"diversity": 1.0}
    assert score(FeatureTable(x[:1].expand(500, 4)), FeatureTable(x), ["diversity"])["diversity"] == 0.0
    assert mean_distance(x) == pytest.approx(math.sqrt(2 * 4) * 0.94, rel=0.03)  # of two normal vectors in 4 dimensions


def test_batches_do_not_show_in_a_table():
    class Mean:
        sha256, dim, name = "0", 3, "means"

        def __call__(self, images):
            from bld.evaluation.features import Features

            return Features(images.float().mean((2, 3)), None)

    images = torch.randint(0, 256, (20, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(extract(images.split(7), Mean()).features, extract(images.split(20), Mean()).features)


def test_a_table_comes_back_and_a_damaged_one_is_a_sentence(tmp_path):
    table = FeatureTable(normal(5, 3, 0), normal(5, 2, 1))
    write_table(tmp_path / "a.npz", table)
    again = read_table(tmp_path / "a.npz")
    assert torch.equal(again.features, table.features) and torch.equal(again.logits, table.logits)
    whole = (tmp_path / "a.npz").read_bytes()
    for cut in (0, 10, len(whole) // 2):
        (tmp_path / "a.npz").write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"a\.npz is damaged"):
            read_table(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("metric", "n", "least"),
    [("fd", 1, 2), ("kid", 9, 10), ("is", 9, 10), ("precision", 3, 4), ("recall", 3, 4)],
)  # fmt: skip
def test_too_few_images_are_refused_with_the_number_needed(metric, n, least):
    with pytest.raises(DataError, match=rf"^{metric} .*\b{least} images.*\b{n} samples.*\b100\b"):
        score(FeatureTable(normal(n, 2, 0), normal(n, 2, 0)), FeatureTable(normal(100, 2, 1)), [metric])


def test_unknown_metrics_and_mixed_extractors_are_refused():
    with pytest.raises(SettingError, match=r"'fdd'.*'fd'\?"):
        score(FeatureTable(normal(9, 2, 0)), FeatureTable(normal(9, 2, 0)), ["fdd"])
    with pytest.raises(SettingError, match="different extractors"):
        score(FeatureTable(normal(9, 2, 0)), FeatureTable(normal(9, 3, 0)), ["fd"])
    assert "fid" not in SAMPLE_METRICS


@pytest.mark.parametrize("metric", ["fd", "kid", "is", "precision"])
def test_without_the_library_the_extra_is_named(metric, monkeypatch):
    for module in ("metric_fid", "metric_kid", "metric_isc", "metric_prc"):
        monkeypatch.setitem(sys.modules, f"torch_fidelity.{module}", None)
    table = FeatureTable(normal(50, 2, 0), normal(50, 3, 0))
    with pytest.raises(MissingPackageError, match=r"binary-latent-diffusion\[metrics\]"):
        score(table, table, [metric])


@pytest.mark.parametrize(
    ("metrics", "reference", "num", "rebuilt", "told"),
    [
        (["fd", "is", "rfd"], 5000, 5000, 100, []),
        (["fd", "precision"], 64, 5000, 0, ["fd: only 64 images for 64 features"]),
        (["rfd"], 5000, 5000, 64, ["rfd: only 64 images for 64 features"]),
        (["is"], 5000, 99, 0, ["is: each of the 10 splits has 9 images for 10 classes"]),
        (["precision"], 4, 4, 4, []),
    ],
)
def test_metrics_of_too_few_images_say_so(metrics, reference, num, rebuilt, told):
    judge = SimpleNamespace(dim=64, classes=[str(i) for i in range(10)])
    found = too_few_to_say(reference, metrics, judge, num, rebuilt)
    assert len(found) == len(told) and all(line.startswith(words) for line, words in zip(found, told, strict=True))
    assert too_few_to_say(reference, metrics, None, num, rebuilt) == []
    unnamed = SimpleNamespace(dim=64, classes=())
    assert bool(too_few_to_say(5000, ["is"], unnamed, 9999)) and not too_few_to_say(5000, ["is"], unnamed, 10000)


def test_an_inception_score_is_at_most_the_images_of_a_split():
    sure = 50 * torch.nn.functional.one_hot(torch.arange(100) % 10, 10).float()
    assert inception_score(sure[:10])[0] == pytest.approx(1.0) and inception_score(sure[:30])[0] <= 3.0001


def test_the_spread_of_the_kernel_distance_does_not_vanish_with_few_images():
    """Subsets of as many images as there are would all be the same."""
    x, y = normal(300, 8, 0), normal(300, 8, 1)
    mean, std = kernel_distance(x, y)
    halves = [kernel_distance(x[part], y[part])[0] for part in (slice(0, 150), slice(150, None))]
    assert std > 0.1 * abs(halves[0] - halves[1]) and abs(mean - sum(halves) / 2) < 5 * std

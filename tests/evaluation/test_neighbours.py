"""Copies are found at distance 0; everything else as a full comparison finds it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bld.data import ImageSet, Preprocessing
from bld.errors import SettingError
from bld.evaluation.neighbours import Neighbours, nearest, nearest_by


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return ImageSet.open("digits", Preprocessing(8))


@pytest.fixture(scope="module")
def mirroring() -> ImageSet:
    """The digits of a training that is shown them mirrored too."""
    return ImageSet.open("digits", Preprocessing(8, flip=True))


class Pixels(torch.nn.Module):
    """Features far from the origin, as those of networks are: the pixels, far moved."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).float() / 255 + 100


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("features") / "pixels.pt"
    torch.jit.script(Pixels()).save(str(path))
    return str(path)


def search(by: str, samples: torch.Tensor, images: ImageSet, k: int) -> Neighbours:
    return nearest(samples, images, k) if by == "pixels" else nearest_by(by, samples, images, k)


def test_planted_copies_are_found_at_distance_zero(digits: ImageSet):
    planted = [3, 700, 1796]
    found = nearest(digits.centre(planted), digits, k=3)
    assert found.indices[:, 0].tolist() == planted
    assert found.distances[:, 0].tolist() == [0, 0, 0]
    assert (found.distances[:, 1:] > 0).all()


def test_neighbours_are_those_of_a_full_comparison_whatever_the_batch(digits: ImageSet):
    samples = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    everything = digits.centre(range(len(digits)))
    full = ((samples[:, None] - everything) / 2).square().mean((2, 3, 4)).sqrt().sort(1)
    for batch in (100, 5000):
        found = nearest(samples, digits, k=5, batch=batch)
        assert torch.allclose(found.distances, full.values[:, :5], atol=1e-6)
        assert found.indices.tolist() == full.indices[:, :5].tolist()


def test_black_and_white_are_at_distance_one(image_folder):
    folder = image_folder(3)
    images = ImageSet.open(folder, Preprocessing(8))
    images.pixels[:] = 0
    assert nearest(torch.ones(1, 3, 8, 8), images, k=1).distances.item() == pytest.approx(1)


def test_impossible_k_and_other_sizes_are_refused(digits: ImageSet):
    few = digits.subset([0, 1])
    with pytest.raises(SettingError, match=r"\bk\b.* 1 to .*\(2\), not 3\b"):
        nearest(torch.zeros(1, 3, 8, 8), few, k=3)
    with pytest.raises(SettingError, match="3×8×8"):
        nearest(torch.zeros(1, 3, 16, 16), few, k=1)


@pytest.mark.parametrize("by", ["pixels", "features"])
def test_mirrored_copies_are_copies_where_the_training_mirrors_and_nowhere_else(by, features, digits, mirroring):
    by, planted = features if by == "features" else by, [3, 700, 1796]
    copies = torch.cat([digits.centre(planted), digits.centre(planted).flip(-1)])
    found = search(by, copies, mirroring, 2)
    assert found.indices[:, 0].tolist() == planted * 2
    assert found.distances[:, 0].tolist() == [0] * 6 and (found.distances[:, 1] > 0).all()
    assert found.mirrored[:, 0].tolist() == [False] * 3 + [True] * 3
    for number, copy in enumerate(copies):
        assert torch.equal(found.images(mirroring, number)[0], copy)
    plain = search(by, copies, digits, 2)
    assert (plain.distances[3:] > 0).all() and not plain.mirrored.any()
    assert torch.equal(plain.images(digits, 3), digits.centre(plain.indices[3]))


@pytest.mark.parametrize("by", ["pixels", "features"])
def test_the_distance_is_that_to_the_nearer_of_an_image_and_its_mirror(by, features, mirroring):
    few = mirroring.subset(range(300))
    samples = (torch.randint(0, 256, (4, 3, 8, 8), generator=torch.Generator().manual_seed(1)) / 127.5) - 1
    images = few.centre(range(300))
    each = [((samples[:, None] - seen) / 2).square().flatten(2) for seen in (images, images.flip(-1))]
    both = torch.stack([part.mean(2) if by == "pixels" else part.sum(2) for part in each]).sqrt()
    full = both.amin(0).sort(1)
    found = search(features if by == "features" else by, samples, few, 5)
    assert torch.allclose(found.distances, full.values[:, :5], atol=1e-4)
    assert found.indices.tolist() == full.indices[:, :5].tolist()
    assert found.mirrored.tolist() == (both[1] < both[0]).gather(1, found.indices).tolist()


@pytest.mark.parametrize("count", [20, 60])
def test_copies_are_at_feature_distance_zero_however_many_samples_there_are(
    count: int, features: str, digits: ImageSet
):
    """By |a|² + |b|² - 2ab, far from the origin, they would not be."""
    found = nearest_by(features, digits.centre(range(count)), digits, k=1)
    assert found.indices.flatten().tolist() == [*range(count)]
    assert found.distances.unique().tolist() == [0]

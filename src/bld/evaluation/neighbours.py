"""The training images nearest to samples, which show whether a prior copies its data.

Distance is Euclidean, pixel by pixel: it finds copies, but two pictures of one motif, shifted by a few pixels, are far
apart. `nearest_by` measures by LPIPS or by any extractor's features instead.

Where the preprocessing mirrors, the prior was trained on each image and its mirror: the nearer of the two counts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from bld.data import ImageSet, to_uint8, to_unit
from bld.errors import SettingError
from bld.evaluation.features import FeatureExtractor, features_of, load_extractor
from bld.runtime.precision import in_float32

if TYPE_CHECKING:
    from bld.evaluation.metrics.lpips import PerceptualDistance

SPARE = 8  # candidates beyond k, so that rounding in the fast search cannot cost a neighbour its place


class Neighbours(NamedTuple):
    """The k nearest images of each of n samples, nearest first.

    Attributes:
        indices: int64 (n, k), into the image set.
        distances: float32 (n, k).
        mirrored: bool (n, k), whether an image's mirror is the nearer; False where the preprocessing does not mirror.
    """

    indices: Tensor
    distances: Tensor
    mirrored: Tensor

    def images(self, image_set: ImageSet, sample: int) -> Tensor:
        """The k images of a sample as they are nearest to it, (k, 3, S, S) in [-1, 1], of the set that was searched."""
        images, mirrored = image_set.centre(self.indices[sample]), self.mirrored[sample]
        return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)


@torch.no_grad()
@in_float32()
def nearest(samples: Tensor, image_set: ImageSet, k: int = 5, batch: int = 512) -> Neighbours:
    """The k images of the set nearest to each sample, of centre views and, with `preprocessing.flip`, their mirrors.

    The distance is the root of the mean squared difference of pixels in [0, 1], that is L2 over √(3·S²): 0 for a copy,
    1 for black against white, whatever the size.

    Args:
        samples: (n, 3, S, S) in [-1, 1].
        image_set: the images that are searched.
        k: neighbours of each sample.
        batch: images held in memory at a time.

    Raises:
        SettingError: for k outside 1 … len(image_set), or samples of another size.
    """
    refuse_k(k, image_set)
    size = image_set.preprocessing.image_size
    if tuple(samples.shape[1:]) != (3, size, size):
        raise SettingError(f"The images are 3×{size}×{size}, the samples {tuple(samples.shape[1:])}.")
    # A mirrored sample is as far from an image as the sample is from the image's mirror.
    queries = torch.stack([_pixels(seen) for seen in _views(samples.cpu(), image_set)], 1)
    candidates = _candidates(queries, image_set, min(k + SPARE, len(image_set)), batch)
    found = []
    for query, own in zip(queries, candidates, strict=True):
        each = (query.unsqueeze(1) - _pixels(image_set.centre(own))).square().mean(-1).sqrt()
        exact = each.amin(0)
        order = exact.argsort(stable=True)[:k]
        found.append((own[order], exact[order], (each[-1] < each[0])[order]))
    return Neighbours(*map(torch.stack, zip(*found, strict=True)))


@torch.no_grad()
@in_float32()
def nearest_by(
    measure: str | PerceptualDistance | FeatureExtractor,
    samples: Tensor,
    image_set: ImageSet,
    k: int = 5,
    batch: int = 64,
    device: torch.device | str = "cpu",
) -> Neighbours:
    """As `nearest`, by LPIPS or by an extractor's features.

    Args:
        measure: "lpips", or the name, file or folder of an extractor (`load_extractor`), for the Euclidean distance of
            its features; or what `load_measure` makes of that.
        samples: (n, 3, S, S) in [-1, 1].
        image_set: the images that are searched.
        k: neighbours of each sample.
        batch: images that pass the network at a time.
        device: where the networks run; each image passes them once, and so does its mirror where one counts.

    Raises:
        SettingError: for k outside 1 … len(image_set), or a measure that there is not.
    """
    refuse_k(k, image_set)
    judge = load_measure(measure, device) if isinstance(measure, str) else measure
    far_from = _by_features(judge, samples) if isinstance(judge, FeatureExtractor) else _perceptually(judge, samples)
    nearer, mirrored = [], []
    for part in torch.arange(len(image_set)).split(batch):
        each = [far_from(seen) for seen in _views(image_set.uint8_centre(part), image_set)]
        nearer.append(torch.minimum(each[0], each[-1]))
        mirrored.append(each[-1] < each[0])
    distances, indices = torch.cat(nearer, 1).sort(dim=1, stable=True)
    indices = indices[:, :k]
    return Neighbours(indices, distances[:, :k].float(), torch.cat(mirrored, 1).gather(1, indices))


def refuse_k(k: int, image_set: ImageSet) -> None:
    """`SettingError` for k outside 1 … len(image_set)."""
    if not 1 <= k <= len(image_set):
        raise SettingError(f"k is 1 to the number of images ({len(image_set)}), not {k}.")


def load_measure(name: str, device: torch.device | str = "cpu") -> PerceptualDistance | FeatureExtractor:
    """What `nearest_by` measures with, of its name; `SettingError` for a measure that there is not."""
    from bld.evaluation.metrics.lpips import PerceptualDistance

    return PerceptualDistance(device) if name == "lpips" else load_extractor(name, device)


def _perceptually(distance: PerceptualDistance, samples: Tensor) -> Callable[[Tensor], Tensor]:
    """uint8 images (B, 3, S, S) → their LPIPS distances from the samples, (n, B)."""
    queries = [distance.features(one[None]) for one in samples]

    def far_from(images: Tensor) -> Tensor:
        seen = distance.features(to_unit(images))
        return torch.stack([distance.between(query, seen).cpu() for query in queries])

    return far_from


def _by_features(extractor: FeatureExtractor, samples: Tensor) -> Callable[[Tensor], Tensor]:
    """uint8 images (B, 3, S, S) → the distances of their features from those of the samples, (n, B)."""
    mine = features_of(extractor, to_uint8(samples)).features
    exactly = partial(torch.cdist, mine, compute_mode="donot_use_mm_for_euclid_dist")  # else copies are not at 0
    return lambda images: exactly(features_of(extractor, images).features)


def _views(images: Tensor, image_set: ImageSet) -> list[Tensor]:
    """As they are, and mirrored if the set's training views are."""
    return [images, images.flip(-1)] if image_set.preprocessing.flip else [images]


def _candidates(queries: Tensor, image_set: ImageSet, keep: int, batch: int) -> Tensor:
    """(n, keep) indices of the smallest |a|² + |b|² - 2ab: one matrix product a batch, up to rounding.

    queries: (n, views, 3·S²), of which the nearest view counts.
    """
    best = torch.empty((len(queries), 0))
    indices = torch.empty((len(queries), 0), dtype=torch.long)
    for start in range(0, len(image_set), batch):
        rows = torch.arange(start, min(start + batch, len(image_set)))
        images = _pixels(image_set.centre(rows))
        squared = images.square().sum(1) - 2 * (queries @ images.T).amax(1)  # |a|² is the same for all
        best = torch.cat([best, squared], 1)
        indices = torch.cat([indices, rows.expand(len(queries), -1)], 1)
        best, order = best.topk(min(keep, best.shape[1]), largest=False)
        indices = indices.gather(1, order)
    return indices.sort(1).values  # equal distances are then listed in the order of the set


def _pixels(images: Tensor) -> Tensor:
    """(B, 3, S, S) in [-1, 1] → (B, 3·S²) in [0, 1], float32."""
    return images.float().add(1).div(2).flatten(1)

"""The training images nearest to samples, which show whether a prior copies its data.

Distance is Euclidean, pixel by pixel: it finds copies, but two pictures of one motif, shifted by a few pixels, are far
apart. `nearest_by` measures by LPIPS or by any extractor's features instead.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from bld.data import ImageSet, to_uint8
from bld.errors import SettingError
from bld.runtime.precision import in_float32

SPARE = 8  # candidates beyond k, so that rounding in the fast search cannot cost a neighbour its place


class Neighbours(NamedTuple):
    """The k nearest images of each of n samples, nearest first.

    Attributes:
        indices: int64 (n, k), into the image set.
        distances: float32 (n, k).
    """

    indices: Tensor
    distances: Tensor


@torch.no_grad()
@in_float32()
def nearest(samples: Tensor, image_set: ImageSet, k: int = 5, batch: int = 512) -> Neighbours:
    """The k images of the set (centre views) nearest to each sample.

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
    if not 1 <= k <= len(image_set):
        raise SettingError(f"k is 1 to the number of images ({len(image_set)}), not {k}.")
    size = image_set.preprocessing.image_size
    if tuple(samples.shape[1:]) != (3, size, size):
        raise SettingError(f"The images are 3×{size}×{size}, the samples {tuple(samples.shape[1:])}.")
    queries = _pixels(samples.cpu())
    candidates = _candidates(queries, image_set, min(k + SPARE, len(image_set)), batch)
    indices, distances = [], []
    for query, own in zip(queries, candidates, strict=True):
        exact = (query - _pixels(image_set.centre(own))).square().mean(1).sqrt()
        order = exact.argsort(stable=True)[:k]
        indices.append(own[order])
        distances.append(exact[order])
    return Neighbours(torch.stack(indices), torch.stack(distances))


@torch.no_grad()
@in_float32()
def nearest_by(
    measure: str,
    samples: Tensor,
    image_set: ImageSet,
    k: int = 5,
    batch: int = 64,
    device: torch.device | str = "cpu",
) -> Neighbours:
    """As `nearest`, by LPIPS or by an extractor's features.

    Args:
        measure: "lpips", or the name, file or folder of an extractor (`load_extractor`), for the Euclidean distance of
            its features.
        samples: (n, 3, S, S) in [-1, 1].
        image_set: the images that are searched.
        k: neighbours of each sample.
        batch: images that pass the network at a time.
        device: where the networks run; each image passes them once.

    Raises:
        SettingError: for k outside 1 … len(image_set), or a measure that there is not.
    """
    if not 1 <= k <= len(image_set):
        raise SettingError(f"k is 1 to the number of images ({len(image_set)}), not {k}.")
    rows = torch.arange(len(image_set)).split(batch)
    if measure == "lpips":
        from bld.evaluation.metrics.lpips import PerceptualDistance

        distance = PerceptualDistance(device)
        queries = [distance.features(one[None]) for one in samples]
        far = []
        for part in rows:
            seen = distance.features(image_set.centre(part))
            far.append(torch.stack([distance.between(query, seen).cpu() for query in queries]))
    else:
        from bld.evaluation.features import load_extractor

        extractor = load_extractor(measure, device)
        mine = extractor(to_uint8(samples)).features
        exactly = partial(torch.cdist, mine, compute_mode="donot_use_mm_for_euclid_dist")  # else copies are not at 0
        far = [exactly(extractor(image_set.uint8_centre(part)).features) for part in rows]
    distances, indices = torch.cat(far, 1).sort(dim=1, stable=True)
    return Neighbours(indices[:, :k], distances[:, :k].float())


def _candidates(queries: Tensor, image_set: ImageSet, keep: int, batch: int) -> Tensor:
    """(n, keep) indices of the smallest |a|² + |b|² - 2ab: one matrix product a batch, up to rounding."""
    best = torch.empty((len(queries), 0))
    indices = torch.empty((len(queries), 0), dtype=torch.long)
    for start in range(0, len(image_set), batch):
        rows = torch.arange(start, min(start + batch, len(image_set)))
        images = _pixels(image_set.centre(rows))
        squared = images.square().sum(1) - 2 * queries @ images.T  # |a|² is the same for all
        best = torch.cat([best, squared], 1)
        indices = torch.cat([indices, rows.expand(len(queries), -1)], 1)
        best, order = best.topk(min(keep, best.shape[1]), largest=False)
        indices = indices.gather(1, order)
    return indices.sort(1).values  # equal distances are then listed in the order of the set


def _pixels(images: Tensor) -> Tensor:
    """(B, 3, S, S) in [-1, 1] → (B, 3·S²) in [0, 1], float32."""
    return images.float().add(1).div(2).flatten(1)

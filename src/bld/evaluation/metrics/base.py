"""What a metric is: a function in a file here, made known by `of_samples` or `of_reconstructions`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class FeatureTable:
    """What an extractor sees of a set of images.

    Attributes:
        features: (n, D) float32.
        logits: (n, K) float32, or None.
    """

    features: Tensor
    logits: Tensor | None = None

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True)
class Sets:
    """Two sets of images by their features.

    Attributes:
        samples: features of the samples.
        reference: features of the real images.
    """

    samples: FeatureTable
    reference: FeatureTable
    _found: dict[Any, Any] = field(default_factory=dict)

    def once(self, function: Callable[[Tensor, Tensor], T]) -> T:
        """function(samples' features, reference's), computed once for all metrics that ask for it."""
        if function not in self._found:
            self._found[function] = function(self.samples.features, self.reference.features)
        return self._found[function]


class SampleMetric(NamedTuple):
    """A metric of samples, or several that are measured together.

    Attributes:
        measure: sets → the metrics by name; none where the features lack what it needs.
        least: images that it needs on both sides.
        needs_logits: whether it needs the logits of an extractor that knows classes.
    """

    measure: Callable[[Sets], dict[str, float]]
    least: int
    needs_logits: bool = False


Pairwise = Callable[[Tensor, Tensor], Tensor]
"""(images, reconstructions), (B, 3, H, W) in [-1, 1] → a number for each, (B,)."""

SAMPLE_METRICS: dict[str, SampleMetric] = {}
RECONSTRUCTION_METRICS: dict[str, Callable[[torch.device], Pairwise]] = {}


def of_samples(
    name: str, least: int = 2, needs_logits: bool = False
) -> Callable[[Callable[[Sets], dict[str, float]]], Any]:
    """Make known a metric of samples' features.

    Args:
        name: as it is asked for.
        least: images that it needs on both sides.
        needs_logits: whether it needs the logits of an extractor that knows classes.
    """

    def known(measure: Callable[[Sets], dict[str, float]]) -> Callable[[Sets], dict[str, float]]:
        SAMPLE_METRICS[name] = SampleMetric(measure, least, needs_logits)
        return measure

    return known


def of_reconstructions(name: str) -> Callable[[Callable[[torch.device], Pairwise]], Any]:
    """Make known a metric of an image and its reconstruction, which is made for a device.

    Args:
        name: as it is asked for; its mean and, as name_std, its spread are given.
    """

    def known(make: Callable[[torch.device], Pairwise]) -> Callable[[torch.device], Pairwise]:
        RECONSTRUCTION_METRICS[name] = make
        return make

    return known

"""How near samples lie to training images, beside images that nobody was trained on.

A copy is near to one training image and as far from the others as they are from each other.  An image that is blurred
or pale is near to many: its distance to the nearest says nothing of copying, but that over its distance to the tenth
nearest does.  Copies of images that lie ten times among the training images, alike but for little, are not found.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median

import torch
from torch import Tensor

from bld.data import ImageSet, to_unit
from bld.evaluation.neighbours import Neighbours, nearest
from bld.experiments.runner import Runner
from bld.experiments.sampled import Sampling

COUNT, UNSEEN, CROWD = 128, 2000, 10
UNSEEN_COPIES = 0.01  # of unseen images, how many lie as near to one training image as what counts as a copy


@dataclass(frozen=True)
class Nearness:
    """How near images lie to training images, image by image.

    Where the training shows images mirrored too, the nearer of an image and its mirror counts.

    Attributes:
        distances: to the nearest: root mean squared differences of pixels in [0, 1].
        alone: the same over the distance to the tenth nearest: near 0 for a copy, near 1 for an image that is as far
            from many, whether it is new, blurred or pale.
    """

    distances: list[float]
    alone: list[float]

    @classmethod
    def of(cls, found: Neighbours) -> Nearness:
        """Of what was found, of whose columns the last is the crowd."""
        nearest, crowd = found.distances[:, 0].double(), found.distances[:, -1].double()
        return cls(*(values.round(decimals=5).tolist() for values in (nearest, nearest / crowd.clamp(min=1e-12))))


@dataclass(frozen=True)
class Unseen:
    """Images that nobody was trained on.

    Attributes:
        plain: as they are.
        rebuilt: from their codes, which carries the tokenizer's loss as samples do.
    """

    plain: Nearness
    rebuilt: Nearness

    def copies(self, samples: Nearness) -> int:
        """How many samples lie nearer to one training image than all but 1% of these, rebuilt."""
        line = sorted(self.rebuilt.alone)[int(UNSEEN_COPIES * len(self.rebuilt.alone))]
        return sum(alone < line for alone in samples.alone)


def neighbours_of(images: Tensor, train: ImageSet) -> Neighbours:
    """The ten nearest training images of each of (n, 3, S, S)."""
    return nearest(images, train, min(CROWD, len(train)))


def samples_of(runner: Runner, prior: str, seed: int, sampling: Sampling, count: int) -> Tensor:
    """A prior's first samples (count, 3, S, S) in [-1, 1]."""
    batches = runner.batches(runner.pipeline(prior, seed), sampling, count)
    return to_unit(torch.cat([batch for batch, _ in batches]))


def unseen_nearness(runner: Runner, prior: str, seed: int) -> Unseen:
    """Of unseen images, beside what was trained with this seed; rebuilt by this prior's tokenizer."""
    key = runner.tokenizer_key(runner.tokenizer_of(prior), seed, unseen_images=UNSEEN, crowd=CROWD)

    def compute() -> dict[str, dict[str, list[float]]]:
        train, unseen = runner.split(seed)[0], runner.unseen(seed)
        images = unseen.centre(torch.linspace(0, len(unseen) - 1, min(UNSEEN, len(unseen))).long())
        pipeline = runner.pipeline(prior, seed)
        rebuilt = [pipeline.reconstruct((x + 1) / 2, "pt") * 2 - 1 for x in images.split(COUNT)]
        sides = {"plain": images, "rebuilt": torch.cat(rebuilt)}
        return {side: asdict(Nearness.of(neighbours_of(x, train))) for side, x in sides.items()}

    return Unseen(**{side: Nearness(**found) for side, found in runner.kept("unseen", key, compute).items()})


def novelty(runner: Runner, prior: str, seed: int, sampling: Sampling) -> dict[str, float]:
    """Whether samples are new, which a Fréchet distance does not tell: training images are as near to unseen ones.

    Returns:
        "novelty": median distance of samples to the nearest training image, over that of unseen images rebuilt from
        their codes: about 1 for new images, less for copies, and for samples that are blurred or pale.
        "copies": the share of samples that lie nearer to one training image, for their distance to the tenth nearest,
        than all but 1% of unseen images rebuilt: 0.01 for new images, 1 for copies.
    """
    key = runner.key(prior, seed, samples=COUNT, sampling=asdict(sampling), unseen_images=UNSEEN, crowd=CROWD)

    def compute() -> dict[str, float]:
        samples, unseen = samples_of(runner, prior, seed, sampling, COUNT), unseen_nearness(runner, prior, seed)
        found = Nearness.of(neighbours_of(samples, runner.split(seed)[0]))
        return {
            "novelty": median(found.distances) / median(unseen.rebuilt.distances),
            "copies": unseen.copies(found) / len(samples),
        }

    return runner.kept("novelty", key, compute)

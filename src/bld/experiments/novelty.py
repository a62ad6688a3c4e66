"""How near samples lie to training images, beside images that nobody was trained on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median

import torch
from torch import Tensor

from bld.data import to_unit
from bld.evaluation.neighbours import Neighbours, nearest
from bld.experiments.runner import Runner
from bld.experiments.sampled import Sampling

COUNT = 128


@dataclass(frozen=True)
class Nearness:
    """Root mean squared differences of pixels in [0, 1] to the nearest training image, image by image.

    Where the training shows images mirrored too, the nearer of an image and its mirror counts.

    Attributes:
        samples: of samples.
        unseen: of unseen images, as they are.
        rebuilt: of the same, rebuilt from their codes, which carries the tokenizer's loss as samples do.
        images: the samples (n, 3, S, S).
        neighbours: their nearest training images.
    """

    samples: list[float]
    unseen: list[float]
    rebuilt: list[float]
    images: Tensor
    neighbours: Neighbours


def nearness(runner: Runner, prior: str, seed: int, sampling: Sampling, neighbours: int = 1) -> Nearness:
    """Of a prior's first samples and as many unseen images."""
    pipeline, (train, _) = runner.pipeline(prior, seed), runner.split(seed)
    images = to_unit(torch.cat([batch for batch, _ in runner.batches(pipeline, sampling, COUNT)]))
    unseen = runner.unseen(seed)
    others = unseen.centre(torch.linspace(0, len(unseen) - 1, min(COUNT, len(unseen))).long())
    rebuilt = pipeline.reconstruct((others + 1) / 2, "pt") * 2 - 1
    found = nearest(images, train, neighbours)
    own, usual = (nearest(x, train, 1).distances[:, 0].tolist() for x in (others, rebuilt))
    return Nearness(found.distances[:, 0].tolist(), own, usual, images, found)


def novelty(runner: Runner, prior: str, seed: int, sampling: Sampling) -> float:
    """Median distance of samples to the nearest training image, over that of unseen images rebuilt from their codes.

    About 1 for new images; well below it for a prior that repeats what it was trained on, which a Fréchet distance
    rewards: training images are as near to unseen ones as any others.
    """
    drawn = {"samples": COUNT, "sampling": asdict(sampling)}

    def compute() -> dict[str, float]:
        found = nearness(runner, prior, seed, sampling)
        return {"novelty": median(found.samples) / median(found.rebuilt)}

    return float(runner.kept("novelty", runner.key(prior, seed, **drawn), compute)["novelty"])

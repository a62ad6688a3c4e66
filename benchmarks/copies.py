"""What counts as a copy of a training image (Figure O, Table 5)?  Prints a table and writes benchmarks/copies.json.

    python benchmarks/copies.py --data cifar10-train.zip --test cifar10-test.zip

Images that nobody was trained on and images of the training, each as they are and spoilt: blurred, paler, with noise.
Copies have to be found however they are spoilt, and unseen images must not be taken for some because they are blurred.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from bld.data import ImageSet, Preprocessing
from bld.experiments.novelty import UNSEEN, Nearness, Unseen, neighbours_of

COUNT = 500


def blurred(images: Tensor, width: int) -> Tensor:
    return avg_pool2d(images, width, 1, width // 2, count_include_pad=False)


SPOILT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "as they are": lambda images, mean: images,
    "blurred, 3×3": lambda images, mean: blurred(images, 3),
    "blurred, 5×5": lambda images, mean: blurred(images, 5),
    "three quarters of the contrast": lambda images, mean: mean + 0.75 * (images - mean),
    "half as much contrast": lambda images, mean: mean + 0.5 * (images - mean),
    "noise of 0.05": lambda images, mean: (
        images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    ),
}
"""Pixels in [-1, 1], so that 0.1 here is 0.05 of what lies between black and white."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--size", type=int, default=32)
    args = parser.parse_args()
    train, test = (ImageSet.open(where, Preprocessing(args.size)) for where in (args.data, args.test))

    def spread(images: ImageSet, count: int) -> Tensor:
        return images.centre(torch.linspace(0, len(images) - 1, count).long())

    near = Nearness.of(neighbours_of(spread(test, UNSEEN), train))
    usual, mean = Unseen(near, near), spread(train, 5000).mean(0)
    rows = []
    for name, images in (("unseen images", spread(test, COUNT)), ("training images", spread(train, COUNT))):
        for how, spoil in SPOILT.items():
            found = Nearness.of(neighbours_of(spoil(images, mean), train))
            rows.append(
                {
                    "images": f"{name}, {how}",
                    "distance_over_unseen": round(median(found.distances) / median(near.distances), 3),
                    "copies_percent": round(100 * usual.copies(found) / COUNT, 1),
                }
            )
            print("{images:<40}{distance_over_unseen:>8.3f}{copies_percent:>8.1f}%".format(**rows[-1]), flush=True)
    found = {"data": Path(args.data).name, "train": len(train), "count": COUNT, "unseen": UNSEEN, "rows": rows}
    Path(__file__).with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""What priors do with given images: Figure N, inpainting, and Figure O, nearest training images."""

from __future__ import annotations

from statistics import fmean, median

import torch
from torch import Tensor

from bld.data import make_grid
from bld.evaluation.neighbours import nearest
from bld.experiments.page import Findings, Table
from bld.experiments.runner import Runner
from bld.experiments.verdict import Comparison

FILLINGS = 4

# -- Figure N ---------------------------------------------------------------------------------------------


def _masks(size: int) -> dict[str, Tensor]:
    """True where pixels are to be made, (S, S): the paper's kinds of pattern."""
    q = size // 4
    whole = torch.zeros(size, size, dtype=torch.bool)
    lower, right, centre, border = (whole.clone() for _ in range(4))
    lower[size // 2 :] = True
    right[:, size // 2 :] = True
    centre[q : size - q, q : size - q] = True
    border[:] = True
    border[q : size - q, q : size - q] = False
    return {"lower half": lower, "right half": right, "centre": centre, "all but the centre": border}


def figure_n(runner: Runner, seeds: int) -> Findings:
    """Inpainting: what is made inside a mask, against the truth, against a fill that ignores the image."""
    images = runner.unseen(0)
    count = min(24, len(images))
    originals = images.centre(torch.linspace(0, len(images) - 1, count).long())
    train = runner.split(0)[0].centre(range(min(512, len(runner.split(0)[0]))))
    pipeline = runner.pipeline("bernoulli", 0)
    rows, shown, comparisons = [], [], []
    for name, hole in _masks(images.preprocessing.image_size).items():
        own, mean_fill, others, spread = [], [], [], []
        for i, image in enumerate(originals):
            out = pipeline.inpaint((image + 1) / 2, hole, FILLINGS, None, 16, generator=i, output_type="pt", resample=2)
            filled = out.images * 2 - 1
            own.append(_error(filled, image, hole))
            mean_fill.append(_error(train.mean(0)[None], image, hole))
            others.append(_error(train, image, hole))
            spread.append(float(filled[:, :, hole].std(0).mean()))
            if i < 3:
                masked = image.clone()
                masked[:, hole] = 0.0
                shown += [image, masked, *filled]
        comparisons.append(
            Comparison(f"{name}: nearer to the truth than other images' content", own, others, paired=True)
        )
        rows.append([name, *(f"{fmean(v):.4f}" for v in (own, others, mean_fill)), f"{fmean(spread):.3f}"])
    grid = make_grid(torch.stack(shown), columns=3 * (2 + FILLINGS), scale=runner.scale.enlarged)
    return Findings(
        "Figure N: inpainting with different masks",
        "given part of an image, the prior fills the rest in diverse ways that fit what is given.",
        [
            (
                f"{count} unseen images, {FILLINGS} fillings each, 16 steps taken twice: squared "
                f"error inside the mask, pixels in "
                "[-1, 1]; diversity is the standard deviation between fillings.",
                Table(
                    ["mask", "error of our fillings ↓", "of other images' content", "of the mean image", "diversity"],
                    rows,
                ),
            )
        ],
        [
            (
                f"figureN-{runner.scale.label}.png",
                "Three images a row, each whole, masked, and filled four times; one mask a row",
                grid,
            )
        ],
        comparisons=comparisons,
        basis=f"over {count} images, with one training",
        notes=[
            "The paper shows pictures alone. Other images' content is what a sampler that ignored the given part would "
            "draw at best. (An earlier rule compared with the mean training image, whose error is half of that: a "
            "perfect sampler can exceed it, as a sample is no mean.)",
            "The comparisons are over images, not seeds.",
        ],
    )


def _error(filled: Tensor, image: Tensor, hole: Tensor) -> float:
    return float((filled[:, :, hole] - image[:, hole]).square().mean())


# -- Figure O ---------------------------------------------------------------------------------------------


def figure_o(runner: Runner, seeds: int) -> Findings:
    """Ten nearest training images of samples, and whether samples are nearer to them than unseen images are."""
    pipeline, (train, _) = runner.pipeline("bernoulli", 0), runner.split(0)
    samples = pipeline(128, None, 64, 0.9, generator=0, output_type="pt", batch_size=128).images * 2 - 1
    unseen = runner.unseen(0)
    others = unseen.centre(torch.linspace(0, len(unseen) - 1, min(128, len(unseen))).long())
    rebuilt = pipeline.reconstruct((others + 1) / 2, "pt") * 2 - 1
    own = nearest(others, train, 1).distances[:, 0].tolist()
    found = nearest(samples, train, 10)
    ours = found.distances[:, 0].tolist()
    usual = nearest(rebuilt, train, 1).distances[:, 0].tolist()
    shown = [part for i in range(6) for part in (samples[i : i + 1], train.centre(found.indices[i]))]
    grid = make_grid(torch.cat(shown), columns=11, scale=runner.scale.enlarged)
    table = Table(
        ["", "median distance to the nearest training image", "lowest"],
        [
            ["samples", f"{median(ours):.4f}", f"{min(ours):.4f}"],
            ["unseen images", f"{median(own):.4f}", f"{min(own):.4f}"],
            ["unseen images, rebuilt from their codes", f"{median(usual):.4f}", f"{min(usual):.4f}"],
        ],
    )
    return Findings(
        "Figure O: nearest training images",
        "samples are new: the model does not repeat its training images.",
        [
            (
                f"Root mean squared difference of pixels in [0, 1]; {len(ours)} samples, "
                f"{len(train):,} training images.",
                table,
            )
        ],
        [
            (
                f"figureO-{runner.scale.label}.png",
                "Samples on the left, their ten nearest training images in the row",
                grid,
            )
        ],
        basis=f"over {len(ours)} samples of one training",
        comparisons=[
            Comparison(f"samples are no nearer to training images than 0.8 times what {what} are", low, ours)
            for what, low in (
                ("unseen images", [0.8 * x for x in own]),
                ("unseen images rebuilt from their codes", [0.8 * x for x in usual]),
            )
        ],
        notes=[
            "The paper compares by LPIPS, this page by pixels, where a blurred sample is near to nothing in particular:"
            " so unseen images are compared as they are, and rebuilt, which carries the tokenizer's loss. The "
            "comparison is over images, not seeds."
        ],
    )

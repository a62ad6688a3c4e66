"""The experiments that are not rows of samples; of those, Table 6 (seconds) and Figure 5 (what bits draw)."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bld.data import make_grid
from bld.experiments.comparison import Comparison
from bld.experiments.formats import table4
from bld.experiments.given_images import figure_n, figure_o
from bld.experiments.page import Findings, Table
from bld.experiments.rates import rates
from bld.experiments.runner import Runner
from bld.experiments.sampled import Sampling
from bld.training.order import evenly

TIMED, LOOKED_AT = 5, 64

# -- Table 6 ----------------------------------------------------------------------------------------------


def table6(runner: Runner, seeds: int) -> Findings:
    """Seconds per image, one at a time."""
    positions = runner.scale.positions
    rows = [
        ("ours, 16 steps", "bernoulli", Sampling(16)),
        ("ours, 64 steps", "bernoulli", Sampling(64)),
        (f"absorbing, {positions} steps", "absorbing", Sampling()),
        (f"autoregressive, {positions} steps", "autoregressive", Sampling()),
        ("LDM (Gaussian), 200 DDIM steps", "gaussian", Sampling(200, 1.0)),
    ]
    timed = runner.seconds([(prior, sampling) for _, prior, sampling in rows], 1, TIMED)
    seconds = {label: times for (label, _, _), times in zip(rows, timed, strict=True)}
    base = median(seconds["ours, 16 steps"])
    table = Table(
        ["", "seconds per image (median)", "lowest to highest", "times ours at 16 steps"],
        [
            [label, f"{median(t):.4f}", f"{min(t):.4f} to {max(t):.4f}", f"{median(t) / base:.2f}"]
            for label, t in seconds.items()
        ],
    )
    ldm = seconds["LDM (Gaussian), 200 DDIM steps"]
    return Findings(
        "Table 6: seconds per image",
        "sampling one image is faster than with other diffusion models, in 64 and even more in 16 steps (the paper's "
        "seconds are not in its text).",
        [(f"Batch 1, decoding included, {TIMED} runs in turns after one to warm up.", table)],
        comparisons=[
            Comparison(
                "ours at 64 steps faster than latent diffusion at 200", seconds["ours, 64 steps"], ldm, paired=True
            ),
            *(
                Comparison(
                    f"ours at 64 steps faster than {kind}", seconds["ours, 64 steps"], seconds[label], paired=True
                )
                for kind in ("absorbing", "autoregressive")
                for label in seconds
                if label.startswith(kind)
            ),
            Comparison(
                "ours at 16 steps faster than at 64", seconds["ours, 16 steps"], seconds["ours, 64 steps"], True
            ),
        ],
        basis=f"over {TIMED} runs in turns",
        values={label: {"seconds": t} for label, t in seconds.items()},
        notes=[
            "Times are of this machine and moment; ratios hold better. A step costs the same forward pass "
            "in every row but "
            "the autoregressive one, which computes one position a step from its cache.",
        ],
    )


# -- Figure 5 ---------------------------------------------------------------------------------------------


@torch.no_grad()
def figure5(runner: Runner, seeds: int) -> Findings:
    """What single bits draw: one bit of one position flipped in the codes of unseen images."""
    pipeline = runner.pipeline("bernoulli", 0)
    unseen = runner.unseen(0)
    images = unseen.centre(evenly(len(unseen), LOOKED_AT))
    codes, shape = pipeline.encode((images + 1) / 2), pipeline.tokenizer.code_shape
    before = pipeline.decode(codes, "pt")
    middle = (shape.h // 2, shape.w // 2)
    change, consistent, pictures = [], [], []
    for bit in range(shape.c):
        flipped = codes.clone()
        flipped[:, middle[0], middle[1], bit] ^= 1
        difference = pipeline.decode(flipped, "pt") - before
        sign = 1 - 2 * codes[:, middle[0], middle[1], bit].float().view(-1, 1, 1, 1)  # as if switched on
        switched = difference * sign
        change.append(float(difference.square().mean((1, 2, 3)).sqrt().mean()))
        mean = switched.mean(0)
        consistent.append(float(mean.norm() / switched.flatten(1).norm(dim=1).mean().clamp(min=1e-9)))
        pictures.append(mean / mean.abs().max().clamp(min=1e-6))
    local = _share_near(pipeline, codes, before, middle)
    order = torch.tensor(change).argsort(descending=True)
    grid = make_grid(torch.stack(pictures)[order], columns=min(16, shape.c), scale=2 * runner.scale.enlarged)
    rows = [[str(int(bit)), f"{change[bit]:.4f}", f"{consistent[bit]:.2f}"] for bit in order.tolist()]
    return Findings(
        "Figure 5: the codebook view, what single bits draw",
        "a binary code composes features: each bit adds or leaves out its own.",
        [
            (
                "Each bit of the middle position, strongest first; RMS change over the whole image, pixels in [0, 1].",
                Table(["bit", "RMS change", "alike from image to image (1: the same)"], rows),
            )
        ],
        [
            (
                f"figure5-{runner.scale.label}.png",
                f"What switching each bit on adds, mean over {len(images)} unseen images, scaled to "
                "its strongest pixel; grey is nothing; strongest bit first",
                grid,
            )
        ],
        notes=[
            f"{100 * local:.0f}% of the change (squared) falls into the position's own pixels and those one position "
            "around it: bits act locally."
        ],
        looked_at="The paper's figure is a drawing without numbers: the picture shows what bits draw here.",
    )


def _share_near(pipeline: Any, codes: Tensor, before: Tensor, middle: tuple[int, int]) -> float:
    """Part of the squared change that lies within one position around the changed one."""
    flipped = codes.clone()
    flipped[:, middle[0], middle[1]] ^= 1
    energy = (pipeline.decode(flipped, "pt") - before).square().sum((0, 1))
    f = pipeline.tokenizer.config.factor
    rows = slice(max(0, (middle[0] - 1) * f), (middle[0] + 2) * f)
    columns = slice(max(0, (middle[1] - 1) * f), (middle[1] + 2) * f)
    return float(energy[rows, columns].sum() / energy.sum().clamp(min=1e-12))


FIGURES: dict[str, tuple[str, Callable[[Runner, int], Findings]]] = {
    "table4": ("reconstruction by format of the code", table4),
    "table6": ("seconds per image", table6),
    "figure5": ("what single bits draw", figure5),
    "figureN": ("inpainting", figure_n),
    "figureO": ("nearest training images", figure_o),
    "rates": ("learning rates of the priors", rates),
}

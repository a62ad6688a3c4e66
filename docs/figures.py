"""Draw the figures of docs/how-it-works.md again: with the library itself, into docs/images/how/.

python docs/figures.py                  # the curves: no model needed
python docs/figures.py --run demo       # the pictures too, with the run that `make demo` leaves
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from torch import Tensor

import bld
from bld.data import Preprocessing, center_view, make_grid, open_images, to_unit
from bld.seeding import keyed_draws, keyed_generator

mpl.use("agg")
from matplotlib import pyplot as plt

FOLDER = Path(__file__).parent / "images" / "how"
STEPS = 64
BITS = 6  # of the codes that can be enumerated


def main() -> None:
    """Draw what can be drawn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a run on the digits; without it only the curves are drawn")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the figures")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update({
        "svg.hashsalt": "bld", "svg.fonttype": "path", "axes.spines.top": False, "axes.spines.right": False,
        "figure.constrained_layout.use": True, "legend.frameon": False, "font.size": 9,
    })  # fmt: skip
    for name, draw in CURVES.items():
        figure = draw()
        figure.savefig(args.out / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)
    if args.run is not None:
        pipe = bld.BinaryLatentDiffusionPipeline.from_pretrained(args.run)
        for name, picture in PICTURES.items():
            figure = picture(pipe)
            figure.savefig(args.out / f"{name}.png", dpi=110, metadata={"Software": None})
            plt.close(figure)


# -- curves -----------------------------------------------------------------------------------------------


def schedules() -> plt.Figure:
    """k_t of each schedule, and what becomes of a one and a zero (the paper's Figure A)."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 2.6))
    t = np.arange(STEPS + 1)
    for kind, colour in zip(("linear", "cosine", "sigmoid"), ("C0", "C1", "C2"), strict=True):
        k = bld.NoiseSchedule(kind, STEPS).k.numpy()
        left.plot(t, k, colour, label=kind)
        right.plot(t, k + (1 - k) / 2, colour)
        right.plot(t, (1 - k) / 2, colour, linestyle="--")
    left.set(title="retention $k_t$", xlabel="t", ylim=(0, 1.02), xlim=(0, STEPS))
    left.legend()
    right.set(title="$P(z_t=1)$ where $z_0=1$ (line), $z_0=0$ (dashes)", xlabel="t", ylim=(0, 1.02), xlim=(0, STEPS))
    return figure


def reverse_map() -> plt.Figure:
    """Eq. (8) as one affine map, for one step, a longer one, and the last."""
    diffusion = bld.BernoulliDiffusion(bld.NoiseSchedule("linear", STEPS))
    figure, axes = plt.subplots(figsize=(4.2, 3.2))
    f = torch.linspace(1e-6, 1 - 1e-6, 101, dtype=torch.float64)
    z_t = torch.zeros(1, len(f), 1, dtype=torch.uint8)  # where z_t = 0, P(z_s = 1) is the probability of a flip
    for t, s in ((64, 63), (64, 32), (32, 31), (32, 16), (8, 7), (8, 0)):
        flips = diffusion.reverse_probs(f.logit().view(1, -1, 1), z_t, t, s).flatten()
        axes.plot(f, flips, label=f"t = {t} → s = {s}")
    axes.set(xlabel="f: predicted probability that $z_0 \\neq z_t$", ylabel="probability of a flip in this step")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.legend(fontsize=8)
    return figure


def flips() -> plt.Figure:
    """What is known of a flip before anything is learned, and by how much a network may change it."""
    figure, axes = plt.subplots(figsize=(4.2, 2.6))
    t = np.arange(1, STEPS + 1)
    for kind, colour in zip(("linear", "cosine", "sigmoid"), ("C0", "C1", "C2"), strict=True):
        diffusion = bld.BernoulliDiffusion(bld.NoiseSchedule(kind, STEPS))
        axes.plot(t, diffusion.evidence_logits().sigmoid(), colour, label=kind)
    axes.set(title="flip probability of a bit, seen alone", xlabel="t", xlim=(0, STEPS), ylim=(0, 0.52))
    axes.legend()
    return figure


def convergence() -> plt.Figure:
    """Distance of samples to the data with a perfect predictor: eq. (8) against eq. (10), by enumeration."""
    figure, axes = plt.subplots(figsize=(4.6, 3))
    truth = torch.randn(2**BITS, generator=torch.Generator().manual_seed(0), dtype=torch.float64).mul(2).softmax(0)
    numbers = [1, 2, 4, 8, 16, 32, 64, 128, 256]
    curves = [("linear", "exact", "C0-o"), ("cosine", "exact", "C1-o"), ("linear", "plugin", "C3-s")]
    for kind, posterior, style in curves:
        distances = []
        for steps in numbers:
            diffusion = bld.BernoulliDiffusion(bld.NoiseSchedule(kind, steps), posterior=posterior)  # type: ignore[arg-type]
            distances.append(0.5 * float((sampled_distribution(truth, diffusion) - truth).abs().sum()))
        name = "eq. (8)" if posterior == "exact" else "eq. (10)"
        axes.loglog(numbers, distances, style, markersize=4, label=f"{name}, {kind}")
    axes.set(xlabel="denoising steps T", ylabel="total variation distance", xticks=numbers, xticklabels=numbers)
    axes.minorticks_off()
    axes.legend()
    return figure


def sampled_distribution(truth: Tensor, diffusion: bld.BernoulliDiffusion) -> Tensor:
    """What the chain draws from all 64 codes, (64,), when the predictor is Bayes' rule on the truth (64,) itself."""
    states = (torch.arange(2**BITS).unsqueeze(1) >> torch.arange(BITS) & 1).to(torch.uint8)  # (64, 6)
    differs = (states.unsqueeze(1) ^ states).bool()  # [z_0, z_t, bit]
    reached = torch.full((2**BITS,), 2.0**-BITS, dtype=torch.float64)
    for t, s in pairwise(range(diffusion.steps, -1, -1)):
        flip = (1 - diffusion.retention(t)) / 2
        joint = truth.unsqueeze(1) * torch.where(differs, flip, 1 - flip).prod(-1)
        logits = torch.einsum("ab,abi->bi", joint / joint.sum(0), differs.double()).clamp(1e-15, 1 - 1e-15).logit()
        z_t = states.unsqueeze(1)  # (64, N = 1, c = 6)
        step = diffusion.reverse_probs if s else lambda logits, z, t, _: diffusion.clean_probs(logits, z, t)
        ones = step(logits.unsqueeze(1), z_t, t, s)
        reached = reached @ torch.where(states.bool(), ones, 1 - ones).prod(-1)
    return reached


# -- pictures, of a run on the digits ---------------------------------------------------------------------


def digits(rows: Sequence[int]) -> Tensor:
    """Some of the digits, (n, 3, 8, 8) in [-1, 1]."""
    source = open_images("digits")
    return to_unit(torch.stack([center_view(source.read(row), Preprocessing(8)) for row in rows]))


def as_picture(bits: Tensor) -> Tensor:
    """Bits (…) of 0 and 1, or probabilities, as grey tiles (…, 3, h, w) from (…, h, w): 1 is black."""
    return (1 - 2 * bits.float()).unsqueeze(-3).expand(*bits.shape[:-2], 3, *bits.shape[-2:])


def planes(pipe: bld.BinaryLatentDiffusionPipeline) -> plt.Figure:
    """Digits, their reconstructions, and the 32 bit planes of each code, 4×4 bits a plane."""
    images = digits([0, 4, 12])
    codes = pipe.encode((images + 1) / 2)  # (3, 4, 4, 32)
    decoded = pipe.decode(codes, "pt") * 2 - 1
    rows = []
    for image, again, code in zip(images, decoded, codes, strict=True):
        tiles = as_picture(code.permute(2, 0, 1))  # (32, 3, 4, 4)
        big = [torch.nn.functional.interpolate(x[None], scale_factor=6)[0] for x in (image, again)]
        sheet = make_grid(tiles, columns=16, scale=6, gap=3, background=(190, 190, 190))
        rows.append([np.asarray(make_grid(torch.stack(big), columns=2, gap=4)), np.asarray(sheet)])
    return stacked(rows)


def noising(pipe: bld.BinaryLatentDiffusionPipeline) -> plt.Figure:
    """A code at falling retentions, above what the decoder makes of it."""
    assert isinstance(pipe.diffusion, bld.BernoulliDiffusion)
    retentions, columns = (1.0, 0.9, 0.75, 0.5, 0.25, 0.0), []
    code = pipe.encode((digits([12]) + 1) / 2).flatten(1, 2)  # (1, 16, 32)
    for k in retentions:
        t = int((pipe.diffusion.schedule.k - k).abs().argmin())
        noised = pipe.diffusion.diffuse(code, t, keyed_generator(3, "figure"))
        image = pipe.decode(noised.unflatten(1, (4, 4)), "pt")[0] * 2 - 1
        columns.append((f"k = {pipe.diffusion.retention(t):.2f}", noised[0], image))
    figure, axes = plt.subplots(2, len(columns), figsize=(7.6, 2.9), height_ratios=[1, 1.6])
    for (bits_axes, image_axes), (title, bits, image) in zip(axes.T, columns, strict=True):
        bits_axes.imshow((1 - bits).numpy(), cmap="gray", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        bits_axes.set_title(title)
        image_axes.imshow(((image.permute(1, 2, 0) + 1) / 2).numpy(), interpolation="nearest")
    return without_axes(figure)


def denoising(pipe: bld.BinaryLatentDiffusionPipeline) -> plt.Figure:
    """From uniform bits to digits, in 16 steps: what the decoder makes of z_s after each."""
    seen: list[Tensor] = []
    labels, steps = list(range(0, 10, 2)), 16

    def look(_: object, __: int, ___: int, state: dict[str, Tensor]) -> None:
        seen.append(state["latents"].clone())

    pipe(
        class_labels=labels,
        num_inference_steps=steps,
        generator=keyed_draws(1, "figure", range(len(labels))),
        callback_on_step_end=look,
    )
    shown = [0, 4, 8, 10, 12, 13, 14, 15]
    grid = [pipe.decode(seen[i].view(len(labels), *pipe.prior.code_shape), "pt") for i in shown]
    figure, axes = plt.subplots(len(labels), len(shown), figsize=(6.6, 4.3))
    for column, (step, images) in enumerate(zip(shown, grid, strict=True)):
        axes[0, column].set_title(f"step {step + 1}")
        for row, image in enumerate(images):
            axes[row, column].imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
    return without_axes(figure)


def stacked(rows: list[list[np.ndarray]]) -> plt.Figure:
    """Pictures in rows, each at its own width."""
    widths = [image.shape[1] for image in rows[0]]
    figure, axes = plt.subplots(len(rows), len(widths), figsize=(7.6, 0.95 * len(rows)), width_ratios=widths)
    for row_axes, row in zip(axes, rows, strict=True):
        for one, image in zip(row_axes, row, strict=True):
            one.imshow(image, interpolation="nearest")
    return without_axes(figure)


def without_axes(figure: plt.Figure) -> plt.Figure:
    """The figure without ticks and frames."""
    for axes in figure.axes:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    return figure


CURVES: dict[str, Callable[[], plt.Figure]] = {
    "schedules": schedules,
    "reverse-map": reverse_map,
    "flips": flips,
    "convergence": convergence,
}
PICTURES: dict[str, Callable[[bld.BinaryLatentDiffusionPipeline], plt.Figure]] = {
    "planes": planes,
    "noising": noising,
    "denoising": denoising,
}

if __name__ == "__main__":
    main()

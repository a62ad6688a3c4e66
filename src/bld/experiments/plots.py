"""Pictures of experiments: curves with their spread, rows of samples."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL import Image

from bld.data import make_grid, to_unit
from bld.diffusion import NoiseSchedule

if TYPE_CHECKING:
    from bld.experiments.prior_rows import Row, Values
    from bld.experiments.runner import Runner

SHOWN = 20
COLOURS = ("#1b7f7f", "#c4572e", "#5b5b9a", "#8a8a2a", "#7a3b69", "#4a90c2", "#6b6b6b")


def chart(
    curves: Mapping[str, tuple[Sequence[Any], Sequence[Sequence[float]]]],
    x: str,
    y: str,
    log: Literal["", "x", "xy"] = "",
) -> Image.Image:
    """Means over seeds against x, with a band of one standard deviation; the axes of `log` are logarithmic."""
    from matplotlib.ticker import LogLocator

    figure, axes = _axes(x, y)
    for (name, (at, values)), colour in zip(curves.items(), COLOURS[: len(curves)], strict=True):
        mean = [fmean(v) for v in values]
        spread = [stdev(v) if len(v) > 1 else 0.0 for v in values]
        axes.plot(at, mean, "o-", color=colour, label=name, linewidth=1.8, markersize=4)
        low = [max(m - s, 1e-3 * m) for m, s in zip(mean, spread, strict=True)]
        axes.fill_between(at, low, [m + s for m, s in zip(mean, spread, strict=True)], color=colour, alpha=0.2)
    if log:
        axes.set_xscale("log", base=2)
        ticks = sorted({n for at, _ in curves.values() for n in at})
        axes.set_xticks(ticks, [str(n) for n in ticks])
    if "y" in log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))  # all nine would stand in each other's way
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    # Above the axes it covers no curve.
    figure.legend(frameon=False, loc="outside upper center", ncols=2, fontsize="small")
    return _image(figure)


def sample_rows(runner: Runner, rows: Sequence[Row]) -> Image.Image:
    """One row of pictures per row of the table, the same seeds in each."""
    pictures = []
    for row in (row for row in rows if row.prior):
        pipeline = runner.pipeline(row.prior, 0)
        images, _ = next(iter(runner.batches(pipeline, row.sampling, SHOWN)))
        pictures.append(images)
    return make_grid(to_unit(torch.cat(pictures)), columns=SHOWN, scale=runner.scale.enlarged)


def schedule_curves(runner: Runner, rows: Sequence[Row], values: Values) -> list[tuple[str, str, Image.Image]]:
    """P(z_t = 1) for bits that are 1 and bits that are 0, as in the paper's Figure A."""
    figure, axes = _axes("t", "P(z_t = 1)")
    for kind, colour in zip(("linear", "cosine", "sigmoid"), COLOURS, strict=False):
        k = NoiseSchedule(kind, 64).k
        axes.plot(range(65), (1 + k) / 2, color=colour, label=kind, linewidth=1.8)
        axes.plot(range(65), (1 - k) / 2, color=colour, linewidth=1.8, linestyle="--")
    axes.legend(frameon=False)
    caption = "How bits approach a fair coin: solid those that are 1, dashed those that are 0"
    return [(f"figureA-{runner.scale.label}.png", caption, _image(figure))]


def _axes(x: str, y: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.6), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _image(figure: Any) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")

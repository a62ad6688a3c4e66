"""Numbers → charts: inline SVG in the page's own colours and font, so that it reads in light and in dark."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Colours that stand for the page's: matplotlib wants a number, the page knows light and dark.
INK, ACCENT, SECOND, RULE = "#010203", "#010204", "#010205", "#010206"
PAGE_COLOURS = {INK: "currentColor", ACCENT: "var(--accent)", SECOND: "var(--second)", RULE: "var(--rule)"}
FONT_POINTS = 9
LONGEST_CURVE = 600


@dataclass(frozen=True)
class Chart:
    """One inline SVG.

    Attributes:
        svg: the element.
        title: heading above it.
        alt: what it shows, in words.
    """

    svg: str
    title: str
    alt: str


@dataclass(frozen=True)
class Curve:
    """Values against steps; a noisy one is drawn faint, with its running mean over it."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    noisy: bool = False


def bars(values: np.ndarray, name: str, unit: str, title: str, reference: float | None = None) -> Chart:
    """One bar per bit, 0 … 1, with a dashed line at the reference."""
    figure, axes = _axes(5.2, 1.9)
    axes.bar(np.arange(len(values)), values, width=0.8, color=ACCENT, linewidth=0)
    if reference is not None:
        axes.axhline(reference, color=SECOND, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.set_ylim(0, 1)
    axes.set_xlim(-0.6, len(values) - 0.4)
    axes.set_yticks([0, 0.5, 1])
    axes.set_xlabel("bit of a position")
    axes.set_ylabel(unit)
    alt = f"Bar chart of {name} for {len(values)} bits: from {values.min():.2f} to {values.max():.2f}."
    return Chart(_svg(figure, name), title, alt)


def curves(lines: Sequence[Curve], title: str, log: bool = False) -> Chart:
    """Curves against training steps, on a logarithmic axis where asked."""
    figure, axes = _axes(5.2, 2.4)
    for line, colour in zip(lines, (ACCENT, SECOND), strict=False):
        steps, values = _thinned(line)
        marker = "o" if len(values) < 12 else None
        if line.noisy and len(values) >= 12:
            axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.3)
            steps, values, marker = *_smoothed(steps, values), None
        axes.plot(steps, values, color=colour, linewidth=1.8, marker=marker, markersize=4, label=line.name)
    if log:
        axes.set_yscale("log")
    axes.set_xlim(left=0)
    axes.set_xlabel("step")
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    if len(lines) > 1:
        axes.legend(frameon=False, labelcolor=INK, fontsize=FONT_POINTS, loc="upper right")
    ends = "; ".join(f"{line.name} from {line.values[0]:.4g} to {line.values[-1]:.4g}" for line in lines)
    return Chart(_svg(figure, title), title, f"Line chart over {int(max(lines[0].steps)):,} steps: {ends}.")


def _thinned(line: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Finite values only, and no more of them than a chart can show."""
    steps, values = np.asarray(line.steps, dtype=float), np.asarray(line.values, dtype=float)
    steps, values = steps[np.isfinite(values)], values[np.isfinite(values)]
    keep = np.unique(np.linspace(0, len(values) - 1, min(len(values), LONGEST_CURVE)).round().astype(int))
    return (steps[keep], values[keep]) if len(values) else (steps, values)


def _smoothed(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Running mean over a twelfth of the points, centred; at the ends over what there is."""
    window = max(3, len(values) // 12)
    weights = np.convolve(np.ones_like(values), np.ones(window), "same")
    return steps, np.convolve(values, np.ones(window), "same") / weights


def _axes(width: float, height: float) -> tuple[Any, Any]:
    """A figure of that many inches and its one pair of axes, bare but for what helps reading."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.tick_params(colors=INK, labelsize=FONT_POINTS, length=3, width=0.6)
    axes.xaxis.label.set(color=INK, fontsize=FONT_POINTS)
    axes.yaxis.label.set(color=INK, fontsize=FONT_POINTS)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set(color=RULE, linewidth=1)
    return figure, axes


def _svg(figure: Any, name: str) -> str:
    """The figure as one <svg> element: text as text, the page's colours, its own ids, a ratio but no size."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(
            buffer, metadata={"Creator": None, "Date": None, "Format": None, "Type": None}
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    prefix = re.sub(r"\W+", "-", name)
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true" focusable="false">', svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    for number, colour in PAGE_COLOURS.items():
        svg = svg.replace(number, colour)
    return svg

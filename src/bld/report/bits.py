"""What was measured: how the bits are used, and how the training went."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from bld.codes import BitStatistics, CodeShape, bit_entropy, bit_statistics
from bld.evaluation.load_run import OpenedRun
from bld.report.charts import Chart, Curve, bars, curves
from bld.report.pictures import Picture, inlined
from bld.training.code_cache import CodeCache
from bld.training.stages.prior import DRAWN_BOUND, PROBABLE_BOUND

MOST_CODES = 4096
HEAT = (38, 132, 132)  # a middle tone, over light and dark alike: strength is opacity
STAGES = {"tokenizer": "Tokenizer", "prior": "Prior"}
HELD_OUT_TITLES = {
    "held_out_psnr": "PSNR of held-out images from their most probable codes, dB (higher is better)",
    "held_out_drawn_psnr": "PSNR of held-out images from drawn codes, dB (higher is better)",
    DRAWN_BOUND: "Bound on drawn codes of held-out images, bits per bit (lower is better)",
    PROBABLE_BOUND: "Bound on most probable codes of held-out images, bits per bit (lower is better)",
}


def bits_section(cache: CodeCache, coin_flips: float | None) -> dict[str, Any]:
    """Usage and entropy per bit, entropy per position, correlations, and what they say.

    Args:
        cache: the codes.
        coin_flips: of their bits' mean entropy, how much the encoder draws by chance: 0 where it draws nothing, None
            where that is not known.
    """
    images = np.linspace(0, len(cache) - 1, min(MOST_CODES, len(cache))).round().astype(np.int64)
    tokens = cache.read(images)
    statistics = bit_statistics(tokens)
    positions = _position_entropy(tokens, cache.shape)
    return {
        "statistics": statistics,
        "shape": cache.shape,
        "charts": [
            bars(statistics.usage, "usage", "share of ones", "Usage: how often each bit is 1", 0.5),
            bars(statistics.entropy, "entropy", "bits", "Entropy: how much each bit varies", 1.0),
        ],
        "positions": _heat(_stretched(positions), "Mean entropy of the bits at each position"),
        "position_range": f"{positions.min():.2f} to {positions.max():.2f}",
        "correlation": _heat(np.abs(statistics.correlation), "Correlation of each two bits"),
        "sentences": _interpretation(statistics, cache.shape, coin_flips),
        "has_coin_flips": coin_flips != 0,
    }


def _position_entropy(tokens: Tensor, shape: CodeShape) -> np.ndarray:
    """Mean over the bits of each position, (h, w)."""
    return bit_entropy(tokens.double().mean(0).numpy()).mean(1).reshape(shape.h, shape.w)


def _stretched(values: np.ndarray) -> np.ndarray:
    """From 0.15 to 1, so that small differences show; the caption tells the true range."""
    span = values.max() - values.min()
    return 0.15 + 0.85 * (values - values.min()) / (span if span > 0 else 1)


def _heat(values: np.ndarray, alt: str) -> Picture:
    """Values 0 … 1 as opacity of one colour."""
    pixels = np.empty((*values.shape, 4), np.uint8)
    pixels[..., :3] = HEAT
    pixels[..., 3] = np.rint(255 * values.clip(0, 1))
    return inlined(Image.fromarray(pixels), alt)


def _interpretation(statistics: BitStatistics, shape: CodeShape, coin_flips: float | None) -> list[str]:
    mean, strongest, c = statistics.mean_entropy, statistics.strongest_correlation, shape.c
    if statistics.constant:
        used = f"{statistics.constant} of the {c} bits of a position never change: they carry nothing."
    else:
        used = f"None of the {c} bits of a position is constant, so none is wasted."
    told = f"On average a bit varies by {mean:.2f} bits out of 1"
    if coin_flips:
        told += f", of which {coin_flips:.2f} are coin flips of the encoder, so that at most {mean - coin_flips:.2f}"
        told += " are of the image"
    content = mean - (coin_flips or 0)
    if content > 0.9:
        filled = f"{told}: the code is well filled."
    elif content > 0.6:
        filled = f"{told}: some say little."
    else:
        filled = f"{told}: a smaller code might do."
    repeated = "two bits say nearly the same" if strongest > 0.9 else "no two bits repeat each other"
    return [used, filled, f"The strongest correlation between two bits is {strongest:.2f}: {repeated}."]


# -- training ---------------------------------------------------------------------------------------------


def curve_section(opened: OpenedRun) -> list[tuple[str, list[Chart]]]:
    """(stage, its charts) for each stage that has logged anything."""
    metrics = opened.run.read_metrics()
    sections = []
    for stage, title in STAGES.items():
        charts = _stage_charts(title, [line for line in metrics if line.get("stage") == stage])
        if charts:
            sections.append((title, charts))
    return sections


def _stage_charts(stage: str, lines: list[dict[str, Any]]) -> list[Chart]:
    loss, held_out = _curve(lines, "loss", "training", noisy=True), _curve(lines, "held_out_loss", "held out")
    charts = []
    if loss is not None:
        both = [loss] if held_out is None else [loss, held_out]
        charts.append(curves(both, f"{stage} loss", log=_spans_decades(both)))
    adversary = _curve(lines, "discriminator", "discriminator", noisy=True)
    if adversary is not None:
        charts.append(curves([adversary], f"{stage}: loss of the discriminator"))
    for name, title in HELD_OUT_TITLES.items():
        figure = _curve(lines, name, title)
        if figure is not None:
            charts.append(curves([figure], title))
    return charts


def _curve(lines: list[dict[str, Any]], name: str, label: str, noisy: bool = False) -> Curve | None:
    points = [(line["step"], line[name]) for line in lines if name in line and np.isfinite(line[name])]
    steps, values = [step for step, _ in points], [value for _, value in points]
    return Curve(label, steps, values, noisy) if points else None


def _spans_decades(lines: list[Curve]) -> bool:
    values = np.concatenate([np.asarray(line.values, dtype=float) for line in lines])
    return bool(values.min() > 0 and values.max() > 10 * values.min())

"""The experiments that are not rows of samples: Table 4 (reconstruction), Table 6 (seconds), Figures 5, N and O."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bld.data import make_grid, psnr
from bld.evaluation.metrics.reconstruction import structural_similarity
from bld.experiments.given_images import figure_n, figure_o
from bld.experiments.page import Findings, Table
from bld.experiments.runner import Runner, Sampling
from bld.experiments.verdict import Comparison, mean_and_spread
from bld.seeding import keyed_draws
from bld.serialization.models import load_tokenizer

RECONSTRUCTED = 2000
TIMED = 5

# -- Table 4 ----------------------------------------------------------------------------------------------

PAPER_TABLE_4 = {
    "vq": ("16×16×1024", "20.08 ± 1.84", "0.62 ± 0.09"),
    "real": ("16×16×16", "24.08 ± 4.22", "0.70 ± 0.12"),
    "binary": ("16×16×32", "24.02 ± 2.11", "0.75 ± 0.06"),
    "vq-small": ("8×8×2048", "17.20 ± 1.45", "0.53 ± 0.09"),
    "real-small": ("8×8×64", "22.74 ± 1.87", "0.62 ± 0.15"),
    "binary-small": ("8×8×128", "22.82 ± 1.84", "0.64 ± 0.07"),
}


def table4(runner: Runner, seeds: int) -> Findings:
    """PSNR and SSIM of reconstructions of unseen images, by the format of the code."""
    rows, values = [], {}
    for name in runner.scale.formats:
        found = [_reconstruction(runner, name, seed) for seed in range(seeds)]
        values[name] = {metric: [one[metric] for one in found] for metric in found[0] if metric != "size"}
        rows.append(_format_row(name, found))
    headings = [
        "format",
        "paper: size",
        "paper: PSNR",
        "paper: SSIM",
        "size",
        "bytes per image",
        "parameters",
        "PSNR, dB ↑ (seeds)",
        "SSIM ↑ (seeds)",
        "PSNR of the most probable code",
    ]
    findings = Findings(
        "Table 4: reconstruction by format of the code",
        "bits reconstruct better than a vector-quantised code, and as well as real numbers; more so on a smaller grid.",
        basis=f"over {seeds} training seeds" if seeds > 1 else "with one training of each row, which decides nothing",
    )
    images = len(runner.unseen(0))
    findings.tables.append(
        (
            f"Mean ± standard deviation over {min(images, RECONSTRUCTED):,} unseen images, for each training "
            f"seed; codes are "
            "drawn as in training (eq. 1). The last column decodes the most probable code instead (bits "
            "thresholded, means).",
            Table(headings, rows),
        )
    )
    findings.comparisons += _between_formats(values)
    kept = ("psnr", "ssim", "psnr_likely")
    findings.values = {name: {metric: one[metric] for metric in kept} for name, one in values.items()}
    findings.pictures.append(_reconstruction_picture(runner))
    findings.notes += [
        "Same encoder and decoder, data, steps, batch and learning rate in every row; MSE alone (no "
        "LPIPS, no adversary).",
        "Bits are drawn, so a short training leaves many undecided; then the most probable code is not "
        "what the decoder "
        "was trained on, and reconstructs worse than a draw. Long training closes the gap.",
        f"Steps of training: {_steps(runner)}. The paper trains its tokenizers until they converge.",
    ]
    return findings


def _between_formats(values: dict[str, dict[str, list[float]]]) -> Iterator[Comparison]:
    """Bits above vq, near real numbers, and the more so on a smaller grid."""
    gaps = {}
    for side in ("", "-small"):
        binary, vq, real = (values[f"{kind}{side}"] for kind in ("binary", "vq", "real"))
        where = "half the latent side" if side else "the usual latent side"
        yield _over_seeds(f"bits above vq at {where}", vq["psnr"], binary["psnr"])
        yield Comparison(f"bits above vq at {where} (SSIM)", vq["ssim"], binary["ssim"], paired=True)
        allowed = [x + 0.5 for x in binary["psnr"]]
        yield _over_seeds(f"bits within 0.5 dB of real numbers at {where}", real["psnr"], allowed)
        gaps[side] = [b - v for b, v in zip(binary["psnr"], vq["psnr"], strict=True)]
    yield _over_seeds("what bits gain over vq grows on the smaller grid", gaps[""], gaps["-small"])


def _format_row(name: str, found: list[dict[str, Any]]) -> list[str]:
    """One line of the table, from the metrics of each seed."""
    first = found[0]
    return [
        _format_name(name),
        *PAPER_TABLE_4[name],
        first["size"],
        f"{first['bytes']:.0f}",
        f"{first['parameters'] / 1e6:.2f} M",
        "; ".join(f"{v['psnr']:.2f} ± {v['psnr_std']:.2f}" for v in found),
        "; ".join(f"{v['ssim']:.3f} ± {v['ssim_std']:.3f}" for v in found),
        mean_and_spread([v["psnr_likely"] for v in found], 4),
    ]


def _steps(runner: Runner) -> str:
    run = runner.tokenizer(runner.scale.formats[0], 0)
    settings = run.settings().tokenizer_training
    return f"{settings.steps:,} of {settings.batch_size} images, learning rate {settings.learning_rate:g}"


def _over_seeds(words: str, low: list[float], high: list[float]) -> Comparison:
    return Comparison(f"{words} (PSNR)", low, high, paired=True)


def _format_name(name: str) -> str:
    return {"vq": "vector-quantised", "real": "real numbers", "binary": "binary (ours)"}[name.removesuffix("-small")]


def _reconstruction(runner: Runner, name: str, seed: int) -> dict[str, Any]:
    key = {
        "tokenizer": name,
        "seed": seed,
        "words": runner.overrides(name, "bernoulli", seed),
        "test": runner.test != "",
    }

    @torch.no_grad()
    def compute() -> dict[str, Any]:
        runner.say(f"Reconstructing with {name}, seed {seed}.")
        model = load_tokenizer(runner.tokenizer(name, seed).tokenizer)
        images = runner.unseen(seed)
        rows = torch.linspace(0, len(images) - 1, min(len(images), RECONSTRUCTED)).long()
        drawn, likely, similar = [], [], []
        for part in rows.split(250):
            x = images.centre(part)
            again = model.decode(model.encode(x, keyed_draws(0, "reconstruct", part.tolist()))).clamp(-1, 1)
            drawn.append(psnr(x, again))
            similar.append(structural_similarity(x, again))
            likely.append(psnr(x, model.decode(model.encode(x)).clamp(-1, 1)))
        decibels, ssim = torch.cat(drawn), torch.cat(similar)
        config = model.config
        size = f"{config.code_shape.h}×{config.code_shape.w}×"
        return {
            "size": size + (str(2**config.code_bits) if config.bottleneck == "vq" else str(config.code_bits)),
            "bytes": config.code_bytes,
            "parameters": sum(p.numel() for p in model.parameters()),
            "psnr": float(decibels.mean()),
            "psnr_std": float(decibels.std()),
            "ssim": float(ssim.mean()),
            "ssim_std": float(ssim.std()),
            "psnr_likely": float(torch.cat(likely).mean()),
        }

    return runner.kept("reconstruction", key, compute)


@torch.no_grad()
def _reconstruction_picture(runner: Runner) -> tuple[str, str, Any]:
    images = runner.unseen(0)
    rows = torch.linspace(0, len(images) - 1, 12).long()
    x = images.centre(rows)
    shown = [x]
    for name in runner.scale.formats:
        model = load_tokenizer(runner.tokenizer(name, 0).tokenizer)
        shown.append(model.decode(model.encode(x, keyed_draws(0, "reconstruct", rows.tolist()))).clamp(-1, 1))
    grid = make_grid(torch.cat(shown), columns=12, scale=runner.scale.enlarged)
    return (
        f"table4-{runner.scale.label}.png",
        "Unseen images on top, below them the formats in the order of the table",
        grid,
    )


# -- Table 6 ----------------------------------------------------------------------------------------------


def table6(runner: Runner, seeds: int) -> Findings:
    """Seconds per image, one at a time."""
    positions = runner.pipeline("bernoulli", 0).prior.code_shape.positions
    rows = [
        ("ours, 16 steps", "bernoulli", Sampling(16)),
        ("ours, 64 steps", "bernoulli", Sampling(64)),
        (f"absorbing, {positions} steps", "absorbing", Sampling()),
        (f"autoregressive, {positions} steps", "autoregressive", Sampling()),
        ("LDM (Gaussian), 200 DDIM steps", "gaussian", Sampling(200, 1.0)),
    ]
    pipelines = {prior: runner.pipeline(prior, 0) for _, prior, _ in rows}
    seconds: dict[str, list[float]] = {label: [] for label, _, _ in rows}
    for turn in range(TIMED + 1):  # in turns, so that a busy moment of the machine does not fall on one row alone
        for label, prior, sampling in rows:
            started = time.perf_counter()
            pipelines[prior](1, None, sampling.steps, sampling.temperature, generator=turn)
            if turn:
                seconds[label].append(time.perf_counter() - started)
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
    images = runner.unseen(0).centre(range(64))
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
                "What switching each bit on adds, mean over 64 unseen images, scaled to "
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
}

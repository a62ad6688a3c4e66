"""Table 4: what reconstructs an image best, bits, the entries of a codebook, or real numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image

from bld.data import make_grid, psnr
from bld.evaluation.metrics.reconstruction import structural_similarity
from bld.experiments.comparison import Comparison
from bld.experiments.kept import kept_picture
from bld.experiments.page import Findings, Table
from bld.experiments.plots import chart
from bld.experiments.prior_rows import Picture
from bld.experiments.runner import Runner
from bld.experiments.verdict import Gate, mean_and_spread
from bld.seeding import derive_seed, keyed_draws
from bld.serialization.models import load_tokenizer
from bld.tokenizer import BinaryAutoencoder

RECONSTRUCTED, AT_A_TIME = 2000, 250
NEAR_REAL_DB = 0.5
GATE_SHARE = 0.5  # of an untrained tokenizer's squared error: few bits leave much of it, however long they are trained
GATE_RULE = (
    "Before any of that, the tokenizer of each of the paper's formats must have halved an untrained one's squared "
    "error, and the format must change a metric (analysis of variance in blocks of a seed, p < 0.05 shared by the "
    "metrics); else there is *too little training to say*, or nothing to decide."
)
METRICS = ("psnr", "ssim", "psnr_likely", "squared_error")

PAPER_TABLE_4 = {
    "vq": ("16×16×1024", "20.08 ± 1.84", "0.62 ± 0.09"),
    "real": ("16×16×16", "24.08 ± 4.22", "0.70 ± 0.12"),
    "binary": ("16×16×32", "24.02 ± 2.11", "0.75 ± 0.06"),
    "vq-small": ("8×8×2048", "17.20 ± 1.45", "0.53 ± 0.09"),
    "real-small": ("8×8×64", "22.74 ± 1.87", "0.62 ± 0.15"),
    "binary-small": ("8×8×128", "22.82 ± 1.84", "0.64 ± 0.07"),
}
NAMES = {"vq": "vector-quantised", "real": "real numbers", "binary": "bits"}
NOT_IN_THE_PAPER = ("–", "–", "–")

Values = dict[str, dict[str, list[float]]]


def table4(runner: Runner, seeds: int) -> Findings:
    """PSNR and SSIM of reconstructions of unseen images, by the format of the code."""
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in runner.scale.formats}
    for seed in range(seeds):  # every format once before any again; what is measured is not trained, here or elsewhere
        for name, found in measured.items():
            found.append(_reconstruction(runner, name, seed))
    values = {name: {metric: [one[metric] for one in found] for metric in METRICS} for name, found in measured.items()}
    claimed = {name: of for name, of in values.items() if name in PAPER_TABLE_4}  # all that the claim is about
    untrained = [_untrained(runner, seed) for seed in range(seeds)]
    findings = Findings(
        "Table 4: reconstruction by format of the code",
        "bits reconstruct better than a vector-quantised code, and as well as real numbers; more so on a smaller grid.",
        comparisons=list(_of_the_paper(values)),
        basis=f"over {seeds} training seeds" if seeds > 1 else "with one training of each row, which decides nothing",
        gate=Gate(
            {name: of["squared_error"] for name, of in claimed.items()}, untrained,
            {metric: [of[metric] for of in claimed.values()] for metric in METRICS}, share=GATE_SHARE,
        ),
        gate_rule=GATE_RULE,
        values={**values, "an untrained tokenizer": {"squared_error": untrained}},
    )  # fmt: skip
    images = min(len(runner.unseen(0)), RECONSTRUCTED)
    caption = (
        f"Mean ± standard deviation over {seeds} training seeds, each of {images:,} unseen images; codes are drawn as "
        "in training (eq. 1). The last column decodes the most probable code instead: bits thresholded, means."
    )
    findings.tables.append((caption, _table(measured)))
    equal = list(_at_equal_bits(values))
    findings.pictures += [_curves(runner, measured)] if equal else []
    findings.pictures.append(_reconstruction_picture(runner))
    findings.notes += [f"Beside the paper's claim, {comparison}." for comparison in equal]
    findings.notes += [
        "Same encoder and decoder, data, steps, batch and learning rate in every row; squared error alone, no LPIPS.",
        "The paper's formats give bits more room than a codebook: 32 bits a position against the 10 of 1,024 entries.",
        f"Steps of training: {_steps(runner)}. The paper trains its tokenizers until they converge.",
    ]
    return findings


# -- what is claimed ---------------------------------------------------------------------------------------


def _of_the_paper(values: Values) -> Iterator[Comparison]:
    """Bits above vq, near real numbers, and the more so on a smaller grid."""
    gaps = {}
    for side in ("", "-small"):
        binary, vq, real = (values[f"{kind}{side}"] for kind in ("binary", "vq", "real"))
        where = "half the latent side" if side else "the usual latent side"
        yield _paired(f"bits above vq at {where} (PSNR)", vq["psnr"], binary["psnr"])
        yield _paired(f"bits above vq at {where} (SSIM)", vq["ssim"], binary["ssim"])
        allowed = [x + NEAR_REAL_DB for x in binary["psnr"]]
        yield _paired(f"bits within {NEAR_REAL_DB} dB of real numbers at {where} (PSNR)", real["psnr"], allowed)
        gaps[side] = [b - v for b, v in zip(binary["psnr"], vq["psnr"], strict=True)]
    yield _paired("what bits gain over vq grows on the smaller grid (PSNR)", gaps[""], gaps["-small"])


def _at_equal_bits(values: Values) -> Iterator[Comparison]:
    """Bits against a codebook of as many bits, where both were trained."""
    for side, usual in (("", {10: "vq", 11: "vq-11"}), ("-small", {10: "vq-10-small", 11: "vq-small"})):
        for bits, vq in usual.items():
            binary = f"binary-{bits}{side}"
            if binary in values and vq in values:
                where = "half the latent side" if side else "the usual latent side"
                words = f"{bits} bits above a codebook of {2**bits:,} at {where} (PSNR)"
                yield _paired(words, values[vq]["psnr"], values[binary]["psnr"])


def _paired(words: str, low: list[float], high: list[float]) -> Comparison:
    return Comparison(words, low, high, paired=True)


# -- how it is measured ------------------------------------------------------------------------------------


def _reconstruction(runner: Runner, name: str, seed: int) -> dict[str, Any]:
    key = runner.tokenizer_key(name, seed, drawn_by=seed)

    def compute() -> dict[str, Any]:
        runner.say(f"Reconstructing with {name}, seed {seed}.")
        return _measured(runner, load_tokenizer(runner.tokenizer(name, seed).tokenizer), seed)

    return runner.kept("reconstruction", key, compute)


def _untrained(runner: Runner, seed: int) -> float:
    """Squared error of a tokenizer of 32 bits before any training."""
    key = runner.tokenizer_key("binary", seed, drawn_by=seed)

    def compute() -> dict[str, Any]:
        torch.manual_seed(derive_seed(seed, "untrained"))
        trained = load_tokenizer(runner.tokenizer("binary", seed).tokenizer)
        return _measured(runner, BinaryAutoencoder(trained.config).eval(), seed)

    return float(runner.kept("untrained-tokenizer", key, compute)["squared_error"])


@torch.no_grad()
def _measured(runner: Runner, model: BinaryAutoencoder, seed: int) -> dict[str, Any]:
    images, model = runner.unseen(0), model.to(runner.device)
    rows = torch.linspace(0, len(images) - 1, min(len(images), RECONSTRUCTED)).long()
    drawn, likely, similar, errors = [], [], [], []
    for part in rows.split(AT_A_TIME):
        x = images.centre(part).to(runner.device)
        again = model.decode(model.encode(x, keyed_draws(seed, "reconstruct", part.tolist()))).clamp(-1, 1)
        drawn.append(psnr(x, again).cpu())
        similar.append(structural_similarity(x, again).cpu())
        errors.append((x - again).square().mean((1, 2, 3)).cpu())
        likely.append(psnr(x, model.decode(model.encode(x)).clamp(-1, 1)).cpu())
    config = model.config
    size = f"{config.code_shape.h}×{config.code_shape.w}×"
    return {
        "kind": {"vq": "vq", "gaussian": "real"}.get(config.bottleneck, "binary"),
        "size": size + (f"{2**config.code_bits:,}" if config.bottleneck == "vq" else str(config.code_bits)),
        "side": config.code_shape.h,
        "bits": 0 if config.bottleneck == "gaussian" else config.code_shape.bits,
        "bytes": config.code_bytes,
        "parameters": sum(p.numel() for p in model.parameters()),
        "psnr": float(torch.cat(drawn).mean()),
        "psnr_likely": float(torch.cat(likely).mean()),
        "ssim": float(torch.cat(similar).mean()),
        "squared_error": float(torch.cat(errors).mean()),
    }


# -- how it is shown ---------------------------------------------------------------------------------------


def _table(measured: dict[str, list[dict[str, Any]]]) -> Table:
    headings = [
        "format", "paper: size", "paper: PSNR", "paper: SSIM", "size", "bytes per image", "parameters", "PSNR, dB ↑",
        "SSIM ↑", "PSNR of the most probable code",
    ]  # fmt: skip
    rows = [
        [
            NAMES[found[0]["kind"]],
            *PAPER_TABLE_4.get(name, NOT_IN_THE_PAPER),
            found[0]["size"],
            f"{found[0]['bytes']:,.0f}",
            f"{found[0]['parameters'] / 1e6:.2f} M",
            mean_and_spread([one["psnr"] for one in found], 4),
            mean_and_spread([one["ssim"] for one in found]),
            mean_and_spread([one["psnr_likely"] for one in found], 4),
        ]
        for name, found in measured.items()
    ]
    return Table(headings, rows)


def _curves(runner: Runner, measured: dict[str, list[dict[str, Any]]]) -> Picture:
    """Rate and distortion: PSNR of drawn codes against bits per image, a curve for each kind and grid."""
    curves: dict[str, tuple[list[Any], list[list[float]]]] = {}
    for found in sorted(measured.values(), key=lambda found: found[0]["bits"]):
        first = found[0]
        if first["bits"]:
            at, values = curves.setdefault(f"{NAMES[first['kind']]}, {first['side']}×{first['side']}", ([], []))
            at.append(first["bits"])
            values.append([one["psnr"] for one in found])
    image = chart(curves, "bits per image", "PSNR, dB", log="x")
    return (
        f"table4-curves-{runner.scale.label}.png",
        "PSNR of drawn codes against bits per image; bands are the spread",
        image,
    )


def _reconstruction_picture(runner: Runner) -> Picture:
    formats = [name for name in runner.scale.formats if name in PAPER_TABLE_4]

    def draw() -> Image.Image:
        images = runner.unseen(0)
        rows = torch.linspace(0, len(images) - 1, 12).long()
        shown = [x := images.centre(rows)]
        for model in [load_tokenizer(runner.tokenizer(name, 0).tokenizer) for name in formats]:
            with torch.no_grad():
                codes = model.encode(x, keyed_draws(0, "reconstruct", rows.tolist()))
                shown.append(model.decode(codes).clamp(-1, 1))
        return make_grid(torch.cat(shown), columns=12, scale=runner.scale.enlarged)

    key = {name: runner.tokenizer_key(name, 0) for name in formats}
    grid = kept_picture(runner.root / "results", "reconstructions", key, draw)
    said = ", ".join(PAPER_TABLE_4[name][0] for name in formats)
    caption = f"Unseen images on top, below them the formats that in the paper are {said}"
    return f"table4-{runner.scale.label}.png", caption, grid


def _steps(runner: Runner) -> str:
    settings = runner.settings(runner.scale.formats[0], "bernoulli", 0).tokenizer_training
    return f"{settings.steps:,} of {settings.batch_size} images, learning rate {settings.learning_rate:g}"

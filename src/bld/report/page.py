"""A run on one page: RUN/report.html, self-contained, to look at and to pass on."""

from __future__ import annotations

import platform
import shlex
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import torch
from markupsafe import Markup

from bld._version import __version__
from bld.evaluation.load_run import OpenedRun, open_run
from bld.io.files import as_utf8, written_aside
from bld.report.bits import bits_section, curve_section
from bld.report.contents import Contents, plan_contents
from bld.report.inpainting import inpainting_section, reconstruction_section
from bld.report.samples import generate, neighbour_section, sample_section, strip_section
from bld.runtime.precision import in_float32
from bld.runtime.processor import device_name
from bld.serialization.models import tokenizer_hash
from bld.training.held_out_codes import draws_of
from bld.training.origins import seen_before
from bld.training.run_folder import RunFolder
from bld.training.stages.prior import DRAWN_BOUND, PROBABLE_BOUND

Say = Callable[[str], None]


@in_float32()
def write_report(run: RunFolder, *, seed: int = 0, say: Say = print, device: torch.device | str | None = None) -> Path:
    """Write run/report.html: what was trained on what, pictures of all it can do, curves and settings.

    The page needs no other file and no network. A run whose prior is missing gets the tokenizer's part. One whose
    images have moved away gets all that needs no originals, and the page says so, as it does where codes are left out
    that another tokenizer has made.

    Args:
        run: the folder.
        seed: of the samples, which are made in exact float32.
        say: is told if the original images cannot be opened.
        device: where the networks run; a GPU by default, if there is one.

    Returns:
        The path of the page.

    Raises:
        CheckpointError: without a tokenizer.
    """
    started = time.monotonic()
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    opened = open_run(run, place)
    if opened.missing:
        say(f"The report goes without original images. {opened.missing}")
    contents = plan_contents(opened)
    page = {
        "title": _title(opened),
        "data": _data(opened),
        "seen_before": [] if opened.held_out is None else seen_before(opened.run, opened.held_out),
        "figures": _key_figures(opened),
        "stages": _stages(opened),
        **_sections(opened, contents, seed),
        "settings": run.config.read_text(encoding="utf-8"),
        "versions": {"bld": __version__, "torch": torch.__version__, "Python": platform.python_version()},
        "device": device_name(place),
        "date": time.strftime("%Y-%m-%d"),
        "seconds": time.monotonic() - started,
    }
    with written_aside(run.report) as aside:
        aside.write_bytes(as_utf8(_template().render(page)))
    return run.report


def _sections(opened: OpenedRun, contents: Contents, seed: int) -> dict[str, Any]:
    """Everything with pictures; a section that cannot be is None."""
    sections: dict[str, Any] = dict.fromkeys(("samples", "strip", "inpainting", "neighbours"))
    if opened.pipeline is not None:
        generated = generate(opened, contents, seed)
        sections = {
            "samples": sample_section(opened, generated, contents, seed),
            "strip": strip_section(opened, generated, contents),
            "inpainting": inpainting_section(opened, contents, seed),
            "neighbours": neighbour_section(opened, generated),
        }
    return {
        **sections,
        "reconstructions": reconstruction_section(opened, contents),
        "bits": bits_section(opened.codes, _coin_flips(opened))
        if opened.codes is not None and opened.tokenizer.is_binary
        else None,
        "curves": curve_section(opened),
    }


# -- the head of the page ---------------------------------------------------------------------------------


def _title(opened: OpenedRun) -> str:
    location = opened.settings.data.location
    return Path(location.rstrip("/")).name or location


def _data(opened: OpenedRun) -> dict[str, Any]:
    shape, size = opened.tokenizer.code_shape, opened.tokenizer.config.image_size
    raw = size * size * opened.tokenizer.config.in_channels
    code_bytes = opened.tokenizer.config.code_bytes
    return {
        "run": str(opened.run.path),
        "location": opened.settings.data.location,
        "images": opened.num_training_images,
        "held_out": None if opened.held_out is None else len(opened.held_out),
        "classes": opened.classes,
        "conditional": opened.pipeline is not None and opened.pipeline.prior.config.num_classes > 0,
        "size": size,
        "shape": shape,
        "contents": "bits" if opened.tokenizer.is_binary else "real numbers",
        "code_bytes": code_bytes,
        "raw_bytes": raw,
        "compression": raw / code_bytes,
        "missing": opened.missing,
        "changed": opened.remark,
        "encode": f"bld encode --out {shlex.quote(str(opened.run.path))}" if opened.stale else None,
        "has_prior": opened.pipeline is not None,
    }


def _key_figures(opened: OpenedRun) -> list[tuple[str, str, str]]:
    """(value, unit, what it is), the most telling first."""
    rebuilt, foretold = opened.measured("tokenizer"), opened.measured("prior")
    decibels, drawn = rebuilt.get("held_out_psnr"), foretold.get(DRAWN_BOUND)
    rate = foretold.get(PROBABLE_BOUND) if drawn is None else drawn
    data = _data(opened)
    smaller = f"smaller than raw pixels: {data['code_bytes']:,} bytes per image"
    figures = [(f"{data['compression']:.3g}×", "", smaller)]
    if decibels is not None:
        from_drawn = rebuilt.get("held_out_drawn_psnr")
        also = "" if from_drawn is None else f"; {from_drawn:.1f} dB from drawn ones, as the prior makes them"
        figures.append((f"{decibels:.1f}", "dB", f"PSNR of held-out images from their most probable codes{also}"))
    if rate is not None and opened.pipeline is not None:
        bits = rate * opened.tokenizer.code_shape.bits
        code = "the most probable code" if drawn is None else "a drawn code"
        meaning = f"suffice the prior for {code} of a held-out image: {rate:.3f} per stored bit"
        figures.append((f"{bits:,.0f}", "bits", meaning))
        learned = learned_of(opened, bits) if drawn is not None else None
        if learned is not None:
            noise, could, has = learned
            flips = "of these are coin flips of the encoder, which no prior can foretell"
            figures.append((f"{noise:,.0f}", "bits", flips))
            figures.append((f"{has:,.0f}", "bits", f"has the prior learned of the {could:,.0f} that could be learned"))
    models = [opened.tokenizer] if opened.pipeline is None else opened.pipeline.networks
    number, unit = _short(sum(p.numel() for model in models for p in model.parameters()))
    figures.append((number, unit, "parameters in all networks"))
    seconds = sum(opened.progress(stage).get("seconds", 0) for stage in ("tokenizer", "encode", "prior"))
    if seconds:
        value, unit = _duration(seconds)
        figures.append((value, unit, "of training, all stages"))
    return figures


def learned_of(opened: OpenedRun, prior_bits: float) -> tuple[float, float, float] | None:
    """(coin flips, bits that could be learned, bits that the prior has learned) per image; None if not measured."""
    code = opened.progress("code")
    if "independent_bits" not in code:  # which a single image has not
        return None
    noise, independent = code["noise_bits"], code["independent_bits"]
    return noise, independent - noise, independent - prior_bits


def _coin_flips(opened: OpenedRun) -> float | None:
    """Bits that the encoder draws by chance per stored bit; None where nobody measured them of this tokenizer."""
    if not draws_of(opened.tokenizer, opened.settings.codes.draws):
        return 0.0
    code = opened.progress("code")
    if "noise_bits" not in code or code.get("tokenizer", "") != tokenizer_hash(opened.tokenizer):
        return None
    return float(code["noise_bits"]) / opened.tokenizer.code_shape.bits


def _stages(opened: OpenedRun) -> list[dict[str, str]]:
    """One table row per finished stage."""
    rows = []
    for stage, name in (("tokenizer", "Tokenizer"), ("encode", "Encoding"), ("prior", "Prior")):
        done = opened.progress(stage)
        if not done:
            continue
        steps, count, rate = done.get("steps"), done.get("parameters"), done.get("images_per_second")
        precision = f", {done['precision']}" if done.get("precision") else ""
        rows.append({
            "name": name + precision,
            "parameters": "–" if count is None else " ".join(_short(count)),
            "steps": "–" if steps is None else f"{steps:,}",
            "time": " ".join(_duration(done.get("seconds", 0))),
            "rate": "–" if rate is None else f"{rate:,.0f}",
        })  # fmt: skip
    return rows


def _short(count: int) -> tuple[str, str]:
    """1234567 → (1.23, M)."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}", unit
    return str(count), ""


def _duration(seconds: float) -> tuple[str, str]:
    """(number, unit) in the unit that reads best."""
    if seconds < 90:
        return f"{seconds:.{0 if seconds >= 10 else 1}f}", "s"
    if seconds < 5400:
        return f"{seconds / 60:.1f}", "min"
    return f"{seconds / 3600:.1f}", "h"


def _template() -> jinja2.Template:
    text = resources.files("bld.report").joinpath("report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["svg"] = Markup  # the charts are ours, and hold no text of the user's
    return environment.from_string(text)

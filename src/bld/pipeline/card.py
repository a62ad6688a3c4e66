"""The page that goes with a shared model: README.md, with what is known about it and nothing that is not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import yaml

from bld._version import __version__
from bld.pipeline.recorded import held_out_figures

if TYPE_CHECKING:
    from bld.pipeline.base import PipelineBase

LICENCE_UNKNOWN = "other"
MOST_CLASSES_NAMED = 40
BOUNDS = {  # as the training logs them, the first that is there; older runs have the second alone
    "held_out_drawn_bits_per_bit": "drawn codes",
    "held_out_bits_per_bit": "most probable codes",
}
WORDS = {  # of what a metric counts
    "samples": "samples",
    "unseen": "unseen images",
    "partly_seen": "images, some of which it was trained on",
}
TAGS = ["binary-latent-diffusion", "bernoulli-diffusion", "image-generation", "binary-tokenizer"]


@dataclass(frozen=True)
class CardFacts:
    """What a card says of a model.

    repo_id: the name it is shared under.  licence: an identifier of the hub, "other" if none was chosen.
    classes: names, or empty.  settings: (what, how) rows.  pictures: (file beside the card, caption).
    run: the folder it was trained in, of which measurements and training settings are read, if there are any.
    sampler: what makes its samples (`sampler_of`); of others no evaluation is told.
    takes_prompts: whether it is conditioned on texts.  revision: the branch it is on; None for the main one.
    """

    repo_id: str
    licence: str
    classes: Sequence[str]
    settings: Sequence[tuple[str, str]]
    pictures: Sequence[tuple[str, str]] = ()
    run: Path | None = None
    sampler: Mapping[str, str] = field(default_factory=dict)
    takes_prompts: bool = False
    revision: str | None = None


def sampler_of(pipeline: PipelineBase) -> dict[str, str]:
    """What makes a pipeline's samples, as evaluations record it: the fingerprint of its weights, and its process."""
    return {"model": pipeline.fingerprint(), "process": repr(pipeline.diffusion.settings())}


def loading(repo_id: str, revision: str | None) -> str:
    """The expression that loads a model of the hub."""
    at = f", revision={json.dumps(revision, ensure_ascii=False)}" if revision else ""
    return f'BinaryLatentDiffusionPipeline.from_pretrained("{repo_id}"{at})'


def model_card(facts: CardFacts) -> str:
    """The card as Markdown with YAML front matter, as the hub reads it."""
    front = {
        "license": facts.licence,
        "library_name": "bld",
        "pipeline_tag": "text-to-image" if facts.takes_prompts else "unconditional-image-generation",
        "tags": [*TAGS, *(["class-conditional"] if facts.classes else [])],
    }
    if facts.pictures:
        front["thumbnail"] = facts.pictures[0][0]
    page = {
        "front": yaml.safe_dump(front, sort_keys=False).rstrip(),
        "title": facts.repo_id.rsplit("/", 1)[-1],
        "facts": facts,
        "loading": loading(facts.repo_id, facts.revision),
        "named": ", ".join(" ".join(name.split()) for name in facts.classes[:MOST_CLASSES_NAMED]),
        "example": _example(facts),
        "unnamed": max(0, len(facts.classes) - MOST_CLASSES_NAMED),
        "metrics": list(metrics(facts.run, facts.sampler)),
        "training": list(training(facts.run)),
        "version": __version__,
        "has_licence": facts.licence != LICENCE_UNKNOWN,
        "cells": _cells,
    }
    text = resources.files("bld.pipeline").joinpath("model_card.md").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=False, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(text).render(page)


def _cells(row: Sequence[str]) -> str:
    """A row of a table, in whose cells a stroke is no border."""
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |"


def _example(facts: CardFacts) -> str:
    """What to condition on, as an argument; empty where there is nothing."""
    if facts.takes_prompts:
        return 'prompt="what to show"'
    return f"class_labels={json.dumps(facts.classes[0], ensure_ascii=False)}" if facts.classes else ""


def metrics(run: Path | None, sampler: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """(what, value, how it was measured) of all that a run has recorded of the model and process of `CardFacts`."""
    if run is None:
        return
    progress, lines = _json(run / "progress.json"), list(_lines(run / "metrics.jsonl"))
    are_unseen = progress.get("data", {}).get("held_out_are_unseen", True)
    images = "held-out images" if are_unseen else WORDS["partly_seen"]
    found, step = held_out_figures("tokenizer", progress, lines)
    for name, codes in (("held_out_psnr", "most probable codes"), ("held_out_drawn_psnr", "drawn codes")):
        if name in found:
            how = f"{images}, from their {codes}, step {step:,} of the tokenizer's training"
            yield "PSNR of reconstructions", f"{found[name]:.2f} dB", how
    code = progress.get("code", {})
    if "noise_bits" in code:
        how = f"of {code.get('images')} {images}"
        flips = f"{code['noise_bits']:.1f} bits an image"
        yield "coin flips of the encoder", flips, f"H(z|x) {how}; no prior needs less"
    if "independent_bits" in code:
        yield "independent bits", f"{code['independent_bits']:.1f} bits an image", how
    found, step = held_out_figures("prior", progress, lines)
    for name, codes in BOUNDS.items():
        if name in found:
            how = f"{codes} of {images}, step {step:,} of the prior's training"
            yield "code length", f"{found[name]:.4f} bits per bit", how
            break
    evaluation = _json(run / "evaluation.json")
    figures, samples = evaluation.get("figures"), evaluation.get("samples")
    if not (isinstance(figures, dict) and isinstance(samples, dict) and sampler and sampler.items() <= samples.items()):
        return  # there is none, or of other weights, as before a training went on, another posterior, or given images
    for name, value in figures.items():
        if isinstance(value, int | float):
            yield name, f"{value:.5g}", _how(evaluation, name)


def training(run: Path | None) -> Iterator[tuple[str, str]]:
    """(what, how) of the training, as the run's settings and progress tell it."""
    if run is None:
        return
    progress, settings = _json(run / "progress.json"), _yaml(run / "config.yaml")
    if settings.get("preset"):
        yield "settings began with the preset", Path(str(settings["preset"])).name
    for stage in ("tokenizer", "prior"):
        done, how = progress.get(stage, {}), settings.get(f"{stage}_training", {})
        if done.get("given"):
            yield f"training of the {stage}", "none here: it was given"
        elif done.get("steps"):
            # Of older runs only the settings tell it.
            used = done.get("trained_with") or [{name: how.get(name) for name in ("batch_size", "learning_rate")}]
            sizes = ", then ".join(f"of {one['batch_size']} at learning rate {one['learning_rate']}" for one in used)
            comma = "," if len(used) > 1 else ""
            begun = ", begun with the weights of another model" if done.get("init_from") else ""
            hours = f", {_duration(done['seconds'])}" if done.get("seconds") else ""
            precision = f", in {done['precision']}" if done.get("precision") else ""
            yield (
                f"training of the {stage}",
                f"{done['steps']:,} steps{comma} {sizes}{precision}{hours}{begun}",
            )
            if done.get("early_step"):
                yield f"guide of the {stage}", f"its own average after {done['early_step']:,} of these steps"


def _duration(seconds: float) -> str:
    """In the unit that reads best."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _how(evaluation: dict[str, Any], name: str) -> str:
    """All that moves a metric of an evaluation, short, and without folders of anybody's machine."""
    samples, counts = evaluation["samples"], (evaluation.get("counts") or {}).get(name) or {}
    extractor = (evaluation.get("extractor") or {}).get("name")
    reference = (evaluation.get("reference") or {}).get("images")
    if {"unseen", "partly_seen"} & counts.keys():  # which are the reference then
        reference, extractor = None, extractor if name == "rfd" else None
    sampling = ("steps", "temperature", "guidance_scale") if "samples" in counts or not counts else ()
    parts = [
        *(f"{count:,} {WORDS[what]}" for what, count in counts.items()),
        f"{reference:,} reference images" if reference else "",
        f"features: {Path(str(extractor)).name}" if extractor else "",
        *(f"{word.replace('_', ' ')} {samples[word]}" for word in (*sampling, "precision") if word in samples),
    ]
    return ", ".join(part for part in parts if part)


def _json(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        value = json.loads(path.read_text(encoding="utf-8"))
        return value if isinstance(value, dict) else {}
    return {}


def _yaml(path: Path) -> dict[str, Any]:
    with suppress(OSError, yaml.YAMLError):
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
        return value if isinstance(value, dict) else {}
    return {}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with suppress(OSError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError):
                value = json.loads(line)
                if isinstance(value, dict):
                    yield value

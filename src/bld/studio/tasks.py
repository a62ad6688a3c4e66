"""What the tasks of all tabs share: how codes are drawn, and what is watched of it.

A task is a function in a tab's file: settings and pictures in, pictures and the settings that made them out.  It is
handed the model and `report`, which it calls after every step of the sampling (and which may raise, to stop it).  Bad
settings are refused with a `SettingError` before anything is computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image
from torch import Tensor

from bld.data import to_pil
from bld.data.inputs import network_views
from bld.errors import SettingError
from bld.pipeline import BinaryLatentDiffusionPipeline
from bld.studio.jobs import Progress, Report
from bld.studio.made import Picture
from bld.studio.model import Model

ANY: Literal["any"] = "any"
EACH: Literal["each"] = "each"
LARGEST_SEED = 2**53 - 1  # the whole numbers that a browser can write
PREVIEWS = 12  # decoded states of one sampling

Which = int | Literal["any", "each"]
Label = int | list[int] | None


@dataclass(frozen=True)
class Sampling:
    """How codes are drawn.

    Attributes:
        seed: picture i depends on it and on i alone.
        steps: None takes the run's.
        temperature: τ; None takes the run's.
        guidance: 1 + ω; None takes the run's.
        which: a class; ANY leaves it open, EACH takes them in turn.
        posterior: "exact" or "plugin"; None takes the run's.
        prompt: for models that take prompts.
    """

    seed: int = 0
    steps: int | None = None
    temperature: float | None = None
    guidance: float | None = None
    which: Which = ANY
    posterior: str | None = None
    prompt: str = ""

    def pipe(self, model: Model) -> BinaryLatentDiffusionPipeline:
        """The model's pipeline, sampling with this posterior."""
        if self.posterior in (None, model.posterior):
            return model.pipe
        if self.posterior not in ("exact", "plugin"):
            raise SettingError(f"The posterior is exact or plugin, not '{self.posterior}'.")
        return model.pipe.with_posterior(self.posterior)  # type: ignore[arg-type]

    def labels(self, model: Model, count: int) -> Label:
        """What a pipeline calls class_labels, for so many pictures."""
        if self.which == ANY:
            return None
        if self.which == EACH:
            return [i % max(1, len(model.classes)) for i in range(count)]
        return int(self.which)

    def call(self, model: Model, count: int) -> dict[str, Any]:
        """The arguments of `pipe(…)` that make `count` pictures; SettingError for what is out of range."""
        defaults = model.pipe.index.sampling
        steps = model.default_steps if self.steps is None else whole(self.steps, "steps", 1, model.steps)
        asked = defaults.temperature if self.temperature is None else self.temperature
        temperature = number(asked, "temperature", *reaching(0.01, 10, defaults.temperature))
        guidance = number(defaults.guidance(self.guidance), "guidance", *reaching(0, 20, defaults.guidance_scale))
        call = {
            "num_images": whole(count, "number of pictures", 1, model.most_images),
            "class_labels": self.labels(model, count),
            "num_inference_steps": steps if model.pipe.diffusion.may_skip else None,
            "temperature": temperature,
            "guidance_scale": guidance,
            "generator": whole(self.seed, "seed", 0, LARGEST_SEED),
        }
        return {**call, "prompt": self.prompt} if model.takes_prompts and self.prompt else call

    def captions(self, model: Model, count: int) -> list[str]:
        """The class of each picture, or its number."""
        labels = self.labels(model, count)
        if labels is None:
            return [f"no. {i}" for i in range(count)]
        labels = labels if isinstance(labels, list) else [labels] * count
        return [model.classes[label] for label in labels]


Origin = Image.Image | Sampling


def number(value: float, name: str, least: float, most: float) -> float:
    """The value, if it lies in the range."""
    if not isinstance(value, int | float) or not least <= value <= most:  # also what is not a number
        raise SettingError(f"The {name} lies between {least:g} and {most:g}, not at {value}.")
    return float(value)


def reaching(least: float, most: float, default: float) -> tuple[float, float]:
    """The range, made wider where the run's default lies outside it."""
    return min(least, default), max(most, default)


def whole(value: float, name: str, least: int, most: int) -> int:
    """The value, if it is a whole number in the range."""
    if not isinstance(value, int | float) or not least <= value <= most or value != int(value):
        raise SettingError(f"The {name} is a whole number from {least} to {most}, not {value}.")
    return int(value)


def square(model: Model, picture: Image.Image) -> Image.Image:
    """What the model sees of a picture: its central square, upright, opaque, at the model's size."""
    return to_pil(network_views(picture, model.pipe.preprocessing))[0]


class Watch:
    """A pipeline's callback that reports each step, with some of the states decoded.

    Args:
        report: is told each step.
        steps: of this sampling.
        done: steps of the whole work that come before it.
        total: steps of the whole work; by default this sampling is all of it.
        over: (picture, mask), the picture standing outside the mask in what is shown.
    """

    def __init__(
        self,
        report: Report,
        steps: int,
        done: int = 0,
        total: int | None = None,
        over: tuple[Image.Image, Image.Image] | None = None,
    ):
        self.report, self.steps, self.done, self.total, self.over = report, steps, done, total or steps, over
        self.history: list[Image.Image] = []

    def __call__(self, pipe: BinaryLatentDiffusionPipeline, step: int, t: int, state: dict[str, Tensor]) -> None:
        """After a step, as `callback_on_step_end` is called."""
        pictures = None
        if (step + 1) % math.ceil(self.steps / PREVIEWS) == 0:
            pictures = tuple(self._shown(image) for image in pipe.decode(state["latents"]))
            self.history.append(pictures[0])
        self.report(Progress(self.done + step + 1, self.total, pictures))

    def _shown(self, image: Image.Image) -> Image.Image:
        return image if self.over is None else Image.composite(image, self.over[0], self.over[1])


def steps_of(model: Model, call: dict[str, Any]) -> int:
    """How many steps a call takes."""
    return call["num_inference_steps"] or model.steps


def code_of(model: Model, origin: Origin, report: Report, done: int = 0, total: int | None = None) -> Tensor:
    """The code (h, w, c) of an upload, or of the first picture of a seed."""
    if isinstance(origin, Image.Image):
        return model.pipe.encode(origin)[0]
    call = origin.call(model, 1)
    watch = Watch(report, steps_of(model, call), done, total)
    return origin.pipe(model)(**call, output_type="latent", callback_on_step_end=watch).codes[0]


def needs_bits(model: Model) -> None:
    """Refuse a model whose codes are no bits."""
    if not model.has_bits:
        raise SettingError(
            f"The codes of this model are no bits (its bottleneck is {model.pipe.tokenizer.config.bottleneck})."
        )


def numbered_pictures(images: Sequence[Image.Image], name: str, captions: Sequence[str]) -> list[Picture]:
    """Pictures with their captions, named by their number."""
    return [
        Picture(image, f"{name}-{i:03d}", caption, f"Picture {i}, {caption}")
        for i, (image, caption) in enumerate(zip(images, captions, strict=True))
    ]

"""A trained model as the studio holds it: used by one visitor at a time, with limits that keep the page quick."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from PIL import Image

from bld.diffusion import BernoulliDiffusion
from bld.io.files import as_utf8
from bld.pipeline import BinaryLatentDiffusionPipeline

MOST_IMAGES = 64
MOST_CLASSES_AT_ONCE = 12
PIXELS_AT_ONCE = MOST_IMAGES * 128**2  # as many images of 128×128; fewer of larger ones


@dataclass
class Model:
    """A pipeline, and how this studio uses it.

    Attributes:
        pipe: the pipeline.
        name: of the run, without its path.
        precision: what the networks compute in.
        examples: pictures of the run's data that it was not trained on, for visitors who bring none.
        run: what the command line calls it; by default its name.
    """

    pipe: BinaryLatentDiffusionPipeline
    name: str
    precision: Literal["float32", "bf16"] = "float32"
    examples: tuple[Image.Image, ...] = ()
    run: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.name = as_utf8(self.name).decode()  # no page can hold what is no UTF-8
        self.run = as_utf8(self.run).decode() or self.name

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The model for one piece of work at a time, computing in its precision."""
        with self._lock, torch.autocast(self.pipe.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            yield

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that name the weights."""
        return self.pipe.fingerprint()

    @property
    def classes(self) -> list[str]:
        """Class names in label order; empty when the prior is unconditional."""
        return [as_utf8(name).decode() for name in self.pipe.classes] if self.pipe.prior.config.num_classes else []

    @property
    def can_be_guided(self) -> bool:
        """Whether there is something to guide by."""
        return bool(self.classes) or self.takes_prompts or self.pipe.guide is not None

    @property
    def takes_prompts(self) -> bool:
        """Whether the prior is conditioned on text."""
        return self.pipe.takes_prompts

    @property
    def is_bernoulli(self) -> bool:
        """Whether there are posteriors to choose, steps to resample, and codes that can be varied."""
        return isinstance(self.pipe.diffusion, BernoulliDiffusion)

    @property
    def posterior(self) -> str | None:
        """The run's own; None for the alternatives to the Bernoulli diffusion."""
        return self.pipe.diffusion.posterior if isinstance(self.pipe.diffusion, BernoulliDiffusion) else None

    @property
    def has_bits(self) -> bool:
        """Whether codes are bits of which each says something, and not real numbers or indices of a codebook."""
        return self.pipe.tokenizer.bottleneck.has_probs

    @property
    def steps(self) -> int:
        """T, the most steps a sample takes."""
        return self.pipe.diffusion.steps

    @property
    def default_steps(self) -> int:
        """How many of the T are taken unless asked otherwise."""
        return self.pipe.index.sampling.num_inference_steps or self.steps

    @property
    def most_images(self) -> int:
        """How many images can be asked for at a time: 64 up to 128×128, fewer of larger ones."""
        return max(1, min(MOST_IMAGES, PIXELS_AT_ONCE // self.pipe.image_size**2))

    @property
    def default_images(self) -> int:
        """How many are made unless asked otherwise: one of each class where there are few."""
        several = len(self.classes) if 4 <= len(self.classes) <= MOST_CLASSES_AT_ONCE else 8
        return max(1, min(several, self.most_images // 4))

    @property
    def parameters(self) -> int:
        """Of all networks together."""
        return sum(parameter.numel() for network in self.pipe.networks for parameter in network.parameters())

"""How the images of a row are drawn."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal


@dataclass(frozen=True)
class Sampling:
    """How a row's images are drawn.

    steps: None for all.  temperature: τ.  guidance_scale: 1 + ω.  seed: image i depends on it and on i alone.
    posterior: of Bernoulli diffusion.  reveal: of absorbing diffusion.  labelled: whether every image is asked to be of
    a class, the classes in turn.
    """

    steps: int | None = None
    temperature: float = 0.9
    guidance_scale: float = 1.0
    seed: int = 0
    posterior: Literal["exact", "plugin"] = "exact"
    reveal: Literal["random", "confidence"] = "random"
    labelled: bool = False

    def guided(self, scale: float) -> Sampling:
        """The same, each image asked to be of a class and guided by so much (1 is without); 0: just the same."""
        return replace(self, labelled=True, guidance_scale=scale) if scale else self

    def __str__(self) -> str:
        """What it differs in from the plainest."""
        changed = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return ", ".join(f"{name} {value}" for name, value in changed.items()) or "all steps"

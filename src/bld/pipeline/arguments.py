"""Arguments as users give them, and results as they want them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from bld.data import to_pil
from bld.errors import SettingError, did_you_mean
from bld.numbers import whole_number
from bld.seeding import KeyedDraws, keyed_draws

OutputType = Literal["pil", "np", "pt", "latent"]
PerImage = KeyedDraws | list[torch.Generator | KeyedDraws]
Generators = int | torch.Generator | KeyedDraws | Sequence[torch.Generator | KeyedDraws | int] | None
Labels = int | str | Sequence[int | str] | None
Vectors = np.ndarray | Tensor | Sequence[float] | None


def to_output(images: Tensor, output_type: OutputType) -> Any:
    """(B, 3, H, W) in [-1, 1] → what the caller asked for."""
    if output_type == "pil":
        return to_pil(images)
    unit = (images + 1) / 2
    if output_type == "pt":
        return unit
    if output_type == "np":
        return unit.permute(0, 2, 3, 1).numpy()
    raise _unknown_output(output_type)


def refuse_other_output(output_type: Any) -> None:
    """`SettingError` for an output type that there is not, before anything is computed for it."""
    if output_type not in get_args(OutputType):
        raise _unknown_output(output_type)


def _unknown_output(output_type: Any) -> SettingError:
    known = get_args(OutputType)
    return SettingError(f"Unknown output_type '{output_type}'.{did_you_mean(str(output_type), known)}")


def generators_of(generator: Generators, count: int, first_index: int, purpose: str = "sample") -> PerImage:
    """Draws for each image, keyed by (seed, index), unless the caller brought generators."""
    first_index = whole_number("first_index", first_index, 0)
    if isinstance(generator, Sequence | KeyedDraws):
        if len(generator) != count:
            raise SettingError(f"{len(generator)} generators were given for {count} images: give one per image.")
        if isinstance(generator, KeyedDraws):
            return generator
        return [
            one
            if isinstance(one, torch.Generator | KeyedDraws)
            else keyed_draws(whole_number("A seed", one), purpose, [0])
            for one in generator
        ]
    if generator is None:
        generator = int(torch.randint(2**62, ()))
    elif isinstance(generator, torch.Generator):
        generator = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    generator = whole_number("A seed", generator)
    return keyed_draws(generator, purpose, range(first_index, first_index + count))


def floating_dtype(given: torch.dtype | str) -> torch.dtype:
    """A floating-point type, or one that is named; `SettingError` for anything else."""
    found = getattr(torch, given.removeprefix("torch."), None) if isinstance(given, str) else given
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise SettingError(f"torch_dtype is a floating-point type such as float16 or bfloat16, not {given!r}.")
    return found

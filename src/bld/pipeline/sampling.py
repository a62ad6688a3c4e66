"""Codes by the prior, in batches that do not show in the result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from bld.codes import CodeShape, to_grid, to_tokens
from bld.diffusion import with_guidance
from bld.diffusion.process import Callback, Process, SamplingStep
from bld.errors import SettingError
from bld.numbers import finite_number, whole_number
from bld.pipeline.arguments import PerImage
from bld.priors import Transformer
from bld.serialization.models import SamplingDefaults


class Networks(NamedTuple):
    """What draws codes, each a copy for inference.

    Attributes:
        prior: the network.
        guide: the weaker one that guides it, or None.
    """

    prior: Transformer
    guide: Transformer | None

    @classmethod
    def of(cls, prior: Transformer, guide: Transformer | None) -> Self:
        """As they are now."""
        return cls(prior.for_inference(), None if guide is None else guide.for_inference())


def draw_codes(
    networks: Networks,
    diffusion: Process,
    asked: Tensor,
    generators: PerImage,
    defaults: SamplingDefaults,
    num_inference_steps: int | None = None,
    temperature: float | None = None,
    guidance_scale: float | None = None,
    callback: Callback | None = None,
    batch_size: int = 64,
    **options: Any,
) -> Tensor:
    """Codes (n, h, w, c), uint8 on the CPU.

    Args:
        networks: which draw them.
        diffusion: how it generates.
        asked: what each of the n images is conditioned on, as `Conditioning.rows` gives it.
        generators: one per image.
        defaults: for what is None.
        num_inference_steps, temperature, guidance_scale: 1 … T; τ above 0; 1 + ω.
        callback: sees each step.
        batch_size: codes drawn at a time.
        **options: of this kind of prior.

    Raises:
        SettingError: for a value that is not possible.
    """
    prior, guide = networks
    shape = prior.code_shape
    steps = num_inference_steps if num_inference_steps is not None else defaults.num_inference_steps
    scale = finite_number("guidance_scale", defaults.guidance(guidance_scale))
    if scale != 1 and guide is None and not prior.config.is_conditional:
        raise SettingError(
            f"guidance_scale={scale} needs a conditional prior or a guide; this one has no classes, text or vectors, "
            "and no guide, which training with prior.guide keeps."
        )
    tau = finite_number("temperature", defaults.temperature if temperature is None else temperature)
    batch_size = whole_number("batch_size", batch_size, 1)
    parts = []
    for start in range(0, len(asked), batch_size):
        batch = asked[start : start + batch_size].to(prior.device)
        null = prior.no_condition(len(batch), prior.device)
        tokens = diffusion.sample(
            with_guidance(prior.for_sampling(), batch, null, scale, None if guide is None else guide.for_sampling()),
            (len(batch), shape.positions, shape.c),
            steps=steps,
            temperature=tau,
            generators=generators[start : start + batch_size],
            callback=callback,
            device=prior.device,
            **{"known": None, "mask": None, **options},
        )
        parts.append(to_grid(tokens, shape).cpu())
    return torch.cat(parts)


def observer(
    callback: Callable[[int, int, dict[str, Tensor]], Any], shape: CodeShape, check: Callable[[Any], Tensor], kind: str
) -> Callback:
    """A user's callback (step, t, {"latents": codes}) as a sampler calls it.

    Args:
        callback: may return a dict with other latents, from which Bernoulli diffusion goes on.
        shape: of the codes.
        check: refuses codes that are none.
        kind: of the prior.
    """

    def observe(step: SamplingStep) -> None:
        latents = to_grid(step.codes, shape)
        changed = callback(step.index, step.t, {"latents": latents})
        other = changed.get("latents", latents) if isinstance(changed, dict) else latents
        if other is latents:
            return
        if kind != "bernoulli":
            raise SettingError(f"A callback may change the latents of the Bernoulli prior; this one is {kind}.")
        shape_given = tuple(other.shape) if isinstance(other, Tensor) else type(other).__name__
        if shape_given != tuple(latents.shape):
            raise SettingError(f"A callback gave latents of {shape_given}, not {tuple(latents.shape)}.")
        step.codes.copy_(to_tokens(check(other)))  # the sampler's own, from which it goes on

    return observe

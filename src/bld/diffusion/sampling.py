"""Sampling: from uniform bits to a code, on any sub-sequence of the steps (Algorithm 2), with or without known bits.

The last step draws nothing: it returns the predicted z_0, thresholded at ½ (or drawn, if asked).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from bld.diffusion.corrector import gibbs_flip_probs
from bld.diffusion.process import Callback, Denoise, SamplingStep, check_sampling, spaced_steps
from bld.diffusion.schedule import at_least_float32
from bld.diffusion.steps import BernoulliSteps
from bld.errors import SettingError
from bld.seeding import Generators, uniform

KnownBits = Literal["noised", "clean"]
Final = Literal["threshold", "draw", "z1"]


@torch.no_grad()
def sample_codes(
    denoise: Denoise,
    shape: tuple[int, int, int],
    diffusion: BernoulliSteps,
    steps: int | None = None,
    temperature: float = 0.9,
    generators: Generators = None,
    known: Tensor | None = None,
    mask: Tensor | None = None,
    callback: Callback | None = None,
    *,
    known_bits: KnownBits = "noised",
    resample: int = 1,
    corrector_steps: int = 0,
    final: Final = "threshold",
    start: tuple[Tensor, int] | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw codes, (n, N, c) uint8 (Algorithm 2).

    Args:
        denoise: (z_t, t) → logits.
        shape: (n, N, c).
        diffusion: schedule, target and posterior.
        steps: how many of the T to visit; all by default.
        temperature: τ > 0 in σ(logits/τ).
        generators: one per sample; a sample depends on its own only.
        known: (n or 1, N, c) bits of an inpainting, with `mask`.
        mask: (N,), (n, N) or (n, N, c), True where bits are to be *made*; elsewhere the result equals `known`.
        callback: called with a `SamplingStep` after each step; what it writes into the codes is gone on with.
        known_bits: "noised" shows the network, at each step, a fresh draw of q(z_t | z_0) at the known bits (what it
            saw in training); "clean" clamps the bits themselves. Either way what is made harmonises with the known
            bits, but is no exact draw given them, at any number of steps.
        resample: how often each step of an inpainting is taken (jump back, repeat), to harmonise borders; 1 is once.
        corrector_steps: Gibbs redraws at each visited step (an extra network call each).
        final: how it ends: the predicted z_0 thresholded at ½ ("threshold") or drawn ("draw"), or z_1 itself ("z1"), as
            Algorithm 2 prints it, with one step less to go.
        start: (z_t, t) to begin from, bits (n, N, c) at step t, in place of uniform bits at T; then `steps` of the t
            are visited.
        device: where the codes are drawn.

    Raises:
        SettingError: naming the value that is not possible.
    """
    check_sampling(shape, temperature, known, mask)
    _validate(known_bits, resample, corrector_steps, final)
    clamp = _Clamp.of(known, mask, shape, known_bits, diffusion, generators, device)
    z, visited = _beginning(start, shape, diffusion, steps, generators, device)
    visited = _to_z1(visited) if final == "z1" else visited
    times = torch.tensor(visited, device=device).unsqueeze(1).expand(-1, shape[0])

    def logits_at(z_t: Tensor, index: int) -> Tensor:
        return at_least_float32(denoise(z_t, times[index])) / temperature

    total = len(visited) - 1
    for index, (t, s) in enumerate(pairwise(visited)):
        repeats = resample if clamp is not None and s > 0 else 1
        for repeat in range(repeats):
            if repeat:
                z = diffusion.renoise(z, s, t, generators)
            z = z if clamp is None else clamp(z, t)
            for _ in range(corrector_steps):
                flips = gibbs_flip_probs(diffusion.flip_logits(logits_at(z, index), z), diffusion.retention(t))
                z = z ^ (uniform(shape, generators, device) < flips).to(torch.uint8)
                z = z if clamp is None else clamp(z, t)
            probs, z = _step(diffusion, logits_at(z, index), z, t, s, generators, final)
        if index == total - 1 and clamp is not None:
            z = clamp.paste(z)
        if callback is not None:
            callback(SamplingStep(index, total, t, s, z, probs))
    return z


def _beginning(
    start: tuple[Tensor, int] | None,
    shape: tuple[int, int, int],
    diffusion: BernoulliSteps,
    steps: int | None,
    generators: Generators,
    device: torch.device | str,
) -> tuple[Tensor, list[int]]:
    """(bits to begin with, the steps visited from there down to 0)."""
    if start is None:
        return (uniform(shape, generators, device) < 0.5).to(torch.uint8), diffusion.schedule.timesteps(steps)
    z, t_start = start[0].to(device=device, dtype=torch.uint8), start[1]
    _validate_start(z, t_start, shape, diffusion.steps)
    return z, spaced_steps(t_start, steps)


def _to_z1(visited: list[int]) -> list[int]:
    """The steps visited when sampling ends at z_1 in place of z_0."""
    ends = visited[:-1] if visited[-2] == 1 else [*visited[:-1], 1]
    if len(ends) < 2:
        raise SettingError("final='z1' ends a step before the others, and there is one step alone: take more.")
    return ends


def _step(
    diffusion: BernoulliSteps,
    logits: Tensor,
    z_t: Tensor,
    t: int,
    s: int,
    generators: Generators,
    final: str,
) -> tuple[Tensor, Tensor]:
    """One reverse step t → s: (P(z_s = 1), z_s)."""
    # At s = 0 the prediction of z_0 itself ends the chain: for "exact" the same, for "plugin" as the public code does.
    probs = diffusion.reverse_probs(logits, z_t, t, s) if s > 0 else diffusion.clean_probs(logits, z_t, t)
    drawn = s > 0 or final == "draw"
    threshold: Tensor | float = uniform(probs.shape, generators, probs.device) if drawn else 0.5
    return probs, (probs > threshold).to(torch.uint8)


@dataclass(frozen=True)
class _Clamp:
    """Puts known bits into z_t, at the noise level of step t or as they are."""

    known: Tensor
    keep: Tensor
    noised: bool
    diffusion: BernoulliSteps
    generators: Generators

    @classmethod
    def of(
        cls,
        known: Tensor | None,
        mask: Tensor | None,
        shape: tuple[int, int, int],
        known_bits: KnownBits,
        diffusion: BernoulliSteps,
        generators: Generators,
        device: torch.device | str,
    ) -> _Clamp | None:
        if known is None or mask is None:
            return None
        if known.ndim != 3 or known.shape[1:] != shape[1:] or len(known) not in (1, shape[0]):
            raise SettingError(
                f"The known bits have the shape {tuple(known.shape)}: give (n or 1, N, c) for codes of {tuple(shape)}."
            )
        given = tuple(mask.shape)
        mask = mask.to(device=device, dtype=torch.bool)
        mask = mask.view(1, -1, 1) if mask.ndim == 1 else mask.unsqueeze(-1) if mask.ndim == 2 else mask
        if mask.ndim != 3 or any(m not in (1, n) for m, n in zip(mask.shape, shape, strict=True)):
            raise SettingError(
                f"The mask has the shape {given}: give (N,), (n, N) or (n, N, c) for codes of {tuple(shape)}."
            )
        known = known.to(device=device, dtype=torch.uint8).expand(shape)
        return cls(known, (~mask).expand(shape), known_bits == "noised", diffusion, generators)

    def __call__(self, z_t: Tensor, t: int) -> Tensor:
        known = self.diffusion.diffuse(self.known, t, self.generators) if self.noised else self.known
        return torch.where(self.keep, known, z_t)

    def paste(self, z_0: Tensor) -> Tensor:
        return torch.where(self.keep, self.known, z_0)


def _validate(known_bits: str, resample: int, corrector_steps: int, final: str) -> None:
    if resample < 1 or corrector_steps < 0:
        raise SettingError(
            f"resample is at least 1 and corrector_steps at least 0; got {resample} and {corrector_steps}."
        )
    if known_bits not in ("noised", "clean"):
        raise SettingError(f"known_bits is 'noised' or 'clean', not '{known_bits}'.")
    if final not in get_args(Final):
        raise SettingError(f"final is 'threshold', 'draw' or 'z1', not '{final}'.")


def _validate_start(z: Tensor, t: int, shape: tuple[int, int, int], total: int) -> None:
    if not 1 <= t <= total:
        raise SettingError(f"Sampling can start at the steps 1 to {total} here, not at {t}.")
    if tuple(z.shape) != tuple(shape):
        raise SettingError(
            f"The bits to start from have the shape {tuple(z.shape)}: give {tuple(shape)}, as the codes."
        )

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
from bld.numbers import whole_number
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
    known_bits: KnownBits = "clean",
    resample: int = 1,
    corrector_steps: int = 0,
    final: Final = "threshold",
    start: tuple[Tensor, int] | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw codes, (n, N, c) uint8 (Algorithm 2).

    Args:
        denoise: (z_t, t) → logits (n, N, c), given z_t (n, N, c) uint8 and t (n,) int64, both on `device`.
        shape: (n, N, c): n codes of N positions with c bits.
        diffusion: a `bld.BernoulliDiffusion`: schedule, target and posterior.
        steps: how many of the T steps to take; all by default.
        temperature: τ > 0 in σ(logits/τ).
        generators: `keyed_draws`, or one generator per sample, so that a sample does not depend on the batch; or one
            for the batch; None uses torch's global one.
        known: (n or 1, N, c) bits to keep when inpainting, with `mask`.
        mask: (N,), (n, N) or (n, N, c), True where bits are to be generated; elsewhere the result equals `known`.
        callback: called with a `SamplingStep` after each step; it may change `codes` in place.
        known_bits: "clean" shows the network the known bits themselves; "noised" a fresh draw of q(z_t | z_0) at them
            in each step, as in training, which tells it less. Neither samples the exact conditional distribution.
        resample: times each step is repeated when inpainting (renoise, denoise again), for smoother borders; 1 is once.
        corrector_steps: Gibbs corrector steps before each denoising step; each costs one call of the network.
        final: how sampling ends: "threshold" returns P(z_0 = 1) thresholded at ½, "draw" a draw of it, and "z1" a draw
            of z_1, as printed in Algorithm 2.
        start: (z_t, t): start from bits (n, N, c) at step t instead of uniform bits at T; `steps` is then at most t.
        device: device of the codes; that of the network.

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
    whole_number("resample", resample, 1)
    whole_number("corrector_steps", corrector_steps, 0)
    if known_bits not in ("noised", "clean"):
        raise SettingError(f"known_bits is 'noised' or 'clean', not '{known_bits}'.")
    if final not in get_args(Final):
        raise SettingError(f"final is 'threshold', 'draw' or 'z1', not '{final}'.")


def _validate_start(z: Tensor, t: int, shape: tuple[int, int, int], total: int) -> None:
    if not 1 <= whole_number("The step to start from", t) <= total:
        raise SettingError(f"Sampling can start at the steps 1 to {total} here, not at {t}.")
    if tuple(z.shape) != tuple(shape):
        raise SettingError(
            f"The bits to start from have the shape {tuple(z.shape)}: give {tuple(shape)}, as the codes."
        )

"""The variational bound of eq. (7) as a code length: how many bits the prior needs for a code."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from bld.diffusion.loss import variational_terms
from bld.diffusion.process import Denoise
from bld.diffusion.steps import BernoulliSteps
from bld.numbers import whole_number
from bld.seeding import Generators


@torch.no_grad()
def likelihood_bits(
    diffusion: BernoulliSteps,
    denoise: Denoise,
    z0: Tensor,
    *,
    steps: int | None = None,
    draws: int = 1,
    generators: Generators = None,
) -> Tensor:
    """Upper bound on -log₂ p(z_0) in bits per code: L_0 + Σ L_t + L_T of eq. (7).

    Each KL is exact; z_t is drawn `draws` times per step, so the answer is an unbiased estimate of the bound. Divide
    by N·c for bits per dimension.

    Args:
        diffusion: schedule and target; "previous" visits all steps or raises.
        denoise: (z_t, t) → logits (B, N, c).
        z0: (B, N, c) bits.
        steps: bound of the chain that visits only that many of the T steps; None visits all.
        draws: of z_t at each step.
        generators: one per code.

    Returns:
        float64 (B,).

    Raises:
        SettingError: for less than one draw, or steps that cannot be taken.
    """
    draws = whole_number("draws", draws, 1)
    visited = diffusion.schedule.timesteps(steps)
    nats = torch.zeros(len(z0), dtype=torch.float64, device=z0.device)
    for t, s in pairwise(visited):
        diffusion.check_steps(t, s)
        for _ in range(draws):
            z_t = diffusion.diffuse(z0, t, generators)
            logits = denoise(z_t, torch.full((len(z0),), t, device=z0.device))
            nats += variational_terms(diffusion, logits, z0, z_t, t, s).double().sum((1, 2)) / draws
    return nats / math.log(2) + prior_bits(diffusion) * z0[0].numel()


@torch.no_grad()
def bound_at(
    diffusion: BernoulliSteps,
    denoise: Denoise,
    z0: Tensor,
    t: Tensor,
    generators: Generators = None,
) -> Tensor:
    """T·L_t + L_T of each code at its own step t (B,), in bits, float64 (B,): its mean over t = 1 … T is the bound."""
    z_t = diffusion.diffuse(z0, t, generators)
    nats = variational_terms(diffusion, denoise(z_t, t), z0, z_t, t, t - 1).double().sum((1, 2))
    return nats / math.log(2) * diffusion.steps + prior_bits(diffusion) * z0[0].numel()


def prior_bits(diffusion: BernoulliSteps) -> float:
    """L_T per bit: KL(q(z_T | z_0) ‖ fair coin) in bits; 0 when k_T = 0."""
    p = (1 + diffusion.retention(diffusion.steps)) / 2
    return 1 + p * math.log2(p) + (1 - p) * math.log2(1 - p) if p < 1 else 1.0

"""The training objective: BCE on the target plus λ times one term of the variational bound (eq. 7, 12, 13)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bld.diffusion.schedule import at_least_float32
from bld.diffusion.steps import BernoulliSteps


class DiffusionLoss(NamedTuple):
    """The terms of eq. (13), scalars in nats per bit.

    Attributes:
        total: the loss to minimise: residual + λ·vlb; with the target "previous", vlb alone.
        residual: eq. (12), detached; 0 with the target "previous".
        vlb: one term of eq. (7), detached.
    """

    total: Tensor
    residual: Tensor
    vlb: Tensor


def diffusion_loss(
    diffusion: BernoulliSteps,
    logits: Tensor,
    z0: Tensor,
    z_t: Tensor,
    t: Tensor,
    vlb_weight: float,
    flips: Tensor | None = None,
    hidden: Tensor | None = None,
) -> DiffusionLoss:
    """Eq. (13) as means over samples and bits.

    The residual is BCE(f, z_t ⊕ z_0) of eq. (12); predicting z_0 instead is the same number, so only the meaning of the
    logits differs.

    Args:
        diffusion: schedule and target.
        logits: (B, N, c).
        z0: (B, N, c) bits.
        z_t: (B, N, c) bits.
        t: (B,) in 1 … T.
        vlb_weight: λ.
        flips: probabilities (B, N, c) in the place of z_t ⊕ z_0, for the mean over all z_0 that they allow.
        hidden: bool (B, N), False where the bits are known, which then count as predicted without loss.

    Returns:
        total (to minimise), residual and vlb: scalars, nats per bit.
    """
    flips = z_t ^ z0 if flips is None else flips
    asked = 1.0 if hidden is None else hidden.unsqueeze(-1)
    vlb = (variational_terms(diffusion, logits, z0, z_t, t, t - 1, flips) * asked).mean()
    if diffusion.target == "previous":
        return DiffusionLoss(total=vlb, residual=torch.zeros_like(vlb), vlb=vlb.detach())
    flip_logits = diffusion.flip_logits(logits, z_t)
    bits = F.binary_cross_entropy_with_logits(flip_logits, flips.to(flip_logits.dtype), reduction="none")
    residual = (bits * asked).mean()
    return DiffusionLoss(residual + vlb_weight * vlb, residual.detach(), vlb.detach())


def variational_terms(
    diffusion: BernoulliSteps,
    logits: Tensor,
    z0: Tensor,
    z_t: Tensor,
    t: int | Tensor,
    s: int | Tensor,
    flips: Tensor | None = None,
) -> Tensor:
    """KL(q(z_s | z_t, z_0) ‖ p(z_s | z_t)) per bit, in nats, (B, N, c): the L_t of eq. (7).

    Where s = 0 this is -log p(z_0 | z_t), the L_0 of eq. (7): the entropy of q vanishes.
    flips: P(z_0 ≠ z_t), (B, N, c), for the mean over z_0; None knows z_0.
    """
    a, c = diffusion.flip_coefficients(t, s, z_t.device)
    if diffusion.target == "previous":
        previous = at_least_float32(logits)
        x = previous * (1 - 2 * z_t.to(previous.dtype))
        log_flip, log_stay = F.logsigmoid(x), F.logsigmoid(-x)
    else:
        x = diffusion.flip_logits(logits, z_t)
        log_flip = _log((a + (c - a) * x.sigmoid()).to(x.dtype))
        log_stay = _log(((1 - c) + (c - a) * (-x).sigmoid()).to(x.dtype))
    same, differs = (torch.as_tensor(q, dtype=log_flip.dtype, device=z_t.device) for q in (a, c))
    f = (z_t ^ z0 if flips is None else flips).to(log_flip.dtype)
    q = (1 - f) * same + f * differs  # of the bound only the entropy of q is not linear in it
    negentropy = (1 - f) * _negentropy(same) + f * _negentropy(differs)
    return negentropy - q * log_flip - (1 - q) * log_stay


def _negentropy(q: Tensor) -> Tensor:
    return torch.xlogy(q, q) + torch.xlogy(1 - q, 1 - q)


def _log(p: Tensor) -> Tensor:
    """log p, kept finite (and its gradient zero) where a float32 probability has underflowed."""
    return p.clamp(min=torch.finfo(p.dtype).tiny).log()

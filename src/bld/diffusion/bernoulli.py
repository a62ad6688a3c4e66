"""Bernoulli diffusion whole: its steps, with the loss, the sampler and the likelihood that are built on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bld.diffusion import likelihood
from bld.diffusion.loss import DiffusionLoss, diffusion_loss
from bld.diffusion.process import Denoise, Generators
from bld.diffusion.sampling import sample_codes
from bld.diffusion.schedule import NoiseSchedule
from bld.diffusion.steps import BernoulliSteps


class BernoulliDiffusion(BernoulliSteps):
    """Diffusion of bits `z ∈ {0, 1}`, shape (B, N, c), for one schedule (Section 4).

    Args:
        schedule: the retentions k_t.
        target: what σ(logits) means. "flip": P(z_0 ≠ z_t), eq. (12), the paper's best; "z0": P(z_0 = 1), eq. (8);
            "previous": P(z_{t-1} = 1), eq. (6), which can only step from t to t - 1.
        posterior: "exact" is eq. (8). "plugin" is eq. (10) with its indices corrected, which counts the evidence of z_t
            twice and does not converge to the data; it is there to compare, and to replay public checkpoints.

    Raises:
        SettingError: for an unknown target or posterior.
    """

    kind = "bernoulli"
    has_likelihood = True

    @classmethod
    def from_settings(cls, **settings: Any) -> BernoulliDiffusion:
        """Build from the dict that `settings` returns."""
        schedule = NoiseSchedule(settings["schedule"], steps=settings["steps"], table=settings.get("table"))
        return cls(schedule, settings["target"], settings["posterior"])

    def settings(self) -> dict[str, Any]:
        """JSON-ready dict for `from_settings`: schedule, steps, target, posterior, and the table if there is one."""
        schedule = self.schedule
        table = {"table": schedule.k.tolist()} if schedule.kind == "table" else {}
        shape = {"schedule": schedule.kind, "steps": schedule.steps, **table}
        return {**shape, "target": self.target, "posterior": self.posterior}

    def loss(
        self,
        logits: Tensor,
        z0: Tensor,
        z_t: Tensor,
        t: Tensor,
        vlb_weight: float = 0.1,
        flips: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> DiffusionLoss:
        """The loss of eq. (13), averaged over samples and bits.

        Args:
            logits: (B, N, c), the network's output for z_t and t; its meaning is `target`.
            z0: (B, N, c) bits.
            z_t: (B, N, c) bits, as `diffuse` draws them.
            t: (B,) int64 in 1 … T.
            vlb_weight: λ.
            flips: probabilities (B, N, c) to compare with instead of z_t ⊕ z_0, as `flip_posterior` gives them.
            hidden: bool (B, N), False where bits count as predicted without loss.
        """
        return diffusion_loss(self, logits, z0, z_t, t, vlb_weight, flips, hidden)

    def training_loss(
        self,
        denoise: Denoise,
        z0: Tensor,
        t: Tensor,
        generators: Generators = None,
        vlb_weight: float = 0.1,
        probs: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> DiffusionLoss:
        """Algorithm 1: noise the codes to step t, predict, compare (eq. 13).

        Args:
            denoise: (z_t, t) → logits (B, N, c).
            z0: (B, N, c) bits.
            t: (B,) in 1 … T.
            generators: one per sample.
            vlb_weight: λ.
            probs: y (B, N, c), the probabilities z_0 was drawn from; with them the target is P(z_0 ≠ z_t | z_t, y)
                instead of z_t ⊕ z_0, which has the same expected gradient and less variance.
            hidden: bool (B, N), False at positions that the network is shown without noise and not asked for, as when
                a hole is filled; None asks for all.

        Returns:
            total (to minimise), residual and vlb: scalars, nats per bit.
        """
        z_t = self.diffuse(z0, t, generators)
        z_t = z_t if hidden is None else torch.where(hidden.unsqueeze(-1), z_t, z0)
        flips = None if probs is None else self.flip_posterior(probs, z_t, t)
        return self.loss(denoise(z_t, t), z0, z_t, t, vlb_weight, flips, hidden)

    def bound_at(self, denoise: Denoise, z0: Tensor, t: Tensor, generators: Generators = None) -> Tensor:
        """One-step estimate of the bound of eq. (7) in bits per code, float64 (B,); unbiased for t uniform in 1 … T.

        Args are those of `training_loss`.
        """
        return likelihood.bound_at(self, denoise, z0, t, generators)

    def sample(self, denoise: Denoise, shape: tuple[int, int, int], **options: Any) -> Tensor:
        """Codes (n, N, c), uint8: see `bld.diffusion.sample_codes`."""
        return sample_codes(denoise, shape, self, **options)

    def likelihood_bits(
        self,
        denoise: Denoise,
        z0: Tensor,
        *,
        steps: int | None = None,
        draws: int = 1,
        generators: Generators = None,
    ) -> Tensor:
        """Upper bound on -log₂ p(z_0) (eq. 7) in bits per code, float64 (B,); divide by N·c for bits per dimension.

        Args:
            denoise: (z_t, t) → logits (B, N, c).
            z0: (B, N, c) bits.
            steps: bound of the sampler that takes this many of the T steps; None takes all.
            draws: draws of z_t per step.
            generators: `keyed_draws`, one generator per code, or one for the batch.

        Raises:
            SettingError: for fewer than one draw, or steps that cannot be taken.
        """
        return likelihood.likelihood_bits(self, denoise, z0, steps=steps, draws=draws, generators=generators)

"""The forward process, and the exact reverse step as one affine map of flip probabilities.

Everything is said in *flips*. With f = P(z_0 ≠ z_t | z_t) and κ = k_t / k_s for s < t, the mixture of eq. (8) is

    P(z_s ≠ z_t | z_t) = a + (c - a)·f          a = P(z_s ≠ z_t | z_t, z_0 = z_t) = (1-κ)(1-k_s) / 2(1+k_t)
                                                c = P(z_s ≠ z_t | z_t, z_0 ≠ z_t) = (1-κ)(1+k_s) / 2(1-k_t)

for any s < t, so that skipping steps is the same formula. Sampler, loss and likelihood all come
here, and this file knows none of them.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bld.diffusion.process import OnDevices
from bld.diffusion.schedule import NoiseSchedule, at_least_float32
from bld.errors import SettingError, did_you_mean
from bld.seeding import Generators, uniform

Target = Literal["flip", "z0", "previous"]
Posterior = Literal["exact", "plugin"]


class BernoulliSteps:
    """Noising and denoising of bits `z ∈ {0, 1}`, shape (B, N, c): the steps of a `BernoulliDiffusion`.

    Its arguments are those of `bld.BernoulliDiffusion`, which adds loss, sampler and likelihood.
    """

    def __init__(self, schedule: NoiseSchedule, target: Target = "flip", posterior: Posterior = "exact"):
        if target not in ("flip", "z0", "previous"):
            known = ["flip", "z0", "previous"]
            raise SettingError(f"Unknown prediction target '{target}'.{did_you_mean(target, known)}")
        if posterior not in ("exact", "plugin"):
            raise SettingError(f"Unknown posterior '{posterior}'.{did_you_mean(posterior, ['exact', 'plugin'])}")
        self.schedule = schedule
        self.target = target
        self.posterior = posterior
        self._k, self._table = schedule.k.tolist(), OnDevices(schedule.k)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.schedule!r}, target={self.target!r}, posterior={self.posterior!r})"

    @property
    def steps(self) -> int:
        """T."""
        return self.schedule.steps

    @property
    def may_skip(self) -> bool:
        """Whether fewer than T steps can be taken: not with the target "previous"."""
        return self.target != "previous"

    # -- forward: eq. (5) ---------------------------------------------------------------------------------

    def diffuse(
        self,
        z0: Tensor,
        t: int | Tensor,
        generator: Generators = None,
    ) -> Tensor:
        """Draw z_t ~ q(z_t | z_0): each bit flips with probability (1 - k_t)/2 (eq. 5).

        Args:
            z0: (B, N, c) bits.
            t: one step for all, or (B,), each in 0 … T.
            generator: one for the batch, or one per sample.

        Returns:
            Bits of z0's shape and dtype.
        """
        return self.renoise(z0, 0, t, generator)

    def renoise(
        self,
        z_s: Tensor,
        s: int | Tensor,
        t: int | Tensor,
        generator: Generators = None,
    ) -> Tensor:
        """Draw z_t ~ q(z_t | z_s) for s < t: each bit flips with probability (1 - k_t/k_s)/2 (eq. 4, chained).

        Args:
            z_s: (B, N, c) bits at step s.
            s: the step they are at, for all or (B,).
            t: the later step, for all or (B,).
            generator: one for the batch, or one per sample.

        Returns:
            Bits of the same shape and dtype.
        """
        kappa = self._retention(s, t, z_s.device)
        flips = uniform(z_s.shape, generator, z_s.device) < (1 - kappa) / 2
        return z_s ^ flips.to(z_s.dtype)

    # -- reverse: eq. (8) ---------------------------------------------------------------------------------

    def flip_logits(self, logits: Tensor, z_t: Tensor) -> Tensor:
        """logit P(z_0 ≠ z_t | z_t) in float32 or better, from the network's output for targets "flip", "z0"."""
        if self.target == "previous":
            raise SettingError("The target 'previous' predicts z_{t-1}, not z_0: use 'flip' or 'z0' here.")
        logits = at_least_float32(logits)
        return logits if self.target == "flip" else logits * (1 - 2 * z_t.to(logits.dtype))

    def reverse_probs(self, logits: Tensor, z_t: Tensor, t: int | Tensor, s: int | Tensor) -> Tensor:
        """P(z_s = 1 | z_t) with the network's logits at step t (eq. 8, or 10 with the posterior "plugin").

        Args:
            logits: (B, N, c), what `target` says.
            z_t: (B, N, c) bits.
            t: the step come from, for all or (B,).
            s: the step to go to, 0 ≤ s < t ≤ T.

        Returns:
            Probabilities (B, N, c), in float32 or better.

        Raises:
            SettingError: for other steps, and when the target "previous" is asked to skip.
        """
        self.check_steps(t, s)
        if self.target == "previous":
            return at_least_float32(logits).sigmoid()
        flip = self.flip_logits(logits, z_t).sigmoid()
        z = z_t.to(flip.dtype)
        if self.posterior == "plugin":
            return self._plugin_probs(z + (1 - 2 * z) * flip, z, t, s)
        a, c = self.flip_coefficients(t, s, flip.device)
        return z + (1 - 2 * z) * _affine(a, c, flip)

    def clean_probs(self, logits: Tensor, z_t: Tensor, t: int) -> Tensor:
        """P(z_0 = 1 | z_t) as the network predicts it; with the target "previous" only at t = 1."""
        if self.target == "previous":
            return self.reverse_probs(logits, z_t, t, 0)
        flip = self.flip_logits(logits, z_t).sigmoid()
        z = z_t.to(flip.dtype)
        return z + (1 - 2 * z) * flip

    def flip_coefficients(
        self, t: int | Tensor, s: int | Tensor, device: torch.device | str = "cpu"
    ) -> tuple[float | Tensor, float | Tensor]:
        """(a, c) = P(z_s ≠ z_t | z_t, z_0) for z_0 = z_t and for z_0 ≠ z_t (eq. 9).

        Floats for int steps, float64 (B, 1, 1) for tensors.  At s = 0 they are (0, 1).
        """
        k_t, k_s, kappa = self._k_at(t, device), self._k_at(s, device), self._retention(s, t, device)
        a = (1 - kappa) * (1 - k_s) / (2 * (1 + k_t))
        c = (1 - kappa) * (1 + k_s) / (2 * (1 - k_t))
        return a, c

    def _plugin_probs(self, p0: Tensor, z: Tensor, t: int | Tensor, s: int | Tensor) -> Tensor:
        """Eq. (10)-(11) with k_s and b_s in the place of the misprinted k_t and 0.5·b_t."""
        k_s, kappa = self._k_at(s, z.device), self._retention(s, t, z.device)
        one = (kappa * z + (1 - kappa) / 2) * (k_s * p0 + (1 - k_s) / 2)
        zero = (kappa * (1 - z) + (1 - kappa) / 2) * (k_s * (1 - p0) + (1 - k_s) / 2)
        return (one / (one + zero).clamp(min=torch.finfo(z.dtype).tiny)).to(z.dtype)

    def evidence_logits(self) -> Tensor:
        """What a noised bit says about its own flip, all other bits unknown: float32 (T,), one per step.

        For the targets "flip" and "z0", logit P(z_0 ≠ z_t) = log((1 - k_t)/(1 + k_t)); for "previous",
        logit P(z_{t-1} ≠ z_t) with κ_t in the place of k_t.  Never above 0; 0 where z_t is pure noise.
        """
        kept = 1 - self.schedule.beta if self.target == "previous" else self.schedule.k[1:]
        return (torch.log1p(-kept.clamp(max=1 - 1e-6)) - torch.log1p(kept)).float()

    def flip_posterior(self, probs: Tensor, z_t: Tensor, t: int | Tensor) -> Tensor:
        """P(z_0 ≠ z_t | z_t, y): Bayes' rule over eq. (5) for bits z_0 that were drawn with P(z_0 = 1) = y.

        Args:
            probs: y, (B, N, c).
            z_t: (B, N, c) bits.
            t: one step for all, or (B,).

        Returns:
            Probabilities (B, N, c) of the dtype of `probs`.
        """
        differs = torch.where(z_t.bool(), 1 - probs, probs)
        k = self._k_at(t, z_t.device)
        flipped, kept = differs * (1 - k), (1 - differs) * (1 + k)
        return (flipped / (flipped + kept)).to(probs.dtype)

    # -- steps --------------------------------------------------------------------------------------------

    def retention(self, t: int) -> float:
        """k_t as a float."""
        return self._k[t]

    def _k_at(self, t: int | Tensor, device: torch.device | str) -> float | Tensor:
        if isinstance(t, int):
            if not 0 <= t <= self.steps:
                raise SettingError(f"Step {t} lies outside 0 … {self.steps}.")
            return self._k[t]
        k = self._table.on(device)[t]
        return k.view(-1, 1, 1) if k.ndim else k

    def _retention(self, s: int | Tensor, t: int | Tensor, device: torch.device | str) -> float | Tensor:
        """κ = k_t / k_s; 0 where k_s = 0, and with it k_t."""
        k_s, k_t = self._k_at(s, device), self._k_at(t, device)
        return k_t / (k_s + (k_s == 0))

    def check_steps(self, t: int | Tensor, s: int | Tensor) -> None:
        """Refuse a reverse step from t to s that goes nowhere, or that the target cannot take."""
        if isinstance(t, int) and isinstance(s, int):
            if not 0 <= s < t <= self.steps:
                raise SettingError(f"A reverse step goes from t to s with 0 ≤ s < t ≤ {self.steps}; got {t} to {s}.")
            skips = s != t - 1
        else:  # steps known only to the device are not checked one by one: that would wait for it
            skips = self.target == "previous" and bool((torch.as_tensor(s) != torch.as_tensor(t) - 1).any())
        if skips and self.target == "previous":
            raise SettingError(
                "The target 'previous' predicts z_{t-1} alone and cannot skip steps: "
                f"sample with all {self.steps} steps, or train with the target 'flip'."
            )


def _affine(a: float | Tensor, c: float | Tensor, flip: Tensor) -> Tensor:
    """a + (c - a)·f in f's dtype; the two scalars come in float64."""
    return (a + (c - a) * flip).to(flip.dtype)

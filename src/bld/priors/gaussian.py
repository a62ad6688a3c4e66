"""Gaussian diffusion over a real-valued latent: the latent diffusion model the paper compares with (Tables 1-3).

The noise schedules and the DDIM steps are diffusers'; ours is the transformer that predicts v or the noise.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bld.diffusion.process import (
    Callback,
    Denoise,
    Generators,
    OnDevices,
    PriorLoss,
    SamplingStep,
    check_sampling,
    kept_positions,
    spaced_steps,
)
from bld.errors import MissingPackageError, SettingError
from bld.numbers import whole_number
from bld.priors.base import PriorKind, register
from bld.priors.transformer import Transformer
from bld.seeding import normal

LONGEST_SCHEDULE = 1000  # the number of steps diffusers' β are meant for


class GaussianDenoiser(Transformer):
    """Noised latents x_t (B, N, c), float → predicted v or noise (B, N, c), float32."""

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """(x_t, t, condition) → v or noise (B, N, c), float32.

        Args:
            x_t: (B, N, c), float.
            t: (B,) int64 in 1 … T.
            condition: labels or vectors, as `Transformer.condition` takes them; None is none for all.
        """
        return self.see_all(self.tokens_of(x_t), t, condition)


class GaussianDiffusion:
    """Gaussian diffusion of latents divided by `scale`, their standard deviation (LDM, Appendix G).

    With few steps hardly anything of the data is left at T, ᾱ_T ≈ 0. To find x_0 from the noise is to divide by √ᾱ_T,
    so that an error of the network grows by a factor of thousands; x_0 from v never makes it larger.

    Args:
        steps: T.
        schedule: "linear" (LDM's, scaled to T) or "cosine".
        scale: above 0.
        prediction: what the network gives: "v" (Salimans & Ho 2022), or the noise, "epsilon", as in LDM.

    Raises:
        SettingError: for anything else.
        MissingPackageError: without diffusers.
    """

    kind = "gaussian"
    may_skip = True
    has_likelihood = False

    def __init__(self, steps: int = 1000, schedule: str = "linear", scale: float = 1.0, prediction: str = "epsilon"):
        self.check(schedule, prediction)
        if whole_number("The number of steps", steps) < 1 or not scale > 0:
            raise SettingError(f"The Gaussian prior needs steps ≥ 1 and a scale above 0, not {steps} and {scale}.")
        self._steps, self.schedule, self.scale, self.prediction = steps, schedule, scale, prediction
        self.scheduler = _scheduler(steps, schedule)
        kept = self.scheduler.alphas_cumprod.double()
        self._kept, self._table = [1.0, *kept.tolist()], OnDevices(torch.cat([kept.new_ones(1), kept]))

    @staticmethod
    def check(schedule: str, prediction: str) -> None:
        """Raise `SettingError` for a schedule or prediction that it does not know."""
        if schedule not in ("linear", "cosine"):
            raise SettingError(f"The Gaussian prior knows the schedules linear and cosine, not '{schedule}'.")
        if prediction not in ("v", "epsilon"):
            raise SettingError(f"The Gaussian prior predicts v or epsilon, not '{prediction}'.")

    @property
    def steps(self) -> int:
        """T."""
        return self._steps

    @classmethod
    def from_settings(cls, **settings: Any) -> GaussianDiffusion:
        """From what `settings` gives."""
        return cls(**settings)

    def settings(self) -> dict[str, Any]:
        """All that it is made of, for JSON."""
        return {"steps": self._steps, "schedule": self.schedule, "scale": self.scale, "prediction": self.prediction}

    def training_loss(
        self, denoise: Denoise, z0: Tensor, t: Tensor, generators: Generators = None, vlb_weight: float = 0.0
    ) -> PriorLoss:
        """Mean squared error of the predicted v = √ᾱ_t·noise - √(1 - ᾱ_t)·x_0, or of the predicted noise.

        Args:
            denoise: (x_t, t) → v or noise.
            z0: latents (B, N, c), float, not yet divided by `scale`.
            t: (B,) in 1 … T.
            generators: one per sample.
            vlb_weight: not used.
        """
        x0, noise = z0.float() / self.scale, normal(z0.shape, generators, z0.device)
        # v is what x_t becomes where noise takes the place of x_0, and -x_0 that of the noise.
        wanted = self.noised(noise, -x0, t) if self.prediction == "v" else noise
        return PriorLoss(F.mse_loss(denoise(self.noised(x0, noise, t), t).float(), wanted))

    def noised(self, x0: Tensor, noise: Tensor, t: int | Tensor) -> Tensor:
        """x_t = √ᾱ_t·x_0 + √(1 - ᾱ_t)·noise; nothing leaves its device.

        Args:
            x0: (B, N, c), divided by `scale`.
            noise: (B, N, c).
            t: one step for all, or (B,), each in 0 … T.
        """
        if isinstance(t, int):
            return self._kept[t] ** 0.5 * x0 + (1 - self._kept[t]) ** 0.5 * noise
        kept = self._table.on(x0.device)[t].view(-1, 1, 1)
        return kept.sqrt().to(x0.dtype) * x0 + (1 - kept).sqrt().to(x0.dtype) * noise

    def retention(self, t: int) -> float:
        """ᾱ_t: which share of the variance of x_t is still the data's, for t in 0 … T."""
        return self._kept[t]

    def bound_at(self, denoise: Denoise, z0: Tensor, t: Tensor, generators: Generators = None) -> Tensor:
        """Refused: real numbers have a density, not a code length."""
        raise SettingError("The Gaussian prior gives densities of real numbers, not bits: it has no code length.")

    def likelihood_bits(
        self, denoise: Denoise, z0: Tensor, *, steps: int | None = None, draws: int = 1, generators: Generators = None
    ) -> Tensor:
        """Refused, as `bound_at`."""
        return self.bound_at(denoise, z0, torch.ones(0))

    @torch.no_grad()
    def sample(
        self,
        denoise: Denoise,
        shape: tuple[int, int, int],
        *,
        steps: int | None = None,
        temperature: float = 1.0,
        generators: Generators = None,
        known: Tensor | None = None,
        mask: Tensor | None = None,
        callback: Callback | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draw latents, (n, N, c) float32, by deterministic DDIM steps.

        Args:
            denoise: (x_t, t) → v or noise.
            shape: (n, N, c).
            steps: how many of the T to visit; all by default.
            temperature: factor of the initial noise, above 0.
            generators: one per sample; a sample depends on its own only.
            known: (n or 1, N, c) latents of an inpainting, with `mask`; known positions are replaced at every step by
                themselves, noised.
            mask: (N,) or (n, N), True where latents are to be made.
            callback: called with a `SamplingStep` after each step, whose `probs` are the predicted clean latents.
            device: where the latents are drawn.

        Raises:
            SettingError: naming the value that is not possible.
        """
        check_sampling(shape, temperature, known, mask)
        x = temperature * normal(shape, generators, device)
        kept = None
        if known is not None and mask is not None:
            codes, keep = kept_positions(known.to(device).float() / self.scale, mask.to(device), shape)
            kept = codes, keep.unsqueeze(-1)
        visited = spaced_steps(self.steps, steps)
        for index, (t, s) in enumerate(pairwise(visited)):
            given = denoise(x, torch.full((shape[0],), t, device=device)).float()
            clean, x = self._step(given, x, t, s)
            if kept is not None:
                x = torch.where(kept[1], self.noised(kept[0], normal(shape, generators, device), s), x)
            if callback is not None:
                callback(SamplingStep(index, len(visited) - 1, t, s, x * self.scale, clean * self.scale))
        return x * self.scale

    def _step(self, given: Tensor, x: Tensor, t: int, s: int) -> tuple[Tensor, Tensor]:
        """(predicted clean latents, latents at step s) by DDIM with η = 0 (Song et al. 2021, eq. 12).

        given: what the network gave for x at step t.
        """
        kept_t, kept_s = self._kept[t], self._kept[s]
        if self.prediction == "v":
            clean = kept_t**0.5 * x - (1 - kept_t) ** 0.5 * given
            noise = kept_t**0.5 * given + (1 - kept_t) ** 0.5 * x
        else:
            clean, noise = (x - (1 - kept_t) ** 0.5 * given) / kept_t**0.5, given
        return clean, kept_s**0.5 * clean + (1 - kept_s) ** 0.5 * noise


def _scheduler(steps: int, schedule: str) -> Any:
    try:
        from diffusers import DDIMScheduler
    except ImportError as error:
        raise MissingPackageError(
            "The Gaussian prior needs diffusers: pip install 'binary-latent-diffusion[gaussian]'."
        ) from error
    stretch = LONGEST_SCHEDULE / steps  # fewer steps, each noisier, to the same end
    first, last = min(0.0015 * stretch, 0.5), min(0.0195 * stretch, 0.999)
    return DDIMScheduler(
        num_train_timesteps=steps,
        beta_schedule="scaled_linear" if schedule == "linear" else "squaredcos_cap_v2",
        beta_start=first if steps > 1 else last,  # a step alone is the last one
        beta_end=last,
        clip_sample=False,
    )


register(
    PriorKind(
        "gaussian",
        GaussianDenoiser,
        GaussianDiffusion,
        lambda diffusion, shape, scale: GaussianDiffusion(
            diffusion.steps, diffusion.schedule, scale, diffusion.prediction
        ),
        is_real=True,
        check=lambda diffusion: GaussianDiffusion.check(diffusion.schedule, diffusion.prediction),  # without diffusers
    )
)

"""Absorbing diffusion over positions (Table 5): whole positions are masked, and revealed a few at a time.

At step t exactly t of the N positions are masked, each set of t as likely as any.  Going from t to s reveals t - s of
them, each independent given the visible ones.  Over all N steps that is autoregression in random order, and the
bound on the code length is Σ_t E[mean over masked positions of -log₂ p(position | visible)].
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from bld.diffusion.process import (
    Callback,
    Denoise,
    Generators,
    PriorLoss,
    SamplingStep,
    check_sampling,
    kept_positions,
    spaced_steps,
)
from bld.errors import SettingError, did_you_mean
from bld.numbers import whole_number
from bld.priors.base import PositionByPosition, PriorKind, register
from bld.priors.config import DenoiserConfig
from bld.priors.position import draw, likeliest, nats, probabilities
from bld.priors.transformer import Transformer
from bld.seeding import uniform

MASKED = 2  # stands in the place of each bit of a masked position
Reveal = Literal["random", "confidence"]


class AbsorbingDenoiser(Transformer):
    """Codes z_t (B, N, c) of 0, 1 and MASKED → logits (B, N, c), float32; t is the number of masked positions.

    With `entries` the logits are (B, N, 2^c), of the entries of a codebook.
    """

    takes_patches = False

    def __init__(self, config: DenoiserConfig):
        super().__init__(config)
        self.mask_token = nn.Parameter(0.02 * torch.randn(config.dim))

    def forward(self, z_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """(z_t, t, condition) → logits (B, N, c), or (B, N, 2^c) with `entries`, float32.

        Args:
            z_t: (B, N, c) uint8, whole positions masked.
            t: (B,) int64 in 1 … N.
            condition: labels or vectors, as `Transformer.condition` takes them; None is none for all.
        """
        x = self.tokens_of(2 * z_t.to(self.positions.dtype) - 1)
        x = torch.where(z_t[..., :1] == MASKED, self.mask_token.to(x.dtype), x)
        return self.see_all(x, t, condition)


class AbsorbingDiffusion(PositionByPosition):
    """Masking and revealing of whole positions.

    Args:
        positions: N, which is also the number of steps T.
    """

    kind = "absorbing"
    may_skip = True

    def mask(self, z0: Tensor, t: int | Tensor, generators: Generators = None) -> Tensor:
        """z_t: t positions of each code replaced by MASKED, chosen uniformly.

        Args:
            z0: (B, N, c) bits.
            t: one for all, or (B,), each in 0 … N.
            generators: one per sample.
        """
        order = uniform(z0.shape[:2], generators, z0.device).argsort(1).argsort(1)  # each position's rank
        masked = order < torch.as_tensor(t, device=z0.device).view(-1, 1)
        return z0.masked_fill(masked.unsqueeze(-1), MASKED)

    def training_loss(
        self, denoise: Denoise, z0: Tensor, t: Tensor, generators: Generators = None, vlb_weight: float = 0.0
    ) -> PriorLoss:
        """Cross-entropy of the masked bits, each code's mean: nats per bit, the bound itself with t uniform."""
        return PriorLoss(self._masked_nats(denoise, z0, t, generators).mean() / z0.shape[2])

    def bound_at(self, denoise: Denoise, z0: Tensor, t: Tensor, generators: Generators = None) -> Tensor:
        """float64 (B,), in bits: N times the mean cost of a masked position at step t."""
        return self._masked_nats(denoise, z0, t, generators).double() * self.positions / math.log(2)

    @torch.no_grad()
    def likelihood_bits(
        self, denoise: Denoise, z0: Tensor, *, steps: int | None = None, draws: int = 1, generators: Generators = None
    ) -> Tensor:
        """Unbiased estimate of an upper bound on -log₂ p(z_0), in bits per code, float64 (B,), for random reveal order.

        Args:
            denoise: (z_t, t) → logits.
            z0: (B, N, c) bits.
            steps: how many of the N to visit; all by default.
            draws: sets of masked positions that are drawn at each of them.
            generators: one per sample.

        Raises:
            SettingError: for less than 1 draw, or a number of steps that is not possible.
        """
        draws = whole_number("draws", draws, 1)
        total = torch.zeros(len(z0), dtype=torch.float64, device=z0.device)
        for t, s in pairwise(spaced_steps(self.steps, steps)):
            for _ in range(draws):
                at = torch.full((len(z0),), t, device=z0.device)
                total += (t - s) / draws * self._masked_nats(denoise, z0, at, generators).double()
        return total / math.log(2)

    def _masked_nats(self, denoise: Denoise, z0: Tensor, t: Tensor, generators: Generators) -> Tensor:
        """(B,) mean over the masked positions of -log p(its c bits)."""
        z_t = self.mask(z0, t, generators)
        masked = (z_t[..., 0] == MASKED).float()
        return (nats(denoise(z_t, t), z0) * masked).sum(1) / masked.sum(1).clamp(min=1)

    @torch.no_grad()
    def sample(
        self,
        denoise: Denoise,
        shape: tuple[int, int, int],
        *,
        steps: int | None = None,
        temperature: float = 0.9,
        generators: Generators = None,
        known: Tensor | None = None,
        mask: Tensor | None = None,
        callback: Callback | None = None,
        device: torch.device | str = "cpu",
        reveal: Reveal = "random",
    ) -> Tensor:
        """Draw codes, (n, N, c) uint8; what is revealed stays.

        Args:
            denoise: (z_t, t) → logits, t (n,) being how many positions of each code are masked.
            shape: (n, N, c).
            steps: how many of the N to visit; all by default.
            temperature: τ > 0 in σ(logits/τ).
            generators: one per sample; a sample depends on its own only.
            known: (n or 1, N, c) bits of an inpainting, with `mask`; known positions are visible from the start.
            mask: (N,) or (n, N), True where bits are to be made.
            callback: called with a `SamplingStep` after each step, whose codes show the likelier bits where positions
                are masked.
            device: where the codes are drawn.
            reveal: which positions come next: "random", as the bound assumes, or "confidence": those whose drawn bits
                are the most probable.

        Raises:
            SettingError: naming the value that is not possible.
        """
        check_sampling(shape, temperature, known, mask)
        if reveal not in ("random", "confidence"):
            raise SettingError(f"Unknown reveal '{reveal}'.{did_you_mean(reveal, ['random', 'confidence'])}")
        if shape[1] != self.positions:
            raise SettingError(f"This prior generates {self.positions} positions, not {shape[1]}.")
        visited = spaced_steps(self.steps, steps)
        z = torch.full(shape, MASKED, dtype=torch.uint8, device=device)
        if known is not None and mask is not None:
            codes, kept = kept_positions(known.to(z), mask.to(device), shape)
            z = torch.where(kept.unsqueeze(-1), codes, z)
        to_make = (z[..., 0] == MASKED).sum(1)  # (n,)
        for index, (t, s) in enumerate(pairwise(visited)):
            hidden = z[..., 0] == MASKED  # (n, N)
            logits = denoise(z, hidden.sum(1).clamp(min=1)).float() / temperature
            drawn = draw(logits, shape[2], generators)
            score = uniform(shape[:2], generators, device)
            if reveal == "confidence":
                score = -nats(logits, drawn)
            rank = score.masked_fill(~hidden, -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(1)
            remaining = (to_make * s + self.steps - 1) // self.steps  # ⌈M·s/N⌉ of the M to make
            shown = hidden & (rank < (hidden.sum(1) - remaining).unsqueeze(1))
            z = torch.where(shown.unsqueeze(-1), drawn, z)
            if callback is not None:
                guess = torch.where(z == MASKED, likeliest(logits, shape[2]), z)
                callback(SamplingStep(index, len(visited) - 1, t, s, guess, probabilities(logits, shape[2])))
        return z


register(
    PriorKind(
        "absorbing",
        AbsorbingDenoiser,
        AbsorbingDiffusion,
        lambda diffusion, shape, scale: AbsorbingDiffusion(shape.positions),
        steps=lambda diffusion, shape: shape.positions,
        takes_entries=True,
        options=("reveal",),
    )
)

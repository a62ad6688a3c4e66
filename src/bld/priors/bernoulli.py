"""The paper's prior: Bernoulli diffusion, and its denoiser T_θ (Section 4.1). Its mathematics is in `bld.diffusion`.

(z_t, t, condition) ─▶ N position tokens + step token [+ condition token] ─▶ blocks ─▶ logits at the N positions
"""

from __future__ import annotations

import torch
from torch import Tensor

from bld.diffusion import BernoulliDiffusion
from bld.diffusion.process import Process
from bld.priors.base import PriorKind, register
from bld.priors.config import DenoiserConfig
from bld.priors.transformer import Transformer


class Denoiser(Transformer):
    """Bits z_t (B, N, c), steps t (B,) and conditions (labels or vectors) → logits (B, N, c), float32.

    By Bayes' rule the logit of a flip is a known part, which depends on the noise level only, plus what the *other*
    bits add. With `config.evidence` the known part is added to the output, so that the transformer learns only the
    rest; without, as in the paper, it has to learn both (docs/results.md compares them).

    Args:
        config: sizes, condition and `evidence`.
        evidence_logits: float (T,), from `BernoulliDiffusion.evidence_logits`; saved with the weights, zeros if None.
    """

    evidence_logits: Tensor

    def __init__(self, config: DenoiserConfig, evidence_logits: Tensor | None = None):
        super().__init__(config)
        if config.evidence != "none":
            known = torch.zeros(config.steps) if evidence_logits is None else evidence_logits.float()
            self.register_buffer("evidence_logits", known)

    @classmethod
    def of(cls, config: DenoiserConfig, process: Process) -> Denoiser:
        """Untrained, with the evidence of the process's schedule."""
        return cls(config, process.evidence_logits() if isinstance(process, BernoulliDiffusion) else None)

    def forward(self, z_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """(z_t, t, condition) → logits (B, N, c), float32.

        Args:
            z_t: (B, N, c) bits of any dtype.
            t: (B,) int64 in 1 … T.
            condition: labels, int64 (B,) in 0 … num_classes, the last for "no class"; or vectors, float (B, V), or
                (B, 1 + V) with 1 in front, or all 0 for "no vector". None is no condition for all.
        """
        logits = self.see_all(self.tokens_of(2 * z_t.to(self.positions.dtype) - 1), t, condition)
        if self.config.evidence == "none":
            return logits
        known = self.evidence_logits[t - 1].float().view(-1, 1, 1)
        return logits + (known if self.config.evidence == "flip" else known * (1 - 2 * z_t.float()))


register(
    PriorKind(
        "bernoulli",
        Denoiser,
        BernoulliDiffusion,
        lambda diffusion, shape, scale: diffusion.build(),
        has_evidence=True,
        options=("corrector_steps", "final", "known_bits", "resample"),
    )
)

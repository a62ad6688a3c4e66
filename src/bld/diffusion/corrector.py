"""A training-free corrector: redraw bits of z_t given all others, leaving the marginal q(z_t) invariant.

The network's flip probability f has seen the bit z_t itself. Dividing that evidence out gives what the *other* bits
say, and from it the bit's own conditional under q(z_t): a Gibbs move, exact one bit at a time, approximate in parallel.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def leave_one_out_logits(flip_logits: Tensor, k_t: float) -> Tensor:
    """logit P(z_0 = z_t | the other bits of z_t) = -logit f - log((1 + k_t)/(1 - k_t)), in the shape of flip_logits.

    Args:
        flip_logits: logit f, f = P(z_0 ≠ z_t | z_t), as `BernoulliDiffusion.flip_logits` gives it.
        k_t: `BernoulliDiffusion.retention(t)`, 0 ≤ k_t < 1.
    """
    return -flip_logits - math.log((1 + k_t) / (1 - k_t))


def gibbs_flip_probs(flip_logits: Tensor, k_t: float) -> Tensor:
    """Probability that a Gibbs step flips a bit of z_t: 1 - k_t·P(z_0 = z_t | others) - (1 - k_t)/2.

    The step redraws a bit given all others and leaves q(z_t) unchanged: exact for one bit at a time, approximate for
    all at once. Arguments are those of `leave_one_out_logits`.
    """
    return (1 + k_t) / 2 - k_t * torch.sigmoid(leave_one_out_logits(flip_logits, k_t))

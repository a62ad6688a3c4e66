"""The Gibbs move, enumerated: what the other bits say, and the invariance of q(z_t)."""

from __future__ import annotations

import pytest
import torch

from bld.diffusion import NoiseSchedule, gibbs_flip_probs, leave_one_out_logits

from .enumeration import BITS, STATES, flip_posterior, noised, strongly_dependent

TRUTH = strongly_dependent()
SCHEDULE = NoiseSchedule("cosine", 8)


def others_agree(bit: int) -> torch.Tensor:
    """(64, 64): whether two states are equal in all bits but, perhaps, this one."""
    others = [i for i in range(BITS) if i != bit]
    return (STATES[:, None, others] == STATES[None, :, others]).all(-1)


@pytest.mark.parametrize("t", [1, 2, 5, 7, 8])
def test_leave_one_out_logits_equal_the_enumerated_conditional(t: int):
    logits = leave_one_out_logits(flip_posterior(TRUTH, SCHEDULE, t).logit(), SCHEDULE.k[t].item()).flatten(1)
    joint = TRUTH.unsqueeze(1) * noised(SCHEDULE, t)  # [z_0, z_t]
    for bit in range(BITS):
        merged = joint @ others_agree(bit).double()  # [z_0, z_t]: z_t's own bit summed out
        same = STATES[:, None, bit] == STATES[None, :, bit]
        conditional = (merged * same).sum(0) / merged.sum(0)
        torch.testing.assert_close(logits[:, bit].sigmoid(), conditional, rtol=0, atol=1e-12)


@pytest.mark.parametrize("t", [1, 2, 5, 7, 8])
def test_redrawing_one_bit_leaves_the_marginal_invariant(t: int):
    q = TRUTH @ noised(SCHEDULE, t)
    flips = gibbs_flip_probs(flip_posterior(TRUTH, SCHEDULE, t).logit(), SCHEDULE.k[t].item()).flatten(1)
    assert ((flips >= 0) & (flips <= 1)).all()
    for bit in range(BITS):
        neighbour = torch.arange(64) ^ (1 << bit)
        after = q * (1 - flips[:, bit]) + (q * flips[:, bit])[neighbour]
        torch.testing.assert_close(after, q, rtol=0, atol=1e-12)
        # Not by standing still: it is the bit's own conditional that is drawn.
        torch.testing.assert_close(flips[:, bit], (q / (q + q[neighbour]))[neighbour], rtol=0, atol=1e-12)

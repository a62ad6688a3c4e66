"""The truth, by brute force and in float64: from the kernels of eq. (4), not the formulas under test.

Codes have 6 bits, laid out as N = 3 positions of c = 2; bit i of the flattened code of state j is bit i of j.
"""

from __future__ import annotations

import itertools

import torch
from hypothesis import strategies as st
from torch import Tensor

from bld.diffusion import BernoulliDiffusion, NoiseSchedule

BITS = 6
SHAPE = (3, 2)
STATES = (torch.arange(2**BITS).unsqueeze(1) >> torch.arange(BITS) & 1).to(torch.uint8)  # (64, 6)
CODES = STATES.view(-1, *SHAPE)  # (64, 3, 2)
DIFFERS = STATES.unsqueeze(1) != STATES.unsqueeze(0)  # (64, 64, 6)


def strongly_dependent() -> Tensor:
    """A fixed distribution over the 64 states that is far from any product of bits."""
    return torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64).mul(2).softmax(0)


def kernel(schedule: NoiseSchedule, s: int, t: int) -> Tensor:
    """q(z_t | z_s) of one bit, (2, 2), by multiplying out the single-step kernels of eq. (4)."""
    chain = torch.eye(2, dtype=torch.float64)
    for beta in schedule.beta[s:t].tolist():
        stay, flip = 1 - beta + 0.5 * beta, 0.5 * beta
        chain = chain @ torch.tensor([[stay, flip], [flip, stay]], dtype=torch.float64)
    return chain


def posterior(schedule: NoiseSchedule, s: int, t: int) -> Tensor:
    """q(z_s | z_t, z_0) of one bit by Bayes' rule, eq. (9), indexed [z_0, z_t, z_s]."""
    start, step = kernel(schedule, 0, s), kernel(schedule, s, t)
    joint = start.unsqueeze(1) * step.T.unsqueeze(0)  # [z_0, z_t, z_s]
    return joint / joint.sum(-1, keepdim=True)


def bayes(schedule: NoiseSchedule, t: int, s: int, p0: Tensor) -> Tensor:
    """P(z_s = 1 | z_t) of eq. (8), p0 (2,) = P(z_0 = 1 | z_t) for both values of z_t."""
    q = posterior(schedule, s, t)[:, :, 1]  # [z_0, z_t]
    return q[0] * (1 - p0) + q[1] * p0


def noised(schedule: NoiseSchedule, t: int) -> Tensor:
    """q(z_t | z_0) of whole codes, (64, 64), indexed [z_0, z_t]."""
    one = kernel(schedule, 0, t)
    return torch.where(DIFFERS, one[0, 1], one[0, 0]).prod(-1)


def flip_posterior(truth: Tensor, schedule: NoiseSchedule, t: int) -> Tensor:
    """The perfect predictor: P(z_0 ≠ z_t | z_t) of every bit at every state z_t, (64, 3, 2)."""
    joint = truth.unsqueeze(1) * noised(schedule, t)  # [z_0, z_t]
    return torch.einsum("ab,abi->bi", joint / joint.sum(0), DIFFERS.double()).view(-1, *SHAPE)


def index_of(codes: Tensor) -> Tensor:
    """Codes (B, 3, 2) → their state numbers (B,)."""
    return (codes.flatten(1).long() << torch.arange(BITS)).sum(1)


class Oracle:
    """The perfect predictor as a `denoise` callable in float64."""

    def __init__(self, truth: Tensor, diffusion: BernoulliDiffusion):
        self.diffusion = diffusion
        schedule = diffusion.schedule
        self.flips = [flip_posterior(truth, schedule, t) for t in range(1, schedule.steps + 1)]

    def __call__(self, z_t: Tensor, t: Tensor) -> Tensor:
        logits = torch.stack(
            [self.flips[step - 1][i].logit() for i, step in zip(index_of(z_t).tolist(), t.tolist(), strict=True)]
        )
        return logits if self.diffusion.target == "flip" else logits * (1 - 2 * z_t.double())

    def at(self, t: int) -> Tensor:
        """The logits at all 64 states."""
        logits = self.flips[t - 1].logit()
        return logits if self.diffusion.target == "flip" else logits * (1 - 2 * CODES.double())


def rows(probs: Tensor) -> Tensor:
    """P(bit = 1) per bit, (B, 3, 2) → the distribution over the 64 states of the product of bits, (B, 64)."""
    p = probs.flatten(1).unsqueeze(1)
    return torch.where(STATES.bool(), p, 1 - p).prod(-1)


def sampled_distribution(truth: Tensor, diffusion: BernoulliDiffusion, steps: int | None = None) -> Tensor:
    """What the sampler draws from with a perfect predictor, by propagating all 64 states: no sampling."""
    oracle = Oracle(truth, diffusion)
    visited = diffusion.schedule.timesteps(steps)
    state = torch.full((64,), 1 / 64, dtype=torch.float64)
    for t, s in itertools.pairwise(visited):
        logits = oracle.at(t)
        probs = diffusion.reverse_probs(logits, CODES, t, s) if s else diffusion.clean_probs(logits, CODES, t)
        state = state @ rows(probs)
    return state


def total_variation(p: Tensor, q: Tensor) -> float:
    return 0.5 * (p - q).abs().sum().item()


@st.composite
def schedules(draw: st.DrawFn, max_steps: int = 20) -> NoiseSchedule:
    """All kinds; tables with plateaus, sudden drops, and zeros at the end."""
    kind = draw(st.sampled_from(["linear", "cosine", "sigmoid", "table"]))
    steps = draw(st.integers(1, max_steps))
    if kind != "table":
        return NoiseSchedule(kind, steps)
    k = [1.0]
    for i in range(steps):
        plateau = st.just(1.0) if i else st.nothing()
        k.append(k[-1] * draw(st.one_of(st.floats(0.02, 0.998), plateau)))
    zeros = draw(st.integers(0, 3))
    k[-1] = min(k[-1], draw(st.floats(0, 0.05)))
    return NoiseSchedule("table", table=k + [0.0] * zeros)


@st.composite
def steps_of(draw: st.DrawFn, schedule: NoiseSchedule) -> tuple[int, int]:
    """A pair (t, s) with 0 ≤ s < t ≤ T."""
    t = draw(st.integers(1, schedule.steps))
    return t, draw(st.integers(0, t - 1))


def probabilities() -> st.SearchStrategy[Tensor]:
    each = st.floats(1e-6, 1 - 1e-6)
    return st.tuples(each, each).map(lambda pair: torch.tensor(pair, dtype=torch.float64))

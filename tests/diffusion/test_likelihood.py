"""The variational bound as a code length, against enumeration of every z_t."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from bld.diffusion import BernoulliDiffusion, NoiseSchedule
from bld.diffusion.loss import variational_terms
from bld.errors import SettingError
from bld.seeding import keyed_draws

from .enumeration import (
    CODES,
    STATES,
    Oracle,
    kernel,
    noised,
    posterior,
    rows,
    sampled_distribution,
    strongly_dependent,
)

TRUTH = strongly_dependent()


def enumerated_bound(truth: Tensor, diffusion: BernoulliDiffusion, steps: int | None = None) -> Tensor:
    """E[likelihood_bits] of every state, (64,), perfect predictor: every z_t with its weight.

    The divergences are between distributions over all 64 states, built from the kernels of eq. (4) alone.
    """
    schedule, oracle = diffusion.schedule, Oracle(truth, diffusion)
    visited = schedule.timesteps(steps)
    last = noised(schedule, schedule.steps)
    nats = (last * (last * 64).log()).sum(1)  # L_T against 64 equally likely states
    for t, s in itertools.pairwise(visited):
        q = posterior(schedule, s, t)  # one bit: [z_0, z_t, z_s]
        f = oracle.flips[t - 1].flatten(1)  # [z_t, bit]
        z_t = STATES.long()
        p = (1 - f) * q[z_t, z_t, 1] + f * q[1 - z_t, z_t, 1]  # P(z_s = 1 | z_t), eq. (8): [z_t, bit]
        model = rows(p.view(-1, 3, 2))  # [z_t, z_s]
        weights = noised(schedule, t)
        for z_0 in range(64):
            true = rows(q[STATES[z_0].long().unsqueeze(0), z_t, 1].view(-1, 3, 2))
            divergence = torch.where(true > 0, true * (true / model).log(), 0.0).sum(1)
            nats[z_0] += weights[z_0] @ divergence
    return nats / math.log(2)


def weighted_bound(truth: Tensor, diffusion: BernoulliDiffusion) -> Tensor:
    """The same from the library's own terms, which is quick enough for many steps."""
    oracle, schedule = Oracle(truth, diffusion), diffusion.schedule
    nats = torch.zeros(64, dtype=torch.float64)
    z_0, z_t = CODES.repeat_interleave(64, 0), CODES.repeat(64, 1, 1)
    for t in range(1, schedule.steps + 1):
        terms = variational_terms(diffusion, oracle.at(t).repeat(64, 1, 1), z_0, z_t, t, t - 1)
        nats += (terms.sum((1, 2)).view(64, 64) * noised(schedule, t)).sum(1)
    return nats / math.log(2)


@pytest.mark.parametrize("steps", [None, 2, 1])
def test_the_bound_over_all_noise_equals_enumeration(monkeypatch: pytest.MonkeyPatch, steps: int | None):
    """With k_t in quarters every noise has probability m/8³ on three bits: 512 equal draws walk all of it."""
    schedule = NoiseSchedule("table", table=[1, 0.75, 0.75, 0.25, 0])
    diffusion = BernoulliDiffusion(schedule)
    noise = itertools.cycle(itertools.product(range(8), repeat=3))
    three = torch.tensor(list(itertools.product((0, 1), repeat=3)), dtype=torch.uint8)  # [state, bit]
    truth = torch.rand(8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    truth /= truth.sum()
    index = torch.tensor([4, 2, 1])
    differs = three[:, None] != three[None]

    def every_noise(z_0: Tensor, t: int, _: object) -> Tensor:
        flips = torch.tensor([draw < 4 * (1 - schedule.k[t].item()) for draw in next(noise)])
        return z_0 ^ flips.view(1, 1, 3).to(torch.uint8)

    def weights(t: int) -> Tensor:
        one = kernel(schedule, 0, t)
        return torch.where(differs, one[0, 1], one[0, 0]).prod(-1)  # [z_0, z_t]

    def flips(t: int) -> Tensor:
        joint = truth[:, None] * weights(t)
        return torch.einsum("ab,abi->bi", joint / joint.sum(0), differs.double())  # [z_t, bit]

    def denoise(z_t: Tensor, t: Tensor) -> Tensor:
        return flips(int(t[0]))[(z_t.flatten(1).long() * index).sum(1)].logit().view(z_t.shape)

    monkeypatch.setattr(diffusion, "diffuse", every_noise)
    found = diffusion.likelihood_bits(denoise, three.view(8, 1, 3), steps=steps, draws=512)

    expected = torch.zeros(8, dtype=torch.float64)
    for t, s in itertools.pairwise(schedule.timesteps(steps)):
        q = posterior(schedule, s, t)
        for z_0, z_t in itertools.product(range(8), repeat=2):
            for bit in range(3):
                x, y, f = int(three[z_0, bit]), int(three[z_t, bit]), flips(t)[z_t, bit]
                p = (1 - f) * q[y, y] + f * q[1 - y, y]
                true = q[x, y]
                kl = torch.where(true > 0, true * (true / p).log2(), 0.0).sum()
                expected[z_0] += weights(t)[z_0, z_t] * kl
    assert found.dtype == torch.float64 and found.shape == (8,)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind, steps", [("linear", None), ("cosine", None), ("linear", 3)])
def test_the_average_over_draws_is_the_enumerated_bound(kind: str, steps: int | None):
    diffusion = BernoulliDiffusion(NoiseSchedule(kind, 6))
    expected = enumerated_bound(TRUTH, diffusion, steps)
    count = 1500
    for state in (3, 40):
        bits = diffusion.likelihood_bits(
            Oracle(TRUTH, diffusion),
            CODES[state].expand(count, -1, -1),
            steps=steps,
            generators=keyed_draws(0, "bound", range(count)),
        )
        error = (bits.std() / count**0.5).item()
        assert abs(bits.mean().item() - expected[state].item()) < 5 * error  # false alarm 6e-7 each


@pytest.mark.parametrize("table", [[1, 0.6, 0.3, 0.05], [1, 0.9, 0.9, 0.4, 0]])
def test_terms_per_bit_add_up_to_the_divergence_of_whole_codes(table: list[float]):
    diffusion = BernoulliDiffusion(NoiseSchedule("table", table=table))
    end = (1 + table[-1]) / 2
    prior = 6 * (1 + end * math.log2(end) + (1 - end) * math.log2(1 - end))
    bound = weighted_bound(TRUTH, diffusion) + prior
    torch.testing.assert_close(bound, enumerated_bound(TRUTH, diffusion), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["linear", "cosine", "sigmoid"])
def test_the_bound_is_never_below_the_code_length_of_the_sampler(kind: str):
    """Code by code it bounds what the sampler gives; of the data's own -log2 p only the average."""
    for steps in (1, 4, 16):
        diffusion = BernoulliDiffusion(NoiseSchedule(kind, steps))
        assert (weighted_bound(TRUTH, diffusion) >= -sampled_distribution(TRUTH, diffusion).log2() - 1e-10).all()


def test_with_a_perfect_predictor_the_bound_tightens_to_the_entropy_of_the_data():
    entropy = -(TRUTH @ TRUTH.log2()).item()
    slack = {
        T: (TRUTH @ weighted_bound(TRUTH, BernoulliDiffusion(NoiseSchedule("linear", T)))).item() - entropy
        for T in (16, 64, 256)
    }
    assert 0 < slack[256] < 0.02
    assert 3 < slack[16] / slack[64] < 5 and 3 < slack[64] / slack[256] < 5  # like 1/T


def test_a_schedule_that_does_not_end_in_pure_noise_pays_for_it():
    """With a predictor that knows the code, nothing is left of the bound but L_T."""
    diffusion = BernoulliDiffusion(NoiseSchedule("table", table=[1, 0.05]))
    z_0 = CODES[5:6]
    known = diffusion.likelihood_bits(lambda z, t: ((z ^ z_0).double() - 0.5) * 1e3, z_0).item()
    per_bit = 0.525 * math.log2(0.525 / 0.5) + 0.475 * math.log2(0.475 / 0.5)
    assert known == pytest.approx(6 * per_bit, abs=1e-12)
    assert known > 0.01


def test_a_predictor_that_knows_nothing_pays_one_bit_per_bit():
    diffusion = BernoulliDiffusion(NoiseSchedule("linear", 16))
    evidence = diffusion.evidence_logits().double()
    for target in ("flip", "z0"):
        own = BernoulliDiffusion(diffusion.schedule, target=target)

        def denoise(z_t: Tensor, t: Tensor, target: str = target) -> Tensor:
            known = evidence[t - 1].view(-1, 1, 1).expand(z_t.shape)
            return known if target == "flip" else known * (1 - 2 * z_t.double())

        bits = own.likelihood_bits(denoise, CODES, draws=60, generators=keyed_draws(0, "coin", range(64)))
        error = (bits.std() / 8).item()
        assert abs(bits.mean().item() - 6) < 5 * error + 1e-5  # false alarm 6e-7; 1e-5: evidence is float32


def test_a_code_s_bound_depends_on_its_own_generator_only():
    diffusion = BernoulliDiffusion(NoiseSchedule("linear", 4))
    oracle = Oracle(TRUTH, diffusion)
    together = diffusion.likelihood_bits(oracle, CODES[:5], draws=2, generators=keyed_draws(1, "own", range(5)))
    alone = [
        diffusion.likelihood_bits(oracle, CODES[i : i + 1], draws=2, generators=keyed_draws(1, "own", [i]))
        for i in range(5)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-14, atol=0)


def test_impossible_requests_are_refused():
    diffusion = BernoulliDiffusion(NoiseSchedule("linear", 4))
    with pytest.raises(SettingError, match=r"draws .*\b1, not 0"):
        diffusion.likelihood_bits(Oracle(TRUTH, diffusion), CODES, draws=0)
    with pytest.raises(SettingError, match=r"1 to 4 steps.*not 5"):
        diffusion.likelihood_bits(Oracle(TRUTH, diffusion), CODES, steps=5)
    previous = BernoulliDiffusion(diffusion.schedule, target="previous")
    with pytest.raises(SettingError, match=r"'previous'.* 4 steps"):
        previous.likelihood_bits(lambda z, t: torch.zeros(z.shape), CODES, steps=2)

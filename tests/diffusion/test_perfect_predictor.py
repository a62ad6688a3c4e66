"""A perfect predictor makes the sampler draw from the data: eq. (8) converges like 1/T, eq. (10) never."""

from __future__ import annotations

import pytest
import torch

from bld.diffusion import BernoulliDiffusion, NoiseSchedule, sample_codes
from bld.seeding import keyed_draws

from .enumeration import (
    SHAPE,
    STATES,
    Oracle,
    index_of,
    rows,
    sampled_distribution,
    strongly_dependent,
    total_variation,
)

TRUTH = strongly_dependent()


def distance(kind: str, steps: int, visited: int | None = None, **settings: str) -> float:
    diffusion = BernoulliDiffusion(NoiseSchedule(kind, steps), **settings)
    return total_variation(sampled_distribution(TRUTH, diffusion, visited), TRUTH)


def test_the_distribution_is_far_from_a_product_of_bits():
    product = rows((TRUTH @ STATES.double()).view(1, *SHAPE))[0]
    assert total_variation(product, TRUTH) > 0.3


@pytest.mark.parametrize("target", ["flip", "z0"])
def test_the_sampler_converges_to_the_truth(target: str):
    assert distance("linear", 256, target=target) <= 0.01
    assert distance("linear", 64, target=target) <= 0.04


def test_the_error_falls_like_one_over_the_steps():
    assert 3.5 < distance("linear", 64) / distance("linear", 256) < 4.5


@pytest.mark.parametrize("kind", ["cosine", "sigmoid"])
def test_other_schedules_converge_too(kind: str):
    assert distance(kind, 256) <= 0.01
    assert 3.0 < distance(kind, 64) / distance(kind, 256) < 5.0


def test_a_quarter_of_the_steps_is_as_good_as_a_schedule_that_short():
    assert distance("linear", 256, visited=64) <= 0.04
    assert distance("linear", 256, visited=64) == pytest.approx(distance("linear", 64), abs=1e-12)


def test_the_plugin_posterior_does_not_converge():
    assert distance("linear", 256, posterior="plugin") >= 0.2
    assert distance("linear", 256, posterior="plugin") >= 0.95 * distance("linear", 16, posterior="plugin")


@pytest.mark.parametrize("visited", [8, 3])
def test_sample_codes_draws_from_the_propagated_distribution(visited: int):
    diffusion = BernoulliDiffusion(NoiseSchedule("linear", 8))
    expected = sampled_distribution(TRUTH, diffusion, visited)
    count = 20_000
    samples = sample_codes(
        Oracle(TRUTH, diffusion),
        (count, *SHAPE),
        diffusion,
        steps=visited,
        temperature=1.0,
        generators=keyed_draws(0, "perfect", range(count)),
        final="draw",
    )
    counts = torch.bincount(index_of(samples), minlength=64).double()
    wanted = expected * count
    assert wanted.min() > 5  # the usual condition for chi-square
    statistic = ((counts - wanted) ** 2 / wanted).sum().item()
    assert statistic < 131.4  # chi-square with 63 degrees of freedom: false alarm 1e-6
    if_true = ((counts - TRUTH * count) ** 2 / (TRUTH * count)).sum().item()
    assert if_true > 300  # the test has power: it tells what 8 steps give from the data themselves

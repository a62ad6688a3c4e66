"""Noising and the reverse step against enumerated chains, to 1e-10 in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bld.diffusion import BernoulliDiffusion, NoiseSchedule, steps
from bld.errors import SettingError
from bld.seeding import keyed_draws, keyed_generator

from .enumeration import bayes, kernel, posterior, probabilities, schedules, steps_of

BIT = torch.tensor([0, 1], dtype=torch.uint8).view(2, 1, 1)
EXACT = {"rtol": 0, "atol": 1e-10}


# -- forward ----------------------------------------------------------------------------------------------


@given(schedule=schedules(), data=st.data())
def test_single_steps_multiplied_give_the_closed_form_marginal(schedule: NoiseSchedule, data: st.DataObject):
    t = data.draw(st.integers(0, schedule.steps))
    k = BernoulliDiffusion(schedule).retention(t)
    closed = torch.tensor([[1 + k, 1 - k], [1 - k, 1 + k]], dtype=torch.float64) / 2
    torch.testing.assert_close(kernel(schedule, 0, t), closed, **EXACT)


@pytest.fixture
def even_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not random: every hundred-thousandth from 0 to 1 once, so that a rate is its probability to 1e-5."""

    def grid(shape: tuple[int, ...], *_: object) -> Tensor:
        return ((torch.arange(math.prod(shape), dtype=torch.float64) + 0.5) / math.prod(shape)).view(shape)

    monkeypatch.setattr(steps, "uniform", grid)


def flip_rate(diffusion: BernoulliDiffusion, s: int | Tensor, t: int | Tensor) -> float:
    return diffusion.renoise(torch.zeros(1, 100_000, 1, dtype=torch.uint8), s, t).double().mean().item()


@pytest.mark.usefixtures("even_noise")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schedule=schedules(), data=st.data())
def test_renoising_flips_as_often_as_the_chain_of_single_steps(schedule: NoiseSchedule, data: st.DataObject):
    t, s = data.draw(steps_of(schedule))
    diffusion = BernoulliDiffusion(schedule)
    expected = kernel(schedule, s, t)[0, 1].item()
    assert flip_rate(diffusion, s, t) == pytest.approx(expected, abs=1.1e-5)
    assert flip_rate(diffusion, torch.tensor([s]), torch.tensor([t])) == pytest.approx(expected, abs=1.1e-5)


@pytest.mark.usefixtures("even_noise")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schedule=schedules(), data=st.data())
def test_renoising_in_two_goes_is_renoising_in_one(schedule: NoiseSchedule, data: st.DataObject):
    t, s = data.draw(steps_of(schedule).filter(lambda pair: pair[1] > 0)) if schedule.steps > 1 else (1, 0)
    diffusion = BernoulliDiffusion(schedule)
    first, second = flip_rate(diffusion, 0, s), flip_rate(diffusion, s, t)
    assert first * (1 - second) + (1 - first) * second == pytest.approx(flip_rate(diffusion, 0, t), abs=4e-5)


def test_noising_draws_each_sample_at_its_own_step():
    diffusion = BernoulliDiffusion(NoiseSchedule("linear", 4))
    z0 = torch.zeros(5, 40_000, 1, dtype=torch.uint8)
    rates = diffusion.diffuse(z0, torch.arange(5), keyed_generator(0, "steps")).double().mean((1, 2))
    # 5 standard deviations of at most 0.0025 each, 5 samples: false alarm below 3e-6.
    torch.testing.assert_close(rates, torch.tensor([0, 1, 2, 3, 4]).double() / 8, rtol=0, atol=0.0125)
    assert rates[0] == 0


def test_noising_keeps_shape_and_dtype_and_needs_no_neighbours():
    diffusion = BernoulliDiffusion(NoiseSchedule("linear", 8))
    z0 = torch.randint(0, 2, (6, 4, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    together = diffusion.diffuse(z0, 5, keyed_draws(3, "noise", range(6)))
    alone = [diffusion.diffuse(z0[i : i + 1], 5, keyed_draws(3, "noise", [i])) for i in range(6)]
    assert together.dtype == torch.uint8 and together.shape == z0.shape
    assert torch.equal(together, torch.cat(alone))


# -- reverse ----------------------------------------------------------------------------------------------


@given(schedule=schedules(), p0=probabilities(), data=st.data())
def test_the_reverse_step_equals_enumerated_bayes(schedule: NoiseSchedule, p0: Tensor, data: st.DataObject):
    t, s = data.draw(steps_of(schedule))
    expected = bayes(schedule, t, s, p0)
    flips = torch.stack([p0[0], 1 - p0[1]])
    for target, probs in (("flip", flips), ("z0", p0)):
        diffusion = BernoulliDiffusion(schedule, target=target)
        found = diffusion.reverse_probs(probs.logit().view(2, 1, 1), BIT, t, s)
        torch.testing.assert_close(found.flatten(), expected, **EXACT)


@given(schedule=schedules(), data=st.data())
def test_the_reverse_step_takes_one_pair_of_steps_per_sample(schedule: NoiseSchedule, data: st.DataObject):
    pairs = data.draw(st.lists(steps_of(schedule), min_size=1, max_size=4))
    p0 = data.draw(probabilities())
    diffusion = BernoulliDiffusion(schedule, target="z0")
    t, s = (torch.tensor(steps).repeat_interleave(2) for steps in zip(*pairs, strict=True))
    z_t = BIT.repeat(len(pairs), 1, 1)
    found = diffusion.reverse_probs(p0.logit().repeat(len(pairs)).view(-1, 1, 1), z_t, t, s)
    expected = torch.cat([bayes(schedule, *pair, p0) for pair in pairs])
    torch.testing.assert_close(found.flatten(), expected, **EXACT)


@given(schedule=schedules(), data=st.data())
def test_flip_coefficients_are_the_enumerated_posterior(schedule: NoiseSchedule, data: st.DataObject):
    t, s = data.draw(steps_of(schedule))
    a, c = BernoulliDiffusion(schedule).flip_coefficients(t, s)
    q = posterior(schedule, s, t)
    assert a == pytest.approx(q[0, 0, 1].item(), abs=1e-10) == pytest.approx(q[1, 1, 0].item(), abs=1e-10)
    assert c == pytest.approx(q[1, 0, 1].item(), abs=1e-10) == pytest.approx(q[0, 1, 0].item(), abs=1e-10)


@given(schedule=schedules(), data=st.data())
def test_the_last_step_is_the_prediction_itself(schedule: NoiseSchedule, data: st.DataObject):
    t = data.draw(st.integers(1, schedule.steps))
    diffusion = BernoulliDiffusion(schedule)
    assert diffusion.flip_coefficients(t, 0) == (0, 1)
    a, c = diffusion.flip_coefficients(torch.tensor([t]), torch.tensor([0]))
    assert (a.item(), c.item()) == (0, 1)
    logits = torch.tensor([-0.7, 1.9], dtype=torch.float64).view(2, 1, 1)
    assert torch.equal(diffusion.reverse_probs(logits, BIT, t, 0), diffusion.clean_probs(logits, BIT, t))


@given(schedule=schedules(), p0=probabilities(), data=st.data())
def test_the_previous_target_says_the_previous_bit_itself(schedule: NoiseSchedule, p0: Tensor, data: st.DataObject):
    t = data.draw(st.integers(1, schedule.steps))
    diffusion = BernoulliDiffusion(schedule, target="previous")
    found = diffusion.reverse_probs(p0.logit().view(2, 1, 1), BIT, t, t - 1)
    torch.testing.assert_close(found.flatten(), p0, **EXACT)
    if t > 1:
        with pytest.raises(SettingError, match=rf"'previous'.* {schedule.steps} steps"):
            diffusion.reverse_probs(p0.logit().view(2, 1, 1), BIT, t, t - 2)
        with pytest.raises(SettingError, match=rf"'previous'.* {schedule.steps} steps"):
            diffusion.reverse_probs(p0.logit().view(2, 1, 1), BIT, torch.tensor([t, t]), torch.tensor([t - 2, t - 1]))


@given(schedule=schedules(), p0=probabilities(), data=st.data())
def test_the_plugin_posterior_is_the_paper_s_formula_with_its_indices_corrected(
    schedule: NoiseSchedule, p0: Tensor, data: st.DataObject
):
    t, s = data.draw(steps_of(schedule))
    diffusion = BernoulliDiffusion(schedule, target="z0", posterior="plugin")
    step, start = kernel(schedule, s, t), kernel(schedule, 0, s)
    prior = p0.unsqueeze(1) * start[1] + (1 - p0).unsqueeze(1) * start[0]  # [z_t, z_s]
    joint = prior * step.T
    found = diffusion.reverse_probs(p0.logit().view(2, 1, 1), BIT, t, s)
    torch.testing.assert_close(found.flatten(), joint[:, 1] / joint.sum(1), **EXACT)


def test_half_precision_logits_are_computed_in_float32():
    diffusion = BernoulliDiffusion(NoiseSchedule("linear", 1000))
    logits = torch.tensor([-2.0, 3.0]).view(2, 1, 1)
    low = diffusion.reverse_probs(logits.bfloat16(), BIT, 900, 899)
    assert low.dtype == torch.float32
    assert torch.equal(low, diffusion.reverse_probs(logits, BIT, 900, 899))


@pytest.mark.parametrize("t, s", [(3, 3), (2, 3), (9, 1), (1, -1)])
def test_a_step_that_does_not_go_back_is_refused(t: int, s: int):
    diffusion = BernoulliDiffusion(NoiseSchedule("linear", 8))
    with pytest.raises(SettingError, match=f"s < t ≤ 8.* {t} to {s}"):
        diffusion.reverse_probs(torch.zeros(2, 1, 1), BIT, t, s)


def test_a_step_outside_the_schedule_is_refused():
    with pytest.raises(SettingError, match=r" 9 .*\b0 … 8\b"):
        BernoulliDiffusion(NoiseSchedule("linear", 8)).diffuse(BIT, 9)


def test_unknown_names_are_refused_with_the_nearest_known_one():
    schedule = NoiseSchedule("linear", 8)
    with pytest.raises(SettingError, match=r"'flips'.*'flip'\?"):
        BernoulliDiffusion(schedule, target="flips")
    with pytest.raises(SettingError, match=r"'plug-in'.*'plugin'\?"):
        BernoulliDiffusion(schedule, posterior="plug-in")


# -- evidence ---------------------------------------------------------------------------------------------


@given(schedule=schedules())
def test_evidence_is_the_posterior_of_a_fair_coin(schedule: NoiseSchedule):
    for target in ("flip", "z0", "previous"):
        evidence = BernoulliDiffusion(schedule, target=target).evidence_logits()
        assert evidence.dtype == torch.float32 and evidence.shape == (schedule.steps,)
        for t in range(1, schedule.steps + 1):
            chain = kernel(schedule, t - 1 if target == "previous" else 0, t)
            # A fair coin is a fair coin at every step, so P(z_s ≠ z_t | z_t) is the kernel's own entry.
            expected = chain[1, 0] / chain[:, 0].sum()
            assert evidence[t - 1].double().sigmoid().item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
        assert (evidence <= 0).all() and evidence.isfinite().all()

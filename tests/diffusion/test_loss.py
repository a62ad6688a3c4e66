"""The loss against enumerated divergences, to 1e-10 in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bld.diffusion import BernoulliDiffusion, NoiseSchedule
from bld.diffusion.loss import variational_terms
from bld.seeding import keyed_draws

from .enumeration import bayes, kernel, posterior, probabilities, schedules, steps_of

Z_0 = torch.tensor([0, 0, 1, 1], dtype=torch.uint8).view(4, 1, 1)
Z_T = torch.tensor([0, 1, 0, 1], dtype=torch.uint8).view(4, 1, 1)
TARGETS = ["flip", "z0", "previous"]


def divergence(q: Tensor, p: Tensor) -> Tensor:
    """KL(q ‖ p) over the last dimension, 0·log 0 = 0."""
    return torch.where(q > 0, q * (q / p).log(), 0.0).sum(-1)


def logits_for(target: str, p: Tensor) -> Tensor:
    """P(bit = 1) for z_t = 0 and z_t = 1, (2,) → logits for the four pairs (z_0, z_t)."""
    logits = p.logit().repeat(2).view(4, 1, 1)
    return logits * (1 - 2 * Z_T.double()) if target == "flip" else logits


@given(schedule=schedules(), p0=probabilities(), data=st.data())
def test_every_kl_term_equals_enumeration(schedule: NoiseSchedule, p0: Tensor, data: st.DataObject):
    t, s = data.draw(steps_of(schedule))
    truth = posterior(schedule, s, t)  # [z_0, z_t, z_s]
    one = bayes(schedule, t, s, p0)
    model = torch.stack([1 - one, one], -1)  # [z_t, z_s]
    expected = divergence(truth, model.unsqueeze(0)).flatten()
    steps = torch.full((4,), t), torch.full((4,), s)
    for target in ("flip", "z0"):
        diffusion = BernoulliDiffusion(schedule, target=target)
        for pair in ((t, s), steps):
            terms = variational_terms(diffusion, logits_for(target, p0), Z_0, Z_T, *pair).flatten()
            torch.testing.assert_close(terms, expected, rtol=1e-10, atol=1e-10)


@given(schedule=schedules(), p=probabilities(), data=st.data())
def test_the_previous_target_is_held_to_the_same_posterior(schedule: NoiseSchedule, p: Tensor, data: st.DataObject):
    t = data.draw(st.integers(1, schedule.steps))
    model = torch.stack([1 - p, p], -1)
    expected = divergence(posterior(schedule, t - 1, t), model.unsqueeze(0)).flatten()
    diffusion = BernoulliDiffusion(schedule, target="previous")
    terms = variational_terms(diffusion, logits_for("previous", p), Z_0, Z_T, t, t - 1).flatten()
    torch.testing.assert_close(terms, expected, rtol=1e-10, atol=1e-10)


@given(schedule=schedules(), p0=probabilities(), data=st.data())
def test_at_step_zero_the_term_is_the_code_length_of_the_data(schedule: NoiseSchedule, p0: Tensor, data: st.DataObject):
    t = data.draw(st.integers(1, schedule.steps))
    terms = variational_terms(BernoulliDiffusion(schedule, "z0"), logits_for("z0", p0), Z_0, Z_T, t, 0).flatten()
    expected = -torch.stack([1 - p0, p0]).log().flatten()
    torch.testing.assert_close(terms, expected, rtol=1e-10, atol=1e-10)


@given(schedule=schedules(), p0=probabilities(), data=st.data())
def test_the_loss_is_the_mean_of_bce_and_of_the_terms(schedule: NoiseSchedule, p0: Tensor, data: st.DataObject):
    t = torch.tensor(data.draw(st.lists(st.integers(1, schedule.steps), min_size=4, max_size=4)))
    results = {}
    for target in ("flip", "z0"):
        diffusion = BernoulliDiffusion(schedule, target=target)
        logits = logits_for(target, p0)
        terms = [variational_terms(diffusion, logits, Z_0, Z_T, int(i), int(i) - 1)[j] for j, i in enumerate(t)]
        loss = results[target] = diffusion.loss(logits, Z_0, Z_T, t, vlb_weight=0.3)
        one = F.binary_cross_entropy(p0.repeat(2), Z_0.flatten().double())  # predicting z_0 is the same number
        torch.testing.assert_close(loss.residual, one, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(loss.vlb, torch.stack(terms).mean(), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(loss.total, one + 0.3 * loss.vlb, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(results["flip"].total, results["z0"].total, rtol=1e-10, atol=1e-10)


def test_the_previous_target_learns_from_the_bound_alone():
    diffusion = BernoulliDiffusion(NoiseSchedule("linear", 8), target="previous")
    logits = torch.randn(4, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    loss = diffusion.loss(logits, Z_0, Z_T, torch.tensor([1, 3, 5, 8]))
    assert loss.total == loss.vlb and loss.residual == 0


def test_the_first_term_of_the_bound_is_the_residual():
    diffusion = BernoulliDiffusion(NoiseSchedule("linear", 8))
    logits = torch.randn(4, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    loss = diffusion.loss(logits, Z_0, Z_T, torch.ones(4, dtype=torch.long))
    torch.testing.assert_close(loss.vlb, loss.residual, rtol=1e-12, atol=0)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("t", [1, 2, 32, 63, 64])
@pytest.mark.parametrize("kind", ["linear", "cosine", "sigmoid"])
def test_extreme_logits_have_a_finite_loss_and_gradient(target: str, t: int, kind: str):
    diffusion = BernoulliDiffusion(NoiseSchedule(kind, 64), target=target)
    for extreme in (-100.0, -30.0, 0.0, 30.0, 100.0):
        logits = torch.full((4, 1, 1), extreme, requires_grad=True)
        loss = diffusion.loss(logits, Z_0, Z_T, torch.full((4,), t))
        loss.total.backward()
        assert loss.total.isfinite() and logits.grad.isfinite().all()
        wrong = (Z_T ^ Z_0).bool() if extreme < 0 else (Z_T == Z_0)
        if target == "flip" and extreme != 0:  # confident and wrong: pushed back at full strength, ¼ to ¼·(1 + λ)
            torch.testing.assert_close(logits.grad[wrong].abs(), torch.full((2,), 0.25), rtol=0.11, atol=0)


@pytest.mark.parametrize("t", [1, 3, 6])
@pytest.mark.parametrize("target", TARGETS)
def test_the_loss_is_least_at_the_true_posterior(target: str, t: int):
    """Expected over a coin with P(z_0 = 1) = 0.3, enumerated: the gradient vanishes there, not nearby."""
    schedule = NoiseSchedule("cosine", 6)
    diffusion = BernoulliDiffusion(schedule, target=target)
    s = t - 1 if target == "previous" else 0
    q = torch.tensor([[0.7], [0.3]], dtype=torch.float64) * kernel(schedule, 0, t)  # [z_0, z_t]
    p = torch.einsum("ab,abz->bz", q / q.sum(0), posterior(schedule, s, t))[:, 1]  # P(z_s = 1 | z_t)
    best = p.logit() * (torch.tensor([1, -1]) if target == "flip" else 1)

    def expected_loss(logits: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for weight, z0, z_t in zip(q.flatten(), Z_0, Z_T, strict=True):
            one = logits[int(z_t)].view(1, 1, 1)
            total = total + weight * diffusion.loss(one, z0[None], z_t[None], torch.tensor([t])).total
        return total

    logits = best.clone().requires_grad_()
    least = expected_loss(logits)
    gradient = torch.autograd.grad(least, logits)[0]
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)
    for step in ([0.1, 0], [-0.1, 0], [0, 0.1], [0, -0.1]):
        assert expected_loss(best + torch.tensor(step)) > least + 1e-6


@given(schedule=schedules(), y=st.floats(0, 1), data=st.data())
def test_the_flip_posterior_equals_enumeration(schedule: NoiseSchedule, y: float, data: st.DataObject):
    t = data.draw(st.integers(1, schedule.steps))
    joint = torch.tensor([[1 - y], [y]], dtype=torch.float64) * kernel(schedule, 0, t)  # [z_0, z_t]
    known = joint / joint.sum(0)
    expected = torch.stack([known[1, 0], known[0, 1]])  # P(z_0 ≠ z_t | z_t) for z_t = 0, 1
    z_t, probs = torch.tensor([0, 1], dtype=torch.uint8).view(2, 1, 1), torch.full((2, 1, 1), y, dtype=torch.float64)
    for steps in (t, torch.full((2,), t)):
        found = BernoulliDiffusion(schedule).flip_posterior(probs, z_t, steps).flatten()
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12, equal_nan=True)


@given(schedule=schedules(), y=st.floats(0.01, 0.99), p0=probabilities(), data=st.data())
def test_soft_targets_are_the_mean_over_the_codes_they_stand_for(
    schedule: NoiseSchedule, y: float, p0: Tensor, data: st.DataObject
):
    """E[loss(z_0) | z_t, y], enumerated over z_0: residual and term of the bound, for each target."""
    t = data.draw(st.integers(1, schedule.steps))
    joint = torch.tensor([[1 - y], [y]], dtype=torch.float64) * kernel(schedule, 0, t)
    known = joint / joint.sum(0)  # P(z_0 | z_t)
    probs = torch.full((1, 1, 1), y, dtype=torch.float64)
    for target in TARGETS:
        diffusion, steps = BernoulliDiffusion(schedule, target=target), torch.tensor([t])
        for z_t in (0, 1):
            logits = logits_for(target, p0)[z_t].view(1, 1, 1)
            noised = torch.tensor(z_t, dtype=torch.uint8).view(1, 1, 1)
            each = [diffusion.loss(logits, torch.full_like(noised, z0), noised, steps, 0.3) for z0 in (0, 1)]
            flips = diffusion.flip_posterior(probs, noised, steps)
            soft = diffusion.loss(logits, noised, noised, steps, 0.3, flips)  # whatever z_0 is handed over
            for name in ("total", "residual", "vlb"):
                hard = sum(known[z0, z_t] * getattr(each[z0], name) for z0 in (0, 1))
                torch.testing.assert_close(getattr(soft, name), hard, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("target", ["flip", "z0"])
def test_known_bits_are_shown_as_they_are_and_asked_for_nothing(target: str):
    """The loss is that of the hidden bits alone, in every bit; what the network says of known ones is no matter."""
    diffusion, seen = BernoulliDiffusion(NoiseSchedule("linear", 8), target=target), []
    generator = torch.Generator().manual_seed(0)
    z0 = torch.randint(0, 2, (3, 4, 5), dtype=torch.uint8, generator=generator)
    logits = torch.randn(3, 4, 5, generator=generator).requires_grad_()
    hidden, t = torch.rand(3, 4, generator=generator) < 0.5, torch.tensor([8, 4, 1])

    def denoise(z_t: Tensor, t: Tensor) -> Tensor:
        seen.append(z_t)
        return logits

    loss = diffusion.training_loss(denoise, z0, t, keyed_draws(0, "holes", range(3)), 0.3, hidden=hidden)
    z_t = diffusion.diffuse(z0, t, keyed_draws(0, "holes", range(3)))
    assert torch.equal(seen[0][~hidden], z0[~hidden]) and torch.equal(seen[0][hidden], z_t[hidden])
    assert not torch.equal(z_t[~hidden], z0[~hidden])
    each = [
        diffusion.loss(
            logits[b, n].view(1, 1, 5), z0[b, n].view(1, 1, 5), z_t[b, n].view(1, 1, 5), t[b : b + 1], 0.3
        ).total
        for b, n in hidden.nonzero().tolist()
    ]
    torch.testing.assert_close(loss.total, torch.stack(each).sum() / hidden.numel())
    gradient = torch.autograd.grad(loss.total, logits)[0]
    assert (gradient[~hidden] == 0).all() and (gradient[hidden] != 0).all()
    everything = diffusion.training_loss(denoise, z0, t, keyed_draws(0, "holes", range(3)), 0.3)
    all_hidden = torch.ones_like(hidden)
    again = diffusion.training_loss(denoise, z0, t, keyed_draws(0, "holes", range(3)), 0.3, hidden=all_hidden)
    torch.testing.assert_close(again.total, everything.total, rtol=0, atol=0)

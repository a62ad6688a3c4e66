from __future__ import annotations

import builtins

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bld.errors import MissingPackageError, SettingError, UserError
from bld.tokenizer import ObjectiveConfig, ReconstructionObjective
from bld.tokenizer.losses import gradient_ratio, missing_entropy_bits, untrained_lpips

PROBS = torch.full((4, 2, 2, 3), 0.5)


def two_batches() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(4, 3, 8, 8, generator=generator), torch.rand(4, 3, 8, 8, generator=generator)


def test_the_total_is_the_weighted_sum_of_its_terms():
    made, images = two_batches()
    config = ObjectiveConfig(mse=2.0, l1=0.5, perceptual=0, adversarial=3.0)
    logits = torch.tensor([0.3, -0.1])
    loss = ReconstructionObjective(config)(made, images, PROBS, logits, adversarial_scale=0.25)
    mse, l1 = F.mse_loss(made, images), F.l1_loss(made, images)
    torch.testing.assert_close(loss.total, 2 * mse + 0.5 * l1 - 3 * 0.25 * logits.mean())
    assert set(loss.terms) == {"mse", "l1", "adversarial"}
    assert loss.terms["mse"] == mse and loss.terms["l1"] == l1  # unweighted, for the log


def test_the_adversarial_term_waits_for_its_scale():
    made, images = two_batches()
    objective = ReconstructionObjective(ObjectiveConfig(perceptual=0))
    without = objective(made, images, PROBS)
    assert "adversarial" not in without.terms
    assert objective(made, images, PROBS, torch.tensor([9.0]), adversarial_scale=0.0).total == without.total


@pytest.mark.parametrize(
    "start, ramp, expected",
    [
        (0.0, 0.1, {0.0: 0.0, 0.05: 0.5, 0.1: 1.0, 1.0: 1.0}),
        (0.5, 0.2, {0.0: 0.0, 0.49: 0.0, 0.5: 0.0, 0.6: 0.5, 0.7: 1.0, 1.0: 1.0}),
        (0.5, 0.0, {0.49: 0.0, 0.5: 1.0, 1.0: 1.0}),
    ],
)
def test_the_adversarial_weight_ramps_from_its_start(start: float, ramp: float, expected: dict[float, float]):
    config = ObjectiveConfig(adversarial_start=start, adversarial_ramp=ramp)
    for progress, scale in expected.items():
        assert config.adversarial_scale(progress) == pytest.approx(scale)
    assert ObjectiveConfig(adversarial=0).adversarial_scale(1.0) == 0


def test_the_adaptive_weight_makes_both_gradients_equal_on_the_last_layer():
    torch.manual_seed(0)
    layer = nn.Linear(6, 3, bias=False).double()
    critic = nn.Linear(3, 1).double()
    x, images = torch.randn(5, 6).double(), torch.randn(5, 3).double()
    made = layer(x)
    reconstruction, adversarial = F.mse_loss(made, images), -critic(made).mean()
    d_reconstruction = torch.autograd.grad(reconstruction, layer.weight, retain_graph=True)[0]
    d_adversarial = torch.autograd.grad(adversarial, layer.weight, retain_graph=True)[0]
    expected = d_reconstruction.norm() / (d_adversarial.norm() + 1e-4)
    torch.testing.assert_close(gradient_ratio(reconstruction, adversarial, layer.weight), expected)

    config = ObjectiveConfig(perceptual=0, adversarial=0.8, adversarial_weight="adaptive")
    loss = ReconstructionObjective(config)(made, images, PROBS, critic(made), layer.weight, adversarial_scale=0.5)
    gradient = torch.autograd.grad(loss.total, layer.weight)[0]
    torch.testing.assert_close(gradient, d_reconstruction + 0.8 * 0.5 * expected * d_adversarial)


def test_the_adaptive_weight_stays_finite_against_a_critic_without_gradient():
    weight = nn.Parameter(torch.ones(3))
    assert gradient_ratio(weight.sum() * 1e9, (weight * 0).sum(), weight) == 1e4


def test_the_adaptive_weight_needs_the_last_layer():
    made, images = two_batches()
    config = ObjectiveConfig(perceptual=0, adversarial_weight="adaptive")
    with pytest.raises(SettingError, match="last layer"):
        ReconstructionObjective(config)(made, images, PROBS, torch.zeros(2), adversarial_scale=1.0)


def test_the_code_entropy_penalty_is_zero_for_uniform_use_and_one_for_dead_bits():
    assert missing_entropy_bits(PROBS) == 0
    sure = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 2, 2, 3)  # each image sure, the batch even
    assert missing_entropy_bits(sure) == pytest.approx(0, abs=1e-6)
    assert missing_entropy_bits(torch.ones(4, 2, 2, 3)) == pytest.approx(1, abs=1e-4)
    made, images = two_batches()
    quarter = torch.full_like(PROBS, 0.25)
    with_penalty = ReconstructionObjective(ObjectiveConfig(perceptual=0, code_entropy=2.0))(made, images, quarter)
    without = ReconstructionObjective(ObjectiveConfig(perceptual=0))(made, images, quarter)
    assert (with_penalty.total - without.total).item() == pytest.approx(2 * (1 - 0.811278), abs=1e-5)


def test_a_bottlenecks_penalties_are_weighed_and_logged_by_name():
    made, images = two_batches()
    config = ObjectiveConfig(perceptual=0, commitment=0.5, kl=1e-3)
    penalties = {"commitment": torch.tensor(2.0), "kl": torch.tensor(300.0, requires_grad=True)}
    loss = ReconstructionObjective(config)(made, images, None, penalties=penalties)
    torch.testing.assert_close(loss.total, F.mse_loss(made, images) + 0.5 * 2 + 1e-3 * 300)
    assert loss.terms["commitment"] == 2 and loss.terms["kl"] == 300  # unweighted, for the log
    assert torch.autograd.grad(loss.total, penalties["kl"])[0] == pytest.approx(1e-3)
    assert set(ReconstructionObjective(config)(made, images, PROBS).terms) == {"mse", "l1"}


def test_without_the_package_the_perceptual_term_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def absent(name: str, *rest: object) -> object:
        if name == "lpips":
            raise ImportError("No module named 'lpips'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingPackageError, match=r"binary-latent-diffusion\[lpips\].*perceptual=0"):
        ReconstructionObjective(ObjectiveConfig())


@pytest.mark.parametrize("failure", [OSError("Name or service not known\nmore"), RuntimeError(""), RuntimeError("x")])
def test_without_its_weights_the_perceptual_term_is_one_sentence(monkeypatch: pytest.MonkeyPatch, failure: Exception):
    lpips = pytest.importorskip("lpips")

    def fails(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(lpips, "LPIPS", fails)
    with pytest.raises(UserError, match=r"VGG-16.*perceptual=0") as error:
        ReconstructionObjective(ObjectiveConfig())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [8, 15, 16, 17])
def test_images_in_which_lpips_sees_nothing_are_refused(size: int):
    """They are accepted exactly where the network gives something."""
    images = torch.zeros(1, 3, size, size)
    try:
        sees = bool(untrained_lpips()(images, images).isfinite())
    except RuntimeError:
        sees = False
    asked = ObjectiveConfig(perceptual=0.5, adversarial=0)
    if sees:
        asked.check(size)
    else:
        with pytest.raises(SettingError, match=rf"perceptual=0\.5 .*{size}×{size} .*perceptual=0,.* 16 "):
            asked.check(size)
    ObjectiveConfig(perceptual=0, adversarial=0).check(size)


def test_a_perceptual_loss_is_frozen_and_averaged(monkeypatch: pytest.MonkeyPatch):
    class Distance(nn.Module):
        def __init__(self, **_: object) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, made: Tensor, images: Tensor) -> Tensor:
            return self.weight * (made - images).abs().mean((1, 2, 3), keepdim=True)

    monkeypatch.setattr(pytest.importorskip("lpips"), "LPIPS", Distance)
    made, images = two_batches()
    objective = ReconstructionObjective(ObjectiveConfig(mse=0, perceptual=4.0))
    assert not any(p.requires_grad for p in objective.parameters())
    torch.testing.assert_close(objective(made, images, PROBS).total, 4 * F.l1_loss(made, images))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"mse": -1}, r"objective\.mse .*\b0 or more, not -1\b"),
        ({"code_entropy": -0.1}, r"objective\.code_entropy .*not -0\.1\b"),
        ({"commitment": -0.25}, r"objective\.commitment .*not -0\.25\b"),
        ({"kl": -1e-6}, r"objective\.kl .*not -1e-06\b"),
        ({"mse": 0, "perceptual": 0}, r"objective\.mse .*objective\.l1 above 0"),
        ({"adversarial_start": 1.5}, r"objective\.adversarial_start .*\b0 to 1\b.*\b1\.5\b"),
        ({"adversarial_ramp": -0.5}, r"objective\.adversarial_ramp .*\b0 to 1\b.*-0\.5\b"),
        ({"adversarial_weight": "adaptiv"}, r"adversarial_weight.*'adaptiv'.*'adaptive'\?"),
    ],
)
def test_an_impossible_objective_is_refused(settings: dict, message: str):
    with pytest.raises(SettingError, match=message):
        ObjectiveConfig(**settings)

"""The Gaussian prior: diffusers' schedule, our transformer, deterministic DDIM."""

from __future__ import annotations

import sys

import pytest
import torch

from bld.errors import MissingPackageError, SettingError
from bld.priors import DenoiserConfig, GaussianDenoiser, GaussianDiffusion
from bld.seeding import keyed_draws, normal

pytest.importorskip("diffusers")


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_step_is_that_of_diffusers_own_sampler(schedule):
    process = GaussianDiffusion(100, schedule)
    process.scheduler.set_timesteps(10)
    x, noise = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    for t in (91, 51, 21):
        theirs = process.scheduler.step(noise, t - 1, x, eta=0.0)
        clean, ours = process._step(noise, x, t, t - 10)
        assert torch.allclose(ours, theirs.prev_sample, atol=1e-5)
        assert torch.allclose(clean, theirs.pred_original_sample, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 7, 64, 1000])
def test_the_perfect_predictor_of_one_point_returns_it(steps):
    """All data at one point: the noise is known exactly, and any number of steps lands there."""
    process = GaussianDiffusion(1000, "linear", scale=2.0)
    point = torch.linspace(-1, 1, 12).view(1, 3, 4)

    def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        kept = process.scheduler.alphas_cumprod[t - 1].view(-1, 1, 1)
        return (x - kept.sqrt() * point) / (1 - kept).sqrt()

    drawn = process.sample(denoise, (5, 3, 4), steps=steps, generators=keyed_draws(0, "sample", range(5)))
    assert torch.allclose(drawn, 2.0 * point.expand(5, 3, 4), atol=1e-3)


@torch.no_grad()
def test_the_perfect_predictor_of_a_gaussian_recovers_it():
    """Latents N(1, 0.5²) per number: mean and deviation of 8,000 draws (six standard errors: false alarm 2e-9)."""
    process, mean, deviation = GaussianDiffusion(200, "cosine"), 1.0, 0.5

    def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        kept = process.scheduler.alphas_cumprod[t - 1].view(-1, 1, 1)
        clean = mean + (kept.sqrt() * deviation**2 / (kept * deviation**2 + 1 - kept)) * (x - kept.sqrt() * mean)
        return (x - kept.sqrt() * clean) / (1 - kept).sqrt()

    drawn = process.sample(denoise, (2000, 2, 2), generators=torch.Generator().manual_seed(0))
    assert abs(drawn.mean() - mean) < 6 * deviation / 8000**0.5 + 0.01
    assert abs(drawn.std() - deviation) < 6 * deviation / 16000**0.5 + 0.01


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 16, 100, 1000])
def test_hardly_anything_is_left_of_the_data_where_sampling_begins(steps, schedule):
    one, none = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
    assert GaussianDiffusion(steps, schedule).noised(one, none, steps).item() < 0.05


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [4, 16, 100, 1000])
def test_v_and_the_noise_say_the_same_of_a_step(steps, schedule):
    """v of a known x_0 and noise leads to the same step as the noise itself, and to that of diffusers."""
    by_v, by_noise = (GaussianDiffusion(steps, schedule, prediction=kind) for kind in ("v", "epsilon"))
    x0, noise = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    for t in (1, steps // 2, max(1, steps - 1)):
        kept = by_v.scheduler.alphas_cumprod[t - 1].double()
        x, v = kept.sqrt() * x0 + (1 - kept).sqrt() * noise, kept.sqrt() * noise - (1 - kept).sqrt() * x0
        for ours, theirs in zip(by_v._step(v, x, t, 0), by_noise._step(noise, x, t, 0), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-6)
            assert torch.allclose(ours, x0, atol=1e-6)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_an_error_of_the_network_does_not_grow_however_few_the_steps(schedule):
    """At T = 16 an error of 1 in the noise moves x_0 by hundreds or thousands; one of v by at most 1."""
    x, zero, one = torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    for steps in (4, 16, 64):
        safe, wild = (GaussianDiffusion(steps, schedule, prediction=kind) for kind in ("v", "epsilon"))
        moved = [float((safe._step(one, x, t, 0)[0] - safe._step(zero, x, t, 0)[0]).abs()) for t in range(1, steps + 1)]
        assert max(moved) <= 1
        assert float(wild._step(one, x, steps, 0)[0].abs()) > (100 if steps == 16 else 1)


def test_the_loss_is_that_of_what_is_predicted():
    z0, t = torch.randn(3, 2, 2), torch.tensor([1, 8, 16])
    noise = normal(z0.shape, keyed_draws(0, "noise", range(3)), "cpu")
    process = GaussianDiffusion(16, scale=2.0, prediction="v")
    kept = process.scheduler.alphas_cumprod[t - 1].view(-1, 1, 1)
    v = kept.sqrt() * noise - (1 - kept).sqrt() * z0 / 2

    def perfect(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return v

    assert float(process.training_loss(perfect, z0, t, keyed_draws(0, "noise", range(3))).total) < 1e-10


def test_old_models_predict_the_noise_and_runs_of_then_go_on_so(tmp_path):
    from bld.training.config import load_settings
    from bld.training.run_folder import RunFolder

    assert GaussianDiffusion(10, "linear", 1.0).prediction == "epsilon"  # as their config.json, which does not say
    assert load_settings("digits").diffusion.prediction == "v"
    (tmp_path / "config.yaml").write_text("preset: digits\ndata: {location: digits}\ndiffusion: {steps: 16}\n")
    assert RunFolder(tmp_path).settings().diffusion.prediction == "epsilon"


@torch.no_grad()
def test_known_positions_are_returned():
    torch.manual_seed(0)
    network = GaussianDenoiser(DenoiserConfig(2, 2, 3, 20, dim=32, depth=1, heads=2, step_embedding="sinusoidal"))
    known, mask = torch.randn(1, 4, 3), torch.tensor([True, True, False, True])
    drawn = GaussianDiffusion(20).sample(network, (3, 4, 3), known=known, mask=mask)
    assert torch.allclose(drawn[:, 2], known[:, 2].expand(3, 3), atol=1e-6)


def test_real_numbers_have_no_code_length():
    with pytest.raises(SettingError, match="no code length"):
        GaussianDiffusion(8).likelihood_bits(lambda z, t: z, torch.zeros(1, 2, 2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "sigmoid"}, "linear.* cosine.*'sigmoid'"),
        ({"steps": 0}, "steps ≥ 1"),
        ({"scale": 0.0}, "scale above 0"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        GaussianDiffusion(**settings)


def test_without_diffusers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingPackageError, match=r"binary-latent-diffusion\[gaussian\]"):
        GaussianDiffusion(8)


def test_normal_draws_are_keyed_and_normal():
    """100,000 draws: mean, variance and kurtosis within six standard errors (false alarm 6e-9)."""
    x = normal((100_000,), torch.Generator().manual_seed(0))
    assert abs(x.mean()) < 6 / 100_000**0.5
    assert abs(x.var() - 1) < 6 * (2 / 100_000) ** 0.5
    assert abs((x**4).mean() - 3) < 6 * (96 / 100_000) ** 0.5
    assert torch.isfinite(x).all()
    both = normal((2, 3), keyed_draws(0, "x", range(2)))
    assert torch.equal(both[1:], normal((1, 3), keyed_draws(0, "x", range(1, 2))))


def test_noising_is_that_of_diffusers_on_whichever_device():
    process, t = GaussianDiffusion(100), torch.tensor([1, 40, 100])
    x, noise = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    assert torch.allclose(process.noised(x, noise, t), process.scheduler.add_noise(x, noise, t - 1), atol=1e-6)
    for step, row in zip(t.tolist(), process.noised(x, noise, t), strict=True):
        assert torch.allclose(process.noised(x, noise, step)[t == step], row, atol=1e-6)
    assert torch.equal(process.noised(x, noise, 0), x)
    process.noised(x.to("meta"), noise.to("meta"), t.to("meta"))  # as on a GPU
    assert torch.isfinite(process._step(noise, x, 40, 30)[1]).all()  # and here again

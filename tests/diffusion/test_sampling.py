from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from bld.diffusion import BernoulliDiffusion, NoiseSchedule, SamplingStep, sample_codes
from bld.errors import SettingError
from bld.priors import Denoiser, DenoiserConfig
from bld.seeding import keyed_draws, uniform

N, C, STEPS = 16, 8, 16
DIFFUSION = BernoulliDiffusion(NoiseSchedule("linear", STEPS))


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    """Small, in float32, and with opinions: its head does not start at zero."""
    torch.manual_seed(0)
    model = Denoiser(DenoiserConfig(4, 4, C, steps=STEPS, dim=32, depth=2, heads=4)).eval()
    nn.init.normal_(model.head.weight, std=0.3)
    return model


def draw(denoiser: Denoiser, indices: range, **settings: object) -> Tensor:
    generators = keyed_draws(7, "sample", indices)
    return sample_codes(denoiser, (len(indices), N, C), DIFFUSION, generators=generators, **settings)


VARIANTS = [
    {},
    {"steps": 5},
    {"temperature": 0.5},
    {"final": "draw"},
    {"corrector_steps": 1, "steps": 4},
    {"known": torch.ones(1, N, C), "mask": torch.arange(N) < 8, "resample": 2, "steps": 4},
]


@pytest.mark.parametrize("settings", VARIANTS, ids=lambda settings: "+".join(settings) or "default")
def test_a_sample_depends_on_its_own_generator_only(denoiser: Denoiser, settings: dict):
    all_at_once = draw(denoiser, range(64), **settings)
    by_sevens = torch.cat([draw(denoiser, range(i, min(i + 7, 64)), **settings) for i in range(0, 64, 7)])
    alone = torch.cat([draw(denoiser, range(i, i + 1), **settings) for i in range(64)])
    assert all_at_once.dtype == torch.uint8 and all_at_once.shape == (64, N, C)
    assert torch.equal(all_at_once, by_sevens)
    assert torch.equal(all_at_once, alone)
    assert len(torch.unique(all_at_once, dim=0)) == 64


@pytest.mark.parametrize("steps", [None, 1, 5, 16])
def test_the_callback_sees_every_step_of_the_subsequence(denoiser: Denoiser, steps: int | None):
    seen: list[SamplingStep] = []
    result = draw(denoiser, range(3), steps=steps, callback=seen.append)
    visited = DIFFUSION.schedule.timesteps(steps)
    assert [step.index for step in seen] == list(range(steps or STEPS))
    assert {step.total for step in seen} == {steps or STEPS}
    assert [(step.t, step.s) for step in seen] == list(itertools.pairwise(visited))
    assert torch.equal(seen[-1].codes, result)
    assert torch.equal(result, (seen[-1].probs > 0.5).to(torch.uint8))
    for step in seen:
        assert step.codes.dtype == torch.uint8 and step.codes.shape == step.probs.shape == (3, N, C)
        assert ((step.probs >= 0) & (step.probs <= 1)).all()


def test_the_network_sees_the_steps_visited():
    seen: list[list[int]] = []

    def denoise(z_t: Tensor, t: Tensor) -> Tensor:
        assert t.dtype == torch.int64
        seen.append(t.tolist())
        return torch.zeros(z_t.shape)

    sample_codes(denoise, (2, 3, 2), DIFFUSION, steps=4)
    assert seen == [[16, 16], [12, 12], [8, 8], [4, 4]]


@pytest.mark.parametrize("temperature", [0.25, 0.9, 1.0, 4.0])
def test_the_temperature_divides_the_logits(temperature: float):
    logits = torch.linspace(-2, 2, 6, dtype=torch.float64).view(1, 3, 2)
    seen: list[SamplingStep] = []
    diffusion = BernoulliDiffusion(NoiseSchedule("linear", 1), target="z0")
    sample_codes(lambda z, t: logits, (1, 3, 2), diffusion, temperature=temperature, callback=seen.append)
    torch.testing.assert_close(seen[-1].probs, (logits / temperature).sigmoid(), rtol=1e-12, atol=0)


def test_sampling_starts_from_fair_coins():
    starts: list[Tensor] = []

    def denoise(z_t: Tensor, t: Tensor) -> Tensor:
        starts.append(z_t.clone())
        return torch.zeros(z_t.shape)

    sample_codes(denoise, (1000, 16, 8), DIFFUSION, steps=1, generators=keyed_draws(0, "coins", range(1000)))
    rate = starts[0].double().mean().item()
    assert abs(rate - 0.5) < 5 * 0.5 / 128_000**0.5  # 5 standard deviations: false alarm 6e-7


def test_the_previous_target_samples_with_all_steps_and_refuses_fewer():
    diffusion = BernoulliDiffusion(NoiseSchedule("linear", 8), target="previous")
    codes = sample_codes(lambda z, t: torch.full(z.shape, 9.0), (2, 3, 2), diffusion)
    assert (codes == 1).all()
    with pytest.raises(SettingError, match="'previous'"):
        sample_codes(lambda z, t: torch.zeros(z.shape), (2, 3, 2), diffusion, steps=4)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"temperature": 0}, "temperature .*above 0.*not 0"),
        ({"temperature": float("nan")}, "temperature .*above 0.*not nan"),
        ({"steps": 17}, "1 to 16 steps.*not 17"),
        ({"shape": (0, 3, 2)}, r"\(n, N, c\).*not \(0, 3, 2\)"),
        ({"shape": (2, 6)}, r"\(n, N, c\).*not \(2, 6\)"),
        ({"generators": keyed_draws(0, "x", range(3))}, "3 generators.*2 samples.*one per sample"),
        ({"resample": 0}, "at least 1.*not 0"),
        ({"corrector_steps": -1}, "at least 0.*-1"),
        ({"known": torch.zeros(1, 3, 2)}, "`known`.*`mask`"),
        ({"mask": torch.zeros(3)}, "`known`.*`mask`"),
        ({"final": "sample"}, "final .*'z1'.* 'sample'"),
        ({"known_bits": "noisy"}, "known_bits.*'noised'.*'clean'.*'noisy'"),
    ],
)
def test_an_impossible_request_is_refused_with_its_value_and_a_cure(settings: dict, message: str):
    arguments = {"shape": (2, 3, 2), "diffusion": DIFFUSION, **settings}
    with pytest.raises(SettingError, match=message):
        sample_codes(lambda z, t: torch.zeros(z.shape), **arguments)


def test_a_chain_begun_where_another_stood_ends_where_the_other_ended(denoiser: Denoiser):
    """The first half of the steps draws the same numbers either way, so the second half sees the same state."""
    seen: list[SamplingStep] = []
    whole = draw(denoiser, range(3), callback=seen.append)
    half = seen[STEPS // 2 - 1]
    generators = keyed_draws(7, "sample", range(3))
    for _ in range(1 + STEPS // 2):  # as far as the other chain had drawn: its first bits, and half of the steps
        uniform((3, N, C), generators)
    rest = sample_codes(denoiser, (3, N, C), DIFFUSION, generators=generators, start=(half.codes, half.s))
    assert half.s == STEPS // 2 and torch.equal(rest, whole)


@pytest.mark.parametrize("t, n", [(0, 3), (STEPS + 1, 3), (4, 2)])
def test_a_start_outside_the_steps_or_of_another_shape_is_refused(denoiser: Denoiser, t: int, n: int):
    with pytest.raises(SettingError):
        draw(denoiser, range(3), start=(torch.zeros(n, N, C, dtype=torch.uint8), t))


@pytest.mark.parametrize("steps", [None, 2, 5])
def test_final_z1_gives_the_state_before_the_last_step(steps):
    """All T steps: what the callback of a whole walk saw at z_1; fewer: the walk ends at 1, not at 0."""
    diffusion = BernoulliDiffusion(NoiseSchedule("linear", 8))
    logits = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0))

    def denoise(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return logits.expand(len(z), -1, -1) * t.view(-1, 1, 1)

    walks: dict[str, list] = {"threshold": [], "z1": []}
    drawn = {
        final: sample_codes(
            denoise,
            (6, 4, 3),
            diffusion,
            steps,
            generators=keyed_draws(0, "sample", range(6)),
            final=final,
            callback=lambda step, final=final: walks[final].append((step.t, step.s, step.codes.clone())),
        )
        for final in ("threshold", "z1")
    }
    assert walks["z1"][-1][1] == 1 and torch.equal(walks["z1"][-1][2], drawn["z1"])
    before = [codes for _, s, codes in walks["threshold"] if s == 1]
    if before:
        assert torch.equal(before[0], drawn["z1"])
    assert walks["threshold"][-1][1] == 0


def test_final_z1_keeps_known_bits_and_needs_two_steps():
    diffusion = BernoulliDiffusion(NoiseSchedule("linear", 8))
    known, mask = torch.ones(1, 4, 3, dtype=torch.uint8), torch.tensor([True, True, False, False])
    drawn = sample_codes(lambda z, t: torch.zeros(z.shape), (5, 4, 3), diffusion, known=known, mask=mask, final="z1")
    assert (drawn[:, 2:] == 1).all()
    one = BernoulliDiffusion(NoiseSchedule("linear", 1))
    with pytest.raises(SettingError, match="final='z1'"):
        sample_codes(lambda z, t: torch.zeros(z.shape), (1, 4, 3), one, final="z1")

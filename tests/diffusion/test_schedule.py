from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bld.diffusion import NoiseSchedule
from bld.errors import SettingError

from .enumeration import schedules


@given(schedules(max_steps=200))
def test_retention_falls_from_one_to_almost_zero(schedule: NoiseSchedule):
    assert schedule.k.dtype == torch.float64 and len(schedule.k) == schedule.steps + 1
    assert schedule.k[0] == 1 and (schedule.k[1:] < 1).all()
    assert (schedule.k.diff() <= 0).all()
    assert 0 <= schedule.k[-1] <= 0.05


@pytest.mark.parametrize("kind", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize("steps", [1, 2, 64, 1000])
def test_the_named_schedules_end_in_pure_noise(kind: str, steps: int):
    assert NoiseSchedule(kind, steps).k[-1] == 0


def test_the_named_schedules_follow_their_formulas():
    u = torch.arange(65, dtype=torch.float64) / 64
    falling = torch.sigmoid(torch.tensor(3 / 0.8)) - torch.sigmoid(3 * u / 0.8)
    torch.testing.assert_close(NoiseSchedule("linear").k, 1 - u, rtol=0, atol=1e-15)
    torch.testing.assert_close(NoiseSchedule("cosine").k, (1 + torch.cos(torch.pi * u)) / 2, rtol=0, atol=1e-15)
    torch.testing.assert_close(NoiseSchedule("sigmoid").k, falling / falling[0], rtol=0, atol=1e-6)


def test_the_linear_schedule_has_the_betas_of_the_appendix():
    expected = 1 / torch.arange(64, 0, -1, dtype=torch.float64)
    torch.testing.assert_close(NoiseSchedule("linear", 64).beta, expected, rtol=1e-12, atol=0)


@given(schedules(max_steps=200))
def test_the_retention_is_the_product_of_one_minus_beta(schedule: NoiseSchedule):
    torch.testing.assert_close((1 - schedule.beta).cumprod(0), schedule.k[1:], rtol=1e-11, atol=1e-15)
    assert ((schedule.beta >= 0) & (schedule.beta <= 1)).all()


@given(steps=st.integers(1, 2000), data=st.data())
def test_timesteps_fall_strictly_from_all_steps_to_zero(steps: int, data: st.DataObject):
    n = data.draw(st.integers(1, steps))
    visited = NoiseSchedule("linear", steps).timesteps(n)
    assert visited[0] == steps and visited[-1] == 0 and len(visited) == n + 1
    assert all(t > s for t, s in itertools.pairwise(visited))
    assert all(abs(t - steps * (n - i) / n) <= 0.5 for i, t in enumerate(visited))  # and evenly


def test_all_steps_are_visited_by_default():
    assert NoiseSchedule("linear", 5).timesteps() == [5, 4, 3, 2, 1, 0]


def test_a_table_is_taken_as_it_is():
    schedule = NoiseSchedule("table", table=[1, 0.5, 0.5, 0, 0])
    assert schedule.k.tolist() == [1, 0.5, 0.5, 0, 0] and schedule.steps == 4
    assert schedule.beta.tolist() == [0.5, 0, 1, 1]


@pytest.mark.parametrize(
    "settings, names",
    [
        ({"kind": "liner"}, ["liner", "linear"]),
        ({"kind": "linear", "steps": 0}, ["1 to 1000000", "0"]),
        ({"kind": "table"}, ["table", "1 first"]),
        ({"kind": "cosine", "table": [1, 0]}, ["cosine", "'table'"]),
        ({"kind": "table", "table": [1.0]}, ["at least 2", "(1,)"]),
        ({"kind": "table", "table": [[1.0, 0.0]]}, ["at least 2", "(1, 2)"]),
        ({"kind": "table", "table": [0.9, 0]}, ["starts at 1", "0.9"]),
        ({"kind": "table", "table": [1, 1, 0]}, ["below 1", "entry 1 is 1"]),
        ({"kind": "table", "table": [1, 0.2, 0.3, 0]}, ["never rises", "entry 2 is 0.3"]),
        ({"kind": "table", "table": [1, 0.2, -0.1]}, ["below 0", "entry 2 is -0.1"]),
        ({"kind": "table", "table": [1, float("nan"), 0]}, ["entry 1 is nan"]),
        ({"kind": "table", "table": [1, 0.5, 0.2]}, ["0.2", "0.05"]),
    ],
)
def test_an_impossible_schedule_is_refused_with_its_value_and_a_cure(settings: dict, names: list[str]):
    with pytest.raises(SettingError) as error:
        NoiseSchedule(**settings)
    for name in names:
        assert name in str(error.value)


@pytest.mark.parametrize("n", [0, -1, 65])
def test_more_steps_than_there_are_cannot_be_visited(n: int):
    with pytest.raises(SettingError, match=f"1 to 64 steps.*not {n}"):
        NoiseSchedule("linear", 64).timesteps(n)

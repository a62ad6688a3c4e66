from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bld.diffusion import BernoulliDiffusion, NoiseSchedule, sample_codes, with_guidance
from bld.seeding import keyed_draws

CONDITION, NULL = torch.tensor([0, 1, 2]), torch.tensor([9, 9, 9])


class Network:
    """Logits that depend on code, step and condition; remembers the batches it was called with."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, z_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        self.batches.append(len(z_t))
        return (z_t.float() - 0.4) * (condition + 1).view(-1, 1, 1) - 0.1 * t.view(-1, 1, 1)


@pytest.mark.parametrize("omega", [0.5, 2.0, 7.0])
def test_guidance_is_the_formula_of_appendix_c_in_one_call(omega: float):
    network = Network()
    z = torch.randint(0, 2, (3, 4, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    t = torch.full((3,), 5)
    found = with_guidance(network, CONDITION, NULL, 1 + omega)(z, t)
    assert network.batches == [6]
    expected = (1 + omega) * network(z, t, CONDITION) - omega * network(z, t, NULL)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_guidance_keeps_double_precision():
    def network(z_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        return condition.double().view(-1, 1, 1) / 3 + z_t

    z, t = torch.zeros(3, 1, 1, dtype=torch.uint8), torch.ones(3, dtype=torch.long)
    found = with_guidance(network, CONDITION, NULL, 3.0)(z, t)
    torch.testing.assert_close(found, 3 * network(z, t, CONDITION) - 2 * network(z, t, NULL), rtol=1e-14, atol=0)


def test_a_scale_of_one_costs_nothing():
    network = Network()
    z, t = torch.zeros(3, 4, 2, dtype=torch.uint8), torch.full((3,), 5)
    found = with_guidance(network, CONDITION, NULL, 1.0)(z, t)
    assert network.batches == [3]
    assert torch.equal(found, network(z, t, CONDITION))


@pytest.mark.parametrize("scale, batch", [(1.0, 3), (3.0, 6)])
def test_sampling_calls_the_network_once_per_step(scale: float, batch: int):
    network = Network()
    sample_codes(
        with_guidance(network, CONDITION, NULL, scale),
        (3, 4, 2),
        BernoulliDiffusion(NoiseSchedule("linear", 8)),
        steps=5,
        generators=keyed_draws(0, "guided", range(3)),
    )
    assert network.batches == [batch] * 5

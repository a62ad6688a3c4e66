"""The autoregressive prior: causal, normalised, its cache exact, its samples distributed as its likelihood says."""

from __future__ import annotations

import itertools

import pytest
import torch

from bld.errors import SettingError
from bld.priors import Autoregression, AutoregressiveTransformer, DenoiserConfig
from bld.seeding import keyed_draws

H, W, C = 2, 2, 2
N = H * W


@pytest.fixture(scope="module", params=[False, True], ids=["bits", "entries"])
def network(request) -> AutoregressiveTransformer:
    """Untrained but far from uniform: its head is not zero."""
    torch.manual_seed(0)
    config = DenoiserConfig(H, W, C, N, num_classes=3, dim=32, depth=2, heads=2, entries=request.param)
    made = AutoregressiveTransformer(config).eval()
    torch.nn.init.normal_(made.head.weight, std=0.6)
    return made


def all_codes(positions: int = N, bits: int = C) -> torch.Tensor:
    rows = list(itertools.product((0, 1), repeat=positions * bits))
    return torch.tensor(rows, dtype=torch.uint8).view(-1, positions, bits)


@torch.no_grad()
def test_a_position_sees_only_those_before_it(network):
    """Changing position i changes no logits at i or before, and does change some after it."""
    z = all_codes()[37:38]
    before = network(z)
    for i in range(N):
        changed = z.clone()
        changed[:, i] ^= 1
        after = network(changed)
        assert torch.equal(before[:, : i + 1], after[:, : i + 1])
        assert i == N - 1 or not torch.allclose(before[:, i + 1 :], after[:, i + 1 :], atol=1e-4)


@torch.no_grad()
def test_its_likelihood_is_a_distribution(network):
    """Over all 256 codes the probabilities sum to 1: the code length is exact, not a bound."""
    labels = torch.full((256,), 1)
    bits = Autoregression(N).likelihood_bits(lambda z, t: network(z, t, labels), all_codes())
    assert torch.allclose((2.0**-bits).sum(), torch.tensor(1.0, dtype=torch.float64), atol=1e-5)


@torch.no_grad()
def test_the_cached_walk_gives_the_same_logits_as_the_full_pass(network):
    z = all_codes()[::17]
    labels = torch.arange(len(z)) % 4  # the null label among them
    whole, walk = network(z, condition=labels), network.for_sampling()
    for i in range(N):
        logits = walk(z, torch.full((len(z),), i + 1), labels)
        assert logits.shape == (len(z), 1, 2**C if network.config.entries else C)
        assert torch.allclose(logits[:, 0], whole[:, i], atol=1e-5)


@torch.no_grad()
def test_samples_follow_the_likelihood(network):
    """20,000 draws of 256 codes: the chi-squared statistic stays below the 1 - 1e-6 quantile of 255 degrees (378)."""
    n, labels = 20_000, torch.full((20_000,), 3)
    walk = network.for_sampling()

    process = Autoregression(N)
    drawn = process.sample(
        lambda z, t: walk(z, t, labels), (n, N, C), temperature=1.0, generators=torch.Generator().manual_seed(1)
    )
    bits = process.likelihood_bits(lambda z, t: network(z, t, labels[:256]), all_codes())
    expected = n * 2.0**-bits
    index = (drawn.flatten(1).long() * 2 ** torch.arange(N * C - 1, -1, -1)).sum(1)
    counts = torch.bincount(index, minlength=256).double()
    assert ((counts - expected) ** 2 / expected).sum() < 378


@torch.no_grad()
def test_a_sample_depends_on_its_own_generator_alone(network):
    def draw(indices: range) -> torch.Tensor:
        walk = network.for_sampling()
        return Autoregression(N).sample(walk, (len(indices), N, C), generators=keyed_draws(3, "sample", indices))

    assert torch.equal(draw(range(8))[5:6], draw(range(5, 6)))


@torch.no_grad()
def test_known_positions_stay(network):
    known = torch.ones(1, N, C, dtype=torch.uint8)
    mask = torch.tensor([True, False, True, False])
    drawn = Autoregression(N).sample(network.for_sampling(), (16, N, C), known=known, mask=mask)
    assert (drawn[:, ~mask] == 1).all() and not (drawn[:, mask] == 1).all()


def test_steps_cannot_be_skipped(network):
    with pytest.raises(SettingError, match=r"position.*\b4\b.*not 2"):
        Autoregression(N).sample(network.for_sampling(), (1, N, C), steps=2)


def test_a_code_of_another_shape_is_refused(network):
    with pytest.raises(SettingError, match="4 positions, not 5"):
        Autoregression(N).sample(network.for_sampling(), (1, 5, C))


@torch.no_grad()
def test_the_training_loss_is_the_likelihood_in_nats_per_bit(network):
    z = all_codes()[::31]
    t = torch.ones(len(z), dtype=torch.long)
    loss = Autoregression(N).training_loss(network, z, t).total
    bits = Autoregression(N).bound_at(network, z, t)
    assert loss.item() == pytest.approx(bits.mean().item() * 0.6931472 / (N * C), rel=1e-5)

"""Absorbing diffusion: masks of exactly t positions, a bound that enumeration confirms, revealing without regret."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from bld.errors import SettingError
from bld.priors import AbsorbingDenoiser, AbsorbingDiffusion, DenoiserConfig
from bld.priors.absorbing import MASKED
from bld.seeding import keyed_draws

N, C = 4, 2


@pytest.fixture(scope="module", params=[False, True], ids=["bits", "entries"])
def network(request) -> AbsorbingDenoiser:
    torch.manual_seed(0)
    config = DenoiserConfig(2, 2, C, N, num_classes=2, dim=32, depth=2, heads=2, entries=request.param)
    made = AbsorbingDenoiser(config).eval()
    torch.nn.init.normal_(made.head.weight, std=0.6)
    return made


@pytest.fixture
def process() -> AbsorbingDiffusion:
    return AbsorbingDiffusion(N)


def code(seed: int = 0, n: int = 1) -> torch.Tensor:
    return torch.randint(0, 2, (n, N, C), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def cost(logits: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """-log p of each position, (n, N): of its bits, or of the entry whose number they write."""
    if logits.shape[-1] == C:
        return F.binary_cross_entropy_with_logits(logits, codes.float(), reduction="none").sum(2)
    return F.cross_entropy(logits.transpose(1, 2), codes[..., 0].long() + 2 * codes[..., 1], reduction="none")


@pytest.mark.parametrize("t", range(N + 1))
def test_exactly_t_positions_are_masked_each_as_often(process, t):
    """4,000 masks: every position's rate within 6 standard errors of t/N (false alarm below 1e-8 a case)."""
    z_t = process.mask(code(n=1).expand(4000, N, C), t, torch.Generator().manual_seed(1))
    masked = z_t == MASKED
    assert (masked.all(2) == masked.any(2)).all()
    assert (masked[..., 0].sum(1) == t).all()
    p = t / N
    assert (masked[..., 0].float().mean(0) - p).abs().max() <= 6 * math.sqrt(p * (1 - p) / 4000)


def test_each_code_may_have_its_own_step(process):
    z_t = process.mask(code(n=4), torch.tensor([1, 2, 3, 4]))
    assert (z_t[..., 0] == MASKED).sum(1).tolist() == [1, 2, 3, 4]


@torch.no_grad()
def nats_of(network, z0: torch.Tensor, hidden: tuple[int, ...]) -> torch.Tensor:
    """-log p of each hidden position's bits, all of them given the visible ones, (len(hidden),)."""
    z_t = z0.clone()
    z_t[:, list(hidden)] = MASKED
    logits = network(z_t, torch.tensor([len(hidden)]))
    return cost(logits, z0)[0, list(hidden)].double()


@torch.no_grad()
def test_the_bound_is_the_mean_over_all_orders_of_revealing(network, process):
    """Enumerated: the mean over the 24 orders of Σ -log p(next | revealed) is what 3,000 draws of the bound estimate.

    Tolerance 5 standard errors: false alarm 6e-7.
    """
    z0 = code(5)
    orders = list(itertools.permutations(range(N)))
    exact = (
        sum(sum(nats_of(network, z0, order[i:])[0] for i in range(N)) for order in orders) / len(orders) / math.log(2)
    )
    n = 3000
    many = z0.expand(n, N, C)
    t = torch.arange(n) % N + 1
    once = process.bound_at(network, many, t, torch.Generator().manual_seed(0))
    per_step = once.view(-1, N).mean(1)  # each of the steps once
    assert abs(per_step.mean() - exact) < 5 * per_step.std() / math.sqrt(len(per_step))
    whole = process.likelihood_bits(network, many[:800], generators=torch.Generator().manual_seed(1))
    assert abs(whole.mean() - exact) < 5 * whole.std() / math.sqrt(len(whole))


@torch.no_grad()
def test_the_bound_lies_above_the_true_code_length(network, process):
    """log-mean over orders of the probabilities is the true likelihood of the chain; by Jensen the bound is no less."""
    for seed in range(8):
        z0 = code(seed)
        chains = torch.stack([
            sum(nats_of(network, z0, order[i:])[0] for i in range(N))
            for order in itertools.permutations(range(N))
        ])  # fmt: skip
        true = -(torch.logsumexp(-chains, 0) - math.log(len(chains)))
        assert chains.mean() >= true


@torch.no_grad()
@pytest.mark.parametrize("reveal", ["random", "confidence"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_what_is_revealed_stays_and_everything_is_revealed(network, process, steps, reveal):
    seen = []
    process.sample(
        lambda z, t: seen.append((z, t)) or network(z, t), (32, N, C), steps=steps, reveal=reveal,
        generators=keyed_draws(0, "sample", range(32)),
    )  # fmt: skip
    assert len(seen) == steps
    for (z, t), (later, _) in itertools.pairwise(seen):
        visible = z != MASKED
        assert torch.equal(z[visible], later[visible])
        assert ((z[..., 0] == MASKED).sum(1) == t).all()
    final = process.sample(network, (8, N, C), steps=steps, reveal=reveal)
    assert ((final == 0) | (final == 1)).all()


@torch.no_grad()
def test_samples_of_all_steps_follow_the_chain(network, process):
    """Position by position in random order: the frequencies of all 256 codes, 20,000 draws, chi-squared below its
    1 - 1e-6 quantile (378), against the enumerated mean over orders of the product of conditionals.
    """
    codes = torch.tensor(list(itertools.product((0, 1), repeat=N * C)), dtype=torch.uint8).view(-1, N, C)
    probability = torch.zeros(256, dtype=torch.float64)
    for order in itertools.permutations(range(N)):
        nats = torch.zeros(256, dtype=torch.float64)
        for i in range(N):
            z_t = codes.clone()
            z_t[:, list(order[i:])] = MASKED
            logits = network(z_t, torch.full((256,), N - i))
            nats += cost(logits, codes)[:, order[i]].double()
        probability += (-nats).exp() / 24
    assert probability.sum().item() == pytest.approx(1, abs=1e-5)
    n = 20_000
    drawn = process.sample(network, (n, N, C), temperature=1.0, generators=torch.Generator().manual_seed(2))
    index = (drawn.flatten(1).long() * 2 ** torch.arange(N * C - 1, -1, -1)).sum(1)
    counts = torch.bincount(index, minlength=256).double()
    assert ((counts - n * probability) ** 2 / (n * probability)).sum() < 378


@torch.no_grad()
def test_confidence_reveals_the_surest_position_first(process):
    """A network sure of position 2 alone: with as many steps as positions that one comes first, always."""

    def sure_of_two(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(z.shape)
        logits[:, 2] = 30.0
        return logits

    states = []
    process.sample(
        lambda z, t: states.append(z) or sure_of_two(z, t), (64, N, C), reveal="confidence",
        generators=keyed_draws(0, "sample", range(64)),
    )  # fmt: skip
    assert (states[1][:, 2] == 1).all() and ((states[1][..., 0] != MASKED).sum(1) == 1).all()


@torch.no_grad()
def test_a_sample_depends_on_its_own_generator_alone(network, process):
    def draw(indices: range) -> torch.Tensor:
        return process.sample(network, (len(indices), N, C), generators=keyed_draws(3, "sample", indices))

    assert torch.equal(draw(range(8))[5:6], draw(range(5, 6)))


@torch.no_grad()
def test_known_positions_are_seen_from_the_first_step_and_stay(network, process):
    known, mask = code(1), torch.tensor([True, False, True, True])
    states = []
    drawn = process.sample(lambda z, t: states.append(z) or network(z, t), (8, N, C), known=known, mask=mask)
    assert all(torch.equal(z[:, 1], known[:, 1].expand(8, C)) for z in [*states, drawn])
    assert (drawn != MASKED).all()


def test_too_many_steps_and_unknown_orders_are_refused(network, process):
    with pytest.raises(SettingError, match=r"\b4 steps.*not 5"):
        process.sample(network, (1, N, C), steps=5)
    with pytest.raises(SettingError, match=r"reveal 'confident'.*'confidence'"):
        process.sample(network, (1, N, C), reveal="confident")

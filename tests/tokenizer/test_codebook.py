"""The vector-quantised bottleneck: indices as bits, nearest vectors, a codebook that learns and revives."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

pytest.importorskip("vector_quantize_pytorch")

from bld.codes import bits_to_index, index_to_bits
from bld.tokenizer.bottlenecks import vq
from bld.tokenizer.bottlenecks.vq import VectorQuantised, perplexity


def build(bits: int = 5, width: int = 3, seed: int = 0) -> VectorQuantised:
    torch.manual_seed(seed)
    return VectorQuantised(bits, width).eval()


def features(count: int = 4, width: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(count, 2, 3, width, generator=torch.Generator().manual_seed(seed))


def vectors_of(model: VectorQuantised) -> Tensor:
    """The whole codebook, by decoding every index."""
    index = torch.arange(2**model.code_bits)
    return model.latent(index_to_bits(index, model.code_bits)[:, None, None])[:, 0, 0]


@pytest.mark.parametrize("bits", [1, 3, 10, 11])
def test_every_index_survives_being_written_as_bits(bits: int):
    index = torch.arange(2**bits).view(2, -1)
    written = index_to_bits(index, bits)
    assert written.shape == (*index.shape, bits) and written.dtype == torch.uint8 and written.max() == 1
    for given in (written, written.float(), written.bool()):
        assert torch.equal(bits_to_index(given), index)


def test_the_least_bit_comes_first():
    assert index_to_bits(torch.tensor(6), 4).tolist() == [0, 1, 1, 0]


def test_every_position_takes_its_nearest_vector():
    model, x = build(), features(50)
    distances = torch.cdist(x.flatten(0, 2).double(), vectors_of(model).double())
    chosen = distances.gather(1, bits_to_index(model.codes(x)).view(-1, 1))[:, 0]
    # float32 finds squared distances to about 1e-6 of the squared lengths
    assert (chosen - distances.min(1).values).max() < 1e-4
    assert bits_to_index(model.codes(x)).unique().numel() > 4


@pytest.mark.parametrize("training", [False, True])
def test_the_decoder_sees_exactly_the_vectors_that_the_bits_name(training: bool):
    model, x = build().train(training), features()
    before = vectors_of(model).clone()
    out = model(x)
    expected = before[bits_to_index(out.codes)]
    torch.testing.assert_close(out.latent, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(out.penalties["commitment"], (x - expected).square().mean())
    if not training:
        assert torch.equal(model.latent(out.codes), expected)


def test_the_gradient_passes_straight_through_and_the_commitment_pulls():
    model, x = build().train(), features().requires_grad_()
    out = model(x)
    weights = torch.arange(out.latent.numel()).view_as(out.latent).float()
    assert torch.equal(torch.autograd.grad((out.latent * weights).sum(), x, retain_graph=True)[0], weights)
    pull = torch.autograd.grad(out.penalties["commitment"], x)[0]
    torch.testing.assert_close(pull, 2 * (x - out.latent).detach() / x.numel())


def test_only_training_changes_the_codebook():
    model, x = build(), features()
    before = copy.deepcopy(model.state_dict())
    model(x), model.codes(x)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    model.train()(x)
    assert not torch.equal(before["quantiser._codebook.embed"], model.state_dict()["quantiser._codebook.embed"])


def test_autocast_does_not_blunt_the_nearest_vector():
    model, x = build(8), features(50)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        halves = model.codes(x)
    assert torch.equal(halves, model.codes(x))


def test_dead_vectors_come_back_and_clusters_get_vectors_of_their_own():
    """16 far clusters and 16 vectors born near 0: without revival they share few, with it nearly each has its own."""
    centres = 10 * torch.randn(16, 8, generator=torch.Generator().manual_seed(2))

    def used(revive: bool) -> float:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(vq, "EMA_DECAY", 0.8)
            patch.setattr(vq, "DEAD_BELOW", 0.05 if revive else 0.0)
            model = build(4, 8).train()
        for step in range(80):
            generator = torch.Generator().manual_seed(step)
            drawn = torch.randint(16, (8, 4, 4), generator=generator)
            out = model(centres[drawn] + 0.1 * torch.randn(8, 4, 4, 8, generator=generator))
        return float(model.metrics(out.codes)["perplexity"])

    assert used(revive=True) > 12  # of 16
    assert used(revive=False) < 10


def trained(model: VectorQuantised, steps: range) -> VectorQuantised:
    for step in steps:
        torch.rand(step + 1)  # whoever else draws from the global generator
        model.train()(features(4, seed=step))
    return model


def test_a_resumed_codebook_revives_the_same_vectors(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vq, "DEAD_BELOW", 1.0)  # all that a batch does not use die at once
    whole = trained(build(), range(6)).state_dict()
    half = trained(build(), range(3)).state_dict()
    resumed = build(seed=99)
    resumed.load_state_dict(half)
    torch.manual_seed(1234)
    resumed_state = trained(resumed, range(3, 6)).state_dict()
    assert all(torch.equal(whole[name], resumed_state[name]) for name in whole)
    other = build()
    other.load_state_dict({**half, "passes": half["passes"] + 1})
    other_state = trained(other, range(3, 6)).state_dict()
    assert not torch.equal(other_state["quantiser._codebook.embed"], whole["quantiser._codebook.embed"])


def test_training_leaves_the_global_generator_alone():
    model = build().train()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model(features())
    assert torch.equal(torch.rand(3), expected)


def test_a_pass_that_is_not_finite_does_not_reach_the_codebook():
    model, x = build().train(), features()
    x[0, 0, 0, 0] = float("nan")
    before = vectors_of(model).clone()
    model(x)
    assert torch.equal(vectors_of(model), before)


def test_perplexity_counts_vectors_equally_used():
    assert perplexity(torch.tensor([3, 3, 3]), 8).item() == pytest.approx(1)
    assert perplexity(torch.arange(8), 8).item() == pytest.approx(8)
    assert perplexity(torch.tensor([[0, 1], [1, 0]]), 1024).item() == pytest.approx(2)

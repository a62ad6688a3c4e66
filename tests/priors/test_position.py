"""One position as independent bits, or as one entry of a codebook: enumerated."""

from __future__ import annotations

import math

import pytest
import torch

from bld.codes import bits_to_index, index_to_bits
from bld.errors import SettingError
from bld.priors import DenoiserConfig
from bld.priors.position import draw, likeliest, nats, probabilities
from bld.training.config import load_settings

C = 3
ENTRIES = index_to_bits(torch.arange(2**C), C)


def logits(outputs: int) -> torch.Tensor:
    return 2 * torch.randn(outputs, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("outputs", [C, 2**C], ids=["bits", "entries"])
def test_the_probabilities_of_all_values_sum_to_one_and_are_what_is_drawn(outputs):
    """30,000 draws of 8 values: chi-squared below its 1 - 1e-6 quantile of 7 degrees (40.5)."""
    said, n = logits(outputs), 30_000
    p = (-nats(said.expand(2**C, outputs), ENTRIES)).exp().double()
    assert p.sum().item() == pytest.approx(1, abs=1e-6)
    drawn = draw(said.expand(n, outputs), C, torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.uint8 and drawn.shape == (n, C)
    counts = torch.bincount(bits_to_index(drawn), minlength=2**C)
    assert ((counts - n * p) ** 2 / (n * p)).sum() < 40.5
    assert torch.allclose(probabilities(said, C).double(), (p[:, None] * ENTRIES).sum(0), atol=1e-6)
    assert torch.equal(likeliest(said, C), ENTRIES[p.argmax()])


def test_an_entry_of_no_probability_is_never_drawn_and_the_last_one_can_be():
    said = torch.full((10_000, 4), -math.inf)
    said[:, 3] = 0.0
    assert (draw(said, 2, torch.Generator().manual_seed(0)) == 1).all()
    said[:, 0], said[:, 3] = 0.0, -math.inf
    assert (draw(said, 2, torch.Generator().manual_seed(0)) == 0).all()


@pytest.mark.parametrize("kind", ["autoregressive", "absorbing", "bernoulli"])
@pytest.mark.parametrize("bottleneck", ["vq", "bernoulli"])
@pytest.mark.parametrize("categorical", [True, False])
def test_only_a_prior_of_whole_positions_over_a_codebook_has_entries(kind, bottleneck, categorical):
    words = [f"prior.kind={kind}", f"tokenizer.bottleneck={bottleneck}", f"prior.categorical={categorical}".lower()]
    settings = load_settings("digits", overrides=["tokenizer.code_bits=6", "objective.bit_flips=0",
                                                  "prior.soft_targets=false", *words])  # fmt: skip
    entries = settings.denoiser(settings.tokenizer.code_shape, 10).entries
    assert entries == (kind != "bernoulli" and bottleneck == "vq" and categorical)


def test_a_codebook_that_no_head_can_hold_is_refused_with_the_cure():
    with pytest.raises(SettingError, match=r"2\^17: set prior.categorical=false, or tokenizer.code_bits to 16"):
        DenoiserConfig(2, 2, 17, entries=True)

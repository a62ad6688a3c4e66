"""The bound is of the codes that the prior learns from: drawn, several times an image, whatever the batch."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from bld.codes import to_tokens
from bld.data import ImageSet, Preprocessing
from bld.diffusion import BernoulliDiffusion
from bld.serialization.models import load_tokenizer
from bld.training.held_out_codes import CODE_DRAWS, draws_of, held_out_codes
from bld.training.recipe import Recipe
from bld.training.run_folder import RunFolder
from bld.training.stages.prior import DRAWN_BOUND, PROBABLE_BOUND, HeldOutCodes, PriorStage


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return ImageSet.open("digits", Preprocessing(8))


def staged(path: Path, *overrides: str) -> PriorStage:
    """The prior's stage of a finished run, as the recipe makes it."""
    run = RunFolder(path)
    recipe = Recipe(run.adopt(None, overrides, None), run, lambda _: None)
    tokenizer, cache = recipe._trained_tokenizer(), recipe.encode()
    held_out = recipe._held_out_codes(tokenizer, None)
    return PriorStage(recipe.settings, cache, held_out, tokenizer, recipe.accelerator, run)


def test_held_out_codes_are_draws_of_the_encoders_probabilities(trained_run, digits):
    """The mean of 400 draws is the probability: 12 of 6,144 bits beyond 4.5 deviations would be chance of 1e-20."""
    tokenizer, rows = load_tokenizer(trained_run / "tokenizer"), torch.arange(12)
    probs = to_tokens(tokenizer.encode_probs(digits.centre(rows))).detach()
    codes = held_out_codes(tokenizer, digits, rows, draws=400, seed=0)
    assert codes.shape == (12, 400, *probs.shape[1:]) and codes.dtype == torch.uint8
    deviation = (probs * (1 - probs) / 400).sqrt()
    assert ((codes.float().mean(1) - probs).abs() > 4.5 * deviation + 1e-3).sum() < 12
    assert torch.equal(held_out_codes(tokenizer, digits, rows, draws=0, seed=0)[:, 0], (probs > 0.5).to(torch.uint8))


def test_a_draw_depends_on_seed_draw_and_image_alone(trained_run, digits):
    tokenizer, rows = load_tokenizer(trained_run / "tokenizer"), torch.tensor([3, 1, 40, 7])
    codes = held_out_codes(tokenizer, digits, rows, draws=3, seed=5)
    assert torch.equal(codes, held_out_codes(tokenizer, digits, rows, draws=3, seed=5, batch_size=1))
    assert torch.equal(codes[2:3, :2], held_out_codes(tokenizer, digits, rows[2:3], draws=2, seed=5))
    assert not torch.equal(codes[:, 0], codes[:, 1])
    assert not torch.equal(codes, held_out_codes(tokenizer, digits, rows, draws=3, seed=6))


def test_the_recipe_measures_on_drawn_codes_each_with_its_images_condition(run_copy):
    stage = staged(run_copy)
    held_out, images = stage.held_out, stage.held_out.condition
    assert held_out.draws == CODE_DRAWS > 1 and images is not None and len(images) == 180
    assert len(held_out.tokens) == CODE_DRAWS * 180
    views = held_out.tokens.unflatten(0, (180, CODE_DRAWS))
    assert all(not torch.equal(views[:, 0], views[:, d]) for d in range(1, CODE_DRAWS))
    told = held_out.condition_of(torch.arange(len(held_out.tokens)))
    assert torch.equal(told, images.repeat_interleave(CODE_DRAWS))
    assert DRAWN_BOUND in stage.measure(stage.model) and PROBABLE_BOUND not in stage.measure(stage.model)


def test_a_prior_of_most_probable_codes_is_measured_on_those_and_says_so(run_copy):
    """With codes.draws=0 that is what it is trained on; the name in the log tells the two apart."""
    stage = staged(run_copy, "codes.draws=0")
    tokenizer = load_tokenizer(run_copy / "tokenizer")
    assert stage.held_out.draws == 0 == draws_of(tokenizer, 0) and len(stage.held_out.tokens) == 180
    metrics = stage.measure(stage.model)
    assert PROBABLE_BOUND in metrics and DRAWN_BOUND not in metrics


@pytest.mark.parametrize("at_a_time", [1000, 64, 7])
def test_measuring_in_batches_changes_nothing(run_copy, monkeypatch, at_a_time):
    stage = staged(run_copy)
    whole = stage.measure(stage.model)
    sizes: list[int] = []
    denoise = stage._denoise

    def counted(network: nn.Module, condition: torch.Tensor | None):
        inner = denoise(network, condition)
        return lambda z, t: (sizes.append(len(z)), inner(z, t))[1]

    monkeypatch.setattr("bld.training.stages.prior.MEASURED_AT_A_TIME", at_a_time)
    monkeypatch.setattr(stage, "_denoise", counted)
    assert stage.measure(stage.model) == pytest.approx(whole, rel=1e-5)
    assert max(sizes) <= at_a_time and sum(sizes) == 2 * 64 * math.ceil(len(stage.held_out.tokens) / 64)


def test_an_exact_prior_of_coin_flips_needs_their_entropy_and_not_less(run_copy):
    """Codes that are coin flips of bias 0.9: known exactly, drawn ones cost H(0.9) a bit, the most probable ones less.

    The bound of 64 steps visits 4,096 codes of 512 bits: six deviations of the estimate are about 0.02.
    """
    stage = staged(run_copy)
    probs = torch.full((4096, *stage.held_out.tokens.shape[1:]), 0.9)
    drawn = torch.bernoulli(probs, generator=torch.Generator().manual_seed(0)).to(torch.uint8)

    def knows(z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Logit of P(z_0 = 1 | z_t) by Bayes' rule, z_t staying z_0 with probability (1 + k_t) / 2."""
        keep = (1 + stage.process.schedule.k[t].view(-1, 1, 1).double()) / 2
        evidence = torch.where(z_t.bool(), keep / (1 - keep), (1 - keep) / keep).log()
        return (math.log(0.9 / 0.1) + evidence).float()

    assert isinstance(stage.process, BernoulliDiffusion) and stage.process.target == "z0"
    stage._denoise = lambda network, condition: knows  # type: ignore[method-assign]
    stage.held_out = HeldOutCodes(drawn, None)
    entropy = -(0.9 * math.log2(0.9) + 0.1 * math.log2(0.1))
    bound = stage.measure(stage.model)[DRAWN_BOUND]
    assert bound == pytest.approx(entropy, abs=0.02)
    stage.held_out = HeldOutCodes(torch.ones_like(drawn), None, draws=0)
    assert stage.measure(stage.model)[PROBABLE_BOUND] < entropy - 0.2

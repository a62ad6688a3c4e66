"""Bits drawn with less noise, a decoder that forgives flipped ones, and targets in the mean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bld.data import ImageSet
from bld.errors import SettingError
from bld.seeding import keyed_draws
from bld.serialization.models import load_tokenizer
from bld.tokenizer import ObjectiveConfig
from bld.training.accelerator import make_accelerator
from bld.training.code_cache import CodeCache
from bld.training.config import load_settings
from bld.training.recipe import Recipe
from bld.training.run_folder import RunFolder
from bld.training.stages.tokenizer import TokenizerStage


def stage(tmp_path: Path, overrides: list[str]) -> TokenizerStage:
    settings = load_settings("digits", overrides=overrides)
    images = ImageSet.open("digits", settings.preprocessing())
    train, rest = images.split(0.1, 0)
    return TokenizerStage(settings, train, rest, make_accelerator("float32"), RunFolder(tmp_path))


def test_half_of_the_images_are_flipped_each_at_its_own_rate(tmp_path: Path, tiny_overrides: list[str]):
    made = stage(tmp_path, [*tiny_overrides, "objective.bit_flips=0.4"])
    flips = made._flips(range(2000), 0.0)
    assert flips.shape == (2000, *made.model.code_shape) and flips.dtype == torch.bool
    rates = flips.flatten(1).double().mean(1)
    # Half of the images are not flipped: 4.5 standard deviations of 2,000 coins; the others on average at half of 0.4.
    untouched = (rates == 0).double().mean()
    assert abs(untouched - 0.5) < 4.5 * (0.25 / 2000) ** 0.5 + 0.01  # some at a rate near 0 look untouched
    touched = rates[rates > 0]
    assert abs(touched.mean() - 0.2) < 0.02 and 0.35 < touched.max() < 0.5
    late = made._flips(range(2000), 1.0).double().mean()
    assert late / flips.double().mean() == pytest.approx(0.5, abs=0.05)


def test_flips_depend_on_the_place_in_the_training_alone(tmp_path: Path, tiny_overrides: list[str]):
    made = stage(tmp_path, [*tiny_overrides, "objective.bit_flips=0.4"])
    whole = made._flips(range(10, 30), 0.5)
    parts = [made._flips(part, 0.5) for part in (range(10, 17), range(17, 30))]
    assert torch.equal(whole, torch.cat(parts)) and not torch.equal(whole[:10], made._flips(range(10), 0.5))


def test_nothing_is_flipped_where_it_is_not_asked_for(tmp_path: Path, tiny_overrides: list[str]):
    assert stage(tmp_path / "a", [*tiny_overrides, "objective.bit_flips=0"])._flips(range(4), 0.0) is None
    real = [*tiny_overrides, "tokenizer.bottleneck=gaussian", "prior.kind=gaussian", "objective.bit_flips=0.3"]
    assert stage(tmp_path / "b", real)._flips(range(4), 0.0) is None
    with pytest.raises(SettingError, match=r"objective\.bit_flips .*\b0 to 0\.5\b.* 0\.7\b"):
        ObjectiveConfig(bit_flips=0.7)


def test_a_trained_tokenizer_keeps_its_noise_and_its_codes_have_fewer_coin_flips(
    tmp_path: Path, tiny_overrides: list[str]
):
    noise = {}
    for eta in (1.0, 0.1):
        run = RunFolder(tmp_path / f"{eta}")
        overrides = [*tiny_overrides, f"tokenizer.bit_noise={eta}", "codes.fresh=true", "tokenizer_training.steps=30"]
        Recipe(run.adopt("digits", overrides, "digits"), run, lambda _: None).train()
        noise[eta] = json.loads((run.path / "progress.json").read_text())["code"]["noise_bits"]
        tokenizer = load_tokenizer(run.tokenizer)
        assert tokenizer.config.bit_noise == eta == tokenizer.bottleneck.bit_noise
        cache, train = CodeCache(run.codes), Recipe(run.settings(), run, lambda _: None).images()[0]
        probs = cache.drawn(cache.rows(torch.arange(50).numpy()), keyed_draws(0, "codes", range(50)))[1]
        with torch.no_grad():
            expected = tokenizer.encode_probs(train.centre(torch.arange(50))).flatten(1, 2)
        assert (probs - expected).abs().max() < 1 / 255  # as they are cached
    assert noise[0.1] < 0.9 * noise[1.0]


def test_soft_targets_are_used_where_probabilities_are_kept(tmp_path: Path, tiny_overrides: list[str], monkeypatch):
    from bld.diffusion import BernoulliDiffusion

    seen: list[object] = []
    real = BernoulliDiffusion.training_loss

    def watched(self, denoise, z0, t, generators=None, vlb_weight=0.1, probs=None, hidden=None):
        seen.append(probs)
        return real(self, denoise, z0, t, generators, vlb_weight, probs, hidden)

    monkeypatch.setattr(BernoulliDiffusion, "training_loss", watched)
    soft = {}
    for fresh in ("true", "false"):
        run = RunFolder(tmp_path / fresh)
        overrides = [*tiny_overrides, f"codes.fresh={fresh}", "prior.soft_targets=true", "prior_training.previews=0"]
        recipe = Recipe(run.adopt("digits", overrides, "digits"), run, lambda _: None)
        recipe.train_tokenizer()
        recipe.encode()
        seen.clear()
        recipe.train_prior()
        soft[fresh] = [probs for probs in seen if probs is not None]
    assert len(soft["true"]) == 6 and soft["false"] == []
    assert all(((p >= 0) & (p <= 1)).all() and p.dtype == torch.float32 for p in soft["true"])

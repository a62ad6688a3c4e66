"""Tokenizers of every bottleneck, trained and encoded on the embedded digits."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bld.errors import SettingError
from bld.pipeline import BinaryLatentDiffusionPipeline
from bld.planning import simulate
from bld.planning.cost import describe
from bld.serialization.models import load_tokenizer, tokenizer_hash
from bld.tokenizer.discriminator import PatchDiscriminator
from bld.training.code_cache import CodeCache
from bld.training.config import load_settings
from bld.training.ema import WeightAverage
from bld.training.recipe import Recipe
from bld.training.run_folder import RunFolder

BOTTLENECK = {
    "bernoulli": [],
    "vq": ["tokenizer.bottleneck=vq", "tokenizer.code_bits=5"],
    "gaussian": ["tokenizer.bottleneck=gaussian", "tokenizer.code_bits=6", "prior.kind=gaussian"],
}
PENALTIES = {"bernoulli": set(), "vq": {"commitment", "perplexity"}, "gaussian": {"kl"}}


def overrides_of(kind: str, tiny_overrides: list[str]) -> list[str]:
    if kind == "vq":
        pytest.importorskip("vector_quantize_pytorch")
    return [*tiny_overrides, *BOTTLENECK[kind], "tokenizer_training.decay=constant"]


def recipe(path: Path, overrides: list[str]) -> Recipe:
    run = RunFolder(path)
    return Recipe(run.adopt(None if run.has_settings() else "digits", overrides, "digits"), run, lambda _: None)


def saved(run: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(run.tokenizer / "model.safetensors")


@pytest.mark.parametrize("kind", ["vq", "gaussian"])
def test_interrupting_and_resuming_gives_the_same_numbers_as_never_stopping(
    kind: str, tmp_path: Path, tiny_overrides: list[str], monkeypatch: pytest.MonkeyPatch
):
    overrides = overrides_of(kind, tiny_overrides)
    if kind == "vq":  # every vector that a batch does not use starts anew, so that draws matter from the first step on
        monkeypatch.setattr("bld.tokenizer.bottlenecks.vq.DEAD_BELOW", 1.0)
    whole = recipe(tmp_path / "whole", overrides)
    whole.train_tokenizer()
    parts = recipe(tmp_path / "parts", [*overrides, "tokenizer_training.steps=3"])
    parts.train_tokenizer()
    torch.manual_seed(77)
    recipe(tmp_path / "parts", ["tokenizer_training.steps=6"]).train_tokenizer()
    a, b = saved(whole.run), saved(parts.run)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

    def logged(run: RunFolder) -> list[dict]:
        lines = [{k: v for k, v in line.items() if k != "seconds"} for line in run.read_metrics()]
        return [line for line in lines if line["step"] == 6]

    assert logged(whole.run) and logged(whole.run) == logged(parts.run)


@pytest.mark.parametrize("kind", BOTTLENECK)
def test_every_bottleneck_trains_logs_and_fills_the_cache(kind: str, tmp_path: Path, tiny_overrides: list[str]):
    overrides = [*overrides_of(kind, tiny_overrides), "data.flip=true", "tokenizer_training.log_every_steps=3"]
    made = recipe(tmp_path / "run", overrides)
    model = made.train_tokenizer()
    lines = [line for line in made.run.read_metrics() if "loss" in line]
    assert lines and all(set(line) & {"commitment", "perplexity", "kl"} == PENALTIES[kind] for line in lines)
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert list(made.run.samples.glob("tokenizer-*.png"))

    cache = made.encode()
    assert cache.key.tokenizer == tokenizer_hash(load_tokenizer(made.run.tokenizer))
    assert cache.views == (2 if kind == "vq" else 4)  # two flips, of two draws where codes are drawn
    train = made.images()[0]
    rows = np.array([0, 5, 1000])
    images = train.centre(list(rows))
    for index in range(cache.views):
        flipped, draw = cache.key.view(index)
        features = model.features(images.flip(-1) if flipped else images)
        if kind == "bernoulli":
            assert draw is not None
            probs = model.encode_probs(images.flip(-1) if flipped else images).double().flatten(1, 2)
            bits = cache.read(rows, index).double()
            # 3·16·32 draws, each its own chance apart: outside of five standard deviations below 1e-6.
            spread = ((probs - 0.5).square() * probs * (1 - probs)).sum().sqrt()
            assert ((bits - probs) * (probs - 0.5)).sum().abs() < 5 * spread
        elif kind == "vq":
            assert draw is None
            assert torch.equal(cache.read(rows, index), model.bottleneck.codes(features).flatten(1, 2))
        else:
            mean, log_variance = features.chunk(2, -1)
            noise = (cache.read(rows, index).view_as(mean) - mean) / (0.5 * log_variance).exp()
            # 3·16·6 normal draws: |noise| above 6 has a chance below 1e-6; a mean square outside 1 ± 0.5 (6 standard
            # deviations of it) below 1e-7.
            assert noise.abs().max() < 6 and abs(noise.square().mean() - 1) < 0.5
    assert not torch.equal(cache.read(rows, 0), cache.read(rows, 1))


@pytest.mark.parametrize("kind", ["autoregressive", "absorbing"])
def test_a_codebook_is_modelled_by_its_entries_sampled_and_filled(kind: str, tmp_path: Path, tiny_overrides: list[str]):
    words = [f"prior.kind={kind}", "prior.soft_targets=false", "prior.inpainting=0"]
    made = recipe(tmp_path / "run", [*overrides_of("vq", tiny_overrides), *words])
    made.train_tokenizer()
    made.train_prior()
    pipe = BinaryLatentDiffusionPipeline.from_pretrained(made.run.path)  # knows from its own config what it models
    assert pipe.prior.config.entries and pipe.prior.head.out_features == 2**5
    out = pipe(4, generator=0)
    assert torch.equal(out.codes, pipe(4, generator=0, batch_size=3).codes) and out.codes.shape[-1] == 5
    images = torch.from_numpy(np.stack([np.asarray(image) for image in out.images])).permute(0, 3, 1, 2) / 255
    codes = pipe.encode(images)
    bits = pipe.likelihood_bits(codes)
    most = codes[0].numel()  # untrained heads give each entry the same chance: as many bits as it is written in
    assert bits.shape == (4,) and (bits < 1.5 * most).all() and (bits > 0.5 * most).all()
    hole = torch.zeros(8, 8, dtype=torch.bool)
    hole[:, 4:] = True
    filled = pipe.inpaint(images[0], hole, 2, generator=0, output_type="pt").images
    assert torch.allclose(filled[..., :4], images[0, :, :, :4].expand(2, 3, 8, 4), atol=1 / 255)


def test_gaussian_draws_are_keyed_by_image_and_means_are_what_no_draws_store(tmp_path: Path, tiny_overrides: list[str]):
    overrides = overrides_of("gaussian", tiny_overrides)
    made = recipe(tmp_path / "run", overrides)
    model = made.train_tokenizer()
    cache, rows = made.encode(), np.arange(7)
    drawn = cache.read(rows)
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:  # other batches, the same draws
        patch.setattr("bld.training.stages.encode.AT_A_TIME", 50)
        (made.run.codes / "header.json").unlink()
        torch.testing.assert_close(made.encode().read(rows), drawn, rtol=2e-3, atol=1e-3)
    means = recipe(tmp_path / "run", ["codes.draws=0"]).encode()
    expected = model.encode(made.images()[0].centre(list(rows))).flatten(1, 2)
    torch.testing.assert_close(means.read(rows), expected, rtol=2e-3, atol=1e-3)
    assert (drawn - expected).abs().mean() > 0.05
    assert isinstance(means, CodeCache) and means.key.values == "float16"


@pytest.mark.parametrize("kind", BOTTLENECK)
def test_the_hash_of_a_tokenizer_changes_with_whatever_changes_codes(
    kind: str, tmp_path: Path, tiny_overrides: list[str]
):
    made = recipe(tmp_path / "run", overrides_of(kind, tiny_overrides))
    model = made.train_tokenizer()
    before = tokenizer_hash(model)
    with torch.no_grad():
        model.decoder.conv_in.weight += 1
        assert tokenizer_hash(model) == before
        if kind == "vq":
            next(b for name, b in model.named_buffers() if name.endswith("embed"))[0, 0] += 1
        else:
            model.encoder.to_logits.bias += 1
    assert tokenizer_hash(model) != before


def test_the_average_copies_buffers_and_averages_parameters():
    model = nn.BatchNorm1d(2)
    average = WeightAverage(model, decay=0.9)
    with torch.no_grad():
        model.weight.fill_(3.0)
        model.running_mean.fill_(5.0)
        model.num_batches_tracked += 4
    average.update(10_000)
    assert torch.allclose(average.model.weight, torch.tensor(1.2))
    assert torch.equal(average.model.running_mean, torch.full((2,), 5.0)) and average.model.num_batches_tracked == 4


def test_numbers_in_gray_code_are_trained_cached_with_their_probabilities_and_sampled(
    tmp_path: Path, tiny_overrides: list[str]
):
    words = ["tokenizer.bits_per_value=4", "tokenizer.bit_noise=0.2", "codes.fresh=true", "prior.soft_targets=true"]
    made = recipe(tmp_path, [*tiny_overrides, *words])
    made.train()
    assert made.run.settings().tokenizer.bits_per_value == load_tokenizer(made.run.tokenizer).config.bits_per_value == 4
    assert CodeCache(made.run.codes).shape == (4, 4, 32)
    pipe = BinaryLatentDiffusionPipeline.from_pretrained(tmp_path)
    bits = pipe(3, generator=0).codes
    assert bits.shape == (3, 4, 4, 32) and pipe.decode(bits, "pt").shape == (3, 3, 8, 8)
    costs = dict(describe(made.settings, images=1000, num_classes=0))
    assert costs["a position"] == "8 numbers of 16 levels, in Gray code"


TABLE_4 = {
    "bedrooms256-vq": ("vq", (16, 16, 10), "16×16×10 = 2,560 bits, 320 bytes"),
    "bedrooms256-real": ("gaussian", (16, 16, 16), "16×16×16 = 4,096 real numbers, 8,192 bytes as float16"),
    "bedrooms256": ("bernoulli", (16, 16, 32), "16×16×32 = 8,192 bits, 1,024 bytes"),
    "bedrooms256-8x8-vq": ("vq", (8, 8, 11), "8×8×11 = 704 bits, 88 bytes"),
    "bedrooms256-8x8-real": ("gaussian", (8, 8, 64), "8×8×64 = 4,096 real numbers, 8,192 bytes as float16"),
    "bedrooms256-8x8": ("bernoulli", (8, 8, 128), "8×8×128 = 8,192 bits, 1,024 bytes"),
}


@pytest.mark.parametrize("preset", TABLE_4)
def test_table_4s_six_settings_are_presets_with_one_encoder_and_decoder_per_grid(preset: str):
    kind, shape, code = TABLE_4[preset]
    if kind == "vq":
        pytest.importorskip("vector_quantize_pytorch")
    settings = load_settings(preset=preset)
    tokenizer = settings.tokenizer
    assert tokenizer.bottleneck == kind and tokenizer.code_shape == shape
    assert tokenizer.factor == 256 // shape[0]
    binary = load_settings(preset="bedrooms256-8x8" if shape[0] == 8 else "bedrooms256")
    assert dataclasses.replace(tokenizer, bottleneck="bernoulli", code_bits=binary.tokenizer.code_bits) == (
        binary.tokenizer
    )
    assert settings.tokenizer_training == binary.tokenizer_training and settings.objective == binary.objective
    costs = dict(describe(settings, images=1000, num_classes=0))
    assert costs["code"] == code
    assert ("codebook" in costs) == (kind == "vq") and "a position" not in costs
    size = int(code.split(", ")[1].split()[0].replace(",", "")) * 1000 * 2 / 2**20  # two flips, one draw
    assert costs["code cache of 1,000 images"] == f"{size:,.1f} MiB (2 views)"


@pytest.mark.parametrize("size", [8, 12, 16, 24, 32, 64])
@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_a_discriminator_too_deep_for_the_images_is_refused_before_training(size: int, layers: int):
    """The depth is accepted exactly where the network gives something."""
    try:
        found = PatchDiscriminator(8, layers)(torch.zeros(2, 3, size, size)).numel() > 0
    except RuntimeError:
        found = False
    if found:
        PatchDiscriminator.check(size, layers)
        return
    with pytest.raises(SettingError, match=f"discriminator_layers={layers} .* {size}×{size}") as refused:
        PatchDiscriminator.check(size, layers)
    most = int(re.search(r"set it to (\d)", str(refused.value))[1])
    assert PatchDiscriminator(8, most)(torch.zeros(2, 3, size, size)).numel() > 0


@pytest.mark.parametrize(
    ("word", "said"),
    [("objective.adversarial=0.5", "discriminator_layers=3"), ("objective.perceptual=1", r"perceptual=1 .*8×8 pixels")],
)
def test_a_run_whose_judges_see_nothing_of_its_images_is_refused_before_it_trains(tmp_path, tiny_overrides, word, said):
    run = RunFolder(tmp_path / "run")
    settings = run.adopt("digits", [*tiny_overrides, word], "digits")
    with pytest.raises(SettingError, match=said):
        Recipe(settings, run, lambda _: None).train()
    assert not (run.path / "checkpoints").exists()
    with pytest.raises(SettingError, match=said):
        simulate.tokenizer_step(settings, 1, bf16=False)

"""Every kind of prior through the whole way: trained, resumed exactly, saved, loaded, sampled, inpainted, counted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import bld
from bld.errors import SettingError
from bld.priors import KINDS
from bld.training.config import load_settings
from bld.training.recipe import Recipe
from bld.training.run_folder import RunFolder

BITS = ["bernoulli", "autoregressive", "absorbing"]
GAUSSIAN = ["tokenizer.bottleneck=gaussian", "codes.draws=0", "diffusion.steps=50", "prior.step_embedding=sinusoidal"]


def overrides_of(kind: str) -> list[str]:
    return [f"prior.kind={kind}", *(GAUSSIAN if kind == "gaussian" else [])]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_overrides) -> dict[str, Path]:
    """One finished run of each kind; the kinds over bits share a tokenizer."""
    made: dict[str, Path] = {}
    root = tmp_path_factory.mktemp("kinds")
    for kind in [*BITS, "gaussian"]:
        run = RunFolder(root / kind)
        settings = run.adopt("digits", [*tiny_overrides, *overrides_of(kind)], "digits")
        Recipe(settings, run, lambda _: None).train()
        made[kind] = run.path
    return made


@pytest.mark.parametrize("kind", [*BITS, "gaussian"])
def test_each_kind_samples_the_same_images_in_any_batch(runs, kind):
    pipe = bld.BinaryLatentDiffusionPipeline.from_pretrained(runs[kind])
    labels = [3, 1, 4, 1, 5]
    whole = pipe(class_labels=labels, generator=7, output_type="latent", batch_size=5).codes
    parts = pipe(class_labels=labels, generator=7, output_type="latent", batch_size=2).codes
    assert torch.allclose(whole.float(), parts.float(), atol=1e-5)
    assert whole.shape == (5, *pipe.tokenizer.code_shape)
    assert not torch.equal(whole, pipe(class_labels=labels, generator=8, output_type="latent").codes)


@pytest.mark.parametrize("kind", [*BITS, "gaussian"])
def test_each_kind_is_guided_and_observed(runs, kind):
    pipe = bld.BinaryLatentDiffusionPipeline.from_pretrained(runs[kind])
    seen: list[torch.Tensor] = []
    out = pipe(2, "3", guidance_scale=2.0, generator=0, output_type="pt",
               callback_on_step_end=lambda p, i, t, state: seen.append(state["latents"]))  # fmt: skip
    assert out.images.shape == (2, 3, 8, 8) and torch.isfinite(out.images).all()
    assert torch.equal(seen[-1].to(out.codes.dtype), out.codes)


@pytest.mark.parametrize("kind", [*BITS, "gaussian"])
def test_each_kind_comes_back_from_disk_the_same(runs, kind, tmp_path):
    pipe = bld.BinaryLatentDiffusionPipeline.from_pretrained(runs[kind])
    pipe.save_pretrained(tmp_path / "saved")
    again = bld.BinaryLatentDiffusionPipeline.from_pretrained(tmp_path / "saved")
    assert type(again.prior) is type(pipe.prior) and type(again.diffusion) is type(pipe.diffusion)
    assert torch.equal(pipe(3, 2, generator=1, output_type="latent").codes.float(),
                       again(3, 2, generator=1, output_type="latent").codes.float())  # fmt: skip


@pytest.mark.parametrize("kind", BITS)
def test_each_kind_over_bits_counts_them(runs, kind):
    """Hardly trained: near one bit per bit, and the same whatever the batch."""
    pipe = bld.BinaryLatentDiffusionPipeline.from_pretrained(runs[kind])
    codes = pipe(6, generator=0, output_type="latent").codes
    bits = pipe.likelihood_bits(codes, draws=2, generator=0)
    assert bits.shape == (6,) and (bits / pipe.tokenizer.code_shape.bits - 1).abs().max() < 0.5
    assert torch.allclose(bits, pipe.likelihood_bits(codes, draws=2, generator=0, batch_size=4), rtol=1e-5)


@pytest.mark.parametrize("kind", [*BITS, "gaussian"])
def test_each_kind_inpaints_and_keeps_what_is_given(runs, kind):
    pipe = bld.BinaryLatentDiffusionPipeline.from_pretrained(runs[kind])
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(8, 8)
    mask[4:] = 1
    filled = pipe.inpaint(image, mask, 2, generator=0, output_type="pt").images
    assert torch.allclose(filled[:, :, :4], image[:, :, :4].expand(2, 3, 4, 8), atol=1e-5)


@pytest.mark.parametrize("kind", ["autoregressive", "absorbing", "gaussian"])
def test_a_stopped_training_of_each_kind_ends_in_the_same_weights(runs, kind, tmp_path):
    """Trained in one go, and in two halves by the same command: bit by bit the same."""
    found = []
    for name, stops in (("whole", [5]), ("halves", [2, 5])):
        shutil.copytree(runs[kind], tmp_path / name, ignore=shutil.ignore_patterns("prior", "checkpoints"))
        run = RunFolder(tmp_path / name)
        run.record("prior", goal=None)
        for steps in stops:
            overrides = [f"prior_training.steps={steps}", "prior_training.decay=constant"]
            Recipe(run.adopt(None, overrides, None), run, lambda _: None).train_prior()
        found.append(load_file(run.prior / "model.safetensors"))
    whole, halves = found
    assert whole.keys() == halves.keys() and all(torch.equal(whole[name], halves[name]) for name in whole)


def test_parameters_agree_within_a_percent():
    large = {}
    for kind in BITS:
        settings = load_settings("churches256", overrides=[f"prior.kind={kind}"])
        config = settings.denoiser(settings.tokenizer.code_shape, 0)
        with torch.device("meta"):
            large[kind] = sum(p.numel() for p in KINDS[kind].network(config).parameters())
    assert max(large.values()) / min(large.values()) < 1.01, large


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["prior.kind=gaussian"], r"prior\.kind=gaussian .*tokenizer\.bottleneck=gaussian"),
        (["tokenizer.bottleneck=gaussian"], r"tokenizer\.bottleneck=gaussian .*prior\.kind=gaussian"),
        (["prior.kind=autoregresive"], r"prior\.kind 'autoregresive'.*'autoregressive'\?"),
    ],
)
def test_kinds_that_do_not_fit_are_refused(overrides, message):
    with pytest.raises(SettingError, match=message):
        load_settings("digits", overrides=overrides)


def test_options_of_another_kind_are_refused(runs):
    pipes = {kind: bld.BinaryLatentDiffusionPipeline.from_pretrained(path) for kind, path in runs.items()}
    with pytest.raises(SettingError, match=r"corrector_steps .*bernoulli.*absorbing"):
        pipes["absorbing"](1, corrector_steps=1)
    with pytest.raises(SettingError, match=r"reveal .*absorbing.*bernoulli"):
        pipes["bernoulli"](1, reveal="confidence")
    with pytest.raises(SettingError, match=r"autoregressive .*not 3\b"):
        pipes["autoregressive"](1, num_inference_steps=3)
    with pytest.raises(SettingError, match=r"posteriors.* absorbing\b"):
        pipes["absorbing"].with_posterior("plugin")
    with pytest.raises(SettingError, match="no code length"):
        pipes["gaussian"].likelihood_bits(torch.zeros(1, *pipes["gaussian"].tokenizer.code_shape))


@pytest.mark.parametrize("kind", ["autoregressive", "absorbing", "gaussian"])
def test_each_kind_gets_its_report(runs, kind, tmp_path):
    """The page is whole, and of bits only where there are bits."""
    from bld.report.page import write_report

    shutil.copytree(runs[kind], tmp_path / kind)
    page = write_report(RunFolder(tmp_path / kind), seed=0, say=lambda _: None).read_text(encoding="utf-8")
    assert page.count("<img") > 60
    assert (kind == "gaussian") == ('id="bits"' not in page)
    assert ("real numbers" in page) == (kind == "gaussian")

"""A copy of the prior from early in its training, which guides where there is no condition."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bld import BinaryLatentDiffusionPipeline
from bld.diffusion import with_guidance
from bld.errors import CheckpointError, SettingError
from bld.priors.absorbing import AbsorbingDenoiser
from bld.report.page import write_report
from bld.seeding import keyed_draws
from bld.training import loop
from bld.training.ema import WeightAverage
from bld.training.recipe import Recipe
from bld.training.run_folder import RunFolder
from bld.training.stop_signals import StopSignals

CONSTANT = ["prior_training.decay=constant", "prior_training.warmup_steps=0"]
UNCONDITIONAL = ["prior.class_conditional=false", "prior.guide=0.5", "sampling.guidance_scale=2"]


def train(path: Path, overrides: list[str]) -> RunFolder:
    run = RunFolder(path)
    settings = run.adopt(None if run.has_settings() else "digits", overrides, "digits")
    Recipe(settings, run, lambda _: None).train()
    return run


def weights(run: RunFolder, part: str) -> dict[str, torch.Tensor]:
    return load_file(run.path / part / "model.safetensors")


def stopping_after(steps: int) -> type[StopSignals]:
    class Stopping(StopSignals):
        def __enter__(self):
            asked = iter([False] * steps + [True])
            type(self).requested = property(lambda _: next(asked), lambda *_: None)
            return self

    return Stopping


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def guided(tmp_path_factory: pytest.TempPathFactory, tiny_overrides: list[str]) -> Path:
    return train(tmp_path_factory.mktemp("guided") / "run", [*tiny_overrides, *UNCONDITIONAL]).path


@pytest.fixture
def pipe(guided: Path) -> BinaryLatentDiffusionPipeline:
    return BinaryLatentDiffusionPipeline.from_pretrained(guided)


def test_the_guide_is_the_average_as_it_was_at_that_part_of_the_training(tmp_path, tiny_overrides, monkeypatch):
    seen = {}
    update = WeightAverage.update

    def watched(average: WeightAverage, step: int) -> None:
        update(average, step)
        seen[step] = copy.deepcopy(average.model.state_dict())

    monkeypatch.setattr(WeightAverage, "update", watched)  # the prior's, trained last, is what remains
    run = train(tmp_path / "run", [*tiny_overrides, *UNCONDITIONAL])
    assert same(weights(run, "guide"), seen[3]) and same(weights(run, "prior"), seen[6])
    assert not same(seen[3], seen[6])


@pytest.mark.parametrize("stopped_after", [2, 3, 4])
def test_a_training_that_was_stopped_keeps_the_same_guide(tmp_path, tiny_overrides, guided, stopped_after):
    overrides = [*tiny_overrides, *UNCONDITIONAL]
    run = RunFolder(tmp_path / "run")
    recipe = Recipe(run.adopt("digits", overrides, "digits"), run, lambda _: None)
    recipe.train_tokenizer()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "StopSignals", stopping_after(stopped_after))
        with pytest.raises(KeyboardInterrupt):
            recipe.train_prior()
    assert not run.guide.exists()  # it is written with the prior that it guides
    train(run.path, [])
    assert same(weights(run, "guide"), weights(RunFolder(guided), "guide"))
    assert same(weights(run, "prior"), weights(RunFolder(guided), "prior"))


def test_samples_are_led_away_from_what_the_guide_would_draw(pipe):
    asked = {"num_inference_steps": 5, "generator": 3, "output_type": "latent"}
    found = pipe(4, guidance_scale=3.0, **asked).images
    null, shape = pipe.prior.no_condition(4), pipe.prior.code_shape
    prior, guide = pipe.prior.for_inference(), pipe.guide.for_inference()
    expected = pipe.diffusion.sample(
        lambda z, t: torch.lerp(guide(z, t, null), prior(z, t, null), 3.0), (4, shape.positions, shape.c),
        steps=5, generators=keyed_draws(3, "sample", range(4)),
    )  # fmt: skip
    assert torch.equal(found.flatten(1), expected.flatten(1))
    assert torch.equal(pipe(4, **asked).images, pipe(4, guidance_scale=2.0, **asked).images)  # the run's own
    assert not torch.equal(found, pipe(4, guidance_scale=1.0, **asked).images)


def test_inpainting_and_variations_are_guided_too(pipe):
    picture = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    hole = torch.zeros(8, 8, dtype=torch.bool)
    hole[:, 4:] = True
    asked = {"num_inference_steps": 4, "generator": 0, "output_type": "latent"}
    codes = pipe.encode(picture)
    for make in (lambda **how: pipe.inpaint(picture, hole, 16, **how), lambda **how: pipe.vary(codes, 1.0, **how)):
        plain, led = (make(guidance_scale=scale, **asked).images for scale in (1.0, 8.0))
        assert not torch.equal(plain, led)


def test_saving_and_loading_keeps_the_guide_or_its_absence(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = BinaryLatentDiffusionPipeline.from_pretrained(tmp_path)
    assert again.fingerprint() == pipe.fingerprint() and again.guide is not None
    alone = BinaryLatentDiffusionPipeline(pipe.tokenizer, pipe.prior, pipe.diffusion, pipe.index)
    assert alone.fingerprint() != pipe.fingerprint()
    alone.save_pretrained(tmp_path)  # the folder of the other guide lies there still
    again = BinaryLatentDiffusionPipeline.from_pretrained(tmp_path)
    assert again.guide is None and again.index.sampling.guidance_scale == 1 and again(1, generator=0).images
    with pytest.raises(SettingError, match="guide"):
        alone(1, guidance_scale=2.0)


def test_an_index_that_names_a_guide_wants_it(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    (tmp_path / "guide" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="guide"):
        BinaryLatentDiffusionPipeline.from_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({k: v for k, v in index.items() if k != "guide"}))
    assert BinaryLatentDiffusionPipeline.from_pretrained(tmp_path).guide is None  # as those saved before


def test_a_guide_that_does_not_fit_is_refused(pipe, trained_run):
    other = BinaryLatentDiffusionPipeline.from_pretrained(trained_run)  # with classes
    with pytest.raises(SettingError, match="another kind"):
        BinaryLatentDiffusionPipeline(pipe.tokenizer, pipe.prior, pipe.diffusion, pipe.index, guide=other.prior)
    with pytest.raises(SettingError, match="guides itself"):
        BinaryLatentDiffusionPipeline(other.tokenizer, other.prior, other.diffusion, other.index, guide=pipe.prior)
    absorbing = AbsorbingDenoiser(pipe.prior.config)
    with pytest.raises(SettingError, match="another kind"):
        BinaryLatentDiffusionPipeline(pipe.tokenizer, pipe.prior, pipe.diffusion, pipe.index, guide=absorbing)


def test_a_training_shortened_beyond_the_milestone_keeps_a_late_guide(tmp_path, tiny_overrides):
    """Its goal came nearer while it was stopped: better late than a model that names a guide it has not."""
    overrides = [*tiny_overrides, *UNCONDITIONAL, *CONSTANT]
    run = RunFolder(tmp_path / "run")
    recipe = Recipe(run.adopt("digits", overrides, "digits"), run, lambda _: None)
    recipe.train_tokenizer()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "StopSignals", stopping_after(2))
        with pytest.raises(KeyboardInterrupt):
            recipe.train_prior()
    train(run.path, ["prior_training.steps=3"])
    found = BinaryLatentDiffusionPipeline.from_pretrained(run.path)
    assert found.guide is not None and run.progress()["prior"]["early_step"] == 2


def test_a_finished_prior_that_is_trained_on_keeps_its_guide_until_the_end(tmp_path, guided):
    run = RunFolder(shutil.copytree(guided, tmp_path / "run"))
    guide, prior = weights(run, "guide"), weights(run, "prior")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "StopSignals", stopping_after(4))
        with pytest.raises(KeyboardInterrupt):
            train(run.path, ["prior_training.steps=12"])
    assert same(weights(run, "guide"), guide) and same(weights(run, "prior"), prior)
    train(run.path, [])
    assert same(weights(run, "guide"), guide) and not same(weights(run, "prior"), prior)


def test_report_and_card_say_what_guides(pipe, guided, tmp_path):
    run = shutil.copytree(guided, tmp_path / "run")
    text = write_report(RunFolder(run), seed=0, say=lambda _: None).read_text()
    assert "guided by" in text and "3 steps of its training" in text
    BinaryLatentDiffusionPipeline.from_pretrained(run).save_card(tmp_path / "card", "you/digits")
    assert "3 of these steps" in (tmp_path / "card" / "README.md").read_text()


def test_priors_with_a_condition_guide_themselves(tmp_path, tiny_overrides):
    run = train(tmp_path / "run", [*tiny_overrides, "prior.guide=0.5", "sampling.guidance_scale=2"])
    found = BinaryLatentDiffusionPipeline.from_pretrained(run.path)
    assert found.guide is None and not run.guide.exists() and found.index.sampling.guidance_scale == 2


@pytest.mark.parametrize("kind", ["autoregressive", "absorbing", "gaussian"])
def test_other_kinds_of_prior_are_guided_as_well(tmp_path, tiny_overrides, kind):
    own = [f"prior.kind={kind}", *UNCONDITIONAL]
    if kind == "gaussian":
        own += ["tokenizer.bottleneck=gaussian", "codes.draws=0", "codes.fresh=false"]
    found = BinaryLatentDiffusionPipeline.from_pretrained(train(tmp_path / "run", [*tiny_overrides, *own]).path)
    plain, led = (found(8, generator=0, guidance_scale=scale, output_type="latent").images for scale in (1.0, 30.0))
    assert found.guide is not None and not torch.equal(plain, led)


def test_the_formula_takes_two_calls_of_one_batch():
    batches = []

    def network(factor: float):
        def call(z, t, condition):
            batches.append((factor, len(z)))
            return factor * (z.float() + condition.view(-1, 1, 1))

        return call

    z, t, null = torch.ones(3, 2, 2, dtype=torch.uint8), torch.ones(3, dtype=torch.long), torch.full((3,), 7)
    found = with_guidance(network(1.0), null, null, 3.0, network(0.25))(z, t)
    torch.testing.assert_close(found, torch.full((3, 2, 2), 8.0 * (3.0 - 2.0 * 0.25)))
    assert batches == [(1.0, 3), (0.25, 3)]
    assert with_guidance(network(1.0), null, null, 1.0, network(0.25))(z, t).eq(8).all() and len(batches) == 3


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_part_of_the_training_lies_between_none_and_all(tiny_overrides, tmp_path, share):
    with pytest.raises(SettingError, match=r"prior\.guide"):
        train(tmp_path / "run", [*tiny_overrides, f"prior.guide={share}"])

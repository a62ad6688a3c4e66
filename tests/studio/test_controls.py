"""The page offers what a model has a use for, and its handlers turn every error into a sentence."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import pytest

from bld.diffusion import BernoulliDiffusion, NoiseSchedule
from bld.errors import DataError, SettingError
from bld.pipeline import BinaryLatentDiffusionPipeline
from bld.priors import KINDS, Autoregression, DenoiserConfig
from bld.studio.model import Model
from bld.studio.tasks import Sampling
from bld.tokenizer import AutoencoderConfig, BinaryAutoencoder

gradio = pytest.importorskip("gradio")
page = pytest.importorskip("bld.studio.app")
handlers = pytest.importorskip("bld.studio.handlers")
controls = pytest.importorskip("bld.studio.controls")


def model_of(kind: str, classes: int, size: int = 16) -> Model:
    tokenizer = BinaryAutoencoder(
        AutoencoderConfig(image_size=size, code_bits=8, base_channels=8, embed_dim=8, channel_multipliers=(1, 1))
    )
    h, w, c = tokenizer.code_shape
    steps = h * w if kind == "autoregressive" else 8
    prior = KINDS[kind].network(DenoiserConfig(h, w, c, steps=steps, num_classes=classes, dim=16, depth=1, heads=2))
    process = Autoregression(steps) if kind == "autoregressive" else BernoulliDiffusion(NoiseSchedule("linear", steps))
    return Model(BinaryLatentDiffusionPipeline(tokenizer, prior, process), "run")


def labels_of(model: Model) -> set[str]:
    blocks = page.build(model).blocks.values()
    return {block.label for block in blocks if getattr(block, "label", None) and block.visible}


def test_a_conditional_bernoulli_model_has_every_control():
    labels = labels_of(model_of("bernoulli", classes=3))
    assert {"Class", "Seed", "Steps", "Temperature τ", "Guidance", "Resampling", "Posterior A"} <= labels
    assert "Prompt" not in labels


def test_controls_without_a_use_are_left_out():
    labels = labels_of(model_of("bernoulli", classes=0))
    assert "Steps" in labels and not labels & {"Class", "Guidance", "Guidance A"}
    labels = labels_of(model_of("autoregressive", classes=0))
    assert "Seed" in labels and not labels & {"Steps", "Resampling", "Posterior A"}


def test_a_model_that_takes_prompts_gets_a_box_for_them():
    model = model_of("bernoulli", classes=0)
    assert "Prompt" not in labels_of(model)
    model.pipe.index = dataclasses.replace(model.pipe.index, text_encoder="someone/clip")
    assert {"Prompt", "Guidance"} <= labels_of(model)


@pytest.mark.parametrize("temperature, guidance", [(0.9, 10.0), (3.0, 25.0), (0.05, -1.0), (12.0, 1.0)])
def test_controls_as_they_stand_are_never_refused(temperature: float, guidance: float):
    """Whatever the run's own defaults are."""
    model = model_of("bernoulli", classes=3)
    defaults = dataclasses.replace(model.pipe.index.sampling, temperature=temperature, guidance_scale=guidance)
    model.pipe.index = dataclasses.replace(model.pipe.index, sampling=defaults)
    found = sliders_of(model)
    assert found["Temperature τ"].preprocess(temperature) == temperature
    assert found["Guidance"].preprocess(guidance) == guidance
    for name, one in found.items():
        assert one.minimum <= one.value <= one.maximum, name
    call = Sampling(temperature=temperature, guidance=guidance).call(model, 1)
    assert (call["temperature"], call["guidance_scale"]) == (temperature, guidance) and Sampling().call(model, 1)
    with pytest.raises(SettingError, match="guidance"):
        Sampling(guidance=max(20, guidance) + 1).call(model, 1)


@pytest.mark.parametrize("value", [None, 1e9, float("nan"), "x", True])
def test_a_slider_of_no_number_is_a_sentence_without_a_traceback(value: object):
    found = sliders_of(model_of("bernoulli", classes=3))
    assert {"Steps", "Pictures", "Resampling", "Denoising", "Row", "Bit"} <= found.keys()
    for name, one in found.items():
        with pytest.raises(gradio.Error) as error:
            one.preprocess(value)
        assert error.value.message.startswith(f"{name} is ") and error.value.message.endswith(".")
        assert not error.value.print_exception


def sliders_of(model: Model) -> dict[str, Any]:
    """The sliders of the page by their labels."""
    return {block.label: block for block in page.build(model).blocks.values() if isinstance(block, gradio.Slider)}


def test_a_list_of_classes_with_none_chosen_is_refused_in_a_sentence():
    with gradio.Blocks():
        model = model_of("bernoulli", 3)
        all_of_them, end = controls.Controls(model), controls.End(model, "First", 0)
        rest = controls.Controls(model, seed=False, classes=False)
    values = [None if name == "which" else part.value for name, part in all_of_them.parts.items()]
    with pytest.raises(SettingError, match="No class is chosen"):
        all_of_them.sampling(values)
    with pytest.raises(SettingError, match="No class is chosen"):
        end.origin([0, None, None], [part.value for part in rest.inputs], rest)


def test_large_pictures_are_made_few_at_a_time():
    assert [model_of("bernoulli", 0, size).most_images for size in (16, 256, 512)] == [64, 16, 4]


def test_what_is_no_fault_of_the_visitor_is_a_general_sentence_and_its_traceback_goes_to_the_log(
    caplog: pytest.LogCaptureFixture,
):
    with caplog.at_level(logging.ERROR, logger="bld.studio"):
        assert handlers.sentence_of(DataError("Upload a picture.")) == "Upload a picture."
        assert not caplog.records
        assert "secret" not in handlers.UNEXPECTED
        assert handlers.sentence_of(KeyError("/secret/path")) == handlers.UNEXPECTED
        assert "KeyError: '/secret/path'" in caplog.text
        assert handlers.sentence_of(MemoryError()) == handlers.NO_MEMORY

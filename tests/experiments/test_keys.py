"""What is kept is taken again for what it was measured of alone, and every training draws by a seed of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bld.errors import SettingError
from bld.experiments import formats, given_images, runner, trainings
from bld.experiments.keys import what_counts
from bld.experiments.novelty import novelty, unseen_nearness
from bld.experiments.prior_rows import Row, measure
from bld.experiments.runner import Runner
from bld.experiments.sampled import Sampling
from bld.experiments.scales import Scale
from bld.training.config import load_settings
from bld.training.loop import StageRun
from bld.training.recipe import Recipe
from bld.training.run_folder import RunFolder

from .tiny import TINY

QUIET = lambda _: None  # noqa: E731


def test_a_setting_that_has_not_always_been_changes_no_key_while_it_is_as_before():
    """Else all that was measured before it came would be measured again."""
    name = "tokenizer.bits_per_value"
    before, now = (what_counts(load_settings("digits", overrides=[f"{name}={k}"])) for k in (1, 4))
    assert name not in before and now == {**before, name: 4}


# -- one seed for the training and its draws --------------------------------------------------------------


def test_each_training_is_sampled_with_its_own_seed():
    """One sampling seed for all would put the error of one draw into every value, where no test can see it."""
    asked = []
    stub = SimpleNamespace(quality=lambda prior, seed, sampling: asked.append((seed, sampling.seed)) or {"fd": 1.0})
    measure(stub, Row("ours", "bernoulli", Sampling(16)), 3, ("fd",))
    assert asked == [(0, 0), (1, 1), (2, 2)]
    asked.clear()
    measure(stub, Row("ours", "bernoulli", Sampling(16)), 1, ("fd",))
    assert asked == [(0, 0), (0, 1), (0, 2)]


def test_each_training_fills_holes_with_draws_of_its_own():
    used: list[int] = []

    def inpaint(*words: Any) -> SimpleNamespace:
        used.append(words[7])
        return SimpleNamespace(images=torch.rand(given_images.FILLINGS, 3, 4, 4))

    stub = SimpleNamespace(
        key=lambda *_, **more: more, say=QUIET, kept=lambda name, key, compute: compute(),
        pipeline=lambda *_: SimpleNamespace(inpaint=inpaint),
    )  # fmt: skip
    given = given_images.Given(torch.zeros(5, 3, 4, 4), torch.zeros(5, 4, 3, 4, 4), torch.zeros(3, 4, 4))
    hole = torch.ones(4, 4, dtype=torch.bool)
    hole[0] = False
    for seed in range(3):
        given_images._filled(stub, seed, given, {"lower": hole})
    assert used[:5] == [0, 1, 2, 3, 4] and len(set(used)) == 15


# -- keys -------------------------------------------------------------------------------------------------


def keys_of(made: Runner, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """The keys of everything that a runner keeps."""
    found: dict[str, dict[str, Any]] = {}
    zeros = {"fd": 0.0, "novelty": 0.0, "copies": 0.0, "squared_error": 0.0, "seconds": []}
    monkeypatch.setattr(Runner, "extractor", SimpleNamespace(sha256="judge"))
    monkeypatch.setattr(Runner, "kept", lambda self, name, key, compute: found.update({name: key}) or zeros)
    monkeypatch.setattr(formats, "kept_picture", lambda folder, name, key, draw: found.update({name: key}))
    made.lesson(None, 0, Sampling())
    found["real lesson"] = found.pop("lesson")
    made.quality("bernoulli", 0, Sampling(4))
    made.untrained("bernoulli", Sampling(4))
    made.best()
    made.seconds([("bernoulli", Sampling(4))], 1, 1)
    made.lesson("bernoulli", 0, Sampling(4))
    made.likelihood("bernoulli", 0)
    novelty(made, "bernoulli", 0, Sampling(4))
    with suppress(TypeError):  # zeros are no distances
        unseen_nearness(made, "bernoulli", 0)
    given = given_images.Given(torch.zeros(1, 3, 8, 8), torch.zeros(1, 4, 3, 8, 8), torch.zeros(3, 8, 8))
    given_images._filled(made, 0, given, {})
    formats._reconstruction(made, "binary", 0)
    formats._untrained(made, 0)
    formats._reconstruction_picture(made)
    return found


def with_leaf(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    """As if the preset's file had been edited."""
    monkeypatch.setattr(
        trainings, "load_settings", lambda preset, overrides=(): load_settings(preset, overrides=[word, *overrides])
    )


OF_TOKENIZERS = {"reconstruction", "untrained-tokenizer", "reconstructions", "rebuilt", "unseen"}


def test_what_other_images_trained_is_measured_anew_on_the_same_test_images(tmp_path, image_folder, monkeypatch):
    data, other, test = (str(image_folder(n, size=8, classes=2, name=f"of{n}")) for n in (20, 22, 10))
    before, now = (keys_of(Runner(TINY, tmp_path, QUIET, where, test), monkeypatch) for where in (data, other))
    assert len(before) == 13
    for name in before:
        assert before[name] != now[name], name


@pytest.mark.parametrize(
    ("word", "same"),
    [
        ("tokenizer_training.beta2=0.9", {"real lesson"}),
        ("prior_training.beta2=0.9", {"real lesson", *OF_TOKENIZERS}),
        ("sampling.temperature=0.5", None),
        ("prior_training.log_every_steps=7", None),
    ],
)
def test_a_setting_of_the_preset_is_in_the_keys_of_what_it_changes(word, same, tmp_path, image_folder, monkeypatch):
    data = str(image_folder(20, size=8, classes=2))
    before = keys_of(Runner(TINY, tmp_path, QUIET, data), monkeypatch)
    with_leaf(monkeypatch, word)
    now = keys_of(Runner(TINY, tmp_path, QUIET, data), monkeypatch)
    assert {name for name in before if before[name] == now[name]} == (set(before) if same is None else same)


def test_reconstructions_are_kept_whatever_the_priors_are_and_not_for_another_rate_of_the_tokenizer(tmp_path):
    def key(word: str) -> dict[str, Any]:
        scale = replace(TINY, overrides=(*TINY.overrides, word))
        return Runner(scale, tmp_path, QUIET).tokenizer_key("binary", 0)

    assert key("prior_training.steps=5") == key("prior_training.steps=6")
    assert key("tokenizer_training.learning_rate=0.001") != key("tokenizer_training.learning_rate=0.003")


def test_figures_of_runs_that_were_deleted_and_made_of_other_images_are_drawn_again(
    tmp_path, image_folder, monkeypatch
):
    data, other = (image_folder(n, size=8, classes=2, name=f"of{n}") for n in (110, 114))
    test = str(image_folder(24, size=8, classes=2, name="test"))
    monkeypatch.setattr(runner, "LIKELIHOOD_CODES", 8)

    def said(where: Path) -> list[str]:
        lines: list[str] = []
        made = Runner(TINY, tmp_path, lines.append, str(where), test)
        made.quality("bernoulli", 0, Sampling(2))
        made.likelihood("bernoulli", 0)
        return [line.split()[0] for line in lines if line.startswith(("Sampling", "Counting"))]

    assert said(data) == ["Sampling", "Counting"] and said(data) == []
    for folder in ("tokenizers", "priors"):
        shutil.rmtree(tmp_path / "tiny" / folder)
    assert said(other) == ["Sampling", "Counting"]


# -- what is taken from the folder ------------------------------------------------------------------------


def test_the_judge_is_trained_anew_for_other_images_or_steps_and_taken_for_the_same(tmp_path, image_folder):
    data, other = (str(image_folder(n, size=8, classes=2, name=f"of{n}")) for n in (40, 44))
    weights = tmp_path / "tiny" / "classifier" / "model.safetensors"

    def judge(scale=TINY, where=data) -> tuple[str, int]:
        sha256 = Runner(scale, tmp_path, QUIET, where).extractor.sha256
        return sha256, weights.stat().st_mtime_ns

    first = judge()
    assert judge() == first
    more = judge(replace(TINY, classifier_steps=4))
    assert more[0] != first[0] and judge(where=other)[0] not in (first[0], more[0])


def test_runs_of_the_same_images_are_taken_wherever_those_lie_now(tmp_path, image_folder):
    data, said = image_folder(110, size=8, classes=2), []
    archive = Path(shutil.make_archive(str(tmp_path / "images"), "zip", data))
    first = Runner(TINY, tmp_path / "out", said.append, str(archive))
    before = (first.prior("bernoulli", 0).path, first.extractor.sha256)
    moved = Path(shutil.copy(archive, tmp_path / "moved.zip"))
    archive.unlink()
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}
    now = Runner(TINY, tmp_path / "out", said.append, str(moved))
    assert (now.prior("bernoulli", 0).path, now.extractor.sha256) == before
    now.tokenizer("binary", 0, with_codes=True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")} == files


def stopped(monkeypatch: pytest.MonkeyPatch, stage: str, train: Callable[[], RunFolder]) -> None:
    """Train, and be interrupted after the stage's last step: there is a checkpoint, and no model yet."""

    def stop(run: StageRun, *words: Any) -> None:
        if run.stage.name != stage:
            return finish(run, *words)
        raise KeyboardInterrupt

    finish = StageRun._finish
    with monkeypatch.context() as patch:
        patch.setattr(StageRun, "_finish", stop)
        with pytest.raises(KeyboardInterrupt):
            train()


def with_words(*words: str) -> Scale:
    return replace(TINY, overrides=(*TINY.overrides, *words))


def refused(train: Callable[[], RunFolder], config: Path) -> None:
    """Another scale's run is refused, and what its settings are can still be told."""
    before = config.read_text()
    with pytest.raises(SettingError, match="other images or with other settings"):
        train()
    assert config.read_text() == before


OTHER_TOKENIZER = with_words("tokenizer_training.learning_rate=0.0123")
OTHER_PRIOR = with_words("prior_training.learning_rate=0.0123", "diffusion.steps=32", "sampling.temperature=0.5")


def test_a_tokenizer_of_other_settings_gets_no_codes(tmp_path):
    run = Runner(TINY, tmp_path, QUIET).tokenizer("binary", 0)
    refused(lambda: Runner(OTHER_TOKENIZER, tmp_path, QUIET).tokenizer("binary", 0, with_codes=True), run.config)
    refused(lambda: Runner(OTHER_TOKENIZER, tmp_path, QUIET).prior("bernoulli", 0), run.config)
    assert not run.codes.exists()


def test_a_tokenizer_gets_codes_for_a_prior_of_any_settings(tmp_path):
    made = Runner(TINY, tmp_path, QUIET).tokenizer("binary", 0)
    stamp = (made.tokenizer / "model.safetensors").stat().st_mtime_ns
    assert Runner(OTHER_PRIOR, tmp_path, QUIET).prior("bernoulli", 0).index.is_file()
    assert (made.tokenizer / "model.safetensors").stat().st_mtime_ns == stamp
    assert Runner(TINY, tmp_path, QUIET).tokenizer("binary", 0, with_codes=True).codes.is_dir()


def test_a_stopped_tokenizer_goes_on_with_its_own_settings_and_images_alone(tmp_path, image_folder, monkeypatch):
    data, other = (str(image_folder(n, size=8, classes=2, name=f"of{n}")) for n in (110, 114))
    stopped(monkeypatch, "tokenizer", lambda: Runner(TINY, tmp_path, QUIET, data).tokenizer("binary", 0))
    config = tmp_path / "tiny" / "tokenizers" / "binary-seed0" / "config.yaml"
    refused(lambda: Runner(OTHER_TOKENIZER, tmp_path, QUIET, data).tokenizer("binary", 0), config)
    refused(lambda: Runner(TINY, tmp_path, QUIET, other).tokenizer("binary", 0), config)
    said: list[str] = []
    Runner(OTHER_PRIOR, tmp_path, said.append, data).tokenizer("binary", 0)
    assert "The tokenizer goes on from step 4." in said


def test_a_stopped_prior_goes_on_with_its_own_settings_alone(tmp_path, monkeypatch):
    stopped(monkeypatch, "prior", lambda: Runner(TINY, tmp_path, QUIET).prior("bernoulli", 0))
    config = tmp_path / "tiny" / "priors" / "bernoulli-seed0" / "config.yaml"
    refused(lambda: Runner(OTHER_PRIOR, tmp_path, QUIET).prior("bernoulli", 0), config)
    said: list[str] = []
    Runner(with_words("sampling.temperature=0.5"), tmp_path, said.append).prior("bernoulli", 0)
    assert "The prior goes on from step 4." in said


def test_a_run_that_was_stopped_before_it_had_seen_an_image_goes_on(tmp_path, monkeypatch):
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Recipe, "images", stop)
        with pytest.raises(KeyboardInterrupt):
            Runner(TINY, tmp_path, QUIET).tokenizer("binary", 0)
    config = tmp_path / "tiny" / "tokenizers" / "binary-seed0" / "config.yaml"
    refused(lambda: Runner(OTHER_TOKENIZER, tmp_path, QUIET).tokenizer("binary", 0), config)
    assert Runner(TINY, tmp_path, QUIET).tokenizer("binary", 0).tokenizer.is_dir()

"""Both stages end to end on the embedded digits: resuming, budgets, caches, damage."""

import copy
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

import bld
from bld import BinaryLatentDiffusionPipeline
from bld.cli import main
from bld.errors import CheckpointError, DataError, SettingError
from bld.evaluation.load_run import open_run
from bld.pipeline.card import training
from bld.priors import Denoiser, DenoiserConfig
from bld.training import loop
from bld.training.checkpoints import CheckpointStore, TrainingState
from bld.training.code_cache import CodeCache
from bld.training.config import load_settings
from bld.training.ema import WeightAverage
from bld.training.learning_rate import StageClock, learning_rate
from bld.training.loop import DivergedError
from bld.training.order import KeyedOrder, spread
from bld.training.recipe import Recipe
from bld.training.run_folder import RunFolder
from bld.training.settings import TrainingSettings
from bld.training.stages.base import Update
from bld.training.stages.prior import DRAWN_BOUND, PriorStage
from bld.training.stages.tokenizer import TokenizerStage
from bld.training.stop_signals import StopSignals

CONSTANT = ["tokenizer_training.decay=constant", "prior_training.decay=constant"]
CONSTANT += ["tokenizer.bit_noise=1", "objective.bit_flips=0"]  # which are annealed too


def train(path, overrides, data="digits", preset="digits", heard=None, stages=("tokenizer", "prior")):
    run = RunFolder(path)
    settings = run.adopt(None if run.has_settings() else preset, overrides, data)
    recipe = Recipe(settings, run, (lambda _: None) if heard is None else heard.append)
    if "tokenizer" in stages:
        recipe.train_tokenizer()
    if "prior" in stages:
        recipe.train_prior()
    return run


def weights(run, part):
    return load_file(run.path / part / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_leaves_everything_where_it_belongs(trained_run):
    run = RunFolder(trained_run)
    for path in (
        run.config,
        run.index,
        run.metrics,
        run.tokenizer,
        run.prior,
        run.diffusion,
        run.codes,
        run.tensorboard,
    ):
        assert path.exists(), path
    assert (run.samples / "tokenizer-0000006.png").is_file() and (run.samples / "prior-0000006.png").is_file()
    progress = run.progress()
    assert progress["tokenizer"]["steps"] == progress["prior"]["steps"] == 6
    assert (run.codes / "codes.bin").stat().st_size == 1617 * 2 * 64  # 4×4×32 bits are 64 bytes; two draws


def test_interrupting_and_resuming_gives_the_same_bits_as_never_stopping(tmp_path, tiny_overrides):
    overrides = [*tiny_overrides, *CONSTANT]  # what is annealed depends on the number of steps asked for
    whole = train(tmp_path / "whole", overrides)
    parts = train(tmp_path / "parts", [*overrides, "tokenizer_training.steps=3"], stages=["tokenizer"])
    train(parts.path, ["tokenizer_training.steps=6", "prior_training.steps=2"])
    train(parts.path, ["prior_training.steps=6"])
    for part in ("tokenizer", "prior"):
        assert same(weights(whole, part), weights(parts, part)), part

    def logged(run):
        return [{k: v for k, v in line.items() if k != "seconds"} for line in run.read_metrics()]

    final = [line for line in logged(whole) if line["step"] == 6]
    assert final and final == [line for line in logged(parts) if line["step"] == 6]


@pytest.mark.parametrize("previews", [0, 2])
@pytest.mark.parametrize("every", [1, 3])
def test_each_step_that_is_logged_is_logged_once_in_order_whenever_a_run_stops(
    tmp_path, tiny_overrides, every, previews
):
    """Numbers are read a step late, and none is lost at a preview, a stop, or the end."""
    overrides = [
        *tiny_overrides,
        f"tokenizer_training.log_every_steps={every}",
        f"tokenizer_training.previews={previews}",
    ]

    class AfterThreeSteps(StopSignals):
        def __enter__(self):
            asked = iter([False, False, False, True])
            type(self).requested = property(lambda _: next(asked), lambda *_: None)
            return self

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "StopSignals", AfterThreeSteps)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run", overrides, stages=("tokenizer",))
    run = train(tmp_path / "run", overrides, stages=("tokenizer",))
    logged = [line["step"] for line in run.read_metrics() if "learning_rate" in line]
    assert logged == list(range(every, 7, every))


def test_the_rate_is_that_of_all_sessions_as_steps_and_seconds_are(tmp_path, tiny_overrides, monkeypatch):
    """Four steps of 32 in 100 seconds, two of 16 in another 100; then from a checkpoint of older versions."""
    monkeypatch.setattr(StageClock, "elapsed", lambda clock: clock.seconds + 100)
    run = train(tmp_path / "run", [*tiny_overrides, "tokenizer_training.steps=4"], stages=["tokenizer"])
    assert run.progress()["tokenizer"]["images_per_second"] == 1.3  # 128 in 100 seconds
    store, more = run.checkpoints("tokenizer"), ["tokenizer_training.steps=6", "tokenizer_training.batch_size=16"]
    older = store.latest(pytest.fail)
    train(run.path, more, stages=["tokenizer"])
    done = run.progress()["tokenizer"]
    assert (done["steps"], done["seconds"], done["images_per_second"]) == (6, 200, 0.8)  # 160 in 200 seconds
    store.clear()
    store.save(TrainingState(4, older.tensors, {"seconds": 100.0}))
    train(run.path, ["tokenizer_training.steps=7"], stages=["tokenizer"])
    assert run.progress()["tokenizer"]["images_per_second"] == 0.6  # 112 in 200 seconds, as far as it can know


def test_two_runs_of_one_command_are_identical_and_another_seed_is_not(tmp_path, tiny_overrides):
    first, second = (train(tmp_path / name, tiny_overrides) for name in "ab")
    other = train(tmp_path / "c", [*tiny_overrides, "seed=1"])
    assert same(weights(first, "prior"), weights(second, "prior"))
    assert not same(weights(first, "prior"), weights(other, "prior"))


def test_the_same_command_again_trains_nothing(run_copy):
    before = {path: path.stat().st_mtime_ns for path in run_copy.rglob("*.safetensors")}
    heard = []
    train(run_copy, [], data=None, heard=heard)
    assert {path: path.stat().st_mtime_ns for path in run_copy.rglob("*.safetensors")} == before
    assert any("trained already" in line for line in heard)


def test_a_finished_run_samples_as_it_is_told_afterwards(run_copy):
    """By what its pipeline does when not told otherwise; nothing is trained, and nothing else in the index changes."""
    run, heard = RunFolder(run_copy), []
    before, stamp = json.loads(run.index.read_text()), (run.prior / "model.safetensors").stat().st_mtime_ns
    train(run_copy, ["sampling.steps=3", "sampling.guidance_scale=2.5", "sampling.temperature=0.7"], None, heard=heard)
    after = json.loads(run.index.read_text())
    assert after.pop("sampling") == {"num_inference_steps": 3, "temperature": 0.7, "guidance_scale": 2.5}
    assert after == {name: value for name, value in before.items() if name != "sampling"}
    assert (run.prior / "model.safetensors").stat().st_mtime_ns == stamp
    assert sum("guidance_scale=2.5" in line for line in heard) == 1
    train(run_copy, [], None, heard=(again := []))
    assert not any("guidance_scale" in line for line in again)


def test_sigterm_saves_a_checkpoint_and_the_same_command_goes_on(tmp_path, tiny_overrides):
    whole = train(tmp_path / "whole", [*tiny_overrides, "tokenizer_training.steps=120"], stages=["tokenizer"])
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "bld", "train-tokenizer", "--data", "digits", "--preset", "digits"]
    command += [
        "--out",
        str(out),
        *tiny_overrides,
        "tokenizer_training.steps=120",
        "tokenizer_training.log_every_steps=1",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 600  # it is about what follows; a busy machine starts slowly
    while not ((out / "metrics.jsonl").is_file() and (out / "metrics.jsonl").read_text().count("\n") > 3):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 130 and "goes on" in errors
    assert CheckpointStore(out / "checkpoints" / "tokenizer").list()
    again = subprocess.run(command, capture_output=True, text=True, timeout=600, env={**os.environ, "COLUMNS": "200"})
    assert again.returncode == 0, again.stderr
    assert same(weights(whole, "tokenizer"), weights(RunFolder(out), "tokenizer"))


def test_a_damaged_checkpoint_is_said_and_the_one_before_it_is_used(tmp_path, tiny_overrides):
    overrides = [*tiny_overrides, *CONSTANT, "tokenizer_training.checkpoint_seconds=0"]
    whole = train(tmp_path / "whole", [*overrides, "tokenizer_training.steps=8"], stages=["tokenizer"])
    run = train(tmp_path / "run", overrides, stages=["tokenizer"])
    newest = run.checkpoints("tokenizer").list()[-1] / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    heard = []
    train(run.path, ["tokenizer_training.steps=8"], stages=["tokenizer"], heard=heard)
    assert any("damaged" in line for line in heard) and any("from step 5" in line for line in heard)
    assert same(weights(whole, "tokenizer"), weights(run, "tokenizer"))


def test_a_training_that_began_anew_goes_on_from_its_own_checkpoint(tmp_path, tiny_overrides):
    overrides = [*tiny_overrides, *CONSTANT, "tokenizer_training.checkpoint_seconds=0"]
    run = train(tmp_path / "run", overrides, stages=["tokenizer"])
    for checkpoint in run.checkpoints("tokenizer").list():
        (checkpoint / "state.safetensors").write_bytes(b"cut short")
    train(run.path, ["tokenizer_training.steps=3"], stages=["tokenizer"], heard=(anew := []))
    train(run.path, ["tokenizer_training.steps=4"], stages=["tokenizer"], heard=(again := []))
    assert any("begins anew" in line for line in anew) and any("from step 3" in line for line in again)
    whole = train(tmp_path / "whole", [*overrides, "tokenizer_training.steps=4"], stages=["tokenizer"])
    assert same(weights(whole, "tokenizer"), weights(run, "tokenizer"))


def test_no_space_left_is_one_sentence_and_the_last_checkpoint_survives(tmp_path, tiny_overrides, monkeypatch):
    run = train(tmp_path / "run", tiny_overrides, stages=["tokenizer"])
    survivor = run.checkpoints("tokenizer").list()[-1]

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bld.training.checkpoints.save_file", full)
    with pytest.raises(CheckpointError, match=rf"space .*{run.path}"):
        train(run.path, ["tokenizer_training.steps=8"], stages=["tokenizer"])
    monkeypatch.undo()
    assert run.checkpoints("tokenizer").list() == [survivor]
    assert not list(run.path.rglob("*.part"))
    train(run.path, ["tokenizer_training.steps=8"], stages=["tokenizer"])
    assert run.progress()["tokenizer"]["steps"] == 8


def test_a_stale_cache_is_made_again_and_said(run_copy):
    overrides = ["tokenizer_training.steps=8", "prior_training.steps=7"]
    heard = []
    before = (run_copy / "codes" / "codes.bin").read_bytes()
    train(run_copy, overrides, data=None, heard=heard)
    assert any("stale" in line and "tokenizer" in line for line in heard)
    assert (run_copy / "codes" / "codes.bin").read_bytes() != before


def test_a_prior_of_an_older_tokenizer_is_trained_anew_and_said(run_copy):
    heard = []
    before = weights(RunFolder(run_copy), "prior")
    run = train(run_copy, ["tokenizer_training.steps=8"], data=None, heard=heard)
    assert any("prior is trained anew" in line for line in heard)
    assert not same(weights(run, "prior"), before) and run.progress()["prior"]["steps"] == 6


def test_a_fitting_cache_is_used_as_it_is(run_copy):
    stamp = (run_copy / "codes" / "codes.bin").stat().st_mtime_ns
    train(run_copy, ["prior_training.steps=7"], data=None)
    assert (run_copy / "codes" / "codes.bin").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("word", ["prior.dim=64", "tokenizer.code_bits=16", "diffusion.steps=32", "seed=1"])
def test_a_run_folder_of_another_shape_is_refused_and_left_alone(run_copy, word):
    config = (run_copy / "config.yaml").read_text()
    key, value = word.split("=")
    with pytest.raises(SettingError, match=rf"{run_copy} .*{key}=\w+.* {value}: .*--out"):
        RunFolder(run_copy).adopt(None, [word], None)
    assert (run_copy / "config.yaml").read_text() == config


def test_an_edited_file_of_settings_counts_when_the_run_goes_on_and_what_it_says_as_before_does_not(tmp_path):
    """Sizes of --budget and weights of --init-from lie over the file, and the same command does not repeat them."""
    run, file = RunFolder(tmp_path / "run"), tmp_path / "mine.yaml"
    file.write_text("base: digits\nprior: {dim: 32, depth: 2}\nsampling: {steps: 4}\n")
    first = run.adopt(str(file), ["sampling.temperature=0.5"], "digits", over={"prior": {"dim": 64}})
    assert run.adopt(str(file), [], None) == first and first.prior.dim == 64
    file.write_text("base: digits\nprior: {dim: 32, depth: 3}\nsampling: {steps: 5}\ntrackers: []\n")
    second = run.adopt(str(file), [], None)
    assert (second.prior.dim, second.prior.depth, second.sampling.steps, second.trackers) == (64, 3, 5, ())
    assert second.sampling.temperature == 0.5 and second.data.location == "digits"
    assert run.adopt(str(file), ["sampling.steps=6"], None).sampling.steps == 6
    assert run.adopt(str(file), [], None).sampling.steps == 6  # nothing was edited since
    file.write_text("base: cifar10\nsampling: {steps: 5}\n")
    assert run.adopt(str(file), [], None).tokenizer.image_size == 32
    run.prior.mkdir()
    file.write_text("base: cifar10\nprior: {depth: 1}\n")
    with pytest.raises(SettingError, match=r"prior\.depth=\d+, .* 1: .*--out"):
        run.adopt(str(file), [], None)


def test_a_line_taken_out_of_a_file_of_settings_counts_no_longer(tmp_path):
    """The base's value comes back, a default where it has none, as in a new run of the same file."""
    run, file = RunFolder(tmp_path / "run"), tmp_path / "mine.yaml"
    file.write_text("base: photos64\nprior_training: {learning_rate: 5e-4, beta2: 0.9}\nsampling: {temperature: 0.5}\n")
    first = run.adopt(str(file), [], "digits")
    assert (first.prior_training.learning_rate, first.prior_training.beta2) == (5e-4, 0.9)
    assert run.adopt(None, [], None) == first  # which does not read the file
    file.write_text("base: photos64\nsampling: {temperature: 0.6}\n")
    run.adopt(None, [], None)
    second, new = (RunFolder(path).adopt(str(file), [], "digits") for path in (run.path, tmp_path / "new"))
    assert second == new and new.prior_training.learning_rate == 1e-3
    assert run.adopt(str(file), [], None) == second
    run.prior.mkdir()
    file.write_text("base: photos64\nprior: {depth: 2}\n")
    with pytest.raises(SettingError, match=r"prior\.depth=\d+"):
        run.adopt(str(file), [], None)


def test_what_was_said_over_a_line_stays_when_the_line_is_taken_out(tmp_path):
    """On the command line, by --budget or by --init-from, now or when the run began; and so do its images."""
    run, file = RunFolder(tmp_path / "run"), tmp_path / "mine.yaml"
    lines = "prior: {dim: 32}\nprior_training: {learning_rate: 5e-4}\nsampling: {temperature: 0.5}\n"
    file.write_text(f"base: digits\ndata: {{location: digits, captions: none}}\n{lines}")
    first = run.adopt(str(file), ["prior_training.learning_rate=2e-4"], None, over={"prior": {"dim": 64}})
    file.write_text("base: digits\n")
    second = run.adopt(str(file), ["sampling.temperature=0.5"], None)
    assert (second.prior.dim, second.prior_training.learning_rate, second.sampling.temperature) == (64, 2e-4, 0.5)
    assert second.data == replace(first.data, captions="auto")
    third = run.adopt("cifar10", [], None)
    assert run.adopt("cifar10", [], None) == third  # the file's lines are another preset's


def test_a_base_that_is_taken_out_counts_no_longer(tmp_path):
    run, file = RunFolder(tmp_path / "run"), tmp_path / "mine.yaml"
    file.write_text("base: digits\nseed: 3\n")
    run.adopt(str(file), [], "digits")
    for base in ("base: cifar10\n", ""):
        file.write_text(f"{base}seed: 3\n")
        assert run.adopt(str(file), [], None) == RunFolder(tmp_path / f"new{base[:4]}").adopt(str(file), [], "digits")


def test_a_path_taken_out_of_a_file_of_settings_counts_no_longer(tmp_path, monkeypatch):
    """config.yaml holds it made absolute."""
    monkeypatch.chdir(tmp_path)
    Path("captions.jsonl").touch()
    file = Path("mine.yaml")
    file.write_text("base: digits\ndata: {captions: captions.jsonl}\n")
    assert RunFolder("run").adopt("mine.yaml", [], "digits").data.captions == str(tmp_path / "captions.jsonl")
    file.write_text("base: digits\n")
    assert RunFolder("run").adopt("mine.yaml", [], None).data.captions == "auto"


def test_what_a_base_of_a_base_says_counts_when_it_is_edited(tmp_path):
    run, below, above = RunFolder(tmp_path / "run"), tmp_path / "below.yaml", tmp_path / "above.yaml"
    below.write_text("base: digits\nseed: 1\n")
    above.write_text(f"base: {below}\nsampling: {{steps: 4}}\n")
    assert run.adopt(str(above), [], "digits").seed == 1
    below.write_text("base: digits\nseed: 2\n")
    assert run.adopt(str(above), [], None).seed == 2
    run.preset.unlink()  # as in a run of before
    below.write_text("base: digits\nseed: 3\n")
    assert run.adopt(str(above), [], None).seed == 2


def test_a_run_that_goes_on_keeps_its_words_and_its_preset_says_nothing_new(tmp_path, tiny_overrides):
    run = RunFolder(tmp_path / "run")
    first = run.adopt("digits", [*tiny_overrides, "seed=3"], "digits")
    assert run.adopt("digits", [], "digits") == run.adopt(None, [], None) == first
    assert run.adopt(None, ["prior_training.steps=9"], None).prior_training.steps == 9


def test_what_no_stage_has_begun_to_train_can_still_change(tmp_path, tiny_overrides):
    run = RunFolder(tmp_path / "run")
    run.adopt("digits", tiny_overrides, "digits")
    assert run.adopt("emoji64", [], None).tokenizer.image_size == 64
    run.adopt("digits", tiny_overrides, "digits")
    train(run.path, [], data=None, stages=["tokenizer"])
    assert run.adopt(None, ["prior.dim=64"], None).prior.dim == 64
    with pytest.raises(SettingError, match=r"tokenizer\.code_bits=\d+.* 8: .*--out"):
        run.adopt(None, ["tokenizer.code_bits=8"], None)


def test_another_network_in_the_checkpoints_is_one_sentence(tmp_path, tiny_overrides):
    overrides = [*tiny_overrides, "objective.adversarial=0.5", "objective.discriminator_layers=1"]
    run = train(tmp_path / "run", [*overrides, "objective.discriminator_channels=8"], stages=["tokenizer"])
    with pytest.raises(CheckpointError, match=r"checkpoints/tokenizer .*discriminator .*--out"):
        train(run.path, ["objective.discriminator_channels=16", "tokenizer_training.steps=8"], stages=["tokenizer"])


def test_a_new_tokenizer_and_an_old_prior_are_no_pipeline(run_copy):
    run = train(run_copy, ["tokenizer_training.steps=8"], data=None, stages=["tokenizer"])
    assert not run.index.exists()
    assert train(run_copy, [], data=None).index.exists()


def test_guidance_without_classes_is_refused_before_training(tmp_path, image_folder, tiny_overrides):
    overrides, folder = [*tiny_overrides, "sampling.guidance_scale=3"], str(image_folder(40))
    with pytest.raises(SettingError, match="guidance_scale=3"):
        train(tmp_path / "run", overrides, data=folder)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("dropout", [0, 1])
def test_guidance_that_a_prior_is_not_trained_for_is_refused_before_training(
    tmp_path, image_folder, tiny_overrides, dropout
):
    """Whoever asked for it; without classes there is no condition to leave out."""
    overrides = [*tiny_overrides, f"prior.label_dropout={dropout}", "sampling.guidance_scale=3", "prior.guide=0.5"]
    said = rf"label_dropout={dropout} .*guidance_scale=3 .*label_dropout=0\.1"
    with pytest.raises(SettingError, match=said):
        train(tmp_path / "run", overrides)
    assert not (tmp_path / "run" / "checkpoints").exists()
    for name, words in {"a": ["sampling.guidance_scale=1"], "b": ["prior.class_conditional=false"]}.items():
        run = RunFolder(tmp_path / name)
        assert Recipe(run.adopt("digits", [*overrides, *words], "digits"), run, lambda _: None).images()
    run, folder = RunFolder(tmp_path / "c"), str(image_folder(40))
    assert Recipe(run.adopt("digits", overrides, folder), run, lambda _: None).images()


def test_the_guidance_of_a_preset_is_left_out_where_there_are_no_classes(tmp_path, image_folder, tiny_overrides):
    overrides = [*tiny_overrides, "tokenizer_training.steps=1", "prior_training.steps=1", "sampling.steps=2"]
    assert load_settings("cifar10").sampling.guidance_scale == 4
    for name, classes, guidance in (("with", 2, 4.0), ("without", 0, 1.0)):
        run = RunFolder(tmp_path / name)
        folder = str(image_folder(50, size=32, classes=classes, name=f"images-{name}"))
        said: list[str] = []
        Recipe(run.adopt("cifar10", overrides, folder), run, said.append).train()
        pipe = bld.BinaryLatentDiffusionPipeline.from_pretrained(run.path)
        assert pipe.index.sampling.guidance_scale == guidance and len(pipe(2, generator=0).images) == 2
        assert any("cifar10" in line for line in said) == (not classes)


def test_the_bound_on_held_out_codes_visits_every_step_equally_often(tmp_path, tiny_overrides):
    """An untrained prior with the evidence term knows exactly that bits are fair coins: 1 bit per bit."""
    overrides = [*tiny_overrides, "prior_training.steps=1", "data.held_out=5", "prior_training.learning_rate=1e-9"]
    run = train(tmp_path / "run", overrides)
    bits = [line[DRAWN_BOUND] for line in run.read_metrics() if DRAWN_BOUND in line]
    # 64 codes × 512 bits noised to 64 steps: six standard deviations of the estimate are about 0.1.
    assert bits[-1] == pytest.approx(1, abs=0.1)


def test_a_budget_is_kept_and_anneals_the_learning_rate_to_the_end(tmp_path, tiny_overrides):
    run = RunFolder(tmp_path / "run")
    overrides = [*tiny_overrides, "tokenizer_training.steps=1000000", "prior_training.steps=1000000"]
    overrides += ["tokenizer_training.log_every_steps=1", "prior_training.log_every_steps=1"]
    started = time.monotonic()
    Recipe(run.adopt("digits", overrides, "digits"), run, lambda _: None, budget_seconds=10).train()
    assert time.monotonic() - started < 300  # about stopping at all: a million steps take a day
    heard: list[str] = []
    Recipe(run.adopt(None, [], None), run, heard.append, budget_seconds=10).train()
    assert sum("trained already" in line for line in heard) == 2
    for stage in ("tokenizer", "prior"):
        rates = [line["learning_rate"] for line in run.read_metrics() if line["stage"] == stage and "loss" in line]
        assert rates[-1] < 0.05 * max(rates)


def test_a_prior_that_had_its_part_of_a_budget_goes_on_when_all_of_it_is_asked_for(run_copy):
    """And not when a run asks again for both, or when it has had all; older runs did not tell the two apart."""
    run, heard = RunFolder(run_copy), []
    settings = run.settings()

    def recipe() -> Recipe:
        heard.clear()
        return Recipe(settings, run, heard.append, budget_seconds=3600)

    for stage in ("tokenizer", "prior"):
        run.record(stage, goal={"steps": 6, "budget_seconds": 3600, "shared": True})
    recipe().train()
    assert sum("trained already" in line for line in heard) == 2
    asked = recipe()
    asked._run = lambda stage, seconds: heard.append(f"{stage.name} has {seconds:g} s")
    asked.train_prior(3600)
    assert "prior has 3600 s" in heard and not any("trained already" in line for line in heard)
    for stage in ("tokenizer", "prior"):
        run.record(stage, goal={"steps": 6, "budget_seconds": 3600})
    recipe().train()
    recipe().train_prior(3600)
    assert sum("trained already" in line for line in heard) == 1


def test_a_stage_that_has_its_steps_says_so_with_the_cure_and_changes_nothing(run_copy):
    """However much time it is given: steps and budget both end it, and these steps are done."""
    run, heard = RunFolder(run_copy), []
    before = {path: path.read_bytes() for path in (run_copy / "progress.json", run.metrics, run.index)}
    kept = [weights(run, part) for part in ("tokenizer", "prior")]
    for _ in range(2):  # the second time too
        heard.clear()
        recipe = Recipe(run.adopt(None, [], None), run, heard.append)
        recipe.train_tokenizer(3600.0)
        Recipe(run.settings(), run, heard.append, budget_seconds=3600).train_tokenizer(3600.0)
        Recipe(run.settings(), run, heard.append, budget_seconds=3600).train_prior(3600.0)
        for stage in ("tokenizer", "prior"):
            cure = f"The {stage} has its 6 steps already: for more, give {stage}_training.steps=…"
            assert sum(cure in line for line in heard) == 1
        assert not any("goes on" in line for line in heard)
    assert {path: path.read_bytes() for path in before} == before
    assert all(same(weights(run, part), was) for part, was in zip(("tokenizer", "prior"), kept, strict=True))
    Recipe(run.adopt(None, ["sampling.steps=3"], None), run, heard.append, budget_seconds=3600).train_prior(3600.0)
    assert BinaryLatentDiffusionPipeline.from_pretrained(run.path).index.sampling.num_inference_steps == 3


def test_a_stage_that_has_had_its_time_says_so_with_the_cure(run_copy):
    run, heard = RunFolder(run_copy), []
    spent = run.progress()["prior"]["seconds"]
    settings = run.adopt(None, ["prior_training.steps=1000"], None)
    Recipe(settings, run, heard.append, budget_seconds=spent / 2).train_prior(spent / 2)
    assert any("The prior has had its " in line and "name a longer one with --budget" in line for line in heard)
    assert run.progress()["prior"]["seconds"] == spent and run.progress()["prior"]["steps"] == 6


def test_card_and_info_tell_how_a_run_was_trained_and_not_what_its_settings_came_to_say(run_copy, capsys):
    """Six steps of 32 images; then of other sizes, which were asked for and had no step, or had some."""
    run, more = RunFolder(run_copy), ["prior_training.batch_size=8", "prior_training.learning_rate=0.5"]

    def told():
        assert main(["info", str(run.path), "--images", "96"]) == 0
        info = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("prior training"))
        return dict(training(run.path))["training of the prior"], info

    rate = run.settings().prior_training.learning_rate
    train(run.path, more)
    card, info = told()
    assert f"6 steps of 32 at learning rate {rate}, in float32" in card and "6 steps of 32: 2.0 epochs" in info
    train(run.path, ["prior_training.steps=9"])
    card, info = told()
    assert f"9 steps, of 32 at learning rate {rate}, then of 8 at learning rate 0.5, in float32" in card
    assert "9 steps of 32, then of 8: 2.2 epochs" in info  # 192 + 24 of 96
    assert main(["info", str(run.path), "--images", "96", "prior_training.steps=12"]) == 0
    assert "12 steps of 8: 1.0 epochs" in capsys.readouterr().out  # a question of what it would cost
    progress = run.progress()
    del progress["prior"]["trained_with"]  # as in runs from before
    (run.path / "progress.json").write_text(json.dumps(progress))
    assert "9 steps of 8 at learning rate 0.5" in told()[0]


def test_every_process_previews_by_the_main_processs_clock_from_the_first_step_on(
    tmp_path, tiny_overrides, monkeypatch
):
    """This one's own clock is ahead, as after another share of the time was spent on loading."""
    looked = []
    monkeypatch.setattr(StageClock, "progress", lambda clock, step: 0.9)
    monkeypatch.setattr(loop.StageRun, "_agree", lambda run, progress, *asked: (run.step / 6, *asked))
    monkeypatch.setattr(loop.StageRun, "_evaluate", lambda run, log: looked.append(run.step))
    train(tmp_path / "run", [*tiny_overrides, "tokenizer_training.previews=3"], stages=["tokenizer"])
    assert looked[:2] == [2, 4]


def test_of_a_small_set_at_most_a_fifth_is_held_out_whatever_number_a_preset_names(
    tmp_path, image_folder, tiny_overrides
):
    overrides = [
        *tiny_overrides,
        "data.held_out=1000",
        "tokenizer_training.batch_size=8",
        "prior_training.batch_size=8",
    ]
    run = train(tmp_path / "run", overrides, data=str(image_folder(40)))
    assert CodeCache(run.codes).key.images == 32
    opened = open_run(run, torch.device("cpu"))
    assert len(opened.held_out) == 8 and not opened.missing


def test_fewer_images_than_a_batch_are_refused_with_the_cure(tmp_path, image_folder, tiny_overrides):
    with pytest.raises(DataError, match=r" 32: .*tokenizer_training\.batch_size=\d"):
        train(tmp_path / "run", tiny_overrides, data=str(image_folder(20)))


def test_unlabelled_images_train_an_unconditional_prior(tmp_path, image_folder, tiny_overrides):
    overrides = [*tiny_overrides, "tokenizer_training.batch_size=8", "prior_training.batch_size=8", "data.flip=true"]
    run = train(tmp_path / "run", overrides, data=str(image_folder(20, size=12)))
    assert json.loads((run.prior / "config.json").read_text())["num_classes"] == 0
    assert (run.codes / "codes.bin").stat().st_size == 18 * 4 * 64  # two flips, two draws


@pytest.mark.parametrize("target", ["z0", "previous"])
def test_every_target_trains_and_samples(tmp_path, tiny_overrides, target):
    overrides = [*tiny_overrides, f"diffusion.target={target}", "diffusion.steps=8", "sampling.steps=8"]
    run = train(tmp_path / "run", [*overrides, "prior_training.log_every_steps=1"])
    losses = [line["loss"] for line in run.read_metrics() if line["stage"] == "prior" and "loss" in line]
    assert len(losses) == 6 and all(map(math.isfinite, losses))
    pipe = BinaryLatentDiffusionPipeline.from_pretrained(run.path)
    assert pipe.diffusion.target == target
    assert len(pipe(2, generator=0).images) == 2 and list(run.samples.glob("prior-*.png"))


@pytest.mark.parametrize("weight", ["fixed", "adaptive"])
def test_the_adversarial_term_starts_late_ramps_and_trains(tmp_path, tiny_overrides, weight):
    overrides = [*tiny_overrides, "objective.adversarial=0.5", f"objective.adversarial_weight={weight}"]
    overrides += ["objective.adversarial_start=0.5", "objective.discriminator_channels=8"]
    overrides += ["objective.discriminator_layers=1", "tokenizer_training.log_every_steps=1"]
    run = train(tmp_path / "run", overrides, stages=["tokenizer"])
    lines = [line for line in run.read_metrics() if "loss" in line]
    assert ["adversarial" in line for line in lines] == [False] * 4 + [True] * 2
    assert all(math.isfinite(line["discriminator"]) for line in lines[4:])


def test_steps_that_are_not_finite_are_skipped_and_stop_the_run_when_they_repeat(tmp_path, tiny_overrides, monkeypatch):
    overrides = [*tiny_overrides, "tokenizer_training.steps=50"]
    monkeypatch.setattr("bld.tokenizer.losses.F.mse_loss", lambda a, b: (a - b).square().mean() * float("nan"))
    with pytest.raises(DivergedError, match="learning_rate"):
        train(tmp_path / "run", overrides, stages=["tokenizer"])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted_by_its_network(bad):
    networks = {name: torch.nn.Linear(3, 1) for name in ("tokenizer", "discriminator")}
    optimizers = {name: torch.optim.AdamW(net.parameters(), lr=0.1, fused=True) for name, net in networks.items()}
    update = Update(
        Accelerator(cpu=True), networks, optimizers, 1.0, {name: torch.zeros(2).long() for name in networks}
    )

    def step(name: str, factor: float) -> None:
        update(name, networks[name](torch.ones(2, 3)).sum() * factor)

    def state(name: str) -> list[torch.Tensor]:
        moments = [tensor for each in optimizers[name].state.values() for tensor in each.values()]
        return [tensor.clone() for tensor in [*networks[name].parameters(), *moments]]

    step("tokenizer", 1.0)
    before = state("tokenizer")
    for count in (1, 2):
        step("tokenizer", bad)
        step("discriminator", 1.0)
        assert all(torch.equal(a, b) for a, b in zip(before, state("tokenizer"), strict=True))
        assert update.skips() == (count, count)  # the other network's good step ends no row
        assert all(parameter.grad is None for parameter in networks["tokenizer"].parameters())
    step("discriminator", bad)
    assert update.skips() == (3, 2)
    step("tokenizer", 1.0)
    assert update.skips() == (3, 1)
    assert not torch.equal(before[0], state("tokenizer")[0])


@pytest.mark.parametrize("overflows", [False, True])
def test_under_a_loss_scale_micro_batches_of_both_networks_count_alike_and_overflow_costs_its_own_step(overflows):
    """Each of three micro-batches has a weight of its own, so that its share of the gradient is seen."""
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu")
    networks = {name: torch.nn.Linear(3, 1, bias=False) for name in ("tokenizer", "discriminator")}
    optimizers = {
        name: accelerator.prepare_optimizer(torch.optim.AdamW(net.parameters(), lr=0.1, fused=True))
        for name, net in networks.items()
    }
    update = Update(accelerator, networks, optimizers, 0.0, {name: torch.zeros(2).long() for name in networks})
    moved_by = {}
    for name, net in networks.items():
        optimizers[name].optimizer.register_step_pre_hook(
            lambda *_, name=name, net=net: moved_by.update({name: net.weight.grad.clone()})
        )
    before = networks["tokenizer"].weight.clone()
    for part in range(3):
        update.is_last = part == 2
        update("tokenizer", networks["tokenizer"].weight[0, part] * (math.inf if overflows and part == 2 else 1))
        update("discriminator", networks["discriminator"].weight[0, part])
    update.finish()
    assert moved_by["discriminator"].tolist() == [[1, 1, 1]]
    assert overflows or moved_by["tokenizer"].tolist() == [[1, 1, 1]]
    assert torch.equal(before, networks["tokenizer"].weight) == overflows
    assert accelerator.scaler.get_scale() == (2**15 if overflows else 2**16)
    assert [int(count[0]) for count in update.skipped.values()] == [overflows, 0]


def test_a_loss_scale_goes_on_where_it_was_and_each_stage_begins_with_its_own(tmp_path, tiny_overrides, monkeypatch):
    """A scale halves at an overflow, and doubles after 2,000 steps without one, which its tracker counts."""

    def scaled(*_: object) -> Accelerator:
        accelerator = Accelerator(cpu=True)
        accelerator.scaler = torch.amp.GradScaler("cpu")
        return accelerator

    def scale_after(*overrides: str, stages=("tokenizer",)) -> tuple[float, int]:
        train(run.path, [*overrides], stages=stages)
        saved = run.checkpoints(stages[-1]).latest(pytest.fail).numbers["loss_scale"]
        return saved["scale"], saved["_growth_tracker"]

    monkeypatch.setattr("bld.training.recipe.make_accelerator", scaled)
    run = RunFolder(tmp_path / "run")
    assert scale_after(*tiny_overrides, "tokenizer_training.steps=3") == (2**16, 3)
    store = run.checkpoints("tokenizer")
    saved = store.latest(pytest.fail)
    saved.numbers["loss_scale"]["scale"] = 1024.0
    store.save(saved)
    assert scale_after("tokenizer_training.steps=5") == (1024, 5)
    assert scale_after("tokenizer_training.steps=6", stages=("tokenizer", "prior")) == (2**16, 6)
    del saved.numbers["loss_scale"]  # as in older versions
    store.clear()
    store.save(saved)
    assert scale_after("tokenizer_training.steps=7") == (2**16, 4)


def test_a_step_waits_for_nothing_that_the_device_computes():
    """No number of a step is read on the host: on a GPU each such read would wait for all that was asked of it."""

    class NoReads(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert "local_scalar_dense" not in str(func), "a tensor was read on the host"
            return func(*args, **(kwargs or {}))

    network = torch.nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, fused=True)
    update = Update(
        Accelerator(cpu=True), {"prior": network}, {"prior": optimizer}, 1.0, {"prior": torch.zeros(2).long()}
    )
    with NoReads():
        for _ in range(3):
            update("prior", network(torch.ones(2, 3)).sum())
        with pytest.raises(AssertionError, match="read on the host"):
            update.skips()


def test_the_order_visits_every_image_once_an_epoch_and_is_shared_fairly():
    order = KeyedOrder(images=10, batch_size=4, seed=0, purpose="test")
    row = np.concatenate([order.indices(order.positions(step)) for step in range(5)])
    assert sorted(row[:10]) == sorted(row[10:]) == list(range(10))
    assert list(row[:10]) != list(row[10:])
    for processes in (2, 3):
        shares = [order.positions(2, rank, processes) for rank in range(processes)]
        assert [p for share in shares for p in share] == list(order.positions(2))


@pytest.mark.parametrize("stage", ["tokenizer", "prior"])
def test_a_training_that_goes_on_with_another_batch_takes_each_next_image_once(run_copy, monkeypatch, stage):
    """Six steps of 32 are done; the draws of each image go by its position too.  As many of 32 are the same as ever."""
    taken = []
    kind = {"tokenizer": TokenizerStage, "prior": PriorStage}[stage]
    honest = kind.train_step

    def step(self, batch, *rest):
        taken.append(batch[1] if stage == "tokenizer" else batch.positions)
        return honest(self, batch, *rest)

    monkeypatch.setattr(kind, "train_step", step)
    words = [f"{stage}_training.batch_size=10", f"{stage}_training.accumulate=3", f"{stage}_training.steps=8"]
    train(run_copy, words, None, stages=[stage])
    assert [position for part in taken for position in part] == list(range(6 * 32, 6 * 32 + 20))
    taken.clear()
    words = [f"{stage}_training.batch_size=40", f"{stage}_training.accumulate=1", f"{stage}_training.steps=9"]
    train(run_copy, words, None, stages=[stage])
    assert taken == [range(6 * 32 + 20, 6 * 32 + 60)]
    order, older = (KeyedOrder(10, 4, 0, "test", *begun) for begun in ((), (3, 12)))
    assert [order.positions(s, 1, 3) for s in (3, 9)] == [older.positions(s, 1, 3) for s in (3, 9)]


def test_what_is_measured_is_spread_over_the_images_and_always_the_same():
    chosen = spread(1000, 100, seed=0)
    assert len(set(chosen)) == 100 and chosen == spread(1000, 100, seed=0)
    assert max(chosen) > 900 and chosen != sorted(chosen)
    assert sorted(spread(5, 100, seed=0)) == list(range(5))


def test_the_average_starts_close_to_the_model_and_ends_with_its_decay():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    average = WeightAverage(model, decay=0.9)
    torch.nn.init.ones_(model.weight)
    average.update(1)
    assert average.model.weight.item() == pytest.approx(1 - 2 / 11)
    for _ in range(1000):
        average.update(10_000)
    assert average.model.weight.item() == pytest.approx(1)


def test_learning_rates_warm_up_then_decay_as_told():
    settings = TrainingSettings(learning_rate=1.0, warmup_steps=10, decay="constant")
    assert learning_rate(0, 0, settings, budgeted=False) == pytest.approx(0.1)
    assert learning_rate(9, 0.5, settings, budgeted=False) == 1.0
    assert learning_rate(50, 1.0, settings, budgeted=False) == 1.0
    assert learning_rate(50, 1.0, settings, budgeted=True) == pytest.approx(0.0)
    assert learning_rate(0, 0.05, settings, budgeted=True) > 0.99  # a warm-up takes 5% of a budget at most
    linear = TrainingSettings(learning_rate=1.0, warmup_steps=0, decay="linear")
    assert learning_rate(3, 0.25, linear, budgeted=False) == 0.75


def test_a_clock_ends_with_the_steps_or_the_budget_whichever_comes_first():
    assert StageClock(steps=10).progress(5) == 0.5
    assert StageClock(steps=10, budget_seconds=100, seconds=90).progress(5) == pytest.approx(0.9, abs=0.01)
    assert StageClock(steps=10, budget_seconds=100, seconds=900).progress(5) == 1.0


def test_a_vanished_run_or_a_damaged_config_is_one_sentence(run_copy, tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing .*config\.yaml"):
        RunFolder(tmp_path / "nothing").settings()
    (run_copy / "config.yaml").write_text("{[")
    with pytest.raises(CheckpointError, match="damaged"):
        RunFolder(run_copy).settings()
    shutil.rmtree(run_copy / "tokenizer")


def test_the_average_is_used_with_the_weights_it_has_now_in_bf16_too():
    """What a CPU keeps of a network's weights for bf16 is made anew once the average has moved."""
    torch.manual_seed(0)
    model = Denoiser(DenoiserConfig(4, 4, 8, steps=8, dim=32, depth=2, heads=2))
    torch.nn.init.normal_(model.head.weight)
    average = WeightAverage(model, 0.5)
    z, t = torch.randint(0, 2, (2, 16, 8)), torch.tensor([3, 4])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        average.model(z, t)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
        average.update(1000)
        assert torch.equal(average.model(z, t), copy.deepcopy(average.model)(z, t))

"""What a stage logs, and where: metrics.jsonl, TensorBoard, Weights & Biases (offline)."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from bld.errors import MissingPackageError, SettingError
from bld.training.config import load_settings
from bld.training.metrics_log import MetricsLog
from bld.training.recipe import Recipe
from bld.training.run_folder import RunFolder
from bld.training.settings import Settings


def log_steps(run, settings, steps, loss, start=0, picture=None):
    log = MetricsLog(run, "prior", settings, lambda _: None, start)
    for step in steps:
        log.write(step, 0.5 * step, {"loss": loss * step})
    if picture is not None:
        log.picture(steps[-1], picture)
    log.close()


def board(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.tensorboard / "prior"), size_guidance={"scalars": 0, "images": 0})
    return events.Reload()


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "preview.png"
    Image.fromarray(np.full((4, 6, 3), [250, 10, 20], np.uint8)).save(path)
    return path


def test_tensorboard_shows_each_step_once_after_a_resume_from_an_earlier_one(tmp_path, picture):
    run = RunFolder(tmp_path / "run")
    log_steps(run, Settings(), range(1, 6), loss=1.0)
    run.forget_metrics_after("prior", 3)
    log_steps(run, Settings(), range(4, 7), loss=2.0, start=3, picture=picture)
    events = board(run)
    logged = [(event.step, event.value) for event in events.Scalars("prior/loss")]
    assert logged == [(1, 1), (2, 2), (3, 3), (4, 8), (5, 10), (6, 12)]
    assert [(line["step"], line["loss"]) for line in run.read_metrics()] == logged
    (image,) = events.Images("prior/preview")
    assert (image.step, image.width, image.height) == (6, 6, 4)


def test_a_trained_run_shows_its_previews_and_metrics_in_tensorboard(trained_run):
    events = board(RunFolder(trained_run))
    assert "prior/held_out_loss" in events.Tags()["scalars"] and events.Tags()["images"] == ["prior/preview"]


def test_no_tracker_and_no_writing_process_leave_no_trackers_files(tmp_path, picture):
    run = RunFolder(tmp_path / "run")
    log_steps(run, load_settings(overrides=["trackers=[]"]), range(1, 3), loss=1.0, picture=picture)
    assert len(run.read_metrics()) == 2 and not run.tensorboard.exists()
    other = RunFolder(tmp_path / "other")
    log = MetricsLog(other, "prior", Settings(), lambda _: None, writes=False)
    log.write(1, 0.1, {"loss": 1.0})
    log.picture(1, picture)
    log.close()
    assert not other.path.exists()


def test_wandb_offline_keeps_metrics_pictures_and_settings_in_the_run_and_resumes_under_one_name(
    tmp_path, picture, monkeypatch
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run, settings = RunFolder(tmp_path / "run"), load_settings(overrides=["trackers=[wandb]", "seed=3"])
    log_steps(run, settings, range(1, 3), loss=1.0, picture=picture)
    first = json.loads((run.path / "wandb" / "ids.json").read_text())["prior"]
    log_steps(run, settings, range(3, 5), loss=1.0, start=2)
    assert json.loads((run.path / "wandb" / "ids.json").read_text())["prior"] == first
    kept = b"".join(path.read_bytes() for path in run.path.glob(f"wandb/offline-run-*/run-{first}.wandb"))
    assert kept.count(b"prior/loss") >= 4 and b"tokenizer_training" in kept
    assert len(list(run.path.glob("wandb/offline-run-*/files/media/images/prior/*.png"))) == 1
    assert not run.tensorboard.exists() and len(run.read_metrics()) == 4


def test_a_stage_begun_anew_is_a_new_run_of_wandb(tmp_path):
    from bld.training.metrics_log import _wandb_id

    run = RunFolder(tmp_path / "run")
    first = _wandb_id(run, "prior", is_new=True)
    assert _wandb_id(run, "prior", is_new=False) == first != _wandb_id(run, "prior", is_new=True)
    assert _wandb_id(run, "tokenizer", is_new=False) not in (first, _wandb_id(run, "prior", is_new=False))


def test_a_tracker_that_is_not_installed_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    run = RunFolder(tmp_path / "run")
    settings = run.adopt("digits", ["trackers=[wandb]"], "digits")
    with pytest.raises(MissingPackageError, match=r"binary-latent-diffusion\[wandb\]"):
        Recipe(settings, run, lambda _: None)


def test_without_tensorboard_one_sentence_says_so_and_metrics_go_on(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    said = []
    log = MetricsLog(RunFolder(tmp_path / "run"), "prior", Settings(), said.append)
    log.write(1, 0.1, {"loss": 1.0})
    log.close()
    assert len(said) == 1 and "extra: tensorboard" in said[0]
    assert len(RunFolder(tmp_path / "run").read_metrics()) == 1


@pytest.mark.parametrize("word, says", [("trackers=wandb", "trackers.* list"), ("trackers=[mlflow]", "wandb.*mlflow")])
def test_what_is_no_list_of_known_trackers_is_refused(word, says):
    with pytest.raises(SettingError, match=says):
        load_settings(overrides=[word])

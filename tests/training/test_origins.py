"""A run that began with another's model knows which of its held-out images that one was trained on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bld.cli import main
from bld.pipeline.card import metrics
from bld.training.run_folder import RunFolder

OVERRIDES = ["data.held_out=10", "tokenizer_training.steps=2", "prior_training.steps=2"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(50):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(
                tmp_path / "photos" / name / f"{name}{i:02d}.png"
            )
    return tmp_path / "photos"


def train(data: Path, out: Path, *words: str) -> RunFolder:
    assert main(["train", "--data", str(data), "--preset", "digits", "--out", str(out), *words]) == 0
    return RunFolder(out)


@pytest.mark.parametrize("first", ["photos", "photos/cats", "zip"])
def test_a_folder_of_the_same_pictures_has_been_seen_whatever_their_names(
    first: str, photos: Path, tmp_path: Path, tiny_overrides, capsys
):
    """On all and then on a part, on a part and then on all, on an archive without the folder and then on the folder."""
    given = [*tiny_overrides, *OVERRIDES, "prior.class_conditional=false"]
    place = photos.parent / first
    if first == "zip":
        place = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", photos / "cats"))
    one = train(place, tmp_path / "one", *given)
    second = photos / "cats" if first == "photos" else photos
    capsys.readouterr()
    run = train(second, tmp_path / "two", *given, "--init-from", str(one.path), "data.held_out_seed=7")
    said = capsys.readouterr().out
    assert f"of the 10 held-out images were trained on in {one.path}" in said
    assert run.progress()["data"] == {"held_out_are_unseen": False}
    page = (run.path / "report.html").read_text()
    assert 'id="seen-before"' in page and "that the training never saw" not in page
    told = [how for _, _, how in metrics(run.path, {})]
    assert told and not any("held-out" in how for how in told)
    out = run.path / "evaluation.json"
    assert main(["evaluate", str(run.path), "--metrics", "psnr"]) == 0
    assert json.loads(out.read_text())["counts"]["psnr"] == {"partly_seen": 10}


def test_other_pictures_have_not_been_seen(photos: Path, tmp_path: Path, tiny_overrides):
    given = [*tiny_overrides, *OVERRIDES, "prior.class_conditional=false"]
    one = train(photos / "dogs", tmp_path / "one", *given)
    run = train(photos / "cats", tmp_path / "two", *given, "--init-from", str(one.path))
    assert run.progress()["data"] == {"held_out_are_unseen": True}
    assert any("held-out images" in how for _, _, how in metrics(run.path, {}))

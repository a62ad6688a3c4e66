"""Which of some images a run was trained on: they are known again wherever they lie, and others are not."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bld.data import ImageSet
from bld.training.known_images import KnownImages, known_images
from bld.training.run_folder import RunFolder
from bld.training.run_images import DataRecord, images_of_run


def coloured(folder: Path, seed: int = 0, each: int = 20) -> Path:
    rng = np.random.default_rng(seed)
    for name in ("apple", "bread"):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / name / f"{i:02d}.png")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """One that is about to train on the images of tmp_path/data."""
    run = RunFolder(tmp_path / "run")
    data = coloured(tmp_path / "data")
    settings = run.adopt("digits", ["tokenizer.image_size=8", "data.held_out=8"], str(data))
    images_of_run(run, settings, opened(run, data), writes=True)
    return run


def opened(run: RunFolder, data: Path) -> ImageSet:
    return ImageSet.open(str(data), run.settings().preprocessing())


def known(run: RunFolder, data: Path) -> KnownImages:
    return known_images(run, opened(run, data))


def test_a_runs_own_images_are_divided_as_in_its_training_wherever_they_lie(run, tmp_path):
    images = opened(run, tmp_path / "data")
    train, held_out, _ = images_of_run(run, run.settings(), images)
    for place in (tmp_path / "data", Path(shutil.copytree(tmp_path / "data", tmp_path / "copy"))):
        found = known(run, place)
        assert found.train is not None and found.held_out is not None
        assert (found.train.names, found.held_out.names) == (train.names, held_out.names)


def test_a_folder_among_a_runs_images_is_divided_as_they_are(run, tmp_path):
    _, held_out, _ = images_of_run(run, run.settings(), opened(run, tmp_path / "data"))
    for name in ("apple", "bread"):
        found = known(run, tmp_path / "data" / name)
        assert found.held_out is not None
        assert [f"{name}/{one}" for one in found.held_out.names] == [n for n in held_out.names if n.startswith(name)]


def test_a_folder_in_which_a_runs_images_lie_now_is_divided_as_they_are_and_has_others(run, tmp_path):
    shutil.copytree(tmp_path / "data", tmp_path / "all" / "fruit")
    coloured(tmp_path / "all" / "more", seed=1)
    train, held_out, _ = images_of_run(run, run.settings(), opened(run, tmp_path / "data"))
    found = known(run, tmp_path / "all")
    assert found.train is not None and found.held_out is not None
    assert found.train.names == [f"fruit/{name}" for name in train.names]
    its, others = ([name for name in found.held_out.names if name.startswith(where)] for where in ("fruit/", "more/"))
    assert its == [f"fruit/{name}" for name in held_out.names] and len(others) == 40


def test_names_that_end_alike_are_no_folders(run, tmp_path):
    """`pineapple/00.png` is not `apple/00.png` in a folder `pine`."""
    for name in ("apple", "bread"):
        shutil.copytree(tmp_path / "data" / name, tmp_path / "other" / f"pine{name}")
    found = known(run, tmp_path / "other")
    assert found.held_out is None and found.train is None and found.example


def test_images_of_which_some_were_trained_on_are_known_to_be(run, tmp_path):
    noted = DataRecord.read(run).contents
    train = images_of_run(run, run.settings(), opened(run, tmp_path / "data"))[0].names
    name = next(name for name in noted if name in train)
    other = coloured(tmp_path / "other", seed=1)
    shutil.copy(tmp_path / "data" / name, other / name)
    found = known(run, other)
    assert (found.train, found.held_out, found.example) == (None, None, name)
    flat = tmp_path / "flat"
    flat.mkdir()
    shutil.copy(tmp_path / "data" / name, flat)
    assert known(run, flat).example == Path(name).name


def test_other_images_and_held_out_ones_alone_are_not_taken_for_trained_on(run, tmp_path):
    assert known(run, coloured(tmp_path / "other", seed=1)) == KnownImages()
    held_out = images_of_run(run, run.settings(), opened(run, tmp_path / "data"))[1].names
    for name in held_out:
        (tmp_path / "held" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "data" / name, tmp_path / "held" / name)
    assert known(run, tmp_path / "held") == KnownImages()
    shutil.rmtree(tmp_path / "data")
    coloured(tmp_path / "data", seed=2)  # others in the same place
    assert known(run, tmp_path / "data") == KnownImages()


def test_a_run_without_a_record_knows_the_place_of_its_images_alone(run, tmp_path):
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    run.data.unlink()
    found = known(run, tmp_path / "data")
    assert found.held_out is not None and len(found.held_out) == 8 and found.train is not None
    assert known_images(run, found.held_out) == KnownImages()  # of some it is known as of all
    again = known_images(run, found.train)
    assert again.held_out is None and again.train is not None and again.train.names == found.train.names
    assert known(run, tmp_path / "copy") == KnownImages()
    assert known_images(RunFolder(tmp_path / "nothing"), opened(run, tmp_path / "data")) == KnownImages()

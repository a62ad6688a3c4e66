"""A run and its images: the same ones, on the same sides, under the same names, or a sentence."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bld.cli import main
from bld.data import ImageSet, Preprocessing, open_images
from bld.errors import DataError
from bld.evaluation.load_run import open_run
from bld.training.config import load_settings
from bld.training.init_from import InitRequest
from bld.training.origins import begun_with
from bld.training.recipe import Recipe
from bld.training.run_folder import RunFolder
from bld.training.run_images import LOOKED_AT, images_of_run, split_images

OVERRIDES = ["tokenizer.image_size=8", "tokenizer_training.batch_size=8", "prior_training.batch_size=8", "trackers=[]"]


def coloured(folder: Path, classes: list[str], each: int = 15, seed: int = 0, first: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(first, first + each):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / name / f"{i:02d}.png")
    return folder


@pytest.fixture
def begun(tmp_path: Path, tiny_overrides: list[str]) -> Callable[..., RunFolder]:
    """A run of a few steps on three classes; with prior=False its tokenizer alone."""

    def make(prior: bool = True) -> RunFolder:
        run = RunFolder(tmp_path / "run")
        data = coloured(tmp_path / "data", ["apple", "bread", "corn"])
        recipe = Recipe(run.adopt("digits", [*tiny_overrides, *OVERRIDES], str(data)), run, lambda _: None)
        recipe.train() if prior else recipe.train_tokenizer()
        return run

    return make


def parts(run: RunFolder, data: Path | None = None) -> tuple[set[str], set[str]]:
    settings = run.settings()
    everything = ImageSet.open(data or settings.data.location, settings.preprocessing())
    train, held_out, _ = images_of_run(run, settings, everything)
    return set(train.names), set(held_out.names)


def test_a_split_depends_on_names_alone_and_holds_out_as_many_as_asked(tmp_path):
    images = ImageSet.open(coloured(tmp_path / "a", ["x", "y"], each=100), Preprocessing(8))
    some = images.subset(range(0, 200, 2))
    line = images.line_for(0.1, seed=3)
    train, held = images.split_below(line, seed=3)
    assert len(held) == 20
    assert set(some.split_below(line, 3)[1].names) == set(held.names) & set(some.names)
    assert set(images.split(0.1, 4)[1].names) != set(held.names)
    assert not set(train.names) & set(held.names)


def test_images_keep_their_sides_when_others_come_and_go(begun, tmp_path):
    run = begun()
    train, held_out = parts(run)
    coloured(tmp_path / "data", ["apple"], each=25, seed=1, first=15)
    for name in sorted(train)[-3:] + sorted(held_out)[-1:]:
        (tmp_path / "data" / name).unlink()
    new_train, new_held_out = parts(run)
    before = train | held_out
    assert new_train & before <= train and new_held_out & before <= held_out
    assert len(new_train | new_held_out) == 45 + 25 - 4


def test_training_and_evaluation_divide_alike(begun):
    run = begun()
    opened = open_run(run, __import__("torch").device("cpu"))
    assert opened.train is not None and opened.held_out is not None
    assert (set(opened.train.names), set(opened.held_out.names)) == parts(run)
    assert opened.cache is not None and opened.cache.key.data == opened.train.fingerprint


def test_a_new_split_is_that_of_the_settings(begun):
    run = begun()
    settings = run.settings()
    everything = ImageSet.open(settings.data.location, settings.preprocessing())
    assert set(split_images(everything, settings)[1].names) == parts(run)[1]


def test_a_run_without_a_record_keeps_its_division_by_number_and_says_when_it_no_longer_holds(begun, tmp_path):
    run = begun()
    run.data.unlink()
    settings = run.settings()
    everything = ImageSet.open(settings.data.location, settings.preprocessing())
    train, held_out, remarks = images_of_run(run, settings, everything, writes=True)
    by_number = everything.split_by_number(settings.data.held_out_of(len(everything)), settings.seed)
    assert (train.names, held_out.names) == (by_number[0].names, by_number[1].names)
    assert remarks == [] and json.loads(run.data.read_text())["held_out_below"] is None
    coloured(tmp_path / "data", ["corn"], each=1, first=15)
    everything = ImageSet.open(settings.data.location, settings.preprocessing())
    assert any("by number" in remark for remark in images_of_run(run, settings, everything)[2])


def test_examples_are_held_out_images_of_the_division_that_the_training_begins_with(tmp_path, tiny_overrides):
    """Until its first checkpoint a run may get another seed, share or data; after it the examples stay."""
    data, run = coloured(tmp_path / "data", ["apple", "bread"]), RunFolder(tmp_path / "run")

    def held_out(*overrides: str) -> set[bytes]:
        recipe = Recipe(run.adopt("digits", [*tiny_overrides, *OVERRIDES, *overrides], str(data)), run, lambda _: None)
        return {image.numpy().tobytes() for image in recipe.images()[1].uint8_centre(range(len(recipe.images()[1])))}

    def examples() -> list[bytes]:
        pictures = [np.asarray(Image.open(path)) for path in run.example_images()]
        return [np.ascontiguousarray(picture.transpose(2, 0, 1)).tobytes() for picture in pictures]

    for overrides in (["data.held_out=9"], ["data.held_out=4", "seed=3"]):
        inside = held_out(*overrides)
        assert set(examples()) <= inside and len(examples()) == min(8, len(inside))
    kept = examples()
    Recipe(run.settings(), run, lambda _: None).train_tokenizer()
    stamps = [path.stat().st_mtime_ns for path in run.example_images()]
    held_out("seed=3", "data.held_out=4", "prior_training.steps=7")
    assert examples() == kept and [path.stat().st_mtime_ns for path in run.example_images()] == stamps


def test_held_out_images_that_a_given_tokenizer_was_trained_on_are_counted_with_the_cure(begun, tmp_path):
    """Also where the tokenizer's own folder is named; not for other images."""
    theirs = begun(prior=False)
    trained_on, _ = parts(theirs)

    def told(number: int, *words: str) -> tuple[list[str], RunFolder]:
        run = RunFolder(tmp_path / f"run{number}")
        request = InitRequest.from_options(run, ["prior"], *words)
        run.adopt("digits", [*OVERRIDES, *asked], str(tmp_path / "data"), over=request.settings())
        request.record(run)
        said: list[str] = []
        Recipe(run.settings(), run, said.append).images()
        return [line for line in said if "data.held_out_seed=" in line], run

    asked = ["seed=3", "data.held_out=9"]
    for number, words in enumerate([(str(theirs.path), None), (str(theirs.tokenizer), None)]):
        lines, run = told(number, *words)
        seen = len(parts(run)[1] & trained_on)
        assert len(lines) == 1 and lines[0].startswith(f"{seen} of the 9 ") and seen > 0
    cure = re.findall(r"data\.held_out\w*=\S+?(?=,? )", lines[0])
    assert len(cure) == 2
    asked = ["seed=3", *cure]
    assert told(3, str(theirs.path), None)[0] == []
    asked = ["seed=3", "data.held_out=9"]
    coloured(tmp_path / "data", ["apple", "bread", "corn"], seed=7)
    assert told(4, str(theirs.path), None)[0] == []


# -- other images -----------------------------------------------------------------------------------------


def test_other_images_are_refused_and_nothing_of_the_run_changes(begun, tmp_path, capsys):
    run, other = begun(), coloured(tmp_path / "other", ["apple", "bread", "corn"], seed=7)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path.name != "lock"}
    for command in ("train", "train-tokenizer", "encode", "train-prior"):
        assert main([command, "--data", str(other), "--out", str(run.path)]) == 2
        error = capsys.readouterr().err
        assert str(other) in error and f"--init-from {run.path}" in error and "classes" not in error
    assert {path: path.read_bytes() for path in before} == before


def test_images_replaced_in_their_place_are_refused_in_training_and_reported_as_missing(begun, tmp_path, capsys):
    run = begun()
    coloured(tmp_path / "data", ["apple", "bread", "corn"], seed=7)
    assert main(["train", "--out", str(run.path)]) == 2
    opened = open_run(run, __import__("torch").device("cpu"))
    assert opened.train is None and opened.missing.startswith(f"{tmp_path / 'data'} ")


def test_the_same_images_elsewhere_or_in_an_archive_are_the_same(begun, tmp_path, capsys):
    run = begun()
    (tmp_path / "data").rename(tmp_path / "moved")
    assert main(["train", "--data", str(tmp_path / "moved"), "--out", str(run.path)]) == 0
    assert run.settings().data.location == str(tmp_path / "moved")
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "moved")
    assert main(["train", "--data", str(tmp_path / "packed.zip"), "--out", str(run.path)]) == 0


def test_a_finished_run_whose_images_are_gone_is_still_finished(begun, tmp_path, capsys):
    run = begun()
    shutil.rmtree(tmp_path / "data")
    assert main(["train", "--out", str(run.path)]) == 0
    assert main(["train", "--data", str(tmp_path / "nowhere"), "--out", str(run.path)]) == 2


def test_what_a_run_began_with_is_followed_to_the_first_of_them(tmp_path):
    def run(name: str, **progress: dict[str, str]) -> RunFolder:
        made = RunFolder(tmp_path / name)
        made.path.mkdir()
        made.data.write_text("{}")
        for stage, entries in progress.items():
            made.record(stage, **entries)
        return made

    def origins(of: RunFolder) -> set[str]:
        return {str(Path(name).relative_to(tmp_path)) for name in begun_with(of)}

    def at(name: str) -> str:
        return str(tmp_path / name)

    run("a", prior={"init_from": at("z")})
    run("z")
    run("b", tokenizer={"given": at("a/tokenizer")}, prior={"init_from": at("y")})
    run("y", tokenizer={"init_from": at("nowhere")})
    assert origins(RunFolder(tmp_path / "b")) == {"a/tokenizer", "y"}
    assert origins(run("c", tokenizer={"given": at("b")})) == {"b", "a/tokenizer"}  # not what b's prior began with
    assert origins(run("d", prior={"init_from": at("b")})) == {"b", "a/tokenizer", "y"}
    both = {"init_from": at("b")}  # as --init-from notes it
    assert origins(run("g", tokenizer=both, prior=both)) == {"b", "a/tokenizer", "y"}
    assert origins(run("e", tokenizer={"init_from": at("e")})) == {"e"}  # no end is no trap
    assert origins(run("f")) == set()


def test_a_run_that_ended_with_its_budget_is_finished_without_its_images_too(tmp_path, tiny_overrides, capsys):
    data, out = coloured(tmp_path / "data", ["apple", "bread"]), tmp_path / "run"
    command = ["train", "--out", str(out), "--budget", "5m"]
    assert main([*command, "--data", str(data), "--preset", "digits", *tiny_overrides, *OVERRIDES]) == 0
    shutil.rmtree(data)
    assert main(command) == 0
    assert "trained already" in capsys.readouterr().out


def test_a_few_changed_images_are_remarked_on(begun, tmp_path):
    run = begun()
    looked_at = sorted(json.loads(run.data.read_text())["contents"])
    assert len(looked_at) == LOOKED_AT
    for name in looked_at[:3]:
        Image.new("RGB", (8, 8)).save(tmp_path / "data" / name)
    everything = ImageSet.open(tmp_path / "data", Preprocessing(8))
    assert images_of_run(run, run.settings(), everything)[2][0].startswith("3 of 16 ")


def test_images_as_large_as_the_run_may_read_are_known_again(begun, tmp_path, monkeypatch, capsys):
    """The usual limit is made smaller than these images here; the run's own is what it was trained with."""
    run = begun()
    coloured(tmp_path / "data", ["apple"], each=1, first=15, seed=1)  # so that contents are compared
    monkeypatch.setitem(open_images.__kwdefaults__, "max_pixels", 50)
    assert main(["train", "--out", str(run.path), "--data", str(tmp_path / "data"), "prior_training.steps=7"]) == 0
    assert "cannot be read" not in capsys.readouterr().out


def test_the_folder_of_the_run_must_not_lie_among_the_images(tmp_path, capsys):
    data = coloured(tmp_path / "data", ["apple", "bread"])
    for out in (data, data / "run", data / "apple" / "run"):
        assert main(["train", "--data", str(data), "--preset", "digits", "--out", str(out)]) == 2
        assert "lies inside" in capsys.readouterr().err
        assert not (out / "config.yaml").exists()


# -- classes ----------------------------------------------------------------------------------------------


def test_a_class_that_the_prior_does_not_know_is_refused_by_name(begun, tmp_path, capsys):
    run = begun()
    (tmp_path / "data" / "apple").rename(tmp_path / "data" / "zebra")
    for command in ("train", "train-prior", "encode"):
        assert main([command, "--out", str(run.path), "prior_training.steps=7"]) == 2
        assert "zebra" in capsys.readouterr().err


def test_classes_that_are_left_keep_their_numbers(begun, tmp_path):
    run = begun()
    shutil.rmtree(tmp_path / "data" / "apple")
    everything = ImageSet.open(tmp_path / "data", Preprocessing(8))
    train, _, _ = images_of_run(run, run.settings(), everything)
    assert train.classes == ["apple", "bread", "corn"]
    assert train.labels is not None
    numbers = dict(zip((name.split("/")[0] for name in train.names), train.labels.tolist(), strict=True))
    assert numbers == {"bread": 1, "corn": 2}


def test_before_the_prior_begins_classes_may_change(begun, tmp_path):
    run = begun(prior=False)
    (tmp_path / "data" / "apple").rename(tmp_path / "data" / "zebra")
    recipe = Recipe(run.settings(), run, lambda _: None)
    recipe.train_prior()
    assert json.loads(run.index.read_text())["classes"] == ["bread", "corn", "zebra"]


def test_a_damaged_record_is_a_sentence(begun):
    run = begun(prior=False)
    run.data.write_text('{"images": 3}')
    with pytest.raises(DataError, match=r"data\.json"):
        parts(run)


def test_notes_on_the_images_are_said_once_at_the_start(tmp_path, tiny_overrides):
    data = coloured(tmp_path / "data", ["apple", "bread"])
    (data / "notes.psd").write_bytes(b"8BPS")
    said: list[str] = []
    run = RunFolder(tmp_path / "run")
    Recipe(run.adopt("digits", [*tiny_overrides, *OVERRIDES], str(data)), run, said.append).train()
    assert [line for line in said if "notes.psd" in line] == open_images(data).notes


def test_settings_hold_from_any_folder_wherever_they_were_written(tmp_path, monkeypatch, tiny_overrides):
    coloured(tmp_path / "data", ["apple", "bread"])
    monkeypatch.chdir(tmp_path)
    settings = RunFolder(tmp_path / "run").adopt("digits", tiny_overrides, "data")
    assert settings.data.location == str(tmp_path / "data")
    (tmp_path / "mine.yaml").write_text("data: {location: data, held_out: 0.2}\n")
    assert RunFolder(tmp_path / "run2").adopt("mine.yaml", [], None).data.location == str(tmp_path / "data")
    assert load_settings("mine.yaml").data.location == "data"

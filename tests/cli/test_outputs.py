"""Commands write where nothing of anyone else's is, and print in any terminal."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bld.cli import main
from bld.cli.outputs import is_ours, refuse_made_otherwise
from bld.data import save_png
from bld.errors import SettingError
from bld.io.files import write_json
from bld.pipeline.sharing import ShareablePipeline
from bld.training.config import known_keys, load_settings
from bld.training.settings import leaves, settings_tree

QUICK = ["--steps", "1", "--num", "3"]


def mine(path: Path) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.new("RGB", (30, 20), "red").save(path)
    else:
        path.write_text('{"mine": true}')
    return path.read_bytes()


def inputs(folder: Path) -> tuple[str, str]:
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (8, 8), "green").save(folder / "image.png")
    Image.fromarray(np.tri(8).astype(np.uint8) * 255).save(folder / "mask.png")
    return str(folder / "image.png"), str(folder / "mask.png")


@pytest.mark.parametrize(("command", "file"), [
    ("sample", "000001.png"), ("sample", "grid.png"), ("sample", "settings.json"), ("inpaint", "002.png"),
    ("inpaint", "grid.png"), ("reconstruct", "pairs.png"), ("reconstruct", "psnr.json"), ("neighbours", "here.png"),
    ("evaluate", "here.json"), ("train-features", "config.json"), ("share", "README.md"),
])  # fmt: skip
def test_no_command_overwrites_or_uses_what_is_not_its_own(command, file, trained_run, tmp_path, capsys):
    out = tmp_path / "out"
    before = mine(out / file)
    image, mask = inputs(tmp_path / "in")
    words = {
        "sample": [trained_run, *QUICK, "--out", out],
        "inpaint": [trained_run, *QUICK, "--image", image, "--mask", mask, "--out", out],
        "reconstruct": [trained_run, "--data", tmp_path / "in", "--out", out],
        "neighbours": [trained_run, *QUICK, "--k", "2", "--out", out / file],
        "evaluate": [trained_run, "--metrics", "psnr", "--out", out / file],
        "train-features": ["--data", "digits", "--steps", "1", "--out", out],
        "share": [trained_run, "me/model", "--dry-run", out],
    }[command]
    assert main([command, *map(str, words)]) == 2
    error = capsys.readouterr().err
    assert file in error and len(error.strip().splitlines()) == 1
    assert (out / file).read_bytes() == before
    assert [path.name for path in out.iterdir()] == [file]


def share(run: Path, folder: Path) -> int:
    return main(["share", str(run), "me/model", "--dry-run", str(folder)])


@pytest.mark.parametrize("name", ["steps.png", "text_encoder/config.json", "model_index.json", "guide/a.json"])
def test_sharing_dry_leaves_every_file_of_others(name, trained_run, tmp_path):
    before = mine(tmp_path / "out" / name)
    assert share(trained_run, tmp_path / "out") == 2
    assert (tmp_path / "out" / name).read_bytes() == before and len([*(tmp_path / "out").iterdir()]) == 1


def test_a_model_of_another_program_is_not_ours(trained_run, tmp_path):
    index, weights = tmp_path / "model_index.json", tmp_path / "prior" / "model.safetensors"
    index.write_text('{"_class_name": "DDPMPipeline", "_diffusers_version": "0.30"}')
    weights.parent.mkdir()
    weights.write_bytes(b"mine")
    assert not is_ours(index) and share(trained_run, tmp_path) == 2 and weights.read_bytes() == b"mine"


def test_sharing_dry_replaces_no_other_model_and_no_run(trained_run, run_copy, tmp_path, capsys):
    assert share(trained_run, tmp_path / "a") == 0
    assert main(["train-prior", "--out", str(run_copy), "prior_training.steps=7"]) == 0
    for folder in (tmp_path / "a", trained_run, run_copy):
        before = (folder / "prior" / "model.safetensors").read_bytes()
        assert share(run_copy, folder) == 2 and str(folder) in capsys.readouterr().err
        assert (folder / "prior" / "model.safetensors").read_bytes() == before
        assert (folder / "README.md").exists() == (folder == tmp_path / "a")


def test_sharing_dry_replaces_a_page_that_it_wrote_and_none_that_a_person_wrote_or_changed(
    trained_run, tmp_path, capsys
):
    page = tmp_path / "out" / "README.md"
    assert share(trained_run, tmp_path / "out") == share(trained_run, tmp_path / "out") == 0
    written = page.read_text(encoding="utf-8")
    unsigned = written.rpartition("<!--")[0]
    for text in ("# My flowers\n", written.replace("## Limits", "## My limits"), written + "Mine.\n", unsigned):
        page.write_text(text, encoding="utf-8")
        capsys.readouterr()
        assert share(trained_run, tmp_path / "out") == 2
        error = capsys.readouterr().err
        assert str(page) in error and "move it away" in error and len(error.splitlines()) == 1
        assert page.read_text(encoding="utf-8") == text


def stopped_once(method):
    """A method that is interrupted when it is first called, after its work."""
    calls = []

    def stopped(*words, **options):
        method(*words, **options)
        calls.append(words)
        if len(calls) == 1:
            raise KeyboardInterrupt

    return stopped


@pytest.mark.parametrize("beside", [None, "notes.txt"])
def test_sharing_dry_that_was_interrupted_can_be_repeated(beside, trained_run, tmp_path, monkeypatch):
    out = tmp_path / "in" / "out"
    if beside:
        mine(out / beside)
    kept = [out / beside] if beside else []
    monkeypatch.setattr(ShareablePipeline, "save_card", stopped_once(ShareablePipeline.save_card))
    assert share(trained_run, out) == 130
    assert [path for path in (tmp_path / "in").rglob("*") if path.is_file()] == kept and out.exists() == bool(beside)
    assert share(trained_run, out) == 0
    names = {path.name for path in out.iterdir()}
    assert names == {"README.md", "model_index.json", "samples.png", "steps.png", "tokenizer", "prior", "diffusion",
                     *([beside] if beside else [])}  # fmt: skip
    assert [path.name for path in out.parent.iterdir()] == ["out"] and out.stat().st_mode & 0o777 == 0o755


def test_a_classifier_whose_writing_was_interrupted_can_be_trained_again(tmp_path, monkeypatch):
    words = ["train-features", "--data", "digits", "--steps", "1", "--out", str(tmp_path / "f")]
    monkeypatch.setattr("bld.evaluation.features.write_json", stopped_once(write_json))
    assert main(words) == 130 and not (tmp_path / "f").exists()
    assert main(words) == 0 and (tmp_path / "f" / "model.safetensors").is_file()


def test_a_classifier_takes_the_place_of_no_other_model(trained_run, tmp_path, capsys):
    folder = tmp_path / "tokenizer"
    shutil.copytree(trained_run / "tokenizer", folder)
    before = (folder / "model.safetensors").read_bytes()
    assert main(["train-features", "--data", "digits", "--steps", "1", "--out", str(folder)]) == 2
    assert (folder / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "name", ["data.json", "report.html", "metrics.jsonl", "tokenizer/config.json", "samples/a.png"]
)
def test_a_run_begins_over_no_file_of_others(name, tmp_path, tiny_overrides, capsys):
    out = tmp_path / "project"
    before = mine(out / name)
    words = ["train", "--data", "digits", "--preset", "digits", "--out", str(out), *tiny_overrides]
    assert main(words) == 2 and name.split("/")[0] in capsys.readouterr().err
    assert (out / name).read_bytes() == before and not (out / "config.yaml").exists()


def test_a_run_begins_beside_unrelated_files(tmp_path, tiny_overrides):
    before = mine(tmp_path / "notes.json")
    words = ["train-tokenizer", "--data", "digits", "--preset", "digits", "--out", str(tmp_path), *tiny_overrides]
    assert main(words) == 0 and main(words) == 0 and (tmp_path / "notes.json").read_bytes() == before


def test_other_files_in_the_folder_are_left_alone(trained_run, tmp_path):
    before = mine(tmp_path / "holiday.png")
    assert main(["sample", str(trained_run), *QUICK, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "holiday.png").read_bytes() == before


def test_what_a_command_wrote_it_may_write_again(trained_run, tmp_path):
    image, mask = inputs(tmp_path / "in")
    for words in (
        ["sample", str(trained_run), *QUICK, "--out", str(tmp_path / "s")],
        ["inpaint", str(trained_run), *QUICK, "--image", image, "--mask", mask, "--out", str(tmp_path / "i")],
        ["reconstruct", str(trained_run), "--data", str(tmp_path / "in"), "--out", str(tmp_path / "r")],
        ["neighbours", str(trained_run), *QUICK, "--k", "2", "--out", str(tmp_path / "n.png")],
        ["share", str(trained_run), "me/model", "--dry-run", str(tmp_path / "d")],
    ):
        assert main(words) == 0 and main(words) == 0


def test_our_files_say_so(tmp_path):
    save_png(Image.new("RGB", (2, 2)), tmp_path / "a.png")
    save_png(Image.new("RGB", (2, 2)), tmp_path / "b.png", sheet=True)
    Image.new("RGB", (2, 2)).save(tmp_path / "c.png")
    (tmp_path / "d.png").write_bytes(b"no picture")
    (tmp_path / "e.json").write_text("[1, 2]")
    (tmp_path / "f.json").write_text(json.dumps({"versions": {"bld": "1"}}))
    assert [is_ours(path) for path in sorted(tmp_path.iterdir())] == [True, True, False, False, False, True]


def test_the_grid_of_a_folder_of_samples_is_not_judged(trained_run, tmp_path):
    pytest.importorskip("torch_fidelity")
    assert main(["sample", str(trained_run), "--steps", "1", "--num", "6", "--out", str(tmp_path / "x")]) == 0
    words = ["evaluate", "--samples", str(tmp_path / "x"), "--data", str(tmp_path / "x"), "--metrics", "diversity"]
    main(["train-features", "--data", "digits", "--steps", "2", "--out", str(tmp_path / "f")])
    assert main([*words, "--features", str(tmp_path / "f"), "--out", str(tmp_path / "e.json")]) == 0
    assert json.loads((tmp_path / "e.json").read_text())["samples"]["images"] == 6


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "utf-8"])
def test_help_and_messages_print_in_any_terminal(encoding, tmp_path):
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "LC_ALL": "C"}
    for words in (["sample", "--help"], ["sample", "nöwhere·τ"], ["nöcommand"]):
        done = subprocess.run([sys.executable, "-m", "bld", *words], capture_output=True, env=environment, timeout=600)
        assert b"Traceback" not in done.stderr, done.stderr
        assert done.returncode == (0 if "--help" in words else 2) and done.stdout + done.stderr


WORDS = ["nan", "-1", "0", "²", "", "1e999", "a=b", "--", "\u2028", "[]"]


def options_of(command: str) -> list[str]:
    """The options that take a value, but for those that say where to write and what to train on."""
    from bld.cli import build_parser

    parser = next(iter(build_parser(only=command)._subparsers._group_actions[0].choices.values()))  # type: ignore
    left = {"out", "data", "num", "features", "metrics", "dry_run", "images", "run_folder", "token"}
    return [a.option_strings[-1] for a in parser._actions if a.option_strings and a.nargs != 0 and a.dest not in left]


@pytest.mark.parametrize("command", ["sample", "inpaint", "reconstruct", "neighbours", "evaluate", "info"])
def test_any_word_gets_a_sentence(command, trained_run, tmp_path, capsys, monkeypatch):
    """Each of the odd words as the value of each option: done, or refused in one sentence; never a traceback."""
    monkeypatch.chdir(tmp_path)
    image, mask = inputs(tmp_path / "in")
    start = {
        "sample": ["sample", str(trained_run), "--num", "1", "--steps", "1"],
        "inpaint": ["inpaint", str(trained_run), "--num", "1", "--steps", "1", "--image", image, "--mask", mask],
        "reconstruct": ["reconstruct", str(trained_run), "--data", str(tmp_path / "in"), "--num", "1"],
        "neighbours": ["neighbours", str(trained_run), "--num", "1", "--steps", "1"],
        "evaluate": ["evaluate", str(trained_run), "--metrics", "bits", "--data", "in", "--num", "1"],
        "info": ["info", "digits"],
    }[command]
    out = [] if command == "info" else ["--out", str(tmp_path / ("o.png" if command == "neighbours" else "o.json"))]
    for number, word in enumerate(WORDS):
        for option in options_of(command)[number % 2 :: 2]:  # every other word for each: all take twice as long
            if option == "--by" and word.isascii():
                continue  # the name of features: those of the network are asked for elsewhere
            folder = [] if not out else ["--out", f"{out[1]}-{number}{Path(out[1]).suffix}"]
            try:
                status = main([*start, f"{option}={word}", *folder])
            except SystemExit as stop:
                status = stop.code
            error = capsys.readouterr().err
            assert status == 0 or (status == 2 and "Traceback" not in error), (option, word)


def test_any_value_of_any_setting_is_taken_or_refused_in_a_sentence():
    """Every key of a run's settings with odd words."""
    refusals: list[str] = []
    words = [*WORDS, "{}", "[1, 2]", "true", "1.5", "1e-400", "[nan, 0, 0]", "{a: b}", "inf", "None", " "]
    for number, key in enumerate(known_keys()):
        for word in words[number % 6 :: 6]:  # a sixth of them each: all take two minutes
            try:
                settings = load_settings("digits", overrides=[f"{key}={word}"])
            except SettingError as error:
                refusals.append(str(error))
                continue
            value = dict(leaves(settings_tree(settings))).get(key)
            assert not isinstance(value, float) or math.isfinite(value), (key, word)
    assert refusals and not [refusal for refusal in refusals if len(refusal.splitlines()) != 1]


def test_images_are_taken_beside_a_note_of_these_settings_and_no_others(tmp_path):
    """Settings come back from JSON as what they were, tuples too; a setting more or less is another."""
    note, image = tmp_path / "settings.json", tmp_path / "000.png"
    settings = {"model": "m", "process": {"kind": "BernoulliDiffusion", "table": (1.0, 0.0)}, "precision": "float32"}
    refuse_made_otherwise(note, settings, [image])
    image.write_bytes(b"")
    with pytest.raises(SettingError, match=r"000\.png"):
        refuse_made_otherwise(note, settings, [image])
    write_json(note, settings)
    refuse_made_otherwise(note, settings, [image])
    for other in ({**settings, "model": "n"}, {**settings, "final": "draw"}, {"process": settings["process"]}):
        with pytest.raises(SettingError, match=r"settings\.json"):
            refuse_made_otherwise(note, other, [image])
    write_json(note, {"model": "m", "precision": "auto"})  # as older commands wrote it
    refuse_made_otherwise(note, settings, [image], auto="float32")
    with pytest.raises(SettingError, match="precision"):
        refuse_made_otherwise(note, settings, [image], auto="bf16")

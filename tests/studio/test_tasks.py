"""What the studio makes is what the library makes, and says how; without a browser."""

from __future__ import annotations

import io
import itertools
import json
import shlex
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bld.cli import main
from bld.codes import unpack
from bld.data import psnr
from bld.errors import SettingError
from bld.studio.export import archive, png
from bld.studio.jobs import Progress
from bld.studio.made import Made
from bld.studio.model import Model
from bld.studio.tabs.compare import compare
from bld.studio.tabs.flip import SHOWN_BITS, effect, flip
from bld.studio.tabs.generate import generate
from bld.studio.tabs.inpaint import inpaint
from bld.studio.tabs.interpolate import interpolate, path_between
from bld.studio.tabs.reconstruct import bit_planes, reconstruct
from bld.studio.tasks import ANY, EACH, PREVIEWS, Sampling, square


def quiet(_: Progress) -> None:
    pass


def arrays(pictures: list) -> np.ndarray:
    return np.stack([np.asarray(getattr(picture, "image", picture)) for picture in pictures])


SAMPLINGS = [
    Sampling(),
    Sampling(seed=7, steps=4, temperature=0.5, guidance=2.0, which=3),
    Sampling(seed=2**53 - 1, steps=3, which=EACH),
    Sampling(steps=2, which=ANY),
]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["defaults", "one class", "each class", "any class"])
def test_the_settings_of_a_generation_make_it_again_in_python_and_on_the_command_line(
    model: Model, trained_run: Path, tmp_path: Path, sampling: Sampling
):
    made = generate(model, sampling, 3, quiet)
    settings = json.loads(json.dumps(made.settings))
    assert np.array_equal(arrays(model.pipe(**settings["call"]).images), arrays(made.pictures))
    _, command, _, *words = shlex.split(settings["command"])
    assert main([command, str(trained_run), *words, "--out", str(tmp_path / "out")]) == 0
    again = [Image.open(tmp_path / "out" / f"{i:06d}.png") for i in range(3)]
    assert np.array_equal(arrays(again), arrays(made.pictures))
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["model"] == settings["model"]


def test_every_step_is_reported_and_some_show_the_pictures(model: Model):
    seen: list[Progress] = []
    made = generate(model, Sampling(steps=30), 2, seen.append)
    assert [progress.step for progress in seen] == list(range(1, 31))
    assert {progress.total for progress in seen} == {30}
    shown = [progress.pictures for progress in seen if progress.pictures is not None]
    assert 5 <= len(shown) <= PREVIEWS and len(made.history) == len(shown)
    assert np.array_equal(arrays(list(shown[-1])), arrays(made.pictures))  # the last state is the result


def test_the_same_seeds_stand_under_each_setting(model: Model):
    seen: list[Progress] = []
    columns = [Sampling(seed=5, steps=4), Sampling(seed=5, steps=4, posterior="plugin"), Sampling(seed=5, steps=9)]
    made = compare(model, list(zip("ABC", columns, strict=True)), 2, seen.append)
    assert [heading[:2] for heading, _ in made.groups] == ["A:", "B:", "C:"]
    for (_, pictures), column in zip(made.groups, made.settings["columns"], strict=True):
        expected = model.pipe.with_posterior(column["posterior"])(**column["call"]).images
        assert np.array_equal(arrays(pictures), arrays(expected))
    first, second, _ = (arrays(pictures) for _, pictures in made.groups)
    assert not np.array_equal(first, second)
    assert [(progress.step, progress.total) for progress in seen] == [(i, 17) for i in range(1, 18)]


def test_a_column_keeps_its_letter_where_one_before_it_is_not_ticked(model: Model, monkeypatch: pytest.MonkeyPatch):
    import gradio as gr

    from bld.studio.tabs import compare as tab

    asked: list[Any] = []
    monkeypatch.setattr(tab, "run_on_click", lambda *arguments: asked.extend(arguments))
    with gr.Blocks():
        tab.build(model)
    inputs, work = asked[3], asked[5]
    ticks = iter([False, True, True])
    values = [next(ticks) if isinstance(one, gr.Checkbox) else one.value for one in inputs[1:]]
    made = work(1, *values)(quiet)
    assert [heading[:2] for heading, _ in made.groups] == ["B:", "C:"]
    assert [picture.name for picture in made.pictures] == ["B-seed0-000", "C-seed0-000"]
    assert [column["column"] for column in made.settings["columns"]] == ["B", "C"]


def test_an_inpainting_can_be_repeated_from_its_files(model: Model, photo: Image.Image):
    mask = Image.new("L", (8, 8))
    mask.paste(255, (2, 2, 6, 8))
    made = inpaint(model, photo, mask, Sampling(seed=3, steps=4), 2, 2, quiet)
    files = zipfile.ZipFile(io.BytesIO(archive(made)))
    picture, hole = (Image.open(io.BytesIO(files.read(name))) for name in ("picture.png", "mask.png"))
    call = json.loads(files.read("settings.json"))["call"]
    assert call["resample"] == 2
    again = model.pipe.inpaint(picture, hole, **call).images
    fillings = made.groups[1][1]
    assert np.array_equal(arrays(again), arrays(fillings))
    kept = np.asarray(mask) == 0
    view = np.asarray(square(model, photo))
    assert all(np.array_equal(np.asarray(filling.image)[kept], view[kept]) for filling in fillings)
    assert not np.array_equal(arrays(fillings)[0], arrays(fillings)[1])


def test_a_reconstruction_comes_with_its_psnr_its_bits_and_its_size(model: Model, photo: Image.Image):
    made = reconstruct(model, photo, quiet)
    view, again = model.pipe.preprocess(photo), model.pipe.decode(model.pipe.encode(photo))
    assert np.array_equal(np.asarray(made.pictures[1].image), np.asarray(again[0]))
    said = dict(made.facts)
    as_seen = torch.from_numpy(np.array(again[0])).permute(2, 0, 1)[None] / 127.5 - 1
    assert float(said["PSNR"].split()[0]) == pytest.approx(float(psnr(view * 2 - 1, as_seen)), abs=0.006)
    assert said["Code"] == "4×4×32 = 64 bytes" and said["Upload, 36×24"].startswith("2,592 bytes")
    packed = np.frombuffer(made.files["code.bin"], np.uint8)[None]
    assert torch.equal(unpack(packed, model.pipe.prior.code_shape)[0], model.pipe.encode(photo)[0].flatten(0, 1))


def test_bit_planes_show_every_bit_once():
    rng = np.random.default_rng(0)
    code = torch.from_numpy(rng.integers(0, 2, (3, 5, 6), dtype=np.uint8))
    sheet = np.asarray(bit_planes(code, scale=1, gap=1))
    rows = (sheet.shape[0] - 1) // 4
    found = [sheet[1 + 4 * r : 4 + 4 * r, 1 + 6 * q : 6 + 6 * q] for r in range(rows) for q in range(6 // rows)]
    assert np.array_equal(np.stack(found, -1), 255 * code.numpy())
    assert (sheet == 110).sum() == sheet.size - code.numel()


@pytest.mark.parametrize("frames", [2, 3, 8])
def test_a_path_takes_the_differing_bits_over_one_after_another(frames: int):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(0, 2, (4, 4, 32), generator=generator, dtype=torch.uint8) for _ in range(2))
    path = path_between(a, b, frames, seed=1)
    assert torch.equal(path[0], a) and torch.equal(path[-1], b)
    differing = int((a != b).sum())
    moved = [int((frame != a).sum()) for frame in path]
    assert moved == [round(differing * i / (frames - 1)) for i in range(frames)]
    for before, after in itertools.pairwise(path):
        assert not bool(((before == b) & (after != b)).any())  # what has been taken over stays so
    assert frames == 2 or not torch.equal(path[1], path_between(a, b, frames, seed=2)[1])


@pytest.mark.parametrize("strength", [0.0, 0.6])
def test_an_interpolation_goes_from_one_picture_to_the_other(model: Model, photo: Image.Image, strength: float):
    first = Sampling(seed=4, steps=4, which=1)
    made = interpolate(model, [first, photo], 5, strength, quiet)
    assert np.array_equal(arrays(made.pictures[:1])[0], arrays(model.pipe(**first.call(model, 1)).images)[0])
    assert np.array_equal(arrays(made.pictures[-1:])[0], arrays(model.pipe.reconstruct(photo))[0])
    again = interpolate(model, [first, photo], 5, strength, quiet)
    assert np.array_equal(arrays(made.pictures), arrays(again.pictures))
    codes = [model.pipe(**first.call(model, 1)).codes[0], model.pipe.encode(photo)[0]]
    bare = model.pipe.decode(path_between(*codes, 5, 0))
    assert np.array_equal(arrays(bare), arrays(made.pictures)) == (strength == 0)


def test_an_interpolation_can_be_stopped_within_a_picture(model: Model, photo: Image.Image):
    seen: list[Progress] = []
    interpolate(model, [photo, photo.rotate(90)], 3, 1.0, seen.append, Sampling(steps=4))
    assert [(progress.step, progress.total) for progress in seen] == [(step, 3) for step in (1, 1, 1, 1, 1, 2, 3)]


def test_between_two_uploads_steps_and_temperature_are_those_asked_for(model: Model, photo: Image.Image):
    ends = [photo, photo.rotate(90)]
    usual = interpolate(model, ends, 3, 1.0, quiet)
    asked = interpolate(model, ends, 3, 1.0, quiet, Sampling(steps=2, temperature=2.0))
    assert asked.settings["between"] == {"num_inference_steps": 2, "temperature": 2.0}
    assert usual.settings["between"]["num_inference_steps"] == model.default_steps
    assert not np.array_equal(arrays(usual.pictures), arrays(asked.pictures))
    again = interpolate(model, ends, 3, 1.0, quiet, Sampling(steps=2, temperature=2.0))
    assert again.settings == asked.settings and np.array_equal(arrays(again.pictures), arrays(asked.pictures))


def test_the_tab_hands_its_steps_and_temperature_on(
    model: Model, photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import gradio as gr

    from bld.studio.tabs import interpolate as tab

    photo.save(tmp_path / "photo.png")
    works: list[Any] = []
    monkeypatch.setattr(tab, "run_on_click", lambda model, run, stop, inputs, output, work, name: works.append(work))
    with gr.Blocks():
        tab.build(model)
    upload = [0, str(tmp_path / "photo.png"), ANY]
    made = works[0](3, 1.0, *upload, *upload, 2, 1.5)(quiet)
    assert made.settings["between"] == {"num_inference_steps": 2, "temperature": 1.5}


def test_a_flip_changes_one_bit_and_finds_the_strongest(model: Model, photo: Image.Image):
    made = flip(model, photo, 2, 3, 5, quiet)
    code = model.pipe.encode(photo)
    before = model.pipe.decode(code)[0]
    code[0, 1, 2, 4] ^= 1
    after = model.pipe.decode(code)[0]
    assert np.array_equal(arrays(made.pictures[:2]), arrays([before, after]))
    every = code.repeat(32, 1, 1, 1)
    every[:, 1, 2, 4] ^= 1
    for bit in range(32):
        every[bit, 1, 2, bit] ^= 1
    effects = [effect(before, image) for image in model.pipe.decode(every)]
    strongest = sorted(range(32), key=lambda bit: -effects[bit])[:SHOWN_BITS]
    assert [picture.name for picture in made.groups[1][1]] == [f"bit{bit + 1:03d}" for bit in strongest]


def test_a_saved_picture_carries_its_settings(model: Model):
    made = generate(model, Sampling(steps=2, which=EACH), 2, quiet)
    files = zipfile.ZipFile(io.BytesIO(archive(made)))
    assert len(files.namelist()) == 3 and archive(made) == archive(made)
    image = Image.open(io.BytesIO(files.read("seed0-001.png")))
    settings = json.loads(image.text["bld"])
    assert settings["index"] == 1 and settings["call"] == made.settings["call"]
    assert png(made.pictures[0].image) != png(made.pictures[0].image, settings)


WRONG = [
    ({"seed": -1}, "seed"),
    ({"seed": 0.5}, "seed"),
    ({"seed": "0"}, "seed"),
    ({"steps": 0}, "steps"),
    ({"steps": 65}, "steps"),
    ({"temperature": float("nan")}, "temperature"),
    ({"temperature": 0}, "temperature"),
    ({"guidance": float("inf")}, "guidance"),
    ({"which": 10}, "Class 10"),
    ({"posterior": "best"}, "posterior"),
]


@pytest.mark.parametrize("settings, word", WRONG, ids=str)
def test_settings_out_of_range_are_refused_before_anything_is_computed(model: Model, settings: dict, word: str):
    def never(_: Progress) -> None:
        raise AssertionError("a step was taken")

    with pytest.raises(SettingError, match=word):
        generate(model, Sampling(**settings), 1, never)


@pytest.mark.parametrize("count", [0, 65, 1.5, float("nan")])
def test_only_so_many_pictures_are_made_at_a_time(model: Model, count: float):
    with pytest.raises(SettingError, match=rf"number of pictures .* 1 to 64, not {count}"):
        generate(model, Sampling(), count, quiet)  # type: ignore[arg-type]


def test_a_mask_without_anything_marked_or_of_another_size_is_refused(model: Model, photo: Image.Image):
    for mask, word in ((Image.new("L", (8, 8)), "Nothing is marked"), (Image.new("L", (9, 8), 255), "paint it again")):
        with pytest.raises(SettingError, match=word):
            inpaint(model, photo, mask, Sampling(), 1, 1, quiet)


def test_made_lists_the_pictures_of_all_groups(model: Model):
    pictures = generate(model, Sampling(steps=1), 3, quiet).pictures
    made = Made([("one", pictures[:1]), ("two", pictures[1:])], {})
    assert made.pictures == pictures


@pytest.mark.parametrize(("typed", "named"), [("runs/photos", "runs/photos"), ("/somewhere/photos", "photos")])
def test_the_command_names_the_run_as_it_was_typed_but_no_folders_of_the_disk(monkeypatch, typed: str, named: str):
    from types import SimpleNamespace

    from bld.cli import COMMANDS, build_parser
    from bld.studio import export

    made = []
    monkeypatch.setattr("bld.cli.studio.load_pipeline", lambda _: SimpleNamespace(device=torch.device("cpu")))
    monkeypatch.setattr("bld.studio.server.serve", lambda model, *_: made.append(model))
    monkeypatch.setattr(Path, "is_dir", lambda self: str(self) == typed)
    import importlib

    importlib.import_module(COMMANDS["studio"]).run(build_parser(only="studio").parse_args(["studio", typed]))
    assert made[0].name == "photos"
    call = {"num_images": 1, "generator": 0, "num_inference_steps": 1, "temperature": 0.9, "guidance_scale": 1.0}
    model = SimpleNamespace(run=made[0].run, classes=[], precision="float32")
    assert shlex.split(export._command(model, call))[:3] == ["bld", "sample", named]


def test_the_command_holds_its_numbers_to_the_last_digit(model: Model):
    from bld.cli import build_parser

    call = generate(model, Sampling(steps=1, temperature=0.123456789, guidance=1 + 1e-9), 1, quiet).settings
    asked = build_parser(only="sample").parse_args(shlex.split(call["command"])[1:])
    assert (asked.temperature, asked.guidance_scale) == (0.123456789, 1 + 1e-9)


def test_a_class_that_begins_with_a_dash_is_named_so_that_the_command_takes_it(monkeypatch):
    from types import SimpleNamespace

    from bld.cli import COMMANDS
    from bld.studio import export

    model = SimpleNamespace(run="run", classes=["-x", "y"], precision="float32")
    call = {"num_images": 1, "generator": 0, "num_inference_steps": 1, "temperature": 0.9, "guidance_scale": 1.0,
            "class_labels": 0}  # fmt: skip
    seen = []
    monkeypatch.setattr(f"{COMMANDS['sample']}.run", seen.append)
    assert main(shlex.split(export._command(model, call))[1:]) == 0 and seen[0].classes == "-x"

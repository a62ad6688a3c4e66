"""The commands as a user types them; what loads no model runs in a process of its own, the rest in this one."""

import errno
import json
import re
import shlex
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from bld import __version__
from bld.cli import COMMANDS, build_parser, main
from bld.cli.common import duration, recipe_from
from bld.errors import SettingError


def bld(*words):
    return subprocess.run([sys.executable, "-m", "bld", *words], capture_output=True, text=True, timeout=600)


@pytest.fixture
def fails(capsys):
    """Runs a command that must be refused: status 2, one sentence on stderr, no traceback."""

    def run(*words):
        capsys.readouterr()
        try:
            status = main([str(word) for word in words])
        except SystemExit as stop:  # argparse's own refusals
            status = stop.code
        lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
        assert status == 2, lines
        assert len(lines) == 1 and lines[0].startswith("bld") and lines[0].rstrip().endswith((".", "?", "--help")), (
            lines
        )
        return lines[0]

    return run


def assert_names(sentence, *tokens):
    assert not [token for token in map(str, tokens) if token not in sentence], sentence


def test_help_lists_every_command_without_loading_torch():
    code = "import sys; from bld.cli import main\n"
    code += "try: main(['--help'])\nexcept SystemExit: assert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert all(command in result.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0 and "usage: bld" in capsys.readouterr().out


def test_the_version_is_told_with_torchs_and_the_device():
    device = "cuda (" if torch.cuda.is_available() else "cpu"
    assert bld("--version").stdout.startswith(f"bld {__version__}, torch {torch.__version__}, device: {device}")


def test_train_makes_everything_and_again_trains_nothing(tmp_path, tiny_overrides, capsys):
    command = ["train", "--data", "digits", "--out", str(tmp_path / "run"), "--preset", "digits", *tiny_overrides]
    assert main(command) == 0
    run = tmp_path / "run"
    assert (run / "report.html").stat().st_size > 10_000 and (run / "model_index.json").is_file()
    capsys.readouterr()
    assert main(command) == 0
    assert capsys.readouterr().out.count("trained already") == 2


def test_the_demo_prints_how_good_its_samples_and_reconstructions_are(tmp_path, tiny_overrides, capsys):
    """The metrics are those of the run it leaves, measured here once more."""
    from bld.evaluation.digit_accuracy import digit_accuracy
    from bld.pipeline import BinaryLatentDiffusionPipeline
    from bld.training.run_folder import RunFolder

    run, labels = tmp_path / "demo", [*range(10)] * 50
    assert main(["demo", "--out", str(run), *tiny_overrides]) == 0
    out = capsys.readouterr().out
    samples, held_out = re.findall(r"^(?:Samples|Held-out) .*$", out, re.MULTILINE)
    assert "the time was up" not in out
    pipe = BinaryLatentDiffusionPipeline.from_pretrained(run)
    made = pipe(class_labels=labels, num_inference_steps=16, temperature=0.9, generator=0, output_type="np").images
    percent = float(re.search(r"([\d.]+)% of 500\b", samples)[1])
    assert percent == pytest.approx(100 * digit_accuracy(made.mean(-1), labels), abs=0.051)
    decibels, drawn = map(float, re.findall(r"([\d.]+) dB", held_out))
    measured = [line["held_out_psnr"] for line in RunFolder(run).read_metrics() if "held_out_psnr" in line]
    assert decibels == pytest.approx(measured[-1], abs=0.051) and drawn <= decibels
    assert "180 images" in held_out and (run / "report.html").is_file()


@pytest.mark.parametrize(
    "words, said",
    [
        (["diffusion.steps=8", "sampling.steps=8"], "8 steps"),
        (["diffusion.target=previous", "diffusion.steps=24", "sampling.steps=0"], "24 steps"),
        (["sampling.guidance_scale=3"], "16 steps"),
        (["prior.class_conditional=false"], None),
        (["tokenizer.bottleneck=vq", "tokenizer.code_bits=5", "prior.class_conditional=false"], None),
        (["tokenizer.image_size=16"], None),
    ],
    ids=["few steps", "no skipping", "guided by default", "no classes", "no drawn codes", "other pixels"],
)
def test_the_demo_judges_whatever_its_settings_are(words, said, tmp_path, tiny_overrides, capsys, monkeypatch):
    """An untrained model in place of a trained one."""
    from bld.cli import demo
    from bld.pipeline import BinaryLatentDiffusionPipeline
    from bld.serialization.models import PipelineIndex
    from bld.tokenizer import BinaryAutoencoder
    from bld.training.recipe import Recipe
    from bld.training.run_folder import RunFolder
    from bld.training.stages.prior import build_network, sampling_defaults

    run = RunFolder(tmp_path / "demo")
    settings = run.adopt("digits", [*tiny_overrides, *words], "digits")
    shape, classes = settings.tokenizer.code_shape, 10 * settings.prior.class_conditional
    process = settings.process(shape)
    index = PipelineIndex([str(i) for i in range(classes)], sampling=sampling_defaults(settings, process, True))
    parts = BinaryAutoencoder(settings.tokenizer), build_network(process, settings.denoiser(shape, classes)), process
    BinaryLatentDiffusionPipeline(*parts, index).save_pretrained(run.path)
    asked = []
    plain = BinaryLatentDiffusionPipeline.__call__
    spy = lambda self, **options: asked.append(options) or plain(self, **options)  # noqa: E731
    monkeypatch.setattr(BinaryLatentDiffusionPipeline, "__call__", spy)
    demo._judge(Recipe(settings, run, print))
    out = capsys.readouterr().out
    assert (
        re.search(r"^Held-out reconstructions: [\d.]+ dB PSNR.* \(180 images", out, re.MULTILINE) and "None" not in out
    )
    assert ("of 500" in out) == (said is not None) == bool(asked)
    assert said is None or (f"(τ = 0.9, {said}, no guidance)" in out and asked[0]["guidance_scale"] == 1.0)


def test_the_demo_leaves_its_report_whatever_its_judge_meets(tmp_path, tiny_overrides, monkeypatch, capsys):
    from bld.cli import demo
    from bld.errors import SettingError

    def judge(recipe):
        raise SettingError("Nothing can be judged.")

    monkeypatch.setattr(demo, "_judge", judge)
    assert main(["demo", "--out", str(tmp_path / "demo"), *tiny_overrides]) == 2
    assert "Nothing can be judged." in capsys.readouterr().err and (tmp_path / "demo" / "report.html").is_file()


def test_the_demo_says_which_training_its_time_has_cut(tmp_path, tiny_overrides, capsys):
    run = tmp_path / "demo"
    assert main(["demo", "--out", str(run), "--budget", "4s", *tiny_overrides, "prior_training.steps=100000"]) == 0
    (told,) = (line for line in capsys.readouterr().out.splitlines() if "100,000" in line)
    done = json.loads((run / "progress.json").read_text())
    assert done["tokenizer"]["steps"] == 6 and 0 < done["prior"]["steps"] < 100_000
    assert told.startswith("The prior ") and f" {done['prior']['steps']:,} of " in told and "--budget" in told


def test_the_demo_leaves_a_run_of_other_images_and_one_in_use_as_they_are(
    run_copy, image_folder, tmp_path, tiny_overrides, fails
):
    from bld.training.run_folder import RunFolder

    config = run_copy / "config.yaml"
    with RunFolder(run_copy).locked():
        before = config.read_bytes()
        command = [
            sys.executable,
            "-m",
            "bld",
            "demo",
            "--out",
            str(run_copy),
            "--budget",
            "1s",
            "prior.vlb_weight=0.5",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 2 and "in use" in done.stderr and config.read_bytes() == before
    photos, run = image_folder(60, 28), tmp_path / "photos_run"
    words = ["train-tokenizer", "--data", str(photos), "--out", str(run), "--preset", "digits", *tiny_overrides]
    assert main(words) == 0
    before = (run / "config.yaml").read_bytes()
    assert_names(fails("demo", "--out", run, "--budget", "1s"), "digits", "--out")
    assert (run / "config.yaml").read_bytes() == before


def test_the_stages_one_at_a_time_make_the_same_models(tmp_path, tiny_overrides, trained_run):
    out = str(tmp_path / "run")
    assert main(["train-tokenizer", "--data", "digits", "--out", out, "--preset", "digits", *tiny_overrides]) == 0
    assert main(["encode", "--out", out]) == 0
    assert main(["train-prior", "--out", out]) == 0
    for part in ("tokenizer", "prior"):
        name = f"{part}/model.safetensors"
        assert (tmp_path / "run" / name).read_bytes() == (trained_run / name).read_bytes()


def test_samples_depend_on_seed_and_number_only_and_are_not_made_twice(trained_run, tmp_path, capsys):
    words = [
        "sample",
        str(trained_run),
        "--classes",
        "all",
        "--seed",
        "3",
        "--steps",
        "4",
        "--precision",
        "float32",
    ]
    assert main([*words, "--num", "12", "--out", str(tmp_path / "a"), "--batch-size", "12"]) == 0
    assert main([*words, "--num", "5", "--out", str(tmp_path / "b"), "--batch-size", "2"]) == 0
    assert main([*words, "--num", "12", "--out", str(tmp_path / "b"), "--batch-size", "7"]) == 0
    assert re.search(r"^12 images .*\(7 .*new", capsys.readouterr().out, re.MULTILINE)
    for i in range(12):
        assert (tmp_path / "a" / f"{i:06d}.png").read_bytes() == (tmp_path / "b" / f"{i:06d}.png").read_bytes()
    assert json.loads((tmp_path / "a" / "settings.json").read_text())["steps"] == 4


def test_images_of_other_settings_are_not_mixed(trained_run, tmp_path, fails):
    words = ["sample", str(trained_run), "--num", "2", "--steps", "2", "--out", str(tmp_path / "a")]
    assert main(words) == 0
    assert_names(fails(*words, "--seed", "1"), tmp_path / "a", "--out")


def test_images_of_another_model_are_not_taken_for_this_one(run_copy, trained_run, tmp_path, fails):
    words = ("--num", "2", "--steps", "2", "--out", str(tmp_path / "a"))
    assert main(["sample", str(trained_run), *words]) == 0
    assert main(["sample", str(run_copy), *words]) == 0  # a copy is the same model
    assert main(["train-prior", "--out", str(run_copy), "prior_training.steps=7"]) == 0
    assert_names(fails("sample", run_copy, *words), tmp_path / "a", "--out")


def test_images_of_another_sampler_are_not_taken_for_this_one(run_copy, trained_run, tmp_path, fails):
    words = ("--num", "2", "--steps", "2", "--out", str(tmp_path / "a"))
    diffusion, note = run_copy / "diffusion" / "config.json", tmp_path / "a" / "settings.json"
    diffusion.write_text(diffusion.read_text().replace('"exact"', '"plugin"'))
    assert main(["sample", str(trained_run), *words]) == 0
    assert json.loads(note.read_text())["process"]["posterior"] == "exact"
    assert_names(fails("sample", run_copy, *words), tmp_path / "a", "--out")


def test_a_note_of_samples_says_what_auto_became_and_older_notes_hold(trained_run, tmp_path, fails):
    from bld.training.accelerator import autocast_dtype

    words = ["sample", str(trained_run), "--num", "2", "--steps", "2", "--device", "cpu", "--out", str(tmp_path / "a")]
    assert main(words) == 0
    note = tmp_path / "a" / "settings.json"
    made = json.loads(note.read_text())
    became = "bf16" if autocast_dtype("auto", torch.device("cpu")) == "bf16" else "float32"
    assert made["precision"] == became and main([*words, "--precision", became]) == 0
    older = {name: value for name, value in made.items() if name != "process"} | {"precision": "auto"}
    note.write_text(json.dumps(older))
    assert main(words) == 0
    other = {"bf16": "float32", "float32": "bf16"}[became]
    assert_names(fails(*words, "--precision", other), tmp_path / "a", "--out")


def test_inpaint_writes_fillings_beside_the_original(trained_run, tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "image.png")
    Image.fromarray(np.kron(np.eye(2), np.ones((4, 4))).astype(np.uint8) * 255).save(tmp_path / "mask.png")
    words = [
        "--image",
        str(tmp_path / "image.png"),
        "--mask",
        str(tmp_path / "mask.png"),
        "--out",
        str(tmp_path / "o"),
    ]
    assert main(["inpaint", str(trained_run), *words, "--num", "3", "--steps", "4"]) == 0
    assert sorted(p.name for p in (tmp_path / "o").glob("*.png")) == [
        "000.png",
        "001.png",
        "002.png",
        "grid.png",
    ]


@pytest.fixture
def filling(trained_run, tmp_path):
    """`bld inpaint` into tmp_path/filled of an image of this colour, as words."""
    Image.fromarray(np.kron(np.eye(2), np.ones((4, 4))).astype(np.uint8) * 255).save(tmp_path / "mask.png")

    def words(colour, *more):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{colour}.png")
        mask, out = str(tmp_path / "mask.png"), str(tmp_path / "filled")
        image = str(tmp_path / f"{colour}.png")
        return ["inpaint", str(trained_run), "--image", image, "--mask", mask, "--out", out, "--steps", "2",
                "--precision", "float32", *more]  # fmt: skip

    return words


def test_fillings_of_another_image_mask_or_setting_are_not_mixed(filling, tmp_path, fails):
    out = tmp_path / "filled"
    assert main(filling("red", "--num", "4")) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert_names(fails(*filling("blue", "--num", "2")), out, "image", "--out")
    assert_names(fails(*filling("red", "--image", str(out / "003.png"))), out, "image", "--out")
    assert_names(fails(*filling("red", "--seed", "1")), out, "seed", "--out")
    assert_names(fails(*filling("red", "--resample", "2")), out, "resample", "--out")
    whole = ["--mask", str(tmp_path / "whole.png")]
    Image.new("L", (8, 8), 255).save(whole[1])
    assert_names(fails(*filling("red"), *whole), out, "mask", "--out")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_fillings_that_are_there_are_not_made_again(filling, tmp_path, capsys):
    out = tmp_path / "filled"
    assert main(filling("red", "--num", "4", "--batch-size", "3")) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "001.png").unlink()
    capsys.readouterr()
    assert main(filling("red", "--num", "4")) == 0
    assert re.search(r"\b4\b.*\b1\b.* new", capsys.readouterr().out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert main(filling("red", "--num", "4")) == 0
    assert "(0 of them new)" in capsys.readouterr().out


def test_no_steps_do_not_pass_for_the_runs_own(filling, trained_run, tmp_path, fails):
    assert main(filling("red", "--num", "2", "--steps", "64")) == 0
    assert_names(fails(*filling("red", "--num", "2", "--steps", "0")), "--steps", "not 0")
    words = ["sample", str(trained_run), "--num", "2", "--out", str(tmp_path / "s")]
    assert main(words) == 0
    assert_names(fails(*words, "--steps", "0"), "--steps", "not 0")


def test_fillings_without_a_note_are_not_replaced(filling, tmp_path, fails):
    assert main(filling("red", "--num", "2")) == 0
    (tmp_path / "filled" / "settings.json").unlink()
    assert_names(fails(*filling("red", "--num", "2")), "000.png", "--out")


def test_reconstruct_prints_the_psnr_it_writes(trained_run, tmp_path, capsys):
    assert main(["reconstruct", str(trained_run), "--data", "digits", "--num", "40", "--out", str(tmp_path)]) == 0
    printed = float(re.search(r"PSNR ([\d.]+)", capsys.readouterr().out)[1])
    assert json.loads((tmp_path / "psnr.json").read_text())["psnr_mean"] == pytest.approx(printed, abs=0.01)
    assert (tmp_path / "pairs.png").is_file()


def test_only_as_many_pairs_are_shown_as_were_asked_for(trained_run, tmp_path):
    assert main(["reconstruct", str(trained_run), "--data", "digits", "--num", "3", "--out", str(tmp_path)]) == 0
    with Image.open(tmp_path / "pairs.png") as sheet:
        assert sheet.size == (3 * 64 + 2 * 2, 2 * 64 + 2)


def test_who_asks_for_centre_views_holds_nothing_of_what_random_crops_are_cut_from(run_copy, image_folder, monkeypatch):
    """Of photographs that would be gigabytes, made by decoding them at their full width."""
    monkeypatch.setattr("bld.data.strips.Strips.put", lambda *_: pytest.fail("held"))
    config, images = run_copy / "config.yaml", str(image_folder(40))
    config.write_text(config.read_text().replace("crop: center", "crop: random"))
    assert "crop: random" in config.read_text()
    assert main(["reconstruct", str(run_copy), "--data", images]) == 0


def test_info_works_for_presets_and_runs_with_settings_anywhere(trained_run, capsys):
    assert main(["info", "churches256", "prior.depth=12", "--images", "126227", "prior.dim=256"]) == 0
    assert "1,024 bytes" in capsys.readouterr().out
    assert main(["info", str(trained_run), "--show-settings"]) == 0
    assert "4×4×32" in capsys.readouterr().out


def test_info_says_of_a_folder_without_settings_what_it_is_and_names_a_cure(run_copy, tmp_path, fails, monkeypatch):
    (run_copy / "config.yaml").unlink()
    for folder, config in ((run_copy, run_copy / "tokenizer"), (run_copy / "prior", run_copy / "prior")):
        sentence = fails("info", folder)
        assert_names(sentence, f"{folder} is a model without settings", config / "config.json", "its run", "preset")
    (tmp_path / "empty").mkdir()
    assert_names(fails("info", tmp_path / "empty"), "holds no run", "preset")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert main(["info", "digits"]) == 0  # a preset's name is the preset's
    assert_names(fails("info", "digit"), "Unknown preset", "digits")


def test_info_counts_the_runs_images_before_they_are_encoded_too(run_copy, capsys):
    def told() -> str:
        assert main(["info", str(run_copy)]) == 0
        return capsys.readouterr().out

    encoded = told()
    assert "code cache of 1,617 images" in encoded
    shutil.rmtree(run_copy / "codes")
    assert told() == encoded
    config = run_copy / "config.yaml"
    config.write_text(config.read_text().replace("location: digits", "location: gone"))
    assert "--images and --classes" in told()


def test_a_preset_is_chosen_by_the_size_of_the_images(tmp_path, image_folder, capsys):
    words = ["tokenizer_training.batch_size=64", "--out", str(tmp_path / "run")]
    assert main(["train-tokenizer", "--data", str(image_folder(8, size=32)), *words]) == 2
    assert "cifar10" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("side", "mode", "words", "flip", "told"),
    [
        (32, "RGB", [], True, "also shows them mirrored, which data.flip=false ends"),
        (32, "L", [], False, "greyscale"),
        (32, "grey RGB", [], False, "greyscale"),
        (32, "L", ["data.flip=true"], True, ""),
        (16, "L", [], False, ""),
    ],
)
def test_a_preset_that_mirrors_says_so_and_mirrors_no_greyscale_images_unasked(
    side, mode, words, flip, told, tmp_path, capsys
):
    """Letters and digits are others when mirrored."""
    (tmp_path / "data").mkdir()
    for i in range(3):
        image = Image.new("L", (side, side), 40 * i) if mode != "RGB" else Image.new("RGB", (side, side), (40, i, 0))
        (image.convert("RGB") if mode == "grey RGB" else image).save(tmp_path / "data" / f"{i}.png")
    words = ["train", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"), *words]
    with recipe_from(build_parser(only="train").parse_args(words)) as recipe:
        assert recipe.settings.data.flip == flip
    said = capsys.readouterr().out
    assert told in said and ("mirrored" in said) == bool(told)


# -- bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "side", "preset"),
    [(".jpg", 64, "photos64"), (".JPEG", 80, "photos64"), (".png", 64, "emoji64"), (".jpg", 40, "cifar10")],
)
def test_large_jpegs_are_taken_for_photographs_and_other_large_images_for_drawings(
    tmp_path, capsys, ending, side, preset
):
    (tmp_path / "data").mkdir()
    for i in range(5):
        Image.new("RGB", (side, side), (40 * i, 0, 0)).save(tmp_path / "data" / f"{i}{ending if i else '.png'}")
    main(["train", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "tokenizer.image_size=-1"])
    assert f"{preset} suits these images" in capsys.readouterr().out


def test_an_unknown_command_option_setting_or_preset_names_the_nearest(fails, tmp_path):
    assert "'train'?" in fails("trian")
    assert "--ouut" in fails("train", "--data", "digits", "--out", tmp_path, "--ouut", "x")
    train = ("train", "--data", "digits", "--out", tmp_path / "r")
    assert "'digits'?" in fails(*train, "--preset", "digit")
    assert "'prior.dim'?" in fails(*train, "--preset", "digits", "prior.dmi=3")
    assert_names(fails(*train, "--budget", "soon"), "'soon'", "30m")
    assert "--data" in fails("train", "--out", tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_few_unreadable_images_do_not_keep_a_preset_from_being_chosen(image_folder, tmp_path, fails, capsys):
    folder = image_folder(30)
    (folder / "000.png").write_bytes(b"not an image")
    assert "tokenizer_training.batch_size=" in fails("train", "--data", folder, "--out", tmp_path / "r")
    for path in folder.iterdir():
        path.write_bytes(b"")
    assert_names(fails("train", "--data", folder, "--out", tmp_path / "s"), "None", folder)


def test_what_the_system_refuses_is_one_sentence(fails, tmp_path):
    (tmp_path / "file").write_text("")
    assert "file" in fails("train", "--data", "digits", "--out", tmp_path / "file", "--preset", "digits")


def test_data_that_is_not_there_or_holds_no_image(fails, tmp_path):
    train = ("train", "--out", tmp_path / "r", "--preset", "digits", "--data")
    assert "nowhere" in fails(*train, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "empty" in fails(*train, tmp_path / "empty")
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 not really")
    assert "broken.zip" in fails(*train, tmp_path / "broken.zip")


def test_unreadable_images_are_left_out_and_listed_but_not_too_many(
    fails, tmp_path, image_folder, tiny_overrides, capsys
):
    folder = image_folder(40)
    (folder / "000.png").write_bytes(b"not an image")
    (folder / "001.png").write_bytes((folder / "002.png").read_bytes()[:60])
    words = [*tiny_overrides, "tokenizer_training.batch_size=8", "prior_training.batch_size=8"]
    words = [
        "train-tokenizer",
        "--data",
        str(folder),
        "--out",
        str(tmp_path / "run"),
        "--preset",
        "digits",
        *words,
    ]
    assert main(words) == 0
    assert "2 unreadable" in capsys.readouterr().out
    listed = (tmp_path / "run" / "skipped_images.txt").read_text()
    assert "000.png" in listed and "001.png" in listed
    for i in range(3, 8):
        (folder / f"{i:03d}.png").write_bytes(b"")
    words[words.index(str(tmp_path / "run"))] = str(tmp_path / "other")
    assert "7" in fails(*words)


def test_too_few_images_and_sizes_that_do_not_divide(fails, tmp_path, image_folder):
    data = ("train", "--data", image_folder(10), "--out", tmp_path / "r", "--preset", "digits")
    assert_names(fails(*data), "images", "64", "tokenizer_training.batch_size=")
    assert_names(fails(*data, "tokenizer.image_size=9"), " 9 ", " 8,")


def test_a_command_asks_only_for_the_images_that_its_own_stages_need(fails, tmp_path, image_folder, tiny_overrides):
    words = ["--data", str(image_folder(20)), "--out", str(tmp_path / "r"), "--preset", "digits", *tiny_overrides]
    words += ["tokenizer_training.batch_size=8", "tokenizer_training.steps=1"]
    assert_names(fails("train", *words), "prior_training.batch_size=", " 32")
    assert main(["train-tokenizer", *words]) == 0 and main(["encode", "--out", str(tmp_path / "r")]) == 0
    assert_names(fails("train-prior", "--out", tmp_path / "r"), "prior_training.batch_size=", " 32")
    prior = ["prior_training.batch_size=8", "prior_training.steps=1", "tokenizer_training.batch_size=32"]
    assert main(["train-prior", "--out", str(tmp_path / "r"), *prior]) == 0


def test_the_perceptual_term_is_never_dropped_silently(fails, tmp_path, tiny_overrides, monkeypatch, capsys):
    def offline(*_args, **_kwargs):
        raise OSError("no network")

    monkeypatch.setattr("lpips.LPIPS", offline)
    train = ("train-tokenizer", "--data", "digits", "--preset", "digits", *tiny_overrides)
    refused = fails(*train, "--out", tmp_path / "a", "objective.perceptual=1")
    assert "VGG-16" in refused and "objective.perceptual=0" in refused
    assert main([*train, "--out", str(tmp_path / "b")]) == 0
    assert "objective.perceptual=0" in capsys.readouterr().out


def test_a_run_of_another_shape_or_unfinished_or_damaged(fails, run_copy, tmp_path):
    assert_names(fails("train", "--out", run_copy, "prior.dim=64"), "prior.dim=32", "64", "--out")
    assert_names(fails("train", "--out", run_copy, "--preset", "cifar10"), run_copy, "--out", "as it was")
    assert "bld train-tokenizer" in fails("encode", "--out", tmp_path / "new", "--data", "digits", "--preset", "digits")
    weights = run_copy / "prior" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "damaged" in fails("sample", run_copy)
    (run_copy / "model_index.json").unlink()
    assert "model_index.json" in fails("sample", run_copy)
    assert_names(fails("report", tmp_path / "nothing"), tmp_path / "nothing", "config.yaml")


def test_impossible_sampling_requests(fails, trained_run, tmp_path):
    sample = ("sample", trained_run, "--out", tmp_path / "s")
    assert_names(fails(*sample, "--steps", "65", "--num", "1"), "64 steps", "not 65")
    assert_names(fails(*sample, "--temperature", "0", "--num", "1"), "temperature", "above 0", "not 0.0")
    assert_names(fails(*sample, "--classes", "dog"), "'dog'")
    assert_names(fails(*sample, "--num", "0"), "--num", "at least 1", "not 0")
    for words in (sample, ("reconstruct", trained_run, "--data", "digits")):
        assert_names(fails(*words, "--device", "toaster"), "'toaster'", "--device cpu")
        assert_names(fails(*words, "--device", "meta"), "'meta'", "--device cpu")
    assert_names(fails("info", "digits", "--images", "-1"), "--images", "at least 1", "not -1")


def test_images_and_masks_that_are_none(fails, trained_run, tmp_path):
    (tmp_path / "text.png").write_text("hello")
    Image.new("RGB", (8, 8)).save(tmp_path / "black.png")
    words = ("inpaint", trained_run, "--out", tmp_path / "o")
    assert "none.png" in fails(*words, "--image", tmp_path / "none.png", "--mask", tmp_path / "black.png")
    assert "text.png" in fails(*words, "--image", tmp_path / "text.png", "--mask", tmp_path / "black.png")
    assert "black everywhere" in fails(*words, "--image", tmp_path / "black.png", "--mask", tmp_path / "black.png")


def test_an_archive_that_escapes_its_folder_is_refused(fails, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.write(tmp_path / "x.png", "../../x.png")
    assert "x.png" in fails("train", "--out", tmp_path / "r", "--preset", "digits", "--data", tmp_path / "evil.zip")


def test_debug_shows_the_traceback(tmp_path):
    result = bld("train", "--debug", "--out", str(tmp_path / "r"), "--preset", "nothing", "--data", "digits")
    assert result.returncode == 1 and "Traceback" in result.stderr


@pytest.mark.parametrize("text, seconds", [("90", 90), ("45s", 45), ("30m", 1800), ("1h30m", 5400), ("1.5h", 5400)])
def test_times_are_read_as_people_write_them(text, seconds):
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "0s", "3x", "-5m", "1h 30m", "30m!", "1h30", "1d12", "30 m", "30m90"])
def test_other_times_are_refused(text):
    with pytest.raises(SettingError):
        duration(text)


@pytest.mark.parametrize(
    ("command", "kept"),
    [
        (["train", "--out", "r", "--data", "digits"], "last checkpoint"),
        (["encode", "--out", "r"], "codes that are missing"),
        (["sample", "RUN", "--out", "o"], "makes what is missing"),
        (["inpaint", "RUN", "--image", "i.png", "--mask", "i.png", "--out", "o"], "makes what is missing"),
        (["evaluate", "RUN", "--metrics", "bits"], "all else anew"),
        (["neighbours", "RUN"], "Nothing was kept"),
        (["reconstruct", "RUN", "--data", "digits"], "Nothing was kept"),
    ],
)
def test_an_interruption_says_what_it_leaves(command, kept, tmp_path, monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"{COMMANDS[command[0]]}.run", interrupted)
    assert main(command) == 130
    error = capsys.readouterr().err
    assert kept in error and error.count("\n") == 1
    assert ("checkpoint" in error) == (command[0] == "train")


def test_only_commands_with_checkpoints_speak_of_one_when_the_disk_is_full(monkeypatch, capsys):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for command in ("train", "reconstruct"):
        monkeypatch.setattr(f"{COMMANDS[command]}.run", full)
    assert main(["train", "--out", "r"]) == 2 and "checkpoint" in capsys.readouterr().err
    assert main(["reconstruct", "r", "--data", "x"]) == 2 and "checkpoint" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["sample", "~/run", "--out=~/a"], "out"),
        (["inpaint", "~/run", "--image=~/a", "--mask", "m", "--out", "o"], "image"),
        (["train", "--out=~/a"], "out"),
        (["train", "--out", "r", "--condition=~/a"], "condition"),
        (["evaluate", "~/run", "--features=~/a"], "features"),
        (["neighbours", "~/run", "--by=~/a"], "by"),
        (["demo", "--out=~/a"], "out"),
        (["share", "r", "me/x", "--dry-run=~/a"], "dry_run"),
    ],
)
def test_the_home_directory_is_meant_in_every_path(words, name, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(f"{COMMANDS[words[0]]}.run", seen.append)
    assert main(words) == 0
    assert str(getattr(seen[0], name)) == str(tmp_path / "a")
    assert words[1] != "~/run" or str(seen[0].run_folder) == str(tmp_path / "run")


def test_a_home_of_nobody_is_left_as_it_is(monkeypatch):
    seen = []
    monkeypatch.setattr(f"{COMMANDS['sample']}.run", seen.append)
    assert main(["sample", "run", "--out=~nobody-at-all/a"]) == 0 and str(seen[0].out) == "~nobody-at-all/a"


def test_numbers_of_images_and_classes_are_taken_as_they_are_given(fails, run_copy, capsys):
    assert_names(fails("info", run_copy, "--images", "0"), "--images", "not 0")
    assert main(["info", str(run_copy), "--classes", "0"]) == 0
    without = capsys.readouterr().out
    assert main(["info", str(run_copy)]) == 0
    assert capsys.readouterr().out != without


def test_a_reader_that_has_read_enough_is_no_error():
    """As in `bld info digits | head -1`."""
    words = [sys.executable, "-m", "bld", "info", "digits"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait(600) == 0


def test_the_next_command_can_be_pasted_whatever_the_folder_is_called(tmp_path, capsys):
    out = tmp_path / "my features; v2"
    assert main(["train-features", "--data", "digits", "--steps", "1", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert shlex.split(said[said.index("next: ") :].splitlines()[0])[-1] == str(out)

"""The examples run as a newcomer runs them, on tiny settings, and do what they say."""

import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch, capsys, tmp_path):
    """Runs an example in an empty folder; returns what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *(str(word) for word in arguments)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_training_on_a_folder_and_sampling(example, image_folder, tmp_path, tiny_overrides):
    overrides = [word for word in tiny_overrides if "batch_size" not in word]
    overrides += ["tokenizer_training.batch_size=8", "prior_training.batch_size=8"]
    command = ("train_and_sample", image_folder(24, size=8), tmp_path / "run", "digits", *overrides)
    out = example(*command)
    assert "8 images of 8×8 pixels" in out and "4×4×32 bits" in out
    assert len(list((tmp_path / "run").glob("sample-*.png"))) == 8
    assert example(*command).count("trained already") == 2


def test_ones_own_network_learns_and_draws_digits(example):
    out = example("own_network", 60)
    before, after = (float(x) for x in re.search(r"([\d.]+) untrained, ([\d.]+) trained", out).groups())
    assert after < before - 10  # bits; 63 before, as the network begins near a coin's ignorance
    picture = out.splitlines()[-8:]
    assert {len(line) for line in picture} == {6 * 16 + 5 * 3} and any("██" in line for line in picture)


def test_a_denoiser_that_nobody_trained_gives_back_its_data_set(example):
    out = example("own_denoiser")
    assert "16 of 16 samples are digits of the data set" in out
    distances = [float(x) for x in re.findall(r"differs in +([\d.]+) of", out)]
    assert len(distances) == 4 and distances == sorted(distances, reverse=True) and distances[-1] == 0


def test_inpainting_keeps_the_upper_half_and_varies_the_lower(example, run_copy):
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor

    assert "5 fillings" in example("inpaint", run_copy)
    sheet = pil_to_tensor(Image.open(run_copy / "inpainted.png"))
    assert sheet.shape == (3, 64, 7 * 64 + 6 * 2)
    tiles = [sheet[:, :, i * 66 : i * 66 + 64] for i in range(7)]
    assert all(torch.equal(tile[:, :32], tiles[0][:, :32]) for tile in tiles[2:])
    assert not torch.equal(tiles[2], tiles[3])


def test_inpainting_shows_picture_and_mask_as_they_were_filled(example, run_copy, tmp_path):
    """Of a picture that is turned, transparent and not square, by a run whose steps cannot be skipped."""
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor

    from bld import BinaryLatentDiffusionPipeline

    for name, entry, value in (("diffusion/config", "target", "previous"), ("model_index", "sampling", {})):
        path = run_copy / f"{name}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), entry: value}))
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (24, 36, 4), dtype=np.uint8))
    mask = Image.new("L", (36, 24))
    mask.paste(255, (18, 0, 27, 24))  # the third quarter of the central square's columns is filled
    picture.save(tmp_path / "picture.png"), mask.save(tmp_path / "mask.png")
    assert "5 fillings" in example("inpaint", run_copy, tmp_path / "picture.png", tmp_path / "mask.png")
    sheet = pil_to_tensor(Image.open(run_copy / "inpainted.png"))
    shown, hole, *filled = (sheet[:, 4::8, i * 66 + 4 : i * 66 + 64 : 8] for i in range(7))  # a pixel of each 8×8
    seen = BinaryLatentDiffusionPipeline.from_pretrained(run_copy).preprocess(picture)[0]
    assert torch.equal(shown, (255 * seen).round().byte())
    columns = torch.arange(8)
    assert torch.equal(hole, (255 * ((columns >= 4) & (columns < 7))).byte().expand(3, 8, 8))
    kept = hole == 0
    assert all(torch.equal(one[kept], shown[kept]) and not torch.equal(one, shown) for one in filled)


def test_encoding_to_bytes_and_back(example, trained_run):
    out = example("encode_and_decode", trained_run)
    assert "192 numbers an image → 512 bits → 64 bytes" in out
    assert float(re.search(r"([\d.]+) dB", out)[1]) > 5
    assert 0 < float(re.search(r"moves a pixel by ([\d.]+)", out)[1]) < 1


def test_evaluating_from_python(example, run_copy):
    out = example("evaluate", run_copy, 32, 5)
    metrics = dict(line.split() for line in out.splitlines() if re.fullmatch(r"\w+ +\S+", line))
    assert float(metrics["fd"]) > 0 and float(metrics["psnr"]) > 5 and 0 < float(metrics["bits_per_bit"]) < 1.2


def test_every_example_is_run_here():
    run = set(re.findall(r'example\(\s*"(\w+)"|"(train_and_sample)"', Path(__file__).read_text(encoding="utf-8")))
    assert {a or b for a, b in run} == {path.stem for path in EXAMPLES.glob("*.py")}

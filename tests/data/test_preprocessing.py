"""Centre views and training views."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from bld.data import Preprocessing, center_view, training_view
from bld.data.preprocessing import crop_fractions, flips, strip
from bld.errors import SettingError


def picture(width: int, height: int) -> tuple[Image.Image, torch.Tensor]:
    array = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(array), torch.from_numpy(array).permute(2, 0, 1)


def test_an_image_of_the_exact_size_is_untouched():
    image, pixels = picture(16, 16)
    view = center_view(image, Preprocessing(16))
    assert view.dtype == torch.uint8 and view.is_contiguous()
    assert torch.equal(view, pixels)


@pytest.mark.parametrize(("width", "height", "left", "top"), [(21, 16, 2, 0), (16, 20, 0, 2)])
def test_with_an_exact_shorter_side_the_centre_is_cut_out_untouched(width, height, left, top):
    image, pixels = picture(width, height)
    view = center_view(image, Preprocessing(16))
    assert torch.equal(view, pixels[:, top : top + 16, left : left + 16])


@pytest.mark.parametrize("size", [(5, 9), (100, 40), (1, 1), (3000, 1), (1, 70000)])
def test_any_shape_becomes_the_square(size):
    assert center_view(Image.new("RGB", size), Preprocessing(32)).shape == (3, 32, 32)


@pytest.mark.parametrize("resample", ["lanczos", "bicubic", "bilinear", "box"])
def test_a_fine_checkerboard_shrinks_to_grey(resample):
    board = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    view = center_view(Image.fromarray(board), Preprocessing(32, resample=resample)).float()
    inner = view[:, 2:-2, 2:-2]
    assert (inner - 127.5).abs().max() < 2


def test_transparent_pixels_take_the_background():
    view = center_view(Image.new("RGBA", (4, 4)), Preprocessing(4, background=(1, 2, 3)))
    assert view[:, 0, 0].tolist() == [1, 2, 3]


def test_a_training_view_depends_on_the_seed_alone():
    image, _ = picture(48, 32)
    prep = Preprocessing(16, crop="random", flip=True)
    torch.manual_seed(0)
    first = [training_view(image, prep, seed) for seed in range(40)]
    torch.manual_seed(1)
    backwards = [training_view(image, prep, seed) for seed in reversed(range(40))]
    assert all(torch.equal(a, b) for a, b in zip(first, reversed(backwards), strict=True))
    assert len({view.numpy().tobytes() for view in first}) > 10


def test_without_random_crop_and_flip_the_training_view_is_the_centre_view():
    image, _ = picture(48, 32)
    prep = Preprocessing(16)
    assert all(torch.equal(training_view(image, prep, seed), center_view(image, prep)) for seed in range(9))


@pytest.mark.parametrize("shape", [(20, 16), (16, 20)])
def test_random_crops_reach_every_position_and_nothing_else(shape):
    image, pixels = picture(*shape)
    length = -1 if shape[0] > shape[1] else -2
    windows = {pixels.narrow(length, start, 16).contiguous().numpy().tobytes() for start in range(5)}
    prep = Preprocessing(16, crop="random")
    found = {training_view(image, prep, seed).numpy().tobytes() for seed in range(200)}
    assert found == windows  # a given window is missed with probability 0.8^200 < 1e-19


@pytest.mark.parametrize("shape", [(96, 32), (32, 96), (97, 32), (31, 90)])
def test_random_crops_of_a_shrunken_image_are_where_they_say(shape):
    """A ramp along the longer side: a view begins at the brightness of its place, and covers a square of it."""
    side, longer = sorted(shape)
    ramp = np.linspace(0, 255, longer)
    board = (
        np.broadcast_to(ramp, (side, longer)) if shape[0] > shape[1] else np.broadcast_to(ramp[:, None], shape[::-1])
    )
    image = Image.fromarray(board.astype(np.uint8))
    length = round(longer * 16 / side)
    for seed in range(40):
        view = training_view(image, Preprocessing(16, crop="random"), seed).float()
        along = view.mean((0, 1)) if shape[0] > shape[1] else view.mean((0, 2))
        start = int(crop_fractions([seed])[0] * (length - 16 + 1))
        expected = 255 * (torch.arange(start, start + 16) + 0.5) / length
        assert (along - expected).abs().max() < 3


@pytest.mark.parametrize("size", [(3000, 1), (1, 70000), (5, 9), (40, 100)])
def test_random_crops_of_any_shape_are_squares_and_stay_small(size):
    prep = Preprocessing(32, crop="random")
    image = Image.new("RGB", size)
    assert training_view(image, prep, 0).shape == (3, 32, 32)
    assert sorted(strip(image, prep).shape[1:])[0] == 32 and max(strip(image, prep).shape) <= 16 * 32


def test_flips_mirror_half_of_the_views():
    image, pixels = picture(8, 8)
    prep = Preprocessing(8, flip=True)
    mirrored = 0
    for seed in range(64):
        view = training_view(image, prep, seed)
        mirrored += torch.equal(view, pixels.flip(-1))
        assert torch.equal(view, pixels) or torch.equal(view, pixels.flip(-1))
    assert 8 <= mirrored <= 56


def test_draws_are_fair_and_independent_of_each_other():
    """Deterministic, so no false alarm once it passes; for random bits each bound is over five deviations."""
    n = 100_000
    for seeds in (range(n), range(0, n << 40, 1 << 40), range(-n, 0)):
        flip, fraction = flips(seeds), crop_fractions(seeds)
        assert abs(flip.mean() - 0.5) < 0.008
        assert abs(fraction.mean() - 0.5) < 0.005
        assert abs((flip[1:] == flip[:-1]).mean() - 0.5) < 0.008
        assert abs(np.corrcoef(flip, fraction)[0, 1]) < 0.016
        assert fraction.min() >= 0 and fraction.max() < 1


def test_draws_never_change():
    """Resumed runs and other machines must see the same views."""
    assert flips(range(16)).astype(int).tolist() == FLIPS_OF_16
    np.testing.assert_allclose(crop_fractions([0, 1, 2**63 - 1]), FRACTIONS_OF_3, atol=1e-12)


FLIPS_OF_16 = [1, 1, 1, 0, 0, 0, 1, 0, 1, 1, 0, 0, 1, 1, 0, 1]
FRACTIONS_OF_3 = [0x6E789E6AA1B965F4 / 2**64, 0.7457817572627011, 0.9454956800914366]  # SplitMix64(0)'s 2nd


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 0}, "image_size is 0"),
        ({"image_size": 32.0}, "image_size is 32.0"),
        ({"image_size": True}, "image_size is True"),
        ({"crop": "centre"}, "crop is 'centre'.*'center'"),
        ({"resample": "nearest"}, "resample is 'nearest'"),
        ({"flip": "yes"}, "flip is 'yes'"),
        ({"background": (0, 0, 256)}, "background is"),
        ({"background": (0, 0)}, "background is"),
        ({"background": "white"}, "background is"),
        ({"background": 7}, "background is 7"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        Preprocessing(**{"image_size": 32, **settings})


def test_key_is_json_and_holds_what_changes_the_centre_view():
    key = Preprocessing(32).key()
    assert json.loads(json.dumps(key)) == key
    assert Preprocessing(32, crop="random", flip=True).key() == key
    changed = [Preprocessing(31), Preprocessing(32, resample="box"), Preprocessing(32, background=(0, 0, 0))]
    assert all(prep.key() != key for prep in changed)


def test_a_background_from_yaml_is_a_tuple():
    prep = Preprocessing(32, background=[1, 2, 3])
    assert len({prep, Preprocessing(32, background=(1, 2, 3))}) == 1

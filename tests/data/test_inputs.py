"""Pictures and masks in every form in which users hold them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from bld.data import Preprocessing
from bld.data.inputs import mask_view, network_views, opened_masks
from bld.errors import DataError, SettingError

PREP = Preprocessing(8)
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
UNIT = PIXELS.astype(np.float32) / 255
HOLE = np.zeros((8, 8), bool)
HOLE[2:5, 3:6] = True


def forms(tmp_path) -> dict[str, object]:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    chw = torch.from_numpy(UNIT).permute(2, 0, 1)
    return {
        "pil": Image.fromarray(PIXELS),
        "path": tmp_path / "a.png",
        "text": str(tmp_path / "a.png"),
        "bytes": PIXELS,
        "batch of bytes": PIXELS[None],
        "floats": UNIT,
        "float64": UNIT.astype(np.float64)[None],
        "tensor": chw,
        "batch": chw[None],
        "half": chw.to(torch.float64),
        "bytes in a tensor": torch.from_numpy(PIXELS).permute(2, 0, 1),
        "list": [Image.fromarray(PIXELS)],
    }


def test_every_form_of_a_picture_means_the_same(tmp_path):
    expected = torch.from_numpy(PIXELS).permute(2, 0, 1)[None] / 127.5 - 1
    for name, form in forms(tmp_path).items():
        torch.testing.assert_close(network_views(form, PREP), expected, atol=1e-6, rtol=0, msg=name)


def test_forms_may_be_mixed(tmp_path):
    found = network_views(list(forms(tmp_path).values()), PREP)
    assert len(found) == len(forms(tmp_path)) and (found - found[:1]).abs().max() < 1e-6


def test_a_tensor_of_another_size_is_resized_as_a_picture_is():
    large = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    expected = network_views(Image.fromarray(large), PREP)
    assert torch.equal(network_views(torch.from_numpy(large).permute(2, 0, 1).float() / 255, PREP), expected)
    assert torch.equal(network_views(large / 255, PREP), expected)


@pytest.mark.parametrize("wrong", [
    torch.full((3, 8, 8), float("nan")), np.full((8, 8, 3), np.inf, np.float32), torch.full((3, 8, 8), -0.5),
    torch.full((3, 8, 8), 127.0), torch.zeros(3, 8, 8, dtype=torch.int64), torch.zeros(1, 8, 8), torch.zeros(8),
    np.zeros((8, 8, 5), np.uint8), np.zeros((8, 8, 3), np.int32), 7, None, [], {}, [None], torch.zeros(0, 3, 8, 8),
    "nowhere.png",
])  # fmt: skip
def test_what_is_no_picture_is_one_sentence(wrong):
    with pytest.raises((SettingError, DataError)) as error:
        network_views(wrong, PREP)
    assert len(str(error.value).splitlines()) == 1


# -- masks ------------------------------------------------------------------------------------------------


def layer(colour: int, alpha: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack([*[np.full((8, 8), colour, np.uint8)] * 3, alpha.astype(np.uint8)]))


def masks(tmp_path) -> dict[str, object]:
    white = HOLE.astype(np.uint8) * 255
    zero_one = Image.fromarray(HOLE.astype(np.uint8))
    coded = Image.new("P", (8, 8))
    coded.putpalette([0, 0, 0, 255, 255, 255])
    coded.putdata(HOLE.astype(np.uint8).ravel().tolist())
    Image.fromarray(white).save(tmp_path / "m.png")
    turned = Image.fromarray(np.rot90(white).copy())
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer turns it by 270 degrees
    turned.save(tmp_path / "turned.png", exif=exif)
    return {
        "L": Image.fromarray(white),
        "1": Image.fromarray(HOLE),
        "RGB": Image.fromarray(white).convert("RGB"),
        "opaque RGBA": Image.fromarray(white).convert("RGBA"),
        "white strokes on transparent white": layer(255, white),
        "strokes on transparent black": Image.fromarray(np.dstack([white] * 4)),
        "LA": layer(255, white).convert("LA"),
        "I;16": Image.fromarray(white.astype(np.uint16) * 257),
        "I": Image.fromarray(white.astype(np.int32) * 257),
        "F to 1": Image.fromarray(HOLE.astype(np.float32)),
        "F to 255": Image.fromarray(white.astype(np.float32)),
        "0/1 in L": zero_one,
        "palette": coded,
        "file": tmp_path / "m.png",
        "turned by EXIF": tmp_path / "turned.png",
        "bool": HOLE,
        "0/1": HOLE.astype(np.int64),
        "bytes": white,
        "16 bit": white.astype(np.uint16) * 257,
        "float": HOLE.astype(np.float64),
        "lists": HOLE.tolist(),
        "(H, W, 1)": white[..., None],
        "(1, H, W)": torch.from_numpy(HOLE)[None],
        "(1, 1, H, W)": torch.from_numpy(HOLE)[None, None].float(),
        "(3, H, W)": torch.from_numpy(HOLE)[None].expand(3, -1, -1),
        "(H, W, 4)": np.asarray(layer(255, white)),
        "half": torch.from_numpy(HOLE).half(),
    }


def test_every_form_of_a_mask_means_the_same(tmp_path):
    for name, form in masks(tmp_path).items():
        (found,) = opened_masks(form, 1)
        assert np.array_equal(found, HOLE), name


@pytest.mark.parametrize("form", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_stack_of_as_many_masks_as_pictures_is_one_for_each(form, count):
    masks = np.stack([np.roll(HOLE, i, axis=1) for i in range(count)])
    for stack in (masks, masks[:, None], masks.astype(np.uint8) * 255, masks[:, None].astype(np.float32)):
        assert np.array_equal(np.stack(opened_masks(form(stack), count)), masks)
    rgb = np.repeat(HOLE[..., None].astype(np.uint8) * 255, 3, axis=-1)
    of_one = torch.as_tensor(rgb).permute(2, 0, 1) if form is torch.as_tensor else rgb
    assert np.array_equal(opened_masks(of_one, 1)[0], HOLE)


def test_one_mask_serves_all_and_several_are_counted():
    assert len(opened_masks(HOLE, 3)) == 3
    first, second = opened_masks([HOLE, ~HOLE], 2)
    assert np.array_equal(first, ~second)
    with pytest.raises(SettingError, match=r"\b2 masks .* 3 images"):
        opened_masks([HOLE, HOLE], 3)


@pytest.mark.parametrize(
    "wrong", [np.full((8, 8), np.nan), np.zeros((2, 8, 8, 3)), np.zeros(0), "nowhere.png", None, object(), ["x"], {}]
)
def test_what_is_no_mask_is_one_sentence(wrong):
    with pytest.raises((SettingError, DataError)) as error:
        opened_masks(wrong, 1)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("size", [8, 16, 50, 64, 100, 400])
def test_a_line_of_one_pixel_survives_being_scaled_down_and_up(size):
    for row, vertical in itertools.product((0, size // 3, size - 1), (False, True)):
        hole = np.zeros((size, size), bool)
        hole[row] = True
        found = mask_view(hole.T if vertical else hole, 8)
        assert (found.any(0) if not vertical else found.any(1)).all()
        assert found.sum() <= 3 * 8


def test_a_mask_of_the_size_is_kept_pixel_by_pixel_and_a_wide_one_is_cropped_as_the_picture_is():
    assert np.array_equal(mask_view(HOLE, 8).numpy(), HOLE)
    wide = np.pad(HOLE, ((0, 0), (4, 4)), constant_values=True)
    assert np.array_equal(mask_view(wide, 8).numpy(), HOLE)

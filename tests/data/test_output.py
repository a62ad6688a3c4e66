"""Value ranges, grids and files written."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from bld.data import make_grid, make_pairs, save_png, to_pil, to_uint8, to_unit
from bld.errors import DataError, SettingError


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_256_values_make_the_round_trip(dtype):
    values = torch.arange(256, dtype=torch.uint8)
    unit = to_unit(values)
    assert unit.dtype == torch.float32
    assert unit[0] == -1 and unit[-1] == 1
    torch.testing.assert_close(unit, values.float() / 127.5 - 1, rtol=0, atol=0)
    assert torch.equal(to_uint8(unit.to(dtype)), values)


def test_values_beyond_the_range_are_clamped_and_the_input_is_left_alone():
    images = torch.tensor([-9.0, -1.001, 1.001, float("inf")], requires_grad=True)
    assert to_uint8(images).tolist() == [0, 0, 255, 255]
    assert images[0].item() == -9


def test_the_wrong_direction_is_refused():
    with pytest.raises(SettingError, match="float32"):
        to_unit(torch.zeros(1))
    with pytest.raises(SettingError, match="uint8"):
        to_uint8(torch.zeros(1, dtype=torch.uint8))


def test_to_pil_keeps_rows_columns_and_channels():
    pixels = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    images = to_pil(to_unit(pixels))
    assert [image.size for image in images] == [(5, 4)] * 2
    for image, expected in zip(images, pixels, strict=True):
        np.testing.assert_array_equal(np.asarray(image), expected.permute(1, 2, 0).numpy())
    with pytest.raises(SettingError, match=r"\(B, 3, H, W\)"):
        to_pil(torch.zeros(3, 4, 5))


def test_grid_places_every_pixel():
    pixels = torch.randint(0, 256, (5, 3, 4, 6), dtype=torch.uint8)
    sheet = np.asarray(make_grid(to_unit(pixels), columns=3, scale=2, gap=3, background=(1, 2, 3)))
    assert sheet.shape == (2 * 8 + 3, 3 * 12 + 2 * 3, 3)
    expected = np.full_like(sheet, (1, 2, 3))
    for i, image in enumerate(pixels.permute(0, 2, 3, 1).numpy()):
        top, left = (i // 3) * 11, (i % 3) * 15
        expected[top : top + 8, left : left + 12] = image.repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(sheet, expected)


@pytest.mark.parametrize(("count", "columns", "size"), [(9, None, (24, 24)), (5, None, (24, 16)), (2, 8, (16, 8))])
def test_grid_is_near_square_and_never_wider_than_its_images(count, columns, size):
    assert make_grid(torch.zeros(count, 3, 8, 8), columns=columns, gap=0).size == size


@pytest.mark.parametrize("count", [1, 3, 4, 6])
def test_each_image_stands_over_its_own(count):
    above = torch.arange(count).view(-1, 1, 1, 1).expand(-1, 3, 2, 2) / 100
    pixels = np.asarray(make_pairs(above, -above, columns=4)).astype(float)
    first, second = to_uint8(above)[:, 0, 0, 0], to_uint8(-above)[:, 0, 0, 0]
    columns = min(count, 4)
    assert pixels.shape[:2] == (-(-count // columns) * 2 * 4 - 2, columns * 4 - 2)
    for i in range(-(-count // columns) * columns):
        row, column = divmod(i, columns)
        there = [pixels[8 * row + down, 4 * column, 0] for down in (0, 4)]
        assert there == ([first[i], second[i]] if i < count else [255, 255])


@pytest.mark.parametrize(
    ("count", "settings", "message"),
    [
        (0, {}, "images?; there are 0"),
        (4, {"columns": 0}, "columns is 0"),
        (4, {"scale": 0}, "scale is 0"),
        (4, {"gap": -1}, "gap is -1"),
    ],
)
def test_impossible_grids_are_refused(count, settings, message):
    with pytest.raises(SettingError, match=message):
        make_grid(torch.zeros(count, 3, 8, 8), **settings)


def test_save_png_writes_tensors_and_pictures_losslessly(tmp_path):
    pixels = torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8)
    save_png(to_unit(pixels), tmp_path / "new" / "a.png")
    save_png(to_pil(to_unit(pixels)[None])[0], str(tmp_path / "new" / "b.png"))
    for name in ("a.png", "b.png"):
        found = np.asarray(Image.open(tmp_path / "new" / name))
        np.testing.assert_array_equal(found, pixels.permute(1, 2, 0).numpy())
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == ["a.png", "b.png"]


def test_save_png_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    save_png(Image.new("RGB", (1, 1), (1, 2, 3)), tmp_path / "a.png")

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", no_space)
    with pytest.raises(DataError, match=r"space .*a\.png"):
        save_png(Image.new("RGB", (1, 1)), tmp_path / "a.png")
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
    assert Image.open(tmp_path / "a.png").getpixel((0, 0)) == (1, 2, 3)


def test_save_png_writes_nothing_but_png(tmp_path):
    with pytest.raises(SettingError, match=r"a\.jpg .*\.png"):
        save_png(Image.new("RGB", (1, 1)), tmp_path / "a.jpg")

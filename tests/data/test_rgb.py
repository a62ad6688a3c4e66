"""Every mode that images come in, turned into RGB."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from bld.data import to_rgb
from bld.errors import DataError

PINK = (250, 100, 150)


def reopened(image: Image.Image, kind: str, **options: object) -> Image.Image:
    """The image after a trip through a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Image.open(buffer)


def colours(image: Image.Image, background: tuple[int, int, int] = PINK) -> list[tuple[int, ...]]:
    rgb = to_rgb(image, background)
    assert rgb.mode == "RGB"
    return [tuple(pixel) for pixel in np.asarray(rgb).reshape(-1, 3).tolist()]


def from_rows(rows: list, dtype: type) -> Image.Image:
    return Image.fromarray(np.array(rows, dtype=dtype))


def test_rgb_is_returned_as_it_is():
    image = Image.new("RGB", (2, 2), (1, 2, 3))
    assert to_rgb(image, PINK) is image


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "La", "RGBa"])
def test_alpha_shows_the_background_where_transparent(mode):
    image = Image.new("RGBA", (3, 1), (0, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    image.putpixel((2, 0), (0, 0, 0, 128))
    if mode == "PA":
        alpha = image.getchannel("A")
        image = image.convert("RGB").convert("P")
        image.putalpha(alpha)
    else:
        image = image.convert("LA" if mode == "La" else "RGBA").convert(mode)
    assert image.mode == mode
    black, clear, half = colours(image)
    assert black == (0, 0, 0)
    assert clear == PINK
    np.testing.assert_allclose(half, np.array(PINK) * 127 / 255, atol=1)


def test_colour_of_transparent_pixels_does_not_leak():
    image = Image.new("RGBA", (1, 1), (0, 255, 0, 0))
    assert colours(image) == [PINK]


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 255])])
def test_palette_transparency(transparency):
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    found = colours(reopened(image, "PNG", transparency=transparency))
    assert found == [(10, 20, 30), PINK, (70, 80, 90)]


def test_gif_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    assert colours(reopened(image, "GIF", transparency=1)) == [(10, 20, 30), PINK]


def test_transparent_colour_of_greyscale_and_rgb():
    assert colours(reopened(from_rows([[7, 9]], np.uint8), "PNG", transparency=9)) == [(7, 7, 7), PINK]
    image = Image.new("RGB", (1, 1), (1, 2, 3))
    assert colours(reopened(image, "PNG", transparency=(1, 2, 3))) == [PINK]


def test_greyscale_palette_and_one_bit():
    assert colours(from_rows([[0, 77, 255]], np.uint8)) == [(0, 0, 0), (77, 77, 77), (255, 255, 255)]
    assert colours(Image.new("1", (1, 1), 1)) == [(255, 255, 255)]
    image = Image.new("P", (1, 1))
    image.putpalette([10, 20, 30])
    assert colours(image) == [(10, 20, 30)]


def test_cmyk_from_a_jpeg():
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    np.testing.assert_allclose(colours(reopened(red, "JPEG", quality=95))[0], (255, 0, 0), atol=4)


def sixteen_bit_png(values: list[int], transparent: int | None = None) -> Image.Image:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", len(values), 1, 16, 0, 0, 0, 0)
    key = b"" if transparent is None else chunk(b"tRNS", struct.pack(">H", transparent))
    data = zlib.compress(b"\0" + struct.pack(f">{len(values)}H", *values))
    parts = (chunk(b"IHDR", header), key, chunk(b"IDAT", data), chunk(b"IEND", b""))
    return Image.open(io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(parts)))


def test_sixteen_bits_are_scaled_by_257():
    grey = [colour[0] for colour in colours(sixteen_bit_png([0, 128, 129, 257, 32896, 65535]))]
    assert grey == [0, 0, 1, 1, 128, 255]
    assert colours(sixteen_bit_png([0, 1000], transparent=1000)) == [(0, 0, 0), PINK]


@pytest.mark.parametrize("kind", ["PPM", "TIFF"])
def test_sixteen_bits_of_other_formats(kind):
    image = reopened(from_rows([[0, 257, 65535]], np.uint16), kind)
    assert [colour[0] for colour in colours(image)] == [0, 1, 255]


def test_thirty_two_bits_are_clamped_to_sixteen():
    image = from_rows([[-5, 0, 257 * 9, 65535, 1 << 30]], np.int32)
    assert image.mode == "I"
    assert [colour[0] for colour in colours(image)] == [0, 0, 9, 255, 255]


@pytest.mark.parametrize(
    ("values", "grey"),
    [
        ([0.0, 0.2, 1.0], [0, 51, 255]),
        ([-1.0, 51.4, 255.0], [0, 51, 255]),
        ([0.0, 257.0, 65535.0], [0, 1, 255]),
        ([float("nan"), float("-inf"), 1.0], [0, 0, 255]),
        ([0.5, 1.0, float("inf")], [0, 0, 255]),
    ],
)
def test_floats_tell_their_range_by_their_largest_value(values, grey):
    assert [colour[0] for colour in colours(from_rows([values], np.float32))] == grey


def test_lab_is_refused():
    with pytest.raises(DataError, match="LAB"):
        to_rgb(Image.new("LAB", (1, 1)), PINK)


def stored_as(picture: np.ndarray, orientation: int) -> np.ndarray:
    """What a camera stores so that a viewer obeying `orientation` shows `picture` (EXIF 2.3, tag 274)."""
    return {
        1: picture,
        2: picture[:, ::-1],
        3: picture[::-1, ::-1],
        4: picture[::-1],
        5: picture.transpose(1, 0, 2),
        6: np.rot90(picture, 1),
        7: np.rot90(picture, 2).transpose(1, 0, 2),
        8: np.rot90(picture, -1),
    }[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_undone(orientation, kind):
    picture = np.random.default_rng(0).integers(0, 256, (2, 3, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    stored = Image.fromarray(np.ascontiguousarray(stored_as(picture, orientation)))
    image = reopened(stored, kind, exif=exif, **options)
    image.load()
    np.testing.assert_array_equal(np.asarray(to_rgb(image, PINK)), picture)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("block", [b"garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"", b"\0" * 99])
def test_damaged_exif_leaves_the_picture_as_it_is(block):
    picture = np.random.default_rng(0).integers(0, 256, (3, 2, 3), dtype=np.uint8)
    image = Image.fromarray(picture)
    image.info["exif"] = block
    np.testing.assert_array_equal(np.asarray(to_rgb(image, PINK)), picture)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_unknown_orientations_are_upright(value):
    picture = np.random.default_rng(0).integers(0, 256, (3, 2, 3), dtype=np.uint8)
    image = Image.fromarray(picture)
    image.getexif()[0x0112] = value
    np.testing.assert_array_equal(np.asarray(to_rgb(image, PINK)), picture)

"""Uploads: pictures of any make become plain PNG files, anything else becomes a sentence."""

from __future__ import annotations

import base64
import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bld.data import to_rgb
from bld.errors import DataError
from bld.studio.uploads import MOST_PIXELS, Uploads, mask_from, safe_picture

from .odd_files import encoded, png_claiming

REFUSED = {
    "nothing": b"",
    "text": b"I am no image",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
    "pickle": pickle.dumps({"a": 1}),
    "half": encoded(size=(640, 640))[:300],
    "bomb": png_claiming(100_000, 100_000),
    "a little too large": encoded("PNG", "1", (8000, MOST_PIXELS // 8000 + 1)),
    "too many bytes": os.urandom(3 * 2**20),
}
TAKEN = {
    "jpeg": encoded("JPEG"),
    "cmyk": encoded("JPEG", "CMYK"),
    "webp": encoded("WEBP"),
    "gif": encoded("GIF", "P"),
    "sixteen bit": encoded("PNG", "I;16"),
    "one bit": encoded("PNG", "1"),
    "palette with a hole": encoded("PNG", "P", transparency=0),
    "alpha": encoded("PNG", "RGBA"),
    "grey and alpha": encoded("PNG", "LA"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_picture_is_refused_in_a_sentence(tmp_path: Path, name: str):
    uploads = Uploads(tmp_path, most_bytes=2 * 2**20)
    with pytest.raises(DataError) as refusal:
        uploads.take(REFUSED[name])
    sentence = str(refusal.value)
    assert sentence[0].isupper() and sentence.endswith(".") and str(tmp_path) not in sentence and "0x" not in sentence
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", TAKEN)
def test_a_picture_of_any_make_becomes_a_plain_png(tmp_path: Path, name: str):
    uploads = Uploads(tmp_path)
    with Image.open(uploads.path(uploads.take(TAKEN[name]))) as picture:
        assert picture.format == "PNG" and picture.size == (8, 6)
        assert picture.mode == ("RGBA" if "alpha" in name or "hole" in name else "RGB")


def test_a_turned_photo_is_upright_and_loses_what_it_says_about_its_owner(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "Camera of somebody"
    picture = safe_picture(encoded("JPEG", size=(8, 4), exif=exif.tobytes()))
    assert picture.size == (4, 8) and not picture.info and not picture.getexif()


@pytest.mark.parametrize(
    "token",
    ["/etc/passwd", "../secret.png", "a" * 32 + ".png", "", None, 7, {"path": "x"}, "A" * 32 + ".png", "\0.png"],
)
def test_only_tokens_name_files(tmp_path: Path, token: object):
    (tmp_path.parent / "secret.png").write_bytes(encoded())
    with pytest.raises(DataError):
        Uploads(tmp_path).path(token)


def test_the_oldest_pictures_go_when_there_are_too_many(tmp_path: Path):
    uploads = Uploads(tmp_path, most_files=3)
    tokens = [uploads.take(encoded()) for _ in range(5)]
    assert len(set(tokens)) == 5 and len(list(tmp_path.iterdir())) == 3
    assert uploads.path(tokens[-1]).is_file()
    with pytest.raises(DataError, match=r"upload .*again"):
        uploads.path(tokens[0])


def test_the_oldest_pictures_go_when_all_are_too_large_together(tmp_path: Path):
    rng = np.random.default_rng(0)
    noise = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(noise, "PNG")
    uploads = Uploads(tmp_path, most_total_bytes=30_000)  # of three pictures of 12 kB, two
    tokens = [uploads.take(noise.getvalue()) for _ in range(3)]
    assert uploads.path(tokens[1]).is_file() and uploads.path(tokens[2]).is_file()
    with pytest.raises(DataError, match=r"upload .*again"):
        uploads.path(tokens[0])
    uploads.take(encoded())
    assert uploads.path(tokens[1]).is_file()
    small = Uploads(tmp_path, most_total_bytes=1)
    assert small.path(small.take(noise.getvalue())).is_file()  # the newest stays


def uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def test_a_mask_arrives_as_a_small_png_of_the_right_size():
    assert mask_from(uri(encoded(mode="L", size=(8, 8))), (8, 8)).size == (8, 8)
    wrong = ["", None, 3, "data:image/png;base64,???", uri(b"text"), uri(encoded(size=(9, 8))), "/etc/passwd"]
    wrong += [uri(png_claiming(50_000, 50_000)), uri(encoded() + bytes(10_000)), "http://127.0.0.1/mask.png"]
    for value in wrong:
        with pytest.raises(DataError):
            mask_from(value, (8, 8))


def test_what_is_transparent_in_a_mask_was_not_painted():
    painted = Image.new("RGBA", (4, 4), (255, 255, 255, 0))
    painted.paste((255, 255, 255, 255), (1, 1, 3, 3))
    buffer = io.BytesIO()
    painted.save(buffer, "PNG")
    hole = np.asarray(mask_from(uri(buffer.getvalue()), (4, 4)))
    wanted = np.zeros((4, 4), np.uint8)
    wanted[1:3, 1:3] = 255
    assert np.array_equal(hole, wanted)


@pytest.mark.parametrize("mode", ["I;16", "L", "P", "RGBA", "LA"])
def test_transparency_of_every_kind_is_left_to_the_models_background(mode: str):
    grey = Image.new("L", (2, 2))
    grey.putpixel((0, 0), 200)
    buffer = io.BytesIO()
    if mode == "I;16":
        Image.fromarray(np.array([[51400, 0], [0, 0]], np.uint16)).save(buffer, "PNG", transparency=0)
    elif mode in ("L", "P"):
        grey.convert(mode).save(buffer, "PNG", transparency=0)
    else:
        grey.putalpha(grey.point(lambda value: 255 if value else 0))
        grey.convert(mode).save(buffer, "PNG")
    picture = safe_picture(buffer.getvalue())
    assert np.asarray(picture.convert("RGBA"))[..., 3].tolist() == [[255, 0], [0, 0]]
    prepared = np.asarray(to_rgb(picture, (10, 20, 30)))
    assert prepared[0, 0].tolist() == [200] * 3 and prepared[1, 1].tolist() == [10, 20, 30]

"""The preset that suits images, and why none does."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from PIL import Image

from bld.cli.presets import choose_preset, look_at
from bld.errors import DataError


def test_images_that_cannot_be_read_are_refused_with_the_reason(tmp_path: Path):
    Image.new("RGB", (100, 100)).save(tmp_path / "1.png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("1.png", b"no image")
    with pytest.raises(DataError, match=r"tried can be read; of the first, 1.png: .") as caught:
        look_at(str(tmp_path / "a.zip"))
    assert str(caught.value).count("1.png") == 1
    (tmp_path / "a.zip").unlink()
    with pytest.raises(DataError, match=r"of the first, 1.png: .*data.max_megapixels"):
        choose_preset(str(tmp_path), None, ["data.max_megapixels=0.001"])
    assert choose_preset(str(tmp_path), None, ["data.max_megapixels=0.1"]).name == "emoji64"

"""Files that name other files."""

from __future__ import annotations

import json
import os
import sys

import pytest

from bld.cli import main
from bld.data import open_images
from bld.errors import SettingError
from bld.io.files import folder_written_aside, read_json, write_json
from bld.studio.export import png, pretty
from bld.studio.model import Model
from bld.training.run_folder import RunFolder

LATIN = os.fsdecode(b"caf\xe9")  # as the system hands out a name that is no UTF-8


@pytest.mark.parametrize("name", ["a", "日本.png", LATIN, f"{LATIN}/\n\\\"'"])
def test_json_keeps_every_name_and_is_utf8(tmp_path, name):
    write_json(tmp_path / "a.json", {name: [name]})
    assert read_json(tmp_path / "a.json") == {name: [name]}
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {name: [name]}
    assert json.loads(pretty({"call": name})) == {"call": name} and png(open_images("digits").read(0), {"a": name})


@pytest.mark.skipif(sys.platform == "win32", reason="fcntl")
def test_what_is_flushed_is_open_for_writing(tmp_path, monkeypatch):
    """Windows refuses others: "Bad file descriptor"."""
    import fcntl

    modes = []
    monkeypatch.setattr(os, "fsync", lambda number: modes.append(fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE))
    write_json(tmp_path / "a.json", {})
    assert modes and os.O_RDONLY not in modes


def test_a_run_of_images_whose_names_are_no_utf8(tmp_path, image_folder, tiny_overrides):
    from bld.pipeline import BinaryLatentDiffusionPipeline
    from bld.training.run_images import DataRecord

    images, run = tmp_path / LATIN, tmp_path / "run"
    image_folder(60, 28, classes=2).rename(images)
    (images / "class0").rename(images / LATIN)
    for path in sorted((images / LATIN).iterdir()):
        path.rename(path.with_name(os.fsdecode(b"\xe4" + os.fsencode(path.name))))
    assert main(["train", "--data", str(images), "--out", str(run), "--preset", "digits", *tiny_overrides]) == 0
    record = DataRecord.read(RunFolder(run))
    assert sorted(record.classes) == [LATIN, "class1"] and record.location == str(images)
    assert r"caf\udce9" in (run / "report.html").read_text(encoding="utf-8")
    assert main(["share", str(run), "you/x", "--dry-run", str(tmp_path / "shared")]) == 0
    assert r"caf\udce9" in (tmp_path / "shared" / "README.md").read_text(encoding="utf-8")
    pipe = BinaryLatentDiffusionPipeline.from_pretrained(tmp_path / "shared")
    assert sorted(pipe.classes) == [LATIN, "class1"]
    model = Model(pipe, LATIN)
    assert r"caf\udce9" in model.classes and model.name == r"caf\udce9"


def test_a_run_folder_whose_name_is_no_utf8_is_refused_before_it_is_made(tmp_path):
    with pytest.raises(SettingError, match="--out"):
        RunFolder(tmp_path / LATIN).adopt("digits", [], "digits")
    assert not (tmp_path / LATIN).exists()


@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(0o077, 0o600, 0o700), (0o022, 0o644, 0o755), (0o002, 0o664, 0o775)]
)
def test_what_is_written_can_be_read_by_those_whom_the_user_lets_read(tmp_path, umask, file, folder):
    before = os.umask(umask)
    try:
        write_json(tmp_path / "a.json", 1)
        with folder_written_aside(tmp_path / "made") as aside:
            write_json(aside / "b.json", 2)
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("a.json", "made/b.json", "made")]
    assert modes == [file, file, folder]

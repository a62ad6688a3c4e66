"""Captions from tables, from the text beside each image in every kind of source, and from a data set's column."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from bld.data import open_images, read_captions
from bld.errors import DataError

CAPTIONS = {"000.png": "a red square", "001.png": "", "002.png": "a blue square, with a word: naïve"}


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (200, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def files() -> dict[str, bytes]:
    """Three images, two of them with a text beside."""
    texts = {name.replace(".png", ".txt"): f" {text}\n".encode() for name, text in CAPTIONS.items() if text}
    return {**{name: png() for name in CAPTIONS}, **texts}


def folder(path: Path, content: dict[str, bytes]) -> Path:
    for name, data in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def tar(path: Path, content: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def zipped(path: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def said(location: Path | str, choice: str = "auto") -> list[str] | None:
    found = read_captions(open_images(str(location)), choice)
    return None if found is None else list(found)


def test_the_text_beside_each_image_of_folders_and_archives(tmp_path: Path):
    expected = list(CAPTIONS.values())
    assert said(folder(tmp_path / "plain", files())) == expected
    deeper = {f"deep/{name}": data for name, data in files().items()}
    assert said(folder(tmp_path / "deeper", deeper)) == expected
    assert said(zipped(tmp_path / "a.zip", files())) == expected
    assert said(tar(tmp_path / "a.tar", files())) == expected
    assert said(tar(tmp_path / "a.tar.gz", files(), "w:gz")) == expected


def test_shards_say_it_in_txt_or_json(tmp_path: Path):
    content = {**files(), "001.json": json.dumps({"caption": ["from json", "another"], "label": "x"}).encode()}
    (tmp_path / "s").mkdir()
    tar(tmp_path / "s" / "a-000.tar", content)
    tar(tmp_path / "s" / "a-001.tar", {"000.png": png(), "000.json": b'{"text": "second shard"}'})
    assert said(tmp_path / "s") == ["a red square", "from json", CAPTIONS["002.png"], "second shard"]


@pytest.mark.parametrize("kind", ["table", "shard"])
def test_a_text_that_was_cut_within_an_emoji_stops_nothing(tmp_path: Path, kind: str):
    line = b'{"file_name": "000.png", "text": "a nice cat \\ud83d", "label": "\\ude00"}'
    if kind == "table":
        path = folder(tmp_path / "t", {"000.png": png(), "metadata.jsonl": line})
    else:
        (tmp_path / "s").mkdir()
        tar(tmp_path / "s" / "a-000.tar", {"000.png": png(), "000.json": line})
        path = tmp_path / "s"
    assert said(path) == ["a nice cat ?"]
    assert open_images(str(path)).classes in ([], ["?"])


@pytest.mark.parametrize("key", ["text", "caption", "prompt"])
@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_a_table_beside_the_images_goes_before_texts(tmp_path: Path, name: str, key: str):
    rows = [{"file_name": file, key: f"table  {file}"} for file in list(CAPTIONS)[:2]]
    buffer = io.StringIO()
    if name.endswith(".csv"):
        writer = csv.DictWriter(buffer, ["file_name", key])
        writer.writeheader()
        writer.writerows(rows)
    else:
        buffer.write("\n".join(map(json.dumps, rows)))
    table = buffer.getvalue().encode()
    expected = ["table 000.png", "table 001.png", ""]
    assert said(folder(tmp_path / "f", {**files(), name: table})) == expected
    assert said(zipped(tmp_path / "a.zip", {**files(), name: table})) == expected
    folder(tmp_path / "elsewhere", {name: table})
    plain = folder(tmp_path / "plain", files())
    assert said(plain, str(tmp_path / "elsewhere" / name)) == expected
    assert said(plain, "none") is None


def test_a_table_of_labels_alone_leaves_captions_to_the_texts(tmp_path: Path):
    table = "file_name,label\n" + "".join(f"{name},x\n" for name in CAPTIONS)
    assert said(folder(tmp_path / "f", {**files(), "metadata.csv": table.encode()})) == list(CAPTIONS.values())


def test_the_column_of_a_data_set(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    images = [{"bytes": png(), "path": None}] * 2
    for key, values in {"text": ["one", None], "caption": [["first", "second"], []]}.items():
        features = datasets.Features({
            "image": datasets.Image(),
            key: datasets.Value("string") if key == "text" else datasets.Sequence(datasets.Value("string")),
        })  # fmt: skip
        data = datasets.Dataset.from_dict({"image": images, key: values}, features=features)
        data.save_to_disk(str(tmp_path / key))
        assert said(tmp_path / key) == [values[0] if key == "text" else "first", ""]


def test_no_captions_are_none(tmp_path: Path):
    assert said(folder(tmp_path / "f", {"a.png": png()})) is None
    assert said("digits") is None


def test_a_table_that_names_no_image_is_refused_with_both_names(tmp_path: Path):
    images = folder(tmp_path / "f", {"a.png": png()})
    folder(tmp_path / "t", {"x.jsonl": b'{"file_name": "f/a.png", "text": "x"}', "y.csv": b"file_name\na.png\n"})
    with pytest.raises(DataError, match=r"\b1 images.* f/a\.png;.* a\.png"):
        said(images, str(tmp_path / "t" / "x.jsonl"))
    with pytest.raises(DataError, match=r"file_name.* text"):
        said(images, str(tmp_path / "t" / "y.csv"))
    with pytest.raises(DataError, match=r"z\.csv"):
        said(images, str(tmp_path / "t" / "z.csv"))
    (tmp_path / "t" / "bad.jsonl").write_text("{")
    with pytest.raises(DataError, match=r"bad\.jsonl.*data\.captions"):
        said(images, str(tmp_path / "t" / "bad.jsonl"))

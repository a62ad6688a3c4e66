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


def test_what_is_said_of_a_date_is_of_the_image_of_that_date(tmp_path: Path):
    """All names up to the first dot are the same here, and each image has its own class and caption."""
    content: dict[str, bytes] = {}
    for day, what in (("01", "cat"), ("02", "dog"), ("03", "bird")):
        name = f"2023.01.{day}"
        content |= {f"{name}.png": png(), f"{name}.cls": what.encode(), f"{name}.txt": f"a {what}".encode()}
    (tmp_path / "s").mkdir()
    tar(tmp_path / "s" / "a-000.tar", content)
    source = open_images(str(tmp_path / "s"))
    assert [source.classes[label] for label in source.labels] == ["cat", "dog", "bird"]
    assert said(tmp_path / "s") == ["a cat", "a dog", "a bird"]
    (tmp_path / "t").mkdir()  # of an image that nothing names, nothing is guessed
    tar(tmp_path / "t" / "a-000.tar", {**content, "2023.01.04.png": png()})
    assert said(tmp_path / "t") == ["a cat", "a dog", "a bird", ""]


def test_of_several_rows_of_an_image_the_first_caption_is_taken(tmp_path: Path):
    table = b"image,caption\n000.png,first\n000.png,second\n001.png,only\n"
    images = {"000.png": png(), "001.png": png()}
    assert said(folder(tmp_path / "a", {**images, "metadata.csv": table})) == ["first", "only"]


def test_a_text_with_the_delimiter_in_it_is_refused_unless_it_stands_in_quotes(tmp_path: Path):
    images = {"000.png": png(), "001.png": png()}
    for number, row in enumerate(("000.png,a red bicycle, against a wall,bike", '000.png,"a cat,bike')):
        table = f"file_name,text,label\n{row}\n001.png,a dog,dog\n".encode()
        with pytest.raises(DataError, match=r"metadata.csv cannot be read \((line 2 has|after line 1:)"):
            said(folder(tmp_path / f"bad{number}", {**images, "metadata.csv": table}))
    table = b'file_name,text,label\n000.png,"a red bicycle, against a wall",bike\n001.png,a "big" dog,dog,,\n'
    assert said(folder(tmp_path / "good", {**images, "metadata.csv": table})) == [
        "a red bicycle, against a wall",
        'a "big" dog',
    ]


def test_texts_between_tabs_may_hold_quotes_as_they_are(tmp_path: Path):
    """Few programs quote what stands between tabs; where all quotes are in order, as pandas writes them, they count."""
    images = {"000.png": png(), "001.png": png()}
    bare = b'file_name\ttext\n000.png\t"Stop" sign, red\n001.png\t6" pipe\n'
    assert said(folder(tmp_path / "bare", {**images, "metadata.tsv": bare})) == ['"Stop" sign, red', '6" pipe']
    opened = b'file_name\ttext\n000.png\t"a cat\n001.png\ta dog\n'
    assert said(folder(tmp_path / "opened", {**images, "metadata.tsv": opened})) == ['"a cat', "a dog"]
    quoted = b'file_name\ttext\n000.png\t"a\tcat"\n001.png\t"say ""hi"""\n'
    assert said(folder(tmp_path / "quoted", {**images, "metadata.tsv": quoted})) == ["a cat", 'say "hi"']


def test_a_tab_too_many_is_refused_with_its_line_though_quotes_are_bare(tmp_path: Path):
    for number, row in enumerate(("000.png\ta\tcat", '000.png\t"Stop" sign\tred')):
        table = f"file_name\ttext\n{row}\n".encode()
        with pytest.raises(DataError, match=r"metadata.tsv cannot be read \(line 2 has more fields"):
            said(folder(tmp_path / f"{number}", {"000.png": png(), "metadata.tsv": table}))
    head = b'"file_name"\t"text"\n000.png\t"Stop" sign\n'  # whose quotes count, and so do those below
    with pytest.raises(DataError, match=r"metadata.tsv cannot be read \(after line 1:"):
        said(folder(tmp_path / "head", {"000.png": png(), "metadata.tsv": head}))


def test_a_broken_line_of_json_lines_is_named_by_its_number(tmp_path: Path):
    good = '{"file_name": "000.png", "text": "a cat"}\n\n'
    for number, bad in enumerate(('{"file_name": "001.png"', '["001.png", "a dog"]')):
        table = (good + bad).encode()
        with pytest.raises(DataError, match=r"metadata.jsonl cannot be read \(line 3\b") as caught:
            said(folder(tmp_path / f"{number}", {"000.png": png(), "metadata.jsonl": table}))
        assert "line 1" not in str(caught.value)


def test_nan_is_no_caption(tmp_path: Path):
    lines = '{"file_name": "000.png", "text": NaN}\n{"file_name": "001.png", "text": "a dog"}\n'
    images = {"000.png": png(), "001.png": png()}
    assert said(folder(tmp_path / "a", {**images, "metadata.jsonl": lines.encode()})) == ["", "a dog"]


def test_names_of_a_zip_are_read_as_utf_8_though_it_does_not_say_so(tmp_path: Path):
    """As `zip -r` writes it: the bytes of UTF-8 and no flag; names that are no UTF-8 are read as the standard says."""
    for name, raw in (("Äpfel", "Äpfel".encode()), ("Çà", "Çà".encode("cp437"))):
        stand_in = b"x" * len(raw)
        path = zipped(tmp_path / f"{len(raw)}.zip", {f"{stand_in.decode()}/1.png": png(), "b/2.png": png()})
        path.write_bytes(path.read_bytes().replace(stand_in, raw))
        source = open_images(str(path))
        assert sorted(source.classes) == sorted([name, "b"]) and source.read(0).size


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

"""Shards, tables of labels, data sets of the hub's library, and what is kept so that nothing is searched for twice."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import signal
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bld.data import ImageSet, ImageSource, Preprocessing, open_images, to_unit
from bld.data.sources import folder as folder_module
from bld.data.sources.base import Names
from bld.data.sources.members import EXTENSIONS
from bld.errors import DataError

# -- names ------------------------------------------------------------------------------------------------


def test_names_are_a_sequence_of_strings_that_takes_little_room():
    words = ["", "a.png", "ü/日本.png", b"\xff.png".decode(errors="surrogateescape")]
    names = Names(words)
    assert list(names) == words == names and names[-1] == words[-1] and names[1:3] == words[1:3] and len(names) == 4
    assert pickle.loads(pickle.dumps(names)) == words
    with pytest.raises(IndexError):
        names[4]
    many = Names(f"{i:07d}.png" for i in range(10_000))
    assert len(pickle.dumps(many)) < 10_000 * (11 + 8) + 1000


def test_fingerprints_are_those_of_earlier_versions(tmp_path: Path):
    """Code caches are known by them."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("b/2.png", "a/1.png"):
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 2, 3, 4, 6)), name.encode())
    assert open_images(tmp_path / "a.zip").fingerprint == "ea6eafd94af317883fc17d9a7c978a07"
    for name in ("b/2.png", "a/1.png"):
        (tmp_path / "f" / name).parent.mkdir(parents=True)
        (tmp_path / "f" / name).write_bytes(name.encode())
        os.utime(tmp_path / "f" / name, ns=(0, 1_600_000_000_123_456_789))
    assert open_images(tmp_path / "f").fingerprint == "4938ec555896a8ddef0aabbf627b8164"


# -- shards -----------------------------------------------------------------------------------------------


@pytest.fixture
def shards(pack, png, tmp_path: Path) -> Path:
    """Two shards of three samples; the classes are in .cls and .json."""
    pack("s/a-000.tar", {"1.png": png(1), "1.cls": b"10", "2.png": png(2), "2.cls": b"9\n", "x/3.png": png(3),
                         "x/3.json": b'{"label": 10}'})  # fmt: skip
    pack("s/a-001.tar", {f"{i}.{ext}": data for i in (1, 2, 4) for ext, data in (("png", png(10 + i)), ("cls", b"9"))})
    return tmp_path / "s"


def pixels(source: ImageSource, index: int) -> bytes:
    return np.asarray(source.read(index)).tobytes()


def test_shards_are_one_set_with_classes_from_their_samples(shards: Path, png):
    source = open_images(shards)
    assert source.names == ["a-000/1.png", "a-000/2.png", "a-000/x/3.png", "a-001/1.png", "a-001/2.png", "a-001/4.png"]
    assert source.classes == ["9", "10"] and source.labels is not None
    assert source.labels.tolist() == [1, 0, 1, 0, 0, 0]
    for index, seed in enumerate((1, 2, 3, 11, 12, 14)):
        assert pixels(source, index) == _decoded(png(seed))
    again = pickle.loads(pickle.dumps(source))
    assert pixels(again, 5) == pixels(source, 5)


def _decoded(data: bytes) -> bytes:
    return np.asarray(Image.open(io.BytesIO(data))).tobytes()


@pytest.mark.parametrize(
    "pattern, count", [("a-{000..001}.tar", 6), ("a-{000,001}.tar", 6), ("*.tar", 6), ("a-00{1..1}.tar", 3)]
)
def test_patterns_name_shards(shards: Path, pattern: str, count: int):
    assert len(open_images(f"{shards}/{pattern}")) == count


def test_a_missing_shard_is_named(shards: Path):
    with pytest.raises(DataError, match=r"shard .*a-002\.tar"):
        open_images(f"{shards}/a-{{000..002}}.tar")
    with pytest.raises(DataError, match=r"shard .*b-\*\.tar"):
        open_images(f"{shards}/b-*.tar")


def test_shards_without_a_class_for_every_sample_take_their_folders_or_none(pack, png, tmp_path: Path):
    pack("s/a.tar", {"cat/1.png": png(1), "cat/1.cls": b"9", "dog/2.png": png(2)})
    assert open_images(tmp_path / "s").classes == ["cat", "dog"]


def test_classes_of_shards_that_are_left_aside_are_counted_and_one_without_is_named(pack, png, tmp_path: Path):
    """Also where the search was kept."""
    pack("s/a.tar", {f"{i}.png": png(i) for i in range(5)} | {f"{i}.cls": b"9" for i in (0, 1, 3)})
    for _ in range(2):
        source = open_images(tmp_path / "s", index_to=tmp_path / "run")
        assert source.labels is None
        (note,) = source.notes
        assert "2 of 5" in note and "a/2.png" in note
    pack("none/a.tar", {f"{i}.png": png(i) for i in range(2)})
    assert open_images(tmp_path / "none").notes == []


def test_a_whole_number_is_the_same_class_in_shards_however_it_is_written(pack, png, tmp_path: Path):
    labels = [b"2", b"2.0", b"[2.0]", b"3.0", b'"3"']
    pack("s/a.tar", {f"{i}.png": png(i) for i in range(5)}
         | {f"{i}.json": b'{"label": ' + label + b"}" for i, label in enumerate(labels)})  # fmt: skip
    source = open_images(tmp_path / "s")
    assert source.classes == ["2", "3"] and source.labels is not None
    assert source.labels.tolist() == [0, 0, 0, 1, 1] and source.notes == []


@pytest.mark.parametrize("name", ["../1.png", "/1.png"])
def test_shards_with_members_outside_are_refused(pack, png, tmp_path: Path, name: str):
    pack("s/a.tar", {name: png(1)})
    with pytest.raises(DataError, match="outside itself"):
        open_images(tmp_path / "s")


def test_of_several_images_of_a_sample_the_plainest_is_taken_and_the_others_are_noted(pack, png, tmp_path: Path):
    """Also where the search was kept; a sample is what shares its name up to the first dot."""
    files = {"1.seg.png": png(1), "1.png": png(2), "1.cls": b"a", "2.b.png": png(3), "2.a.png": png(4), "2.cls": b"b"}
    pack("s/x.tar", {**files, "d.e/3.jpg.png": png(5), "d.e/3.cls": b"b"})
    pack("s/y.tar", {"1.seg.png": png(6), "1.cls": b"a"})
    for _ in range(2):
        source = open_images(tmp_path / "s", index_to=tmp_path / "run")
        assert source.names == ["x/1.png", "x/2.a.png", "x/2.b.png", "x/d.e/3.jpg.png", "y/1.seg.png"]
        assert [pixels(source, i) for i in range(5)] == [_decoded(png(seed)) for seed in (2, 4, 3, 5, 6)]
        assert source.labels is not None and source.labels.tolist() == [0, 1, 1, 1, 0]
        assert [("1 .png" in note, "x/1.seg.png" in note) for note in source.notes] == [(True, True)]


def test_a_broken_shard_is_named(shards: Path):
    data = (shards / "a-001.tar").read_bytes()
    (shards / "a-001.tar").write_bytes(data[: len(data) // 3])
    with pytest.raises(DataError, match=r"shard .*a-001\.tar is broken"):
        open_images(shards)


def test_unchanged_shards_are_not_searched_again_and_changed_ones_are(shards: Path, tmp_path: Path, monkeypatch):
    kept = tmp_path / "run"
    first = open_images(shards, index_to=kept)
    monkeypatch.setattr("bld.data.sources.shards._search", pytest.fail)
    again = open_images(shards, index_to=kept)
    assert again.names == first.names and again.fingerprint == first.fingerprint and again.classes == first.classes
    assert pixels(again, 4) == pixels(first, 4)
    (kept / "index.npz").write_bytes((kept / "index.npz").read_bytes()[:-40])
    monkeypatch.undo()
    assert open_images(shards, index_to=kept).names == first.names  # made again
    monkeypatch.setattr("bld.data.sources.shards._search", lambda *_: pytest.fail("searched", pytrace=False))
    os.utime(shards / "a-001.tar", ns=(0, 0))
    with pytest.raises(pytest.fail.Exception, match="searched"):
        open_images(shards, index_to=kept)


# -- folders of very many images --------------------------------------------------------------------------


def test_a_large_folder_is_searched_once_until_a_file_comes_or_goes(pack, png, tmp_path: Path, monkeypatch):
    images, kept = pack("folder", {f"{c}/{i}.png": png(i) for c in "ab" for i in range(3)}), tmp_path / "run"
    monkeypatch.setattr(folder_module, "INDEX_FROM", 6)
    first = open_images(images, index_to=kept)
    monkeypatch.setattr(folder_module, "_search", pytest.fail)
    again = open_images(images, index_to=kept)
    assert again.names == first.names and again.fingerprint == first.fingerprint
    assert pixels(again, 3) == pixels(first, 3) and again.classes == ["a", "b"]
    monkeypatch.undo()
    (images / "b" / "new.png").write_bytes(png(9))
    assert len(open_images(images, index_to=kept)) == 7


def test_a_small_folder_is_looked_at_file_by_file_so_that_an_altered_one_is_noticed(pack, png, tmp_path: Path):
    images, kept = pack("folder", {"a.png": png(1), "b.png": png(2)}), tmp_path / "run"
    before = open_images(images, index_to=kept).fingerprint
    (images / "a.png").write_bytes(png(3, 9, 9))
    assert open_images(images, index_to=kept).fingerprint != before and not (kept / "index.npz").exists()


def test_images_are_verified_once_and_what_was_unreadable_stays_known(pack, png, tmp_path: Path, monkeypatch):
    files = {f"{i:02d}.png": png(i) for i in range(20)} | {"07.png": b"no image"}
    images, kept = pack("folder", files), tmp_path / "run"

    def opened(**options) -> ImageSet:
        return ImageSet.open(images, Preprocessing(8), memory_limit_bytes=0, index_to=kept, **options)

    first = opened()
    assert len(first) == 19 and first.skipped[0][0] == "07.png"
    monkeypatch.setattr("bld.data.dataset.decode_all", pytest.fail)
    again = opened()
    assert again.fingerprint == first.fingerprint and again.skipped == first.skipped
    monkeypatch.undo()
    (images / "08.png").write_bytes(b"no image either")
    assert len(opened()) == 18
    (kept / "verified.json").write_text("[]")
    assert len(opened()) == 18
    (kept / "verified.json").unlink()
    unverified = opened(verify=False)
    assert len(unverified) == 20
    with pytest.raises(DataError, match=r"07\.png"):
        unverified.centre([7])


def test_what_was_unreadable_is_looked_at_again_where_a_run_opens(pack, png, tmp_path: Path, monkeypatch):
    """The second look finds the fault passed; one that only reads, as another process does, takes what is written."""
    images, kept = pack("folder", {f"{i:02d}.png": png(i) for i in range(20)}), tmp_path / "run"
    read, broken = folder_module.FolderSource._read, {3, 7}

    def failing(self, index: int) -> Image.Image:
        if index in broken:
            raise OSError("stale file handle")
        looks.append(index)
        return read(self, index)

    def opened(**options) -> list[str]:
        looks.clear()
        options = {"memory_limit_bytes": 0, "index_to": kept, **options}
        return [name for name, _ in ImageSet.open(images, Preprocessing(8), **options).skipped]

    looks: list[int] = []
    monkeypatch.setattr(folder_module.FolderSource, "_read", failing)
    assert opened(report_to=kept) == ["03.png", "07.png"] and len(looks) == 18
    broken.discard(7)
    assert opened() == ["03.png", "07.png"] and looks == []
    assert opened(report_to=kept) == ["03.png"] and looks == [7]
    assert opened() == ["03.png"] and looks == []
    assert (kept / "skipped_images.txt").read_text().startswith("03.png\t")


def test_random_crops_that_do_not_fit_in_memory_are_decoded_for_nothing_once(pack, png, tmp_path: Path, monkeypatch):
    """Opening again, as encoding and the prior do, would decode all photographs anew before the first step."""
    images, kept = pack("folder", {f"{i}.png": png(i, 9 + i, 30) for i in range(6)}), tmp_path / "run"
    read, looks = folder_module.FolderSource._read, []
    monkeypatch.setattr(folder_module.FolderSource, "_read", lambda self, i: looks.append(i) or read(self, i))

    def decoded(limit: int) -> int:
        looks.clear()
        opened = ImageSet.open(images, prep, memory_limit_bytes=limit, index_to=kept)
        assert (opened.pixels is None) == (not opened.strips)
        return len(looks)

    prep, centres = Preprocessing(8, crop="random"), 6 * 3 * 8 * 8
    assert [decoded(centres) for _ in range(3)] == [6, 0, 0]
    assert [decoded(centres + 100) for _ in range(2)] == [6, 0]  # another limit might have sufficed
    assert [decoded(1 << 20) for _ in range(2)] == [6, 6]  # they fit, and are held
    assert [decoded(0) for _ in range(2)] == [6, 0]


def test_another_limit_of_pixels_or_other_decoders_are_another_look(pack, png, tmp_path: Path, monkeypatch):
    files = {f"{i:02d}.png": png(i) for i in range(20)} | {"19.png": png(19, 20, 20)}
    images, kept = pack("folder", files), tmp_path / "run"

    def skipped(max_pixels: int, **options) -> list[str]:
        found = ImageSet.open(
            images, Preprocessing(8), memory_limit_bytes=0, index_to=kept, max_pixels=max_pixels, **options
        )
        return [name for name, _ in found.skipped]

    assert skipped(1000) == [] and skipped(399) == ["19.png"] and skipped(400) == []
    monkeypatch.delitem(Image.OPEN, "PNG")
    with pytest.raises(DataError, match="20 of 20 images"):
        skipped(400)


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_a_list_of_images_is_made_again_where_other_files_are_images(pack, png, tmp_path: Path, monkeypatch, kind: str):
    """As after the decoder of another format has been installed."""
    files = {"1.png": png(1), "2.png": png(2), "3.heic": png(3)}
    images, kept = (pack("folder", files) if kind == "folder" else pack("s/a.tar", files).parent), tmp_path / "run"
    monkeypatch.setattr(folder_module, "INDEX_FROM", 1)
    for endings, count in ((EXTENSIONS - {"heic"}, 2), (EXTENSIONS | {"heic"}, 3)):
        for module in ("members", kind):
            monkeypatch.setattr(f"bld.data.sources.{module}.EXTENSIONS", endings)
        assert len(open_images(images, index_to=kept)) == count


# -- decoding ahead ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_centres_are_the_centre_views_in_order(pack, png, workers: int, memory: int):
    images = ImageSet.open(pack("folder", {f"{i}.png": png(i) for i in range(9)}), Preprocessing(8),
                           memory_limit_bytes=memory)  # fmt: skip
    batches = [range(0, 4), range(4, 8), range(8, 9)]
    found = list(images.centres(batches, workers=workers))
    assert all(
        torch.equal(to_unit(batch), images.centre(list(rows))) for batch, rows in zip(found, batches, strict=True)
    )


def test_a_killed_decoding_process_is_one_sentence(pack, png, monkeypatch):
    images = ImageSet.open(pack("folder", {f"{i}.png": png(i) for i in range(4)}), Preprocessing(8),
                           memory_limit_bytes=0)  # fmt: skip
    parent = os.getpid()
    read = images.source.read

    def deadly(index: int) -> Image.Image:
        if index == 2 and os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(index)

    monkeypatch.setattr(images.source, "read", deadly)
    with pytest.raises(DataError, match=r"process .*data\.workers \(now 1\)"):
        list(images.centres([range(0, 2), range(2, 4)], workers=1))


# -- tables of labels -------------------------------------------------------------------------------------


def _table(name: str, pairs: list[tuple[str, object]]) -> str:
    if name.endswith("csv"):
        return "File_Name,text,Label\n" + "".join(f"{file},x,{label}\n" for file, label in pairs)
    if name.endswith("jsonl"):
        return "".join(json.dumps({"image": file, "class": label}) + "\n" for file, label in pairs)
    return json.dumps({"labels": pairs})


@pytest.mark.parametrize("kind", ["folder", "a.zip"])
@pytest.mark.parametrize("table", ["metadata.csv", "labels.csv", "metadata.jsonl", "labels.jsonl", "dataset.json"])
def test_a_table_beside_the_images_gives_the_classes(pack, png, kind: str, table: str):
    pairs = [("x/1.png", 10), ("x/2.png", 9), ("y/3.png", 10), ("gone.png", 3)]
    files = {file: png(1) for file, _ in pairs[:3]}
    source = open_images(pack(kind, {**files, table: _table(table, pairs).encode()}))
    assert source.classes == ["9", "10"] and source.labels is not None and source.labels.tolist() == [1, 0, 1]
    assert open_images(source.location, labels="folders").classes == ["x", "y"]
    assert open_images(source.location, labels="none").labels is None


def test_images_without_their_classes_are_another_set_as_caches_hold_classes(pack, png):
    images = pack("folder", {"a/1.png": png(1), "b/2.png": png(2)})
    with_classes, without = open_images(images), open_images(images, labels="none")
    assert with_classes.fingerprint != without.fingerprint
    plain = pack("plain", {"1.png": png(1)})
    assert open_images(plain).fingerprint == open_images(plain, labels="none").fingerprint


def test_a_named_table_and_other_classes_are_another_fingerprint(pack, png, tmp_path: Path):
    images = pack("folder", {"1.png": png(1), "2.png": png(2)})
    prints = {open_images(images).fingerprint}
    for labels in (("a", "b"), ("b", "a"), ("a", "a"), ("a", "c")):
        with (tmp_path / "t.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("file", "label"), ("1.png", labels[0]), ("./2.png", labels[1])])
        prints.add(open_images(images, labels=str(tmp_path / "t.csv")).fingerprint)
    assert len(prints) == 5


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("file,label\n1.png,a\n", r"t\.csv .*\b1 of 2 .* 2\.png.*data\.labels"),
        ("file,caption\n1.png,a\n2.png,b\n", r"t\.csv .*file_name.* label"),
        ("", r"t\.csv .*file_name.* label"),
        ("\x00", r"t\.csv .*(file_name.* label|data\.labels)"),
    ],
)
def test_a_table_that_does_not_serve_is_one_sentence(pack, png, tmp_path: Path, text: str, sentence: str):
    images = pack("folder", {"1.png": png(1), "2.png": png(2)})
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=sentence):
        open_images(images, labels=str(tmp_path / "t.csv"))
    with pytest.raises(DataError, match=r"none\.csv"):
        open_images(images, labels=str(tmp_path / "none.csv"))
    (tmp_path / "t.json").write_text("[1")
    with pytest.raises(DataError, match=r"t\.json .*data\.labels"):
        open_images(images, labels=str(tmp_path / "t.json"))


def test_a_table_of_captions_is_no_table_of_labels(pack, png):
    files = {"a/1.png": png(1), "b/2.png": png(2), "metadata.csv": b"file_name,text\na/1.png,a cat\nb/2.png,a dog\n"}
    assert open_images(pack("folder", files)).classes == ["a", "b"]


# -- data sets of the hub's library -----------------------------------------------------------------------

datasets = pytest.importorskip("datasets")


def _dataset(png, labels: bool = True):
    columns = {"image": [{"bytes": png(i), "path": None} for i in range(4)], "label": [1, 0, 1, 1]}
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    keep = ["image", "label"] if labels else ["image"]
    return datasets.Dataset.from_dict(
        {name: columns[name] for name in keep}, datasets.Features({name: features[name] for name in keep})
    )


@pytest.mark.parametrize("kind", ["saved", "splits", "parquet"])
def test_a_data_set_on_the_disk_opens_by_its_folder(png, tmp_path: Path, kind: str, capsys):
    data, path = _dataset(png), tmp_path / "data"
    if kind == "saved":
        data.save_to_disk(path)
    elif kind == "splits":
        datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(path)
    else:
        path.mkdir()
        data.to_parquet(path / "0.parquet")
    source = open_images(path)
    assert len(source) == 4 and source.classes == ["cat", "dog"] and source.labels is not None
    assert source.labels.tolist() == [1, 0, 1, 1] and source.names[3] == "train-00000003"
    assert pixels(source, 2) == _decoded(png(2))
    assert pixels(pickle.loads(pickle.dumps(source)), 1) == _decoded(png(1))
    assert open_images(path).fingerprint == source.fingerprint
    assert open_images(path, labels="none").labels is None


@pytest.mark.parametrize(
    ("said", "dtype", "classes"),
    [
        ([1, 0, 1, 1], datasets.ClassLabel(names=["cat", "dog"]), ["cat", "dog"]),
        *(([1, 0, 1, 1], datasets.Value(name), ["0", "1"]) for name in ("int8", "uint8", "int16", "int64", "uint64")),
        ([True, False, True, True], datasets.Value("bool"), ["False", "True"]),
        (["dog", "cat", "dog", "dog"], datasets.Value("string"), ["cat", "dog"]),
        (["dog", "cat", "dog", "dog"], datasets.Value("large_string"), ["cat", "dog"]),
    ],
    ids=str,
)
def test_a_column_of_whole_numbers_or_words_holds_classes(png, tmp_path: Path, said, dtype, classes):
    source = _labelled(png, tmp_path, said, dtype)
    assert source.classes == classes and source.labels.tolist() == [1, 0, 1, 1] and source.notes == []


@pytest.mark.parametrize(
    ("said", "dtype", "note"),
    [
        ([1, None, 1, 1], datasets.ClassLabel(names=["cat", "dog"]), "1 of 4 images have no class"),
        ([1, -1, -1, 1], datasets.ClassLabel(names=["cat", "dog"]), "2 of 4 images have no class"),
        (["dog", None, "dog", None], datasets.Value("string"), "2 of 4 images have no class"),
        ([-1, -1, -1, -1], datasets.ClassLabel(names=["cat", "dog"]), None),  # as in parts for tests
        ([None] * 4, datasets.Value("int64"), None),
        ([0.5, 1.0, 0.5, 1.0], datasets.Value("float32"), "it has float32"),
        ([[1], [0], [1], [1]], datasets.Sequence(datasets.Value("int64")), "classes are whole numbers or words"),
    ],
    ids=str,
)
def test_images_without_classes_are_no_class_and_a_column_left_aside_is_noted(png, tmp_path, said, dtype, note):
    source = _labelled(png, tmp_path, said, dtype)
    assert source.classes == [] and source.labels is None
    assert (note is None and source.notes == []) or ("label" in source.notes[0] and note in source.notes[0])


def test_a_column_that_holds_no_classes_does_not_hide_one_that_does(png, tmp_path: Path):
    images = [{"bytes": png(i), "path": None} for i in range(4)]
    columns = {"image": images, "label": [0.5, 1.0, 0.5, 1.0], "class": ["dog", "cat", "dog", "dog"]}
    data = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    data.save_to_disk(tmp_path / "data")
    source = open_images(tmp_path / "data")
    assert source.classes == ["cat", "dog"] and source.labels.tolist() == [1, 0, 1, 1]


def _labelled(png, tmp_path: Path, said: list, dtype):
    images = [{"bytes": png(i), "path": None} for i in range(4)]
    features = datasets.Features({"image": datasets.Image(), "label": dtype})
    datasets.Dataset.from_dict({"image": images, "label": said}, features).save_to_disk(tmp_path / "data")
    return open_images(tmp_path / "data")


def test_a_data_set_without_labels_or_images_says_so(png, tmp_path: Path):
    _dataset(png, labels=False).save_to_disk(tmp_path / "plain")
    assert open_images(tmp_path / "plain").classes == []
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "text")
    with pytest.raises(DataError, match=r"column of images, .* text\."):
        open_images(tmp_path / "text")


@pytest.mark.parametrize("name", ["nobody/nothing", "nobody/nothing:test", "hf:nothing"])
def test_a_data_set_that_cannot_be_had_is_one_sentence(name: str, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("offline")))
    with pytest.raises(DataError, match=rf"{name} .*\(offline\).* split"):
        open_images(name)


def test_names_of_the_hub_go_to_its_library_with_their_split(png, monkeypatch):
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: asked.append((name, split)) or _dataset(png))
    for name in ("owner/name", "owner/name:test", "hf:mnist", "hf:mnist:validation"):
        assert len(open_images(name)) == 4
    assert asked == [("owner/name", "train"), ("owner/name", "test"), ("mnist", "train"), ("mnist", "validation")]


def test_other_splits_beside_that_of_train_are_left_aside_and_noted(png, tmp_path: Path):
    data = _dataset(png)
    for name, rows in (("train-00000-of-00002", [0, 1]), ("train-00001-of-00002", [2]), ("test-00000-of-00001", [3])):
        (tmp_path / "all").mkdir(exist_ok=True)
        data.select(rows).to_parquet(tmp_path / "all" / f"{name}.parquet")
    source = open_images(tmp_path / "all")
    assert len(source) == 3 and pixels(source, 2) == _decoded(png(2))
    (note,) = source.notes
    assert "split train: 1 (" in note and "test-00000-of-00001.parquet" in note and "folder of their own" in note
    (tmp_path / "test").mkdir()
    (tmp_path / "all" / "test-00000-of-00001.parquet").rename(tmp_path / "test" / "test-00000-of-00001.parquet")
    assert len(open_images(tmp_path / "all")) == 3 and open_images(tmp_path / "all").notes == []
    assert len(open_images(tmp_path / "test")) == 1 and open_images(tmp_path / "test").notes == []


def test_of_two_columns_of_images_the_one_that_is_taken_is_told(png, tmp_path: Path):
    images = [{"bytes": png(i), "path": None} for i in range(4)]
    features = datasets.Features({"photo": datasets.Image(), "mask": datasets.Image()})
    datasets.Dataset.from_dict({"photo": images, "mask": images[::-1]}, features).save_to_disk(tmp_path / "data")
    source = open_images(tmp_path / "data")
    assert pixels(source, 0) == _decoded(png(0))
    assert "column photo; left aside: mask" in source.notes[0]


def test_a_table_of_encoded_images_that_another_program_wrote_opens(png, tmp_path: Path):
    """Without the library's own description of its columns."""
    import pyarrow as pa
    import pyarrow.parquet

    rows = [{"bytes": png(i), "path": f"{i}.png"} for i in range(4)]
    (tmp_path / "data").mkdir()
    table = pa.table({"image": rows, "label": ["dog", "cat", "dog", "dog"]})
    pa.parquet.write_table(table, tmp_path / "data" / "0.parquet")
    source = open_images(tmp_path / "data")
    assert len(source) == 4 and pixels(source, 3) == _decoded(png(3)) and source.classes == ["cat", "dog"]

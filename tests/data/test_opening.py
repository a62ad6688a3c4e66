"""Folders, archives and the digits as sources of images."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import struct
import sys
import tarfile
import threading
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bld.data import ImageSource, open_images
from bld.data.sources import archives
from bld.data.sources.base import fingerprint_of
from bld.errors import DataError, MissingPackageError

KINDS = ["folder", "a.zip", "a.tar", "a.tar.gz", "a.tgz"]


def pixels(source: ImageSource) -> list[np.ndarray]:
    return [np.asarray(source.read(i)) for i in range(len(source))]


@pytest.fixture
def animals(png):
    return {f"{kind}/{i}.png": png(10 * len(kind) + i) for kind in ("cat", "bird") for i in (1, 2, 10)}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_content_reads_the_same_from_every_container(kind, pack, animals):
    source = open_images(pack(kind, animals))
    assert source.names == sorted(animals)
    assert source.classes == ["bird", "cat"]
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert source.labels.dtype == np.int64
    for name, array in zip(source.names, pixels(source), strict=True):
        np.testing.assert_array_equal(array, np.asarray(Image.open(io.BytesIO(animals[name]))))


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_sorted_whatever_the_order_of_the_container(kind, pack, png):
    names = ["b.png", "a/z.png", "c.jpg", "B.png", "a/a.webp"]
    assert open_images(pack(kind, dict.fromkeys(names, png(0)))).names == sorted(names)


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_and_foreign_files_are_ignored(kind, pack, png):
    ignored = [".x.png", "__MACOSX/._a.png", "__MACOSX/a.png", ".git/a.png", "a.txt", "png", "a.png.part"]
    files = dict.fromkeys([*ignored, "a.png", "b.JPG", "deep/er/c.TiFF"], png(0))
    assert open_images(pack(kind, files)).names == ["a.png", "b.JPG", "deep/er/c.TiFF"]


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["a/1.png", "b/1.png", "c.png"], []),
        (["a/1.png", "a/2.png"], []),
        (["1.png", "2.png"], []),
        (["x10/1.png", "x9/1.png", "X1/deep/1.png"], ["X1", "x9", "x10"]),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "a.zip", "a.tar"])
def test_classes_need_every_image_in_one_of_two_folders(names, classes, kind, pack, png):
    source = open_images(pack(kind, dict.fromkeys(names, png(0))))
    assert source.classes == classes
    assert (source.labels is None) == (not classes)


@pytest.mark.parametrize("kind", ["a.zip", "a.tar", "a.tgz"])
def test_a_folder_wrapping_the_whole_archive_is_no_class(kind, pack, png):
    source = open_images(pack(kind, dict.fromkeys(["data/cat/1.png", "data/dog/2.png"], png(0))))
    assert source.classes == ["cat", "dog"]
    assert source.names == ["data/cat/1.png", "data/dog/2.png"]


def test_class_numbers_too_long_for_an_int_still_sort(pack, png):
    names = [f"{'9' * 5000}/1.png", "10/1.png", "9/1.png"]
    assert open_images(pack("a.zip", dict.fromkeys(names, png(0)))).classes == ["9", "10", "9" * 5000]


@pytest.mark.parametrize("kind", KINDS)
def test_fingerprint_changes_with_any_file(kind, pack, png, tmp_path):
    def fingerprint(number: int, files: dict[str, bytes]) -> str:
        (tmp_path / str(number)).mkdir()
        path = pack(f"{number}/{kind}", files)
        for file in path.rglob("*"):
            os.utime(file, ns=(0, 0))
        return open_images(path).fingerprint

    files = {"a.png": png(1), "b.png": png(2)}
    same = [fingerprint(0, files), fingerprint(1, files)]
    changed = [
        fingerprint(2, {**files, "c.png": png(3)}),
        fingerprint(3, {"a.png": png(1)}),
        fingerprint(4, {"a.png": png(1), "c.png": png(2)}),
        fingerprint(5, {"a.png": png(1), "b.png": png(2, width=9)}),
    ]
    if kind == "a.zip" or kind.endswith("gz"):  # no times inside, or only in gzip's own header
        same = same[:1]
    assert len({*same}) == 1
    assert len({*same, *changed}) == 5


def test_folder_fingerprint_notices_new_content_of_the_same_size(pack, png):
    path = pack("folder", {"a.png": png(1)})
    before = open_images(path).fingerprint
    os.utime(path / "a.png", ns=(1, 1))
    assert open_images(path).fingerprint != before


def test_zip_fingerprint_notices_new_content_of_the_same_size(pack):
    before = open_images(pack("a.zip", {"a.png": b"1234"})).fingerprint
    assert open_images(pack("a.zip", {"a.png": b"1235"})).fingerprint != before


def test_fingerprint_tells_names_with_separators_apart():
    assert fingerprint_of([("a", "b, c")]) != fingerprint_of([("a, b", "c")])


def test_digits_are_scaled_to_bytes_and_labelled():
    source = open_images("digits")
    assert len(source) == 1797
    assert source.classes == [str(digit) for digit in range(10)]
    assert source.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    image = source.read(0)
    assert image.size == (8, 8) and image.mode == "L"
    assert set(np.unique(pixels(source))) == {round(v * 255 / 16) for v in range(17)}
    assert len(set(source.names)) == 1797


@pytest.mark.parametrize("file_is_there", [True, False])
def test_digits_are_scikit_learns_whether_or_not_its_file_is_where_it_was(monkeypatch, file_is_there):
    from sklearn.datasets import load_digits

    real = load_digits()
    if not file_is_there:
        monkeypatch.setattr("pathlib.Path.is_file", lambda self: False)
    source = open_images("digits")
    assert np.array_equal(source.labels, real.target)
    grey = np.stack([np.asarray(source.read(i)) for i in range(len(source))])
    assert np.array_equal(grey, np.rint(real.images * 255 / 16))


def test_digits_without_scikit_learn_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingPackageError, match=r"\[digits\]"):
        open_images("digits")


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(DataError, match=r"nothing at .*nowhere"):
        open_images(tmp_path / "nowhere")


@pytest.mark.parametrize("kind", ["folder", "a.zip", "a.tar", "a.tgz"])
def test_no_image_in_it_is_said_with_the_extensions(kind, pack):
    with pytest.raises(DataError, match=rf"image in .*{kind}: .*\bpng\b"):
        open_images(pack(kind, {"readme.txt": b""}))


def test_other_files_are_no_archives(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(DataError, match=r"a\.txt is neither .*\.zip.*\.tar"):
        open_images(tmp_path / "a.txt")


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tgz"])
@pytest.mark.parametrize("data", [b"", b"garbage" * 1000, b"\x1f\x8bgarbage"])
def test_broken_archives_are_refused(name, data, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=f"{name} is broken"):
        open_images(tmp_path / name)


@pytest.mark.parametrize("length", [20480, 20000])  # a tar cut between two members, and within one
@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tgz"])
def test_truncated_archives_are_refused(name, length, pack, png):
    path = pack(name, {f"{i}.png": png(i, 32, 32) for i in range(9)})
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataError, match=f"{name} is broken"):
        open_images(path)


def test_a_damaged_header_inside_a_tar_does_not_pass_for_its_end(pack, png):
    path = pack("a.tar", {f"{i}.png": png(i) for i in range(3)})
    data = bytearray(path.read_bytes())
    data[data.index(b"1.png")] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.tar is broken.*header.* byte \d+"):
        open_images(path)


@pytest.mark.parametrize("name", ["/etc/a.png", "../a.png", "a/../../b.png", "..\\a.png", "C:\\a.png"])
@pytest.mark.parametrize("kind", ["a.zip", "a.tar", "a.tgz"])
def test_members_outside_the_archive_are_refused(name, kind, pack, png):
    with pytest.raises(DataError, match="outside itself"):
        open_images(pack(kind, {name: png(0), "b.png": png(1)}))


def test_links_in_archives_are_noted_and_not_followed(tmp_path, png):
    link = tarfile.TarInfo("secret.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    file = tarfile.TarInfo("./a.png")
    file.size = len(png(0))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(link)
        archive.addfile(file, io.BytesIO(png(0)))
    hard = tarfile.TarInfo("again.png")
    hard.type, hard.linkname = tarfile.LNKTYPE, "./a.png"
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:  # which is read once, from its beginning
        archive.addfile(file, io.BytesIO(png(0)))
        archive.addfile(hard)
        archive.addfile(link)

    info = zipfile.ZipInfo("secret.png")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
        archive.writestr("a.png", png(0))
    (tmp_path / "shards").mkdir()
    shutil.copy(tmp_path / "a.tar", tmp_path / "shards" / "a.tar")
    for name, count in (("a.tar", 1), ("a.tgz", 2), ("a.zip", 1), ("shards", 1)):
        source = open_images(tmp_path / name)
        first = "again.png" if count == 2 else "secret.png"
        assert source.names == ["a/a.png" if name == "shards" else "a.png"]
        (note,) = source.notes
        assert f"links: {count} (the first is {first})" in note and "dereference" in note


def test_a_folder_of_packed_images_says_what_to_name(pack, png, tmp_path):
    for name in ("a.zip", "b.tar.gz"):
        pack(name, {"1.png": png(0)})
    with pytest.raises(DataError, match=r"No image lies open in .*packed.* a\.zip, b\.tar\.gz: name one"):
        open_images(tmp_path)


def test_large_compressed_tars_ask_to_be_unpacked(pack, png, monkeypatch):
    path = pack("a.tar.gz", {f"{i}.png": png(i) for i in range(3)})
    monkeypatch.setattr(archives, "UNPACKED_LIMIT_BYTES", 300)
    with pytest.raises(DataError, match="gunzip"):
        open_images(path)


def test_a_tar_is_recognised_by_content_not_by_name(pack, png):
    path = pack("a.tar.gz", {"a.png": png(0)})
    assert open_images(path.rename(path.with_name("b.tar"))).names == ["a.png"]


def bomb(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (header, b"IDAT" + zlib.compress(bytes(99)), b"IEND")
    packed = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize("side", [20_000, 60_000])
def test_headers_claiming_absurd_sizes_are_refused(side, pack):
    source = open_images(pack("folder", {"bomb.png": bomb(side, side)}))
    with pytest.raises(DataError, match=r"bomb.png.*pixels"):
        source.read(0)


@pytest.mark.parametrize("kind", KINDS)
def test_unreadable_images_are_named(kind, pack, png):
    files = {"garbage.png": b"no image", "half.png": png(0, 64, 64)[:2000], "empty.jpg": b""}
    source = open_images(pack(kind, files))
    for index, name in enumerate(source.names):
        with pytest.raises(DataError, match=f" {name} in .*{kind}") as caught:
            source.read(index)
        assert "0x" not in str(caught.value)  # no memory address


def test_an_image_that_vanished_is_named(pack, png):
    path = pack("folder", {"a.png": png(0)})
    source = open_images(path)
    (path / "a.png").unlink()
    with pytest.raises(DataError, match=r" a\.png in "):
        source.read(0)


@pytest.mark.skipif(sys.platform == "win32", reason="links and pipes")
def test_folders_follow_links_once_and_skip_pipes(pack, png, tmp_path):
    path = pack("folder", {"a.png": png(0)})
    (path / "loop").symlink_to(path)
    (path / "dangling.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(path / "pipe.png")
    pack("elsewhere", {"b.png": png(1)})
    (path / "linked").symlink_to(tmp_path / "elsewhere")
    source = open_images(path)
    assert source.names == ["a.png", "dangling.png", "linked/b.png"]
    with pytest.raises(DataError, match=r"dangling.png"):
        source.read(1)


@pytest.mark.skipif(sys.platform == "win32", reason="links")
def test_a_folder_that_links_lead_to_as_well_is_read_once_under_its_own_name(pack, png, tmp_path):
    """Else an image is trained on under one name and held out under the other."""
    path = pack("folder", {"2023/a.png": png(0), "2024/b.png": png(1), ".store/c.png": png(2)})
    pack("elsewhere", {"d.png": png(3)})
    (path / "2022").symlink_to(path / "2024")  # comes before what it leads to
    (path / "latest").symlink_to("2024")
    (path / "2023" / "next").symlink_to("../2024")
    (path / "2024" / "back").symlink_to("..")
    (path / "stored").symlink_to(".store")  # nothing else leads there
    (path / "far").symlink_to(tmp_path / "elsewhere")
    (path / "farther").symlink_to(tmp_path / "elsewhere")
    source = open_images(path)
    assert source.names == ["2023/a.png", "2024/b.png", "far/d.png", "stored/c.png"]
    assert source.classes == ["2023", "2024", "far", "stored"]


@pytest.mark.parametrize("kind", [*KINDS, "digits"])
def test_sources_pickle(kind, pack, animals):
    source = open_images(kind if kind == "digits" else pack(kind, animals))
    source.read(0)
    again = pickle.loads(pickle.dumps(source))
    assert again.names == source.names and again.fingerprint == source.fingerprint
    np.testing.assert_array_equal(np.asarray(again.read(3)), np.asarray(source.read(3)))


def test_a_source_survives_a_change_of_the_working_directory(pack, png, tmp_path, monkeypatch):
    monkeypatch.chdir(pack("folder", {"a.png": png(0)}).parent)
    source = open_images(Path("folder"))
    monkeypatch.chdir("/")
    assert source.location == "folder"
    assert source.read(0).size == (8, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_read_at_once(kind, pack, png):
    source = open_images(pack(kind, {f"{i:02d}.png": png(i) for i in range(40)}))
    expected = pixels(source)
    barrier = threading.Barrier(4)

    def read_all(_: int) -> list[np.ndarray]:
        barrier.wait()
        return pixels(source)

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(read_all, range(4)):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("typed", ["photos/cats.zip", "photos/cats", "elsewhere/cats.tar.gz"])
def test_a_mistyped_file_is_no_data_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"nothing at {typed}"):
        open_images(typed)


def test_what_reads_like_a_data_set_of_the_hub_and_is_not_found_may_be_mistyped(monkeypatch: pytest.MonkeyPatch):
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(pytest.importorskip("datasets"), "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"There is no folder or archive phots/cats, and .* cannot be loaded"):
        open_images("phots/cats")


def test_hard_links_of_a_tar_are_images_as_they_are_in_the_folder(tmp_path: Path, png):
    photos = tmp_path / "photos"
    for name in ("cat/0.png", "cat/1.png", "dog/2.png"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(png(0))
    os.link(photos / "cat" / "0.png", photos / "dog" / "0.png")
    for shard in ("plain.tar", "shards/a-000.tar"):
        (tmp_path / shard).parent.mkdir(exist_ok=True)
        with tarfile.open(tmp_path / shard, "w") as archive:
            archive.add(photos, ".")
        source = open_images(str(tmp_path / (shard if shard == "plain.tar" else "shards")))
        assert len(source) == 4 and sorted(name[-9:] for name in source.names) == [
            "cat/0.png", "cat/1.png", "dog/0.png", "dog/2.png",
        ]  # fmt: skip
        assert all(source.read(row).size for row in range(4)) and not source.notes


def test_what_shards_hold_besides_images_and_texts_is_counted(tmp_path: Path, png):
    (tmp_path / "s").mkdir()
    with tarfile.open(tmp_path / "s" / "a-000.tar", "w") as archive:
        for name, data in {"1.png": png(0), "1.cls": b"0", "2.jxl": b"jxl", "2.cls": b"0", "3.jxl": b"jxl"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    (note,) = open_images(str(tmp_path / "s")).notes
    assert "2 .jxl (the first is a-000/2.jxl)" in note

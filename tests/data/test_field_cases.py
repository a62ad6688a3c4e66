"""Folders and archives as users have them: tables anywhere, files of other kinds, pictures of every size and origin."""

from __future__ import annotations

import io
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from bld.data import ImageSet, Preprocessing, decode_file, open_images, read_captions, save_png
from bld.errors import DataError

ARCHIVES = ["folder", "a.zip", "a.tar", "a.tar.gz"]
LABELS = b"file_name,label\n0.png,cat\n1.png,dog\n2.png,cat\n"


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def three(png: Callable[[int], bytes], folder: str = "") -> dict[str, bytes]:
    return {f"{folder}{i}.png": png(i) for i in range(3)}


@pytest.mark.parametrize("archive", ARCHIVES)
@pytest.mark.parametrize("folder", ["", "photos/"])
def test_a_table_of_classes_counts_in_every_kind_of_place_wrapped_or_not(archive, folder, pack, png):
    source = open_images(pack(archive, {**three(png, folder), f"{folder}metadata.csv": LABELS}))
    assert source.classes == ["cat", "dog"]
    assert source.labels is not None and source.labels.tolist() == [0, 1, 0]
    assert source.notes == []


def test_a_table_at_the_top_may_name_files_in_the_wrapping_folder(pack, png):
    table = LABELS.replace(b"\n0", b"\nphotos/0").replace(b"\n1", b"\nphotos/1").replace(b"\n2", b"\nphotos/2")
    assert open_images(pack("a.zip", {**three(png, "photos/"), "labels.csv": table})).classes == ["cat", "dog"]


@pytest.mark.parametrize("archive", ARCHIVES)
def test_captions_are_read_from_a_table_in_every_kind_of_place(archive, pack, png):
    rows = "".join(
        json.dumps({"file_name": f"{i}.png", "text": f"one\u2028two {i}"}, ensure_ascii=False) + "\n" for i in range(3)
    )
    source = open_images(pack(archive, {**three(png, "x/"), "x/metadata.jsonl": rows.encode()}))
    assert list(read_captions(source, "auto") or []) == ["one two 0", "one two 1", "one two 2"]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_a_table_may_be_separated_by_what_spreadsheets_write(separator, pack, png):
    table = LABELS.replace(b",", separator.encode()).replace(b"\n", b"\r\n")
    assert open_images(pack("folder", {**three(png), "labels.csv": table})).classes == ["cat", "dog"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_a_table_may_be_in_any_usual_encoding_and_a_guess_is_noted(encoding, pack, png):
    text = "file_name,label\n0.png,Äpfel\n1.png,Birnen\n2.png,Äpfel\n"
    source = open_images(pack("folder", {**three(png), "labels.csv": text.encode(encoding)}))
    assert source.classes == ["Birnen", "Äpfel"]
    assert len(source.notes) == (encoding == "cp1252")


def test_names_composed_differently_on_disk_and_in_the_table_meet(pack, png):
    composed, apart = (unicodedata.normalize(form, "Käse.png") for form in ("NFC", "NFD"))
    for on_disk, in_table in ((composed, apart), (apart, composed)):
        table = f"file_name,label\n{in_table},cheese\n1.png,bread\n".encode()
        source = open_images(pack(f"a{len(on_disk)}.zip", {on_disk: png(0), "1.png": png(1), "labels.csv": table}))
        assert source.classes == ["bread", "cheese"]


def test_a_whole_number_written_as_a_float_is_the_same_class_and_nan_is_none(pack, png):
    """As pandas writes a column of numbers in which some are missing."""
    rows = '{"file_name": "0.png", "label": 2.0}\n{"file_name": "1.png", "label": 2}\n'
    table = (rows + '{"file_name": "2.png", "label": 2.5}\n').encode()
    source = open_images(pack("a", {**three(png), "metadata.jsonl": table}))
    assert source.classes == ["2", "2.5"] and source.labels is not None and source.labels.tolist() == [0, 0, 1]
    table = (rows + '{"file_name": "2.png", "label": NaN}\n').encode()
    with pytest.raises(DataError, match=r"no class for 1 of 3 images, the first is 2\.png"):
        open_images(pack("b", {**three(png), "metadata.jsonl": table}))
    pairs = json.dumps({"labels": [["0.png", 1.0], ["1.png", 0], ["2.png", 1]]}).encode()
    assert open_images(pack("c.zip", {**three(png), "dataset.json": pairs})).classes == ["0", "1"]


def test_an_image_of_two_classes_in_a_table_is_refused_by_its_name(pack, png):
    table = LABELS + b"1.png,bird\n"
    with pytest.raises(DataError, match=r"metadata\.csv .*1\.png, dog and bird: .*data\.labels"):
        open_images(pack("a.zip", {**three(png), "metadata.csv": table}))
    named = pack("tables", {"t.csv": table}) / "t.csv"
    with pytest.raises(DataError, match=r"t\.csv .*1\.png"):
        open_images(pack("a", three(png)), labels=str(named))
    assert open_images(pack("b", {**three(png), "labels.csv": LABELS + b"1.png,dog\n"})).classes == ["cat", "dog"]
    captioned = b"file_name,text,label\n" + b"".join(
        b"%d.png,text %d,cat\n" % (i, j) for i in range(3) for j in range(2)
    )
    source = open_images(pack("c", {**three(png), "captions.csv": captioned}))
    assert source.classes == ["cat"] and source.notes == []
    assert list(read_captions(source, "auto") or []) == ["text 0"] * 3


@pytest.mark.parametrize("archive", ARCHIVES)
def test_a_table_that_says_nothing_known_is_named(archive, pack, png):
    source = open_images(pack(archive, {**three(png), "metadata.csv": b"id,colour\n0.png,red\n"}))
    assert source.classes == []
    assert len(source.notes) == 1 and "metadata.csv" in source.notes[0]


@pytest.mark.parametrize("archive", ARCHIVES)
def test_files_that_are_passed_over_are_counted_by_kind_and_one_is_named(archive, pack, png):
    others = {
        "a/x.psd": b"8BPS",
        "a/y.psd": b"8BPS",
        "inner.zip": b"PK",
        "Thumbs.db": b"x",
        "README.md": b"x",
        "a/0.txt": b"?",
    }
    source = open_images(pack(archive, {"a/0.png": png(0), "b/1.png": png(1), **others}))
    (note,) = source.notes
    assert "2 .psd" in note and "1 .zip" in note and "a/x.psd" in note
    assert "Thumbs" not in note and "README" not in note and ".txt" not in note


def test_a_stray_image_that_unlabels_the_class_folders_is_named(pack, png):
    files = {"cat/0.png": png(0), "dog/1.png": png(1)}
    assert open_images(pack("whole", files)).notes == []
    source = open_images(pack("stray", {**files, "loose.png": png(2)}))
    assert source.labels is None
    assert len(source.notes) == 1 and "loose.png" in source.notes[0]


def test_of_zip_members_with_one_name_the_last_counts_and_they_are_counted(tmp_path, png):
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", png(0))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.png", png(1))
    source = open_images(tmp_path / "a.zip")
    assert np.array_equal(np.asarray(source.read(0)), np.asarray(Image.open(io.BytesIO(png(1)))))
    assert len(source.notes) == 1


@pytest.mark.parametrize("fault", ["damage", "password", "compression"])
@pytest.mark.parametrize("member", ["metadata.csv", "grid.png"])
def test_a_file_in_a_zip_that_cannot_be_read_is_one_sentence(fault, member, pack, png):
    """A table that is looked into, and what might be a sheet of ours."""
    path = pack("a.zip", {**three(png), member: LABELS if member.endswith("csv") else png(3)})
    data = bytearray(path.read_bytes())
    local, central = data.index(b"PK\x03\x04", data.index(b"2.png")), data.rindex(b"PK\x01\x02")
    if fault == "damage":
        data[local + 30 + len(member)] ^= 255
    for header, flags in ((local, 6), (central, 8)):
        data[header + flags] |= fault == "password"
        data[header + flags + 2] = 9 if fault == "compression" else 0  # Deflate64
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"a\.zip is broken .*{member} cannot be read: .* pack it again\.$") as caught:
        open_images(path)
    assert "\n" not in str(caught.value) and ("password" in str(caught.value)) == (fault == "password")


def test_captions_in_another_encoding_are_read_and_counted(pack, png):
    source = open_images(
        pack("folder", {**three(png), "0.txt": "naïve".encode("cp1252"), "1.txt": "ok".encode("utf-16")})
    )
    assert list(read_captions(source, "auto") or []) == ["naïve", "ok", ""]
    assert len(source.notes) == 1 and source.notes[0].startswith("1 texts")


@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt"])
def test_a_png_with_megabytes_of_text_is_a_picture_like_any_other(kind, pack, tmp_path):
    image, info = Image.new("RGB", (4, 4), (1, 2, 3)), PngInfo()
    if kind == "iTXt":
        info.add_itxt("workflow", "ü" * 2_000_000, zip=True)
    else:
        info.add_text("workflow", "x" * 70_000_000 if kind == "tEXt" else "x" * 2_000_000, zip=kind == "zTXt")
    data = encoded(image, pnginfo=info)
    source = open_images(pack("folder", {"a.png": data}))
    assert source.read(0).getpixel((0, 0)) == (1, 2, 3)
    assert decode_file(tmp_path / "folder" / "a.png").size == (4, 4)


def test_transparency_and_colour_profiles_of_a_png_survive_the_removal_of_its_text(pack):
    image, info = Image.new("P", (2, 1)), PngInfo()
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    info.add_text("note", "x" * 2_000_000, zip=True)
    source = open_images(pack("folder", {"a.png": encoded(image, pnginfo=info, transparency=1)}))
    assert source.read(0).convert("RGBA").getpixel((1, 0)) == (0, 255, 0, 0)


def test_a_photograph_of_108_megapixels_is_read_without_a_warning(pack, recwarn):
    source = open_images(pack("folder", {"phone.png": encoded(Image.new("L", (12000, 9000), 128))}))
    assert source.read(0).size == (12000, 9000)
    assert not [w for w in recwarn if issubclass(w.category, Image.DecompressionBombWarning)]


def test_the_limit_of_pixels_can_be_set_and_says_so(pack, png):
    folder = pack("folder", {"a.png": png(0), "b.png": png(1), "c.png": encoded(Image.new("L", (100, 101)))})
    assert len(ImageSet.open(folder, Preprocessing(8))) == 3
    with pytest.raises(DataError, match=r"c\.png.*100×101.*max_megapixels"):
        open_images(folder, max_pixels=10_000).read(2)


@pytest.mark.parametrize(
    ("ending", "kind"), [("jfif", "JPEG"), ("avif", "AVIF"), ("jp2", "JPEG2000"), ("pbm", "PPM"), ("heic", "HEIF")]
)
def test_every_kind_of_file_that_the_library_reads_is_an_image(ending, kind, pack):
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    image = Image.new("1" if ending == "pbm" else "RGB", (16, 16), 1 if ending == "pbm" else (200, 100, 50))
    source = open_images(pack("folder", {f"a.{ending}": encoded(image, kind)}))
    assert source.read(0).size == (16, 16)


def test_a_sheet_of_ours_is_no_image_but_a_users_file_of_that_name_is(pack, png, tmp_path):
    folder = pack("folder", three(png))
    save_png(Image.new("RGB", (40, 40)), folder / "grid.png", sheet=True)
    assert list(open_images(folder).names) == ["0.png", "1.png", "2.png"]
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    for archive in ("a.zip", "a.tar", "a.tar.gz"):
        assert list(open_images(pack(archive, files)).names) == ["0.png", "1.png", "2.png"]
    Image.new("RGB", (40, 40)).save(folder / "grid.png")
    assert "grid.png" in list(open_images(folder).names)


def test_folders_that_bld_has_made_are_left_out_and_named(pack, png):
    files = {"a.png": png(0), "run/samples/0.png": png(1), "run/config.yaml": b"seed: 0", "run/progress.json": b"{}"}
    made = {"new/000000.png": png(2), "new/settings.json": b'{"model": "x", "seed": 0, "steps": 4, "temperature": 1}'}
    source = open_images(pack("folder", {**files, **made}))
    assert list(source.names) == ["a.png"]
    assert len(source.notes) == 1 and "run" in source.notes[0] and "new" in source.notes[0]


def test_a_folder_of_samples_that_is_named_itself_is_read(pack, png):
    made = {"000000.png": png(2), "settings.json": b'{"model": "x", "seed": 0, "steps": 4, "temperature": 1}'}
    assert list(open_images(pack("new", made)).names) == ["000000.png"]


def test_a_picture_that_cannot_be_read_is_one_sentence(tmp_path: Path):
    for name, data in (
        ("none.png", None),
        ("text.png", b"no picture"),
        ("cut.png", encoded(Image.new("RGB", (64, 64), 7))[:60]),
    ):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=name):
            decode_file(tmp_path / name)

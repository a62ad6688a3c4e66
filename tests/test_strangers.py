"""A zoo of damaged and odd files: each is refused in one sentence or handled as it should be, without a traceback."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bld.cli import main
from bld.data import ImageSet, Preprocessing

# -- images: among ten good ones, each is handled or left out with a reason ---------------------------------


def encoded(kind: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (8, 8), **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind, **options)
    return buffer.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


def animated() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("P", (8, 8), color) for color in (0, 1, 2)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded("JPEG", size=(8, 4), exif=exif.tobytes())


LEFT_OUT = {
    "empty.png": b"",
    "text.png": b"I am no image",
    "half.png": encoded(size=(640, 640))[:300],
    "bomb.png": png_claiming(100_000, 100_000),
    "zero.png": png_claiming(0, 0),
    "html.jpg": b"<html><body>404 Not Found</body></html>",
    "pickle.png": pickle.dumps({"a": 1}),
    "svg.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "lab.tif": encoded("TIFF", "LAB"),
    "script.gif": b"GIF89a/*",
}
TAKEN = {
    "cmyk.jpg": encoded("JPEG", "CMYK"),
    "sixteen.png": encoded("PNG", "I;16"),
    "palette.png": encoded("PNG", "P", transparency=0),
    "alpha.png": encoded("PNG", "RGBA"),
    "one-bit.png": encoded("PNG", "1"),
    "animated.gif": animated(),
    "tiny.png": encoded(size=(1, 1)),
    "long.png": encoded(size=(1, 4000)),
    "turned.jpg": turned(),
    "webp-called.png": encoded("WEBP"),
    "new\nline.png": encoded(),
    "ünïcode 日本.png": encoded(),
}


@pytest.mark.parametrize("name", [*LEFT_OUT, *TAKEN])
def test_an_odd_image_among_good_ones_is_taken_or_left_out_with_a_reason(tmp_path: Path, name: str):
    for i in range(10):
        (tmp_path / f"{i}.png").write_bytes(encoded())
    (tmp_path / name).write_bytes((LEFT_OUT | TAKEN)[name])
    images = ImageSet.open(tmp_path, Preprocessing(8), report_to=tmp_path)
    assert images.centre(range(len(images))).isfinite().all()
    if name in TAKEN:
        assert len(images) == 11 and not images.skipped
    else:
        assert len(images) == 10 and [left for left, _ in images.skipped] == [name]
        line = (tmp_path / "skipped_images.txt").read_text()
        assert line.startswith(f"{name}\t") and line.count("\n") == 1 and "Traceback" not in line


@pytest.mark.parametrize("kind", ["pipe", "dangling link", "folder called x.png", "name that is no UTF-8", "loop"])
def test_odd_entries_of_a_folder_do_not_stop_it(tmp_path: Path, kind: str):
    images = tmp_path / "images"
    images.mkdir()
    for i in range(10):
        (images / f"{i}.png").write_bytes(encoded())
    if kind == "pipe":
        os.mkfifo(images / "pipe.png")
    elif kind == "dangling link":
        (images / "link.png").symlink_to("nowhere.png")
    elif kind == "folder called x.png":
        (images / "x.png").mkdir()
    elif kind == "loop":
        (images / "loop").symlink_to(images)
    else:
        with suppress(OSError):  # some file systems take UTF-8 only, and then there is no such name
            Path(os.fsdecode(os.fsencode(images) + b"/\xff\xfe.png")).write_bytes(encoded())
    regular = [entry for entry in images.iterdir() if entry.is_file() and not entry.is_symlink()]
    assert len(ImageSet.open(images, Preprocessing(8), report_to=tmp_path)) == len(regular) >= 10


# -- archives, tables, settings: refused in one sentence ------------------------------------------------------


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(files: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def link_only() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("passwd.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    return buffer.getvalue()


def encrypted() -> bytes:
    data = bytearray(zipped({f"{i}.png": encoded() for i in range(3)}))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(signature)
        while at >= 0:
            data[at + offset] |= 1
            at = data.find(signature, at + 4)
    return bytes(data)


GOOD = {f"{i}.png": encoded() for i in range(3)}
ARCHIVES = {
    "cut.zip": (zipped(GOOD)[:-30], "broken or no zip"),
    "text.zip": (b"no archive", "broken or no zip"),
    "empty.zip": (zipped({}), "No image in"),
    "no-images.zip": (zipped({"a.txt": b"a"}), "No image in"),
    "climbing.zip": (zipped({"../../a.png": encoded()}), "outside itself"),
    "absolute.zip": (zipped({"/etc/a.png": encoded()}), "outside itself"),
    "windows.zip": (zipped({"C:\\a.png": encoded()}), "outside itself"),
    "encrypted.zip": (encrypted(), "cannot be read|Cannot read"),
    "bomb.zip": (zipped({f"{i}.png": png_claiming(90_000, 90_000) for i in range(3)}), "cannot be read"),
    "deflated-bomb.zip": (zipped({"a.png": bytes(600 << 20)}), "cannot be read"),
    "cut.tar": (tarred(GOOD)[:700], "broken or no tar"),
    "text.tar": (b"no archive", "broken or no tar"),
    "climbing.tar": (tarred({"../a.png": encoded()}), "outside itself"),
    "link.tar": (link_only(), "No image in"),
    "cut.tar.gz": (tarred(GOOD, "w:gz")[:-20], "broken or no tar"),
    "rar.zip": (b"Rar!\x1a\x07\x00" + bytes(100), "broken or no zip"),
    "images.7z": (b"7z\xbc\xaf\x27\x1c", "neither a folder nor"),
}


def refused(capsys: pytest.CaptureFixture[str], *words: object, status: int = 2) -> str:
    """What a command says on being refused: one line, no traceback."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == status
    said = capsys.readouterr().err
    assert said.startswith("bld: ") and said.count("\n") == 1 and "Traceback" not in said, said
    assert said.rstrip()[-1] in ".?" and len(said) < 600, said
    return said


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_that_cannot_serve_is_one_sentence(tmp_path: Path, capsys, name: str):
    data, sentence = ARCHIVES[name]
    (tmp_path / name).write_bytes(data)
    command = ("train-tokenizer", "--preset", "digits", "--data", tmp_path / name, "--out", tmp_path / "run")
    assert re.search(sentence, refused(capsys, *command))
    assert not (tmp_path / "run" / "checkpoints").exists()


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)
SETTINGS = {
    "no YAML": ("a: [1", "YAML"),
    "a list": ("- 1\n- 2\n", r"mine\.yaml .*key: value"),
    "an unknown key": ("priors: {dim: 4}", r"'prior\.dim'\?"),
    "a wrong type": ("prior: {dim: wide}", r"prior\.dim"),
    "a Python object": ("seed: !!python/object/apply:os.system ['echo hacked']", "YAML"),
    "aliases that explode": (BOMB, "Unknown|YAML"),
    "an absurd depth": ("prior: {depth: 1000000000}", r"prior\.depth is 1000000000"),
    "absurd steps": ("diffusion: {steps: 1000000000000}", "1000000000000"),
    "an absurd image": ("tokenizer: {image_size: 1073741824}", r"image_size is 1073741824"),
    "not a number": ("prior_training: {learning_rate: .nan}", "learning_rate"),
    "a negative batch": ("prior_training: {batch_size: -4}", "batch_size"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_cannot_be_are_one_sentence(tmp_path: Path, capsys, name: str):
    text, sentence = SETTINGS[name]
    (tmp_path / "mine.yaml").write_text(text)
    said = refused(capsys, "train", "--data", "digits", "--out", tmp_path / "run", "--preset", tmp_path / "mine.yaml")
    assert re.search(sentence, said), said


# -- models, caches and checkpoints from elsewhere ------------------------------------------------------------


def changed(path: Path, **entries: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def header_of(length: int) -> bytes:
    return struct.pack("<Q", length) + b"{}"


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weights": os.getcwd}))


MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "an absurd depth": (lambda run: changed(run / "prior/config.json", depth=10**9), r"prior\.depth is 1000000000"),
    "an absurd width": (lambda run: changed(run / "prior/config.json", dim=2**40), r"prior\.dim is"),
    "depth as text": (lambda run: changed(run / "prior/config.json", depth="deep"), "'depth' is 'deep'"),
    "a width of true": (lambda run: changed(run / "prior/config.json", dim=True), "'dim' is True"),
    "a ratio as list": (lambda run: changed(run / "prior/config.json", mlp_ratio=[4]), r"'mlp_ratio' is \[4\]"),
    "levels as text": (lambda run: changed(run / "tokenizer/config.json", channel_multipliers="12"), "'channel_mul"),
    "a level as text": (lambda run: changed(run / "tokenizer/config.json", channel_multipliers=[1, "2"]), "'channel_"),
    "a kind as number": (lambda run: changed(run / "tokenizer/config.json", resampling=2), "'resampling' is 2"),
    "a class of no one": (lambda run: changed(run / "prior/config.json", _class_name="os.system"), "os.system"),
    "an unknown entry": (lambda run: changed(run / "prior/config.json", widht=3), r"config\.json .*'widht'.* bld \d"),
    "no JSON": (lambda run: (run / "prior/config.json").write_text("{"), r"prior/config\.json is damaged"),
    "a list": (lambda run: (run / "prior/config.json").write_text("[]"), "is expected"),
    "no weights": (lambda run: (run / "prior/model.safetensors").unlink(), "is missing"),
    "cut weights": (lambda run: os.truncate(run / "prior/model.safetensors", 1000), "damaged"),
    "an absurd header": (lambda run: (run / "prior/model.safetensors").write_bytes(header_of(2**60)), "damaged"),
    "a pickle": (lambda run: pickled(run / "prior/model.safetensors"), "damaged"),
    "another's weights": (
        lambda run: shutil.copy(run / "tokenizer/model.safetensors", run / "prior/model.safetensors"),
        "does not fit",
    ),
    "absurd blocks": (
        lambda run: changed(run / "tokenizer/config.json", res_blocks=10**9),
        r"res_blocks is 1000000000",
    ),
    "many levels": (lambda run: changed(run / "tokenizer/config.json", channel_multipliers=[1] * 60), "multipliers"),
    "absurd steps": (lambda run: changed(run / "diffusion/config.json", steps=10**13), "10000000000000"),
    "an unknown schedule": (lambda run: changed(run / "diffusion/config.json", schedule="x"), "not a diffusion"),
    "classes as a number": (lambda run: changed(run / "model_index.json", classes=3, background=None), "index"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_cannot_be_is_one_sentence(run_copy: Path, capsys, name: str):
    damage, sentence = MODELS[name]
    damage(run_copy)
    said = refused(capsys, "sample", run_copy, "--num", 1, "--steps", 1, "--out", run_copy / "out")
    assert re.search(sentence, said), said


CACHES: dict[str, Callable[[Path], object]] = {
    "no JSON": lambda codes: (codes / "header.json").write_text("{"),
    "a list": lambda codes: (codes / "header.json").write_text("[1]"),
    "an absurd shape": lambda codes: _key(codes, shape=[2**40, 2**40, 64]),
    "a negative count": lambda codes: _key(codes, images=-5),
    "text for a shape": lambda codes: _key(codes, shape="abc"),
    "cut codes": lambda codes: os.truncate(codes / "codes.bin", 10),
    "no codes": lambda codes: (codes / "codes.bin").unlink(),
    "pickled labels": lambda codes: np.save(codes / "labels.npy", np.array([{}], dtype=object), allow_pickle=True),
    "no labels at all": lambda codes: (codes / "labels.npy").write_bytes(b""),
    "too few labels": lambda codes: np.save(codes / "labels.npy", np.zeros(3, np.int64)),
}


def _key(codes: Path, **entries: object) -> None:
    header = json.loads((codes / "header.json").read_text())
    header["key"].update(entries)
    (codes / "header.json").write_text(json.dumps(header))


@pytest.mark.parametrize("name", CACHES)
def test_a_cache_that_cannot_be_is_made_again(run_copy: Path, capsys, name: str):
    before = (run_copy / "codes" / "codes.bin").read_bytes()
    CACHES[name](run_copy / "codes")
    capsys.readouterr()
    assert main(["encode", "--out", str(run_copy)]) == 0
    assert "made again" in capsys.readouterr().out
    assert (run_copy / "codes" / "codes.bin").read_bytes() == before


CHECKPOINTS: dict[str, Callable[[Path], object]] = {
    "a pickle": lambda step: pickled(step / "state.safetensors"),
    "an absurd header": lambda step: (step / "state.safetensors").write_bytes(header_of(2**60)),
    "no JSON": lambda step: (step / "state.json").write_text("{"),
    "a list": lambda step: (step / "state.json").write_text("[]"),
    "an absurd step": lambda step: changed(step / "state.json", step=10**30),
    "nothing": lambda step: (step / "state.json").unlink(),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_that_cannot_be_are_passed_over(run_copy: Path, capsys, name: str):
    for step in (run_copy / "checkpoints" / "tokenizer").iterdir():
        CHECKPOINTS[name](step)
    (run_copy / "metrics.jsonl").write_bytes(b"\xff\xfe no json\n[1]\n{}\n")
    capsys.readouterr()
    assert main(["train-tokenizer", "--out", str(run_copy), "tokenizer_training.steps=7"]) == 0
    assert "step-" in capsys.readouterr().out

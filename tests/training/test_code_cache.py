from __future__ import annotations

import dataclasses
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from bld.codes import CodeShape, pack
from bld.errors import CheckpointError, DataError
from bld.runtime.distributed import Processes
from bld.training.code_cache import CacheKey, CodeCache, open_cache, to_rows, write_cache

KEY = CacheKey("tok", "data", (2, 3, 7), images=11, flips=True, draws=2, seed=0)
BITS = torch.randint(0, 2, (11, 4, 6, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _blocks_of_four(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("bld.io.resumable_rows.BLOCK", 4)


def encode(wanted: list[range]) -> Iterator[np.ndarray]:
    """Packed rows of all views of the images still to do."""
    for images in wanted:
        yield pack(BITS[images.start : images.stop].flatten(0, 1))


def write(folder: Path, key: CacheKey = KEY, encode=encode, **options) -> CodeCache:
    return write_cache(folder, key, encode, torch.arange(key.images) % 3, ["a", "b", "c"], **options)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_view_of_every_image_comes_back(tmp_path: Path):
    cache = write(tmp_path)
    assert len(cache) == 11 and cache.views == 4 and cache.shape == CodeShape(2, 3, 7)
    images, views = np.array([10, 0, 3, 3]), np.array([0, 3, 1, 2])
    assert torch.equal(cache.read(images, views), BITS[images, views])
    assert torch.equal(cache.read(np.arange(11), 2), BITS[:, 2])
    assert torch.equal(cache.read(np.arange(11)), BITS[:, 0])
    assert torch.equal(cache.labels, torch.arange(11) % 3) and cache.labels.dtype == torch.int64
    assert cache.classes == ["a", "b", "c"]
    assert sorted(files(tmp_path)) == ["codes.bin", "header.json", "labels.npy"]


def test_the_papers_code_costs_a_kibibyte_per_view(tmp_path: Path):
    key = CacheKey("t", "d", (16, 16, 32), images=5, flips=True, draws=3, seed=0)
    zeros = lambda wanted: [np.zeros((len(r) * 6, 1024), np.uint8) for r in wanted]  # noqa: E731
    write_cache(tmp_path, key, zeros, None, [])
    assert key.views == 6
    assert (tmp_path / "codes.bin").stat().st_size == 5 * 6 * 1024


@pytest.mark.parametrize(
    "flips, draws, views",
    [
        (False, 0, [(False, None)]),
        (True, 0, [(False, None), (True, None)]),
        (False, 2, [(False, 0), (False, 1)]),
        (True, 2, [(False, 0), (False, 1), (True, 0), (True, 1)]),
    ],
)
def test_a_view_is_one_flip_and_one_draw(flips: bool, draws: int, views: list[tuple[bool, int | None]]):
    key = dataclasses.replace(KEY, flips=flips, draws=draws)
    assert [key.view(i) for i in range(key.views)] == views


def test_a_cache_without_labels_has_none_even_where_there_were_some(tmp_path: Path):
    write(tmp_path)
    cache = write_cache(tmp_path, KEY, encode, None, [])
    assert cache.labels is None and cache.classes == []


def test_a_cache_with_the_same_key_is_used_in_silence(tmp_path: Path):
    assert open_cache(tmp_path, KEY, pytest.fail) is None
    write(tmp_path)
    assert torch.equal(open_cache(tmp_path, KEY, pytest.fail).read(np.arange(11)), BITS[:, 0])


@pytest.mark.parametrize(
    "field, value",
    [
        ("tokenizer", "other"),
        ("data", "other"),
        ("shape", (3, 2, 7)),
        ("images", 12),
        ("flips", False),
        ("draws", 3),
        ("seed", 1),
        ("preprocessing", {"image_size": 16}),
        ("values", "float16"),
    ],
)
def test_a_stale_cache_is_not_used_and_says_what_changed(tmp_path: Path, field: str, value: object):
    write(tmp_path)
    said: list[str] = []
    assert open_cache(tmp_path, dataclasses.replace(KEY, **{field: value}), said.append) is None
    assert len(said) == 1 and f"stale ({field} changed)" in said[0]


def test_all_that_changed_is_named(tmp_path: Path):
    write(tmp_path)
    said: list[str] = []
    open_cache(tmp_path, dataclasses.replace(KEY, tokenizer="x", seed=4), said.append)
    assert "(tokenizer, seed " in said[0]


@pytest.mark.parametrize("torn", ["", "2", "2\n2"])
def test_an_interrupted_cache_goes_on_and_ends_up_the_same_to_the_bit(tmp_path: Path, torn: str):
    write(tmp_path / "whole")
    asked: list[list[range]] = []

    def interrupted(wanted: list[range]) -> Iterator[np.ndarray]:
        for i, rows in enumerate(encode(wanted)):
            if i == 5:
                raise KeyboardInterrupt
            yield rows

    def watched(wanted: list[range]) -> Iterator[np.ndarray]:
        asked.append(wanted)
        return encode(wanted)

    folder = tmp_path / "resumed"
    with pytest.raises(KeyboardInterrupt):
        write(folder, encode=interrupted, at_a_time=2)
    assert open_cache(folder, KEY, pytest.fail) is None
    with (folder / "done-0").open("a") as done:
        done.write(torn.split("\n")[0])  # a line as a crash leaves it
    write(folder, encode=watched, at_a_time=3)
    assert asked == [[range(8, 11)]]
    assert files(folder) == files(tmp_path / "whole")


def test_a_cut_line_names_no_other_block_when_the_list_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of eleven blocks the first is written, the second's line is cut; it is written again, and the last never was."""
    monkeypatch.setattr("bld.io.resumable_rows.BLOCK", 1)
    key = dataclasses.replace(KEY, images=12)
    asked: list[list[range]] = []

    def rows(wanted: list[range], most: int = 12) -> Iterator[np.ndarray]:
        asked.append(wanted)
        for i, images in enumerate(wanted):
            if i == most:
                raise KeyboardInterrupt
            yield np.full((4, key.row_bytes), 1 + images.start, np.uint8)

    def write_some(most: int) -> None:
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, key, lambda wanted: rows(wanted, most))

    write_some(1)
    with (tmp_path / "done-0").open("a") as done:
        done.write("1")
    write_some(1)
    write(tmp_path, key, rows)
    assert [ranges[0].start for ranges in asked] == [0, 1, 2]
    assert np.fromfile(tmp_path / "codes.bin", np.uint8).reshape(12, -1)[:, 0].tolist() == list(range(1, 13))


@pytest.mark.parametrize("failing", ["numpy.save", "bld.training.code_cache.write_json", "pathlib.Path.replace"])
def test_no_code_is_made_again_where_labels_or_header_could_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
):
    write(tmp_path / "whole")
    folder = tmp_path / "full"
    write(folder, encode=lambda wanted: (rows ^ 255 for rows in encode(wanted)))  # stale codes of the same size

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        real = Path.replace
        moves = lambda path, to: full() if path.name == "codes.bin.part" else real(path, to)  # noqa: E731
        patched.setattr(failing, moves if failing.endswith("replace") else full)
        with pytest.raises((OSError, CheckpointError), match="No space"):
            write(folder)
    assert open_cache(folder, KEY, lambda _: None) is None
    asked: list[list[range]] = []
    write(folder, encode=lambda wanted: asked.append(wanted) or encode(wanted))
    assert asked == [[]]
    assert files(folder) == files(tmp_path / "whole")


def test_several_processes_write_one_cache_and_others_may_go_on(tmp_path: Path):
    """Threads stand for processes: three begin, one of them dies, two go on."""
    write(tmp_path / "whole")
    folder, written = tmp_path / "shared", Counter()

    def run(count: int, dying: int | None = None) -> None:
        barrier = threading.Barrier(count)

        def process(rank: int) -> None:
            def counted(wanted: list[range]) -> Iterator[np.ndarray]:
                for images, rows in zip(wanted, encode(wanted), strict=True):
                    if rank == dying:
                        barrier.abort()
                        raise KeyboardInterrupt
                    written[images] += 1
                    yield rows

            with suppress(KeyboardInterrupt, threading.BrokenBarrierError):
                write(folder, encode=counted, at_a_time=4, processes=Processes(rank, count, barrier.wait))

        threads = [threading.Thread(target=process, args=(rank,)) for rank in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    run(3, dying=1)
    assert not (folder / "header.json").exists()
    run(2)
    assert files(folder) == files(tmp_path / "whole")
    assert written == {range(0, 4): 1, range(4, 8): 1, range(8, 11): 1}


@pytest.mark.parametrize("note", [json.dumps(dataclasses.asdict(dataclasses.replace(KEY, seed=9))), "{", "[1]", "3"])
def test_an_interrupted_cache_of_another_key_is_begun_again(tmp_path: Path, note: str):
    write(tmp_path / "whole")
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "codes.bin.part").write_bytes(b"\xff" * 24 * 4)
    (folder / "part.json").write_text(note)
    write(folder)
    assert files(folder) == files(tmp_path / "whole")


def test_a_stale_cache_interrupted_while_it_is_made_again_is_never_used(tmp_path: Path):
    write(tmp_path)

    def interrupted(images: range) -> Iterator[np.ndarray]:
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, dataclasses.replace(KEY, seed=1), interrupted)
    assert open_cache(tmp_path, KEY, pytest.fail) is None
    assert open_cache(tmp_path, dataclasses.replace(KEY, seed=1), pytest.fail) is None


def test_an_encoder_that_gives_too_little_is_a_sentence(tmp_path: Path):
    with pytest.raises(DataError, match=r"\b3 bytes .* 4 images .* 24\b"):
        write(tmp_path, encode=lambda wanted: [np.zeros((1, 3), np.uint8)])
    assert open_cache(tmp_path, KEY, pytest.fail) is None


@pytest.mark.parametrize("name", ["codes.bin", "header.json", "labels.npy"])
def test_a_truncated_file_is_noticed_and_the_cache_made_again(tmp_path: Path, name: str):
    write(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=name):
        CodeCache(tmp_path)
    said: list[str] = []
    assert open_cache(tmp_path, KEY, said.append) is None
    assert len(said) == 1 and name in said[0] and "made again" in said[0]


def test_lost_codes_and_labels_of_another_number_are_noticed(tmp_path: Path):
    write(tmp_path)
    np.save(tmp_path / "labels.npy", np.zeros(4, np.int64))
    with pytest.raises(CheckpointError, match=r"labels\.npy .*\(4,\), not \(11,\)"):
        CodeCache(tmp_path)
    (tmp_path / "codes.bin").unlink()
    with pytest.raises(CheckpointError, match=r"codes\.bin .*\b0 bytes.* 264\b"):
        CodeCache(tmp_path)


def test_a_header_from_elsewhere_is_a_sentence(tmp_path: Path):
    write(tmp_path)
    for text in ("[]", "{}", '{"key": {"shape": [1, 2, 3]}, "classes": []}', '{"key": 3, "classes": []}'):
        (tmp_path / "header.json").write_text(text)
        with pytest.raises(CheckpointError, match=rf"header\.json .*delete {tmp_path}"):
            CodeCache(tmp_path)


# -- real-valued codes ------------------------------------------------------------------------------------

REAL = dataclasses.replace(KEY, values="float16")
NUMBERS = 3 * torch.randn(11, 4, 2, 3, 7, generator=torch.Generator().manual_seed(0))


def real(wanted: list[range]) -> Iterator[np.ndarray]:
    for images in wanted:
        yield to_rows(NUMBERS[images.start : images.stop].flatten(0, 1), REAL)


def test_real_values_come_back_as_float32_rounded_to_float16(tmp_path: Path):
    cache = write(tmp_path, REAL, real)
    images, views = np.array([10, 0, 3]), np.array([0, 3, 1])
    tokens = cache.read(images, views)
    assert tokens.shape == (3, 6, 7) and tokens.dtype == torch.float32
    assert torch.equal(tokens, NUMBERS[images, views].flatten(1, 2).half().float())
    assert (tmp_path / "codes.bin").stat().st_size == 11 * 4 * 2 * 6 * 7
    assert torch.equal(CodeCache(tmp_path).read(images, views), tokens)
    assert torch.equal(open_cache(tmp_path, REAL, pytest.fail).read(images, views), tokens)


def test_real_values_beyond_float16_stay_finite(tmp_path: Path):
    numbers = torch.full((11 * 4, 2, 3, 7), 1e6)
    cache = write(tmp_path, REAL, lambda wanted: [to_rows(numbers[: 4 * len(r)], REAL) for r in wanted])
    tokens = cache.read(np.arange(11))
    assert (tokens == 65504).all()


def test_bits_and_real_values_are_different_caches(tmp_path: Path):
    write(tmp_path, REAL, real)
    said: list[str] = []
    assert open_cache(tmp_path, KEY, said.append) is None
    assert "values changed" in said[0]


def test_a_cache_made_before_there_were_real_values_still_opens(tmp_path: Path):
    write(tmp_path)
    header = json.loads((tmp_path / "header.json").read_text())
    del header["key"]["values"]
    (tmp_path / "header.json").write_text(json.dumps(header))
    assert torch.equal(open_cache(tmp_path, KEY, pytest.fail).read(np.arange(11)), BITS[:, 0])
    header["key"]["values"] = "int4"
    (tmp_path / "header.json").write_text(json.dumps(header))
    with pytest.raises(CheckpointError, match=r"header\.json .*float16.*'int4'"):
        CodeCache(tmp_path)

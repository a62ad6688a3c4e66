"""Images ready for training."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pytest
import torch

from bld.data import ImageSet, Preprocessing, to_unit, training_view
from bld.errors import DataError, SettingError

PREP = Preprocessing(8, flip=True)
ON_DEMAND = {"memory_limit_bytes": 0}


@pytest.fixture
def folder(pack, png):
    files = {f"{kind}/{i:02d}.png": png(100 * len(kind) + i, 12, 8) for kind in ("cat", "bird") for i in range(10)}
    return pack("folder", files)


def seeds(n: int, first: int = 0) -> list[int]:
    return list(range(first, first + n))


def test_small_sets_are_held_in_memory_and_say_what_they_are(folder):
    images = ImageSet.open(folder, PREP)
    assert len(images) == 20
    assert images.pixels.shape == (20, 3, 8, 8) and images.pixels.dtype == torch.uint8
    assert images.classes == ["bird", "cat"]
    assert images.labels.dtype == torch.int64 and images.labels.tolist() == [0] * 10 + [1] * 10
    assert images.names[0] == "bird/00.png" and images.skipped == []
    assert images.location == str(folder) and images.preprocessing == PREP


def test_unlabelled_sets_have_no_labels(pack, png):
    images = ImageSet.open(pack("folder", {"a.png": png(0)}), PREP)
    assert images.labels is None and images.classes == []


def test_memory_holds_up_to_its_limit(folder):
    needed = 20 * 3 * 8 * 8
    assert ImageSet.open(folder, PREP, memory_limit_bytes=needed).pixels is not None
    assert ImageSet.open(folder, PREP, memory_limit_bytes=needed - 1).pixels is None


def test_memory_holds_what_random_crops_are_cut_from(pack, png, monkeypatch):
    """Decoding a photograph again for each view would take longer than a step on it."""
    path = pack("folder", {f"{i}.png": png(i, 9 + i, 20 - i) for i in range(8)})
    prep = Preprocessing(8, crop="random", flip=True)
    held = ImageSet.open(path, prep)
    centres, strips = 8 * 3 * 8 * 8, sum(strip.numel() for strip in held.strips.rows)
    assert strips > centres
    fits, too_large = (ImageSet.open(path, prep, memory_limit_bytes=centres + strips - less) for less in (0, 1))
    assert fits.strips and fits.pixels is not None and too_large.pixels is None and not too_large.strips
    decoded = ImageSet.open(path, prep, **ON_DEMAND)
    assert decoded.pixels is None and not decoded.strips
    indices, batches = [3, 0, 7, 3, 5], [([3, 0, 7, 3, 5], seeds(5, first)) for first in range(0, 50, 5)]
    expected = [training_views(decoded, *batch) for batch in batches]
    for images in (held, fits, too_large, decoded):
        for workers in (0, 1):
            assert all(map(torch.equal, images.loader(batches, workers=workers), expected))
        assert torch.equal(images.subset([2, 3]).uint8_views([1], [4]), images.uint8_views([3], [4]))
        assert torch.equal(images.uint8_centre(indices), decoded.uint8_centre(indices))
        assert images.fingerprint == decoded.fingerprint
    monkeypatch.setattr(type(held.source), "read", lambda *_: pytest.fail("decoded again"))
    assert torch.equal(pickle.loads(pickle.dumps(held)).uint8_views(*batches[0]), expected[0])


def training_views(images: ImageSet, indices: list[int], keys: list[int]) -> torch.Tensor:
    pairs = zip(indices, keys, strict=True)
    return torch.stack([training_view(images.source.read(i), images.preprocessing, key) for i, key in pairs])


@pytest.mark.parametrize("kind", ["folder", "a.zip", "a.tar", "a.tgz"])
def test_memory_and_on_demand_give_the_same_images(kind, pack, png):
    path = pack(kind, {f"{i}.png": png(i, 9 + i, 20 - i) for i in range(8)})
    held, decoded = ImageSet.open(path, PREP), ImageSet.open(path, PREP, **ON_DEMAND)
    indices = [3, 0, 7, 3, 5]
    assert torch.equal(held.centre(indices), decoded.centre(indices))
    assert torch.equal(held.uint8_centre(indices), decoded.uint8_centre(indices))
    for first in range(0, 50, 5):
        assert torch.equal(held.views(indices, seeds(5, first)), decoded.views(indices, seeds(5, first)))
    assert held.fingerprint == decoded.fingerprint


@pytest.mark.parametrize("memory", [{}, ON_DEMAND])
def test_a_view_depends_on_its_image_and_its_seed_alone(folder, memory):
    images = ImageSet.open(folder, PREP, **memory)
    together = images.views(range(20), seeds(20))
    assert together.dtype == torch.float32 and together.min() >= -1 and together.max() <= 1
    for i in (0, 7, 19):
        assert torch.equal(images.views([i], [i])[0], together[i])
    mirrored = [not torch.equal(view, centre) for view, centre in zip(together, images.centre(range(20)), strict=True)]
    assert 0 < sum(mirrored) < 20


def test_drawing_views_leaves_the_stored_pixels_alone(folder):
    images = ImageSet.open(folder, PREP)
    before = images.pixels.clone()
    images.views(range(20), seeds(20))
    assert torch.equal(images.pixels, before)


@pytest.mark.parametrize("memory", [{}, ON_DEMAND])
def test_indices_come_as_lists_arrays_or_tensors_and_may_be_none_at_all(folder, memory):
    images = ImageSet.open(folder, PREP, **memory)
    expected = images.centre([4, 2])
    assert torch.equal(images.centre(np.array([4, 2])), expected)
    assert torch.equal(images.centre(torch.tensor([4, 2])), expected)
    assert images.centre([]).shape == (0, 3, 8, 8)
    assert images.views([], []).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("memory", [{}, ON_DEMAND])
def test_views_need_one_seed_each(folder, memory):
    with pytest.raises(SettingError, match=r"seed.* 2 and 1\b"):
        ImageSet.open(folder, PREP, **memory).views([0, 1], [0])


def with_bad_files(png, good: int) -> dict[str, bytes]:
    whole = png(0, 64, 64)
    files = {f"good{i:02d}.png": png(i) for i in range(good)}
    return {**files, "bad-garbage.png": b"no image at all", "bad-half.png": whole[: len(whole) // 2]}


@pytest.mark.parametrize("memory", [{}, ON_DEMAND])
def test_unreadable_images_are_left_out_and_listed(pack, png, tmp_path, memory):
    path = pack("folder", with_bad_files(png, good=18))
    images = ImageSet.open(path, PREP, report_to=tmp_path / "run", **memory)
    assert len(images) == 18
    assert [name for name, _ in images.skipped] == ["bad-garbage.png", "bad-half.png"]
    lines = (tmp_path / "run" / "skipped_images.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["bad-garbage.png", "bad-half.png"]
    assert "format" in lines[0] and "truncated" in lines[1]
    assert not any(name.startswith("bad") for name in images.names)
    image = images.source.read(images.source.names.index("good03.png"))
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert torch.equal(images.uint8_centre([3])[0], expected)


def test_too_many_unreadable_images_are_an_error_with_counts_and_place(pack, png, tmp_path):
    path = pack("folder", with_bad_files(png, good=17))
    with pytest.raises(DataError, match=r"2 of 19 .*10%.*bad-garbage.png.*skipped_images.txt"):
        ImageSet.open(path, PREP, report_to=tmp_path / "run")
    assert (tmp_path / "run" / "skipped_images.txt").exists()
    assert len(ImageSet.open(path, PREP, max_bad_fraction=0.2)) == 17


def test_a_set_without_a_single_readable_image_is_an_error(pack):
    with pytest.raises(DataError, match=r"\b1 of 1\b.*a\.png"):
        ImageSet.open(pack("folder", {"a.png": b""}), PREP, max_bad_fraction=1.0)


def test_an_old_list_of_skipped_images_goes_once_all_are_fine(folder, tmp_path):
    (tmp_path / "skipped_images.txt").write_text("old")
    ImageSet.open(folder, PREP, report_to=tmp_path)
    assert not (tmp_path / "skipped_images.txt").exists()


def test_subsets_share_pixels_and_keep_names_labels_and_order(folder):
    images = ImageSet.open(folder, PREP)
    some = images.subset(torch.tensor([15, 3, 8])).subset([2, 0])
    assert some.pixels.data_ptr() == images.pixels.data_ptr()
    assert some.names == [images.names[8], images.names[15]]
    assert some.labels.tolist() == [0, 1]
    assert torch.equal(some.centre([0, 1]), images.centre([8, 15]))


@pytest.mark.parametrize(("held_out", "count"), [(0.25, 5), (5, 5), (1, 1), (19, 19), (0.001, 1), (0.999, 19)])
def test_split_is_disjoint_and_complete(folder, held_out, count):
    images = ImageSet.open(folder, PREP)
    train, held = images.split(held_out, seed=3)
    assert len(held) == count
    assert sorted(train.names + held.names) == images.names
    assert train.names == sorted(train.names) and held.names == sorted(held.names)


def test_split_is_keyed_by_its_seed(folder):
    images = ImageSet.open(folder, PREP)
    held = [images.split(5, seed)[1].names for seed in (0, 0, 1)]
    assert held[0] == held[1] != held[2]


@pytest.mark.parametrize("held_out", [0, 20, 21, -1, 0.0, 1.0, 1.5, -0.1, float("nan")])
def test_splits_with_an_empty_part_are_refused(folder, held_out):
    with pytest.raises(DataError, match=rf"{held_out} of 20 .*data\.held_out"):
        ImageSet.open(folder, PREP).split(held_out, seed=0)


def test_one_image_cannot_be_split(pack, png):
    with pytest.raises(DataError, match=r"0\.5 of 1\b.*data\.held_out"):
        ImageSet.open(pack("folder", {"a.png": png(0)}), PREP).split(0.5, seed=0)


def test_fingerprint_follows_files_preprocessing_and_choice(folder, png):
    def fingerprint(prep: Preprocessing = PREP) -> str:
        return ImageSet.open(folder, prep, max_bad_fraction=0.5).fingerprint

    first = fingerprint()
    assert fingerprint() == first == fingerprint(Preprocessing(8, crop="random"))
    images = ImageSet.open(folder, PREP)
    train, held = images.split(5, seed=0)
    assert images.subset(range(20)).fingerprint == first
    different = {first, fingerprint(Preprocessing(4)), train.fingerprint, held.fingerprint}
    (folder / "cat" / "new.png").write_bytes(png(1))
    different.add(fingerprint())
    assert len(different) == 5


@pytest.mark.parametrize("memory", [{}, ON_DEMAND])
@pytest.mark.parametrize("kind", ["folder", "a.zip"])
def test_workers_keep_the_order_and_change_nothing(pack, png, memory, kind):
    path = pack(kind, {f"{i:02d}.png": png(i, 12, 8) for i in range(20)})
    images = ImageSet.open(path, PREP, **memory)
    batches = [([i % 20, (7 * i) % 20], [i, 1000 + i]) for i in range(25)] + [([5], [5])]
    state = torch.get_rng_state()
    loaded = list(images.loader(iter(batches), workers=2))
    assert torch.equal(torch.get_rng_state(), state)
    assert len(loaded) == len(batches)
    for batch, (indices, keys) in zip(loaded, batches, strict=True):
        assert torch.equal(batch, images.uint8_views(indices, keys))
        assert torch.equal(to_unit(batch), images.views(indices, keys))


def test_random_crops_are_the_same_with_and_without_workers(folder):
    images = ImageSet.open(folder, Preprocessing(8, crop="random", flip=True))
    batches = [([i, i + 1], [i, i]) for i in range(6)]
    for one, two in zip(images.loader(batches), images.loader(batches, workers=2), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_lost_while_training_is_one_clear_sentence(folder, workers):
    images = ImageSet.open(folder, PREP, **ON_DEMAND)
    (folder / "cat" / "03.png").unlink()
    with pytest.raises(DataError, match=rf"^[^\n]*cat/03\.png in {folder}[^\n]*$"):
        list(images.loader([([13], [0])], workers=workers))


@pytest.mark.parametrize("memory", [{}, ON_DEMAND])
def test_image_sets_pickle(folder, memory):
    images = ImageSet.open(folder, PREP, **memory).subset([4, 2])
    again = pickle.loads(pickle.dumps(images))
    assert again.names == images.names
    assert torch.equal(again.centre([0, 1]), images.centre([0, 1]))


def test_digits_open_as_they_are():
    images = ImageSet.open("digits", Preprocessing(8))
    values = torch.from_numpy(np.array(images.source.read(5)))
    assert torch.equal(images.centre([5])[0], to_unit(values).expand(3, 8, 8))


def test_progress_is_shown_only_when_asked_for_and_on_a_terminal(folder, capsys, monkeypatch):
    ImageSet.open(folder, PREP, progress=True)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    ImageSet.open(folder, PREP)
    assert capsys.readouterr().err == ""
    ImageSet.open(folder, PREP, progress=True)
    assert "20/20" in capsys.readouterr().err

"""Extractors: what they are called, what they refuse, and a classifier of one's own."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from bld.data import ImageSet, Preprocessing, to_unit
from bld.errors import CheckpointError, DataError, MissingPackageError, SettingError
from bld.evaluation import classifier_training
from bld.evaluation.classifier_training import train_classifier
from bld.evaluation.features import load_extractor, resized
from bld.evaluation.metrics.cas import train_classifier_on
from bld.evaluation.metrics.distances import extract
from bld.evaluation.neighbours import nearest_by
from bld.training.order import KeyedOrder


@pytest.fixture(scope="module")
def digits() -> tuple[ImageSet, ImageSet]:
    return ImageSet.open("digits", Preprocessing(8)).split(0.1, 0)


@pytest.fixture(scope="module")
def folder(digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("features") / "digits"
    train_classifier(*digits, out, steps=40, width=8)
    return out


def test_a_classifier_learns_and_comes_back_from_disk_the_same(digits, folder):
    made = load_extractor(folder)
    assert made.accuracy > 0.6  # ten classes: chance is 0.1
    assert made.name == "classifier digits" and made.distance_name() == "FD (classifier digits)"
    images = digits[1].uint8_centre(range(5))
    again = load_extractor(folder)
    assert torch.equal(made(images).features, again(images).features) and made.sha256 == again.sha256
    assert made(images).features.shape == (5, made.dim) and made(images).logits.shape == (5, 10)


def test_the_same_settings_train_nothing_and_others_do(digits, folder):
    heard = []
    before = (folder / "model.safetensors").stat().st_mtime_ns
    train_classifier(*digits, folder, steps=40, width=8, say=heard.append)
    assert len(heard) == 1 and "used as it is" in heard[0]
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    train_classifier(*digits, folder, steps=41, width=8, say=heard.append)
    assert len(heard) > 1 and "used as it is" not in heard[1]
    train_classifier(*digits, folder, steps=40, width=8)


class Stopped(Exception):
    """In place of a process that ends."""


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> list[int]:
    """Training of classifiers keeps its state at each step, and stops in this one; returns the steps it takes."""
    taken: list[int] = []

    def positions(self: KeyedOrder, at: int, *parts: int) -> range:
        if at == step and step not in taken:
            taken.append(at)
            raise Stopped
        taken.append(at)
        return range(at * self.batch_size, (at + 1) * self.batch_size)

    monkeypatch.setattr(classifier_training, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(KeyedOrder, "positions", positions)
    return taken


def test_a_classifier_that_was_stopped_goes_on_to_the_same_weights(digits, tmp_path, monkeypatch):
    whole = train_classifier(*digits, tmp_path / "whole", steps=8, width=8)
    taken = stop_at(monkeypatch, 5)
    with pytest.raises(Stopped):
        train_classifier(*digits, tmp_path / "judge", steps=8, width=8)
    heard: list[str] = []
    made = train_classifier(*digits, tmp_path / "judge", steps=8, width=8, say=heard.append)
    assert taken == [0, 1, 2, 3, 4, 5, 5, 6, 7] and "from step 5" in heard[0]
    assert made.sha256 == whole.sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == ["judge", "whole"]


def test_a_folder_that_is_there_is_all_that_a_classifier_needs(digits, tmp_path, monkeypatch):
    """A mounted disk, beside which nothing can be written."""
    (tmp_path / "judge").mkdir()
    taken = stop_at(monkeypatch, 2)
    with pytest.raises(Stopped):
        train_classifier(*digits, tmp_path / "judge", steps=3, width=8)
    assert [path.name for path in tmp_path.iterdir()] == ["judge"]
    train_classifier(*digits, tmp_path / "judge", steps=3, width=8)
    assert taken == [0, 1, 2, 2]
    assert sorted(path.name for path in (tmp_path / "judge").iterdir()) == ["config.json", "model.safetensors"]


def test_a_stopped_classifier_of_other_settings_is_not_gone_on_with(digits, tmp_path, monkeypatch):
    taken = stop_at(monkeypatch, 2)
    with pytest.raises(Stopped):
        train_classifier(*digits, tmp_path / "judge", steps=4, width=8)
    monkeypatch.undo()
    taken = stop_at(monkeypatch, 1)
    with pytest.raises(Stopped):
        train_classifier(*digits, tmp_path / "judge", steps=4, width=8, seed=1)
    train_classifier(*digits, tmp_path / "judge", steps=4, width=8, seed=1)
    assert taken == [0, 1, 1, 2, 3]  # of its own, though the other had come farther


def test_the_lesson_of_cas_goes_on_too(digits, tmp_path, monkeypatch):
    images, labels = digits[0].uint8_centre(range(128)), digits[0].labels[:128]

    def lesson(folder):
        folder.mkdir(exist_ok=True)
        made = train_classifier_on(images, labels, 10, steps=6, network="small", seed=0, folder=folder, say=print)
        assert not any(folder.iterdir())
        return made.state_dict()

    whole = lesson(tmp_path / "whole")
    taken = stop_at(monkeypatch, 4)
    with pytest.raises(Stopped):
        lesson(tmp_path / "stopped")
    torch.testing.assert_close(lesson(tmp_path / "stopped"), whole, rtol=0, atol=0)
    assert taken == [0, 1, 2, 3, 4, 4, 5]


def test_a_judge_of_other_settings_is_replaced_only_where_that_is_meant(digits, folder):
    """Distances compare under one judge alone: whoever trains another by mistake would lose that of earlier results."""
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(SettingError, match=r"\(steps\).*--out"):
        train_classifier(*digits, folder, steps=41, width=8, replace=False)
    assert (folder / "model.safetensors").read_bytes() == before
    train_classifier(*digits, folder, steps=40, width=8, replace=False)


def test_features_do_not_depend_on_the_batch_and_images_are_resized_alike(digits, folder):
    made = load_extractor(folder)
    images = digits[1].uint8_centre(range(6))
    torch.testing.assert_close(made(images).features[4:], made(images[4:]).features, rtol=1e-4, atol=1e-5)
    larger = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert made(larger).features.shape == (6, made.dim)
    assert torch.equal(resized(images, 8), images.float() / 255)


def test_a_torchscript_file_is_an_extractor(tmp_path):
    class Mean(torch.nn.Module):
        def forward(self, images):
            return images.float().mean((2, 3))

    torch.jit.script(Mean()).save(str(tmp_path / "mean.pt"))
    made = load_extractor(tmp_path / "mean.pt")
    assert made.dim == 3 and made.name == "mean.pt" and made.distance_name() == "FD (mean.pt)"
    white = torch.full((2, 3, 4, 4), 255, dtype=torch.uint8)
    assert torch.equal(made(white).features, torch.full((2, 3), 255.0)) and made(white).logits is None


def test_a_judge_that_gives_no_numbers_is_refused_by_name(tmp_path, digits):
    class Overflowing(torch.nn.Module):
        def forward(self, images):
            return (images.float().mean((2, 3)) * 1000).half().float()  # beyond half precision from 66 of 255 on

    torch.jit.script(Overflowing()).save(str(tmp_path / "half.pt"))
    judge = load_extractor(tmp_path / "half.pt")
    grey = torch.full((4, 3, 8, 8), 60, dtype=torch.uint8)
    assert extract([grey], judge).features.isfinite().all()
    with pytest.raises(DataError, match=r"half\.pt .*not finite"):
        extract([grey, 2 * grey], judge)
    with pytest.raises(DataError, match=r"half\.pt .*not finite"):
        nearest_by(judge, to_unit(2 * grey[:1]), digits[0], 1)


def test_what_is_no_extractor_is_a_sentence(tmp_path, folder):
    with pytest.raises(SettingError, match=r"features 'inceptio'.* inception\b"):
        load_extractor("inceptio")
    (tmp_path / "bad.pt").write_bytes(b"no torchscript")
    with pytest.raises(SettingError, match=r"bad\.pt .*TorchScript"):
        load_extractor(tmp_path / "bad.pt")
    fields = json.loads((folder / "config.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({**fields, "_class_name": "Denoiser"}))
    with pytest.raises(CheckpointError, match=r"other holds no classifier"):
        load_extractor(other)
    (other / "config.json").write_text(json.dumps({**fields, "width": 9}))
    (other / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="damaged classifier"):
        load_extractor(other)


def test_images_without_classes_teach_no_classifier(image_folder, tmp_path):
    plain = ImageSet.open(image_folder(12), Preprocessing(8)).split(3, 0)
    with pytest.raises(DataError, match=r"images .*classes.* folder per class"):
        train_classifier(*plain, tmp_path / "out", steps=1)


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(MissingPackageError, match=r"binary-latent-diffusion\[metrics\]"):
        load_extractor("inception")


def test_inception_without_its_weights_is_a_sentence(monkeypatch, tmp_path):
    """No network in the tests: the download is made to fail as it does offline."""
    pytest.importorskip("torch_fidelity")
    import torch_fidelity.feature_extractor_inceptionv3 as module

    def offline(*_: object, **__: object):
        raise OSError("Name or service not known")

    monkeypatch.setattr(module, "load_state_dict_from_url", offline)
    with pytest.raises(SettingError, match=r"Inception.*\(Name or service not known\).*--features"):
        load_extractor("inception")

"""Judges compute in exact float32 whatever the judged runs in; float32 means float32; records say what it was."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bld.cli import common
from bld.data import ImageSet, Preprocessing
from bld.evaluation import evaluate
from bld.evaluation.classifier_training import train_classifier
from bld.evaluation.features import ClassifierFeatures, FeatureExtractor, Features, SmallResNet, TorchScriptFeatures
from bld.evaluation.metrics import distances
from bld.evaluation.metrics.cas import accuracy, train_classifier_on
from bld.evaluation.metrics.distances import extract, reference_features
from bld.evaluation.metrics.reconstruction import structural_similarity
from bld.evaluation.sample_conditions import Asked
from bld.pipeline import BinaryLatentDiffusionPipeline
from bld.runtime.precision import Autocast, allow_tf32, in_float32
from bld.training import accelerator as making
from bld.training.code_cache import CodeCache, open_cache
from bld.training.run_folder import RunFolder
from bld.training.stages.encode import encode_images

GPU = torch.device("cuda")


def flags() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    products, convolutions = flags()
    yield
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions


def half() -> torch.autocast:
    """A sampler's autocast."""
    return torch.autocast("cpu", torch.bfloat16)


# -- float32 is float32 -----------------------------------------------------------------------------------


def test_float32_on_a_gpu_rounds_neither_products_nor_convolutions_to_tf32():
    allow_tf32(GPU, True)
    assert flags() == ("high", True) and torch.backends.cuda.matmul.allow_tf32
    allow_tf32(torch.device("cpu"), False)
    assert flags() == ("high", True)
    allow_tf32(GPU, False)
    assert flags() == ("highest", False) and not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize(("setting", "expected"), [("float32", ("highest", False)), ("bf16", ("high", True))])
def test_a_training_on_a_gpu_sets_both(monkeypatch: pytest.MonkeyPatch, setting: str, expected: tuple[str, bool]):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(making, "Accelerator", lambda **options: SimpleNamespace(**options))
    making.make_accelerator(setting)
    assert flags() == expected


@pytest.mark.parametrize(("setting", "expected"), [("float32", ("highest", False)), ("bf16", ("high", True))])
def test_so_does_a_command_that_samples(setting: str, expected: tuple[str, bool]):
    with common.precision(argparse.Namespace(precision=setting), GPU):
        assert flags() == expected


def test_in_float32_holds_inside_alone_and_after_an_error_too():
    allow_tf32(GPU, True)
    with half():
        with in_float32():
            assert flags() == ("highest", False) and not torch.is_autocast_enabled("cpu")
        with pytest.raises(ZeroDivisionError):
            in_float32()(lambda: 1 // 0)()
        assert flags() == ("high", True) and torch.is_autocast_enabled("cpu")


# -- judges -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    everything = ImageSet.open("digits", Preprocessing(8))
    return everything.subset(torch.arange(0, 80))


def classifier() -> ClassifierFeatures:
    torch.manual_seed(0)
    fields = {"data": "digits", "classes": [str(i) for i in range(10)], "image_size": 8, "width": 8}
    return ClassifierFeatures(SmallResNet(8, 10, 8), fields)


class Script(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(192, 7)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images[:, :, :8, :8].flatten(1).float() / 255)


class Lpips(nn.Module):
    """LPIPS's parts."""

    def __init__(self) -> None:
        super().__init__()
        self.scaling_layer = nn.Identity()
        self.net = nn.Conv2d(3, 4, 3)
        self.net.forward = lambda images: [images]  # type: ignore[method-assign]
        self.lins = nn.ModuleList([nn.Conv2d(3, 1, 1)])


class Own(FeatureExtractor):
    """One that knows nothing of precision."""

    name, sha256, dim, classes = "own", "0" * 16, 7, ()

    def __init__(self) -> None:
        self.network = Script()

    def __call__(self, images: Tensor) -> Features:
        with torch.no_grad():
            return Features(self.network(images).float(), None)


def taught(images: ImageSet, folder: Path) -> list[Tensor]:
    model = train_classifier_on(
        images.uint8_centre(range(16)), images.labels[:16], 10, steps=2, network="small", seed=0, folder=folder,
        say=lambda _: None,
    )  # fmt: skip
    return [*(p.detach() for p in model.parameters()), torch.tensor(accuracy(model, images)["cas_top1"])]


def judged(kind: str, images: ImageSet, tmp_path: Path) -> list[Tensor]:
    """What one of the judges says."""
    seen, blurred = images.uint8_centre(range(16)), images.centre(range(16)).clamp(-0.9, 0.7)
    if kind == "classifier":
        return list(classifier()(seen))
    if kind == "torchscript":
        path = tmp_path / "own.pt"
        torch.jit.script(Script()).save(str(path))
        return [TorchScriptFeatures(path)(seen).features]
    if kind == "extract":
        return [extract([seen], Own()).features]
    if kind == "ssim":
        return [structural_similarity(images.centre(range(16)), blurred)]
    if kind == "cas":
        return taught(images, tmp_path)
    made = train_classifier(images, images, tmp_path / f"c{torch.is_autocast_enabled('cpu')}", steps=2, batch_size=16)
    return list(made.network.state_dict().values())


@pytest.mark.parametrize("kind", ["classifier", "torchscript", "extract", "ssim", "cas", "train"])
def test_a_judge_says_the_same_under_a_samplers_autocast(kind: str, digits: ImageSet, tmp_path: Path):
    exact = judged(kind, digits, tmp_path)
    with half():
        found = judged(kind, digits, tmp_path)
        assert torch.is_autocast_enabled("cpu")
    assert all(torch.equal(a, b) for a, b in zip(found, exact, strict=True))


def test_metrics_of_reconstructions_are_taken_in_float32(
    trained_run: Path, digits: ImageSet, monkeypatch: pytest.MonkeyPatch
):
    """The judged network runs under autocast, the judges do not."""
    seen: dict[str, bool] = {}

    def noting(name: str, then: Callable[..., Any]) -> Callable[..., Any]:
        def call(*inputs: Any) -> Any:
            seen[name] = torch.is_autocast_enabled("cpu")
            return then(*inputs)

        return call

    pipe, own = BinaryLatentDiffusionPipeline.from_pretrained(trained_run), Own()
    lpips = Lpips()
    lpips.net.forward = noting("lpips", lpips.net.forward)
    monkeypatch.setattr("bld.tokenizer.losses.load_lpips", lambda: lpips)
    monkeypatch.setattr(own.network, "forward", noting("features", own.network.forward))
    monkeypatch.setattr(pipe.tokenizer.decoder, "forward", noting("decoder", pipe.tokenizer.decoder.forward))
    request = evaluate.Request(metrics=("psnr", "lpips", "rfd"), reconstructed=16)
    with half():
        evaluate.reconstruction_metrics(pipe, digits, request, own)
    assert seen == {"decoder": True, "lpips": False, "features": False}


def test_samples_are_made_in_their_precision_and_judged_in_float32(
    trained_run: Path, digits: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pipe, own, seen = BinaryLatentDiffusionPipeline.from_pretrained(trained_run), Own(), []
    forward = own.network.forward

    def features(images: Tensor) -> Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return forward(images)

    monkeypatch.setattr(own.network, "forward", features)
    request = evaluate.Request(metrics=("diversity",), num=8, steps=2)
    with half():
        assert evaluate.made_by(pipe, request, Asked("nothing"))["precision"] == "bf16"
        evaluate.evaluate_run(pipe, digits, digits, request, own, tmp_path, lambda _: None)
    assert evaluate.made_by(pipe, request, Asked("nothing"))["precision"] == "float32"
    assert seen and not any(seen)


def test_reference_features_are_kept_by_precision(digits: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    reference_features(digits, Own(), tmp_path)
    monkeypatch.setattr(distances, "PRECISION", "bf16")
    reference_features(digits, Own(), tmp_path)
    reference_features(digits, Own(), tmp_path)
    assert len(list(tmp_path.glob("reference-*.npz"))) == 2


# -- records ----------------------------------------------------------------------------------------------


def test_codes_made_in_another_precision_or_in_an_unknown_one_are_made_again(trained_run: Path, tmp_path: Path):
    pipe = BinaryLatentDiffusionPipeline.from_pretrained(trained_run)
    images, said = ImageSet.open("digits", Preprocessing(8)).subset(torch.arange(12)), []

    def encoded(precision: str) -> tuple[CodeCache, int]:
        accelerator = making.make_accelerator(precision)
        return encode_images(
            tmp_path, pipe.tokenizer, images, draws=0, seed=0, accelerator=accelerator, say=said.append
        )

    cache, made = encoded("float32")
    assert made and cache.key.precision == "float32" and encoded("float32")[1] == 0
    cache, made = encoded("bf16")
    assert made and cache.key.precision == "bf16" and "(precision changed)" in "".join(said)
    header = tmp_path / "header.json"  # as it was written before precision was part of it
    fields = json.loads(header.read_text())
    del fields["key"]["precision"]
    header.write_text(json.dumps(fields))
    assert CodeCache(tmp_path).key.precision == ""
    assert open_cache(tmp_path, dataclasses.replace(cache.key, precision="float32"), said.append) is None
    cache, made = encoded("float32")
    assert made and cache.key.precision == "float32"


@pytest.mark.parametrize(("fast", "name"), [(True, "bf16"), (False, "float32")])
def test_what_auto_came_to_has_a_name(monkeypatch: pytest.MonkeyPatch, fast: bool, name: str):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(making, "is_faster_in_bf16", lambda: fast)
    accelerator = making.make_accelerator("auto")
    with accelerator.autocast():
        assert Autocast.here(accelerator.device).name == name
    assert making.precision_of(accelerator) == name


def test_a_run_records_the_precision_of_each_stage(trained_run: Path):
    progress = RunFolder(trained_run).progress()
    assert {stage: progress[stage]["precision"] for stage in ("tokenizer", "encode", "prior")} == dict.fromkeys(
        ("tokenizer", "encode", "prior"), "float32"
    )

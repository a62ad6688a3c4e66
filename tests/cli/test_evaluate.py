"""`bld evaluate`, `bld neighbours`, `bld train-features` on a tiny run: metrics, resuming, processes, refusals."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from bld.cli import main
from bld.data import ImageSet, open_images
from bld.errors import SettingError, UserError
from bld.evaluation.features import ClassifierFeatures, FeatureExtractor, Features
from bld.pipeline import BinaryLatentDiffusionPipeline

pytest.importorskip("torch_fidelity")


class Bright(FeatureExtractor):
    """Each image's mean."""

    name, sha256, dim, classes = "mean", "0" * 16, 1, ()

    def __call__(self, images):
        return Features(images.float().mean((1, 2, 3))[:, None], None)


ALL = "fd,kid,is,precision,recall,diversity,psnr,ssim,rfd,bits"


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("features") / "digits"
    assert main(["train-features", "--data", "digits", "--out", str(out), "--steps", "20"]) == 0
    return out


def evaluate(run: Path, features: Path, *more: str, name: str = "evaluation.json") -> dict:
    words = ["evaluate", str(run), "--features", str(features), "--steps", "4", "--out", str(run / name), *more]
    assert main([*words, "--precision", "float32"]) == 0
    return json.loads((run / name).read_text())


def test_every_figure_comes_with_what_moves_it(run_copy, features, capsys):
    record = evaluate(run_copy, features, "--num", "60", "--metrics", ALL, "--seed", "3")
    metrics = record["figures"]
    assert set(metrics) >= {"fd", "kid_mean", "is_mean", "precision", "recall", "diversity", "psnr", "psnr_std", "ssim",
                            "rfd", "bits_per_code", "bits_per_bit", "bits_per_dimension"}  # fmt: skip
    assert all(value == value for value in metrics.values())
    assert record["samples"]["steps"] == 4 and record["samples"]["temperature"] == 0.9
    assert record["request"]["seed"] == 3 and record["request"]["num"] == 60
    assert record["reference"]["images"] == 1617 and record["unseen"]["images"] == 180
    assert record["reference"]["preprocessing"]["resample"] == "lanczos"
    assert record["extractor"]["name"] == "classifier digits" and len(record["extractor"]["sha256"]) == 16
    said = capsys.readouterr().out
    assert "FD (classifier digits)" in said and "FID" not in said
    assert "60 images for 128 features" in said


def test_the_batch_size_changes_no_figure(run_copy, features):
    one = evaluate(run_copy, features, "--num", "40", "--batch-size", "40", name="a.json")
    torch_shards = list((run_copy / "evaluation").glob("*/*.npz"))
    for shard in torch_shards:
        shard.unlink()
    other = evaluate(run_copy, features, "--num", "40", "--batch-size", "7", name="b.json")
    for name, value in one["figures"].items():
        assert other["figures"][name] == pytest.approx(value, rel=1e-3, abs=1e-4), name


def test_a_killed_evaluation_makes_only_what_is_missing(run_copy, features, monkeypatch):
    from bld.evaluation import evaluate as module

    monkeypatch.setattr(module, "SHARD", 10)
    made, extract = [], ClassifierFeatures.__call__

    def counted(self, images):
        made.append(len(images))
        if sum(made) > 25 and len(made) < 4:
            raise KeyboardInterrupt
        return extract(self, images)

    monkeypatch.setattr(ClassifierFeatures, "__call__", counted)
    words = ["evaluate", str(run_copy), "--features", str(features), "--steps", "4", "--num", "40", "--metrics", "fd"]
    assert main([*words, "--precision", "float32"]) == 130
    shards = sorted(path.name for path in (run_copy / "evaluation").glob("*/*.npz"))
    assert shards == ["0000000-0000010.npz", "0000010-0000020.npz"]
    monkeypatch.setattr(ClassifierFeatures, "__call__", extract)
    resumed = evaluate(run_copy, features, "--num", "40", "--metrics", "fd", name="resumed.json")
    for path in (run_copy / "evaluation").glob("*/*.npz"):
        path.unlink()
    assert evaluate(run_copy, features, "--num", "40", "--metrics", "fd", name="whole.json") == resumed


def test_samples_made_in_another_precision_or_by_other_defaults_are_not_taken(run_copy, features):
    """The shards of float32 do not serve bf16, nor those of one temperature another that the run's index names."""
    evaluate(run_copy, features, "--num", "20", "--metrics", "fd")
    words = ["evaluate", str(run_copy), "--features", str(features), "--steps", "4", "--num", "20", "--metrics", "fd"]
    assert main([*words, "--precision", "bf16"]) == 0
    assert len(list((run_copy / "evaluation").glob("*/*.npz"))) == 2
    index = json.loads((run_copy / "model_index.json").read_text())
    index["sampling"]["temperature"] = 0.5
    (run_copy / "model_index.json").write_text(json.dumps(index))
    assert evaluate(run_copy, features, "--num", "20", "--metrics", "fd")["samples"]["temperature"] == 0.5
    assert len(list((run_copy / "evaluation").glob("*/*.npz"))) == 3


def test_two_processes_give_the_same_metrics_as_one(run_copy, features):
    """torchrun with two real processes on gloo; 2,500 samples are three shards."""
    words = ["evaluate", str(run_copy), "--features", str(features), "--steps", "1", "--num-images", "2500",
             "--metrics",
             "fd,precision", "--batch-size", "500", "--precision", "float32", "--device", "cpu"]  # fmt: skip
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "bld"]
    two = run_copy / "two.json"
    done = subprocess.run([*launch, *words, "--out", str(two)], capture_output=True, text=True, timeout=600,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list((run_copy / "evaluation").glob("*/*.npz"))) == 3
    for shard in (run_copy / "evaluation").glob("*/*.npz"):
        shard.unlink()
    assert main([*words, "--out", str(run_copy / "one.json")]) == 0
    assert json.loads(two.read_text()) == json.loads((run_copy / "one.json").read_text())


def test_images_of_another_program_are_judged(tmp_path, features, run_copy, capsys):
    folder = tmp_path / "made"
    assert main(["sample", str(run_copy), "--num", "12", "--steps", "2", "--out", str(folder)]) == 0
    (folder / "grid.png").unlink()
    words = ["evaluate", "--samples", str(folder), "--data", "digits", "--features", str(features)]
    assert main([*words, "--metrics", "fd,precision", "--out", str(tmp_path / "x.json")]) == 0
    record = json.loads((tmp_path / "x.json").read_text())
    assert record["samples"]["images"] == 12 and record["samples"]["format"] == [".png"]
    Image.new("RGB", (9, 8)).save(folder / "wide.png")
    assert main([*words, "--out", str(tmp_path / "x.json")]) == 2
    error = capsys.readouterr().err
    assert all(words in error for words in ("wide.png", "9×8", "8×8", "--resize"))
    assert main([*words, "--metrics", "fd", "--resize", "--out", str(tmp_path / "x.json")]) == 0


def page_of(run: Path, folder: Path) -> dict[str, tuple[str, str]]:
    """What the run's page says was measured: name → (value, how)."""
    assert main(["share", str(run), "me/digits", "--dry-run", str(folder)]) == 0
    text = (folder / "README.md").read_text(encoding="utf-8").split("## How good it is")[1].split("##")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|", 2)] for line in text.splitlines() if line[:1] == "|"]
    return {name: (value, how) for name, value, how in rows}


def test_images_of_another_program_do_not_pass_for_the_runs_own(
    run_copy, features, image_folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    own = evaluate(run_copy, features, "--num", "30", "--metrics", "fd")
    words = ["evaluate", str(run_copy), "--samples", str(image_folder(12)), "--features", str(features)]
    assert main([*words, "--metrics", "fd"]) == 0
    assert json.loads((run_copy / "evaluation.json").read_text()) == own
    theirs = json.loads((run_copy / "evaluation-of-samples.json").read_text())
    assert not (tmp_path / "evaluation").exists()  # the reference's features are kept in the run
    assert theirs["counts"] == {"fd": {"samples": 12}} and "model" not in theirs["samples"]
    value, how = page_of(run_copy, tmp_path / "page")["fd"]
    assert value == f"{own['figures']['fd']:.5g}" != f"{theirs['figures']['fd']:.5g}" and how.startswith("30 samples, ")
    assert main([*words, "--metrics", "fd", "--out", str(run_copy / "evaluation.json")]) == 0
    assert "fd" not in page_of(run_copy, tmp_path / "page")


def test_of_given_samples_no_more_than_the_centres_is_held(run_copy, features, image_folder, monkeypatch):
    """Of photographs what random crops are cut from would be gigabytes, which nobody reads here."""
    monkeypatch.setattr("bld.data.strips.Strips.put", lambda *_: pytest.fail("held"))
    config = run_copy / "config.yaml"
    config.write_text(config.read_text().replace("crop: center", "crop: random"))
    assert "crop: random" in config.read_text()
    words = ["evaluate", str(run_copy), "--samples", str(image_folder(12)), "--features", str(features)]
    assert main([*words, "--metrics", "fd"]) == 0


def test_without_a_run_images_of_another_program_are_told_apart_too(features, image_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["evaluate", "--samples", str(image_folder(12)), "--data", "digits", "--features", str(features)]
    assert main([*words, "--metrics", "fd"]) == 0
    assert [path.name for path in tmp_path.glob("*.json")] == ["evaluation-of-samples.json"]


def test_a_figure_says_of_how_many_images_it_is(run_copy, features, tmp_path):
    record = evaluate(run_copy, features, "--num", "20", "--metrics", "fd,psnr,rfd,bits,cas", "--cas-network", "small",
                      "--cas-epochs", "1")  # fmt: skip
    counts = record["counts"]
    assert counts.keys() == record["figures"].keys()
    assert counts["fd"] == {"samples": 20} and counts["cas_top1"] == {"samples": 20, "unseen": 180}
    for name in ("psnr", "psnr_std", "drawn_psnr", "rfd", "bits_per_code", "noise_bits", "code_draws"):
        assert counts[name] == {"unseen": 180}, name
    page = page_of(run_copy, tmp_path / "page")
    assert page["fd"][1].startswith("20 samples, 1,617 reference images, features: classifier digits, steps 4")
    assert page["psnr"][1] == page["bits_per_bit"][1] == "180 unseen images, precision float32"
    assert page["rfd"][1] == "180 unseen images, features: classifier digits, precision float32"
    assert page["cas_top1"][1].startswith("20 samples, 180 unseen images, steps 4")
    request = ["--num", "20", "--metrics", "psnr,bits", "--data", str(run_copy / "examples")]
    assert evaluate(run_copy, features, *request)["counts"]["bits_per_bit"]["unseen"] < 180


def test_images_that_the_run_was_trained_on_do_not_count_as_unseen(run_copy, features, image_folder, tmp_path, capsys):
    """Of the run's own images the held-out ones are measured; where only some are known, nothing calls them unseen."""
    own = evaluate(run_copy, features, "--metrics", "psnr", name="own.json")
    named = evaluate(run_copy, features, "--metrics", "psnr", "--data", "digits", name="named.json")
    assert named["counts"]["psnr"] == {"unseen": 180} and named["reference"]["images"] == 1617
    assert named["figures"] == own["figures"]
    assert re.search("digits .*trained on: of them its 180 held-out ones are measured", capsys.readouterr().out)
    folder = image_folder(12)
    with Image.open(folder / "003.png") as image:
        pixels = hashlib.blake2b(repr(image.size).encode() + image.tobytes(), digest_size=8).hexdigest()
    data = json.loads((run_copy / "data.json").read_text())
    data |= {"contents": {"a/003.png": pixels, "a/x.png": "", "a/y.png": ""}, "held_out_below": 0.0}
    (run_copy / "data.json").write_text(json.dumps(data))
    some = evaluate(run_copy, features, "--metrics", "psnr", "--data", str(folder))
    assert some["counts"]["psnr"] == {"partly_seen": 12} and some["unseen"] is None
    assert some["partly_seen"]["images"] == 12
    assert re.search(r"003\.png is one.*not of unseen images", capsys.readouterr().out)
    how = page_of(run_copy, tmp_path / "page")["psnr"][1]
    assert how == "12 images, some of which it was trained on, precision float32"


@pytest.fixture
def begun_with_another(trained_run, run_copy) -> Path:
    """A run on the tokenizer of one that held other images out."""
    config = run_copy / "config.yaml"
    config.write_text(re.sub("(?m)^seed: 0$", "seed: 1", config.read_text()))
    progress = json.loads((run_copy / "progress.json").read_text())
    progress["tokenizer"]["given"] = str(trained_run)
    (run_copy / "progress.json").write_text(json.dumps(progress))
    return run_copy


@pytest.mark.parametrize("data", [(), ("--data", "digits")])
def test_images_that_the_given_tokenizer_was_trained_on_do_not_count_as_unseen(
    data, begun_with_another, trained_run, features, tmp_path, capsys
):
    record = evaluate(begun_with_another, features, "--metrics", "psnr", *data)
    count = next(iter(record["counts"]["psnr"].values()))
    assert record["counts"]["psnr"] == {"partly_seen": count} and record["unseen"] is None
    assert record["partly_seen"]["images"] == count > 0
    said = capsys.readouterr().out
    seen = re.search(rf"\b(\d+) of the {count} ", said)
    assert seen and 0 < int(seen[1]) < count
    assert f"trained on in {trained_run}" in said and "not of unseen images" in said
    assert "some of which it was trained on" in page_of(begun_with_another, tmp_path / "page")["psnr"][1]


def test_other_images_that_the_given_tokenizer_was_trained_on_do_not_count_as_unseen(
    begun_with_another, trained_run, features, image_folder, capsys
):
    """Those of --data that only the run knows which the tokenizer came from."""
    folder, data = image_folder(12), begun_with_another / "data.json"
    with Image.open(folder / "003.png") as image:
        pixels = hashlib.blake2b(repr(image.size).encode() + image.tobytes(), digest_size=8).hexdigest()
    origin = begun_with_another.parent / "origin"
    shutil.copytree(trained_run, origin)
    contents = {"a/003.png": pixels, "a/x.png": "", "a/y.png": ""}
    known = json.loads(data.read_text()) | {"contents": contents, "held_out_below": 0.0}
    (origin / "data.json").write_text(json.dumps(known))
    progress = begun_with_another / "progress.json"
    progress.write_text(progress.read_text().replace(str(trained_run), str(origin)))
    record = evaluate(begun_with_another, features, "--metrics", "psnr", "--data", str(folder))
    assert record["counts"]["psnr"] == {"partly_seen": 12}
    assert re.search(r"003\.png is one.*not of unseen images", capsys.readouterr().out)


def test_a_second_evaluation_keeps_the_figures_of_the_first_that_were_measured_alike(run_copy, features, capsys):
    first = evaluate(run_copy, features, "--num", "20", "--metrics", "fd")
    both = evaluate(run_copy, features, "--num", "20", "--metrics", "psnr", "--batch-size", "32")
    assert both["figures"]["fd"] == first["figures"]["fd"] and both["counts"]["fd"] == {"samples": 20}
    assert both["figures"].keys() > {"fd", "psnr"} and both["counts"].keys() == both["figures"].keys()
    assert both["extractor"] == first["extractor"] and both["request"]["metrics"] == ["fd", "psnr"]
    assert "no longer" not in capsys.readouterr().out
    other = evaluate(run_copy, features, "--num", "20", "--metrics", "kid", "--seed", "1")
    assert "fd" not in other["figures"] and other["request"]["metrics"] == ["psnr", "kid"]
    told = [line for line in capsys.readouterr().out.splitlines() if "no longer" in line]
    assert len(told) == 1 and re.search(r"\bfd\b", told[0]) and "psnr" not in told[0]


def test_figures_stay_where_nothing_that_moves_them_has_changed(run_copy, features, tmp_path, capsys):
    """Each still with the settings that it was measured with, in the file and on the page."""
    first = evaluate(run_copy, features, "--num", "20", "--classes", "all", "--metrics", "fd,kid,psnr,ssim,bits")
    second = evaluate(run_copy, features, "--num", "30", "--temperature", "0.5", "--metrics", "psnr")
    assert second["figures"] == first["figures"] and second["counts"] == first["counts"]
    assert second["samples"] == first["samples"] and second["request"]["num"] == 20
    assert "no longer" not in capsys.readouterr().out
    assert page_of(run_copy, tmp_path / "page")["fd"][1].startswith("20 samples, ")
    third = evaluate(run_copy, features, "--num", "30", "--seed", "2", "--metrics", "diversity")
    assert third["figures"].keys() == {*first["figures"], "diversity"} - {"fd", "kid_mean", "kid_std"}
    assert third["samples"]["seed"] == 2 and third["draws"] == {"seed": 0}
    lost = re.search("no longer holds (.*), which", capsys.readouterr().out)
    assert lost is not None and lost[1] == "fd, kid_mean, kid_std"


def test_figures_of_other_images_or_draws_are_not_put_beside_these(run_copy, features, image_folder, capsys):
    first = evaluate(run_copy, features, "--num", "20", "--metrics", "fd,psnr,bits")
    drawn = {name for name in first["figures"] if "bits" in name or name == "code_draws"}
    capsys.readouterr()
    other_draws = evaluate(run_copy, features, "--num", "20", "--seed", "1", "--metrics", "psnr")
    assert other_draws["figures"].keys() == first["figures"].keys() - drawn
    lost = re.search("no longer holds (.*), which", capsys.readouterr().out)
    assert lost is not None and set(lost[1].split(", ")) == drawn
    others = evaluate(run_copy, features, "--data", str(image_folder(12)), "--metrics", "ssim")
    assert others["figures"].keys() == {"fd", "ssim", "ssim_std"}
    assert others["unseen"]["images"] == 12 and others["reference"] == first["reference"]


def test_figures_of_other_features_are_not_put_beside_these():
    from bld.evaluation.record import joined

    def record(name: str, features: str | None) -> dict:
        return {"figures": {name: 1.0}, "counts": {name: {"samples": 9}}, "samples": {"seed": 0}, "reference": {},
                "unseen": {}, "versions": {}, "request": {"metrics": (name,), "num": 9},
                "extractor": features and {"sha256": features}}  # fmt: skip

    assert joined(record("kid", "b"), record("fd", "a")) == (record("kid", "b"), ["fd"])
    assert joined(record("kid", "b"), record("psnr", None))[0]["extractor"] == {"sha256": "b"}
    assert joined(record("kid", "b"), {"psnr_mean": 3.0}) == (record("kid", "b"), [])


def test_cas_trains_on_samples_and_tests_on_real_images(run_copy, features):
    more = ["--metrics", "cas", "--num", "40", "--cas-network", "small", "--cas-epochs", "3"]
    record = evaluate(run_copy, features, *more)
    top1, top5 = record["figures"]["cas_top1"], record["figures"]["cas_top5"]
    assert 0 < top1 < top5 < 1
    recognised = [share * record["unseen"]["images"] for share in (top1, top5)]  # a whole number of unseen images
    assert recognised == pytest.approx([round(number) for number in recognised], abs=1e-6)


def test_cas_recognises_classes_it_was_taught(tmp_path):
    """Trained on real digits in place of samples it knows the others: the score can reach the top."""
    from bld.data import ImageSet, Preprocessing
    from bld.evaluation.metrics.cas import accuracy, train_classifier_on

    train, rest = ImageSet.open("digits", Preprocessing(8)).split(0.2, 0)
    images, labels = train.uint8_centre(range(len(train))), train.labels
    model = train_classifier_on(images, labels, 10, steps=60, network="small", seed=0, folder=tmp_path, say=print)
    found = accuracy(model, rest)
    assert found["cas_top1"] > 0.8 and found["cas_top5"] > found["cas_top1"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "RUN.*--samples"),
        (["RUN", "--metrics", "fidd"], "'fidd'.*'fd'"),
        (["RUN", "--num", "0"], "num .*at least 1, not 0"),
        (["RUN", "--num", "3", "--metrics", "precision"], "precision .*at least 4 .* 3 samples"),
        (["RUN", "--metrics", "fd", "--num", "12", "--classes", "eleven"], "class 'eleven'"),
        (["RUN", "--metrics", "cas", "--data", "PLAIN"], "cas .*PLAIN.* none: .*folder per class"),
        (["--samples", "digits"], "--data"),
        (["--samples", "digits", "--data", "digits", "--metrics", "psnr"], "psnr .*--samples"),
        (["RUN", "--metrics", "fd", "--data", "nowhere"], "nothing at nowhere"),
    ],
)
def test_what_cannot_be_judged_is_one_sentence(words, message, run_copy, features, image_folder, capsys, tmp_path):
    named = {"RUN": str(run_copy), "PLAIN": str(image_folder(6))}
    words = [named.get(word, word) for word in words]
    assert main(["evaluate", *words, "--features", str(features), "--out", str(tmp_path / "e.json")]) == 2
    error = capsys.readouterr().err
    for name, path in named.items():
        error = error.replace(path, name)
    assert re.search(message, error) and error.count("\n") == 1, error


def test_neighbours_are_drawn_and_named(run_copy, features, capsys):
    for by in ("pixels", str(features)):
        assert main(["neighbours", str(run_copy), "--num", "3", "--k", "4", "--by", by, "--steps", "2"]) == 0
        with Image.open(run_copy / "neighbours.png") as picture:
            assert picture.size == (5 * 66 - 2, 3 * 66 - 2)
        assert "digit-" in capsys.readouterr().out
    assert main(["neighbours", str(run_copy), "--k", "0", "--steps", "2"]) == 2
    assert re.search(r"\bk\b.*1617.*not 0", capsys.readouterr().err)


def test_mirrored_neighbours_of_a_run_that_mirrors_are_called_so(run_copy, features, capsys):
    config = run_copy / "config.yaml"
    config.write_text(config.read_text().replace("flip: false", "flip: true"))
    for by in ("pixels", str(features)):
        assert main(["neighbours", str(run_copy), "--num", "6", "--k", "3", "--by", by, "--steps", "2"]) == 0
        assert 0 < capsys.readouterr().out.count("(mirrored)") < 18


def test_bits_are_of_several_draws_of_each_code_and_say_so(run_copy, features):
    """A prior that was trained on most probable codes (codes.draws=0) is judged by those."""
    drawn = evaluate(run_copy, features, "--metrics", "bits", name="drawn.json")
    assert drawn["request"]["code_draws"] == drawn["figures"]["code_draws"] == 4
    assert drawn["figures"]["bits_given"] == "class"
    config = run_copy / "config.yaml"
    config.write_text(config.read_text().replace("draws: 2", "draws: 0"))
    probable = evaluate(run_copy, features, "--metrics", "bits", name="probable.json")
    assert probable["figures"]["code_draws"] == 0
    assert probable["figures"]["bits_per_code"] != drawn["figures"]["bits_per_code"]


@pytest.fixture
def unasked(monkeypatch):
    """No image may be sampled."""

    def asked(*_, **__):
        raise AssertionError("images were sampled")

    monkeypatch.setattr("bld.pipeline.pipeline.draw_codes", asked)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metrics", "fd,cas", "--data", "PLAIN"], "cas .*none"),
        (["--metrics", "fd,cas", "--cas-network", "large"], "'large'.*resnet50"),
        (["--metrics", "fd,precision", "--num", "3"], "precision .*at least 4"),
        (["--metrics", "fd,lpips"], "lpips .*weights"),
        (["--metrics", "fd", "--steps", "0"], "steps .*not 0"),
        (["--metrics", "fd", "--out", "FOLDER/figures"], r"figures .*\.json"),
        (["--metrics", "fd", "--out", "FOLDER/E.JSON"], r"E\.JSON .*\.json"),
    ],
)
def test_what_an_evaluation_cannot_give_is_refused_before_it_samples(
    words, message, run_copy, features, image_folder, capsys, tmp_path, monkeypatch, unasked
):
    def offline():
        raise SettingError("no weights")

    monkeypatch.setattr("bld.tokenizer.losses.load_lpips", offline)
    named = {"PLAIN": str(image_folder(30))}
    words = [named.get(word, word).replace("FOLDER", str(tmp_path)) for word in words]
    assert main(["evaluate", str(run_copy), "--features", str(features), "--num", "20", *words]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1, error


class Colours(torch.nn.Module):
    """A judge of features alone."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean((2, 3))


@pytest.mark.parametrize("given", [False, True])
def test_an_inception_score_by_a_judge_without_classes_is_refused_before_anything_is_sampled(
    given, run_copy, image_folder, tmp_path, capsys, unasked
):
    judge = tmp_path / "judge.pt"
    torch.jit.script(Colours()).save(str(judge))
    what = ["--samples", str(image_folder(12)), "--data", "digits", "--resize"] if given else [str(run_copy)]
    out = ["--features", str(judge), "--num", "12", "--out", str(tmp_path / "e.json")]
    assert main(["evaluate", *what, *out, "--metrics", "fd,is"]) == 2
    error = capsys.readouterr().err
    assert re.search(r"is needs .*logits.* judge\.pt .*leave is out", error) and error.count("\n") == 1
    assert not (tmp_path / "e.json").exists()


def test_a_distance_of_one_image_is_refused_before_anything_is_sampled(
    run_copy, features, image_folder, capsys, unasked
):
    one = ["--data", str(image_folder(1)), "--features", str(features), "--metrics", "rfd"]
    assert main(["evaluate", str(run_copy), *one]) == 2
    error = capsys.readouterr().err
    assert re.search(r"rfd needs at least 2 images; there is 1\b", error) and error.count("\n") == 1


@pytest.mark.parametrize("metric", ["bits", "cas"])
def test_metrics_that_a_kind_of_prior_lacks_are_refused_before_it_samples(metric, tmp_path, unasked):
    """A Gaussian prior has no code length, and one without classes no classes to learn from."""
    from bld.data import ImageSet, Preprocessing
    from bld.evaluation.evaluate import Request, evaluate_run
    from bld.priors import DenoiserConfig, GaussianDenoiser, GaussianDiffusion
    from bld.tokenizer import AutoencoderConfig, BinaryAutoencoder

    tokenizer = AutoencoderConfig(
        image_size=8, code_bits=8, base_channels=8, channel_multipliers=(1, 1, 1), bottleneck="gaussian"
    )
    prior = DenoiserConfig(code_height=2, code_width=2, code_bits=8, steps=4, dim=16, depth=1, heads=2)
    pipe = BinaryLatentDiffusionPipeline(BinaryAutoencoder(tokenizer), GaussianDenoiser(prior), GaussianDiffusion(4))
    digits = ImageSet.open("digits", Preprocessing(8))
    request = Request(metrics=("diversity", metric), num=8)
    with pytest.raises(UserError, match=f"{metric}"):
        evaluate_run(pipe, digits, digits, request, Bright(), tmp_path, lambda _: None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "n.jpg"], r"n\.jpg .*\.png"),
        (["--out", "N.PNG"], r"N\.PNG .*\.png"),
        (["--by", "nosuch"], "'nosuch'"),
        (["--k", "0"], "k .*not 0"),
    ],
)
def test_neighbours_that_cannot_be_had_are_refused_before_anything_is_sampled(
    words, message, run_copy, tmp_path, monkeypatch, capsys, unasked
):
    monkeypatch.chdir(tmp_path)
    assert main(["neighbours", str(run_copy), *words]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1, error


@pytest.fixture
def holed(image_folder) -> Path:
    """60 images in two folders, of which the first cannot be read."""
    folder = image_folder(60, classes=2, name="holed")
    (folder / "class0" / "000.png").write_bytes(b"no picture")
    return folder


def test_unreadable_images_are_told_wherever_they_are_left_out(run_copy, features, holed, tmp_path, capsys):
    out = str(tmp_path / "e.json")
    made = ["--samples", str(holed), "--data", str(holed), "--features", str(features), "--metrics", "fd", "--out", out]
    for words, times in (
        (["reconstruct", str(run_copy), "--data", str(holed)], 1),
        (["evaluate", str(run_copy), "--data", str(holed), "--metrics", "psnr", "--out", out], 1),
        (["evaluate", *made], 2),
        (["train-features", "--data", str(holed), "--steps", "1", "--out", str(tmp_path / "f")], 1),
    ):
        assert main(words) == 0
        told = re.findall(r"\b1 of 60\b.*class0/000.png", capsys.readouterr().out)
        assert len(told) == times, words


def test_labels_are_wanted_only_where_a_figure_needs_them(run_copy, features, image_folder, tmp_path, capsys):
    folder = image_folder(12, name="half")
    (folder / "metadata.csv").write_text("file_name,label\n000.png,3\n")
    out = ["--features", str(features), "--out", str(tmp_path / "e.json"), "--num", "8", "--steps", "1"]
    assert main(["reconstruct", str(run_copy), "--data", str(folder)]) == 0
    run = ["evaluate", str(run_copy), "--data", str(folder), *out]
    assert main([*run, "--metrics", "psnr"]) == 0 and main([*run, "--metrics", "fd", "--classes", "all"]) == 0
    assert main(["evaluate", "--samples", str(folder), "--data", str(folder), "--metrics", "fd", *out]) == 0
    for words, cure in (
        ([*run, "--metrics", "psnr,bits"], "leave out bits"),
        ([*run, "--metrics", "fd"], "--classes"),
        (["train-features", "--data", str(folder), "--out", str(tmp_path / "f")], "correct it"),
    ):
        capsys.readouterr()
        assert main(words) == 2
        error = capsys.readouterr().err
        assert "metadata.csv" in error and cure in error and "data.labels" not in error and error.count("\n") == 1


def test_images_may_be_as_large_as_the_run_reads_them(run_copy, image_folder, tmp_path, monkeypatch, capsys):
    """The usual limit is made as small as these images here; the run's own is what it was trained with."""
    for opens in (open_images, ImageSet.open.__func__):
        monkeypatch.setitem(opens.__kwdefaults__, "max_pixels", 100)
    folder, out = str(image_folder(8, size=16, classes=2)), ["--out", str(tmp_path / "e.json")]
    reconstruct = ["reconstruct", str(run_copy), "--data", folder]
    psnr = ["evaluate", str(run_copy), "--data", folder, "--metrics", "psnr", *out]
    given = ["evaluate", str(run_copy), "--samples", folder, "--data", folder, "--metrics", "fd", "--resize", *out]
    monkeypatch.setattr("bld.evaluation.features.load_extractor", lambda *_: Bright())
    for words in (reconstruct, psnr, given):
        assert main(words) == 0
    config = run_copy / "config.yaml"
    config.write_text(config.read_text().replace("max_megapixels: 300.0", "max_megapixels: 0.0002"))
    for words in (reconstruct, psnr, given):
        capsys.readouterr()
        assert main(words) == 2
        error = capsys.readouterr().err
        assert "16×16" in error and "data.max_megapixels" in error and error.count("class0/000.png") == 1


def test_images_of_several_sizes_are_taken_at_the_smallest_and_that_is_said(image_folder, tmp_path, capsys):
    small, large = image_folder(20, size=16, classes=2, name="a"), image_folder(20, size=24, classes=2, name="a")
    for path in sorted(small.glob("class0/*.png"))[:5]:
        Image.new("RGB", (9, 40), "red").save(path)
    assert small == large
    assert main(["train-features", "--data", str(large), "--steps", "1", "--out", str(tmp_path / "features")]) == 0
    assert re.search(r"\b9 to 24\b.* 9 .*--image-size", capsys.readouterr().out)
    assert json.loads((tmp_path / "features" / "config.json").read_text())["image_size"] == 9


@pytest.mark.parametrize("words", [[], ["--data", "digits"], ["--samples", "digits"]])
def test_a_run_is_judged_at_its_own_size_only(words, trained_run, tmp_path, capsys):
    size = json.loads((trained_run / "tokenizer" / "config.json").read_text())["image_size"]
    out = ["--out", str(tmp_path / "a.json"), "--metrics", "diversity" if "--samples" in words else "psnr"]
    features = tmp_path / "f"
    assert main(["train-features", "--data", "digits", "--out", str(features), "--steps", "1"]) == 0
    command = ["evaluate", str(trained_run), *words, *out, "--num", "8", "--features", str(features)]
    assert main([*command, "--image-size", str(2 * size)]) == 2
    assert f"--image-size {2 * size}" in capsys.readouterr().err and not (tmp_path / "a.json").exists()
    assert main([*command, "--image-size", str(size), "--resize"]) == 0


def test_a_classifier_is_used_again_only_if_it_was_shown_the_same(tmp_path, capsys):
    words = ["train-features", "--data", "digits", "--out", str(tmp_path / "f"), "--steps", "2"]
    config, made = tmp_path / "f" / "config.json", []
    for more, code in (([], 0), ([], 0), (["--flip"], 2), (["--steps", "3"], 2), ([], 0)):
        assert main([*words, *more]) == code
        made.append((ClassifierFeatures.load(tmp_path / "f").sha256, "used as it is" in capsys.readouterr().out))
    plain = made[0][0]
    assert made == [(plain, False), (plain, True), (plain, False), (plain, False), (plain, True)]
    older = json.loads(config.read_text())
    for name in ("flip", "crop"):
        del older[name]
    config.write_text(json.dumps(older))
    assert main(words) == 0 and "used as it is" in capsys.readouterr().out
    assert main([*words, "--flip"]) == 2 and "(flip)" in capsys.readouterr().err

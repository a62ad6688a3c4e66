"""The page, parsed: whole without a network, complete, and safe from what names may hold."""

from __future__ import annotations

import base64
import io
import json
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from bld.cli import COMMANDS, main
from bld.errors import CheckpointError
from bld.evaluation.held_out_conditions import Conditions
from bld.priors import GaussianDiffusion
from bld.priors.absorbing import AbsorbingDiffusion
from bld.report.page import write_report
from bld.report.samples import Generated, _command, _noise
from bld.serialization.models import SamplingDefaults, load_tokenizer, save_model
from bld.training.recipe import Recipe
from bld.training.run_folder import RunFolder

EVERY_SECTION = [
    "samples",
    "reconstructions",
    "denoising",
    "inpainting",
    "bits",
    "neighbours",
    "curves",
    "settings",
]
HOSTILE = '<script>alert("1")</script>'


class Page(HTMLParser):
    """What the tests ask of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "col", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]

    def ids(self) -> list[str]:
        return [attrs["id"] for _, attrs in self.tags if attrs.get("id")]

    def sections(self) -> list[str]:
        return [attrs["id"] for attrs in self.all("section")]


def _report(folder: Path, said: list[str] | None = None) -> Page:
    said = [] if said is None else said
    path = write_report(RunFolder(folder), say=said.append, device="cpu")
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    copy = tmp_path_factory.mktemp("report") / "run"
    shutil.copytree(trained_run, copy)
    return _report(copy)


def test_every_section_is_there_in_order(page: Page):
    assert page.sections() == EVERY_SECTION


def test_the_page_asks_for_nothing_outside_itself(page: Page):
    for tag, attrs in page.tags:
        assert tag not in ("script", "link", "iframe", "object")
        for name in ("src", "href", "xlink:href", "srcset"):
            value = attrs.get(name) or "#"
            assert value.startswith(("#", "data:image/png;base64,")), f"{tag} {name}={value[:60]}"
        assert "http" not in (attrs.get("style") or "")


def test_every_picture_is_a_png_with_a_description(page: Page):
    pictures = page.all("img")
    assert len(pictures) > 60 + 16 + 36 + 15 + 48
    for attrs in pictures:
        assert attrs["alt"]
        data = base64.b64decode(attrs["src"].removeprefix("data:image/png;base64,"), validate=True)
        Image.open(io.BytesIO(data), formats=["PNG"]).load()


def test_small_pictures_are_enlarged_without_blur(page: Page):
    small = [attrs for attrs in page.all("img") if int(attrs["width"]) < 128]
    assert small and all(attrs.get("class") == "small" for attrs in small)


def test_ids_are_unique_and_links_lead_somewhere(page: Page):
    ids = page.ids()
    assert len(ids) == len(set(ids))
    links = [attrs["href"] for attrs in page.all("a")]
    assert {link[1:] for link in links} == set(EVERY_SECTION)


def test_charts_take_the_colours_of_the_page(page: Page):
    assert len(page.all("svg")) >= 4
    styles = " ".join(attrs.get("style") or "" for _, attrs in page.tags)
    assert "var(--accent)" in styles and "currentColor" in styles
    assert "#000000" not in styles and "#0102" not in styles


def test_samples_can_be_made_again_from_what_the_page_says(page: Page, trained_run: Path):
    assert "--num 60 --seed 0 --steps 16 --temperature 0.9 --guidance-scale 1.0 --classes all" in page.text


def test_coin_flips_of_the_encoder_are_no_information(run_copy: Path):
    """Bits of pure chance vary as much as can be; where none are drawn, or nobody measured them, none are told of."""
    run = RunFolder(run_copy)
    run.record("code", noise_bits=0.75 * 512)
    told = _report(run_copy).text
    assert "of which 0.75 are coin flips of the encoder" in told and "a smaller code might do" in told
    assert "by the encoder's coin flips" in told and "information" not in told.split("How the bits are used")[1][:900]
    run.record("code", tokenizer="another")
    assert "are coin flips of the encoder, so that" not in _report(run_copy).text
    config = run.config.read_text()
    assert "draws: 2" in config
    run.config.write_text(config.replace("draws: 2", "draws: 0"))
    told = _report(run_copy).text
    assert "On average a bit varies by" in told and "by the encoder's coin flips" not in told


def test_the_same_run_and_seed_give_the_same_pictures(page: Page, run_copy: Path):
    again = _report(run_copy)
    assert [p["src"] for p in again.all("img")] == [p["src"] for p in page.all("img")]


def test_without_a_prior_the_tokenizer_is_shown_alone(run_copy: Path):
    (run_copy / "model_index.json").unlink()
    shutil.rmtree(run_copy / "prior")
    page = _report(run_copy)
    assert page.sections() == ["reconstructions", "bits", "curves", "settings"]


def test_without_prior_cache_and_metrics_there_is_still_a_page(run_copy: Path):
    for name in ("model_index.json", "metrics.jsonl", "progress.json"):
        (run_copy / name).unlink()
    shutil.rmtree(run_copy / "codes")
    assert _report(run_copy).sections() == ["reconstructions", "settings"]


def test_held_out_images_that_the_given_tokenizer_was_trained_on_are_not_called_unseen(
    page: Page, trained_run: Path, run_copy: Path
):
    config, progress = run_copy / "config.yaml", run_copy / "progress.json"
    config.write_text(config.read_text().replace("\nseed: 0\n", "\nseed: 1\n"))
    noted = json.loads(progress.read_text())
    noted["tokenizer"]["given"] = str(trained_run)
    progress.write_text(json.dumps(noted))
    begun = _report(run_copy)
    assert "seen-before" in begun.ids() and f"were trained on in {trained_run}" in begun.text
    assert "never saw" in page.text and "never saw" not in begun.text and "seen-before" not in page.ids()


def test_without_the_images_the_page_says_so_and_goes_on(run_copy: Path):
    config = (run_copy / "config.yaml").read_text().replace("location: digits", "location: /gone/<b>away</b>")
    (run_copy / "config.yaml").write_text(config)
    said: list[str] = []
    page = _report(run_copy, said)
    assert page.sections() == [name for name in EVERY_SECTION if name != "neighbours"]
    assert "/gone/<b>away</b>" in page.text
    assert not page.all("b")
    assert len(said) == 1 and "/gone/<b>away</b>" in said[0]


def _train_the_tokenizer_on(run: Path) -> None:
    tokenizer = load_tokenizer(run / "tokenizer")
    with torch.no_grad():
        for weight in tokenizer.encoder.parameters():
            weight.mul_(1.01)
    save_model(run / "tokenizer", tokenizer)


def test_codes_of_another_tokenizer_are_left_out_and_the_page_says_so(run_copy: Path):
    (run_copy / "model_index.json").unlink()
    assert "stale" not in _report(run_copy).ids()
    _train_the_tokenizer_on(run_copy)
    page = _report(run_copy)
    assert page.sections() == ["reconstructions", "curves", "settings"]
    assert "stale" in page.ids() and f"bld encode --out {run_copy}" in page.text


def test_codes_of_another_tokenizer_are_not_decoded_in_place_of_images_that_are_gone(run_copy: Path):
    config = (run_copy / "config.yaml").read_text().replace("location: digits", "location: /gone")
    (run_copy / "config.yaml").write_text(config)
    _train_the_tokenizer_on(run_copy)
    page = _report(run_copy)
    assert "stale" in page.ids()
    assert not {"reconstructions", "inpainting", "bits", "neighbours"} & set(page.sections())


def test_neighbours_of_a_run_that_mirrors_are_shown_as_they_are_nearest(run_copy: Path):
    assert "mirrored" not in _report(run_copy).text
    config = (run_copy / "config.yaml").read_text()
    (run_copy / "config.yaml").write_text(config.replace("flip: false", "flip: true"))
    page = _report(run_copy)
    near = [attrs["alt"] for attrs in page.all("img") if attrs["alt"].startswith("Training image")]
    assert "mirrored" in page.text and 0 < sum(alt.endswith(", mirrored") for alt in near) < len(near)


def test_hostile_class_names_and_paths_stay_text(run_copy: Path, tmp_path: Path):
    for path in (run_copy / "model_index.json", run_copy / "codes" / "header.json"):
        fields = json.loads(path.read_text())
        fields["classes"] = [HOSTILE, '" onerror="alert(1)', *fields["classes"][2:]]
        path.write_text(json.dumps(fields))
    moved = run_copy.rename(tmp_path / "run'; <img src=x onerror=alert(1)>")
    page = _report(moved)
    assert not page.all("script") and HOSTILE in page.text
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert all(attrs["src"].startswith("data:") for attrs in page.all("img"))


def test_a_command_takes_classes_and_captions_that_begin_with_a_dash(monkeypatch):
    classes, captions = ["-1", "0", "1"], Conditions(["-dog", "cat"], torch.zeros(2, 3), True)
    pipeline = SimpleNamespace(index=SimpleNamespace(sampling=SamplingDefaults(4, 0.9, 1.0)), classes=classes)
    opened = SimpleNamespace(pipeline=pipeline, run=SimpleNamespace(path=Path("runs/x")))
    asked = [
        Generated(torch.zeros(2, 3, 8, 8), [0, 1], classes, []),
        Generated(torch.zeros(2, 3, 8, 8), [0, 1], ["-dog", "cat"], [], captions),
    ]
    seen = []
    monkeypatch.setattr(f"{COMMANDS['sample']}.run", seen.append)
    for generated in asked:
        assert main(shlex.split(_command(opened, generated, 4, 0))[1:]) == 0
    assert seen[0].classes == "-1,0" and seen[1].prompt == ["-dog", "cat"]


def test_unlabelled_images_of_a_folder(image_folder, tiny_overrides: list[str], tmp_path: Path, capsys):
    run = RunFolder(tmp_path / "run")
    folder = image_folder(40, size=32)
    overrides = [*tiny_overrides, "tokenizer.image_size=32", "sampling.steps=4", "prior_training.steps=1"]
    overrides += ["tokenizer_training.steps=1"]
    Recipe(run.adopt("digits", overrides, str(folder)), run, lambda _: None).train()
    page = _report(run.path)
    assert page.sections() == EVERY_SECTION
    assert "64 images that never existed" in page.text and "--classes" not in page.text
    commands = (
        ["neighbours", str(run.path), "--num", "1", "--k", "2"],
        ["evaluate", str(run.path), "--metrics", "psnr"],
    )
    assert "have changed since" not in page.text
    assert all(main(words) == 0 for words in commands) and "have changed since" not in capsys.readouterr().out
    (folder / "000.png").unlink()
    assert "have changed since" in _report(run.path).text
    for words in commands:
        assert main(words) == 0 and f"{folder} have changed since" in capsys.readouterr().out


def test_an_empty_run_is_refused_in_a_sentence(run_copy: Path):
    shutil.rmtree(run_copy / "tokenizer")
    (run_copy / "model_index.json").unlink()
    with pytest.raises(CheckpointError, match=rf"{run_copy} .*tokenizer"):
        write_report(RunFolder(run_copy), device="cpu")


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_noise_of_a_gaussian_step_is_the_share_that_its_schedule_says(schedule: str):
    pytest.importorskip("diffusers")
    process = GaussianDiffusion(10, schedule)
    x0, noise = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    for step in (0, 5, 10):
        assert _noise(process, step) == pytest.approx(process.noised(x0, noise, step).item() ** 2)
    assert 0.87 < _noise(GaussianDiffusion(1000), 500) < 0.89


def test_what_is_made_position_by_position_counts_those_still_to_be_made():
    assert _noise(AbsorbingDiffusion(16), 4) == 0.25

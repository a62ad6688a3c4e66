"""The site is built with every broken link an error, shows what the code says, and needs no network."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import bld
from bld.cli import COMMANDS
from bld.training.config import known_keys, load_settings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert built.returncode == 0, built.stderr
    return folder


def page(site, name):
    return (site / f"{name}.html").read_text(encoding="utf-8")


def test_every_page_is_there_and_loads_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for path in [*pages, *site.rglob("*.css")]:
        text = path.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)="((?:https?:)?//[^"]+)"', text)
        loaded += re.findall(r'(?:@import|url\()\s*["\']?((?:https?:)?//[^"\')]+)', text)
        assert not loaded, (path, loaded)


def test_formulas_are_mathml_with_their_numbers_and_none_is_left_as_text(site):
    how = page(site, "how-it-works")
    assert how.count("<math") > 40
    for number in ("1", "4", "5", "8", "9", "12", "13"):
        assert f'<span class="number">({number})</span>' in how, number
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert "arithmatex" not in text and "\\tag" not in text and "<merror" not in text, path


def test_every_public_name_setting_and_command_has_its_entry(site):
    python, settings, commands = (page(site, f"reference/{name}") for name in ("python", "settings", "command-line"))
    for name in set(bld.__all__) - {"__version__"}:
        assert f'id="bld.{name}"' in python, name
    for key in known_keys():
        assert f"<code>{key}</code>" in settings, key
    for command in COMMANDS:
        assert f"usage: bld {command}" in commands, command


def test_every_method_of_a_public_class_has_its_entry(site):
    """Wherever it is defined: of ours, not of torch."""
    python = page(site, "reference/python")
    for name in ("BinaryLatentDiffusionPipeline", "BernoulliDiffusion", "NoiseSchedule", "BinaryAutoencoder"):
        owners = [owner for owner in getattr(bld, name).__mro__ if owner.__module__.startswith("bld.")]
        methods = {method for owner in owners for method in vars(owner) if not method.startswith("_")}
        methods = {method for method in methods if callable(getattr(getattr(bld, name), method))}
        assert methods
        missing = {method for method in methods if f'id="bld.{name}.{method}"' not in python}
        assert not missing, (name, missing)


def test_formulas_stand_beside_the_functions_that_compute_them(site):
    how = page(site, "how-it-works")
    for name in ("diffuse", "reverse_probs", "flip_coefficients", "diffusion_loss", "likelihood_bits", "sample_codes"):
        assert re.search(rf'id="bld\.diffusion\.[\w.]*{name}"', how), name


def test_the_settings_that_the_pages_name_exist():
    """Keys in tables and commands of the pages, such as `prior.dim=256`, are settings of this version."""
    groups = "data|tokenizer|objective|tokenizer_training|codes|prior|diffusion|prior_training|sampling"
    for path in (ROOT / "docs").rglob("*.md"):
        for key in re.findall(rf"`(?:bld[^`]* )?((?:{groups})\.[a-z_0-9]+)\b", path.read_text(encoding="utf-8")):
            assert key in known_keys(), (path.name, key)


def commands():
    """(page, words) of every command of the pages that trains."""
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"^(?:    )?bld ((?:train|train-tokenizer|train-prior|info) .*)$", text, re.MULTILINE):
            yield pytest.param(shlex.split(line, comments=True), id=f"{path.stem}-{len(line)}")


@pytest.mark.parametrize("words", list(commands()))
def test_a_command_of_the_pages_is_one_that_the_presets_take(words):
    """Over the preset that it names, or each that could be chosen for it."""
    presets = [words[words.index("--preset") + 1]] if "--preset" in words else ["digits", "cifar10", "emoji64"]
    settings = [word for word in words if re.fullmatch(r"[a-z_0-9.]+=.*", word)]
    for preset in presets:
        load_settings(preset, overrides=settings)


def test_a_link_that_leads_nowhere_is_refused(tmp_path):
    """The check can fail: the same build with one bad link."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# A page\n\n[nowhere](index.md#no-such-heading)\n", encoding="utf-8")
    rules = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nvalidation:", 1)[1]
    (tmp_path / "mkdocs.yml").write_text(f"site_name: x\nstrict: true\nvalidation:{rules}", encoding="utf-8")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert built.returncode != 0 and "no-such-heading" in built.stderr


def test_the_figures_can_be_drawn_again(tmp_path, trained_run, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["figures.py", "--run", str(trained_run), "--out", str(tmp_path)])
    runpy.run_path(str(ROOT / "docs" / "figures.py"), run_name="__main__")
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in (ROOT / "docs" / "images" / "how").iterdir()}
    used = set(re.findall(r"images/how/([\w.-]+)", (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")))
    assert drawn == used

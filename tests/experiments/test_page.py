"""What a page says of its gate, its seeds and its networks is so."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from bld.experiments import formats, given_images, scales
from bld.experiments.comparison import Comparison
from bld.experiments.figures import table4
from bld.experiments.page import RULES, Findings, rules_of, write_index, write_page
from bld.experiments.reproduce import _setting
from bld.experiments.runner import Runner
from bld.experiments.verdict import Gate, judge

from .tiny import TINY

HOLDS = Comparison("a below b", [1.0, 1.1], [2.0, 2.1])


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.mark.parametrize("gate", [None, Gate({"a": [1.0, 1.1]}, [9.0, 9.1], {"fd": [[1.0, 1.1], [9.0, 9.1]]})])
def test_a_page_tells_of_a_gate_where_there_is_one(gate, tmp_path):
    page = write_page(tmp_path, "x", Findings("X", "a below b", comparisons=[HOLDS], gate=gate), "bld", [])
    for text in (page.read_text(encoding="utf-8"), page.with_suffix(".json").read_text(encoding="utf-8")):
        assert ("two thirds of the way" in text) == (gate is not None)


def test_pages_and_their_index_say_by_which_edition_of_the_rules_they_were_judged(tmp_path):
    claim = Findings("X", "a below b", comparisons=[HOLDS])
    today = write_page(tmp_path, "today-x", claim, "bld", [])
    write_page(tmp_path, "picture-x", Findings("Y", "a drawing"), "bld", [])
    second = write_page(tmp_path, "second-x", claim, "bld", []).with_suffix(".json")
    raw = json.loads(second.read_text())
    assert raw.pop("rules") == RULES and f" by rules {RULES}." in today.read_text()
    second.write_text(json.dumps(raw))  # as pages were before editions were counted
    write_page(tmp_path, "first-x", claim, "bld", []).with_suffix(
        ".json"
    ).unlink()  # and before numbers lay beside them
    names = ("first", "second", "today", "picture")
    assert [rules_of(tmp_path / f"{name}-x.md") for name in names] == [1, 2, RULES, None]
    write_index(tmp_path)
    rows = dict(re.findall(r"^\| \[(\w+)-x\].* \| (\S+) \|$", (tmp_path / "README.md").read_text(), re.MULTILINE))
    assert rows == {"first": "1", "second": "2", "today": str(RULES), "picture": "–"}


def test_nothing_is_said_of_the_nearest_images_of_noise(root):
    """Samples of four steps lie far from all images: new, and worth nothing."""
    findings = given_images.figure_o(Runner(TINY, root, lambda _: None), 1)
    assert findings.gate is not None and findings.gate.far_off == ["bernoulli"]
    assert judge(findings.comparisons, findings.gate) == "too little training to say"


def test_formats_that_are_not_the_papers_are_no_part_of_its_gate(monkeypatch):
    errors = dict(zip(formats.PAPER_TABLE_4, (0.1, 0.2, 0.15, 0.12, 0.22, 0.17), strict=True)) | {"binary-8": 99.0}

    def measured(runner, name: str, seed: int) -> dict[str, float]:
        error = errors[name] + 0.001 * seed * len(name)
        return {"squared_error": error, **dict.fromkeys(formats.METRICS[:3], 9 - error)}

    monkeypatch.setattr(formats, "_reconstruction", measured)
    monkeypatch.setattr(formats, "_untrained", lambda runner, seed: 1.0 + 0.001 * seed)
    for name in ("_table", "_curves", "_reconstruction_picture", "_steps"):
        monkeypatch.setattr(formats, name, lambda *_: None)
    runner = SimpleNamespace(scale=SimpleNamespace(formats=(*errors,)), unseen=lambda seed: [0])
    gate = table4(runner, 3).gate
    assert gate is not None and set(gate.distances) == set(formats.PAPER_TABLE_4) and gate.passed
    assert all(len(groups) == 6 and max(map(max, groups)) < 10 for groups in gate.moved.values())


class Described:
    """A runner of networks that are not there, with what settings say of them."""

    def __init__(self, scale: scales.Scale) -> None:
        self.scale, self.data = scale, "images.zip"
        self.settings = Runner(scale, Path("nowhere"), lambda _: None, "images.zip").settings
        self.tokenizer_of = Runner.tokenizer_of.__get__(self)

    def tokenizer(self, name: str, seed: int) -> SimpleNamespace:
        return SimpleNamespace(settings=lambda: self.settings(name, "bernoulli", seed))

    def prior(self, name: str, seed: int) -> SimpleNamespace:
        return SimpleNamespace(settings=lambda: self.settings(self.tokenizer_of(name), name, seed))

    def pipeline(self, name: str, seed: int) -> SimpleNamespace:
        shape = self.settings(self.tokenizer_of(name), name, seed).tokenizer.code_shape
        return SimpleNamespace(prior=SimpleNamespace(code_shape=shape))

    def parameters(self, name: str) -> int:
        return 12_345


def told(name: str, scale: scales.Scale = scales.CIFAR10, seeds: int = 3) -> str:
    return "\n".join(_setting(Described(scale), name, seeds))


def test_a_page_names_the_parameters_of_every_network_that_it_shows():
    assert "absorbing 12,345" in told("figure7") and "autoregressive 12,345" in told("figure7")


@pytest.mark.parametrize("name", ["figureO", "figure5", "table6"])
def test_a_page_of_one_training_names_that_alone(name):
    assert "training seed: 0." in told(name)
    assert "training seeds: 0, 1, 2." in told("figureN") and "training seeds: 0, 1, 2." in told("table5")


def test_a_page_says_which_row_has_another_length_of_training():
    assert "the same for every row but bernoulli-quarter, trained for 325 steps." in told("table3")
    assert "the same for every row." in told("table5")

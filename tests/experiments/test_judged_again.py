"""A page that is there, judged by today's rules: the numbers stay, the verdict is theirs, nothing else changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from bld.cli import main
from bld.experiments.page import RULES, rules_of
from bld.experiments.runner import Runner

JUDGE = "37c6d04fa90e773c"  # of the pages at the scale digits
RESULTS = Path(__file__).parents[2] / "docs" / "results"


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    for name in ("table5-digits", "figureN-digits", "figureM-digits", "rates-digits", "figureO-digits"):
        for end in ("md", "json"):
            shutil.copy(RESULTS / f"{name}.{end}", tmp_path)
    return tmp_path


def again(pages: Path, name: str, *words: str) -> int:
    return main(["reproduce", name, "--judge-again", "--pages", str(pages), *words])


def read(pages: Path, name: str) -> dict:
    return json.loads((pages / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "rules"), [("table5", 4), ("figureN", 5), ("figureO", 5)])
def test_judging_again_changes_nothing_but_the_judgement(name: str, rules: int, pages: Path, monkeypatch):
    page = f"{name}-digits"
    before, text = read(pages, page), (pages / f"{page}.md").read_text(encoding="utf-8").split("\n")
    monkeypatch.setattr(Runner, "extractor", SimpleNamespace(sha256=JUDGE))
    monkeypatch.setattr(Runner, "best", lambda _: before["gate"]["best"])
    older = before | {"rules": rules, "verdict": "undecided at this scale", "judged": "2026-11-30"}
    older["gate"] = before["gate"] | {"best": before["gate"]["best"] / 2 if rules < 5 else before["gate"]["best"]}
    for entry in ("measured", "measured_under"):
        older.pop(entry, None)
    (pages / f"{page}.json").write_text(json.dumps(older), encoding="utf-8")
    text[4] = "**Undecided at this scale**, over 3 training seeds."
    (pages / f"{page}.md").write_text("\n".join(text), encoding="utf-8")
    assert again(pages, name) == 0
    now, told = read(pages, page), (pages / f"{page}.md").read_text(encoding="utf-8").split("\n")
    assert now["values"] == before["values"] and now["verdict"] == before["verdict"]
    assert now["gate"] == before["gate"] and rules_of(pages / f"{page}.md") == RULES
    words = f"by rules {RULES}, of what was measured by 2026-11-30 under rules {rules}."
    assert now["measured"] == "2026-11-30" and words in "\n".join(told)
    assert told[4].startswith(f"**{now['verdict'].capitalize()}**")
    same = [(a, b) for a, b in zip(text, told, strict=True) if a != b]
    assert len(same) <= 2  # the verdict, the date
    assert f"{page}.md" in (pages / "README.md").read_text(encoding="utf-8")


def test_networks_that_a_caption_calls_too_little_trained_are_todays(pages: Path):
    raw, page = read(pages, "table5-digits"), pages / "table5-digits.md"
    plain = page.read_text(encoding="utf-8")
    assert "too little trained" not in plain
    for distance, told in ((99.0, 2), (1.0, 0)):
        raw["gate"]["distances"]["absorbing"] = [distance] * 3
        (pages / "table5-digits.json").write_text(json.dumps(raw), encoding="utf-8")
        assert again(pages, "table5") == 0
        text = page.read_text(encoding="utf-8")
        assert text.count("samples of a seed; too little trained to be judged: absorbing") == told
    assert [line for line in plain.split("\n") if "samples of a seed" in line] == [
        line for line in text.split("\n") if "samples of a seed" in line
    ]


def test_a_network_that_is_too_far_off_is_left_out_of_the_judgement(pages: Path):
    raw = read(pages, "table5-digits")
    raw["gate"]["distances"]["absorbing"] = [99.0, 98.0, 97.0]
    (pages / "table5-digits.json").write_text(json.dumps(raw), encoding="utf-8")
    assert again(pages, "table5") == 0
    text = (pages / "table5-digits.md").read_text(encoding="utf-8")
    assert "- Not judged: binary diffusion's distance below that of absorbing" in text
    assert "- binary diffusion's distance below that of autoregressive" in text
    assert read(pages, "table5-digits")["verdict"] == "not reproduced"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["table4"], "There is no page"),
        (["rates"], "compares nothing"),
        (["figureM"], "measured under rules 2, otherwise than today"),
        (["figureN"], "measured under rules 4, otherwise than today"),
        (["table5"], "is of another judge than"),
    ],
)
def test_what_cannot_be_judged_again_is_refused(words: list[str], told: str, pages: Path, capsys, monkeypatch):
    monkeypatch.setattr(Runner, "extractor", SimpleNamespace(sha256="another"))
    for name, rules in (("figureM", 2), ("figureN", 4), ("table5", 4)):
        older = read(pages, f"{name}-digits") | {"rules": rules}
        (pages / f"{name}-digits.json").write_text(json.dumps(older), encoding="utf-8")
    before = {path: path.read_bytes() for path in pages.iterdir()}
    assert again(pages, *words) == 2
    assert told in capsys.readouterr().err
    assert {path: path.read_bytes() for path in pages.iterdir()} == before

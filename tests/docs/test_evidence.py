"""The page for sceptics: its verdicts are those of the pages that it links to, its numbers stand on them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bld.experiments.comparison import Comparison
from bld.experiments.page import RULES, rules_of
from bld.experiments.reproduce import titles
from bld.experiments.verdict import Gate, judge, to_decide

DOCS = Path(__file__).parents[2] / "docs"
ROW = re.compile(r"^\| (.+?) \| (.+?) \| \[(.+?)\]\((results/.+?)\.md\) \|$", re.MULTILINE)
ROWS = ROW.findall((DOCS / "evidence.md").read_text(encoding="utf-8"))
ON_PERCENT = 100  # shares stand as 0.984 on a page, as 98.4% here


def test_each_table_and_figure_of_the_paper_has_its_row():
    claims = " ".join(claim for claim, *_ in ROWS)
    wanted = {name for name in titles() if re.fullmatch(r"table\d|figure[47AMNO]", name)}
    said = {f"table{n}" for n in re.findall(r"Table (\d)", claims)} | {
        f"figure{n}" for n in re.findall(r"[, ]?([47AMNO])\b", " ".join(re.findall(r"Figures? [\w, ]+", claims)))
    }
    assert said == wanted


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[3])
def test_the_verdict_is_that_of_the_page(row: tuple[str, str, str, str]):
    _, _, said, page = row
    verdict = json.loads((DOCS / f"{page}.json").read_text(encoding="utf-8"))["verdict"]
    rules = rules_of(DOCS / f"{page}.md")
    assert said == verdict.removesuffix(" at this scale") + ("" if rules == RULES else f", rules {rules}")


@pytest.mark.parametrize("page", sorted({page for *_, page in ROWS}))
def test_anyone_can_judge_again_from_the_numbers_beside_the_page(page: str):
    path = DOCS / f"{page}.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    comparisons = [Comparison.read(one) for one in raw["comparisons"]]
    gate = raw["gate"] and Gate.read(raw["gate"])
    assert judge(comparisons, gate) == raw["verdict"]
    told = to_decide(comparisons, gate)
    if "to_decide" in raw:  # pages of before do not say it
        assert raw["to_decide"] == told and told in path.with_suffix(".md").read_text(encoding="utf-8")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[3])
def test_every_number_stands_on_the_page(row: tuple[str, str, str, str]):
    _, measured, _, page = row
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    there = {float(number) for number in re.findall(r"\d+\.\d+", text)}
    for number, percent in re.findall(r"(\d+\.\d+)(%?)", measured):
        decimals = len(number.split(".")[1])
        value = float(number) / ON_PERCENT if percent else float(number)
        allowed = 0.5 * 10**-decimals / (ON_PERCENT if percent else 1) + 1e-9
        assert any(abs(value - other) <= allowed for other in there), number


SPREAD = re.compile(r"(\d+(?:\.\d+)?) ± (\d+(?:\.\d+)?)")
QUOTED = [
    (path.name, linked.group(1), mean, spread)
    for path in sorted([*DOCS.glob("*.md"), DOCS.parent / "README.md"])
    for paragraph in path.read_text(encoding="utf-8").split("\n\n")
    if (linked := re.search(r"\((?:docs/)?results/([\w-]+)\.md\)", paragraph)) and not paragraph.startswith("|")
    for mean, spread in SPREAD.findall(paragraph)
]


@pytest.mark.parametrize(("page", "linked", "mean", "spread"), QUOTED)
def test_a_mean_that_is_quoted_beside_a_page_stands_on_it(page: str, linked: str, mean: str, spread: str):
    text = (DOCS / "results" / f"{linked}.md").read_text(encoding="utf-8")

    def rounds(number: str, quoted: str) -> bool:
        return abs(float(number) - float(quoted)) <= 0.5 * 10 ** -len(quoted.partition(".")[2]) + 1e-9

    assert any(rounds(m, mean) and rounds(s, spread) for m, s in SPREAD.findall(text)), f"{mean} ± {spread} of {linked}"


def test_there_are_quotations_to_hold():
    assert {("results.md", "table7-digits", "137", "1"), ("results.md", "table7-digits", "148", "2")} <= set(QUOTED)

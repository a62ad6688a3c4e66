"""The plan of docs/scaling.md is what `bld info` says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from bld.cli import main

ROOT = Path(__file__).parents[2]
PLAN = (ROOT / "docs/scaling.md").read_text(encoding="utf-8").split("## The plan")[1].split("\n\n")[1].splitlines()
ROWS = {row.split("|")[1].strip(): [cell.strip() for cell in row.split("|")[2:-1]] for row in PLAN if row[0] == "|"}
UNITS = {"M": 1e6, "MiB": 1.0, "GiB": 1024.0, "TiB": 1024.0**2}


def numbers(text: str) -> list[float]:
    """The numbers of a text, in millions or MiB where they have such a unit."""
    found = re.findall(r"([\d,]+(?:\.\d+)?)\s*(MiB|GiB|TiB|M\b)?", text)
    return [float(number.replace(",", "")) * UNITS.get(unit, 1.0) for number, unit in found]


@pytest.mark.parametrize("column", range(3))
def test_the_plan_is_what_info_says(column: int, capsys):
    assert main(shlex.split(ROWS["command"][column].strip("`"))[1:]) == 0
    said = capsys.readouterr().out
    tokenizer, prior = said.split("-- prior --")

    def of(part: str, name: str, count: int = 1) -> list[float]:
        line = next(line for line in part.splitlines() if line.startswith(name))
        return numbers(line.removeprefix(name))[:count]

    together = "memory: together"
    for row, expected in {
        "prior": of(tokenizer, "prior parameters"),
        "training step, per image": of(prior, "training step, per image"),
        "memory, tokenizer / prior": [*of(tokenizer, together), *of(prior, together)],
        "encoding": of(prior, re.search(r"encoding [\d,]+ images", prior)[0]),
        "tokenizer training": of(tokenizer.split("-- tokenizer --")[1], "tokenizer training", 2),
        "prior training": of(prior, "prior training", 2),
    }.items():
        text = ROWS[row][column]
        assert numbers(text)[: len(expected)] == pytest.approx(expected, rel=0.05, abs=0.005), row
    cache = of(tokenizer, re.search(r"code cache of [\d,]+ images", said)[0])
    assert numbers(ROWS["code cache"][column])[:1] == pytest.approx(cache, rel=0.05)

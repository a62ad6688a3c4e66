"""Every measured figure of the README and of the pages of results says which command made it, at which commit.

docs/provenance.json lists them: page, what it shows, command, commit, machine, seeds and spread.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from bld.cli import build_parser

ROOT = Path(__file__).parents[2]
ENTRIES = json.loads((ROOT / "docs" / "provenance.json").read_text(encoding="utf-8"))
PAGES = ("README.md", "docs/results.md", "docs/what-works.md")
CODE = re.compile(r"^    [^\n]*$|```.*?```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
FIGURE = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?: ?(?:dB|%|s|ms|min|images/s|codes/s)(?!\w)| minutes)")
IN_A_TABLE = re.compile(r"(?<![\w.])\d[\d,]*\.\d+")


def figures_in(text: str) -> set[str]:
    """The figures with a unit, and those with a decimal point in tables; commands left out."""
    text = CODE.sub("", text)
    rows = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    return {" ".join(found.split()) for found in [*FIGURE.findall(text), *IN_A_TABLE.findall(rows)]}


def measured(page: str) -> set[str]:
    return figures_in((ROOT / page).read_text(encoding="utf-8"))


def shown(page: str) -> list[str]:
    return [figure for entry in ENTRIES if entry["page"] == page for figure in entry["shows"]]


@pytest.mark.parametrize("page", PAGES)
def test_every_figure_of_a_page_is_listed_and_every_listed_one_is_there(page: str):
    assert measured(page) == set(shown(page))


def test_the_search_finds_figures_and_leaves_commands_alone():
    text = (
        "28.3 dB, 96.4% of 1,500 in 5 minutes; 4×4×32 bits\n    bld train --budget 30 minutes\n and `5%`, 12 ms; 0.5."
    )
    assert figures_in(text) == {"28.3 dB", "96.4%", "5 minutes", "12 ms"}
    assert figures_in("| rFD | 4.97 / 5.01 | 587 |") == {"4.97", "5.01"}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry['page']}, {entry['section']}")
def test_what_made_a_figure_can_be_run_again(entry: dict):
    assert set(entry) == {"page", "section", "shows", "command", "commit", "machine", "seeds", "spread"}
    assert all(entry.values()) and len(entry["shows"]) == len(set(entry["shows"]))
    page = (ROOT / entry["page"]).read_text(encoding="utf-8")
    assert re.search(rf"^#+ {re.escape(entry['section'])}$", page, re.MULTILINE)
    for command in entry["command"]:
        program, *words = command.split()
        if program == "bld":
            build_parser().parse_args([word for word in words if "=" not in word or word.startswith("-")])
        elif program == "python":
            assert (ROOT / words[0]).is_file(), command
        else:
            assert program == "make", command
    git = ["git", "-C", str(ROOT)]
    asked = subprocess.run([*git, "rev-parse", "--is-shallow-repository"], capture_output=True, text=True)
    if not (ROOT / ".git").exists() or asked.stdout.strip() != "false":
        pytest.skip("the history is not here")
    for commit in entry["commit"].split():
        assert subprocess.run([*git, "cat-file", "-e", f"{commit}^{{commit}}"], capture_output=True).returncode == 0

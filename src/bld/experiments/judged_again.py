"""A page's numbers judged by today's rules: what was measured under rules that judge it otherwise is not lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bld.errors import SettingError
from bld.experiments.comparison import Comparison
from bld.experiments.formats import GATE_RULE
from bld.experiments.given_images import FIGURE_O_GATE
from bld.experiments.page import GATED, Findings, rules_of, write_again
from bld.experiments.prior_rows import UNTRAINED, Asked, Item, about, rows_of
from bld.experiments.runner import Runner
from bld.experiments.scales import Scale
from bld.experiments.verdict import Gate
from bld.io.files import read_json

MEASURED_ALIKE = {"figureN": 5, "figureO": 5}  # since these rules a page is measured as today's; the others:
SINCE = 3
BEST_ALIKE = 5  # since these rules the best that the codes allow is measured as today
GATE_RULES = {"table4": GATE_RULE, "figureO": FIGURE_O_GATE}


def judge_again(pages: Path, item: Item | None, name: str, scale: Scale, runner: Callable[[], Runner]) -> Path:
    """Judge the numbers beside a page anew and write its verdict; what it shows is not measured again.

    Args:
        pages: the folder of the page.
        item: the experiment, where its claim is made from values of rows; None for another, whose comparisons are
            judged as they stand.
        name: of the experiment.
        scale: of the page.
        runner: what measures, of a page of rules before 5, the best that the codes allow.

    Returns:
        The page's path.

    Raises:
        SettingError: if there is no such page, if it compares nothing, if it was measured otherwise than today's, or
            if its gate needs another judge than the runner's.
    """
    file = f"{name}-{scale.label}"
    page = pages / f"{file}.md"
    if not page.is_file():
        raise SettingError(f"There is no page {page}: make it without --judge-again, or say where it is with --pages.")
    rules = rules_of(page)
    if rules is None:
        raise SettingError(f"{page} compares nothing, so that there is nothing to judge.")
    if rules < MEASURED_ALIKE.get(name, SINCE):
        raise SettingError(
            f"{page} was measured under rules {rules}, otherwise than today: make it anew, without --judge-again."
        )
    raw = read_json(page.with_suffix(".json"))
    comparisons = [Comparison.read(one) for one in raw["comparisons"]]
    gate = None if raw["gate"] is None else Gate.read(raw["gate"])
    if item is not None:
        asked = Asked({label: values for label, values in raw["values"].items() if label != UNTRAINED})
        comparisons = item.claims(asked)
        rows = about(rows_of(item, scale), asked)
        gate = Gate.read(raw["gate"] | {"networks": {row.label: row.prior for row in rows}})
    if gate is not None and gate.best and rules < BEST_ALIKE:
        gate = replace(gate, best=_best(page, runner()))
    return write_again(pages, file, Findings("", "", comparisons=comparisons, basis=raw["basis"], gate=gate,
                                             gate_rule=GATE_RULES.get(name, GATED)))  # fmt: skip


def _best(page: Path, runner: Runner) -> float:
    """The best that the codes allow, measured by the judge that measured the page."""
    if f"({runner.extractor.sha256})" not in page.read_text(encoding="utf-8"):
        raise SettingError(
            f"{page} is of another judge than {runner.root / 'classifier'} ({runner.extractor.sha256}): name its "
            "folder with --out, or make the page anew, without --judge-again."
        )
    return runner.best()

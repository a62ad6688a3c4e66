"""A page's numbers judged by today's rules: what was measured under rules that judge it otherwise is not lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bld.errors import SettingError
from bld.experiments.given_images import moved_by_looking
from bld.experiments.page import GATED, RULE, Findings, rules_of, write_again
from bld.experiments.prior_rows import UNTRAINED, Asked, Item, about, rows_of
from bld.experiments.scales import Scale
from bld.experiments.verdict import Comparison, Gate
from bld.io.files import read_json

MEASURED_ALIKE = 3  # since these rules pages are measured as today's


def judge_again(pages: Path, item: Item | None, name: str, scale: Scale) -> Path:
    """Judge the numbers beside a page anew and write its verdict; nothing is trained, sampled or measured.

    Args:
        pages: the folder of the page.
        item: the experiment, where its claim is made from values of rows; None for another, whose comparisons are
            judged as they stand.
        name: of the experiment.
        scale: of the page.

    Returns:
        The page's path.

    Raises:
        SettingError: if there is no such page, if it compares nothing, or if it was measured otherwise than today's.
    """
    file = f"{name}-{scale.label}"
    page = pages / f"{file}.md"
    if not page.is_file():
        raise SettingError(f"There is no page {page}: make it without --judge-again, or say where it is with --pages.")
    rules = rules_of(page)
    if rules is None:
        raise SettingError(f"{page} compares nothing, so that there is nothing to judge.")
    if rules < MEASURED_ALIKE:
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
    if name == "figureN" and gate is not None:
        gate = replace(gate, moved=moved_by_looking(raw["values"]))
    own = raw["rule"].removeprefix(RULE).strip()
    gate_rule = GATED if "every network that the claim is about" in own else own  # as rules 3 said what GATED says now
    return write_again(pages, file, Findings("", "", comparisons=comparisons, basis=raw["basis"], gate=gate,
                                             gate_rule=gate_rule))  # fmt: skip

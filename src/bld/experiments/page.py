"""The Markdown page of an experiment: claim, command, machine, budget, metrics beside the paper's, rule and verdict."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from bld._version import __version__
from bld.experiments.comparison import Comparison
from bld.experiments.verdict import Gate, judge, to_decide
from bld.io.files import as_utf8, read_json, write_whole, written_aside
from bld.runtime.processor import device_name


@dataclass(frozen=True)
class Table:
    """Column headings, and rows of as many cells."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        lines = [self.headings, ["---"] * len(self.headings), *self.rows]
        return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


@dataclass
class Findings:
    """What an experiment hands to the page.

    Attributes:
        title: heading of the page.
        claim: the paper's, in a sentence.
        tables: (caption, table).
        pictures: (file name, caption, image).
        comparisons: what the verdict rests on.
        notes: what differs from the paper, what to think of it.
        basis: what the spread is over, said beside the verdict, which may not claim more.
        gate: what must be so before the claim is judged.
        gate_rule: the same in words, which only a page with a gate prints.
        values: row → metric → its values over seeds: all that the page rests on.
        looked_at: for an experiment that only shows: what the picture shows, in place of a verdict.
    """

    title: str
    claim: str
    tables: list[tuple[str, Table]] = field(default_factory=list)
    pictures: list[tuple[str, str, Image.Image]] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    basis: str = ""
    gate: Gate | None = None
    gate_rule: str = ""
    values: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    looked_at: str = ""


RULES = 5
"""The edition of all rules by which verdicts are reached (docs/reproduce.md lists them): one more where any changes."""

RULE = (
    "By the rules of the edition named above ([which stood before the run](../reproduce.md#how-a-verdict-is-reached)): "
    "each comparison is a two-sided t-test of the difference of the means, paired by seed where both sides share a "
    "tokenizer, data or a network, else Welch's. It holds, or fails, where p < 0.05, and is undecided otherwise. The "
    "claim is *reproduced* if all hold, *not reproduced* if any fails, else *undecided at this scale*."
)
GATED = (
    "A comparison is judged only of networks that, each at its best sampling, have come two thirds of the way from an "
    "untrained one's distance to that of as many real images rebuilt from their codes, and of none where those lie at "
    "more than half the untrained one's: where others remain, a claim may still fail, and there is else *too little "
    "training to say*. And what is varied must change a metric (analysis of variance in blocks of a seed, p < 0.05 "
    "shared by the metrics), or there is nothing to decide."
)


def verdict(findings: Findings) -> str:
    """The verdict of the page, in one sentence, and where there is none, what it would take, in another."""
    if not findings.comparisons:
        return findings.looked_at or "Nothing was compared."
    outcome = f"**{judge(findings.comparisons, findings.gate).capitalize()}**, {findings.basis}."
    return f"{outcome} {to_decide(findings.comparisons, findings.gate)}".rstrip()


def rule(findings: Findings) -> str:
    """How the page is judged, in words; of a gate only where there is one."""
    return RULE if findings.gate is None else f"{RULE} {findings.gate_rule or GATED}"


def machine() -> str:
    """Processor, what it multiplies matrices with, which its name need not tell, threads in use, versions."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return f"{device_name(device)}; torch {torch.__version__.split('+')[0]}, Python {platform.python_version()}"


def write_page(
    folder: Path, name: str, findings: Findings, command: str, setting: Sequence[str], machines: Collection[str] = ()
) -> Path:
    """Write NAME.md, its pictures and NAME.json, with all values, into the folder; returns the page's path.

    Args:
        folder: where to.
        name: of the files.
        findings: what was found.
        command: that makes the page.
        setting: lines on data, seeds and budget.
        machines: that measured; none is this one.
    """
    measured_on = " and ".join(sorted(machines or {machine()}))
    lines = [
        f"# {findings.title}",
        "",
        f"*The paper:* {findings.claim}",
        "",
        verdict(findings),
        "",
        f"    {command}",
        "",
    ]
    lines += [
        f"- {line}" for line in [_judged(findings), f"Machine{'s' * (len(machines) > 1)}: {measured_on}.", *setting]
    ] + [""]
    for caption, table in findings.tables:
        lines += [caption, "", str(table), ""]
    for file, caption, image in findings.pictures:
        save_small(image, folder / file)
        said = caption + _far_off(findings)
        lines += [f"![{said}]({file})", "", f"*{said}*", ""]
    lines += _how_judged(findings, name)
    if findings.notes:
        lines += ["## What differs, and what to think of it", ""] + [f"- {note}" for note in findings.notes] + [""]
    write_whole(
        folder / f"{name}.json", as_utf8(json.dumps(_raw(findings, command, measured_on), indent=1, ensure_ascii=False))
    )
    path = folder / f"{name}.md"
    with written_aside(path) as aside:
        aside.write_bytes(as_utf8("\n".join(lines).rstrip() + "\n"))
    return path


TOO_LITTLE = "; too little trained to be judged: "


def _far_off(findings: Findings) -> str:
    """What a caption says of networks that are too far off to be judged, if there are any."""
    far_off = [] if findings.gate is None else findings.gate.far_off
    return f"{TOO_LITTLE}{', '.join(far_off)}" if far_off else ""


def _how_judged(findings: Findings, name: str) -> list[str]:
    """The section that says so; nothing where nothing was compared."""
    if not findings.comparisons:
        return []
    lines = ["## How it was judged", "", rule(findings), ""]
    lines += [f"- {findings.gate}"] if findings.gate is not None else []
    for comparison in findings.comparisons:
        judged = findings.gate is None or findings.gate.judges(comparison)
        lines.append(f"- {comparison}" if judged else f"- Not judged: {comparison}")
    return [*lines, "", f"Every number of every seed: [{name}.json]({name}.json).", ""]


def write_again(folder: Path, name: str, findings: Findings) -> Path:
    """Write the verdict of a page that is there, and of NAME.json, anew; all that was measured stays.

    Args:
        folder: where the page is.
        name: of its files.
        findings: with comparisons, gate and basis; what else the page shows is not looked at.
    """
    page, numbers = folder / f"{name}.md", folder / f"{name}.json"
    lines, raw = page.read_text(encoding="utf-8").split("\n"), read_json(numbers)
    measured, older = raw.get("measured", raw["judged"]), raw.get("measured_under", raw["rules"])
    lines[4] = verdict(findings)
    judged = next(number for number, line in enumerate(lines) if line.startswith("- Judged "))
    lines[judged] = (
        f"- Judged again on {_today()} by rules {RULES}, of what was measured by {measured} under rules {older}."
    )
    for number, line in enumerate(lines):
        if line.startswith("!["):
            said, file = line.removeprefix("![").rsplit("](", 1)
            said = said.split(TOO_LITTLE)[0] + _far_off(findings)
            lines[number], lines[number + 2] = f"![{said}]({file}", f"*{said}*"
    first = lines.index("## How it was judged")
    last = next(number for number, line in enumerate(lines) if line.startswith("Every number of every seed"))
    lines[first : last + 2] = _how_judged(findings, name)
    raw |= {"judged": _today(), "measured": measured, "measured_under": older, "rules": RULES, **_judgement(findings)}
    write_whole(numbers, as_utf8(json.dumps(raw, indent=1, ensure_ascii=False)))
    with written_aside(page) as aside:
        aside.write_bytes(as_utf8("\n".join(lines).rstrip() + "\n"))
    return page


def _today() -> str:
    return time.strftime("%Y-%m-%d")


def _judged(findings: Findings) -> str:
    return f"Judged on {_today()} by rules {RULES}." if findings.comparisons else f"Made on {_today()}."


def _raw(findings: Findings, command: str, measured_on: str) -> dict[str, Any]:
    """All that a reader needs to judge again."""
    return {
        "title": findings.title,
        "command": command,
        "bld": __version__,
        "judged": _today(),
        "rules": RULES if findings.comparisons else None,
        "machine": measured_on,
        "basis": findings.basis,
        "values": findings.values,
        **_judgement(findings),
    }


def _judgement(findings: Findings) -> dict[str, Any]:
    """By which rule what was compared, and what came of it."""
    compared = bool(findings.comparisons)
    return {
        "rule": rule(findings),
        "verdict": judge(findings.comparisons, findings.gate) if compared else None,
        "to_decide": to_decide(findings.comparisons, findings.gate) if compared else None,
        "gate": None if findings.gate is None else findings.gate.raw(),
        "comparisons": [comparison.raw() for comparison in findings.comparisons],
    }


def save_small(image: Image.Image, path: Path) -> None:
    """A PNG of few colours where that is smaller: pages are committed."""
    import io

    best = b""
    for candidate in (image, image.convert("RGB").quantize(128)):
        buffer = io.BytesIO()
        candidate.save(buffer, format="PNG", optimize=True)
        best = buffer.getvalue() if not best or len(buffer.getvalue()) < len(best) else best
    write_whole(path, best)


def write_index(folder: Path) -> None:
    """README.md: every page of the folder with its title, its verdict, and the edition of the rules that it is of."""
    rows = []
    for path in sorted(folder.glob("*-*.md")):
        text = path.read_text(encoding="utf-8").split("\n")
        said = next((line for line in text[3:] if line and not line.startswith("*The paper")), "")
        rows.append([f"[{path.stem}]({path.name})", text[0].removeprefix("# "), said, str(rules_of(path) or "–")])
    table = Table(["page", "what", "verdict", "rules"], rows)
    head = (
        "# The paper's experiments, repeated\n\nMade by `bld reproduce NAME --scale SCALE`; how they are "
        "done and judged: "
        "[../reproduce.md](../reproduce.md).\n\n"
        f"Today's rules are {RULES} ([what changed](../reproduce.md#how-a-verdict-is-reached)): a page of older ones "
        "waits to be made again.\n\n"
    )
    with written_aside(folder / "README.md") as aside:
        aside.write_text(head + str(table) + "\n", encoding="utf-8")


def rules_of(page: Path) -> int | None:
    """The edition of the rules that a page was judged by; None where it judges nothing."""
    numbers = page.with_suffix(".json")
    if not numbers.is_file():
        return 1
    raw = json.loads(numbers.read_text(encoding="utf-8"))
    return int(raw.get("rules") or 2) if raw["comparisons"] else None

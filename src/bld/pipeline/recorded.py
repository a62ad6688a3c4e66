"""What a run's folder says of the models that are saved in it, which a training that goes on is ahead of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def held_out_figures(
    stage: str, progress: Mapping[str, Any], lines: Iterable[Mapping[str, Any]]
) -> tuple[dict[str, float], int]:
    """What a stage measured on held-out images when its model was saved.

    Args:
        stage: "tokenizer" or "prior".
        progress: what the run's progress.json holds.
        lines: of metrics.jsonl, which is asked for models of older versions alone: their progress does not hold it.

    Returns:
        The figures by name, and the step they are of; ({}, 0) where nothing is known.
    """
    done = progress.get(stage, {})
    if isinstance(done.get("held_out"), dict):
        return dict(done["held_out"]), int(done.get("steps", 0))
    saved = done.get("steps")
    found: dict[str, float] = {}
    step = 0
    for line in lines:
        measured = held_out_of(line)
        if line.get("stage") == stage and measured and (saved is None or line.get("step", 0) <= saved):
            found, step = measured, line.get("step", 0)
    return found, step


def held_out_of(line: Mapping[str, Any]) -> dict[str, float]:
    """What a line of metrics.jsonl says of held-out images."""
    return {name: value for name, value in line.items() if name.startswith("held_out_") and _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

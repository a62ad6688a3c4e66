"""How a time budget is shared between the stages of a run."""

from __future__ import annotations

from collections.abc import Sequence

TOKENIZER_SHARE = 0.4  # of a time budget
RESERVED_SHARE = 0.06  # kept for samples and report
MOST_RESERVED_SECONDS = 240.0
STAGES = ("tokenizer", "prior")


def split(budget_seconds: float, stages: Sequence[str] = STAGES) -> dict[str, float]:
    """Seconds for each of the stages.

    Args:
        budget_seconds: for all of them; of a whole run a part is kept for what comes after the stages.
        stages: those that are trained; one alone gets the whole budget.
    """
    if tuple(stages) != STAGES:
        return dict.fromkeys(stages, budget_seconds)
    tokenizer = TOKENIZER_SHARE * budget_seconds
    reserved = min(RESERVED_SHARE * budget_seconds, MOST_RESERVED_SECONDS)
    return {"tokenizer": tokenizer, "prior": budget_seconds - tokenizer - reserved}

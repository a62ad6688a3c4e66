"""How a time budget is shared between the stages of a run."""

from __future__ import annotations

from collections.abc import Sequence

RESERVED_SHARE = 0.06  # kept for samples and report
MOST_RESERVED_SECONDS = 240.0
STAGES = ("tokenizer", "prior")


def in_words(seconds: float) -> str:
    """A time in the unit that reads best: 45 seconds, 30 minutes, 2.5 hours."""
    if seconds < 90:
        return f"{seconds:.3g} seconds"
    return f"{seconds / 60:.3g} minutes" if seconds < 5400 else f"{seconds / 3600:.3g} hours"


def split(budget_seconds: float, stages: Sequence[str], tokenizer_share: float) -> dict[str, float]:
    """Seconds for each of the stages.

    Args:
        budget_seconds: for all of them; of a whole run a part is kept for what comes after the stages.
        stages: those that are trained; one alone gets the whole budget.
        tokenizer_share: part of the budget of a whole run, above 0 and below 1.
    """
    if tuple(stages) != STAGES:
        return dict.fromkeys(stages, budget_seconds)
    reserved = min(RESERVED_SHARE * budget_seconds, MOST_RESERVED_SECONDS)
    tokenizer = min(tokenizer_share * budget_seconds, budget_seconds - reserved)
    return {"tokenizer": tokenizer, "prior": budget_seconds - tokenizer - reserved}

"""Rules fixed beforehand that turn measured numbers into one sentence: reproduced, not reproduced, or undecided.

A claim is a list of comparisons, "a below b".  The difference of the means is held against twice its standard error
(Welch): beyond it the comparison holds or fails, within it it is undecided.  With one value on either side there is no
standard error, and nothing is decided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev, variance
from typing import Literal

Outcome = Literal["reproduced", "not reproduced", "undecided at this scale"]
STANDARD_ERRORS = 2.0


@dataclass(frozen=True)
class Comparison:
    """ "low is below high": values of each over seeds; what it says in words."""

    words: str
    low: Sequence[float]
    high: Sequence[float]

    @property
    def difference(self) -> float:
        """Mean of high minus mean of low: above 0 where the claim holds; not a number where a side was not measured."""
        if not (self.low and self.high):
            return math.nan
        return fmean(self.high) - fmean(self.low)

    @property
    def standard_error(self) -> float:
        """Of the difference; infinite with fewer than two values on either side."""
        if min(len(self.low), len(self.high)) < 2:
            return math.inf
        return math.sqrt(variance(self.low) / len(self.low) + variance(self.high) / len(self.high))

    @property
    def holds(self) -> bool | None:
        """True, False, or None where the difference lies within twice its standard error."""
        margin = STANDARD_ERRORS * self.standard_error
        if math.isinf(margin):
            return None
        if abs(self.difference) <= margin:
            return None
        return self.difference > 0

    def __str__(self) -> str:
        state = {True: "holds", False: "fails", None: "undecided"}[self.holds]
        error = "no spread" if math.isinf(self.standard_error) else f"2 SE {2 * self.standard_error:.3g}"
        return f"{self.words}: difference {self.difference:.3g} ({error}): {state}"


def judge(comparisons: Sequence[Comparison]) -> Outcome:
    """Reproduced if all hold, not reproduced if any fails, else undecided."""
    states = [comparison.holds for comparison in comparisons]
    if not states:
        return "undecided at this scale"
    if all(states):
        return "reproduced"
    return "not reproduced" if any(state is False for state in states) else "undecided at this scale"


def mean_and_spread(values: Sequence[float], digits: int = 3) -> str:
    """ "1.23 ± 0.04": mean and standard deviation over seeds; without the latter for one value."""
    if len(values) < 2:
        return f"{values[0]:.{digits}g}" if values else "–"
    mean, spread = fmean(values), stdev(values)
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(mean)))) if mean else digits
    return f"{mean:.{decimals}f} ± {spread:.{decimals}f}"

"""What a claim says of measured numbers, "this below that", and the tests by which it holds, fails or is undecided."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Any

from scipy.special import bdtr, bdtrc, stdtr

LEVEL = 0.05
MOST_SEEDS = 100  # that anyone would train for a difference
MOST_TIMES = 100  # as many samples as there are


@dataclass(frozen=True)
class Comparison:
    """The claim that low is below high.

    Attributes:
        words: the claim, as pages state it.
        low: values over seeds, of what is claimed to be lower.
        high: values over seeds, of the other.
        paired: whether value i of either side belongs to the same seed.
        rows: labels of the rows that are compared; none where that is not said, which may then be any.

    Raises:
        ValueError: for pairs of sides with different numbers of values.
    """

    words: str
    low: Sequence[float]
    high: Sequence[float]
    paired: bool = False
    rows: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.paired and len(self.low) != len(self.high):
            raise ValueError(f"{self.words}: {len(self.low)} and {len(self.high)} values cannot be paired")

    @classmethod
    def at_most(cls, words: str, factor: float, numerator: Sequence[float], denominator: Sequence[float]) -> Comparison:
        """The claim that numerator is below factor times denominator: on a ratio, with the errors of both (Fieller)."""
        return cls(words, list(numerator), [factor * x for x in denominator], paired=True)

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> Comparison:
        """What `raw` was made of; of pages of before, whose comparisons name no rows, too."""
        if "of" in raw:
            return Share.below(raw["words"], raw["count"], raw["of"], raw["high"][0])
        return cls(raw["words"], raw["low"], raw["high"], raw["paired"], tuple(raw.get("rows", ())))

    @property
    def measured(self) -> bool:
        """Whether there are values of both sides: not of a metric that the judge does not give."""
        return bool(self.low and self.high)

    @property
    def difference(self) -> float:
        """Mean of high minus mean of low: above 0 where the claim holds; not a number where a side was not measured."""
        if not self.measured:
            return math.nan
        return fmean(self.high) - fmean(self.low)

    @property
    def standard_error(self) -> float:
        """Of the difference; infinite with fewer than two values on either side."""
        if min(len(self.low), len(self.high)) < 2:
            return math.inf
        if self.paired:
            differences = [high - low for low, high in zip(self.low, self.high, strict=True)]
            return math.sqrt(variance(differences) / len(differences))
        return math.sqrt(sum(self._errors))

    @property
    def freedom(self) -> float:
        """Degrees of freedom: pairs less one, or Welch and Satterthwaite's."""
        if self.paired:
            return len(self.low) - 1.0
        low, high = self._errors
        if low + high == 0:
            return len(self.low) + len(self.high) - 2.0
        return (low + high) ** 2 / (low**2 / (len(self.low) - 1) + high**2 / (len(self.high) - 1))

    @property
    def _errors(self) -> tuple[float, float]:
        """The squared standard error of either mean."""
        low, high = (variance(side) / len(side) for side in (self.low, self.high))
        return low, high

    @property
    def p(self) -> float | None:
        """Probability of a difference as large if there were none; None where it cannot be told."""
        error = self.standard_error
        if math.isinf(error) or math.isnan(self.difference):
            return None
        if error == 0:  # values that differ by nothing at all are copies of one measurement, not several
            return 1.0 if self.difference == 0 else None
        return float(2 * stdtr(self.freedom, -abs(self.difference / error)))  # both tails of Student's t

    @property
    def holds(self) -> bool | None:
        """True, False, or None where p is 0.05 or more, or unknown."""
        p = self.p
        return None if p is None or p >= LEVEL else self.difference > 0

    @property
    def seeds_to_decide(self) -> int | None:
        """Values of either side that would decide it, difference and spreads as they are; None: over MOST_SEEDS."""
        if self.p is None:
            return None
        sides = [[a - b for a, b in zip(self.low, self.high, strict=True)]] if self.paired else [self.low, self.high]
        spreads = [variance(side) for side in sides]
        # Degrees of freedom that a seed adds: 1 by pairs, else 1 to 2.
        each = sum(spreads) ** 2 / sum(spread**2 for spread in spreads) if any(spreads) else 1.0

        def p(seeds: int) -> float:
            error = math.sqrt(sum(spreads) / seeds)
            return float(2 * stdtr(each * (seeds - 1), -abs(self.difference) / error)) if error else 1.0

        return next((seeds for seeds in range(2, MOST_SEEDS + 1) if p(seeds) < LEVEL), None)

    def __str__(self) -> str:
        state = {True: "holds", False: "fails", None: "undecided"}[self.holds]
        if not self.measured:
            return f"{self.words}: not measured by this judge: {state}"
        if self.p is None:
            return f"{self.words}: difference {self.difference:.3g} (no spread): {state}"
        how = "paired" if self.paired else "Welch"
        said = f"SE {self.standard_error:.3g}, {how} t with {self.freedom:.3g} degrees of freedom, p = {self.p:.2g}"
        return f"{self.words}: difference {self.difference:.3g} ({said}): {state}"

    def raw(self) -> dict[str, Any]:
        """All that was compared, and what came of it."""
        finite = math.isfinite(self.standard_error)
        return {
            "words": self.words,
            "low": list(self.low),
            "high": list(self.high),
            "paired": self.paired,
            "rows": list(self.rows),
            "difference": None if math.isnan(self.difference) else self.difference,
            "standard_error": self.standard_error if finite else None,
            "degrees_of_freedom": self.freedom if finite else None,
            "p": self.p,
            "holds": self.holds,
        }


@dataclass(frozen=True)
class Share(Comparison):
    """The claim that of what is counted fewer than a share are so: Clopper and Pearson's exact test, two-sided.

    Attributes:
        count: how many are.
        of: of how many.
    """

    count: int = 0
    of: int = 1

    @classmethod
    def below(cls, words: str, count: int, of: int, limit: float) -> Share:
        """The claim that less than `limit` of all are, where `count` of the `of` that were looked at are."""
        return cls(words, [count / of], [limit], count=count, of=of)

    @property
    def p(self) -> float | None:
        """Twice the smaller tail of the binomial distribution at the limit."""
        return self._p(self.count, self.of)

    def _p(self, count: int, of: int) -> float:
        fewer, more = bdtr(count, of, self.high[0]), bdtrc(count - 1, of, self.high[0]) if count else 1.0
        return float(min(1.0, 2 * min(fewer, more)))

    @property
    def standard_error(self) -> float:
        """Of the share, were it at the limit."""
        return math.sqrt(self.high[0] * (1 - self.high[0]) / self.of)

    @property
    def freedom(self) -> float:
        """None are estimated."""
        return math.inf

    @property
    def seeds_to_decide(self) -> int | None:
        """None: not seeds but more samples of one training decide it."""
        return None

    @property
    def samples_to_decide(self) -> int | None:
        """How many would have to be looked at, if as large a share of them were so; None: over 100 times as many."""
        times = (k for k in range(1, MOST_TIMES + 1) if self._p(k * self.count, k * self.of) < LEVEL)
        return next((k * self.of for k in times), None)

    def __str__(self) -> str:
        state = {True: "holds", False: "fails", None: "undecided"}[self.holds]
        counted = f"{self.count:,} of {self.of:,}, {100 * self.low[0]:.2g}%"
        return f"{self.words}: {counted} (exact binomial test, p = {self.p:.2g}): {state}"

    def raw(self) -> dict[str, Any]:
        """All that was counted, and what came of it."""
        return {**super().raw(), "degrees_of_freedom": None, "count": self.count, "of": self.of}

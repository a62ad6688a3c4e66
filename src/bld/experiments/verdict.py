"""Rules fixed beforehand that turn measured numbers into one sentence: reproduced, not reproduced, or undecided.

A claim is a list of comparisons, "a below b".  Each is Student's t-test of the difference of the means, two-sided:
paired by seed where both sides of a pair share a tokenizer, data or a network, else Welch's.  It holds where the
difference has the claimed sign and p < 0.05, fails where it has the other sign and p < 0.05, and is undecided between.
With fewer than two values on either side nothing is decided.  What is not decided says what that would take.

Before that stands a gate: a comparison is judged only of networks that have come most of the way from an untrained one
to the best that their codes allow, and where what was varied changes some metric.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev, variance
from typing import Any, Literal

from scipy.special import fdtrc, stdtr

Outcome = Literal["reproduced", "not reproduced", "undecided at this scale", "too little training to say"]
LEVEL = 0.05
MOST_SEEDS = 100  # that anyone would train for a difference
FAR_ENOUGH = 1 / 3  # of the way from the best possible to an untrained network, at most, in every row that is judged


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
class Gate:
    """What must be so before a claim is judged.

    Attributes:
        distances: of each row that is judged, its distance over seeds.
        untrained: the same of untrained networks.
        moved: by metric, the values of each row over seeds; one of the metrics has to differ between rows.
        best: the distance below which no row can come, whatever it learns: that of real images rebuilt from their
            codes.
        share: of the way from `best` to the untrained networks, the farthest that a row may lie.
        networks: of which of `distances` each row's samples are, by the row's label.
    """

    distances: Mapping[str, Sequence[float]]
    untrained: Sequence[float]
    moved: Mapping[str, Sequence[Sequence[float]]]
    best: float = 0.0
    share: float = FAR_ENOUGH
    networks: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> Gate:
        """What `raw` was made of; of pages of before, whose gates name no networks, too."""
        named = ("distances", "untrained", "moved", "best", "share")
        return cls(**{name: raw[name] for name in named}, networks=raw.get("networks", {}))

    @property
    def limit(self) -> float:
        """The farthest that a row may lie."""
        return self.best + self.share * (fmean(self.untrained) - self.best)

    @property
    def far_off(self) -> list[str]:
        """The rows whose mean distance is above the limit."""
        return [label for label, values in self.distances.items() if values and fmean(values) > self.limit]

    @property
    def moves(self) -> bool:
        """Whether the rows differ in some metric (analysis of variance, the level shared by the metrics)."""
        tests = [anova_p(groups) for groups in self.moved.values()]
        known = [p for p in tests if p is not None]
        return any(p < LEVEL / len(known) for p in known)

    @property
    def seeds_to_move(self) -> int | None:
        """Values of each row with which a metric would differ, means and spreads as they are; None: over MOST_SEEDS."""
        known = [groups for groups in self.moved.values() if anova_p(groups) is not None]

        def moves(seeds: int) -> bool:
            return any((anova_p(groups, seeds) or 0.0) < LEVEL / len(known) for groups in known)

        return next((seeds for seeds in range(2, MOST_SEEDS + 1) if moves(seeds)), None)

    @property
    def passed(self) -> bool:
        """Whether the claim may be judged."""
        return not self.far_off and self.moves

    def judges(self, comparison: Comparison) -> bool:
        """Whether all networks that are compared are near enough; of a comparison that does not name its rows, all."""
        if not comparison.rows:
            return not self.far_off
        return not any(self.networks[row] in self.far_off for row in comparison.rows)

    def raw(self) -> dict[str, Any]:
        """All that it rests on, and what came of it."""
        return {
            "distances": {label: list(values) for label, values in self.distances.items()},
            "untrained": list(self.untrained),
            "best": self.best,
            "share": self.share,
            "networks": dict(self.networks),
            "limit": self.limit,
            "moved": {name: [list(values) for values in groups] for name, groups in self.moved.items()},
            "passed": self.passed,
            "why": str(self),
        }

    def __str__(self) -> str:
        limit = (
            f"{self.limit:.3g}, {100 * self.share:.0f}% of the way from {self.best:.3g}, the best that the codes "
            f"allow, to {fmean(self.untrained):.3g}, an untrained network's"
        )
        if self.far_off:
            worst = max(self.far_off, key=lambda label: fmean(self.distances[label]))
            return (
                f"Not passed: {len(self.far_off)} of {len(self.distances)} networks lie farther from the data than "
                f"{limit} (the farthest is {worst}, {fmean(self.distances[worst]):.3g}); no comparison of "
                f"{'it' if len(self.far_off) == 1 else 'them'} is judged."
            )
        if not self.moves:
            return "Not passed: what was varied changes none of the metrics beyond their spread."
        return f"Passed: no network lies farther from the data than {limit}, and what was varied changes the metrics."


def anova_p(groups: Sequence[Sequence[float]], size: int | None = None) -> float | None:
    """P of group means as different if all groups were alike (one-way analysis of variance); None if untold.

    Args:
        groups: of values.
        size: as if each group had so many values, of its mean and spread.
    """
    groups = [group for group in groups if len(group) > 1]
    if len(groups) < 2:
        return None
    sizes = [size or len(group) for group in groups]
    count, means = sum(sizes), [fmean(group) for group in groups]
    mean = sum(n * m for n, m in zip(sizes, means, strict=True)) / count
    between = sum(n * (m - mean) ** 2 for n, m in zip(sizes, means, strict=True)) / (len(groups) - 1)
    within = sum(variance(g) * (n - 1) for n, g in zip(sizes, groups, strict=True)) / (count - len(groups))
    if within == 0:
        return 1.0 if between == 0 else None  # copies of one measurement have no spread to compare with
    return float(fdtrc(len(groups) - 1, count - len(groups), between / within))  # the upper tail of Fisher's F


def judge(comparisons: Sequence[Comparison], gate: Gate | None = None) -> Outcome:
    """Reproduced if all hold, not reproduced if any fails, else undecided.

    Of networks that are too far off nothing is judged, so that a claim on them may fail by what it says of others, and
    not be reproduced.
    """
    if gate is not None and not gate.moves:
        return "too little training to say" if gate.far_off else "undecided at this scale"
    states = [comparison.holds for comparison in comparisons]
    if gate is not None and gate.far_off:
        judged = [comparison for comparison in comparisons if gate.judges(comparison)]
        fails = any(comparison.holds is False for comparison in judged)
        return "not reproduced" if fails else "too little training to say"
    if not states:
        return "undecided at this scale"
    if all(states):
        return "reproduced"
    return "not reproduced" if any(state is False for state in states) else "undecided at this scale"


def to_decide(comparisons: Sequence[Comparison], gate: Gate | None = None) -> str:
    """What it would take to decide what `judge` does not, in a sentence; empty where it is decided."""
    if judge(comparisons, gate) in ("reproduced", "not reproduced"):
        return ""
    if gate is not None and gate.far_off:
        told = " and ".join(f"{label} ({fmean(gate.distances[label]):.3g})" for label in gate.far_off)
        return f"It takes more training: {told} must come nearer to the data than {gate.limit:.3g}."
    pending = [comparison for comparison in comparisons if comparison.holds is None]
    unmeasured = next((comparison for comparison in pending if not comparison.measured), None)
    if unmeasured is not None:
        return f"It takes another judge: this one gives no metric for “{unmeasured.words}”."
    untold = gate is not None and all(anova_p(groups) is None for groups in gate.moved.values())
    if not comparisons or untold or any(comparison.p is None for comparison in pending):
        return "It takes three trainings of each row at least: here there is no spread to judge by."
    wanted = {} if any(comparison.holds is False for comparison in comparisons) else _seeds_of_claim(pending)
    if gate is not None and not gate.moves:
        wanted["to see that anything varies"] = gate.seeds_to_move
    most = max(wanted, key=lambda words: wanted[words] or math.inf)
    if wanted[most] is None:
        return (
            f"More than {MOST_SEEDS} training seeds would be needed {most}, if they differ as these do: next to "
            "nothing is seen."
        )
    return f"About {wanted[most]} training seeds would decide it, if they differ as these do; most are needed {most}."


def _seeds_of_claim(pending: Sequence[Comparison]) -> dict[str, int | None]:
    """With how many seeds a claim is decided, and for what: one comparison that fails decides, else all must hold."""
    failing = [comparison for comparison in pending if comparison.difference < 0]
    decisive = min if failing else max
    one = decisive(failing or pending, key=lambda comparison: comparison.seeds_to_decide or math.inf, default=None)
    words = "" if one is None else f"for “{one.words}”" + (", which would fail" if failing else "")
    return {} if one is None else {words: one.seeds_to_decide}


def mean_and_spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean and standard deviation over seeds, as "1.23 ± 0.04"; without the latter for one value."""
    if len(values) < 2:
        return f"{values[0]:.{digits}g}" if values else "–"
    mean, spread = fmean(values), stdev(values)
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(mean)))) if mean else digits
    return f"{mean:.{decimals}f} ± {spread:.{decimals}f}"

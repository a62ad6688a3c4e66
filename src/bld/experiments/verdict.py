"""Rules fixed beforehand that turn measured numbers into one sentence: reproduced, not reproduced, or undecided.

A claim is a list of comparisons, "a below b".  Each is Student's t-test of the difference of the means, two-sided:
paired by seed where both sides of a pair share a tokenizer, data or a network, else Welch's; or, where things are
counted, the exact binomial test of their share.  It holds where the difference has the claimed sign and p < 0.05, fails
where it has the other sign and p < 0.05, and is undecided between.  With fewer than two values on either side nothing
is decided.  What is not decided says what that would take.

Before that stands a gate: a comparison is judged only of networks that have come most of the way from an untrained one
to the best that their codes allow, and where what was varied changes some metric.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev, variance
from typing import Any, Literal

from scipy.special import fdtrc

from bld.experiments.comparison import LEVEL, MOST_SEEDS, Comparison, Share

Outcome = Literal["reproduced", "not reproduced", "undecided at this scale", "too little training to say"]
BEST_SHARE = 0.5  # of an untrained network's distance, the most that the best possible one may be
FAR_ENOUGH = 1 / 3  # of the way from the best possible to an untrained network, at most, in every row that is judged


@dataclass(frozen=True)
class Gate:
    """What must be so before a claim is judged.

    Attributes:
        distances: of each row that is judged, its distance over seeds.
        untrained: the same of untrained networks.
        moved: by metric, the values of each row over seeds; one of the metrics has to differ between rows.
        best: the distance below which no row can come, whatever it learns: that of as many real images as a row has
            samples, rebuilt from their codes.
        share: of the way from `best` to the untrained networks, the farthest that a row may lie.
        networks: of which of `distances` each row's samples are, by the row's label.
        paired: whether value i of every group of `moved` belongs to the same seed, which then is a block.
    """

    distances: Mapping[str, Sequence[float]]
    untrained: Sequence[float]
    moved: Mapping[str, Sequence[Sequence[float]]]
    best: float = 0.0
    share: float = FAR_ENOUGH
    networks: Mapping[str, str] = field(default_factory=dict)
    paired: bool = True

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> Gate:
        """What `raw` was made of; of pages of before, whose gates name no networks and no blocks, too."""
        named = ("distances", "untrained", "moved", "best", "share")
        networks, paired = raw.get("networks", {}), raw.get("paired", True)
        return cls(**{name: raw[name] for name in named}, networks=networks, paired=paired)

    @property
    def limit(self) -> float:
        """The farthest that a row may lie."""
        return self.best + self.share * (fmean(self.untrained) - self.best)

    @property
    def codes_lose_too_much(self) -> bool:
        """Whether the codes themselves lose so much that nothing could be told of a prior by its samples."""
        return self.best > BEST_SHARE * fmean(self.untrained)

    @property
    def far_off(self) -> list[str]:
        """The rows whose mean distance is above the limit; all where the codes lose too much."""
        if self.codes_lose_too_much:
            return list(self.distances)
        return [label for label, values in self.distances.items() if values and fmean(values) > self.limit]

    @property
    def moved_p(self) -> dict[str, float]:
        """By metric, the probability of rows as different if all were alike; not of one that has no spread."""
        tests = {name: self._anova(groups) for name, groups in self.moved.items()}
        return {name: p for name, p in tests.items() if p is not None}

    @property
    def level(self) -> float:
        """What the smallest of them has to be below: 0.05, shared by the metrics (Bonferroni)."""
        return LEVEL / max(1, len(self.moved_p))

    @property
    def moves(self) -> bool:
        """Whether the rows differ in some metric."""
        return min(self.moved_p.values(), default=1.0) < self.level

    @property
    def seeds_to_move(self) -> int | None:
        """Values of each row with which a metric would differ, means and spreads as they are; None: over MOST_SEEDS."""
        known = [self.moved[name] for name in self.moved_p]

        def moves(seeds: int) -> bool:
            return any((self._anova(groups, seeds) or 0.0) < self.level for groups in known)

        return next((seeds for seeds in range(2, MOST_SEEDS + 1) if moves(seeds)), None)

    def _anova(self, groups: Sequence[Sequence[float]], size: int | None = None) -> float | None:
        return anova_p(groups, size, blocks=self.paired)

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
            "moved_p": self.moved_p,
            "level": self.level,
            "paired": self.paired,
            "passed": self.passed,
            "why": str(self),
        }

    def __str__(self) -> str:
        limit = (
            f"{self.limit:.3g}, {100 * self.share:.0f}% of the way from {self.best:.3g}, the best that the codes "
            f"allow, to {fmean(self.untrained):.3g}, an untrained network's"
        )
        if self.codes_lose_too_much:
            return (
                f"Not passed: real images rebuilt from their codes lie at {self.best:.3g} themselves, more than half "
                f"of {fmean(self.untrained):.3g}, an untrained network's: the tokenizer had too little training."
            )
        if self.far_off:
            worst = max(self.far_off, key=lambda label: fmean(self.distances[label]))
            return (
                f"Not passed: {len(self.far_off)} of {len(self.distances)} networks lie farther from the data than "
                f"{limit} (the farthest is {worst}, {fmean(self.distances[worst]):.3g}); no comparison of "
                f"{'it' if len(self.far_off) == 1 else 'them'} is judged."
            )
        metric = min(self.moved_p, key=self.moved_p.__getitem__, default="")
        shared = f", shared by {len(self.moved_p)} metrics" if len(self.moved_p) > 1 else ""
        tested = f"{metric}, p = {self.moved_p[metric]:.3g}, level {self.level:.3g}{shared}" if metric else "no spread"
        if not self.moves:
            return f"Not passed: what was varied changes none of the metrics beyond their spread ({tested})."
        return f"Passed: no network lies farther from the data than {limit}, and what was varied changes {tested}."


def anova_p(groups: Sequence[Sequence[float]], size: int | None = None, blocks: bool = False) -> float | None:
    """P of group means as different if all groups were alike (analysis of variance); None if untold.

    Args:
        groups: of values.
        size: as if each group had so many values, of its mean and spread.
        blocks: whether value i of every group is of block i (a seed), whose own mean is taken out first; where groups
            differ in size they are none.
    """
    groups = [group for group in groups if len(group) > 1]
    if len(groups) < 2:
        return None
    sizes = [size or len(group) for group in groups]
    count, means = sum(sizes), [fmean(group) for group in groups]
    mean = sum(n * m for n, m in zip(sizes, means, strict=True)) / count
    between = sum(n * (m - mean) ** 2 for n, m in zip(sizes, means, strict=True)) / (len(groups) - 1)
    freedom = count - len(groups)
    if blocks and len({len(group) for group in groups}) == 1:
        freedom = (len(groups) - 1) * (sizes[0] - 1)
        of_block = [fmean(values) - mean for values in zip(*groups, strict=True)]
        rest = [x - m - b for g, m in zip(groups, means, strict=True) for x, b in zip(g, of_block, strict=True)]
        within = sum(x * x for x in rest) / ((len(groups) - 1) * (len(groups[0]) - 1))
    else:
        within = sum(variance(g) * (n - 1) for n, g in zip(sizes, groups, strict=True)) / freedom
    if within <= 1e-24 * mean**2:  # but for rounding
        return 1.0 if between <= 1e-24 * mean**2 else None  # copies of one measurement have no spread to compare with
    return float(fdtrc(len(groups) - 1, freedom, between / within))  # the upper tail of Fisher's F


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
    if gate is not None and gate.codes_lose_too_much:
        return f"It takes more training of the tokenizer, whose codes allow no distance below {gate.best:.3g}."
    if gate is not None and gate.far_off:
        told = " and ".join(f"{label} ({fmean(gate.distances[label]):.3g})" for label in gate.far_off)
        return f"It takes more training: {told} must come nearer to the data than {gate.limit:.3g}."
    pending = [comparison for comparison in comparisons if comparison.holds is None]
    unmeasured = next((comparison for comparison in pending if not comparison.measured), None)
    if unmeasured is not None:
        return f"It takes another judge: this one gives no metric for “{unmeasured.words}”."
    counted = next((comparison for comparison in pending if isinstance(comparison, Share)), None)
    if counted is not None:
        much = counted.samples_to_decide
        samples = "More than 100 times as many" if much is None else f"About {much:,}"
        return f"{samples} samples would decide “{counted.words}”, if as large a share of them were so."
    untold = gate is not None and not gate.moved_p
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

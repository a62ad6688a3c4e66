"""The rules: what is reproduced, what is not, and what cannot be told."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from bld.experiments.comparison import MOST_SEEDS, Comparison, Share
from bld.experiments.verdict import Gate, anova_p, judge, mean_and_spread, to_decide

HOLDS = Comparison("a below b", [1.0, 1.1], [2.0, 2.1])
FAILS = Comparison("a below b", [2.0, 2.1], [1.0, 1.1])
NEAR = Comparison("a below b", [1.0, 2.0], [1.2, 2.1])
ALONE = Comparison("a below b", [1.0], [5.0])
UNMEASURED = Comparison("a below b", [], [5.0, 6.0])
BETWEEN = Comparison("beyond two standard errors, yet two seeds cannot tell", [1.0, 1.2], [1.5, 1.6])


@pytest.mark.parametrize(
    ("comparison", "holds"),
    [(HOLDS, True), (FAILS, False), (NEAR, None), (ALONE, None), (UNMEASURED, None), (BETWEEN, None)],
)
def test_a_comparison_needs_a_p_below_five_percent(comparison, holds):
    assert comparison.holds is holds
    assert {True: "holds", False: "fails", None: "undecided"}[holds] in str(comparison)


def test_two_standard_errors_are_not_enough_with_few_seeds():
    assert BETWEEN.difference > 2 * BETWEEN.standard_error
    assert BETWEEN.p is not None and BETWEEN.p > 0.05


@pytest.mark.parametrize("seed", range(5))
def test_the_tests_are_those_of_scipy(seed):
    rng = np.random.default_rng(seed)
    low, high = rng.normal(0, 1, 3).tolist(), rng.normal(1, 3, 5).tolist()
    assert Comparison("", low, high).p == pytest.approx(stats.ttest_ind(low, high, equal_var=False).pvalue)
    assert Comparison("", low, high[:3], paired=True).p == pytest.approx(stats.ttest_rel(low, high[:3]).pvalue)
    groups = [low, high, rng.normal(0, 1, 4).tolist()]
    assert anova_p(groups) == pytest.approx(stats.f_oneway(*groups).pvalue)
    assert anova_p([low, high[:3]], blocks=True) == pytest.approx(stats.ttest_rel(low, high[:3]).pvalue)
    count, limit = int(rng.integers(0, 60)), 0.05
    interval = stats.binomtest(count, 500).proportion_ci(0.95, "exact")
    assert Share.below("", count, 500, limit).holds is (
        True if interval.high < limit else False if interval.low > limit else None
    )


@pytest.mark.parametrize("seed", range(5))
def test_blocks_of_seeds_are_what_least_squares_make_of_them(seed):
    """F of the rows in a linear model of rows and seeds, against one of seeds alone."""
    values = np.random.default_rng(seed).normal(size=(4, 3)) + np.array([0, 5, -2])
    row, block = (np.arange(count) for count in values.shape)
    seeds = (np.repeat(block[None], 4, 0).ravel()[:, None] == block).astype(float)
    rows = (np.repeat(row[:, None], 3, 1).ravel()[:, None] == row[1:]).astype(float)

    def left(model: np.ndarray) -> float:
        return float(np.linalg.lstsq(model, values.ravel(), rcond=None)[1].sum())

    whole = left(np.hstack([seeds, rows]))
    F = (left(seeds) - whole) / 3 / (whole / 6)
    assert anova_p(values.tolist(), blocks=True) == pytest.approx(stats.f.sf(F, 3, 6))
    assert anova_p(values.tolist(), blocks=True) < anova_p(values.tolist())  # seeds differ by more than rows do


def test_blocks_of_unequal_size_are_none():
    groups = [[1.0, 2.0, 3.0], [2.0, 4.0]]
    assert anova_p(groups, blocks=True) == anova_p(groups)


def test_a_gate_finds_nothing_as_often_as_it_says_where_nothing_varies():
    """Of 2,000 gates of three metrics without differences at most 5% are moved, five standard deviations allowed."""
    rng = np.random.default_rng(11)
    moved = 0
    for _ in range(2000):
        seeds = 10 * rng.normal(size=3)
        metrics = {name: (rng.normal(size=(4, 3)) + seeds).tolist() for name in ("fd", "precision", "recall")}
        moved += Gate({"a": [1.0]}, [9.0], metrics).moves
    assert 2000 * 0.05 * 0.5 < moved < 2000 * 0.05 + 5 * math.sqrt(2000 * 0.05 * 0.95)


def test_a_gate_says_what_moved_and_at_which_level():
    groups = [[1.0, 5.0, 9.0], [1.5, 5.6, 9.4]]  # seeds differ by more than rows do
    gate = Gate({"a": [1.0]}, [9.0], {"fd": groups, "recall": [[0.1, 0.2, 0.3], [0.3, 0.1, 0.2]]})
    assert gate.moves and gate.level == 0.025 and gate.raw()["moved_p"] == gate.moved_p
    assert "fd, p = 0.0131, level 0.025, shared by 2 metrics" in str(gate)
    assert not replace(gate, paired=False).moves


@pytest.mark.parametrize(("count", "of", "holds"), [(5, 500, True), (16, 500, None), (60, 500, False), (0, 20, None)])
def test_a_share_holds_where_it_is_surely_below_its_limit(count, of, holds):
    share = Share.below("few are copies", count, of, 0.05)
    assert share.holds is holds and f"{count} of {of}" in str(share)
    assert Comparison.read(share.raw()) == share and Comparison.read(share.raw()).raw() == share.raw()
    told = to_decide([share])
    assert bool(told) is (holds is None)
    if holds is None:
        many = share.samples_to_decide
        assert f"About {many:,} samples" in told
        assert Share.below("", count * many // of, many, 0.05).holds is not None
        assert Share.below("", count * (many - of) // of, many - of, 0.05).holds is None


def test_pairs_find_what_seeds_have_in_common_and_welch_does_not():
    low, high = [1.0, 5.0, 9.0], [1.5, 5.6, 9.4]
    assert Comparison("", low, high, paired=True).holds is True
    assert Comparison("", low, high).holds is None
    with pytest.raises(ValueError, match=r"\b3 and 2 .*paired"):
        Comparison("", low, high[:2], paired=True)


def test_what_the_judge_does_not_measure_says_so():
    assert "not measured" in str(UNMEASURED) and "nan" not in str(UNMEASURED) and "spread" not in str(UNMEASURED)
    assert "not measured" not in str(ALONE)


def test_copies_of_one_measurement_decide_nothing():
    """Seeds that share a network without meaning to give the same value again and again: no spread is no certainty."""
    for paired in (False, True):
        copies = Comparison("", [1.0, 1.0], [2.0, 2.0], paired=paired)
        assert copies.holds is None and copies.p is None and "no spread" in str(copies)
        assert Comparison("", [1.0, 1.0], [1.0, 1.0], paired=paired).holds is None
    assert anova_p([[1.0, 1.0], [2.0, 2.0]]) is None
    assert not Gate({}, [9.0, 9.1], {"fd": [[1.0, 1.0], [2.0, 2.0]]}).moves


def test_a_ratio_carries_the_errors_of_both_sides():
    """The numerator is known exactly; the denominator's spread alone leaves the ratio undecided."""
    steady, wild = [10.0, 10.0, 10.0], [4.0, 8.0, 14.0]
    assert fmean_ratio(steady, wild) < 1.25
    assert Comparison.at_most("", 1.25, steady, wild).holds is None
    assert Comparison.at_most("", 1.25, steady, [9.9, 10.0, 10.1]).holds is True
    assert Comparison.at_most("", 1.25, steady, [5.0, 5.1, 5.2]).holds is False


def fmean_ratio(top: list[float], bottom: list[float]) -> float:
    return sum(top) / sum(bottom)


def test_a_true_null_is_rejected_as_often_as_stated():
    """Of 4,000 comparisons of equals 5% come out decided: within 5 standard deviations, a false alarm in 2 million."""
    rng = np.random.default_rng(7)
    decided = sum(
        Comparison("", rng.normal(size=3).tolist(), rng.normal(size=3).tolist(), paired=True).holds is not None
        for _ in range(4000)
    )
    assert abs(decided - 200) < 5 * math.sqrt(4000 * 0.05 * 0.95)


@pytest.mark.parametrize(
    ("comparisons", "outcome"),
    [
        ([HOLDS], "reproduced"),
        ([HOLDS, HOLDS], "reproduced"),
        ([HOLDS, NEAR], "undecided at this scale"),
        ([HOLDS, FAILS], "not reproduced"),
        ([NEAR, FAILS], "not reproduced"),
        ([ALONE], "undecided at this scale"),
        ([], "undecided at this scale"),
    ],
)
def test_a_claim_stands_when_all_of_it_does_and_falls_with_any(comparisons, outcome):
    assert judge(comparisons) == outcome


NEAR_DATA = {"a": [1.0, 1.1, 1.0], "b": [2.0, 2.1, 2.1]}


@pytest.mark.parametrize(
    ("gate", "outcome"),
    [
        (Gate(NEAR_DATA, [10.0, 11.0], {"fd": list(NEAR_DATA.values())}), "reproduced"),
        (Gate(NEAR_DATA, [6.0, 6.1], {"fd": list(NEAR_DATA.values())}), "too little training to say"),
        (Gate(NEAR_DATA, [6.0, 6.1], {"fd": list(NEAR_DATA.values())}, best=0.5), "reproduced"),
        (Gate(NEAR_DATA, [6.0, 6.1], {"fd": list(NEAR_DATA.values())}, share=0.5), "reproduced"),
        (Gate(NEAR_DATA, [10.0], {"fd": [[1.0, 3.0], [1.1, 3.0]]}), "undecided at this scale"),
        (Gate(NEAR_DATA, [10.0], {"fd": [[1.0], [3.0]]}), "undecided at this scale"),
    ],
)
def test_nothing_is_judged_before_the_gate_is_passed(gate, outcome):
    assert judge([HOLDS], gate) == outcome
    assert str(gate).startswith("Passed" if outcome == "reproduced" else "Not passed")


PARTLY = Gate(
    {"near": [1.0], "far": [7.5]}, [9.0], {"fd": [[1.0, 1.1, 1.0], [7.0, 7.1, 7.1]]}, networks={"a": "near", "b": "far"}
)


@pytest.mark.parametrize(
    ("comparisons", "outcome"),
    [
        ([(FAILS, ("a",))], "not reproduced"),
        ([(FAILS, ("a",)), (HOLDS, ("a", "b"))], "not reproduced"),
        ([(FAILS, ("a", "b"))], "too little training to say"),
        ([(FAILS, ())], "too little training to say"),
        ([(HOLDS, ("a",)), (FAILS, ("b",))], "too little training to say"),
        ([(HOLDS, ("a",)), (NEAR, ("a",))], "too little training to say"),
    ],
)
def test_a_claim_may_fail_by_the_networks_that_are_near_enough_alone(comparisons, outcome):
    assert judge([replace(of, rows=rows) for of, rows in comparisons], PARTLY) == outcome
    still = replace(PARTLY, moved={"fd": [[1.0, 3.0], [1.1, 3.0]]})
    assert judge([replace(of, rows=rows) for of, rows in comparisons], still) == "too little training to say"


def test_the_way_to_the_data_ends_where_the_codes_allow_no_more():
    gate = Gate(NEAR_DATA, [9.0, 11.0], {"fd": list(NEAR_DATA.values())}, best=2.0)
    assert gate.limit == pytest.approx(2.0 + (10.0 - 2.0) / 3) and gate.far_off == []
    again = Gate(*(gate.raw()[name] for name in ("distances", "untrained", "moved", "best", "share", "networks")))
    assert again.raw() == gate.raw() and gate.raw()["passed"] is True


def test_where_the_codes_lose_nearly_all_nothing_is_judged():
    """Rows, untrained networks and the best possible are then alike, and all rows within the limit."""
    gate = Gate(NEAR_DATA, [3.0, 3.1], {"fd": list(NEAR_DATA.values())}, best=2.2)
    assert max(map(max, NEAR_DATA.values())) < gate.limit and gate.far_off == ["a", "b"]
    assert judge([HOLDS, FAILS], gate) == "too little training to say"
    assert "Not passed" in str(gate) and "2.2" in str(gate)
    assert "of the tokenizer" in to_decide([HOLDS], gate) and "2.2" in to_decide([HOLDS], gate)


def test_the_raw_numbers_of_a_comparison_are_enough_to_repeat_it():
    for comparison in (HOLDS, FAILS, NEAR, ALONE, UNMEASURED, BETWEEN):
        raw = comparison.raw()
        again = Comparison(raw["words"], raw["low"], raw["high"], raw["paired"], tuple(raw["rows"]))
        assert again.raw() == raw


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([], "–"),
        ([1.234567], "1.23"),
        ([10.0, 12.0], "11.0 ± 1.4"),
        ([0.5, 0.52], "0.510 ± 0.014"),
        ([0.0, 0.0], "0.000 ± 0.000"),
    ],
)
def test_means_are_written_with_their_spread(values, text):
    assert mean_and_spread(values) == text


def of(mean: float, spread: float, count: int) -> list[float]:
    """So many values of exactly this mean and standard deviation."""
    values = np.random.default_rng(count).normal(size=count)
    return (mean + spread * (values - values.mean()) / values.std(ddof=1)).tolist()


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize(("difference", "spreads"), [(1.0, (1.0, 1.0)), (0.8, (0.2, 1.5)), (-0.5, (0.6, 0.3))])
def test_so_many_seeds_decide_and_one_less_does_not(difference: float, spreads: tuple[float, float], paired: bool):
    def with_seeds(count: int) -> Comparison:
        low = of(0, spreads[0], count)
        if paired:  # what is added to each has the other spread
            return Comparison(
                "a below b", low, [a + b for a, b in zip(low, of(difference, spreads[1], count), strict=True)], True
            )
        return Comparison("a below b", low, [difference - b for b in of(0, spreads[1], count)])

    wanted = with_seeds(3).seeds_to_decide
    assert wanted is not None and with_seeds(wanted).holds is (difference > 0) and with_seeds(wanted - 1).holds is None
    assert with_seeds(3).seeds_to_decide == with_seeds(40).seeds_to_decide


def test_so_many_seeds_show_that_something_varies_and_one_less_does_not():
    def gate(count: int) -> Gate:
        groups = [of(mean, spread, count) for mean, spread in ((0, 1), (0.5, 1.2), (1.1, 0.8))]
        return Gate({"a": [1.0]}, [9.0], {"fd": groups, "precision": [of(0, 1, count)] * 3}, paired=False)

    wanted = gate(3).seeds_to_move
    assert wanted is not None and gate(wanted).moves and not gate(wanted - 1).moves
    assert Gate({"a": [1.0]}, [9.0], {"fd": [of(0, 1, 3)] * 3}, paired=False).seeds_to_move is None


def test_so_many_blocks_show_that_something_varies_and_one_less_does_not():
    def gate(count: int) -> Gate:
        seeds = of(0, 5, count)
        groups = [[mean + block + sign * x for block, x in zip(seeds, of(0, 1, count), strict=True)]
                  for mean, sign in ((0, 1), (0.8, -1))]  # fmt: skip
        return Gate({"a": [1.0]}, [9.0], {"fd": groups})

    wanted = gate(3).seeds_to_move
    assert wanted is not None and wanted > 3 and gate(wanted).moves and not gate(wanted - 1).moves


@pytest.mark.parametrize("differences", [(0.3, -0.8), (-0.3, -0.8), (0.8, 0.5), (0.0, -0.6), (-0.7, 3.0)])
def test_a_claim_is_decided_by_so_many_seeds_and_not_by_one_less(differences: tuple[float, ...]):
    """One comparison that fails decides it, while all must hold."""

    def with_seeds(count: int) -> list[Comparison]:
        return [Comparison(f"{d} below", [0.0] * count, of(d, 1, count), paired=True) for d in differences]

    told = to_decide(with_seeds(3))
    wanted = int(told.split()[1])
    assert told.startswith("About ") and ("which would fail" in told) is (min(differences) < 0)
    assert judge(with_seeds(wanted - 1)) == "undecided at this scale"
    assert judge(with_seeds(wanted)) == ("not reproduced" if min(differences) < 0 else "reproduced")


@pytest.mark.parametrize(
    ("comparisons", "gate", "words"),
    [
        ([HOLDS], None, []),
        ([HOLDS, FAILS, NEAR], None, []),
        ([BETWEEN, HOLDS], None, [f"About {BETWEEN.seeds_to_decide} ", "“beyond two"]),
        ([ALONE], None, ["three trainings"]),
        ([UNMEASURED, NEAR, ALONE], None, ["another judge", "“a below b”"]),
        ([Comparison("equals", [1.0, 2.0, 3.0], [2.0, 1.0, 3.0])], None, [f"More than {MOST_SEEDS} ", "“equals”"]),
        ([HOLDS], Gate({"a": [1.0], "b": [7.5]}, [9.0], {}), ["more training", "b (7.5)", "than 3."]),
        ([HOLDS], Gate({"a": [1.0]}, [9.0], {"fd": [[1.0], [2.0]]}), ["three trainings"]),
        (
            [HOLDS],
            Gate({"a": [1.0]}, [9.0], {"fd": [of(0, 1, 3), of(1, 1, 3)]}, paired=False),
            ["About 9 ", "anything varies"],
        ),
        (
            [FAILS, NEAR],
            Gate({"a": [1.0]}, [9.0], {"fd": [of(0, 1, 3), of(1, 1, 3)]}, paired=False),
            ["About 9 ", "anything varies"],
        ),
    ],
)
def test_what_is_not_decided_says_what_that_would_take(comparisons, gate, words):
    told = to_decide(comparisons, gate)
    assert bool(told) == bool(words) and all(word in told for word in words), told

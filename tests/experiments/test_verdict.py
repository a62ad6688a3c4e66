"""The rules: what is reproduced, what is not, and what cannot be told."""

from __future__ import annotations

import math

import pytest

from bld.experiments.verdict import Comparison, judge, mean_and_spread

HOLDS = Comparison("a below b", [1.0, 1.1], [2.0, 2.1])
FAILS = Comparison("a below b", [2.0, 2.1], [1.0, 1.1])
NEAR = Comparison("a below b", [1.0, 2.0], [1.2, 2.1])
ALONE = Comparison("a below b", [1.0], [5.0])
UNMEASURED = Comparison("a below b", [], [5.0, 6.0])


@pytest.mark.parametrize(
    ("comparison", "holds"), [(HOLDS, True), (FAILS, False), (NEAR, None), (ALONE, None), (UNMEASURED, None)]
)
def test_a_comparison_needs_twice_its_standard_error(comparison, holds):
    assert comparison.holds is holds
    assert {True: "holds", False: "fails", None: "undecided"}[holds] in str(comparison)


def test_the_standard_error_is_welchs():
    comparison = Comparison("", [1.0, 3.0], [5.0, 6.0, 7.0])
    assert comparison.difference == 4.0
    assert comparison.standard_error == pytest.approx(math.sqrt(2.0 / 2 + 1.0 / 3))


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

"""Both sides of every comparison have equal terms: as many steps, and as good a choice of guidance."""

from __future__ import annotations

import pytest

from bld.experiments import scales
from bld.experiments.comparison import Comparison
from bld.experiments.prior_rows import Row
from bld.experiments.reproduce import NAMES


def claimed(name: str, scale: scales.Scale) -> list[tuple[Comparison, Row, Row]]:
    """Each comparison of an experiment with the rows of its two sides; a row's distance is its number."""
    rows = NAMES[name].rows(scale)
    values = {row.label: {"fd": [float(n), n + 0.5]} for n, row in enumerate(rows, 1)}
    found = NAMES[name].claims(values)
    return [(c, rows[int(c.low[0]) - 1], rows[int(c.high[0]) - 1]) for c in found]


@pytest.mark.parametrize("scale", [scales.DIGITS, scales.CIFAR10, scales.PAPER], ids=lambda scale: scale.name)
def test_both_sides_of_table_7_take_as_many_steps(scale):
    compared = claimed("table7", scale)
    assert len(compared) == 5
    for comparison, ours, other in compared:
        assert ours.sampling.steps == other.sampling.steps and ours.prior == "bernoulli", comparison.words


@pytest.mark.parametrize("name", ["figure7", "table5", "gaussian-steps"])
def test_a_rival_of_a_guided_claim_is_compared_at_guidance_2_too(name):
    """The scale's own guidance was chosen for binary diffusion."""
    rivals = ("absorbing", "autoregressive", "gaussian-16")
    against = [
        row for _, ours, row in claimed(name, scales.CIFAR10) if row.prior in rivals and ours.prior not in rivals
    ]
    plain = [row for row in against if not row.sampling.labelled]
    twins = {(row.prior, row.sampling.steps) for row in against if row.sampling.guidance_scale == 2.0}
    assert plain and twins == {(row.prior, row.sampling.steps) for row in plain}
    assert not any("guidance 2" in row.label for row in NAMES[name].rows(scales.DIGITS))


def test_table_1_is_judged_by_the_best_of_all_tries_of_its_rivals():
    labels = [row.label for row in NAMES["table1"].rows(scales.CIFAR10)]
    for best in ("absorbing", "absorbing, guidance 2", "LDM (Gaussian)", "LDM (Gaussian), guidance 2"):
        values = {label: {"fd": [1.0, 1.1] if label == best else [2.0, 2.1]} for label in labels}
        (comparison,) = NAMES["table1"].claims(values)
        assert comparison.high[0] == 1.25, best


def test_curves_of_figure_7_are_of_one_kind_each():
    from bld.experiments.sweeps import ABSORBING, ABSORBING_TWICE, _by_steps

    rows = NAMES["figure7"].rows(scales.CIFAR10)
    curves = _by_steps(rows, {row.label: {"fd": [1.0]} for row in rows}, (ABSORBING, ABSORBING_TWICE))
    assert [steps for steps, _ in curves.values()] == [[4, 8, 16, 64]] * 2

"""The classifier knows real digits, and is not fooled by labels at random."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from bld.errors import SettingError
from bld.evaluation.digit_accuracy import digit_accuracy


def test_real_digits_are_recognised():
    real = load_digits()
    assert digit_accuracy(real.images / 16, real.target) > 0.99


def test_shuffled_labels_are_right_one_time_in_ten():
    real = load_digits()
    shuffled = np.random.default_rng(0).permutation(real.target)
    # a share of 1,797 draws of 1/10 has a deviation of 0.007: five of them
    assert digit_accuracy(real.images / 16, shuffled) == pytest.approx(0.1, abs=0.035)


def test_other_shapes_and_ranges_are_refused():
    with pytest.raises(SettingError, match="8, 8"):
        digit_accuracy(np.zeros((2, 64)), [0, 1])
    with pytest.raises(SettingError, match="0 … 1"):
        digit_accuracy(np.full((1, 8, 8), 16.0), [0])

"""Intervals are those of Student's t test and never claim more than the seeds carry."""

import doctest
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from steering.runs import statistics
from steering.runs.statistics import holm, interval, paired_difference


def test_the_examples_are_true():
    assert doctest.testmod(statistics).failed == 0


def test_the_paired_difference_is_that_of_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(1.0, 1, 12), rng.normal(0.5, 1, 12)
    expected: Any = stats.ttest_rel(a, b)
    ends = expected.confidence_interval(0.95)

    difference = paired_difference(list(a), list(b), "high")

    assert difference.mean == pytest.approx((a - b).mean())
    assert (difference.low, difference.high, difference.p) == pytest.approx((ends.low, ends.high, expected.pvalue))
    assert difference.half == pytest.approx((ends.high - ends.low) / 2)


def test_by_hand():
    """Differences 1, 2, 3: mean 2, deviation 1, error 1/sqrt(3), t(0.975, 2) = 4.302653."""
    difference = paired_difference([2, 4, 6], [1, 2, 3], "high")
    half = 4.302653 / math.sqrt(3)
    assert (difference.mean, difference.low, difference.high) == pytest.approx((2, 2 - half, 2 + half), abs=1e-6)


def test_a_lower_loss_is_a_positive_gain():
    assert paired_difference([1.0, 1.1, 0.9], [2.0, 2.2, 2.1], "low").mean == pytest.approx(1.1)
    assert paired_difference([1.0, 1.1, 0.9], [2.0, 2.2, 2.1], "low").verdict == "better"
    assert paired_difference([1.0, 1.1, 0.9], [2.0, 2.2, 2.1], "high").verdict == "worse"


def test_one_seed_claims_no_interval():
    difference = paired_difference([0.9], [0.1], "high")
    assert (difference.low, difference.high, difference.half, difference.p) == (None, None, None, None)
    assert difference.seeds == 1 and difference.verdict == "undecided"


def test_seeds_that_repeat_one_another_claim_no_interval():
    """0.3 - 0.2 and 0.8 - 0.7 differ in the last digit of a float: that is no spread."""
    assert interval([0.7, 0.7, 0.7]).low is None
    assert paired_difference([0.3, 0.8], [0.2, 0.7], "high").low is None


def test_a_difference_far_below_the_values_is_still_a_spread():
    difference = paired_difference([1e6 + 1, 1e6 + 2, 1e6 + 3], [1e6, 1e6, 1e6], "high")
    assert difference.half == pytest.approx(4.302653 / math.sqrt(3), abs=1e-6)


def test_an_interval_over_zero_is_called_undecided():
    assert paired_difference([1.0, -1.0, 0.5], [0.0, 0.0, 0.0], "high").verdict == "undecided"


def test_a_value_that_is_no_number_decides_nothing():
    for bad in (math.nan, math.inf):
        mean = interval([1.0, bad, 2.0])
        assert math.isnan(mean.mean) and mean.low is None and mean.verdict == "undecided"


def test_holm_against_a_hand_example():
    """Sorted: 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1; the last may not fall below the one before; none exceeds 1."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1, 1] and holm([]) == []


def test_unpaired_lists_are_refused():
    with pytest.raises(ValueError):
        paired_difference([1.0, 2.0], [1.0], "high")
    with pytest.raises(ValueError, match="at least one value"):
        interval([])

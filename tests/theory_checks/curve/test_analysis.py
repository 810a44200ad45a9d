"""Paired gains, samples to reach a target, determined only within limits where it lies beyond the sizes; power laws."""

import math

import numpy as np
import pytest

from steering.theory_checks.bootstrap import Drawn, interval, tail
from steering.theory_checks.curve.analysis import DRAWS, Range, estimate, gains, ratio, reach, reaches, slope

SIZES = [100, 200, 400, 800]


def resampled(seeds, chance):
    return chance.integers(seeds, size=(DRAWS, seeds))


def test_between_two_sizes_both_logarithms_are_linear():
    """Error 10 / n crosses 10 / 300 at 300."""
    result = reach(SIZES, [10 / n for n in SIZES], 10 / 300)
    assert result.low == result.high == pytest.approx(300)


def test_what_lies_beyond_the_sizes_is_censored_and_the_first_crossing_counts():
    assert reach(SIZES, [0.1, 0.08, 0.06, 0.05], 0.2).words() == "<100"
    assert reach(SIZES, [0.5, 0.4, 0.35, 0.3], 0.2).words() == ">800"
    assert reach(SIZES, [0.4, 0.2, 0.3, 0.1], 0.2).low == pytest.approx(200)


@pytest.mark.parametrize(
    ("above", "below", "expected"),
    [
        (Range(600, 600), Range(200, 200), "3.0"),
        (Range(800, math.inf), Range(200, 200), ">4.0"),
        (Range(600, 600), Range(0, 100), ">6.0"),
        (Range(600, 600), Range(800, math.inf), "<0.8"),
        (Range(800, math.inf), Range(800, math.inf), "unknown"),
    ],
)
def test_a_ratio_says_no_more_than_what_is_known_of_its_parts(above, below, expected):
    assert ratio(above, below).words(1) == expected


def test_an_interval_reaches_as_far_as_its_draws_are_unknown():
    drawn = [Range(value, value) for value in range(100, 190)] + [Range(800, math.inf)] * 10
    result = estimate(Range(150, 150), drawn, seeds=10_000)
    assert result.interval.low == pytest.approx(102, abs=1) and result.interval.high == math.inf
    assert result.words() == "150 [102, beyond]"


def test_intervals_over_few_seeds_are_those_of_the_other_checks():
    """Of 12 seeds 1.08 % of the draws lie beyond either end, where bare percentiles leave 2.5 %."""
    draws = np.random.default_rng(0).normal(150, 10, 2000)
    expected = interval(Drawn(150, draws), units=12)
    result = estimate(Range(150, 150), [Range(value, value) for value in draws], seeds=12).interval
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high), abs=0.5)
    assert np.mean(draws < result.low) == pytest.approx(0.0108, abs=0.001)


def test_a_slope_of_few_seeds_has_ends_as_far_out():
    chance = np.random.default_rng(0)
    errors = np.array(SIZES) ** -0.5 * np.exp(0.1 * chance.standard_normal((5, 4)))
    draws = resampled(5, chance)
    fits = [-np.polyfit(np.log(SIZES), np.log(errors[draw].mean(0)), 1)[0] for draw in draws]
    result = slope(SIZES, errors, draws)
    assert result is not None
    assert result.interval == pytest.approx(np.quantile(fits, [tail(5), 1 - tail(5)]))


def test_one_seed_leaves_all_unknown():
    draws = resampled(1, np.random.default_rng(0))
    result = slope(SIZES, np.array([[0.4, 0.3, 0.2, 0.1]]), draws)
    assert result is not None and result.interval == (-math.inf, math.inf)
    assert estimate(Range(150, 150), [Range(150, 150)] * 9, seeds=1).interval == Range(0, math.inf)


def test_the_target_is_drawn_with_the_seeds():
    """Each seed crosses its own target at 200; with the target held fixed the draws would differ."""
    level = np.array([0.1, 0.2, 0.4])
    errors = level[:, None] * np.array([2.0, 1.0, 0.5, 0.25])
    draws = resampled(3, np.random.default_rng(0))[:200]
    assert {round(one.low, 6) for one in reaches(SIZES, errors, level, draws)} == {200}


def test_a_power_law_is_found_with_its_floor_where_the_data_tell_it():
    sizes = [25, 50, 100, 200, 400, 800, 1600]
    chance = np.random.default_rng(0)
    law = 0.05 + 3 * np.array(sizes) ** -0.8
    errors = law * np.exp(0.01 * chance.standard_normal((20, 7)))
    result = slope(sizes, errors, resampled(20, chance))
    assert result is not None and result.floor is not None and result.floored is not None
    assert result.floor[0] == pytest.approx(0.05, rel=0.1) and result.floored[0] == pytest.approx(0.8, abs=0.05)
    assert result.exponent < 0.7, "without a floor the same curve looks flatter"


def test_a_law_without_a_floor_gets_none():
    sizes = [25, 50, 100, 200, 400, 800, 1600]
    chance = np.random.default_rng(0)
    errors = 3 * np.array(sizes) ** -0.5 * np.exp(0.05 * chance.standard_normal((20, 7)))
    result = slope(sizes, errors, resampled(20, chance))
    assert result is not None and result.floor is None and "do not tell a floor" in result.reason
    assert result.interval[0] < 0.5 < result.interval[1]


@pytest.mark.parametrize("sizes", [[100, 200, 400, 800], [100, 200, 400, 800, 1600]])
def test_few_or_close_sizes_get_no_floor(sizes):
    errors = 0.05 + 3 * np.array([sizes] * 12) ** -0.8
    result = slope(sizes, errors, resampled(12, np.random.default_rng(0)))
    assert result is not None and result.floor is None and result.reason.startswith("a floor needs 5 sizes over 1.5")


def test_a_gain_that_is_decided_alone_may_be_undecided_among_many():
    better, worse = [0.10, 0.11, 0.12, 0.10], [0.12, 0.14, 0.13, 0.13]
    [alone] = gains([100], [better], [worse])
    among = gains([100, 200, 400, 800], [better] * 4, [worse] * 4)
    assert 0.025 / 2 < (alone.adjusted or 0) < 0.05 and alone.verdict == "better"
    assert [gain.verdict for gain in among] == ["undecided"] * 4
    assert among[0].interval == alone.interval


def test_the_sign_says_which_is_better():
    [gain] = gains([10], [[0.3, 0.31, 0.32]], [[0.1, 0.11, 0.13]])
    assert gain.verdict == "worse" and gain.interval.mean < 0


def test_one_seed_decides_nothing():
    [gain] = gains([10], [[0.1]], [[0.3]])
    assert gain.verdict == "undecided" and gain.adjusted is None

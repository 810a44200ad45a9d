import numpy as np
import pytest

from steering.theory_checks.bootstrap import Estimate
from steering.theory_checks.bound.claims import Claim, log_slopes, mean, share, slope_of_means


def claim(low, high, *band):
    return Claim("part", "name", "predicted", Estimate((low + high) / 2, low, high), *band).verdict


def test_a_claim_holds_inside_its_band_fails_outside_and_is_undecided_across():
    assert claim(-1.1, -0.9, -1.15, -0.85) == "holds"
    assert claim(-0.6, -0.4, -1.15, -0.85) == "fails"
    assert claim(-1.3, -0.9, -1.15, -0.85) == "undecided"
    assert claim(-1.3, -0.9) == "no claim"


def test_a_band_may_be_open_on_one_side():
    assert claim(0.1, 0.2, 0.0, None) == "holds"
    assert claim(-0.2, -0.1, 0.0, None) == "fails"
    assert claim(-0.2, -0.1, None, 0.0) == "holds"


def test_the_slope_of_an_exact_power_is_its_exponent_also_where_a_mean_is_zero():
    sizes = np.array([1.0, 10.0, 100.0, 1000.0])
    assert log_slopes(sizes, sizes**-0.7) == pytest.approx(-0.7)
    assert log_slopes(sizes, np.where(sizes == 100, 0, sizes**-0.7)) == pytest.approx(-0.7)
    assert log_slopes(sizes, np.array([[1.0, 0, 0, 0], [0, 0, 0, 0]])).tolist() == [0, 0]  # no line through one point


def test_the_interval_of_a_slope_holds_the_truth_and_narrows_with_repetitions():
    rng, sizes = np.random.default_rng(0), (100, 400, 1600)
    widths = []
    for repetitions in (20, 2000):
        values = np.array(sizes)[:, None] ** -0.5 * rng.exponential(size=(3, repetitions))
        slope = slope_of_means(sizes, values, rng)
        assert slope.low < -0.5 < slope.high
        widths.append(slope.high - slope.low)
    assert widths[1] < widths[0] / 5


def test_shares_and_means_come_with_their_intervals():
    assert share(10, 10).low == pytest.approx(0.7225, abs=1e-3) and share(10, 10).high == 1
    assert mean(np.array([1.0, 3.0])).low == pytest.approx(2 - 12.706, abs=1e-3)
    assert mean(np.array([1.0, 1.0])).low == -np.inf  # a spread that did not show may have any size

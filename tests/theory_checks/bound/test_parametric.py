import numpy as np
import pytest

from steering.theory_checks.bound.parametric import (
    _samples,
    divergence_to_balance,
    fit,
    least_squares,
    limit,
    matched_at,
    steered,
)


def sample(n: int):
    return next(_samples(n, 1, 0, "test"))


def test_the_limit_is_what_a_large_sample_says_of_its_parts():
    """b = Cov(gradient, difference) / sd(difference) at theta*, from two million draws."""
    x, y = sample(500_000)
    difference = y**2 / 2 - (y - 0.7 * x[:, 0]) ** 2 / 2
    gradient = -y[:, None] * x
    b = (gradient * (difference - difference.mean())[:, None]).mean(0) / difference.std()
    assert limit(0.7, 3.0) == pytest.approx(2.5 + 3 * b @ b, rel=0.02)
    assert matched_at(0.1) == pytest.approx(500)  # d / (2 n) = r^2 / 2


def test_the_output_is_the_reference_exactly_where_the_test_says_so():
    """Radii a tenth below and above the divergence that balances the reference's gradients; none: least squares."""
    x, y = sample(60)
    reference = np.full(5, 0.1)
    threshold = 60 * divergence_to_balance(x, y, reference)
    assert (steered(x, y, reference, 1.1 * threshold) == reference).all()
    outside = steered(x, y, reference, 0.9 * threshold)
    assert np.linalg.norm(outside - reference) > 1e-3
    assert steered(x, y, reference, 1e-6) == pytest.approx(least_squares(x, y), abs=2e-3)


def test_the_balance_is_none_at_the_least_squares_and_grows_towards_the_truth():
    x, y = sample(80)
    fitted = least_squares(x, y)
    assert divergence_to_balance(x, y, fitted) == pytest.approx(0, abs=1e-12)
    far, further = (divergence_to_balance(x, y, fitted + step) for step in (0.05, 0.1))
    assert 0 < far < further


def test_the_balance_of_one_dimension_by_hand():
    """Gradients -1, -1, 3: p = (3/8, 3/8, 1/4) is not the exponential tilt only if its entropy is larger; the tilt
    has p3 / p1 = exp(4 lambda) and -2 p1 + 3 p3 = 0, so p3 = 2 p1 / 3 = 1/4."""
    x, y = np.array([[1.0], [1.0], [1.0]]), np.array([1.0, 1.0, -3.0])
    p = np.array([3 / 8, 3 / 8, 1 / 4])
    assert divergence_to_balance(x, y, np.zeros(1)) == pytest.approx(float((p * np.log(3 * p)).sum()))
    assert divergence_to_balance(x, np.abs(y), np.zeros(1)) > 1e3  # all gradients point the same way


@pytest.mark.slow
def test_far_beyond_n_eq_steering_costs_and_well_before_it_helps():
    far = fit(1.0, 800, (6.0,), 40, seed=0)
    gap = 800 * (far.drrho[6.0] - far.erm)
    assert gap.mean() > 2 * gap.std() / np.sqrt(40)
    near = fit(0.1, 50, (6.0,), 40, seed=0)
    gap = 50 * (near.drrho[6.0] - near.erm)
    assert gap.mean() < -2 * gap.std() / np.sqrt(40)

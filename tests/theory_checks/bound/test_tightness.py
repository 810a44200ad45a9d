import math

import numpy as np
import pytest

from steering.theory_checks.bound.tightness import bound, radius, tightness


def test_the_bounds_by_hand():
    """231 hypotheses, losses within 1.5 of each other (1/4 either way, 1 for a rare failure), variance 1/16."""
    n = 6400
    rho = math.log(3 * 231 / 0.05) * n / (n - 1)
    assert radius(n) == pytest.approx(rho) == pytest.approx(9.54, abs=0.01)
    assert bound(0.0, "ERM", n) == pytest.approx(3 * math.sqrt(math.log(462 / 0.05) / (2 * n)))
    assert bound(0.0, "DRO", n) == pytest.approx(2 * math.sqrt(2 * rho / 16 / n) + 20 * 1.5 * rho / (3 * n))
    assert bound(0.0, "DRRho", n) == pytest.approx(20 * rho / (3 * n))
    assert bound(0.2, "DRRho", n) > bound(0.0, "DRRho", n)


def test_no_bound_and_no_certificate_is_violated_and_none_is_tight():
    """Methods without a reference are measured once, at the first spread."""
    results = tightness((0.0, 0.2), (100,), 60, seed=0)
    measured = [(result.method, result.spread) for result in results]
    assert measured == [("ERM", 0.0), ("DRO", 0.0), ("DRRho", 0.0), ("DRRho", 0.2)]
    for result in results:
        assert result.violations == 0 and not result.certified
        assert result.factor > 10  # no prediction of an error
        assert (result.certified is None) == (result.method != "DRRho")


def test_the_order_of_the_bounds_is_that_of_the_truths_where_samples_are_many():
    results = {result.method: result for result in tightness((0.0,), (6400,), 150, seed=0)}
    for figure in ("bound", "truth"):
        values = [getattr(results[name], figure) for name in ("DRRho", "DRO", "ERM")]
        assert values == sorted(values) and np.unique(values).size == 3

import math

import numpy as np
import pytest

from steering import UserError
from steering.theory_checks.bound.certificate import certificate, coverage


def test_the_bernstein_bound_by_hand():
    """Differences -1 and 0, ten of each, in an interval of length 1: mean -1/2, V = 20/19 / 4, ln(2 / 0.1) = ln 20."""
    bernstein = certificate(np.array([-1.0, 0.0] * 10), delta=0.1, width=1.0)
    log = math.log(20)
    assert bernstein.upper == pytest.approx(-0.5 + math.sqrt(2 * (5 / 19) * log / 20) + 7 * log / (3 * 19))
    assert bernstein.kind == "empirical Bernstein" and not bernstein.better


def test_the_asymptotic_bound_by_hand():
    """Student's 95 % quantile with one degree of freedom is 6.314; differences -1 and 0 have sd / sqrt(2) = 1/2."""
    student = certificate(np.array([-1.0, 0.0]))
    assert student.upper == pytest.approx(-0.5 + 6.3138 * 0.5, abs=1e-4) and student.kind == "asymptotic"


def test_enough_samples_certify_a_better_target_and_an_equal_one_only_without_a_width():
    """All differences zero: the bound with a width still allows for what was not seen."""
    differences = np.random.default_rng(0).uniform(-0.6, 0.4, 2000)
    assert certificate(differences, width=1.0).better and certificate(differences).better
    assert not certificate(-differences).better
    assert certificate(np.zeros(50)).upper == 0
    assert certificate(np.zeros(50), width=1.0).upper > 0


@pytest.mark.parametrize(
    "differences, options, message",
    [
        ([0.1], {}, "at least 2 held-out differences, got 1"),
        ([0.1, math.nan], {}, "1 of 2 differences are not finite"),
        ([0.1, 0.2], {"delta": 1.5}, "above 0 and below 1.*got 1.5"),
        ([0.0, 2.0], {"width": 1.0}, "span 2, more than the width 1"),
    ],
)
def test_what_cannot_be_certified_is_refused_in_one_line(differences, options, message):
    with pytest.raises(UserError, match=message) as raised:
        certificate(np.array(differences), **options)
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_bernstein_covers_any_tails_and_the_asymptotic_bound_does_not():
    covered = {(result["tails"], result["kind"]): result["covered"] for result in coverage((100,), 1000, seed=1)}
    assert all(share.low > 0.95 for (_, kind), share in covered.items() if kind == "empirical Bernstein")
    assert covered["normal", "asymptotic"].high > 0.95
    for tails in ("bounded, 1 in 100", "lognormal"):
        assert covered[tails, "asymptotic"].high < 0.8

"""Risks of few atoms against the engine's rules and against numbers by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steering.rules import KL, ChiSquare, CVaR
from steering.theory_checks.bound import atoms

VALUES = np.array([[0.0, 1.0]])
EVEN = np.array([[1, 1]])


def test_cvar_of_a_fractional_share_by_hand():
    """Of four samples 0, 0, 1, 1 the worst 3/4 are 1, 1, 0: mean 2/3; the worst 5/8 are 1, 1 and half a 0: 4/5."""
    counts = np.array([[2, 2]])
    assert atoms.cvar(VALUES, counts, 0.75)[0] == pytest.approx(2 / 3)
    assert atoms.cvar(VALUES, counts, 5 / 8)[0] == pytest.approx(4 / 5)


def test_balls_by_hand():
    """0 and 1 with rho = 1/4, n = 2: mean 1/2, sd 1/2, sqrt(2 rho / n) = 1/2, so 3/4.

    Weight 2 on one of two samples has divergence 1/2 (chi-square) or log 2 (KL), hence rho 1 or 2 log 2.
    """
    assert atoms.chi_square(VALUES, EVEN, 0.25)[0] == pytest.approx(0.75)
    assert atoms.interior(VALUES, EVEN, 0.25).all()
    assert atoms.chi_square(VALUES, EVEN, 1.01)[0] == pytest.approx(1)
    assert atoms.kl(VALUES, EVEN, 2 * np.log(2) + 0.01)[0] == pytest.approx(1)


tables = st.lists(st.tuples(st.floats(-3, 3), st.integers(0, 9)), min_size=2, max_size=8).filter(
    lambda rows: sum(count for _, count in rows) > 1
)


@given(tables, st.floats(0.05, 8))
def test_every_risk_is_that_of_the_engines_rule(table, rho):
    values = np.array([[round(value, 3) for value, _ in table]])  # not closer than rounding can tell apart
    counts = np.array([[count for _, count in table]])
    for risk, rule in ((atoms.chi_square, ChiSquare(rho=rho)), (atoms.kl, KL(rho=rho))):
        assert risk(values, counts, rho) == pytest.approx(atoms.by_rule(rule, values, counts), abs=1e-6)
    kept = rho / 8
    assert atoms.cvar(values, counts, kept) == pytest.approx(atoms.by_rule(CVaR(kept), values, counts), abs=1e-9)


@given(tables, st.floats(0.05, 8))
def test_the_chi_square_risk_lies_under_mean_and_deviation_and_meets_it_inside(table, rho):
    values, counts = np.array([[value for value, _ in table]]), np.array([[count for _, count in table]])
    robust, formula = atoms.chi_square(values, counts, rho), atoms.mean_and_deviation(values, counts, rho)
    assert (robust <= formula + 1e-7).all() and (robust >= atoms.mean(values, counts) - 1e-7).all()
    if atoms.interior(values, counts, rho * (1 + 1e-6)).all():
        assert robust == pytest.approx(formula, abs=1e-7)

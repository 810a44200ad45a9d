"""Every closed form against a general convex solver: the worst case over p, found by CVXPY and Clarabel.

The solver maximises p.v (minus the penalty) over the simplex (and the ball); the rule's weights over n must
be that p, and the risk computed from them its optimal value.
"""

from typing import Any

import cvxpy
import numpy
import pytest
import torch

from steering import KL, ChiSquare, CVaR

N = 40
CLOSE = 1e-5


def excess(seed: int) -> numpy.ndarray:
    """Losses of mixed sign, mean 0.3, ``[N]``."""
    return numpy.random.default_rng(seed).normal(0.3, 1.0, N)


def solve(values, rule) -> tuple[numpy.ndarray, float]:
    """The worst case p of a rule whose rho is a radius times N, and its value."""
    p = cvxpy.Variable(len(values), nonneg=True)
    constraints: list = [cvxpy.sum(p) == 1]
    if isinstance(rule, CVaR):
        constraints.append(p <= 1 / (rule.alpha * len(values)))
    elif rule.rho is not None and isinstance(rule, KL):
        constraints.append(divergence(rule, p) <= rule.rho / N)
    elif rule.rho is not None:  # the same as with the divergence, so written that the solver is precise
        constraints.append(cvxpy.norm(p.size * p - 1) <= (2 * p.size * rule.rho / N) ** 0.5)
    problem = cvxpy.Problem(cvxpy.Maximize(p @ values - penalty(rule, p)), constraints)
    problem.solve(solver="CLARABEL", tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
    assert problem.status == "optimal" and p.value is not None
    return p.value, problem.value  # type: ignore[return-value]


def divergence(rule, p):
    if isinstance(rule, KL):
        return cvxpy.sum(-cvxpy.entr(p)) + numpy.log(p.size)
    return cvxpy.sum_squares(p.size * p - 1) / (2 * p.size)


def penalty(rule, p):
    return rule.temperature * divergence(rule, p) if getattr(rule, "temperature", None) else 0.0


def ours(rule, values) -> numpy.ndarray:
    """The rule's p; the population is the row, so that rho / n is a radius in its own right."""
    row = torch.tensor(values)[None]
    dual = rule.dual(row, torch.ones_like(row, dtype=torch.bool), len(values))
    return (rule.weights(row, dual)[0] / len(values)).numpy()


@pytest.mark.parametrize(
    "rule",
    [
        *(KL(temperature=temperature) for temperature in (0.2, 1.0, 5.0)),
        *(KL(rho=radius * N) for radius in (1e-3, 0.1, 2.5)),
        *(CVaR(alpha=alpha) for alpha in (0.01, 0.1, 1 / 3, 0.5, 0.99, 1.0)),  # a fractional alpha N too
        *(ChiSquare(temperature=temperature) for temperature in (0.05, 0.5, 20.0)),
        *(ChiSquare(rho=radius * N) for radius in (1e-3, 0.02, 0.3, 10.0)),
    ],
    ids=repr,
)
def test_a_rule_is_the_worst_case(rule):
    for seed in (0, 1):
        values = excess(seed)
        expected, risk = solve(values, rule)
        p = ours(rule, values)
        assert p == pytest.approx(expected, abs=CLOSE)
        value: Any = penalty(rule, cvxpy.Constant(p))
        assert p @ values - getattr(value, "value", value) == pytest.approx(risk, abs=CLOSE)
        if isinstance(rule, KL) and rule.temperature:
            row = torch.tensor(values)[None]
            dual = rule.dual(row, torch.ones_like(row, dtype=torch.bool))
            assert float(dual) == pytest.approx(risk, abs=CLOSE), "the dual is the risk"
        if isinstance(rule, ChiSquare) and rule.rho:
            assert (p.min() > 0) == (rule.rho < 0.1 * N), "small radii are interior, large ones switch entries off"


@pytest.mark.parametrize("rule", [KL(rho=10 * N), ChiSquare(rho=100 * N)], ids=repr)
def test_a_ball_that_holds_the_whole_simplex_leaves_the_largest_entry_alone(rule):
    values = excess(0)
    p = ours(rule, values)
    assert p[values.argmax()] == pytest.approx(1, abs=1e-6)
    assert p @ values == pytest.approx(values.max(), abs=CLOSE)


@pytest.mark.parametrize("alpha", [0.1, 0.33, 0.7])
def test_cvar_with_ties_has_the_value_of_the_worst_case_and_stays_inside_the_ball(alpha):
    """With ties p is not unique: ours must be allowed and reach the same value."""
    values = excess(0).round()
    _, risk = solve(values, CVaR(alpha=alpha))
    p = ours(CVaR(alpha=alpha), values)
    assert p @ values == pytest.approx(risk, abs=CLOSE)
    assert p.sum() == pytest.approx(1)
    assert 0 <= p.min() and p.max() <= 1 / (alpha * N) + 1e-12
    for value in numpy.unique(values):
        assert numpy.ptp(p[values == value]) < 1e-12, "equal entries weigh the same"


@pytest.mark.parametrize("rule", [KL(rho=0.3 * N), CVaR(alpha=0.37), ChiSquare(rho=0.4 * N)], ids=repr)
def test_a_masked_row_is_the_worst_case_over_what_counts(rule):
    values = excess(5)
    counted = numpy.random.default_rng(6).random(N) < 0.5
    row, mask = torch.tensor(values)[None], torch.tensor(counted)[None]
    p = rule.weights(row, rule.dual(row, mask, N))[0, counted].numpy() / counted.sum()
    assert p == pytest.approx(solve(values[counted], rule)[0], abs=CLOSE)

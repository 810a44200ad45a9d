"""Every closed form against a general convex solver: the worst case over p, found by CVXPY and Clarabel.

The solver maximises p.v (minus the penalty) over the simplex (and the ball); the rule's weights over n must
be that p, and the risk computed from them its optimal value.
"""

import cvxpy
import numpy
import pytest
import torch

from steering import KL, ChiSquare, CVaR

N = 40
SEEDS = (0, 1, 2)
CLOSE = 1e-5


def excess(seed: int) -> numpy.ndarray:
    """Losses of mixed sign, mean 0.3, ``[N]``."""
    return numpy.random.default_rng(seed).normal(0.3, 1.0, N)


def solve(values, constraints=lambda p: [], penalty=lambda p: 0.0) -> tuple[numpy.ndarray, float]:
    """The worst case p and its value."""
    p = cvxpy.Variable(len(values), nonneg=True)
    simplex: list = [cvxpy.sum(p) == 1]
    problem = cvxpy.Problem(cvxpy.Maximize(p @ values - penalty(p)), simplex + constraints(p))
    problem.solve(solver="CLARABEL", tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
    assert problem.status == "optimal" and p.value is not None
    return p.value, number(problem.value)


def number(value) -> float:
    """A number of the solver's as a float."""
    return float(value)


def ours(rule, values) -> numpy.ndarray:
    """The rule's p; the population is the row, so that rho / n is a radius in its own right."""
    row = torch.tensor(values)[None]
    dual = rule.dual(row, torch.ones_like(row, dtype=torch.bool), len(values))
    return (rule.weights(row, dual)[0] / len(values)).numpy()


def divergence_kl(p):
    return cvxpy.sum(-cvxpy.entr(p)) + numpy.log(p.size)


def divergence_chi_square(p):
    return cvxpy.sum_squares(p.size * p - 1) / (2 * p.size)


def in_chi_square_ball(p, radius):
    """The same as ``divergence_chi_square(p) <= radius``, so written that the solver is precise."""
    return [cvxpy.norm(p.size * p - 1) <= (2 * p.size * radius) ** 0.5]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("temperature", [0.2, 1.0, 5.0])
def test_kl_penalised_is_the_worst_case(temperature, seed):
    values = excess(seed)
    wanted, risk = solve(values, penalty=lambda p: temperature * divergence_kl(p))
    p = ours(KL(temperature=temperature), values)
    assert p == pytest.approx(wanted, abs=CLOSE)
    penalty = temperature * number(divergence_kl(cvxpy.Constant(p)).value)
    assert p @ values - penalty == pytest.approx(risk, abs=CLOSE)
    row = torch.tensor(values)[None]
    dual = KL(temperature=temperature).dual(row, torch.ones_like(row, dtype=torch.bool))
    assert float(dual) == pytest.approx(risk, abs=CLOSE), "the dual is the risk"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("radius", [1e-3, 0.1, 1.0, 2.5])
def test_kl_constrained_is_the_worst_case(radius, seed):
    values = excess(seed)
    wanted, risk = solve(values, constraints=lambda p: [divergence_kl(p) <= radius])
    p = ours(KL(rho=radius * N), values)
    assert p == pytest.approx(wanted, abs=CLOSE)
    assert p @ values == pytest.approx(risk, abs=CLOSE)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rule", [KL(rho=10 * N), ChiSquare(rho=100 * N)], ids=repr)
def test_a_ball_that_holds_the_whole_simplex_leaves_the_largest_entry_alone(rule, seed):
    values = excess(seed)
    p = ours(rule, values)
    assert p[values.argmax()] == pytest.approx(1, abs=1e-6)
    assert p @ values == pytest.approx(values.max(), abs=CLOSE)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.3, 1 / 3, 0.5, 0.99, 1.0])
def test_cvar_is_the_worst_case_also_when_alpha_n_is_fractional(alpha, seed):
    values = excess(seed)
    wanted, risk = solve(values, constraints=lambda p: [p <= 1 / (alpha * N)])
    p = ours(CVaR(alpha=alpha), values)
    assert p == pytest.approx(wanted, abs=CLOSE)
    assert p @ values == pytest.approx(risk, abs=CLOSE)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("alpha", [0.1, 0.33, 0.7])
def test_cvar_with_ties_has_the_value_of_the_worst_case_and_stays_inside_the_ball(alpha, seed):
    """With ties p is not unique: ours must be allowed and reach the same value."""
    values = excess(seed).round()
    _, risk = solve(values, constraints=lambda p: [p <= 1 / (alpha * N)])
    p = ours(CVaR(alpha=alpha), values)
    assert p @ values == pytest.approx(risk, abs=CLOSE)
    assert p.sum() == pytest.approx(1)
    assert 0 <= p.min() and p.max() <= 1 / (alpha * N) + 1e-12
    for value in numpy.unique(values):
        assert numpy.ptp(p[values == value]) < 1e-12, "equal entries weigh the same"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("radius", [1e-3, 0.02, 0.3, 2.0, 10.0])
def test_chi_square_constrained_is_the_worst_case_inside_and_on_the_boundary(radius, seed):
    values = excess(seed)
    wanted, risk = solve(values, constraints=lambda p: in_chi_square_ball(p, radius))
    p = ours(ChiSquare(rho=radius * N), values)
    assert p == pytest.approx(wanted, abs=CLOSE)
    assert p @ values == pytest.approx(risk, abs=CLOSE)
    assert (p.min() > 0) == (radius < 0.1), "small radii are interior, large ones switch entries off"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("temperature", [0.05, 0.5, 2.0, 20.0])
def test_chi_square_penalised_is_the_worst_case(temperature, seed):
    values = excess(seed)
    wanted, risk = solve(values, penalty=lambda p: temperature * divergence_chi_square(p))
    p = ours(ChiSquare(temperature=temperature), values)
    assert p == pytest.approx(wanted, abs=CLOSE)
    penalty = temperature * number(divergence_chi_square(cvxpy.Constant(p)).value)
    assert p @ values - penalty == pytest.approx(risk, abs=CLOSE)


@pytest.mark.parametrize("rule", [KL(rho=0.3 * N), CVaR(alpha=0.37), ChiSquare(rho=0.4 * N)], ids=repr)
def test_a_masked_row_is_the_worst_case_over_what_counts(rule):
    values = excess(5)
    counted = numpy.random.default_rng(6).random(N) < 0.5
    row, mask = torch.tensor(values)[None], torch.tensor(counted)[None]
    p = rule.weights(row, rule.dual(row, mask, N))[0, counted].numpy() / counted.sum()
    few = values[counted]
    ball = {
        KL: lambda p: [divergence_kl(p) <= 0.3],
        CVaR: lambda p: [p <= 1 / (0.37 * len(few))],
        ChiSquare: lambda p: in_chi_square_ball(p, 0.4),
    }
    wanted, _ = solve(few, constraints=ball[type(rule)])
    assert p == pytest.approx(wanted, abs=CLOSE)

"""Divergences to given weights q in place of uniform ones: every rule, by counting and against a convex solver."""

import cvxpy
import numpy
import pytest
import torch

from steering import KL, ChiSquare, CVaR, Individual, Uniform

RULES = [
    KL(temperature=0.5),
    KL(temperature=0.5, epsilon=0.1),
    KL(rho=6),
    CVaR(alpha=0.3),
    CVaR(alpha=1.0),
    ChiSquare(temperature=0.7),
    ChiSquare(rho=12),
    Individual(radius=1.0),
    Uniform(),
]


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_an_entry_of_weight_two_is_like_two_entries(rule):
    generator = torch.Generator().manual_seed(0)
    excess = torch.randn(3, 12, dtype=torch.float64, generator=generator)
    excess[0, 3] = excess[0, 4]  # a tie
    counts = torch.randint(0, 4, (3, 12), generator=generator)
    counts[2] = 0  # an empty row
    width = int(counts.sum(-1).max())
    repeated = torch.zeros(3, width, dtype=torch.float64)
    mask = torch.zeros(3, width, dtype=torch.bool)
    for row in range(3):
        entries = excess[row].repeat_interleave(counts[row])
        repeated[row, : len(entries)], mask[row, : len(entries)] = entries, True
    population = mask.sum(-1, keepdim=True).clamp(min=1).double()
    by_counting = rule.dual(repeated, mask, population)
    dual = rule.dual(excess, counts.double(), population)
    assert torch.allclose(dual[:2], by_counting[:2], rtol=0, atol=1e-9)
    assert dual[2].isfinite().all() or isinstance(rule, Individual)
    weights = rule.weights(excess, dual)[:2]
    expected = rule.weights(repeated, by_counting)[:2]
    sums = [(weights * counts[:2] * excess[:2]).sum(-1), (expected * repeated[:2] * mask[:2]).sum(-1)]
    assert torch.allclose(*sums, rtol=1e-9)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_the_unit_of_base_weights_does_not_matter(rule):
    excess = torch.randn(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    base = torch.rand(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(rule.dual(excess, base, 9), rule.dual(excess, 7 * base, 9), rtol=1e-9, atol=1e-9)


def worst_case(values, constraints=lambda p: [], penalty=lambda p: 0.0):
    p = cvxpy.Variable(len(values), nonneg=True)
    limits: list = [cvxpy.sum(p) == 1, *constraints(p)]
    problem = cvxpy.Problem(cvxpy.Maximize(p @ values - penalty(p)), limits)
    problem.solve(solver="CLARABEL", tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
    return p.value


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", ["kl penalised", "kl ball", "chi_square penalised", "chi_square ball", "cvar"])
def test_weights_are_the_worst_case_for_a_divergence_to_q(kind, seed):
    chance = numpy.random.default_rng(seed)
    values, q = chance.normal(0.3, 1.0, 30), chance.dirichlet(numpy.ones(30))

    def kl(p):
        return cvxpy.sum(cvxpy.rel_entr(p, q))

    def chi_square(p):
        return cvxpy.sum(cvxpy.multiply(cvxpy.square(p / q - 1), q)) / 2

    rule, expected = {
        "kl penalised": lambda: (KL(temperature=0.6), worst_case(values, penalty=lambda p: 0.6 * kl(p))),
        "kl ball": lambda: (KL(rho=0.4), worst_case(values, lambda p: [kl(p) <= 0.4])),
        "chi_square penalised": lambda: (
            ChiSquare(temperature=0.6),
            worst_case(values, penalty=lambda p: 0.6 * chi_square(p)),
        ),
        "chi_square ball": lambda: (ChiSquare(rho=0.4), worst_case(values, lambda p: [chi_square(p) <= 0.4])),
        "cvar": lambda: (CVaR(alpha=0.3), worst_case(values, lambda p: [p <= q / 0.3])),
    }[kind]()
    row = torch.tensor(values)[None]
    ours = rule.weights(row, rule.dual(row, torch.tensor(q)[None], 1))[0].numpy() * q
    assert ours == pytest.approx(expected, abs=2e-5)

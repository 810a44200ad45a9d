"""KL, CVaR and chi-square on rows that can be worked out on paper, and what they refuse."""

import math

import pytest
import torch

from steering import KL, ChiSquare, CVaR, UserError

ALL = torch.ones(1, 2, dtype=torch.bool)
KINDS = [(KL, "kl"), (ChiSquare, "chi_square")]


def row(*values, dtype=torch.float64):
    return torch.tensor([values], dtype=dtype)


def weights(rule, excess, population=None):
    return rule.weights(excess, rule.dual(excess, torch.ones_like(excess, dtype=torch.bool), population))


def kl_of_a_half_and_three_halves() -> float:
    return (0.5 * math.log(0.5) + 1.5 * math.log(1.5)) / 2


BY_HAND = [  # rule, excess, population, weights
    # mean exp = (1 + 3) / 2 = 2.
    (KL(temperature=1.0), (0.0, math.log(3)), None, [0.5, 1.5]),
    # Weights of this KL, at temperature 1 / log 3.
    (KL(rho=10 * kl_of_a_half_and_three_halves()), (0.0, 1.0), 10, [0.5, 1.5]),
    # The mean of the exponentials is 1, with epsilon 4; far above the reference epsilon drowns.
    (KL(temperature=0.1, epsilon=3), (0.0, 0.0), None, [0.25, 0.25]),
    (KL(temperature=0.1, epsilon=3), (9.0, 9.0), None, [1, 1]),
    # All weights positive: 1 + (excess - mean) / 2.
    (ChiSquare(temperature=2.0), (-1.0, 0.0, 1.0), None, [0.5, 1, 1.5]),
    # The first would weigh less than nothing: (3 - c) + (4 - c) = 3 gives the cut c = 2.
    (ChiSquare(temperature=1.0), (0.0, 3.0, 4.0), None, [0, 1, 2]),
    # Radius 1/8: D = mean (w - 1)^2 / 2 = 1/8 needs weights 1 -+ 1/2.
    (ChiSquare(rho=1), (-1.0, 1.0), 8, [0.5, 1.5]),
    # Weights 0, 1, 2 have D = (1 + 0 + 1) / 6 = 1/3.
    (ChiSquare(rho=1), (0.0, 3.0, 4.0), 3, [0, 1, 2]),
    # Half of 4: the two largest. 3/8 of 4 is 1.5: the largest weighs 8/3, the second what is left of 4.
    (CVaR(alpha=0.5), (3.0, -1.0, 2.0, 0.0), None, [2, 0, 2, 0]),
    (CVaR(alpha=0.375), (3.0, -1.0, 2.0, 0.0), None, [8 / 3, 0, 4 / 3, 0]),
    # Two that tie at the quantile share its weight; less than one entry is the largest; all is the plain average.
    (CVaR(alpha=0.5), (1.0, 3.0, 1.0, 0.0), None, [1, 2, 1, 0]),
    (CVaR(alpha=0.01), (3.0, -1.0, 2.0, 0.0), None, [4, 0, 0, 0]),
    (CVaR(alpha=1), (3.0, -1.0, 2.0, 0.0), None, [1, 1, 1, 1]),
]


@pytest.mark.parametrize(("rule", "excess", "population", "expected"), BY_HAND, ids=repr)
def test_weights_by_hand(rule, excess, population, expected):
    assert weights(rule, row(*excess), population)[0].tolist() == pytest.approx(expected)


def test_duals_by_hand():
    """The log of the mean exponential; cut and slope; temperature; a small radius: sqrt(Var / (2 radius))."""
    assert float(KL(temperature=1.0).dual(row(0.0, math.log(3)), ALL).exp()) == pytest.approx(2)
    cut = ChiSquare(temperature=1.0).dual(row(0.0, 3.0, 4.0), torch.ones(1, 3, dtype=torch.bool))
    assert cut[0].tolist() == pytest.approx([2, 1])
    dual = KL(rho=10 * kl_of_a_half_and_three_halves()).dual(row(0.0, 1.0), ALL, 10)
    assert float(dual[0, 1]) == pytest.approx(1 / math.log(3))
    excess = torch.randn(1, 5000, dtype=torch.float64)
    small = KL(rho=0.005).dual(excess, torch.ones_like(excess, dtype=torch.bool), 5000)
    assert float(small[0, 1]) == pytest.approx(float((excess.var(correction=0) / 2e-6).sqrt()), rel=1e-2)
    assert not KL(temperature=0.1, epsilon=3).normalised


def test_duals_are_averaged_as_exponentials_and_constrained_ones_number_by_number():
    """Temperature 2, duals 2 log 1 and 2 log 5, gamma 1/4: 3/4 * 1 + 1/4 * 5 = 2, the dual is 2 log 2."""
    blended = KL(temperature=2.0).blend(2 * row(1.0).log(), 2 * row(5.0).log(), 0.25)
    assert float((blended / 2).exp()) == pytest.approx(2)
    assert KL(rho=1).blend(row(0.0, 1.0), row(4.0, 3.0), 0.5).tolist() == [[2, 2]]


def test_a_dual_remembered_from_easier_times_weighs_at_most_entries_over_gamma():
    """The old dual lies far below: mean weights explode, but never beyond n / gamma."""
    rule, excess = KL(temperature=0.01), row(5.0, 6.0)
    dual = rule.blend(row(-100.0), rule.dual(excess, ALL), 0.1)
    assert float(rule.weights(excess, dual).max()) == pytest.approx(2 / 0.1)


@pytest.mark.parametrize("radius", [1e-9, 1e-3, 0.02])
def test_inside_the_risk_is_mean_plus_standard_deviation(radius):
    """mean + sqrt(2 rho / n) * standard deviation (Namkoong and Duchi 2017); penalised, + variance / 2 temperature."""
    excess = torch.randn(1, 200, dtype=torch.float64)
    risk = (weights(ChiSquare(rho=radius * 200), excess, 200) * excess).mean()
    expected = excess.mean() + (2 * radius) ** 0.5 * excess.std(correction=0)
    assert float(risk) == pytest.approx(float(expected), rel=1e-10)
    penalised = weights(ChiSquare(temperature=10.0), excess)
    risk = (penalised * excess).mean() - 10 * (penalised - 1).square().mean() / 2
    assert float(risk) == pytest.approx(float(excess.mean() + excess.var(correction=0) / 20), rel=1e-10)


def test_the_effective_sample_size_follows_from_the_radius():
    """n / (1 + 2 rho / n) entries, in the interior and beyond: 1 / (1 + 2 * 0.5) = 1/2 of them here."""
    weight = weights(ChiSquare(rho=50), torch.randn(1, 400, dtype=torch.float64), 100)
    assert float(weight.sum() ** 2 / weight.square().sum() / 400) == pytest.approx(0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha, n", [(0.1, 30), (0.3, 10_000), (1 / 3, 3)])
def test_a_share_that_is_an_integer_in_exact_arithmetic_keeps_that_many(alpha, n, dtype):
    """0.1 * 30 = 3.0000000000000004 in floating point; three entries weigh ten each."""
    weight = weights(CVaR(alpha), row(*range(n), dtype=dtype))
    assert int((weight > 1e-3).sum()) == round(alpha * n)
    assert float(weight.mean()) == pytest.approx(1, abs=1e-6)


def test_the_entry_at_the_quantile_never_outweighs_a_larger_one():
    """0.30000001 * 10000 = 3000.0001, which float32 would round to 3000: one entry too few above the quantile."""
    weight = weights(CVaR(0.30000001), row(*range(10_000)))[0].tolist()
    assert max(weight) <= (1 / 0.30000001) * (1 + 1e-9)
    assert sorted(weight)[-3001] == pytest.approx(1e-4 / 0.30000001, rel=1e-3)
    assert float(weights(CVaR(0.37), torch.randn(1, 1001, dtype=torch.float64)).mean()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    "rule, arguments, message",
    [
        *((kind, {}, f"{name} takes either a temperature .* or rho .*, got neither") for kind, name in KINDS),
        *((kind, {"temperature": 1.0, "rho": 1.0}, "got both") for kind, _ in KINDS),
        *((kind, {"temperature": -1.0}, f"{name} needs a temperature above 0, got -1") for kind, name in KINDS),
        *((kind, {"rho": 0.0}, f"{name} needs a rho above 0, got 0") for kind, name in KINDS),
        (KL, {"temperature": math.inf}, "kl needs a temperature above 0, got inf"),
        (KL, {"rho": math.nan}, "kl needs a rho above 0, got nan"),
        (KL, {"temperature": 1.0, "epsilon": -1e-3}, "kl needs an epsilon of at least 0, got -0.001"),
        (KL, {"rho": 1.0, "epsilon": 1e-3}, "kl takes epsilon only with a fixed temperature, got rho and epsilon"),
        *(
            (CVaR, {"alpha": alpha}, "cvar needs an alpha above 0 and at most 1, got")
            for alpha in (0.0, 1.01, math.nan)
        ),
    ],
)
def test_a_wrong_argument_is_explained(rule, arguments, message):
    with pytest.raises(UserError, match=message):
        rule(**arguments)


@pytest.mark.parametrize("kind, name", KINDS)
def test_a_radius_without_n_says_where_n_goes(kind, name):
    with pytest.raises(UserError, match=rf"{name}\(rho=3\) has a radius of rho / n and needs n.*population=n"):
        weights(kind(rho=3), row(0.0, 1.0))

import pytest
import torch

from steering import ChiSquare, UserError


def row(*values):
    return torch.tensor([values], dtype=torch.float64)


def weights(rule, excess, population=None):
    return rule.weights(excess, rule.dual(excess, torch.ones_like(excess, dtype=torch.bool), population))


def test_a_penalised_row_by_hand():
    """Excess -1, 0, 1 at temperature 2, all weights positive: 1 + (excess - mean) / 2 = 1/2, 1, 3/2."""
    found = weights(ChiSquare(temperature=2.0), row(-1.0, 0.0, 1.0))
    assert found[0].tolist() == pytest.approx([0.5, 1, 1.5])


def test_a_penalised_row_with_an_entry_switched_off_by_hand():
    """Excess 0, 3, 4 at temperature 1: the first would weigh less than nothing. (3 - c) + (4 - c) = 3 gives
    the cut c = 2 and the weights 0, 1, 2."""
    dual = ChiSquare(temperature=1.0).dual(row(0.0, 3.0, 4.0), torch.ones(1, 3, dtype=torch.bool))
    assert dual[0].tolist() == pytest.approx([2, 1]), "cut and slope"
    assert weights(ChiSquare(temperature=1.0), row(0.0, 3.0, 4.0))[0].tolist() == pytest.approx([0, 1, 2])


def test_a_constrained_row_by_hand():
    """Excess -1 and 1, radius 1/8: D = mean (w - 1)^2 / 2 = 1/8 needs weights 1 -+ 1/2."""
    assert weights(ChiSquare(rho=1), row(-1.0, 1.0), 8)[0].tolist() == pytest.approx([0.5, 1.5])


def test_a_constrained_row_with_an_entry_switched_off_by_hand():
    """Weights 0, 1, 2 have D = (1 + 0 + 1) / 6 = 1/3, so that radius turns excess 0, 3, 4 into them."""
    assert weights(ChiSquare(rho=1), row(0.0, 3.0, 4.0), 3)[0].tolist() == pytest.approx([0, 1, 2])


@pytest.mark.parametrize("radius", [1e-9, 1e-5, 1e-3, 0.02])
def test_inside_the_risk_is_mean_plus_standard_deviation(radius):
    """mean + sqrt(2 rho / n) * standard deviation, exactly (Namkoong and Duchi 2017)."""
    excess = torch.randn(1, 200, dtype=torch.float64)
    risk = (weights(ChiSquare(rho=radius * 200), excess, 200) * excess).mean()
    wanted = excess.mean() + (2 * radius) ** 0.5 * excess.std(correction=0)
    assert float(risk) == pytest.approx(float(wanted), rel=1e-10)


def test_inside_the_penalised_risk_is_mean_plus_half_the_variance_over_the_temperature():
    excess = torch.randn(1, 200, dtype=torch.float64)
    found = weights(ChiSquare(temperature=10.0), excess)
    risk = (found * excess).mean() - 10 * (found - 1).square().mean() / 2
    assert float(risk) == pytest.approx(float(excess.mean() + excess.var(correction=0) / 20), rel=1e-10)


def test_the_effective_sample_size_is_told_by_the_radius():
    """n / (1 + 2 rho / n) entries, in the interior and beyond: 1 / (1 + 2 * 0.5) = 1/2 of them here."""
    found = weights(ChiSquare(rho=50), torch.randn(1, 400, dtype=torch.float64), 100)
    assert float(found.sum() ** 2 / found.square().sum() / 400) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, r"chi_square takes either a temperature .* or rho .*, got neither"),
        ({"temperature": 1.0, "rho": 1.0}, "got both"),
        ({"temperature": -1.0}, "chi_square needs a temperature above 0, got -1"),
        ({"rho": 0.0}, "chi_square needs a rho above 0, got 0"),
    ],
)
def test_a_wrong_argument_is_explained(arguments, message):
    with pytest.raises(UserError, match=message):
        ChiSquare(**arguments)


def test_a_radius_without_n_says_where_n_goes():
    with pytest.raises(UserError, match=r"chi_square\(rho=3\) has a radius of rho / n.*population=n"):
        weights(ChiSquare(rho=3), row(0.0, 1.0))

import pytest
import torch

from steering import KL, UserError

ALL = torch.ones(1, 2, dtype=torch.bool)


def row(*values, dtype=torch.float64):
    return torch.tensor([values], dtype=dtype)


def test_a_penalised_row_of_two_by_hand():
    """Excess 0 and log 3 at temperature 1: mean exp = (1 + 3) / 2 = 2, so the dual is log 2 and the
    weights are 1 / 2 and 3 / 2."""
    excess = row(0.0, 3.0).clamp(min=1).log()
    dual = KL(temperature=1.0).dual(excess, ALL)
    assert float(dual.exp()) == pytest.approx(2)
    assert KL(temperature=1.0).weights(excess, dual)[0].tolist() == pytest.approx([0.5, 1.5])


def test_a_constrained_row_of_two_by_hand():
    """Weights 1 / 2 and 3 / 2 have KL = (0.5 log 0.5 + 1.5 log 1.5) / 2 = 0.1308; with that radius the
    excess 0 and 1 must come out as these weights, at temperature 1 / log 3."""
    rho = (0.5 * torch.tensor(0.5).double().log() + 1.5 * torch.tensor(1.5).double().log()).item() / 2
    rule = KL(rho=rho * 10)
    dual = rule.dual(row(0.0, 1.0), ALL, 10)
    assert rule.weights(row(0.0, 1.0), dual)[0].tolist() == pytest.approx([0.5, 1.5])
    assert float(dual[0, 1]) == pytest.approx(1 / float(torch.tensor(3.0).double().log()))


def test_a_small_radius_has_the_temperature_of_the_variance():
    """t -> sqrt(Var / (2 radius)) as the radius shrinks; here 1e-6."""
    excess = torch.randn(1, 5000, dtype=torch.float64)
    dual = KL(rho=0.005).dual(excess, torch.ones_like(excess, dtype=torch.bool), 5000)
    assert float(dual[0, 1]) == pytest.approx(float((excess.var(correction=0) / 2e-6).sqrt()), rel=1e-2)


def test_epsilon_is_added_to_the_mean_of_the_exponentials():
    """Excess 0 and 0 at temperature 0.1: the mean is 1, with epsilon 3 it is 4 and both weigh 1 / 4. The
    temperature changes nothing there, and far above the reference epsilon drowns."""
    rule = KL(temperature=0.1, epsilon=3)
    for value, weight in ((0.0, 0.25), (9.0, 1)):
        found = rule.weights(row(value, value), rule.dual(row(value, value), ALL))
        assert found[0].tolist() == pytest.approx([weight, weight])
    assert not rule.normalised


def test_levels_are_averaged_as_exponentials():
    """Temperature 2, duals 2 log 1 and 2 log 5, gamma 1/4: 3/4 * 1 + 1/4 * 5 = 2, the dual is 2 log 2."""
    old, new = 2 * row(1.0).log(), 2 * row(5.0).log()
    blended = KL(temperature=2.0).blend(old, new, 0.25)
    assert float((blended / 2).exp()) == pytest.approx(2)


def test_a_constrained_level_is_averaged_number_by_number():
    """[0, 1] and [4, 3] at gamma 1/2 give [2, 2]."""
    assert KL(rho=1).blend(row(0.0, 1.0), row(4.0, 3.0), 0.5).tolist() == [[2, 2]]


def test_a_level_remembered_from_easier_times_weighs_at_most_entries_over_rate():
    """The old dual lies far below: mean weights explode, but never beyond n / gamma."""
    rule = KL(temperature=0.01)
    excess = row(5.0, 6.0)
    dual = rule.blend(row(-100.0), rule.dual(excess, ALL), 0.1)
    assert float(rule.weights(excess, dual).max()) == pytest.approx(2 / 0.1)


@pytest.mark.parametrize("size", [200.0, -200.0])
def test_exponents_of_thousands_do_not_overflow(size):
    """Excess +-200 at temperature 0.01 is an exponent of 20000."""
    for dtype in (torch.float32, torch.float64):
        rule, excess = KL(temperature=0.01), row(size, 0.0, -size, dtype=dtype)
        weights = rule.weights(excess, rule.dual(excess, torch.ones_like(excess, dtype=torch.bool)))
        assert weights.max() == pytest.approx(3) and float(weights.sum()) == pytest.approx(3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, r"kl takes either a temperature .* or rho .*, got neither"),
        ({"temperature": 1.0, "rho": 1.0}, "got both"),
        ({"temperature": 0.0}, "kl needs a temperature above 0, got 0"),
        ({"temperature": float("inf")}, "kl needs a temperature above 0, got inf"),
        ({"rho": -1.0}, "kl needs a rho above 0, got -1"),
        ({"rho": float("nan")}, "kl needs a rho above 0, got nan"),
        ({"temperature": 1.0, "epsilon": -1e-3}, "kl needs an epsilon of at least 0, got -0.001"),
        (
            {"rho": 1.0, "epsilon": 1e-3},
            "kl takes epsilon only with a fixed temperature, got rho and epsilon",
        ),
    ],
)
def test_a_wrong_argument_is_explained(arguments, message):
    with pytest.raises(UserError, match=message):
        KL(**arguments)


def test_a_radius_without_n_says_where_n_goes():
    with pytest.raises(UserError, match=r"kl\(rho=3\) has a radius of rho / n and needs n.*population=n"):
        KL(rho=3).dual(row(0.0, 1.0), ALL, None)

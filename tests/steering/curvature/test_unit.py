"""The exact facts of the curvature unit, with automatic differentiation and quadrature as judges."""

import doctest
import math

import pytest
import torch
from scipy.integrate import quad
from torch import nn

from steering.curvature import CurvatureUnit, set_beta, unit, units
from steering.errors import UserError

BETAS = [0.5, 0.99]


def phi(x: float, beta: float, coefficient: float = 0.5) -> float:
    """The formula, as it is written."""
    t = 1 - beta
    swish = x / (1 + math.exp(-beta * x / t)) if -beta * x / t < 700 else 0.0
    return coefficient * swish + (1 - coefficient) * t * float(torch.logaddexp(torch.tensor(0.0), torch.tensor(x / t)))


def test_the_examples_in_the_documentation_are_right():
    assert doctest.testmod(unit).failed == 0


@pytest.mark.parametrize("beta", [0.0, *BETAS])
@pytest.mark.parametrize("coefficient", [0.3, 1.0])
def test_a_unit_is_its_formula(beta, coefficient):
    x = torch.linspace(-4, 4, 81, dtype=torch.double)
    expected = torch.tensor([phi(float(value), beta, coefficient) for value in x], dtype=torch.double)
    assert torch.allclose(CurvatureUnit(beta, coefficient)(x), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_at_beta_one_a_unit_is_relu_to_the_bit(dtype):
    x = torch.tensor([-1e4, -1.0, -0.0, 0.0, 1e-30, 3.0, 6e4]).to(dtype)
    assert torch.equal(CurvatureUnit(1.0)(x), torch.relu(x))


@pytest.mark.parametrize("beta", BETAS)
def test_a_unit_is_farthest_from_relu_at_zero_by_half_of_one_minus_beta_times_ln_2(beta):
    x = torch.linspace(-20, 20, 400_001, dtype=torch.double)
    distance = (CurvatureUnit(beta)(x) - x.relu()).abs()
    assert float(distance.max()) == pytest.approx(0.5 * (1 - beta) * math.log(2), rel=1e-12)
    assert float(x[distance.argmax()].abs()) < 1e-9


@pytest.mark.parametrize(("beta", "c"), [(0.5, 0.2), (0.9, 0.5), (0.99, 0.9)])
def test_the_second_derivative_at_zero_is_c_beta_over_2_plus_1_minus_c_over_4_all_over_1_minus_beta(beta, c):
    x = torch.zeros((), dtype=torch.double, requires_grad=True)
    (slope,) = torch.autograd.grad(CurvatureUnit(beta, c)(x), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, x)
    assert float(slope.detach()) == pytest.approx(0.5, rel=1e-12)
    assert float(curvature) == pytest.approx((c * beta / 2 + (1 - c) / 4) / (1 - beta), rel=1e-9)


@pytest.mark.parametrize(("beta", "c"), [(0.5, 0.0), (0.7, 0.5), (0.9, 1.0)])
def test_the_halves_of_a_unit_shift_the_mean_in_opposite_directions(beta, c):
    """The area between unit and ReLU is pi^2 / 6 ((1 - c) (1 - beta)^2 - c ((1 - beta) / beta)^2)."""
    smooth = CurvatureUnit(beta, c)

    def difference(x: float) -> float:
        return float(smooth(torch.tensor(x, dtype=torch.double))) - max(x, 0.0)

    area = 2 * quad(difference, 0, 60 * (1 - beta) / beta, limit=200)[0]  # the difference is even
    expected = math.pi**2 / 6 * ((1 - c) * (1 - beta) ** 2 - c * ((1 - beta) / beta) ** 2)
    assert area == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("beta", [1 - 1e-7, 1 - 1e-15])
def test_near_beta_one_values_and_gradients_are_finite(beta):
    x = torch.tensor([-1e6, -1.0, 0.0, 1.0, 1e6], requires_grad=True)
    out = CurvatureUnit(beta)(x)
    out.sum().backward()
    assert torch.allclose(out, x.relu(), atol=1e-6)
    assert x.grad is not None and x.grad.tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
    learned = CurvatureUnit(0.9, trainable=True)
    with torch.no_grad():
        learned.beta_logit.fill_(200.0)
    out = learned(x.detach()[1:4])
    out.sum().backward()
    assert torch.allclose(out, x[1:4].relu(), atol=1e-30)
    assert all(parameter.grad is not None and parameter.grad.isfinite() for parameter in learned.parameters())


def test_half_precision_is_computed_in_single_and_double_precision_is_kept():
    x = torch.tensor([-300.0, -1.0, 0.0, 1.0, 300.0])
    unit = CurvatureUnit(1 - 1e-4)
    assert unit(x.half()).dtype == torch.float16
    assert torch.equal(unit(x.half()), unit(x).half())
    expected = 0.15 / (1 + math.exp(-2.7)) + 0.05 * math.log1p(math.exp(3))
    assert float(CurvatureUnit(0.9)(torch.tensor([0.3], dtype=torch.double))) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(("shape", "axis"), [((2, 3, 4, 4), 1), ((2, 5, 3), -1)])
def test_every_channel_has_values_of_its_own(shape, axis):
    learned = CurvatureUnit(0.8, channels=3, trainable=True)
    with torch.no_grad():
        learned.beta_logit.copy_(torch.tensor([-1.0, 0.0, 2.0]))
    x = torch.randn(shape)
    for channel, beta in enumerate(torch.sigmoid(torch.tensor([-1.0, 0.0, 2.0])).tolist()):
        index = torch.tensor([channel])
        expected = CurvatureUnit(beta)(x.index_select(axis, index))
        assert torch.allclose(learned(x).index_select(axis, index), expected, atol=1e-6)
    named = CurvatureUnit(0.8, channels=3, axis=1, trainable=True)
    assert named(torch.randn(2, 3, 7)).shape == (2, 3, 7)


def test_a_learned_unit_starts_at_its_arguments():
    unit = CurvatureUnit(0.8, 0.3, channels=2, trainable=True)
    assert torch.allclose(torch.as_tensor(unit.beta), torch.full((2,), 0.8))
    assert torch.allclose(torch.as_tensor(unit.coefficient), torch.full((2,), 0.3))
    assert sum(parameter.numel() for parameter in unit.parameters()) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 1.1}, "within 0 and 1, got 1.1"),
        ({"beta": 0.5, "coefficient": -1}, "coefficient"),
        ({"beta": 1.0, "trainable": True}, "strictly"),
        ({"beta": math.nan}, "got nan"),
    ],
)
def test_values_out_of_range_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        CurvatureUnit(**settings)


def test_beta_of_all_units_is_set_at_once_but_not_of_learned_ones():
    model = nn.Sequential(CurvatureUnit(1.0, 0.4), CurvatureUnit(0.9), CurvatureUnit(0.7, trainable=True))
    set_beta(model, 0.5)
    assert [round(float(unit.beta), 6) for unit in units(model)] == [0.5, 0.5, 0.7]
    assert units(model)[0].coefficient == 0.4
    with pytest.raises(UserError, match="got 2"):
        set_beta(model, 2)

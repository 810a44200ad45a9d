"""What holds for every rule on any row, searched for counterexamples by hypothesis."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steering import KL, ChiSquare, CVaR, Uniform

RULES = [
    Uniform(),
    KL(temperature=0.5),
    KL(rho=5),
    CVaR(alpha=0.3),
    ChiSquare(temperature=0.5),
    ChiSquare(rho=0.1),
    ChiSquare(rho=20),
]
every_rule = pytest.mark.parametrize("rule", RULES, ids=repr)

# Multiples of 1/16, so that ties occur and shifts are exact; sometimes one entry, sometimes all equal.
rows = st.lists(st.integers(-160, 160).map(lambda x: x / 16), min_size=1, max_size=12)


def weights(rule, row, *, factor=1.0):
    """Weights of one row, ``[n]``; ``factor`` scales a temperature."""
    if factor != 1 and getattr(rule, "temperature", None):
        rule = type(rule)(temperature=rule.temperature * factor)
    row = torch.tensor(row, dtype=torch.float64)[None]
    return rule.weights(row, rule.dual(row, torch.ones_like(row, dtype=torch.bool), 50))[0]


@every_rule
@given(row=rows)
def test_weights_are_at_least_zero_average_one_and_never_less_for_a_larger_excess(rule, row):
    """The weighted mean then lies between mean and maximum."""
    weight, values = weights(rule, sorted(row)), torch.tensor(sorted(row), dtype=torch.float64)
    assert (weight >= 0).all() and (weight.diff() >= -1e-9).all()
    assert float(weight.mean()) == pytest.approx(1, abs=1e-6)
    assert float(values.mean()) - 1e-6 <= float((weight * values).mean()) <= float(values.max()) + 1e-6


@every_rule
@given(row=rows, shift=st.integers(-1000, 1000), factor=st.sampled_from([2.0**-20, 0.25, 3.0, 1000.0]))
def test_a_constant_or_another_unit_changes_no_weight_if_the_temperature_is_in_that_unit(rule, row, shift, factor):
    plain = weights(rule, row)
    assert torch.allclose(weights(rule, [x + shift for x in row]), plain, atol=2e-6)
    assert torch.allclose(weights(rule, [x * factor for x in row], factor=factor), plain, atol=2e-6)


@pytest.mark.parametrize(
    "narrow, wide",
    [
        (KL(temperature=2.0), KL(temperature=0.5)),
        (KL(rho=1), KL(rho=5)),
        (CVaR(alpha=0.8), CVaR(alpha=0.3)),
        (ChiSquare(temperature=2.0), ChiSquare(temperature=0.5)),
        (ChiSquare(rho=1), ChiSquare(rho=5)),
    ],
    ids=repr,
)
@given(row=rows)
def test_a_larger_ball_has_a_larger_worst_case(narrow, wide, row):
    values = torch.tensor(row, dtype=torch.float64)
    less, more = ((weights(rule, row) * values).mean() for rule in (narrow, wide))
    assert float(less) <= float(more) + 1e-5


@pytest.mark.parametrize("rule", [KL(rho=5), ChiSquare(rho=5)], ids=repr)
@given(row=rows)
def test_constrained_weights_stay_inside_the_ball_and_touch_it_unless_it_holds_them_all(rule, row):
    """Radius 5 / 50 = 0.1. Inside only if all entries are equal, or too many share the largest."""
    p = weights(rule, row)
    divergence = torch.special.entr(p).mean().neg() if isinstance(rule, KL) else (p - 1).square().mean() / 2
    assert float(divergence) <= 0.1 + 1e-6
    share = row.count(max(row)) / len(row)
    on_the_largest = -torch.tensor(share).log() if isinstance(rule, KL) else (1 / share - 1) / 2
    assert float(divergence) == pytest.approx(min(0.1, float(on_the_largest)), abs=1e-5)

"""Single precision against double, where it hurts: large offsets, small and large spreads, odd radii."""

import math

import pytest
import torch

from steering import KL, ChiSquare, CVaR


def rules(spread: float):
    return [
        *(kind(rho=rho) for kind in (KL, ChiSquare) for rho in (1e-4, 1, 80, 1e9)),
        *(kind(temperature=factor * spread) for kind in (KL, ChiSquare) for factor in (0.01, 1, 100)),
        CVaR(alpha=0.1),
        CVaR(alpha=0.37),
    ]


def weigh(rule, excess, population=10):
    return rule.weights(excess, rule.dual(excess, torch.ones_like(excess, dtype=torch.bool), population))


@pytest.mark.parametrize("n", [2, 1000, 10_000])
@pytest.mark.parametrize("spread", [1e-3, 1e3])
@pytest.mark.parametrize("offset", [0.0, 1e3, -1e3])
def test_single_precision_weighs_like_double(offset, spread, n):
    """The same float32 numbers, weighed in float32 as they are and in float64 without their offset."""
    single = (torch.randn(1, n, dtype=torch.float64) * spread + offset).float()
    double = single.double() - single.double().amax()
    for rule in rules(spread):
        weights, expected = weigh(rule, single, n), weigh(rule, double, n)
        assert weights.isfinite().all(), rule
        assert float(weights.double().mean()) == pytest.approx(1, abs=1e-3), rule
        assert (weights - expected).abs().max() <= 1e-3 * expected.max(), rule


@pytest.mark.parametrize("rule", [KL(rho=1e-4), ChiSquare(rho=1e-4)], ids=repr)
def test_a_tiny_radius_is_touched_in_single_precision(rule):
    """Radius 1e-4 / 10000 = 1e-8, less than the rounding of float32: the largest entry still weighs as the
    expansion says, 1 + sqrt(2e-8) * (largest - mean) / standard deviation."""
    excess = torch.randn(1, 10_000)
    dual = rule.dual(excess, torch.ones_like(excess, dtype=torch.bool), 10_000)
    highest = (excess.max() - excess.mean()) / excess.std()
    steepness = (rule.weights(excess.double(), dual).max() - 1) / highest
    assert float(steepness) == pytest.approx(2e-8**0.5, rel=1e-2)


@pytest.mark.parametrize("rule", [KL(rho=1e9), KL(temperature=1.0), ChiSquare(rho=1e9), ChiSquare(rho=1)], ids=repr)
def test_in_double_precision_a_large_offset_spoils_no_mean(rule):
    excess = torch.randn(1, 100, dtype=torch.float64) + 1e6
    weights = weigh(rule, excess, 100)
    assert float(weights.mean()) == pytest.approx(1, abs=1e-6 if isinstance(rule, KL) else 1e-12)


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e-3, -7.3, 1e6])
def test_entries_that_are_equal_or_differ_by_rounding_alone_weigh_one(value):
    for rule in (KL(rho=1), KL(temperature=0.1), ChiSquare(rho=1), ChiSquare(temperature=0.1)):
        assert weigh(rule, torch.full((1, 5), value))[0].tolist() == pytest.approx([1] * 5, abs=1e-3), rule
    weights = weigh(KL(rho=5), value + value * 1e-15 * torch.randn(3, 50, dtype=torch.float64))
    assert torch.allclose(weights, torch.ones_like(weights), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rule", [KL(temperature=1e-3), KL(temperature=1e-2), ChiSquare(temperature=1e-2)], ids=repr)
def test_an_excess_of_200_over_a_small_temperature_stays_finite(rule, dtype):
    """An exponent of 20000 or more; the largest of three rows apart weighs as much as all together."""
    weights = weigh(rule, torch.linspace(-200, 200, 401, dtype=dtype)[None])
    assert weights.isfinite().all() and float(weights.mean()) == pytest.approx(1, abs=1e-3)
    assert (weights[0, :-20] == 0).all(), "only the largest few weigh anything"
    assert weigh(rule, torch.tensor([[-200.0, 0, 200]], dtype=dtype))[0].tolist() == pytest.approx([0, 0, 3])


def lopsided(kind: str) -> torch.Tensor:
    """Rows whose spread says nothing of where the weights lie."""
    normal = torch.randn(63, dtype=torch.float64)
    return {
        "one far below": torch.cat([normal, torch.tensor([-1e8])]),
        "one far above": torch.cat([normal, torch.tensor([1e8])]),
        "many scales": -torch.logspace(-12, 4, 64, dtype=torch.float64),
        "fine beside an offset": 1e6 + 1e-4 * normal,
        "two scales": torch.cat([1e-4 * normal, 100 * normal - 1000]),
    }[kind]


@pytest.mark.parametrize("size", [1e-4, 0.3, 3.0])
@pytest.mark.parametrize(
    "kind", ["one far below", "one far above", "many scales", "fine beside an offset", "two scales"]
)
def test_the_radius_is_reached_however_lopsided_a_row(kind, size):
    row = lopsided(kind)[None]
    share, n = weigh(KL(rho=10 * size), row)[0], row.shape[1]
    divergence = math.log(n) - float(torch.special.entr(share / share.sum()).sum())
    assert divergence == pytest.approx(min(size, math.log(n)), rel=1e-3)
    weights = weigh(ChiSquare(rho=10 * size), row)[0]
    divergence = float(weights.square().mean() / weights.mean() ** 2 - 1) / 2
    assert divergence == pytest.approx(min(size, (n - 1) / 2), rel=1e-3)

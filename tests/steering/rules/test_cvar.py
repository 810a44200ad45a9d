import pytest
import torch

from steering import CVaR, UserError


def weights(alpha, *values, dtype=torch.float64):
    excess = torch.tensor([values], dtype=dtype)
    rule = CVaR(alpha=alpha)
    return rule.weights(excess, rule.dual(excess, torch.ones_like(excess, dtype=torch.bool)))[0].tolist()


def test_half_of_four_by_hand():
    """alpha 1/2 of 4 entries: the two largest weigh 2."""
    assert weights(0.5, 3.0, -1.0, 2.0, 0.0) == [2, 0, 2, 0]


def test_a_fractional_share_gives_the_quantile_the_remainder():
    """alpha 3/8 of 4 entries is 1.5: the largest weighs 8/3, the second what is left of 4, which is 4/3."""
    assert weights(0.375, 3.0, -1.0, 2.0, 0.0) == pytest.approx([8 / 3, 0, 4 / 3, 0])


def test_entries_that_tie_at_the_quantile_share_its_weight():
    """alpha 1/2 of 4: the largest weighs 2, the other 2 are shared by the two that tie."""
    assert weights(0.5, 1.0, 3.0, 1.0, 0.0) == pytest.approx([1, 2, 1, 0])


def test_less_than_one_entry_is_the_largest_entry():
    """alpha 1/100 of 4: the largest weighs as much as all together."""
    assert weights(0.01, 3.0, -1.0, 2.0, 0.0) == [4, 0, 0, 0]


def test_everything_kept_is_the_plain_average():
    assert weights(1, 3.0, -1.0, 2.0, 0.0) == pytest.approx([1, 1, 1, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha, n", [(0.1, 30), (0.3, 10_000), (0.7, 1000), (1 / 3, 3), (0.07, 100)])
def test_a_share_that_is_a_whole_number_in_exact_arithmetic_keeps_that_many(alpha, n, dtype):
    """0.1 * 30 = 3.0000000000000004 in floating point; three entries weigh ten each."""
    found = torch.tensor(weights(alpha, *range(n), dtype=dtype))
    assert int((found > 1e-3).sum()) == round(alpha * n)
    assert float(found.mean()) == pytest.approx(1, abs=1e-6)


def test_the_entry_at_the_quantile_never_outweighs_a_larger_one():
    """0.30000001 * 10000 = 3000.0001, which float32 would round to 3000: one entry too few above the quantile."""
    found = weights(0.30000001, *range(10_000))
    assert max(found) <= (1 / 0.30000001) * (1 + 1e-9)
    assert sorted(found)[-3001] == pytest.approx(1e-4 / 0.30000001, rel=1e-3)


def test_in_double_precision_the_mean_weight_is_one_to_double_precision():
    assert sum(weights(0.37, *torch.randn(1001).tolist())) / 1001 == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("alpha", [0.0, -0.5, 1.01, float("nan")])
def test_a_wrong_share_is_explained(alpha):
    with pytest.raises(UserError, match="cvar needs an alpha above 0 and at most 1, got"):
        CVaR(alpha=alpha)

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from steering import Pairs


def pairs(n=5, width=3, dtype=torch.float64, **extra):
    left, right = (normalize(torch.randn(n, width, dtype=dtype), dim=-1) for _ in range(2))
    return Pairs(left, right, **extra)


def test_two_pairs_by_hand():
    """Similarities left i . right j are [[1, 0.6], [0, 0.8]]. Anchor left 0 loses 0.6 - 1 to right 1, left 1
    loses 0 - 0.8; anchor right 0 loses 0 - 1 to left 1, right 1 loses 0.6 - 0.8."""
    left = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    right = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    values, mask = Pairs(left, right).rows()
    assert values[mask].tolist() == pytest.approx([-0.4, -0.8, -1.0, -0.2])
    assert mask.tolist() == [[False, True], [True, False]] * 2


def test_an_anchor_loses_nothing_to_its_own_pair_which_is_masked_and_both_sides_see_each_other_alike():
    features = pairs()
    values, mask = features.rows()
    assert values[~mask].abs().max() < 1e-12 and (mask.sum(-1) == 4).all()
    swapped, mask_again = Pairs(features.right, features.left).rows()
    assert torch.equal(values, swapped.roll(5, 0)) and torch.equal(mask, mask_again)


def test_the_contrastive_loss_per_pair_is_the_mean_of_both_cross_entropies():
    features = pairs(scale=7.0)
    logits = 7 * features.left @ features.right.T
    losses = [cross_entropy(x, torch.arange(5), reduction="none") for x in (logits, logits.T)]
    expected = torch.stack(losses).mean(0)
    assert torch.allclose(features.per_sample(), expected)
    assert torch.allclose(features.per_sample(scale=torch.tensor(7.0)), expected)
    assert not torch.allclose(features.per_sample(scale=1.0), expected)


def test_a_detached_pair_has_no_gradient_not_even_in_its_scale():
    features = pairs(scale=torch.tensor(3.0, requires_grad=True))
    assert features.per_sample().requires_grad and not features.detach().per_sample().requires_grad
    assert pairs(scale=2.0).detach().scale == 2.0


def test_features_in_half_precision_give_losses_in_single_precision_and_double_ones_double():
    half = Pairs(*(side.bfloat16() for side in pairs()[:2]))
    values, _ = half.rows()
    assert values.dtype == torch.float32
    assert torch.equal(values, Pairs(half.left.float(), half.right.float()).rows()[0])
    assert pairs().rows()[0].dtype == pairs().similarities().dtype == torch.float64


def test_the_gradient_reaches_both_sides():
    features = pairs()
    sides = features.left.requires_grad_(), features.right.requires_grad_()
    for gradient in torch.autograd.grad(features.rows()[0].square().sum(), sides):
        assert gradient.abs().min() > 0

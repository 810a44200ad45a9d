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


def test_an_anchor_loses_nothing_to_its_own_pair_and_that_entry_is_masked():
    values, mask = pairs().rows()
    assert values[~mask].abs().max() < 1e-12
    assert (mask.sum(-1) == 4).all()


def test_the_rights_see_the_lefts_as_the_lefts_see_the_rights():
    some = pairs()
    values, mask = some.rows()
    swapped, mask_again = Pairs(some.right, some.left).rows()
    assert torch.equal(values, swapped.roll(5, 0)) and torch.equal(mask, mask_again)


def test_the_contrastive_loss_per_pair_is_the_mean_of_both_cross_entropies():
    some, places = pairs(scale=7.0), torch.arange(5)
    logits = 7 * some.left @ some.right.T
    by_left, by_right = (cross_entropy(x, places, reduction="none") for x in (logits, logits.T))
    wanted = (by_left + by_right) / 2
    assert torch.allclose(some.per_sample(), wanted)
    assert torch.allclose(some.per_sample(scale=torch.tensor(7.0)), wanted)
    assert not torch.allclose(some.per_sample(scale=1.0), wanted)


def test_a_detached_pair_has_no_gradient_not_even_in_its_scale():
    some = pairs(scale=torch.tensor(3.0, requires_grad=True))
    some.left.requires_grad_()
    assert some.per_sample().requires_grad
    assert not some.detach().per_sample().requires_grad
    assert pairs(scale=2.0).detach().scale == 2.0


def test_features_in_half_precision_give_losses_in_single_precision():
    some = pairs(dtype=torch.float32)
    half = Pairs(some.left.bfloat16(), some.right.bfloat16())
    values, _ = half.rows()
    assert values.dtype == torch.float32
    exact, _ = Pairs(half.left.float(), half.right.float()).rows()
    assert torch.equal(values, exact)


def test_losses_of_double_features_are_double():
    assert pairs().rows()[0].dtype == pairs().similarities().dtype == torch.float64


def test_the_gradient_reaches_both_sides():
    some = pairs()
    sides = some.left.requires_grad_(), some.right.requires_grad_()
    for gradient in torch.autograd.grad(some.rows()[0].square().sum(), sides):
        assert gradient.abs().min() > 0

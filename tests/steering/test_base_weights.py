"""Base weights of samples in the engine: by counting samples, for every kind of rows."""

import pytest
import torch

from steering import KL, CVaR, GlobalContrastive, InfoNCE, Pairs, Steerer, Uniform, UserError

RULES = [Uniform(), KL(temperature=0.5), KL(rho=8), CVaR(alpha=0.4)]


def losses_and_counts(seed=0, n=10):
    generator = torch.Generator().manual_seed(seed)
    losses = torch.randn(n, dtype=torch.float64, generator=generator)
    reference = torch.randn(n, dtype=torch.float64, generator=generator)
    return losses.requires_grad_(), reference, torch.tensor([0, 1, 2, 3, 1, 0, 2, 1, 1, 4][:n])


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_sample_of_weight_two_is_like_two_samples(rule):
    losses, reference, counts = losses_and_counts()
    steerer = Steerer(rule, population=100)
    (by_weight,) = torch.autograd.grad(steerer(losses, reference, base=counts).loss, losses)
    repeated = losses.repeat_interleave(counts)
    (by_count,) = torch.autograd.grad(steerer(repeated, reference.repeat_interleave(counts)).loss, losses)
    # The entries are 10 one way and 15 the other: a mean over either weighs the same.
    assert torch.allclose(by_weight, by_count, atol=1e-9)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_uniform_base_weights_change_nothing(rule):
    losses, reference, _ = losses_and_counts()
    steerer = Steerer(rule, population=100)
    plain, based = steerer(losses, reference), steerer(losses, reference, base=[3.0] * 10)
    assert torch.allclose(plain.weights, based.weights, atol=1e-9)
    assert float(based.weighted_loss) == pytest.approx(float(plain.weighted_loss))


@pytest.mark.parametrize("average", ["rows", "entries"])
def test_a_row_of_weight_two_is_like_two_rows(average):
    generator = torch.Generator().manual_seed(1)
    losses = torch.randn(4, 6, dtype=torch.float64, generator=generator).requires_grad_()
    mask = torch.rand(4, 6, generator=generator) < 0.7
    counts = torch.tensor([2, 0, 1, 3])
    steerer = Steerer(KL(temperature=0.5), average=average)
    (by_weight,) = torch.autograd.grad(steerer(losses, mask=mask, base=counts).loss, losses)
    repeated = steerer(losses.repeat_interleave(counts, 0), mask=mask.repeat_interleave(counts, 0))
    (by_count,) = torch.autograd.grad(repeated.loss, losses)
    assert torch.allclose(by_weight, by_count, atol=1e-12)


def test_tokens_of_a_document_have_its_weight_where_the_batch_is_one_row():
    losses = torch.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)
    rows = torch.tensor([0, 0, 1, 1])
    steered = Steerer(Uniform(), over="batch")(losses, rows=rows, base=[1.0, 3.0])
    assert steered.weights.tolist() == [0.5, 0.5, 1.5, 1.5]
    per_token = Steerer(Uniform(), over="batch")(losses.view(2, 2), base=torch.tensor([[1.0, 0.0], [1.0, 2.0]]))
    assert per_token.weights.tolist() == [[1, 0], [1, 2]]


def pairs(seed, n=6, scale: "float | torch.Tensor" = 5.0):
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.nn.functional.normalize(torch.randn(2, n, 4, generator=generator, dtype=torch.float64), dim=-1)
    return Pairs(left.requires_grad_(), right.requires_grad_(), scale)


@pytest.mark.parametrize("rule", [KL(temperature=0.3), KL(temperature=0.3, epsilon=0.1), CVaR(alpha=0.4), KL(rho=4)])
def test_the_loss_of_pairs_is_the_weighted_mean_over_their_anchors(rule):
    """Given anchor by anchor: the rows of the dense matrix, weighted as rows are."""
    target, reference = pairs(1), pairs(2)
    base = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0, 3.0])
    steerer = Steerer(rule, population=5)
    steered = steerer(target, reference, base=base)
    gradients = torch.autograd.grad(steered.loss, target[:2])
    values, mask = target.rows()
    reference_values, _ = reference.rows()
    dense = Steerer(rule, population=5, over="rows")(values, reference_values, mask=mask, base=base.repeat(2))
    expected = torch.autograd.grad(dense.loss, target[:2])
    assert steered.loss.item() == pytest.approx(dense.loss.item(), abs=1e-9)
    for one, other in zip(gradients, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-9)


@pytest.mark.parametrize("rule", [InfoNCE(), GlobalContrastive(radius=1.0)], ids=repr)
def test_a_learned_temperature_sees_the_weights_too(rule):
    """The loss of weighted anchors is the weighted mean of the anchors' own losses, in value and gradient."""
    scale = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    target = pairs(3, scale=scale)
    base = torch.tensor([1.0, 0.25, 2.0, 0.5, 1.0, 1.25])
    loss = Steerer(rule)(target, base=base).loss
    (slope,) = torch.autograd.grad(loss, scale)
    similarities = target.left @ target.right.T
    t = 1 / scale
    rows = torch.cat([similarities, similarities.T]) - similarities.diagonal().repeat(2)[:, None]
    negatives = ~torch.eye(6, dtype=torch.bool).repeat(2, 1)
    powers = (rows / t).exp() * negatives
    if isinstance(rule, InfoNCE):
        own = (1 + powers.sum(1)).log()
    else:
        own = t * (1e-14 + powers.sum(1) / 5).log() + t * 1.0
    expected = (base.repeat(2) * own).sum() / base.repeat(2).sum()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-9)
    assert float(slope) == pytest.approx(float(torch.autograd.grad(expected, scale)[0]), abs=1e-9)


def test_what_is_no_weight_is_one_line():
    losses, reference, _ = losses_and_counts()
    steerer = Steerer(KL(temperature=1))
    for base, message in (
        ([-1.0] * 10, "at least 0, got -1"),
        ([1.0] * 3, "10 here, got"),
        ([float("nan")] * 10, "finite"),
    ):
        with pytest.raises(UserError, match=message):
            steerer(losses, reference, base=base)

    class Plain:
        width, normalised = 1, True
        dual, blend, weights = Uniform.dual, Uniform.blend, Uniform.weights

    with pytest.raises(UserError, match="takes no base weights"):
        Steerer(Plain())(losses, base=[1.0] * 10)

import pytest
import torch

from steering import KL, Steerer, Uniform


def draw(*shape, grad=True):
    return torch.randn(*shape, dtype=torch.float64).requires_grad_(grad)


def gradient(steered, losses):
    (found,) = torch.autograd.grad(steered.loss, losses)
    return found


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0])
def test_a_number_scales_the_reference(scale):
    losses, reference = draw(10), draw(10)
    found = Steerer(KL(temperature=0.5), reference_scale=scale)(losses, reference)
    by_hand = Steerer(KL(temperature=0.5))(losses - scale * reference)
    assert float(found.scale) == pytest.approx(scale)
    assert torch.allclose(found.weights, by_hand.weights) and torch.allclose(found.loss, by_hand.loss)


def automatic(rule, **options):
    return Steerer(rule, reference_scale="auto", **options)


def test_the_scale_is_the_papers_one_unless_asked_for():
    assert float(Steerer(KL(temperature=0.5))(draw(10), draw(10)).scale) == 1


def test_the_automatic_scale_is_covariance_over_variance_of_the_reference():
    reference = draw(50, grad=False)
    losses = 0.6 * reference + 0.1 * draw(50)
    found = automatic(KL(temperature=0.5))(losses, reference).scale
    both = torch.cov(torch.stack([losses.detach(), reference]))
    assert float(found) == pytest.approx(float(both[0, 1] / both[1, 1]))


@pytest.mark.parametrize("slope, wanted", [(-1.0, 0), (3.0, 1)])
def test_the_automatic_scale_stays_between_zero_and_one(slope, wanted):
    reference = draw(50, grad=False)
    assert automatic(KL(temperature=0.5))(slope * reference, reference).scale == wanted


def test_the_automatic_scale_is_a_moving_average_that_a_checkpoint_keeps():
    reference = draw(50, grad=False)
    steerer = automatic(KL(temperature=0.5))
    steerer(0.2 * reference, reference)
    again = automatic(KL(temperature=0.5))
    again.load_state_dict(steerer.state_dict())
    for one in (steerer, again):  # 0.9 * 0.2 + 0.1 * 0.7 = 0.25, the variance of the reference being the same
        assert float(one(0.7 * reference, reference).scale) == pytest.approx(0.25)


def test_no_gradient_passes_through_the_automatic_scale_or_the_reference():
    losses, reference = draw(10), draw(10)
    steered = automatic(KL(temperature=0.5))(losses, reference)
    assert torch.allclose(gradient(steered, losses), steered.weights / 10), "the weights and nothing else"
    (found,) = torch.autograd.grad(automatic(Uniform())(losses, reference).loss, reference, allow_unused=True)
    assert found is None and not steered.scale.requires_grad

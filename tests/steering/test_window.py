"""Weights of a whole window first, then any micro-batches: the gradient is that of the whole batch."""

import pytest
import torch
from torch.nn.functional import normalize

from steering import KL, ChiSquare, CVaR, DualMemory, Pairs, Steerer, Uniform, UserError
from steering.rules import GlobalContrastive, Individual, InfoNCE
from steering.selectors import TopK

LOSS_RULES = [
    Uniform(),
    KL(temperature=0.5),
    KL(temperature=0.5, epsilon=0.1),
    KL(rho=20),
    CVaR(alpha=0.3),
    ChiSquare(temperature=0.5),
    ChiSquare(rho=20),
    Individual(start=0.5, radius=1.0),
]
PAIR_RULES = [*LOSS_RULES, InfoNCE(), GlobalContrastive(radius=2.0, epsilon=1e-3)]
PARTS = [slice(0, 3), slice(3, 4), torch.tensor([6, 4]), slice(5, 6), slice(7, 12)]  # of 12 samples, in any order
SIZE = 12


def steerers(rule):
    """Two alike, whose memories hold the same duals."""
    return (
        Steerer(rule, reference_scale="auto", population=50, memory=DualMemory(2 * SIZE, gamma=0.5)) for _ in range(2)
    )


@pytest.mark.parametrize("rule", LOSS_RULES, ids=repr)
@pytest.mark.parametrize("kind", ["samples", "tokens", "packed"])
def test_micro_batches_of_losses_add_up_to_the_whole_batch(rule, kind):
    model = torch.randn(5, dtype=torch.float64).requires_grad_()
    inputs = torch.randn(2, SIZE, 4, 5, dtype=torch.float64)
    mask = torch.rand(SIZE, 4) < 0.7
    rows = torch.arange(SIZE) // 3
    ids = torch.arange(SIZE) if kind == "tokens" else torch.arange(4)
    options = {"samples": {}, "tokens": {"mask": mask}, "packed": {"rows": rows}}[kind]

    def losses(step, index):
        errors = (inputs[step][index] @ model).square()
        return errors.masked_fill(~mask[index], torch.nan) if kind == "tokens" else errors.mean(-1)

    whole, parts = steerers(rule)
    for step in range(2):
        reference = torch.rand(losses(step, slice(None)).shape, dtype=torch.float64)
        steered = whole(losses(step, slice(None)), reference, ids=ids, **options)
        (expected,) = torch.autograd.grad(steered.loss, model)
        with torch.no_grad():
            window = parts.weigh(losses(step, slice(None)), reference, ids=ids, **options)
        gradient = torch.zeros_like(model)
        for index in PARTS:
            gradient += torch.autograd.grad(window.loss(losses(step, index), index), model)[0]
        assert torch.allclose(gradient, expected, rtol=1e-12, atol=1e-13)
        assert window.steered.loss == steered.loss.detach() and not window.steered.loss.requires_grad


@pytest.mark.parametrize("rule", PAIR_RULES, ids=repr)
def test_micro_batches_of_pairs_add_up_to_the_whole_batch(rule):
    model = torch.randn(5, 4, dtype=torch.float64).requires_grad_()
    inputs = torch.randn(2, SIZE, 5, dtype=torch.float64)
    reference = Pairs(*(normalize(torch.randn(SIZE, 3, dtype=torch.float64), dim=-1) for _ in range(2)))

    def features(index):
        scale = 3 + model.mean().exp()
        left, right = (normalize(side[index] @ model, dim=-1) for side in inputs)
        return Pairs(left, right, scale)

    whole, parts = steerers(rule)
    steered = whole(features(slice(None)), reference, ids=torch.arange(SIZE))
    (expected,) = torch.autograd.grad(steered.loss, model)
    with torch.no_grad():
        window = parts.weigh(features(slice(None)), reference, ids=torch.arange(SIZE))
    gradient = torch.zeros_like(model)
    for index in PARTS:
        gradient += torch.autograd.grad(window.loss(features(index), index), model)[0]
    assert torch.allclose(gradient, expected, rtol=1e-12, atol=1e-13)


def test_micro_batches_that_are_weighed_alone_learn_something_else():
    """The trap: CVaR of 4 micro-batches of 2 keeps the worst of each, not the worst of all."""
    losses = torch.tensor([9.0, 8.0, 7.0, 6.0, 1.0, 1.1, 0.5, 0.2])
    whole = Steerer(CVaR(alpha=0.5)).weigh(losses)
    alone = torch.cat([Steerer(CVaR(alpha=0.5))(part).weights for part in losses.split(2)])
    assert whole.steered.weights.tolist() == [2, 2, 2, 2, 0, 0, 0, 0] != alone.tolist()


def test_selecting_and_weighing_together_in_a_loop_of_ones_own():
    """Choose 4 of 8 by excess, then weigh those that were chosen; the gradient is that of the chosen samples alone."""
    model = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    inputs, reference = torch.randn(8, 2, dtype=torch.float64), torch.rand(8, dtype=torch.float64)
    selector, steerer = TopK(keep=0.5), Steerer("kl(temperature=1)")
    with torch.no_grad():
        candidates = (inputs @ model).square()
    chosen = selector(candidates, reference, number=4, generator=torch.Generator())
    losses = (inputs[chosen] @ model).square()
    steered = steerer(losses, reference[chosen])
    assert set(chosen.tolist()) == set((candidates - reference).topk(4).indices.tolist())
    (gradient,) = torch.autograd.grad(steered.loss, model)
    weights = ((losses - reference[chosen]).detach()).softmax(0)
    expected = torch.autograd.grad((weights * (inputs[chosen] @ model).square()).sum(), model)[0]
    assert torch.allclose(gradient, expected)


@pytest.mark.parametrize(
    "part, message",
    [
        (torch.zeros(3), r"a micro-batch has the losses of its index, \[2\], got \[3\]"),
        (Pairs(torch.zeros(2, 2), torch.zeros(2, 2)), "a micro-batch is given in the form of its window"),
    ],
)
def test_a_micro_batch_that_does_not_fit_its_window_is_explained(part, message):
    with pytest.raises(UserError, match=message):
        Steerer(Uniform()).weigh(torch.zeros(4)).loss(part, slice(0, 2))


def test_a_window_may_be_of_anything_that_holds_numbers():
    steerer = Steerer("kl(temperature=1)")
    expected = steerer.weigh(torch.tensor([3.0, 1.0])).gradients[0]
    with torch.inference_mode():
        inner = torch.tensor([3.0, 1.0])
        assert torch.equal(steerer.weigh(inner).gradients[0], expected)
    for losses in ([3, 1], torch.tensor([3, 1]), inner):
        assert torch.equal(steerer.weigh(losses).gradients[0], expected)  # type: ignore[arg-type]

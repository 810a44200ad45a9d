"""Windows of micro-batches, first passes without a trace, and what may be a reference."""

import pytest
import torch
from torch import nn

from steering import Batch, CVaR, Losses, Pairs, Steerer, UserError
from steering.adapters.entries import first_pass, reference_losses, reference_of, weigh
from steering.references import LossTable


def test_a_first_pass_leaves_no_trace():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    x, mean = torch.randn(8, 3), model[1].running_mean.clone()  # type: ignore[operator, union-attr]
    with first_pass(model):
        first = model(x)
        assert not first.requires_grad
    assert torch.equal(model[1].running_mean, mean)  # type: ignore[arg-type]
    assert torch.equal(model(x), first) and not torch.equal(model(x), first)


@pytest.mark.parametrize("sizes", [(8,), (3, 5), (1, 0, 7)])
def test_micro_batches_are_weighed_together(sizes):
    losses, reference = torch.rand(8), torch.rand(8)
    expected = Steerer(CVaR(alpha=0.3))(losses, reference).weights
    parts = [[Losses(x) for x in values.split(list(sizes))] for values in (losses, reference)]
    window, indices = weigh(Steerer(CVaR(alpha=0.3)), parts[0], parts[1], [None] * len(sizes))
    assert torch.equal(torch.cat([window.steered.weights[index] for index in indices]), expected)


def test_rows_and_ids_of_micro_batches_do_not_mix():
    first, second = (Losses(torch.rand(4), rows=torch.tensor([0, 0, 1, 1])) for _ in range(2))
    steerer = Steerer("kl(temperature=1)", over="rows")
    for ids in ([None, None], [torch.tensor([4, 9]), torch.tensor([7, 1])]):
        window, indices = weigh(steerer, [first, second], [first, second], ids)
        assert indices == [slice(0, 4), slice(4, 8)] and len(window.steered.entries) == 4


def test_pairs_are_a_window_too():
    sides = [nn.functional.normalize(torch.randn(6, 4), dim=-1) for _ in range(2)]
    parts = [Losses(Pairs(*(side[k : k + 3] for side in sides))) for k in (0, 3)]
    window, indices = weigh(Steerer("kl(temperature=0.5)"), parts, parts, [None, None])
    assert indices == [slice(0, 3), slice(3, 6)] and len(window.steered.weights) == 6


def test_a_reference_is_asked_by_id_by_column_or_by_model():
    batch = {"index": torch.tensor([2, 0]), "x": torch.tensor([5.0, 7.0]), "reference_loss": torch.tensor([1.0, 2.0])}
    losses = lambda model, part: model(part["x"][:, None])[:, 0]  # noqa: E731
    target, reference = nn.Linear(1, 1), nn.Linear(1, 1)
    with torch.no_grad():
        expected = losses(reference, batch)
    for source, values in (
        (None, torch.tensor([1.0, 2.0])),
        (LossTable([3.0, 4.0, 5.0]), torch.tensor([5.0, 3.0])),
        (lambda part: part["x"], torch.tensor([5.0, 7.0])),
        (reference, expected),
    ):
        answer = reference_losses(reference_of(source, target), losses, batch)
        assert answer is not None and torch.equal(answer.values, values)  # type: ignore[arg-type]
    answer = reference_losses(reference_of(LossTable([3.0, 4.0, 5.0]), target), losses, Batch(torch.tensor([1]), {}))
    assert answer is not None and answer.values.tolist() == [4]  # type: ignore[union-attr]
    assert not next(reference.parameters()).requires_grad and not reference.training


@pytest.mark.parametrize(
    "act, message",
    [
        (lambda net: reference_of(net, net), "the reference is another model than the target, got the target itself"),
        (lambda net: reference_of(LossTable([1.0]), net, 2), "got 1 reference losses for 2 samples: they are of other"),
        (lambda net: reference_of(7, net), "a reference is a function of a batch, a module, an array"),
        (
            lambda net: reference_losses(LossTable([1.0]), print, (1, 2)),
            "a reference that is asked by id needs a column",
        ),  # type: ignore
        (lambda net: weigh(Steerer("uniform"), [Losses(torch.ones(1))], [None], [None]), "steering needs a reference"),
    ],
)
def test_a_mistake_is_one_line(act, message):
    with pytest.raises(UserError, match=message) as error:
        act(nn.Linear(1, 1))
    assert "\n" not in str(error.value)

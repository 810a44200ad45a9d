from typing import Any

import pytest
import torch
from torch import nn

from steering import UserError
from steering.task import Batch, HeldOut, Losses, exchange
from steering.tasks.blobs import Blobs
from steering.tasks.diabetes import Diabetes
from steering.testing import check_task


def test_a_task_with_an_exchanged_part_keeps_the_contract_of_tasks():
    task = Blobs(samples=200)
    check_task(exchange(task, target=lambda: nn.Linear(2, 10)))


def test_only_what_was_named_is_exchanged_also_in_another_repetition():
    exchanged = exchange(Blobs(samples=200), rows=7, evaluate=lambda model: {"error": 0.5}).seeded(3)
    assert exchanged.rows == 7 and exchanged.size == 200 and "seed=3" in repr(exchanged)
    assert exchanged.evaluate(nn.Linear(2, 10)) == {"error": 0.5}


def test_optional_parts_are_there_if_the_task_has_them_or_is_given_them():
    for task in (Blobs(samples=200), Diabetes()):
        assert isinstance(exchange(task), HeldOut) == isinstance(task, HeldOut)
    assert isinstance(exchange(Blobs(samples=200), held_out=lambda batch: iter(())), HeldOut)


def test_options_of_the_task_can_be_read_and_nothing_else_is_invented():
    exchanged: Any = exchange(Blobs(samples=200))
    assert exchanged.noise == Blobs().noise and not hasattr(exchanged, "colour")


def test_a_task_that_was_exchanged_before_keeps_what_is_not_named_again():
    once = exchange(Blobs(samples=200), rows=7, seeded=lambda _: once)
    twice = exchange(once, rows=8)
    assert (once.rows, twice.rows, twice.seeded(3).rows) == (7, 8, 8)
    assert "held_out" in vars(twice) and isinstance(twice, HeldOut)


def test_an_optional_part_can_be_taken_away():
    assert not isinstance(exchange(Blobs(samples=200), held_out=None), HeldOut)


# ------------------------------------------------------------------------------------------- rows of any lengths


def packed() -> Batch:
    """Samples 7, 8, 9 with 2, 0 and 3 entries."""
    values = torch.tensor([1.0, 3.0, 4.0, 5.0, 9.0])
    return Batch(torch.tensor([7, 8, 9]), {"x": values}, {"odd": values % 2 == 1}, rows=torch.tensor([0, 0, 2, 2, 2]))


def test_a_part_of_a_packed_batch_has_its_samples_entries_and_rows_of_its_own():
    part = packed().take(torch.tensor([2, 0]))
    assert part.ids.tolist() == [9, 7] and part.rows is not None
    assert part["x"].tolist() == [1, 3, 4, 5, 9] and part.rows.tolist() == [1, 1, 0, 0, 0]
    empty, last = packed().take(torch.tensor([1])), packed().take(torch.tensor([2]))
    assert len(empty) == 1 and len(empty["x"]) == len(empty.facts["odd"]) == 0
    assert last["x"].tolist() == [4, 5, 9] and last.rows is not None and last.rows.tolist() == [0, 0, 0]


def test_the_parts_of_a_packed_batch_are_joined_again():
    full = packed()
    losses = Losses(full["x"], rows=full.rows, groups=torch.tensor([4, 5, 6]), outputs=full["x"][:, None])
    parts = full.split(2)
    halves = [
        Losses(part["x"], rows=part.rows, groups=losses.groups[at], outputs=part["x"][:, None])  # type: ignore[index]
        for part, at in zip(parts, (slice(2), slice(2, 3)), strict=True)
    ]
    torch.testing.assert_close(Losses.concatenate(halves, [2, 1]), losses, rtol=0, atol=0)


def test_the_mean_loss_of_a_sample_leaves_out_what_is_masked_and_is_nan_without_entries():
    nan = torch.nan
    padded = Losses(torch.tensor([[1.0, nan], [nan, nan], [2.0, 4.0]]), torch.tensor([[1, 0], [0, 0], [1, 1]]).bool())
    flat = Losses(torch.tensor([1.0, 2.0, 4.0]), rows=torch.tensor([0, 2, 2]))
    for losses in (padded, flat):
        assert losses.per_sample(3).nan_to_num(-1).tolist() == [1, -1, 3]  # type: ignore[union-attr]
        assert losses.finite(3).all()
        worse = losses._replace(values=losses.values.clone().index_fill_(0, torch.tensor([0]), torch.inf))  # type: ignore[union-attr]
        assert worse.finite(3).tolist() == [False, True, True]


def test_losses_of_another_number_of_samples_are_refused():
    with pytest.raises(UserError, match=r"a row for each of 3 samples, .* got losses of shape \[\] \(was reduction"):
        Losses(torch.tensor(1.0)).per_sample(3)


def test_parts_of_unlike_columns_are_refused():
    with pytest.raises(UserError, match=r"losses of \[\(3,\), \(4,\)\] columns: pad every sample alike, or give flat"):
        Losses.concatenate([Losses(torch.zeros(2, 3)), Losses(torch.zeros(2, 4))], [2, 2])


def test_parts_with_and_without_padding_become_one_batch():
    full, padded = Losses(torch.ones(1, 2)), Losses(torch.ones(1, 2), mask=torch.tensor([[True, False]]))
    mask = Losses.concatenate([full, padded], [1, 1]).mask
    assert mask is not None and mask.tolist() == [[True, True], [True, False]]
    with pytest.raises(UserError, match="either every batch has outputs, rows and groups of its losses, or none"):
        Losses.concatenate([full, Losses(torch.ones(1, 2), groups=torch.zeros(1, dtype=torch.long))], [1, 1])


def test_entries_are_put_in_the_order_of_others():
    losses = Losses(torch.tensor([1.0, 2.0, 3.0]), mask=torch.tensor([True, False, True]), rows=torch.tensor([0, 0, 1]))
    ordered = losses.in_order_of(torch.tensor([0, 1, 0]))
    assert isinstance(ordered.values, torch.Tensor) and ordered.values.tolist() == [1, 3, 2]
    assert ordered.mask is not None and ordered.mask.tolist() == [True, True, False]


@pytest.mark.parametrize("rows", [None, torch.tensor([0, 1, 1]), torch.tensor([0, 0])], ids=["none", "others", "fewer"])
def test_other_entries_than_those_of_the_target_are_refused(rows):
    losses = Losses(torch.ones(3), rows=torch.tensor([0, 0, 1]))
    with pytest.raises(UserError, match="target and reference have losses of the same entries of every sample, got"):
        losses.in_order_of(rows)

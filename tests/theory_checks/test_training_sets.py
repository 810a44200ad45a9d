"""Other training samples for the same problem: the contract of a task, ids of their own, nothing bound to old ids."""

from typing import Any

import pytest
import torch

from steering import UserError
from steering.references.store import ReferenceLosses
from steering.task import Batch, exchange
from steering.tasks.blobs import Blobs
from steering.tasks.digits import Digits
from steering.testing import check_task
from steering.theory_checks.training_sets import (
    CountedReference,
    concatenate,
    filtered,
    first,
    joined,
    sample_pool,
    train_on,
    training_samples,
)


def test_a_task_with_other_samples_keeps_the_contract_of_a_task():
    task = Blobs(samples=200)
    check_task(train_on(task, training_samples(task).take(torch.arange(40, 200))))


def test_the_samples_are_those_that_were_given_under_new_ids_also_when_given_twice():
    task = Blobs(samples=60)
    samples = training_samples(task).take(torch.arange(9, 29))
    small = train_on(train_on(task, training_samples(task)), samples)
    assert small.size == 20 and small.seeded(5) is small
    assert training_samples(small).ids.tolist() == list(range(20))
    assert torch.equal(training_samples(small)["x"], samples["x"])


def test_what_is_bound_to_the_old_ids_is_left_out():
    drawn = exchange(Blobs(samples=60), with_teacher=lambda: None, stored=lambda ids: ids > 0)
    task: Any = train_on(drawn, training_samples(drawn))
    assert task.with_teacher is None and task.stored is None


def test_joined_batches_have_new_ids_and_the_facts_that_all_have():
    one = Batch(torch.tensor([4, 7]), {"x": torch.zeros(2)}, {"wrong": torch.ones(2), "hard": torch.ones(2)})
    other = Batch(torch.tensor([4]), {"x": torch.ones(1, dtype=torch.float64)}, {"wrong": torch.zeros(1)})
    both = concatenate(one, other)
    assert both.ids.tolist() == [0, 1, 2] and both["x"].tolist() == [0, 0, 1] and both["x"].dtype == torch.float32
    assert set(both.facts) == {"wrong"} and both.facts["wrong"].tolist() == [1, 1, 0]


def losses(task, reference=None):
    """Of the reference, or of what stands in for it, on all training samples."""
    values = (reference or ReferenceLosses(task))(training_samples(task)).values
    assert isinstance(values, torch.Tensor)
    return values


def test_smaller_sets_are_the_beginning_of_larger_ones():
    pool = sample_pool(Digits(samples=200))
    small, large = first(pool, 50), first(pool, 150)
    assert (small.size, large.size) == (50, 150)
    smaller, larger, everything = map(training_samples, (small, large, pool))
    assert torch.equal(smaller["x"], larger["x"][:50]) and torch.equal(smaller["y"], everything["y"][:50])


def test_the_test_set_and_the_reference_are_the_same_at_every_size():
    pool = sample_pool(Blobs(samples=60))
    model = pool.target()
    assert len({first(pool, number).evaluate(model)["error"] for number in (10, 30, 60)}) == 1
    assert first(pool, 10).reference() is first(pool, 60).reference()


def test_more_samples_than_the_pool_has_are_refused():
    with pytest.raises(UserError, match="61 training samples were asked for, of 60 there are"):
        first(sample_pool(Blobs(samples=60)), 61)


def test_the_filter_drops_exactly_the_samples_of_highest_reference_loss_and_keeps_the_order():
    task = first(sample_pool(Digits(samples=100)), 50)
    kept = filtered(task, 0.6)
    assert torch.equal(losses(kept).sort().values, losses(task).sort().values[:30])
    before, after = (training_samples(one)["x"].tolist() for one in (task, kept))
    positions = [before.index(x) for x in after]
    assert positions == sorted(positions)


def test_joining_adds_exactly_the_references_own_samples():
    task = Digits(samples=60, reference_samples=100, reference_noise=0.3)
    both = joined(sample_pool(task))
    assert both.size == 160
    samples = training_samples(both)
    assert torch.equal(samples["x"][:60], training_samples(task)["x"])
    assert torch.equal(samples["x"][60:], task.reference_batch()["x"])
    assert torch.equal(samples["y"][60:], task.reference_batch()["y"])


def test_shuffling_gives_every_sample_the_loss_of_another_and_no_other_losses():
    task = sample_pool(Digits(samples=60))
    permutation = torch.randperm(60)
    true, shuffled = losses(task), losses(task, CountedReference(task, permutation))
    assert torch.equal(shuffled, true[permutation])
    assert torch.equal(shuffled.sort().values, true.sort().values) and not torch.equal(shuffled, true)


def test_a_sample_that_is_requested_twice_counts_once():
    task = sample_pool(Blobs(samples=30))
    reference = CountedReference(task)
    assert reference.count == 0 and reference.teacher is reference
    for ids in ([0, 1, 2], [2, 3]):
        reference(training_samples(task).take(torch.tensor(ids)))
    assert reference.count == 4

"""Training samples of a curve: nested, filtered, joined; and a reference that is counted or wrong on purpose."""

import pytest
import torch

from steering import UserError
from steering.references.store import ReferenceLosses
from steering.tasks.blobs import Blobs
from steering.tasks.digits import Digits
from steering.theory_checks.curve.samples import CountedReference, filtered, first, joined, sample_pool
from steering.theory_checks.training_sets import training_samples


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

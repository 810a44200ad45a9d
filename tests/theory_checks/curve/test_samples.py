"""Other training samples for the same problem: nested, filtered, joined; and a reference that is wrong on purpose."""

import pytest
import torch

from steering import UserError
from steering.tasks.blobs import Blobs
from steering.tasks.digits import Digits
from steering.testing import check_task
from steering.theory_checks.curve.samples import Asked, filtered, first, held, joined
from steering.training.reference_losses import ReferenceLosses


def losses(task, batch, reference=None):
    """Of the reference, or as a stand-in for it tells them."""
    found = (reference or ReferenceLosses(task))(batch).values
    assert isinstance(found, torch.Tensor)
    return found


def test_a_held_task_keeps_the_contract_of_a_task():
    check_task(joined(filtered(first(held(Blobs()), 160), 0.6)))


def test_smaller_sets_are_the_beginning_of_larger_ones():
    pool = held(Digits(samples=200))
    small, large = first(pool, 50), first(pool, 150)
    assert (small.size, large.size) == (50, 150)
    assert torch.equal(small.samples["x"], large.samples["x"][:50])
    assert torch.equal(small.samples["y"], pool.samples["y"][:50])


def test_the_test_set_and_the_reference_are_the_same_at_every_size():
    pool = held(Blobs(samples=60))
    model = pool.target()
    assert len({first(pool, number).evaluate(model)["error"] for number in (10, 30, 60)}) == 1
    assert first(pool, 10).reference() is first(pool, 60).reference()


def test_more_samples_than_the_pool_has_are_refused():
    with pytest.raises(UserError, match="61 training samples were asked for, of 60 there are"):
        first(held(Blobs(samples=60)), 61)


def test_the_filter_drops_exactly_the_samples_of_highest_reference_loss():
    task = first(held(Digits(samples=100)), 50)
    kept = filtered(task, 0.6)
    every = losses(task, task.samples).sort().values
    assert torch.equal(losses(task, kept.samples).sort().values, every[:30])
    assert kept.samples.ids.tolist() == list(range(30))


def test_the_filter_keeps_the_order_of_what_it_keeps():
    task = held(Digits(samples=60))
    kept = filtered(task, 0.5).samples["x"].tolist()
    places = [task.samples["x"].tolist().index(x) for x in kept]
    assert places == sorted(places)


def test_joining_adds_exactly_the_references_own_samples():
    task = Digits(samples=60, reference_samples=100, reference_noise=0.3)
    both = joined(held(task))
    assert both.size == 160
    assert torch.equal(both.samples["x"][:60], held(task).samples["x"])
    assert torch.equal(both.samples["x"][60:], task._data.reference_x)
    assert torch.equal(both.samples["y"][60:], task._data.reference_y)
    assert both.samples.ids.tolist() == list(range(160))


def test_shuffling_gives_every_sample_the_loss_of_another_and_no_other_losses():
    task = held(Digits(samples=60))
    places = torch.randperm(60)
    true, shuffled = losses(task, task.samples), losses(task, task.samples, Asked(task, places))
    assert torch.equal(shuffled, true[places])
    assert torch.equal(shuffled.sort().values, true.sort().values) and not torch.equal(shuffled, true)


def test_a_sample_that_is_asked_for_twice_counts_once():
    task = held(Blobs(samples=30))
    reference = Asked(task)
    assert reference.number == 0
    for places in ([0, 1, 2], [2, 3]):
        reference(task.samples.take(torch.tensor(places)))
    assert reference.number == 4

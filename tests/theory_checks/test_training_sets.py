"""Other training samples for the same problem: the contract of a task, ids of their own, nothing bound to old ids."""

from typing import Any

import torch

from steering.task import Batch, exchange
from steering.tasks.blobs import Blobs
from steering.testing import check_task
from steering.theory_checks.training_sets import concatenate, train_on, training_samples


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

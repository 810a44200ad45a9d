from typing import Any

from torch import nn

from steering.task import HeldOut, exchange
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

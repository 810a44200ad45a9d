"""What an arm was trained on, counted by hand."""

import pytest
import torch

from steering import Batch
from steering.training.counters import Counters


def batch(wrong: list[bool]) -> Batch:
    return Batch(torch.arange(len(wrong)), {}, {"wrong": torch.tensor(wrong)})


def test_facts_are_weighted_as_the_samples_were():
    """Weights 2, 1, 1, 0 and 3, 1: of 8 in all, the wrong ones carry 2 + 3 = 5."""
    tally = Counters()
    tally.add(batch([True, False, False, True]), torch.tensor([2.0, 1.0, 1.0, 0.0]), candidates=10, ranks=1)
    tally.add(batch([True, False]), torch.tensor([3.0, 1.0]), candidates=2, ranks=1)
    assert tally.means() == {"wrong": pytest.approx(5 / 8)}
    assert (tally.samples, tally.candidates) == (6, 12)


def test_weights_of_rows_say_nothing_of_samples_so_all_count_alike():
    tally = Counters()
    tally.add(batch([True, False, False, False]), torch.zeros(8, 4), candidates=4, ranks=1)
    assert tally.means() == {"wrong": 0.25}


def test_samples_are_counted_over_all_ranks():
    tally = Counters()
    tally.add(Batch(torch.arange(4), {}), torch.ones(4), candidates=8, ranks=3)
    assert (tally.samples, tally.candidates, tally.means()) == (12, 24, {})


def test_nothing_is_said_of_samples_that_all_weighed_nothing():
    tally = Counters()
    tally.add(batch([True]), torch.zeros(1), candidates=1, ranks=1)
    assert tally.means() == {}


def test_a_tally_goes_on_where_it_was():
    tally = Counters()
    tally.add(batch([True, False]), torch.tensor([3.0, 1.0]), candidates=2, ranks=1)
    again = Counters(**tally.state_dict())
    assert again == tally
    again.add(batch([True, False]), torch.tensor([3.0, 1.0]), candidates=2, ranks=1)
    assert again != tally  # they share nothing

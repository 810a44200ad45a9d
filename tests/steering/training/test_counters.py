"""What an arm was trained on, counted by hand."""

import pytest
import torch

from steering import Batch, UserError
from steering.training import counters
from steering.training.counters import Counters


def batch(wrong: list, rows: list[int] | None = None) -> Batch:
    n = len(wrong) if rows is None else max(rows) + 1
    return Batch(torch.arange(n), {}, {"wrong": torch.tensor(wrong)}, None if rows is None else torch.tensor(rows))


def test_facts_are_weighted_as_the_samples_were():
    """Weights 2, 1, 1, 0 and 3, 1: of 8 in all, the wrong ones carry 2 + 3 = 5."""
    total = Counters()
    total.add(batch([True, False, False, True]), torch.tensor([2.0, 1.0, 1.0, 0.0]), candidates=10)
    total.add(batch([True, False]), torch.tensor([3.0, 1.0]), candidates=2)
    assert total.means() == {"wrong": pytest.approx(5 / 8)}
    assert (total.samples, total.candidates) == (6, 12)


WEIGHTS = torch.tensor([[2.0, 1.0, 0.0], [0.5, 0.0, 0.0], [0.5, 3.0, 1.0]])  # 8 in all; 0 where there is no loss


def test_facts_of_entries_are_weighted_as_the_entries_were_and_facts_of_samples_by_all_of_theirs():
    """Of 8: the wrong entries carry 1 + 0.5 + 3 = 4.5; the entries of samples 0 and 2 carry 3 + 4.5 = 7.5."""
    entries = [[False, True, True], [True, False, False], [False, True, False]]
    for wrong, share in ((entries, 4.5 / 8), ([True, False, True], 7.5 / 8)):
        total = Counters()
        total.add(batch(wrong), WEIGHTS, candidates=3)
        assert total.means() == {"wrong": pytest.approx(share)}


def test_facts_of_flat_entries_are_weighted_as_in_rows_whatever_their_number():
    """The same seven, and three of three samples, where a fact of entries looks like one of samples."""
    flat, rows = torch.tensor([2.0, 1.0, 0.5, 0.5, 3.0, 1.0]), torch.tensor([0, 0, 1, 2, 2, 2])
    both = [batch([False, True, True, False, True, False], rows.tolist()), batch([True, False, True])]
    for one, share in zip(both, (4.5 / 8, 7.5 / 8), strict=True):
        total = Counters()
        total.add(one, flat, candidates=3, rows=rows)
        assert total.means() == {"wrong": pytest.approx(share)}
    weights, rows = torch.tensor([1.0, 2.0, 5.0]), torch.tensor([0, 2, 2])
    for one, share in ((batch([False, True, False], rows.tolist()), 2 / 8), (batch([False, True, False]), 0)):
        total = Counters()
        total.add(one, weights, candidates=3, rows=rows)
        assert total.means() == {"wrong": share}


@pytest.mark.parametrize("shape", [(3, 2), (2,), (3, 3, 1)])
def test_facts_of_another_shape_are_refused(shape):
    wrong = Batch(torch.arange(3), {}, {"wrong": torch.zeros(shape)})
    with pytest.raises(UserError, match=r"the fact 'wrong' is \[3\], or shaped like the losses \[3, 3\]"):
        Counters().add(wrong, WEIGHTS, candidates=3)


def test_samples_are_counted_over_all_ranks(monkeypatch):
    monkeypatch.setattr(counters, "world_size", lambda: 3)
    total = Counters()
    total.add(Batch(torch.arange(4), {}), torch.ones(4), candidates=8)
    assert (total.samples, total.candidates, total.means()) == (12, 24, {})


def test_no_mean_is_given_of_samples_that_all_weighed_nothing():
    total = Counters()
    total.add(batch([True]), torch.zeros(1), candidates=1)
    assert total.means() == {}


def test_counters_go_on_where_they_were():
    total = Counters()
    total.add(batch([True, False]), torch.tensor([3.0, 1.0]), candidates=2)
    again = Counters(**total.state_dict())
    assert again == total
    again.add(batch([True, False]), torch.tensor([3.0, 1.0]), candidates=2)
    assert again != total  # they share nothing

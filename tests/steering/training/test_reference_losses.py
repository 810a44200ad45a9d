"""Reference losses by id: scored once, looked up for ever, the same bits in the next process."""

import pytest
import torch
from torch import nn

from steering import Batch, Losses, Pairs
from steering.testing._generators import states
from steering.training.reference_losses import ReferenceLosses


class Counting:
    """Losses that are the ids themselves, told apart by how often and with what they were asked for."""

    size = 10

    def __init__(self, form: str = "samples"):
        self.form = form
        self.seen: list[int] = []
        self.loaded = 0

    def reference(self) -> nn.Module:
        self.loaded += 1
        return nn.Sequential(nn.Linear(2, 2), nn.Dropout())

    def losses(self, model: nn.Module, batch: Batch) -> Losses:
        assert not model.training and not any(p.requires_grad for p in model.parameters())
        torch.rand(3)
        self.seen += batch.ids.tolist()
        values = batch.ids / 7
        if self.form == "pairs":
            features = nn.functional.normalize(torch.stack([values, 1 - values], -1), dim=-1)
            return Losses(Pairs(features, -features, scale=14.0))
        if self.form == "rows":
            rows = torch.stack([values, values + 1, values + 2], -1).double()
            return Losses(rows, rows < 2)
        return Losses(values)


def batch(*ids: int) -> Batch:
    return Batch(torch.tensor(ids), {})


def test_every_sample_is_scored_once_and_the_reference_loaded_once():
    task = Counting()
    known = ReferenceLosses(task)  # type: ignore[arg-type]
    assert task.loaded == 0
    first = known(batch(3, 1)).values
    second = known(batch(1, 4, 3)).values
    assert task.seen == [3, 1, 4] and task.loaded == 1
    torch.testing.assert_close(first, torch.tensor([3 / 7, 1 / 7]), rtol=0, atol=0)
    torch.testing.assert_close(second, torch.tensor([1 / 7, 4 / 7, 3 / 7]), rtol=0, atol=0)


@pytest.mark.parametrize("form", ["samples", "rows", "pairs"])
def test_another_process_finds_the_same_bits_without_the_reference(tmp_path, form):
    task = Counting(form)
    first = ReferenceLosses(task, folder=tmp_path)(batch(9, 0, 5))  # type: ignore[arg-type]
    later = Counting(form)
    second = ReferenceLosses(later, folder=tmp_path)(batch(9, 0, 5))  # type: ignore[arg-type]
    assert later.loaded == 0 and later.seen == []
    fresh = task.losses(nn.Linear(1, 1).eval().requires_grad_(False), batch(9, 0, 5))
    for expected in (fresh, first):
        assert type(second.values) is type(expected.values)
        torch.testing.assert_close(second, expected, rtol=0, atol=0)


def test_what_one_process_scores_another_sees_at_once(tmp_path):
    tasks = Counting(), Counting()
    one, two = (ReferenceLosses(task, folder=tmp_path) for task in tasks)  # type: ignore[arg-type]
    for known, ids in ((one, [2]), (two, [2, 3]), (one, [3])):
        known(batch(*ids))
    assert [task.seen for task in tasks] == [[2], [3]]


def test_loading_and_scoring_leave_the_generators_alone():
    before = states()
    assert ReferenceLosses(Counting()).model is not None  # type: ignore[arg-type]
    ReferenceLosses(Counting())(batch(1, 2))  # type: ignore[arg-type]
    assert states() == before


def test_pairs_keep_the_scale_of_the_reference(tmp_path):
    known = ReferenceLosses(Counting("pairs"), folder=tmp_path)(batch(1, 2)).values  # type: ignore[arg-type]
    assert isinstance(known, Pairs) and known.scale == 14.0


@pytest.mark.parametrize("form", ["samples", "rows", "pairs"])
def test_rows_above_the_limit_are_scored_anew_with_the_same_bits_for_the_same_batch(tmp_path, monkeypatch, form):
    monkeypatch.setattr("steering.training.reference_losses.MOST_KEPT", 10 * 4 - 1)
    task = Counting(form)
    known = ReferenceLosses(task, folder=tmp_path / "losses")  # type: ignore[arg-type]
    first, second = known(batch(3, 1)), known(batch(3, 1))
    assert task.seen == [3, 1, 3, 1] and task.loaded == 1 and not (tmp_path / "losses").exists()
    assert type(first.values) is type(second.values)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_rows_at_the_limit_are_remembered(monkeypatch):
    monkeypatch.setattr("steering.training.reference_losses.MOST_KEPT", 10 * 4)
    task = Counting()
    known = ReferenceLosses(task)  # type: ignore[arg-type]
    for _ in range(2):
        known(batch(3, 1))
    assert task.seen == [3, 1]


class Storing(Counting):
    """Has the answers to even ids in files."""

    def stored(self, ids):
        return ids % 2 == 0


@pytest.mark.parametrize("form", ["samples", "rows", "pairs"])
def test_what_is_in_files_of_the_task_is_asked_for_every_time_and_never_kept(tmp_path, form):
    task = Storing(form)
    known = ReferenceLosses(task, folder=tmp_path)  # type: ignore[arg-type]
    assert len(known(batch(2, 8)).values) and not (tmp_path / "rows.json").exists()
    mixed = [known(batch(4, 3, 2, 5)) for _ in range(2)]
    assert task.seen == [2, 8, 4, 3, 2, 5, 4, 2]
    later = Storing(form)
    mixed.append(ReferenceLosses(later, folder=tmp_path)(batch(4, 3, 2, 5)))  # type: ignore[arg-type]
    assert later.seen == [4, 2]
    model = nn.Linear(1, 1).eval().requires_grad_(False)
    for found in mixed:
        torch.testing.assert_close(found, Counting(form).losses(model, batch(4, 3, 2, 5)), rtol=0, atol=0)

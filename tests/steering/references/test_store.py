"""Reference losses by id: scored once, looked up ever after, the same bits in the next process."""

import json
import os

import pytest
import torch
from filelock import FileLock
from torch import nn

from steering import Batch, Losses, Pairs, RunError, UserError
from steering.references import ReferenceLosses
from steering.testing._contract import states

FORMS = ["samples", "columns", "tokens", "pairs"]


class Counting:
    """Losses that are functions of the ids, and a list of the ids that they were computed for."""

    size = 10

    def __init__(self, form: str = "samples"):
        self.form = form
        self.scored: list[list[int]] = []
        self.loaded = 0

    def reference(self) -> nn.Module:
        self.loaded += 1
        return nn.Sequential(nn.Linear(2, 2), nn.Dropout())

    def losses(self, model: nn.Module, batch: Batch) -> Losses:
        assert not model.training and not any(p.requires_grad for p in model.parameters())
        torch.rand(3)
        self.scored.append(batch.ids.tolist())
        values = batch.ids / 7
        if self.form == "pairs":
            features = nn.functional.normalize(torch.stack([values, 1 - values], -1), dim=-1)
            return Losses(Pairs(features, -features, scale=14.0))
        if self.form == "columns":
            columns = torch.stack([values, values + 1, values + 2], -1).double()
            return Losses(columns, columns < 2)
        if self.form == "tokens":  # id 0 has none, id 1 one, id 2 two, id 3 none, ...
            counts = (batch.ids % 3).tolist()
            rows = torch.arange(len(batch)).repeat_interleave(batch.ids % 3)
            position = torch.cat([torch.arange(count) for count in counts])
            return Losses(values[rows] + position, rows=rows, outputs=torch.ones(len(rows), 4))
        return Losses(values, outputs=torch.stack([values, -values], -1))


def batch(*ids: int) -> Batch:
    return Batch(torch.tensor(ids), {})


def store(task: Counting, **options) -> ReferenceLosses:
    return ReferenceLosses(task, **options)  # type: ignore[arg-type]


def equal(losses: Losses, expected: Losses) -> None:
    torch.testing.assert_close(losses.values, expected.values, rtol=0, atol=0)
    torch.testing.assert_close(losses[1:], expected[1:], rtol=0, atol=0)


def test_every_sample_is_scored_once_and_the_reference_loaded_once():
    task = Counting()
    losses = store(task)
    assert task.loaded == 0
    first, second = losses(batch(3, 1)), losses(batch(1, 4, 3))
    assert task.scored == [[1, 3], [4]] and task.loaded == 1
    torch.testing.assert_close(first.values, torch.tensor([3 / 7, 1 / 7]), rtol=0, atol=0)
    torch.testing.assert_close(second.values, torch.tensor([1 / 7, 4 / 7, 3 / 7]), rtol=0, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_another_process_finds_the_same_bits_without_the_reference(tmp_path, form):
    task, later = Counting(form), Counting(form)
    first = store(task, folder=tmp_path)(batch(2, 9, 0, 5))
    second = store(later, folder=tmp_path)(batch(2, 9, 0, 5))
    assert later.loaded == 0
    equal(first, second)
    mixed = store(later, folder=tmp_path)(batch(8, 5, 2))  # some stored, some not
    assert later.scored == [[8]]
    if form in ("samples", "columns"):
        equal(mixed, store(Counting(form))(batch(8, 5, 2)))
    if form == "tokens":
        assert mixed.rows is not None and mixed.rows.tolist() == [0, 0, 1, 1, 2, 2]
        torch.testing.assert_close(mixed.values, torch.tensor([8 / 7, 8 / 7 + 1, 5 / 7, 5 / 7 + 1, 2 / 7, 2 / 7 + 1]))


def test_a_sample_that_is_several_times_in_a_batch_has_one_loss():
    for form in ("samples", "tokens"):
        task = Counting(form)
        losses = store(task)
        for _ in range(2):
            values = losses(batch(4, 2, 4)).values
            assert isinstance(values, torch.Tensor) and len(values) == (3 if form == "samples" else 4)
            assert values[0] == values[-1]
        assert task.scored == [[2, 4]]


def test_what_one_process_scores_another_sees_at_once(tmp_path):
    tasks = Counting(), Counting()
    one, other = (store(task, folder=tmp_path) for task in tasks)
    for losses, ids in ((one, [2]), (other, [2, 3]), (one, [3])):
        losses(batch(*ids))
    assert [task.scored for task in tasks] == [[[2]], [[3]]]


def test_loading_and_scoring_leave_the_contract_alone():
    before = states()
    assert store(Counting()).model is not None
    store(Counting())(batch(1, 2))
    assert states() == before


def cut(path):
    path.write_bytes(path.read_bytes()[:-5])


def blank(path):
    path.write_bytes(bytes(path.stat().st_size))


def foreign(path):
    path.write_bytes(path.read_bytes()[::-1])


@pytest.mark.parametrize("damage", [cut, blank, foreign])
@pytest.mark.parametrize("file", ["entries.bin", "index.bin"])
def test_what_a_crash_tore_is_scored_anew(tmp_path, damage, file):
    expected = store(Counting("tokens"), folder=tmp_path)(batch(2, 5, 8))
    damage(tmp_path / file)
    equal(store(Counting("tokens"), folder=tmp_path)(batch(2, 5, 8)), expected)
    task = Counting("tokens")  # of the next process, for which all is whole again
    equal(store(task, folder=tmp_path)(batch(2, 5, 8)), expected)
    assert task.scored == []


GOOD = {"version": 2, "size": 10, "stored": True, "kind": {"parts": {"values": ["float32"]}, "ragged": False}}
GOOD["kind"]["scale"] = None  # type: ignore[index]
LAYOUTS = [
    *({**GOOD, "version": x} for x in (1, None, 10**400)),
    *({**GOOD, "size": x} for x in (9, 10**12, "10", [10])),
    *({**GOOD, "kind": x} for x in (None, [], {}, "kind")),
    *({**GOOD, "kind": {**GOOD["kind"], "parts": x}} for x in ({}, [], None, {"values": []}, {"values": "float32"})),
    *({**GOOD, "kind": {**GOOD["kind"], "parts": {"values": x}}} for x in ([10**12, "float32"], [-1, "float32"])),
    *({**GOOD, "kind": {**GOOD["kind"], "parts": {"values": x}}} for x in (["__class__"], [True, "float32"], [[1], 2])),
    {**GOOD, "kind": {**GOOD["kind"], "parts": {"values": [2] * 9 + ["float32"]}}},
    {**GOOD, "kind": {**GOOD["kind"], "parts": {"code": ["float32"]}}},
    {**GOOD, "kind": {**GOOD["kind"], "ragged": 3}},
    {**GOOD, "kind": {**GOOD["kind"], "scale": "x"}},
]


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "null", "9" * 5000, "\0", *map(json.dumps, LAYOUTS)])
def test_a_layout_that_is_another_or_damaged_is_refused(tmp_path, text):
    (tmp_path / "layout.json").write_text(text)
    refused = r"layout.json is .*: delete \S+, and the reference's losses are scored anew$"
    with pytest.raises(UserError, match=refused) as caught:
        store(Counting(), folder=tmp_path)(batch(1))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["layout.json", "index.bin", "entries.bin"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_a_pipe_a_device_or_a_folder_in_the_place_of_a_file_is_refused_and_not_waited_for(tmp_path, name, make):
    store(Counting(), folder=tmp_path)(batch(1))
    (tmp_path / name).unlink()
    make(tmp_path / name)
    with pytest.raises(UserError, match=r"layout.json is damaged: delete \S+, and the reference's losses are scored"):
        store(Counting(), folder=tmp_path)(batch(1))


def test_a_lock_that_nobody_gives_back_is_not_waited_for_for_ever(tmp_path, monkeypatch):
    monkeypatch.setenv("STEER_PATIENCE", "0.1")
    with FileLock(tmp_path / ".lock"), pytest.raises(RunError, match=r"another process holds \S+lock. Is it stopped\?"):
        store(Counting(), folder=tmp_path)(batch(1))


def test_a_folder_that_cannot_be_written_is_a_run_error(tmp_path):
    losses = store(Counting(), folder=tmp_path)
    losses(batch(1))
    (tmp_path / "entries.bin").unlink()
    (tmp_path / "entries.bin").mkdir()
    with pytest.raises(RunError, match=r"^cannot write \S+entries.bin: [^\n]+ another folder with --out$"):
        losses(batch(2))


def test_outputs_are_stored_when_they_are_needed_and_losses_stay_as_they_were(tmp_path):
    task = Counting()
    losses = store(task, folder=tmp_path)
    assert losses(batch(1, 2)).outputs is None and not (tmp_path / "outputs").exists()
    with_outputs = losses(batch(2, 3), outputs=True)
    torch.testing.assert_close(with_outputs.outputs, torch.tensor([[2 / 7, -2 / 7], [3 / 7, -3 / 7]]))
    equal(store(Counting(), folder=tmp_path)(batch(2, 3), outputs=True), with_outputs)
    assert losses(batch(3)).outputs is None
    assert task.scored == [[1, 2], [2, 3]]
    pairs = Counting("pairs")
    for _ in range(2):
        store(pairs, folder=tmp_path / "pairs")(batch(1), outputs=True)
    assert pairs.scored == [[1]]


def test_missing_samples_are_scored_in_micro_batches():
    for form in FORMS:
        task = Counting(form)
        losses = store(task, micro_batch=2)(batch(8, 1, 5, 2, 7))
        assert task.scored == [[1, 2], [5, 7], [8]]
        if form in ("samples", "columns"):
            equal(losses, store(Counting(form))(batch(8, 1, 5, 2, 7)))


@pytest.mark.parametrize("form", ["samples", "pairs"])
def test_answers_above_the_limit_are_scored_anew_with_the_same_bits_for_the_same_batch(tmp_path, monkeypatch, form):
    monkeypatch.setattr("steering.references.records.MOST_STORED", 10 * 4 - 1)
    task = Counting(form)
    losses = store(task, folder=tmp_path)
    equal(losses(batch(3, 1)), losses(batch(3, 1)))
    assert task.scored == [[1, 3], [1, 3]] and not (tmp_path / "entries.bin").exists()


def test_answers_at_the_limit_are_stored(monkeypatch):
    monkeypatch.setattr("steering.references.records.MOST_STORED", 10 * 4)
    task = Counting()
    losses = store(task)
    for _ in range(2):
        losses(batch(3, 1))
    assert task.scored == [[1, 3]]


class Storing(Counting):
    """Has the answers to even ids in files."""

    def stored(self, ids):
        return ids % 2 == 0


def test_what_is_in_files_of_the_task_is_asked_for_every_time_and_never_stored(tmp_path):
    task = Storing("columns")
    losses = store(task, folder=tmp_path)
    losses(batch(2, 8))
    assert not (tmp_path / "layout.json").exists()
    mixed = [losses(batch(4, 3, 2, 5)) for _ in range(2)]
    assert task.scored == [[2, 8], [2, 3, 4, 5], [2, 4]]
    later = Storing("columns")
    mixed.append(store(later, folder=tmp_path)(batch(4, 3, 2, 5)))
    assert later.scored == [[2, 4]]
    for losses in mixed:
        equal(losses, store(Counting("columns"))(batch(4, 3, 2, 5)))


class Wrong(Counting):
    def __init__(self, losses):
        super().__init__()
        self.losses = lambda model, batch: losses(batch)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (lambda batch: Losses(torch.ones(1)), "a loss for each of 2 samples, got {'values': \\[1\\]}"),
        (lambda batch: Losses(torch.tensor(1.0)), "a loss for each of 2 samples, got {'values': \\[\\]}"),
        (lambda batch: Losses(torch.ones(3), rows=torch.tensor([0, 1])), "each of 2 entries \\(Losses.rows\\), got"),
        (lambda batch: Losses(torch.ones(1), rows=torch.tensor([2])), "are from 0 to 1, got \\[2\\]"),
        (lambda batch: Losses(torch.ones(2, 1 + int(batch.ids[0]))), "have one form, got .* pad all batches alike, or"),
    ],
)
def test_losses_that_are_not_of_the_samples_are_refused(losses, message):
    reference_losses = store(Wrong(losses))
    with pytest.raises(UserError, match=message):
        for first in (0, 2):
            reference_losses(batch(first, first + 1))

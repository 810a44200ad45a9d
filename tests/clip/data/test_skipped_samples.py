"""Counts of unusable samples: once each, whoever reads them and however often."""

import os
import signal
from collections import Counter

import pytest
from torch import multiprocessing
from torch.utils.data import DataLoader

from steering.clip.data import skipped_samples
from steering.clip.data.skipped_samples import SharedCounts, worker_errors, worker_options
from steering.errors import RunError, UserError


def test_a_sample_counts_once_under_its_first_reason():
    counts = SharedCounts(20, 2)
    counts.add_seen(50)
    for number in (7, 8, 7, 15, 8):
        counts.add_bad("no picture", number)
    counts.add_bad("broken JSON", 7)
    counts.add_stand_in()
    assert counts.totals() == (50, Counter({"no picture": 3}), [15], 1)


def test_lost_shards_are_remembered():
    counts = SharedCounts(20, 3)
    assert counts.add_shard(2) == [2] and counts.add_shard(0) == [0, 2] and counts.add_shard(2) == [0, 2]


def _count(counts):
    for number in range(0, 1000, 3):
        counts.add_seen(1)
        counts.add_bad("no picture", number)


@pytest.mark.slow
def test_other_processes_count_into_the_same_table():
    counts = SharedCounts(1000, 1)
    for _ in range(2):
        process = multiprocessing.get_context("fork").Process(target=_count, args=(counts,))
        process.start()
        process.join()
    seen, reasons, _, _ = counts.totals()
    assert (seen, reasons) == (668, {"no picture": 334})


class Failing:
    """A data set whose second sample ends the process that reads it, or raises."""

    def __init__(self, fail):
        self.fail = fail

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.fail() if index == 1 else index


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def without_memory():
    raise RuntimeError("unable to write to file </torch_1_2_3>: No space left on device (28)")


def stopped():
    os.kill(os.getpid(), signal.SIGSTOP)


def misused():
    raise UserError("0.tar holds no pictures")


def lost():
    raise RunError("0.tar could not be read")


LOST = r"^a process that reads data was lost or stopped \(.*\), for want of memory as a rule: take fewer workers"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fail", "kind", "message"),
    [
        (killed, RunError, LOST),
        (stopped, RunError, LOST),
        (without_memory, RunError, LOST),
        (misused, UserError, "^0.tar holds no pictures$"),
        (lost, RunError, "^0.tar could not be read$"),
    ],
)
def test_whatever_ends_a_process_that_reads_is_one_line(monkeypatch, fail, kind, message):
    monkeypatch.setattr(skipped_samples, "STOPPED", 3)
    loader = DataLoader(Failing(fail), batch_size=None, **worker_options(1))  # type: ignore[arg-type]
    with pytest.raises(kind, match=message) as error:
        list(worker_errors(iter(loader)))
    assert "\n" not in str(error.value)

"""Counts of unusable samples: once each, whoever reads them and however often."""

from collections import Counter

import pytest
from torch import multiprocessing

from steering.clip.data.skipped_samples import SharedCounts


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

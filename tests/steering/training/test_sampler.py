"""Orders: every sample once, whoever reads which part, in bounded memory."""

from collections import Counter

import numpy as np
import pytest
import torch

from steering import UserError
from steering.training.sampler import Permutation, Windows

LENGTHS = [int(n) for n in np.random.default_rng(0).integers(1, 400, 37)]  # unequal shards


def windows(lengths=LENGTHS, *, batch=64, seed=0, **options):
    return Windows(lengths, batch=batch, seed=seed, **options)


def epoch(order, number=0):
    return order.ids(number, 0, order.length(number)).tolist()


@pytest.mark.parametrize("batch, window", [(64, 20), (48, 32_768), (7, 1), (5120, 20)])
def test_an_epoch_shows_every_sample_once(batch, window):
    assert sorted(epoch(windows(batch=batch, window=window))) == list(range(sum(LENGTHS)))


def test_the_order_depends_on_seed_and_epoch_alone_not_on_what_was_asked_before():
    one = windows(window=50)
    epochs = [epoch(one, number) for number in (0, 1, 2)]
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != epoch(windows(window=50, seed=1))
    assert one.ids(1, 700, 900).tolist() == epochs[1][700:900]
    assert one.ids(0, 30, 35).tolist() == epochs[0][30:35]
    assert windows(window=50).ids(2, 1000, 1200).tolist() == epochs[2][1000:1200]


def test_a_rank_reads_few_shards_at_a_time_and_a_batch_many():
    """100 shards of 1,000: eight ranks of eight lanes each; a lane is 1.6 shards long, and 250 are mixed."""
    order = windows([1000] * 100, batch=64, window=250)
    for turn in range(0, 1500, 50):
        shards = order.ids(0, turn * 64, turn * 64 + 64) // 1000
        assert len(shards.unique()) >= 40
        assert all(len(part.unique()) <= 16 for part in shards.chunk(8))


def test_neighbours_in_a_shard_are_shown_far_from_each_other():
    """100 shards of 100: neighbours of one lane come in the same batch or the next with a chance of 2 in 156."""
    positions = torch.tensor(epoch(windows([100] * 100, batch=64))).argsort()
    assert (positions.diff().abs() < 64).float().mean() < 0.03


def test_samples_that_are_left_out_never_occur():
    total = sum(LENGTHS)
    left_out = [0, 1, 5, LENGTHS[0], 3000, total - 1]
    for order in (windows(left_out=left_out), Permutation(total, seed=0, left_out=left_out)):
        assert order.size == order.length(0) == total - 6
        assert sorted(epoch(order)) == sorted(set(range(total)) - set(left_out))


def test_empty_shards_do_no_harm():
    assert sorted(epoch(windows([0, 5, 0, 3, 0], batch=4))) == list(range(8))


def test_weights_show_heavy_samples_more_often_and_all_of_a_shard_equally():
    lengths, weights = [300, 7, 1, 40], [3, 1.5, 1.5, 1]
    order = windows(lengths, batch=8, weights=weights)
    seen = Counter(number for turn in range(30) for number in epoch(order, turn))
    first = 0
    for length, weight in zip(lengths, weights, strict=True):
        times = [seen[number] for number in range(first, first + length)]
        assert max(times) - min(times) <= 1 and sum(times) == pytest.approx(30 * length * weight / 3, abs=1)
        first += length
    assert len(set(epoch(order))) == len(epoch(order)), "none is twice in an epoch"


def test_fingerprints_tell_orders_apart_but_not_seeds():
    orders = [
        windows(),
        windows(window=5),
        windows([*LENGTHS, 3]),
        windows(LENGTHS[::-1]),
        windows(left_out=[3]),
        windows(weights=LENGTHS),
        windows(name="other"),
        Permutation(sum(LENGTHS), seed=0),
        Permutation(sum(LENGTHS), seed=0, left_out=[3]),
        Permutation(sum(LENGTHS), seed=0, name="other"),
    ]
    assert len({order.fingerprint for order in orders}) == len(orders)
    assert windows(seed=5).fingerprint == windows().fingerprint


def test_a_window_of_nothing_is_refused():
    with pytest.raises(UserError, match="a window is a number of samples, 1 or more, got 0"):
        windows(window=0)

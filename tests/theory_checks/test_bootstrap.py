"""Resampling: what a draw is, that pairs stay pairs, and that intervals cover what they say they cover."""

import doctest
import math

import numpy as np
import pytest

from steering.theory_checks import bootstrap
from steering.theory_checks.bootstrap import Drawn, interval, means, multiplicities, slopes, two_level


def generator(*seed: int):
    return np.random.default_rng(seed or 0)


def test_the_example_of_the_module_is_true():
    assert doctest.testmod(bootstrap).failed == 0


def test_a_draw_takes_as_many_units_as_there_are_each_one_time_on_average():
    taken = np.concatenate(list(multiplicities(7, 20_000, generator())))
    assert (taken.sum(1) == 7).all()
    assert taken.mean(0) == pytest.approx(np.ones(7), abs=0.04)  # 6 standard errors of sqrt(6/7 / 20,000)
    assert taken.var() == pytest.approx(6 / 7, abs=0.03)


def test_blocks_of_draws_are_as_many_as_asked_for(monkeypatch):
    monkeypatch.setattr(bootstrap, "BLOCK", 30)
    assert [len(block) for block in multiplicities(10, 8, generator())] == [3, 3, 2]
    assert [len(block) for block in multiplicities(100, 2, generator())] == [1, 1]


def test_clusters_are_taken_whole_and_weigh_by_their_size():
    """Two clusters, of one sample with the value 0 and of three with 1: a draw of both, or of either one twice."""
    x, clusters = np.array([[0.0], [1], [1], [1]]), np.array([5, 2, 2, 2])
    drawn = means(x, rng=generator(), clusters=clusters, draws=1000)
    values, often = np.unique(drawn, return_counts=True)
    assert values.tolist() == [0, 0.75, 1]
    assert often / 1000 == pytest.approx([0.25, 0.5, 0.25], abs=0.06)


def test_copies_of_a_sample_in_one_cluster_widen_no_less_than_they_should():
    """Every value ten times over says no more than once: the interval is the same, not sqrt(10) times narrower."""
    x = generator(2).normal(size=(60, 1))
    alone = means(x, rng=generator(), draws=4000).std()
    assert alone == pytest.approx(x.std() / np.sqrt(60), rel=0.05)
    tenfold = means(np.repeat(x, 10, 0), rng=generator(), clusters=np.repeat(np.arange(60), 10), draws=4000).std()
    assert tenfold == pytest.approx(alone, rel=0.06)


def test_repetitions_vary_as_much_as_both_levels_say():
    """Means 0 and 2 with inner spread 0.3: over two repetitions the variance is 1 / 2 + 0.09 / 2."""
    inner = generator(4).normal(0, 0.3, size=(2, 3000))
    parts = [Drawn(0.0, inner[0]), Drawn(2.0, 2 + inner[1])]
    mean = two_level(parts, rng=generator(), draws=20_000)
    assert mean.value == 1
    assert mean.draws.var() == pytest.approx(0.5 + 0.045, rel=0.05)


def test_samples_that_repetitions_share_do_not_average_out():
    """A hundred repetitions that agree but for the draw of the same samples hold no more than one of them."""
    draws = generator(5).normal(size=2000)
    parts = [Drawn(0.0, draws)] * 100
    assert two_level(parts, rng=generator(), crossed=True).draws.std() == pytest.approx(1, rel=0.06)
    assert two_level(parts, rng=generator()).draws.std() == pytest.approx(0.1, rel=0.06)


def test_intervals_over_few_units_reach_as_far_as_students():
    """Normal draws of ten units with spread s sqrt(0.9): the ends lie at t_9 s, 2.26 s, not at 1.86 s."""
    draws = generator(6).normal(size=400_000) * math.sqrt(0.9)
    estimate = interval(Drawn(0.0, draws), 10)
    assert estimate.high == pytest.approx(2.262, rel=0.02)
    assert estimate.low == pytest.approx(-2.262, rel=0.02)
    assert interval(Drawn(0.0, draws), 10_000).high == pytest.approx(1.96 * math.sqrt(0.9), rel=0.01)
    assert interval(Drawn(0.0, np.zeros(10)), 1).high == math.inf


def test_an_infinite_draw_leaves_an_interval():
    estimate = interval(Drawn(0.0, np.array([-math.inf, *np.zeros(99)])), 1000)
    assert (estimate.low, estimate.high) == (0, 0)


def test_slopes_are_those_of_the_samples_that_were_taken():
    """Heights 0, 1, 4 at 0, 1, 2: slope 2; without the last 1, with it twice and without the middle 2; a point none."""
    weights = np.array([[1.0, 1, 1], [1, 1, 0], [1, 0, 2], [3, 0, 0]])
    drawn = slopes(np.arange(3.0), np.array([0.0, 1, 4]), weights)
    assert drawn == pytest.approx([2, 1, 2, math.nan], nan_ok=True)


def log_variance_ratio(first, second, *, rng, draws):
    """log(Var(first) / Var(second)) of paired values ``[n]``, with its draws."""
    columns = np.stack([first, first**2, second, second**2], 1)
    drawn = np.concatenate([columns.mean(0)[None], means(columns, rng=rng, draws=draws)])
    ratios = np.log(drawn[:, 1] - drawn[:, 0] ** 2) - np.log(drawn[:, 3] - drawn[:, 2] ** 2)
    return Drawn(float(ratios[0]), ratios[1:])


def coverage(sample, truth, repetitions, size):
    """Share of the intervals that hold the true log ratio of variances of both columns of ``sample``."""
    hits = 0
    for repetition in range(repetitions):
        rng = generator(0, repetition)
        estimate = interval(log_variance_ratio(*sample(rng, size), rng=rng, draws=400), size)
        hits += estimate.low <= truth <= estimate.high
    return hits / repetitions


@pytest.mark.slow
def test_intervals_of_light_tails_cover_what_they_say():
    """Gamma losses of kurtosis 4.5, the reference's 0.8 times as large and half in common: 300 times 150 samples.

    The binomial's 99.9 % limits around 0.95 are 0.91 and 0.99; the bootstrap is expected to lie a little below.
    """

    def sample(rng, size):
        common, target, reference = rng.gamma(2.0, size=(3, size))
        return common + target - 0.8 * (common + reference), common + target

    # variances, in units of a part's 2: l has 2, d has 0.2^2 + 1 + 0.8^2 = 1.68
    assert 0.90 <= coverage(sample, math.log(1.68 / 2), 300, 150) <= 0.99


@pytest.mark.slow
def test_intervals_over_seeds_and_samples_cover_what_they_say():
    """Six seeds whose ratios scatter by 0.2, 100 samples each, against the mean of all seeds: 200 repetitions."""
    hits = 0
    for repetition in range(200):
        rng = generator(7, repetition)
        parts = []
        for _ in range(6):
            a, b = rng.normal(size=(2, 100))
            scale = math.exp(rng.normal(0, 0.1))  # of a; the log of the ratio of variances scatters by 0.2
            parts.append(log_variance_ratio(scale * a, b, rng=rng, draws=300))
        estimate = interval(two_level(parts, rng=rng), 6)
        hits += estimate.low <= 0 <= estimate.high
    assert 0.90 <= hits / 200, "two levels err on the wide side"


@pytest.mark.slow
def test_no_interval_covers_where_single_samples_carry_the_variance():
    """Lognormal with sigma 2: the true variance lives in samples that are hardly ever seen."""

    def sample(rng, size):
        return np.exp(2 * rng.normal(size=size)), rng.normal(size=size)

    assert coverage(sample, math.log((math.exp(4) - 1) * math.exp(4)), 100, 200) < 0.8

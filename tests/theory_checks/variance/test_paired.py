"""Losses of image-text pairs against plain loops, and draws that take whole pairs."""

import math

import numpy as np
import pytest

from steering.theory_checks.variance.measure import FIGURES, measure
from steering.theory_checks.variance.paired import Features, PairLosses, Samples, anchor_losses, views


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def features(number=6, width=4, seed=0):
    chance = np.random.default_rng(seed)
    left = chance.normal(size=(number, width))
    return Features(unit(left), unit(left + chance.normal(size=(number, width))))


def test_losses_are_the_papers_from_either_side():
    result = features()
    for i in range(6):
        for j in range(6):
            matching = result.left[i] @ result.right[i]
            assert result.losses("image")[i, j] == pytest.approx(result.left[i] @ result.right[j] - matching)
            assert result.losses("text")[i, j] == pytest.approx(result.left[j] @ result.right[i] - matching)


def test_variances_over_pairs_leave_out_the_own_one():
    target, reference = features(seed=1).losses("image"), features(seed=2).losses("image")
    off = ~np.eye(6, dtype=bool)
    moments = PairLosses(target, reference).moments()
    assert moments.variance == pytest.approx(target[off].var())
    assert moments.reference_variance == pytest.approx(reference[off].var())
    assert moments.difference_variance == pytest.approx((target - reference)[off].var())
    assert moments.mean == pytest.approx(target[off].mean())


def test_variances_within_an_anchor_are_averaged_over_anchors():
    target, reference = features(seed=1).losses("text"), features(seed=2).losses("text")
    off = ~np.eye(6, dtype=bool)
    moments = PairLosses(target, reference, within=True).moments()
    variances = [np.var(target[i][off[i]]) for i in range(6)]
    assert moments.variance == pytest.approx(np.mean(variances))
    assert moments.difference_variance == pytest.approx(
        np.mean([np.var((target - reference)[i][off[i]]) for i in range(6)])
    )


@pytest.mark.parametrize("within", [False, True])
def test_a_draw_takes_whole_pairs_as_anchors_and_negatives(within):
    """Moments of a draw are those of the list of pairs that were taken, copies being no negatives of each other."""
    target, reference = features(seed=3).losses("image"), features(seed=4).losses("image")
    pair = PairLosses(target, reference, within)
    taken = np.array([0, 0, 1, 3, 5, 5])
    weights = np.bincount(taken, minlength=6)[None].astype(float)
    result = float(pair._moments(weights).variance[0])
    rows = [[target[i, j] for j in taken if j != i] for i in taken]
    expected = np.mean([np.var(row) for row in rows]) if within else np.var(np.concatenate(rows))
    assert result == pytest.approx(expected)


def test_intervals_know_that_pairs_share_their_texts():
    """40 pairs make 1,560 losses, but not as many draws: intervals are far wider than of 1,560 free ones."""
    result = views(features(40, 8, 5), features(40, 8, 6), 0.1)["image side, per pair"]
    chance = np.random.default_rng(0)
    spread = np.log(FIGURES["ratio"].of(result.draws(300, chance))).std()

    loss, reference, _ = result.flat()
    free = np.log(FIGURES["ratio"].of(Samples(loss, reference).draws(300, chance))).std()
    assert spread > 1.5 * free


def test_an_anchors_loss_is_the_global_contrastive_one():
    losses = features().losses("image")
    tau = 0.2
    for i in range(6):
        mean = np.mean([math.exp(losses[i, j] / tau) for j in range(6) if j != i])
        assert anchor_losses(losses, tau)[i] == pytest.approx(tau * math.log(mean))


def test_equal_models_leave_nothing_and_strangers_add():
    same, other = features(30, 8, 7), features(30, 8, 8)
    for name, pair in views(same, same, 0.1).items():
        assert float(FIGURES["ratio"].of(pair.moments())) == pytest.approx(0, abs=1e-9), name
    for name, pair in views(same, other, 0.1).items():
        result = measure([pair], draws=50)
        assert result.shuffled == pytest.approx(result.uncorrelated, rel=0.15), name
        assert result.ratio.value > 1, name


def test_there_are_six_views_with_the_papers_first():
    names = list(views(features(), features(), 0.1))
    assert names[0] == "image side, per pair" and len(names) == 6
    assert {name.partition(" side, ")[2] for name in names} == {"per pair", "within an anchor", "per anchor"}


def test_tails_of_pairs_are_counted_by_pair():
    """One pair whose image is near every text but its own carries the variance, spread over its 29 losses."""
    target = np.random.default_rng(9).normal(size=(30, 30)) / 100
    target[0] += 1
    result = measure([PairLosses(target, np.zeros((30, 30)))], draws=10)
    assert result.tails.loss_share > 0.9 and not result.reliable

"""The figures of two losses against hand arithmetic and the closed form of a regression."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steering.theory_checks.variance.measure import FIGURES, measure
from steering.theory_checks.variance.paired import Samples
from steering.theory_checks.variance.verdicts import verdict


def rng(seed=0):
    return np.random.default_rng(seed)


def figure(name, target, reference):
    return float(FIGURES[name].of(Samples(np.array(target, float), np.array(reference, float)).moments()))


def regression(distance, number, chance):
    """Squared losses of the true model and of one off by ``delta`` with delta' Sigma delta / sigma^2 = distance."""
    noise, x = chance.normal(size=(2, number))
    return noise**2, (noise + distance**0.5 * x) ** 2


def test_figures_agree_with_hand_arithmetic():
    """l = 0, 2, 4, 6 and l_ref = 1, 2, 3, 6: Var(l) = 5, Var(l_ref) = 3.5, Cov = 4, so Var(d) = 0.5."""
    target, reference = [0, 2, 4, 6], [1, 2, 3, 6]
    hand = {
        "ratio": 0.1,
        "variance": 5,
        "difference_variance": 0.5,
        "correlation": 4 / 17.5**0.5,
        "deviations": 0.7**0.5,
        "margin": 4 / 17.5**0.5 - 0.7**0.5 / 2,
        "beta": 8 / 7,
        "ratio_at_beta": 1 - 16 / 17.5,
        "loss": 3,
        "difference": 0,
    }
    assert set(hand) == set(FIGURES)
    for name, value in hand.items():
        assert figure(name, target, reference) == pytest.approx(value), name


@pytest.mark.parametrize(
    ("distance", "expected"), [(0.05, "smaller"), (0.2, "smaller"), (2**0.5 - 1, "undecided"), (1, "larger")]
)
def test_a_regression_has_the_ratio_of_its_closed_form(distance, expected):
    """R = 2 r + r^2 for a reference whose excess risk is r times the noise; it falls below 1 at r = sqrt(2) - 1."""
    measured = measure([Samples(*regression(distance, 20_000, rng(1)))], draws=300)
    truth = 2 * distance + distance**2
    assert measured.ratio.value == pytest.approx(truth, rel=0.1)
    assert measured.ratio.low < truth < measured.ratio.high
    assert verdict(measured.ratio) == expected


losses = st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), min_size=3, max_size=30).filter(
    lambda pairs: min(np.ptp(np.array(pairs), axis=0)) > 0.1
)


@given(losses)
def test_the_ratio_is_below_one_exactly_where_the_correlation_is_high_enough(pairs):
    target, reference = np.array(pairs).T
    ratio, margin = figure("ratio", target, reference), figure("margin", target, reference)
    if abs(ratio - 1) > 1e-6:
        assert (ratio < 1) == (margin > 0)


@given(losses, st.floats(-3, 3))
def test_no_scale_of_the_reference_leaves_less_than_beta(pairs, scale):
    target, reference = np.array(pairs).T
    assert figure("ratio_at_beta", target, reference) <= figure("ratio", target, scale * reference) + 1e-9
    beta = figure("beta", target, reference)
    assert figure("ratio", target, beta * reference) == pytest.approx(
        figure("ratio_at_beta", target, reference), abs=1e-9
    )


def test_losses_of_other_samples_add_their_variance():
    """Unrelated losses have R = 1 + Var(l_ref) / Var(l); 20 shuffles of 2,000 leave 1 % of chance."""
    target, reference = regression(0.1, 2000, rng(2))
    measured = measure([Samples(target, 2 * reference)], draws=50)
    assert measured.uncorrelated == pytest.approx(1 + 4 * reference.var() / target.var())
    assert measured.shuffled == pytest.approx(measured.uncorrelated, rel=0.05)
    assert measured.ratio.value < 0.5 * measured.shuffled


def test_the_best_temperature_undoes_an_over_confident_reference():
    """l_ref(T) = a + (3 / T) x says that of a reference whose scores are tripled only a third is right."""
    x = rng(3).normal(size=500)
    noise = rng(4).normal(size=500) / 10
    measured = measure([Samples(x, 3 * x + noise, None, lambda temperature: (3 * x + noise) / temperature)], draws=50)
    assert measured.ratio.value > 3
    assert measured.temperature == pytest.approx(3, rel=0.02)
    assert measured.tempered == pytest.approx(0, abs=0.01)


def test_without_scores_there_is_no_temperature():
    measured = measure([Samples(*regression(0.1, 50, rng()))], draws=20)
    assert measured.temperature is None and measured.tempered is None


def test_one_wild_sample_is_called_unreliable_and_drawn_in():
    target, reference = regression(0.1, 500, rng(5))
    calm = measure([Samples(target, reference)], draws=50)
    reference = reference.copy()
    reference[0] += 500
    wild = measure([Samples(target, reference)], draws=50)
    assert calm.reliable and not wild.reliable
    assert wild.tails.difference_share > 0.9
    assert wild.ratio.value > 100
    assert wild.winsorised.value == pytest.approx(calm.winsorised.value, rel=0.25)


def test_heavy_tails_are_called_unreliable_though_no_sample_carries_a_tenth():
    x = rng(6).standard_t(2.5, size=100_000)
    measured = measure([Samples(x, np.zeros_like(x))], draws=10)
    assert measured.tails.loss_share < 0.1 or measured.tails.loss_kurtosis > 50
    assert not measured.reliable


def test_a_target_that_became_the_reference_has_the_ratio_zero():
    target, _ = regression(0, 200, rng(7))
    measured = measure([Samples(target, target)], draws=20)
    assert measured.ratio.value < 1e-12 and measured.ratio.high < 1e-12


def test_clusters_make_intervals_wider():
    target, reference = (np.repeat(x, 8) for x in regression(0.3, 100, rng(8)))
    alone = measure([Samples(target, reference)], draws=400).ratio
    together = measure([Samples(target, reference, np.repeat(np.arange(100), 8))], draws=400).ratio
    assert together.value == pytest.approx(alone.value)
    assert np.log(together.high / together.low) > 2 * np.log(alone.high / alone.low)


def test_several_seeds_give_the_geometric_mean_and_an_interval_over_them():
    pairs = [Samples(*regression(distance, 5000, rng(9))) for distance in (0.1, 0.2, 0.4)]
    measured = measure(pairs, draws=100)
    assert measured.repetitions == 3 and len(measured.ratios) == 3
    assert measured.ratio.value == pytest.approx(np.prod(measured.ratios) ** (1 / 3))
    assert measured.ratio.low <= min(measured.ratios) * 1.05 and measured.ratio.high >= max(measured.ratios) * 0.95


def test_the_same_seed_draws_the_same_intervals():
    pairs = [Samples(*regression(0.2, 200, rng(10)))]
    assert measure(pairs, draws=50) == measure(pairs, draws=50)
    assert measure(pairs, draws=50).ratio != measure(pairs, draws=50, seed=1).ratio


def test_a_scale_that_is_asked_for_scales_the_reference():
    target, reference = regression(0.3, 400, rng(11))
    measured = measure([Samples(target, reference)], scale=0.3, draws=50).figures["ratio_at_scale"]
    assert measured.value == pytest.approx(np.var(target - 0.3 * reference) / np.var(target))
    assert measured.low < measured.value < measured.high

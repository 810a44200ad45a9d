import numpy as np
import pytest

from steering.theory_checks.bootstrap import Drawn
from steering.theory_checks.bound.finite_class import BEST, EXCESS, ORDINARY, draw
from steering.theory_checks.bound.own_reference import (
    MIDDLING,
    VARIANTS,
    SamplesNeeded,
    _reached,
    against,
    exponent,
    fitted,
    upper_quantile,
    with_references,
)

REFERENCES = np.array([BEST, MIDDLING, 0])
LOSSES, DIFFERENCES, ABOVE = with_references(REFERENCES)


def test_the_stated_risks_above_the_reference_are_means_of_the_differences():
    counts = draw(1_000_000, 3, np.random.default_rng(0))
    measured = (DIFFERENCES * counts).sum(-1) / 1_000_000
    assert np.abs(measured - ABOVE).max() < 1.5e-3  # five standard errors of the widest difference
    assert (np.take_along_axis(ABOVE, REFERENCES[:, None], 1) == 0).all()


def test_losses_and_differences_differ_by_one_reference_for_all():
    reference = LOSSES - DIFFERENCES
    assert np.ptp(reference, axis=1).max() < 1e-15
    assert (np.take_along_axis(DIFFERENCES, REFERENCES[:, None, None], 1) == 0).all()


def test_variants_differ_from_the_reference_only_by_their_rare_failures():
    variants = DIFFERENCES[:, VARIANTS]
    assert (variants == variants[:1]).all() and all(len(np.unique(row)) == 2 for row in variants[0])


def test_a_target_with_the_reference_is_never_far_worse_where_erm_is():
    """At n = 50 the quantile of ERM is four times that of DRRho (0.02 and 0.005)."""
    above = against(np.full(200, MIDDLING), 50, np.random.default_rng(0))
    assert np.quantile(above["DRRho"], 0.95) < 0.5 * np.quantile(above["ERM"], 0.95)
    assert (above["DRRho"] > 0).mean() > (above["ERM"] > 0).mean()  # more often, yet by less


def test_a_reference_fitted_on_more_samples_is_better_and_no_variant():
    few, many = (fitted(m, 200, np.random.default_rng(0)) for m in (100, 6400))
    assert EXCESS[many].mean() < 0.5 * EXCESS[few].mean()
    assert not np.isin(np.r_[few, many], np.arange(ORDINARY, BEST)).any()


def test_the_upper_quantile_is_bracketed_by_its_draws():
    value, drawn = upper_quantile(np.arange(400.0)[None], np.random.default_rng(0))
    assert value == pytest.approx(379.05)
    assert np.quantile(drawn, 0.01) < 379 < np.quantile(drawn, 0.99)


@pytest.mark.parametrize(
    "curve, size",
    [
        ([1, 4, 1, 1], np.sqrt(32 * 64)),  # low by chance first; then half of the way, in logarithms, from 4 to 1
        ([1, 1, 1, 1], 16),
        ([8, 8, 8, 8], 128),
    ],
)
def test_the_size_needed_is_read_off_the_curve(curve, size):
    assert _reached(np.array([1.0, *curve]), (16, 32, 64, 128)) == pytest.approx(size)


def needs(m: int, values: np.ndarray) -> SamplesNeeded:
    return SamplesNeeded(m, 0.1, {"DRRho": Drawn(float(values.mean()), values)}, (16, 1024), 100)


def test_the_exponent_is_that_of_the_sizes_and_beyond_the_sizes_tried_nothing_is_claimed():
    spread = np.linspace(0.99, 1.01, 100)
    root = exponent([needs(m, 2 * np.sqrt(m) * spread) for m in (400, 1600, 6400)], "DRRho")
    assert root.value == pytest.approx(0.5) and 0.49 < root.low <= root.high < 0.51
    beyond = exponent([needs(400, 40 * spread), needs(6400, np.full(100, 1024.0))], "DRRho")
    assert (beyond.low, beyond.high) == (-np.inf, np.inf)

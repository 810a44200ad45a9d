"""Certificates of the report: their formula, and whose losses have none."""

import math

import numpy as np
import pytest

from steering.theory_checks.variance.bench import STAR, Collected
from steering.theory_checks.variance.paired import Paired, Samples
from steering.theory_checks.variance.report import certificate_grid, certify


def samples(shift: float, clusters=None) -> Samples:
    chance = np.random.default_rng(1)
    reference = chance.normal(size=400)
    return Samples(reference + shift + chance.normal(scale=0.3, size=400), reference, clusters)


def test_the_bound_is_the_mean_and_both_terms_of_the_empirical_bernstein_bound():
    pair = samples(-0.5)
    d, log = pair.target - pair.reference, math.log(2 / 0.05)
    by_hand = d.mean() + math.sqrt(2 * d.var(ddof=1) * log / 400) + 7 * np.ptp(d) * log / (3 * 399)
    (numbers,) = certify(Collected({("erm", ""): [pair]}))["erm"]
    assert numbers["upper"] == pytest.approx(by_hand) and numbers["asymptotic"] < numbers["upper"]


def test_seeds_whose_bound_is_at_most_zero_are_counted():
    certificates = certify(
        Collected({("erm", ""): [samples(-0.5), samples(0.5)], ("drrho_kl", ""): [samples(-0.5)] * 2})
    )
    assert [row[-1].text for row in certificate_grid(certificates).rows] == ["1 of 2 seeds", "2 of 2 seeds"]


def test_losses_that_depend_on_each_other_and_two_models_in_one_have_no_certificate():
    rows = samples(0.0, np.arange(400) // 2)
    pairs: dict[tuple[str, str], list[Paired]] = {
        ("rows", ""): [rows],
        (STAR, ""): [samples(0.0)],
        ("clip", "image side, per pair"): [samples(0.0)],
    }
    assert certify(Collected(pairs)) == {}

"""The sentences: what is promised, what is left undecided, and what is warned of."""

import numpy as np
import pytest

from steering.theory_checks.bootstrap import Estimate
from steering.theory_checks.variance.measure import Measured, Tails
from steering.theory_checks.variance.verdicts import answer, cautions, leak, of_seeds, short, span, verdict

CALM = Tails(0.01, 0.01, 3, 3)


def measured(value, low, high, tails=CALM, repetitions=12, deviations=1.0):
    figures = {"ratio": Estimate(value, low, high), "deviations": Estimate(deviations, deviations, deviations)}
    calm = Estimate(0.5, 0.4, 0.6)
    return Measured(100, repetitions, figures, calm, None, None, 2.0, 2.0, tails, [value] * repetitions)


def test_the_interval_decides_and_not_the_value():
    verdicts = {(0.3, 0.9): "smaller", (0.3, 1.1): "undecided", (1.01, 2): "larger", (1, 2): "undecided"}
    assert {ends: verdict(Estimate(0.5, *ends)) for ends in verdicts} == verdicts


def test_every_outcome_has_its_sentence():
    for one, begins in (
        (measured(0.7, 0.6, 0.8), "Expect no visible effect"),
        (measured(0.9, 0.7, 1.1), "Undecided"),
        (measured(2.0, 1.5, 3.0), "The loss varies more"),
        (measured(0.2, 0.1, 0.3), "The loss varies less with the reference, erm: R"),
        (measured(1e-5, 1e-6, 1e-4), "The target is the reference"),
        (measured(0.2, 0.1, 0.3, Tails(0.2, 0.01, 3, 3)), "Unreliable"),
        (measured(0.2, 0.1, 0.3, Tails(0.01, 0.01, 3, 60)), "Unreliable"),
    ):
        assert answer(one, "erm").startswith(begins)


def test_a_ratio_around_a_half_does_not_decide_what_can_be_seen():
    assert "whether enough to be seen is undecided" in answer(measured(0.45, 0.3, 0.6), "erm")


def test_no_sentence_says_that_a_reference_helps():
    for value in (1e-5, 0.1, 0.45, 0.7, 0.95, 3):
        for spread in (1.05, 2):
            assert "help" not in answer(measured(value, value / spread, value * spread), "erm")


def test_the_predicted_factor_is_the_root_of_the_ratio():
    assert "sqrt(R) = 0.4" in answer(measured(0.16, 0.1, 0.2), "erm")


def test_a_reference_that_knows_the_training_data_is_found_and_a_fresh_one_is_not():
    chance = np.random.default_rng(0)
    fresh, train = chance.exponential(size=(2, 400))
    assert not leak([(fresh, train)]).detected
    leaked = leak([(fresh, 0.2 * train)])
    assert leaked.detected and leaked.gap == pytest.approx(0.8, abs=0.2)
    assert not leak([(0.2 * fresh, train)]).detected, "higher losses in training are no leak"


def test_several_seeds_find_a_leak_that_one_leaves_open():
    chance = np.random.default_rng(1)
    seeds = [(chance.exponential(size=100), 0.8 * chance.exponential(size=100)) for _ in range(40)]
    assert not leak(seeds[:1]).detected and leak(seeds).detected


def test_cautions_name_what_is_wrong():
    assert cautions("erm", measured(0.2, 0.1, 0.3)) == []
    assert "one sample carries 20%" in cautions("erm", measured(0.2, 0.1, 0.3, Tails(0.2, 0.01, 3, 3)))[0]
    assert "the target is the reference" in cautions("erm", measured(1e-5, 1e-6, 1e-4))[0]
    assert "early in training" in cautions("erm", measured(5, 4, 6, deviations=2.2))[0]


def test_few_seeds_are_told():
    assert "one seed" in of_seeds(measured(0.2, 0.1, 0.3, repetitions=1))[0]
    assert "2 seeds are too few" in of_seeds(measured(0.2, 0.1, 0.3, repetitions=2))[0]
    assert of_seeds(measured(0.2, 0.1, 0.3, repetitions=5)) == []


def test_numbers_keep_the_digits_that_matter():
    texts = {0.9951: "1.00", 0.0831: "0.083", 60.67: "61", 3234.2: "3234", 0: "0", 4.49e-5: "4.5e-05"}
    assert {value: short(value) for value in texts} == texts


def test_an_interval_is_written_behind_its_value():
    assert span(Estimate(0.816, 0.7, 1.004)) == "0.82 [0.70, 1.00]"

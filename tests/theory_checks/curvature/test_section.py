"""How differences are written: decided ones, undecided ones, and none."""

import pytest

from steering.theory_checks.curvature.section import answer, chosen, fewer, gain, percent


def test_a_difference_is_in_points_and_positive_where_errors_are_fewer():
    change = fewer([0.10, 0.11, 0.12], [0.20, 0.215, 0.22])
    assert change.mean == pytest.approx(10.1667, abs=1e-3) and change.verdict == "better"
    assert gain(change).text.startswith("+10.2") and gain(change).tone == "better"


def test_the_answer_sorts_changes_by_what_their_intervals_decide():
    changes = {"a": fewer([0.1, 0.11, 0.12], [0.2] * 3), "b": fewer([0.2, 0.1, 0.3], [0.2] * 3)}
    sentence = answer(changes)
    assert "fewer errors for a (+9.0" in sentence and "no decided difference for b (0.0" in sentence
    assert "more errors" not in sentence


def test_the_answer_decides_nothing_that_the_number_of_comparisons_may_explain():
    """p is 0.035 alone, 0.07 of two; the one without a p value was looked at too."""
    narrow, none = fewer([0.18, 0.17, 0.16], [0.2] * 3), fewer([0.2] * 3, [0.2] * 3)
    assert 0.025 < (narrow.p or 0) < 0.05 and none.p is None, "what the rest of the test needs"
    assert "fewer errors for a" in answer({"a": narrow}) and "Holm" not in answer({"a": narrow})
    sentence = answer({"a": narrow, "b": none})
    assert "no decided difference for a (+" in sentence and "fewer" not in sentence
    assert "corrected by Holm for 2 comparisons" in sentence


def test_shares_are_per_cent_and_values_of_beta_are_listed_or_a_range():
    """Without an interval there is none after the share, and a difference is quiet only at zero."""
    assert percent([0.25]) == "25.0" and percent([0.2, 0.3]) == "25.0 \u00b1 63.5"
    assert gain(None).text == "\u2013" and gain(fewer([0.2], [0.2])).tone == "quiet"
    assert gain(fewer([0.1], [0.3])).text == "+20.0"
    assert chosen([0.9, 0.9]) == "0.9"
    assert chosen([0.9, 1.0]) == "0.9, 1"
    assert chosen([0.5 + 0.05 * i for i in range(9)]) == "0.5 to 0.9"

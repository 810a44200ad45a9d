"""Words for differences: decided ones, undecided ones, and none."""

import pytest

from steering.curvature.section import answer, chosen, fewer, gain, said, share


def test_a_difference_is_in_points_and_positive_where_errors_are_fewer():
    found = fewer([0.10, 0.11, 0.12], [0.20, 0.215, 0.22])
    assert found.mean == pytest.approx(10.1667, abs=1e-3) and found.verdict == "better"
    assert gain(found).text.startswith("+10.2") and gain(found).tone == "better"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0.30, 0.31, 0.29], "points more test error"),
        ([0.10, 0.11, 0.095], "points less test error"),
        ([0.20, 0.10, 0.30], "no decided difference in test error"),
        ([0.20, 0.20, 0.20], "no change of test error in any repetition"),
    ],
)
def test_sentences_claim_no_more_than_intervals_do(values, words):
    assert words in said(fewer(values, [0.2, 0.2, 0.2]))


def test_the_answer_sorts_changes_by_what_their_intervals_decide():
    changes = {"a": fewer([0.1, 0.11, 0.12], [0.2] * 3), "b": fewer([0.2, 0.1, 0.3], [0.2] * 3)}
    told = answer(changes)
    assert (
        "fewer errors for a (+9.0" in told and "no decided difference for b (0.0" in told and "more errors" not in told
    )


def test_the_answer_decides_nothing_that_the_number_of_comparisons_may_explain():
    """p is 0.035 alone, 0.07 of two; the one without a p value was looked at too."""
    narrow, none = fewer([0.18, 0.17, 0.16], [0.2] * 3), fewer([0.2] * 3, [0.2] * 3)
    assert 0.025 < (narrow.p or 0) < 0.05 and none.p is None, "what the rest of the test needs"
    assert "fewer errors for a" in answer({"a": narrow}) and "Holm" not in answer({"a": narrow})
    told = answer({"a": narrow, "b": none})
    assert "no decided difference for a (+" in told and "fewer" not in told
    assert "corrected by Holm for 2 comparisons" in told


def test_one_repetition_decides_nothing():
    assert "which decides nothing" in said(fewer([0.1], [0.3]))


def test_shares_are_per_cent_with_their_interval_if_there_is_one():
    assert share([0.25]).text == "25.0"
    assert share([0.2, 0.3]).text == "25.0 \u00b1 63.5"


def test_values_of_beta_are_few_words():
    assert chosen([0.9, 0.9]) == "0.9"
    assert chosen([0.9, 1.0]) == "0.9, 1"
    assert chosen([0.5 + 0.05 * i for i in range(9)]) == "0.5 to 0.9"

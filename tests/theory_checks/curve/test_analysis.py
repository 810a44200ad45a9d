"""Paired gains, and p values adjusted for looking at every size."""

from steering.theory_checks.curve.analysis import gains


def test_a_gain_that_is_decided_alone_may_be_undecided_among_many():
    better, worse = [0.10, 0.11, 0.12, 0.10], [0.12, 0.14, 0.13, 0.13]
    [alone] = gains([100], [better], [worse])
    among = gains([100, 200, 400, 800], [better] * 4, [worse] * 4)
    assert 0.025 / 2 < (alone.adjusted or 0) < 0.05 and alone.verdict == "better"
    assert [gain.verdict for gain in among] == ["undecided"] * 4
    assert among[0].interval == alone.interval


def test_the_sign_says_which_is_better():
    [gain] = gains([10], [[0.3, 0.31, 0.32]], [[0.1, 0.11, 0.13]])
    assert gain.verdict == "worse" and gain.interval.mean < 0


def test_one_seed_decides_nothing():
    [gain] = gains([10], [[0.1]], [[0.3]])
    assert gain.verdict == "undecided" and gain.adjusted is None

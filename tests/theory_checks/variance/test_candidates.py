"""The order of candidates: who judges, who is first, and how surely."""

import numpy as np
import pytest

from steering.theory_checks.variance.measure import rank, stand_in
from steering.theory_checks.variance.paired import Samples

LOSSES = {"good": 1.0, "fair": 1.2, "bad": 3.0}


def world(number=400, seed=0):
    """Losses of models that are ever further from the truth."""
    chance = np.random.default_rng(seed)
    truth = chance.exponential(size=number)
    return {
        name: truth + off * chance.normal(size=number) for name, off in (("good", 0.1), ("fair", 0.4), ("bad", 2.0))
    }


def compare(models):
    return lambda proxy, name: {"": Samples(models[proxy], models[name])}


def test_a_candidate_is_judged_by_the_best_of_the_others():
    assert stand_in(LOSSES, "bad") == "good"
    assert stand_in(LOSSES, "good") == "fair"
    assert stand_in(LOSSES, "good", "bad") == "bad"


def test_the_nearest_to_the_truth_is_first_and_surely_so():
    models = world()
    ranked = rank(LOSSES, compare(models), errors=LOSSES, decide=[""], draws=200)
    assert [one.name for one in ranked][-1] == "bad"
    assert ranked[-1].first == 0 and sum(one.first for one in ranked) == pytest.approx(1)
    assert ranked[-1].ratio.low > 1


def test_a_given_proxy_judges_all_and_is_not_judged():
    models = world()
    ranked = rank(LOSSES, compare(models), errors=LOSSES, decide=[""], proxy="good", draws=100)
    assert [one.name for one in ranked] == ["fair", "bad"]
    assert {one.proxy for one in ranked} == {"good"}
    assert ranked[0].first == 1
    assert ranked[0].ratio.value == pytest.approx(np.var(models["good"] - models["fair"]) / np.var(models["good"]))


def test_equal_candidates_share_the_first_place_of_the_draws():
    chance = np.random.default_rng(1)
    truth = chance.normal(size=300)
    models = {"truth": truth, "a": truth + chance.normal(size=300), "b": truth + chance.normal(size=300)}
    even = {"truth": 0.0, "a": 1.0, "b": 1.0}
    ranked = rank(even, compare(models), errors=even, decide=[""], proxy="truth", draws=400)
    assert 0.5 <= ranked[0].first < 1


def test_a_wrong_scale_spoils_the_ratio_but_not_the_one_at_beta():
    models = world() | {"fair": 5 * world()["good"]}
    ranked = {
        one.name: one for one in rank(LOSSES, compare(models), errors=LOSSES, decide=[""], proxy="good", draws=50)
    }
    assert ranked["fair"].ratio.value > 1
    assert ranked["fair"].ratio_at_beta == pytest.approx(0, abs=1e-9)


def test_the_views_that_decide_are_averaged_as_logarithms():
    models = world()

    def both(proxy, name):
        return {"a": Samples(models[proxy], models[name]), "b": Samples(models[proxy], models[name] / 2)}

    one = rank(LOSSES, both, errors=LOSSES, decide=["a", "b"], proxy="good", draws=50)[0]
    assert one.ratio.value == pytest.approx((one.views["a"].value * one.views["b"].value) ** 0.5)

"""Learning rates and gammas by hand."""

import itertools

import pytest

from steering.settings import Arm, Recipe
from steering.training.schedules import GammaSchedule, learning_rate


def schedule(steps=100, batch=10, size=100, **arm) -> GammaSchedule:
    recipe = Recipe(steps=steps, batch=batch, arms={"a": Arm(**arm)}, baseline="a")
    return GammaSchedule(recipe.arms["a"], recipe, size)


def test_a_constant_rate_stays():
    gamma = schedule(gamma=0.3)
    assert [gamma(step) for step in (0, 50, 99)] == [0.3] * 3 and gamma.constant


def test_a_cosine_per_epoch_begins_at_one_and_changes_with_the_epochs_alone():
    """Ten epochs of ten steps, down to 0.2: half way, at 0.6, in the sixth epoch."""
    gamma = schedule(gamma=0.2, gamma_schedule="cosine")
    assert [gamma(step) for step in range(10)] == [1.0] * 10
    assert gamma(50) == gamma(59) == pytest.approx(0.6)
    assert gamma(49) == gamma(40) > gamma(50)


def test_a_cosine_per_step_falls_at_every_step():
    gamma = schedule(gamma=0.2, gamma_schedule="cosine_per_step")
    values = [gamma(step) for step in range(101)]
    assert values[0] == 1 and values[50] == pytest.approx(0.6) and values[100] == pytest.approx(0.2)
    assert all(later < earlier for earlier, later in itertools.pairwise(values))


def test_the_decay_may_end_before_the_run():
    gamma = schedule(gamma=0.2, gamma_schedule="cosine_per_step", gamma_decay=0.5)
    assert gamma(25) == pytest.approx(0.6) and gamma(50) == gamma(80) == pytest.approx(0.2)


def test_a_selector_changes_nothing_because_duals_are_visited_as_often(make_training):
    """Of 16 candidates 8 are trained on: an epoch of the data is half as long, one of visits is as long as before."""
    settings = {"rule": "kl(rho=8)", "gamma": 0.2, "gamma_schedule": "cosine"}
    plain, selected = make_training(**settings), make_training(**settings, selector="uniform(keep=0.5)")
    for _ in range(3):
        assert plain.step()["gamma"] == selected.step()["gamma"] == 1, "in the first epoch"
        assert plain.counters.samples == selected.counters.samples
    assert plain.step()["gamma"] == selected.step()["gamma"] < 1
    assert selected.counters.candidates == 2 * plain.counters.candidates


@pytest.mark.parametrize("epochs, final", [(7, 1.0), (8, 0.922), (50, 0.244)])
def test_the_authors_rule_for_the_final_rate(epochs, final):
    assert schedule(steps=10 * epochs, gamma="auto").final == pytest.approx(final, abs=6e-4)


# ------------------------------------------------------------------------------------------- learning rates


def recipe(**settings) -> Recipe:
    return Recipe.model_validate({"steps": 10, "batch": 1, "learning_rate": 0.8, "arms": {}, "baseline": ""} | settings)


def test_the_learning_rate_rises_then_falls_like_a_cosine():
    """Two steps up: 0.4, 0.8. Then half a cosine over eight steps: at 2, 6 and 9 the angle is 0, 90, 157.5 degrees.

    0.8 (1 + cos 157.5) / 2 = 0.4 (1 - 0.9238795) = 0.0304482.
    """
    rates = [learning_rate(recipe(warmup=2), step) for step in range(10)]
    assert [rates[i] for i in (0, 1, 2, 6, 9)] == pytest.approx([0.4, 0.8, 0.8, 0.4, 0.0304482])
    assert rates[2:] == sorted(rates[2:], reverse=True) and rates[-1] > 0


def test_a_constant_learning_rate_stays():
    assert {learning_rate(recipe(schedule="constant"), step) for step in range(10)} == {0.8}


def test_a_warm_up_longer_than_the_run_only_rises():
    rates = [learning_rate(recipe(warmup=20), step) for step in range(10)]
    assert rates == pytest.approx([0.04 * (step + 1) for step in range(10)])

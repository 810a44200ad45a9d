"""What a prediction is worth, where the answer is known."""

import numpy as np
import pytest
import torch

from steering import UserError
from steering.references.store import ReferenceLosses
from steering.tasks.blobs import Blobs
from steering.tasks.diabetes import Diabetes
from steering.tasks.digits import Digits
from steering.theory_checks.training_sets import concatenate
from steering.theory_checks.variance.bench import Scored, held_out, score
from steering.theory_checks.variance.validation import Scaled, check, split, steered_by_shuffled, worth

ERRORS = np.array([[0.1, 0.2, 0.3, 0.4]] * 6) + np.random.default_rng(0).normal(size=(6, 1)) / 100


def test_the_right_order_is_worth_one_and_costs_nothing():
    result = worth(2 * ERRORS**3, ERRORS)
    assert result.tau.value == result.tau.low == result.overall == 1
    assert result.regret.value == 0


def test_the_reverse_order_is_worth_minus_one_and_costs_the_whole_range():
    result = worth(1 - ERRORS, ERRORS)
    assert result.tau.high == -1 and result.overall == -1
    assert result.regret.value == pytest.approx(0.3)


def test_chance_is_worth_nothing():
    many = np.tile(ERRORS, (20, 1))
    result = worth(np.random.default_rng(1).random(size=many.shape), many)
    assert result.tau.value == pytest.approx(0, abs=0.2), "120 taus of four scatter by 0.5 each"
    assert result.regret.value == pytest.approx(0.15, abs=0.04), "what a random choice costs"


def test_candidates_that_tie_for_the_first_place_share_its_cost():
    """Two that judge each other have the same R; which of them stands first in a list must not decide."""
    predicted = np.tile([1.0, 5.0, 1.0, 6.0], (6, 1))
    assert worth(predicted, ERRORS).regret.value == pytest.approx((0 + 0.2) / 2)
    assert worth(predicted[:, ::-1], ERRORS[:, ::-1]).regret.value == pytest.approx((0 + 0.2) / 2)


def test_a_prediction_without_any_order_agrees_with_none():
    assert worth(np.ones_like(ERRORS), ERRORS).tau.value == 0


def test_tasks_without_noise_or_classes_are_refused_before_any_training():
    with pytest.raises(UserError, match="an option noise, digits or blobs; mine has none"):
        check(object(), "mine")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="losses that are a classifier's cross-entropy; Diabetes has others"):
        check(Diabetes(), "diabetes")
    check(Digits(), "digits")


def test_the_first_share_of_the_samples_and_the_rest_are_all_of_them():
    pool, rest = split(held_out(Blobs()), 0.25)
    assert (len(pool), len(rest)) == (500, 1500)


def test_a_shuffled_reference_has_the_same_losses_on_other_samples_and_the_target_its_own():
    task = Blobs()
    shuffled = steered_by_shuffled(task, task.reference())
    reference, target = shuffled.reference(), task.target()
    batch = concatenate(*held_out(task)).take(torch.arange(200))
    true, rolled, stored = (
        answers.values.tolist()  # type: ignore[union-attr]
        for answers in (
            task.losses(reference, batch),
            shuffled.losses(reference, batch),
            ReferenceLosses(shuffled)(batch),
        )
    )
    assert rolled == stored == [true[-1], *true[:-1]] != true
    one, other = (which.losses(target, batch).values for which in (task, shuffled))
    assert one.tolist() == other.tolist()  # type: ignore[union-attr]


def test_a_scaled_reference_gives_the_same_answers():
    task = Blobs()
    same, sure = (score(task, model, held_out(task)) for model in (task.reference(), Scaled(task.reference(), 3.0)))
    assert isinstance(same, Scored) and isinstance(sure, Scored)
    assert (same.wrong == sure.wrong).all() and sure.losses.var() > 4 * same.losses.var()

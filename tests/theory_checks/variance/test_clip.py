"""CLIP models on held-out pairs: captions as noisy as in training, losses that no scale of a model can flatter."""

import numpy as np
import pytest
import torch

from steering import UserError
from steering.clip.reference.load import load_reference
from steering.clip.task import Clip
from steering.theory_checks.variance.clip import ClipBench, features, mean_loss, mistakes, pairs_of
from steering.theory_checks.variance.paired import Features


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def made(noise, number=40, seed=0):
    """Features whose partners are near each other but for the noise."""
    chance = np.random.default_rng(seed)
    left = chance.normal(size=(number, 8))
    return Features(unit(left), unit(left + noise * chance.normal(size=(number, 8))))


def test_a_better_model_has_the_lower_loss_and_one_that_knows_nothing_has_none():
    flat = Features(np.ones((40, 1)), np.ones((40, 1)))
    assert mean_loss(made(0.1)) < mean_loss(made(1.0)) < mean_loss(flat)
    assert mean_loss(flat) == pytest.approx(0, abs=1e-9)


def test_a_model_that_compresses_its_similarities_has_the_same_loss():
    """Features that share a large constant part: all similarities are 0.1 s + 0.9."""
    answers = made(0.5)
    narrow = Features(*(np.hstack([0.1**0.5 * side, np.full((40, 1), 0.9**0.5)]) for side in answers))
    assert mean_loss(narrow) == pytest.approx(mean_loss(answers), abs=0.02)


def test_mistakes_are_partners_that_are_not_the_nearest():
    assert mistakes(made(0.01)) == 0
    assert mistakes(Features(np.ones((5, 1)), np.ones((5, 1)))) == 1, "a tie is no answer"
    swapped = Features(np.eye(4), np.eye(4)[[1, 0, 2, 3]])
    assert mistakes(swapped) == 0.5


def test_pairs_to_judge_on_are_as_many_as_asked_for_and_the_same_every_time(tars):
    pattern = tars(2, 20)
    one, other = pairs_of(pattern, 15), pairs_of(pattern, 15)
    assert len(one) == 15 and list(one.ids) == list(other.ids)
    assert len(pairs_of(pattern, 100)) == 40


def test_a_data_set_of_a_few_pairs_is_refused(tars):
    with pytest.raises(UserError, match="has 4 pairs, and variances need at least 10"):
        pairs_of(tars(1, 4), 100)


@pytest.mark.slow
def test_held_out_captions_are_as_wrong_as_the_tasks_and_the_pictures_are_not_touched():
    reference = load_reference(Clip().refs[0])
    right, wrong = (ClipBench(Clip(noise=noise), reference, 50).answers for noise in (0.0, 0.4))
    assert np.array_equal(right.left, wrong.left)
    changed = (right.right != wrong.right).any(1)
    assert changed.mean() == pytest.approx(0.4, abs=0.01)
    assert sorted(map(tuple, right.right)) == sorted(map(tuple, wrong.right))


@pytest.mark.slow
def test_a_reference_that_was_trained_on_the_pairs_shows_a_gap():
    task = Clip(data="emoji-reference")
    reference = load_reference(task.refs[0])
    fresh, trained = ClipBench(task, reference, 200).leak()
    assert len(fresh) == len(trained) == 200
    assert fresh.mean() - trained.mean() > 3 * (fresh.var() / 200 + trained.var() / 200) ** 0.5


def test_features_are_those_of_the_evaluation(tars):
    from steering.clip.models import EMOJI, build

    torch.manual_seed(0)
    towers = build(EMOJI).eval()
    answers = features(towers, pairs_of(tars(1, 12), 12))
    assert answers.left.shape == answers.right.shape and len(answers.left) == 12
    assert np.linalg.norm(answers.left, axis=1) == pytest.approx(np.ones(12), abs=1e-5)


def test_training_pairs_are_never_held_out_ones(tars):
    task = Clip(data=tars(2, 40), model="emoji", ref="unused")
    held_out, trained = set(task.held_out_pairs().ids), set(task.training_pairs(1000).ids)
    assert held_out and not held_out & trained and held_out | trained == set(range(80))
    assert list(task.training_pairs(7).ids) == list(task.training_pairs(7).ids)
    assert len(task.training_pairs(7)) == 7

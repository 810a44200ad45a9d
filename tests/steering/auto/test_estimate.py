"""Base weights of a task's training samples, by its reference and by targets that were trained without them."""

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from steering import Steerer, UserError
from steering.auto.estimate import cross_fitted, estimate, every_sample, labels_of
from steering.references.store import ReferenceLosses
from steering.settings import Arm
from steering.task import Losses, exchange
from steering.tasks.blobs import Blobs
from steering.tasks.diabetes import Diabetes
from steering.tasks.digits import Digits
from steering.tasks.tabular.task import Tabular
from steering.training.loop import Training
from steering.training.training_sets import train_on


def test_every_sample_comes_once_also_where_epochs_leave_a_remainder():
    task = Digits()
    ids = torch.cat([batch.ids for batch in every_sample(task, 160)])
    assert ids.sort().values.tolist() == list(range(400))


def test_only_samples_that_are_trained_on_come_also_of_a_task_that_could_load_others():
    table, digits = Tabular(), Digits()
    ids = torch.cat([batch.ids for batch in every_sample(table, 64)])
    assert ids.sort().values.tolist() == sorted(table.split["train"].tolist()) and len(ids) < table.size
    part = train_on(digits, digits.draw.train.batch(torch.arange(100, 150)))
    (batch,) = every_sample(part, 50)
    assert torch.equal(batch.take(batch.ids.argsort())["x"], digits.draw.train.x[100:150])


def test_labels_are_read_off_the_losses():
    scores = torch.randn(50, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(5, (50,), generator=torch.Generator().manual_seed(1))
    losses = cross_entropy(scores, labels, reduction="none")
    assert torch.equal(labels_of(Losses(losses, outputs=scores))[0], labels)
    smooth = cross_entropy(scores, labels, reduction="none", label_smoothing=0.1)
    with pytest.raises(UserError, match="without label smoothing"):
        labels_of(Losses(smooth, outputs=scores))


def test_a_regression_is_told_that_nothing_is_known_to_help():
    task = Diabetes()
    with pytest.raises(UserError, match="auto needs one cross-entropy a sample"):
        estimate(task, ReferenceLosses(task), recipe=task.recipe, seed=0)


def test_samples_with_wrong_labels_weigh_less():
    task = Digits()
    fitted = estimate(task, ReferenceLosses(task), recipe=task.recipe, seed=0)
    wrong = task.draw.train.wrong
    assert fitted.weights.shape == (400,) and fitted.weights.mean().item() == pytest.approx(1)
    assert fitted.weights[wrong].mean() < 0.4 < 1.3 < fitted.weights[~wrong].mean()
    assert "of labels look wrong" in fitted.sentence


@pytest.mark.slow
def test_a_useless_reference_is_made_good_for_by_targets_trained_without_the_sample():
    task = Digits()
    draw = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    reference: Any = task.reference()
    shuffled = torch.nn.Linear(64, 10)
    shuffled.load_state_dict({"weight": reference.weight[draw], "bias": reference.bias[draw]})
    useless = exchange(task, reference=lambda: shuffled.eval())
    wrong = task.draw.train.wrong
    alone = estimate(useless, ReferenceLosses(useless), recipe=task.recipe, seed=0)
    together = estimate(useless, ReferenceLosses(useless), recipe=task.recipe, seed=0, folds=3)
    assert alone.weights[wrong].mean() > 0.9 > 0.6 > together.weights[wrong].mean()


@pytest.mark.slow
def test_scores_of_a_sample_come_from_a_target_that_did_not_see_it():
    """Labels are drawn at random: a target that had seen a sample would remember its label."""
    task = Digits(samples=60, noise=1.0)
    recipe = task.recipe.model_copy(update={"weight_decay": 0.0, "batch": 40})
    scores = cross_fitted(task, recipe.arms["erm"], recipe, folds=3, seed=0)
    labels = task.draw.train.y
    assert (scores.argmax(-1) == labels).double().mean() < 0.3
    with pytest.raises(UserError, match="folds are from 2"):
        cross_fitted(task, recipe.arms["erm"], recipe, folds=61, seed=0)


def test_a_steerer_that_was_fitted_weighs_by_ids():
    task = Blobs()
    batch = next(task.stream(task.size, seed=0))
    losses = ReferenceLosses(task)(batch, outputs=True)
    label, scores = labels_of(losses)
    steerer = Steerer("auto")
    with pytest.raises(UserError, match=r"steerer.fit\(scores, labels\) before the first call"):
        steerer(losses.values, ids=batch.ids)
    steerer.fit(scores, label, ids=batch.ids)
    with pytest.raises(UserError, match="need ids"):
        steerer(losses.values)
    steered = steerer(losses.values, ids=batch.ids)
    wrong = batch.facts["wrong"]
    assert steered.weights[wrong].mean() < 0.7 < 1 < steered.weights[~wrong].mean()
    other = Steerer("auto")
    other.load_state_dict(steerer.state_dict())
    assert torch.equal(other(losses.values, ids=batch.ids).weights, steered.weights)


def test_an_arm_trains_with_the_weights_of_its_ids():
    task = Digits()
    base = torch.zeros(400, dtype=torch.float64)
    base[~task.draw.train.wrong] = 1
    arm, reference = Arm(rule="uniform", subtract=False), ReferenceLosses(task)
    training = Training(task, arm, task.recipe, reference=reference, seed=0, base=base)
    training.step()
    assert training.counters.means()["wrong"] == 0

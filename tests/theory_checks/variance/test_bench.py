"""Losses of held-out samples: held-out samples, what is recognised in the answers, what is refused."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from steering import RunError, UserError
from steering.task import Batch, Losses
from steering.tasks.blobs import Blobs
from steering.tasks.diabetes import Diabetes
from steering.tasks.digits import Digits
from steering.theory_checks.variance.bench import Scored, cross_fitted, held_out, paired, score, trained_on
from steering.theory_checks.variance.validation import Scaled


@dataclass(frozen=True)
class LossesOfBatch:
    """A task whose losses come with its batches."""

    mask: bool = False
    outputs: bool = False

    def losses(self, model: nn.Module, batch: Batch) -> Losses:
        values = batch["loss"]
        return Losses(values, values > 0 if self.mask else None, torch.zeros(len(values), 3) if self.outputs else None)


def batch(*values) -> list[Batch]:
    return [Batch(torch.arange(len(values)), {"loss": torch.tensor(values)})]


@pytest.mark.parametrize("task", [Digits(), Blobs(), Diabetes()])
def test_the_bundled_tasks_have_held_out_samples_that_are_as_noisy_as_their_training_data(task):
    batches = held_out(task)
    wrong = torch.cat([one.facts["wrong"] for one in batches]).double()
    assert torch.cat([one.ids for one in batches]).tolist() == list(range(len(wrong)))
    assert float(wrong.mean()) == pytest.approx(task.noise, abs=4 * (0.25 / len(wrong)) ** 0.5)
    assert set(batches[0].fields) == set(next(task.stream(2, seed=0)).fields)


@pytest.mark.parametrize("task", [Digits(), Blobs(), Diabetes()])
def test_held_out_samples_are_no_training_samples_and_stay_the_same(task):
    fresh = torch.cat([one["x"] for one in held_out(task)])
    train = next(task.stream(task.size, seed=0))["x"]
    both = torch.cat([fresh, train]).unique(dim=0)
    assert len(both) == len(fresh.unique(dim=0)) + len(train.unique(dim=0))
    assert torch.equal(fresh, torch.cat([one["x"] for one in task.held_out(7)]))


def test_right_labels_are_those_of_the_same_samples():
    noisy, clean = (torch.cat([one["y"] for one in held_out(task)]) for task in (Digits(), Digits(noise=0.0)))
    wrong = torch.cat([one.facts["wrong"] for one in held_out(Digits())])
    assert torch.equal(noisy != clean, wrong)


def test_a_task_without_held_out_samples_is_refused_with_what_it_lacks():
    with pytest.raises(UserError, match="LossesOfBatch has no held-out samples like its training data"):
        held_out(LossesOfBatch())  # type: ignore[arg-type]


def test_a_classifiers_cross_entropy_is_recognised_by_its_scores():
    task = Digits()
    model, batches = task.reference(), held_out(task)
    scored = score(task, model, batches)
    assert isinstance(scored, Scored) and scored.outputs is not None
    labels = torch.cat([one["y"] for one in batches])
    guessed = torch.cat([model(one["x"]) for one in batches]).argmax(-1)
    assert scored.wrong.tolist() == (guessed != labels).tolist()


def test_scores_at_a_temperature_are_the_losses_of_the_divided_scores():
    task = Digits()
    model, batches = task.reference(), held_out(task)
    scored, cooled = (score(task, one, batches) for one in (model, Scaled(model, 0.25)))
    assert isinstance(scored, Scored) and isinstance(cooled, Scored)
    tempered = scored.tempered()
    assert tempered is not None
    assert tempered(4.0) == pytest.approx(cooled.losses, abs=1e-5)
    assert tempered(1.0) == pytest.approx(scored.losses, abs=1e-5)


def test_losses_that_are_no_cross_entropy_of_the_scores_have_no_temperature():
    scored = score(LossesOfBatch(outputs=True), nn.Identity(), batch(1.0, 2.0, 0.3))  # type: ignore[arg-type]
    assert isinstance(scored, Scored) and scored.outputs is None and scored.tempered() is None


def test_losses_of_a_row_are_a_cluster_and_padding_is_left_out():
    scored = score(LossesOfBatch(mask=True), nn.Identity(), batch([1.0, 2.0], [3.0, 0.0]))  # type: ignore[arg-type]
    assert isinstance(scored, Scored) and scored.rows is not None
    assert scored.losses.tolist() == [1, 2, 3] and scored.rows.tolist() == [0, 0, 1]
    assert paired(scored, scored).units == 2


def test_losses_that_are_no_numbers_are_counted():
    with pytest.raises(RunError, match="1 of 3 held-out losses"):
        score(LossesOfBatch(), nn.Identity(), batch(1.0, float("nan"), 2.0))  # type: ignore[arg-type]


def test_losses_that_are_all_alike_have_no_variance_to_compare():
    one = Scored(np.ones(5))
    with pytest.raises(RunError, match="are alike"):
        paired(one, Scored(np.arange(5.0)))


def test_training_samples_are_all_there_where_they_are_few():
    assert sorted(trained_on(Blobs()).ids.tolist()) == list(range(200))


def test_the_leak_check_takes_some_training_samples_and_the_best_model_at_hand_all_of_them():
    task = Blobs(samples=5000)
    assert len(trained_on(task)) == 4096
    seen = []

    def star(variant, name, seed):
        seen.append(variant.size)
        return task.target()

    reference = score(task, task.reference(), held_out(task))
    assert isinstance(reference, Scored)
    cross_fitted(task, reference, star, 0)
    assert seen == [5000 + 1000] * 2


def test_scoring_a_model_leaves_the_global_generators_alone():
    task = replace(Blobs(), samples=50)
    before = torch.get_rng_state()
    score(task, task.reference(), held_out(task))
    assert torch.equal(before, torch.get_rng_state())

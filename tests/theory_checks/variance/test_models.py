"""Models of a run, and the references of the validation."""

import pytest
import torch

from steering import UserError
from steering.references.store import ReferenceLosses
from steering.runs import config as configs
from steering.tasks.blobs import Blobs
from steering.theory_checks.training_sets import concatenate
from steering.theory_checks.variance.losses import Scored, held_out, score
from steering.theory_checks.variance.models import Scaled, of_run, split, steered_by_shuffled


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


def test_an_arm_that_is_not_there_is_named_with_what_to_do(tmp_path):
    config, task = configs.resolve("blobs")
    with pytest.raises(UserError, match="has no erm of seed 0: finish it first, steer run --resume"):
        of_run(tmp_path, config, task, "erm", 0, torch.device("cpu"))

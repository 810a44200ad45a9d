"""Tasks with another reference or other data, and the references of the validation."""

import pytest
import torch

from steering import UserError
from steering.runs import config as configs
from steering.tasks.blobs import Blobs
from steering.theory_checks.variance.losses import Scored, held_out, score
from steering.theory_checks.variance.models import OfOthers, Scaled, Variant, halves, joined, of_run
from steering.training.loop import Training
from steering.training.reference_losses import ReferenceLosses


def test_a_variant_trains_on_the_data_it_is_given():
    task = Blobs()
    pool, rest = halves(held_out(task), 0.25)
    assert (len(pool), len(rest)) == (500, 1500)
    variant = Variant(task, data=pool)
    batch = next(variant.stream(500, seed=0))
    assert variant.size == 500
    assert torch.equal(batch["x"][batch.ids.argsort()], pool["x"])
    training = Training(variant, task.recipe.arms["erm"], task.recipe, reference=ReferenceLosses(variant), seed=0)
    assert training.step()["samples"] == 100


def test_a_variant_without_changes_is_the_task():
    task = Blobs()
    plain = Variant(task)
    assert plain.size == task.size
    assert torch.equal(next(plain.stream(50, seed=3))["x"], next(task.stream(50, seed=3))["x"])
    assert plain.evaluate(plain.reference()) == task.evaluate(task.reference())


def test_joined_samples_have_ids_of_their_own():
    task = Blobs()
    whole = joined(*held_out(task), next(task.stream(100, seed=0)))
    assert whole.ids.tolist() == list(range(2100))


def test_a_shuffled_reference_has_the_same_losses_on_other_samples():
    task = Blobs()
    batches = [joined(*held_out(task))]
    own = score(task, task.reference(), batches)
    shuffled = score(Variant(task), OfOthers(task.reference()), batches)
    assert isinstance(own, Scored) and isinstance(shuffled, Scored)
    assert sorted(own.losses) == sorted(shuffled.losses)
    assert (own.losses != shuffled.losses).mean() > 0.9


def test_a_scaled_reference_gives_the_same_answers():
    task = Blobs()
    own, sure = (score(task, model, held_out(task)) for model in (task.reference(), Scaled(task.reference(), 3.0)))
    assert isinstance(own, Scored) and isinstance(sure, Scored)
    assert (own.wrong == sure.wrong).all() and sure.losses.var() > 4 * own.losses.var()


def test_an_arm_that_is_not_there_is_named_with_what_to_do(tmp_path):
    config, task = configs.resolve("blobs")
    with pytest.raises(UserError, match="has no erm of seed 0: finish it first, steer run --resume"):
        of_run(tmp_path, config, task, "erm", 0, torch.device("cpu"))

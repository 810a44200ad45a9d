"""Clouds of points: the data, the reference, and that a whole comparison takes seconds."""

import math
import time

import pytest
import torch

from steering import UserError, registry
from steering.references.store import ReferenceLosses
from steering.tasks.blobs import SPREAD, Blobs
from steering.training.loop import Training, evaluate


def everything(task):
    return next(task.stream(task.size, seed=0))


def nearest(x):
    """The cloud whose centre is nearest, ``[n]``."""
    angle = torch.arange(Blobs.classes) * (2 * math.pi / Blobs.classes)
    return torch.cdist(x, torch.stack([angle.cos(), angle.sin()], -1)).argmin(-1)


def test_without_noise_a_point_is_near_the_cloud_of_its_label():
    """Neighbours are 1 apart: about 2 Phi(-0.5 / 0.3) = 10 % lie nearer to another; 0.02 is four errors."""
    batch = everything(Blobs(samples=3600, noise=0))
    other = (nearest(batch["x"]) != batch["y"]).double().mean()
    assert other == pytest.approx(math.erfc(0.5 / SPREAD / 2**0.5), abs=0.02)


def test_a_wrong_label_is_always_another_clouds():
    """At noise 1 only points that lie nearer to the very cloud drawn can look right: under a tenth."""
    batch = everything(Blobs(samples=3600, noise=1.0))
    assert batch.facts["wrong"].all()
    assert (nearest(batch["x"]) == batch["y"]).double().mean() < 0.1


def test_the_reference_and_the_target_see_different_points():
    task = Blobs()
    error = task.evaluate(task.reference())["error"]
    assert 0.08 < error < 0.25


def test_the_references_own_points_are_three_of_every_cloud_and_all_it_knows():
    task = Blobs()
    batch = task.reference_batch()
    assert batch["y"].bincount().tolist() == [3] * Blobs.classes and not batch.facts["wrong"].any()
    weight, _ = task.reference().parameters()
    assert torch.allclose(weight[2] * SPREAD**2, batch["x"][batch["y"] == 2].mean(0))


def test_a_repetition_redraws_points_noise_and_reference():
    one, other = Blobs(), Blobs().seeded(2)
    assert other == Blobs(seed=2)
    assert not torch.equal(everything(one)["x"], everything(other)["x"])
    assert not torch.equal(next(one.reference().parameters()), next(other.reference().parameters()))


@pytest.mark.parametrize(
    ("options", "words"),
    [("samples=0", "needs at least 1 of samples, got 0"), ("noise=-1", "a noise within 0 and 1, got -1")],
)
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        registry.build("tasks", f"blobs({options})")


@pytest.mark.slow
def test_a_whole_comparison_takes_seconds_and_wrong_labels_weigh_less():
    """3 seeds of 3 arms; about 2 s of one core, 10 s are allowed."""
    began = time.process_time()
    for seed in range(3):
        task = Blobs().seeded(seed)
        reference = ReferenceLosses(task)
        for name, arm in task.recipe.arms.items():
            training = Training(task, arm, task.recipe, reference=reference, seed=seed)
            for _ in range(task.recipe.steps):
                training.step()
            assert evaluate(task, training.result)["error"] < 0.3
            if name == "drrho_kl":
                assert training.counters.means()["wrong"] < 0.25
    assert time.process_time() - began < 10

"""The search on a task and on the models of a run."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from steering.curvature import units
from steering.errors import UserError
from steering.runs import config as configs
from steering.runs.run import Run
from steering.task import HeldOut
from steering.theory_checks.curvature import models


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished run of blobs."""
    from rich.console import Console

    folder = tmp_path_factory.mktemp("runs") / "blobs"
    config, task = configs.resolve("blobs", typed={"recipe": {"steps": 3, "seeds": 2}})
    Run(config, task, folder, Console(quiet=True), ["steer"]).execute()
    return folder


def test_models_of_a_run_are_those_that_were_trained(finished):
    source = models.of_run(finished, None)
    assert (source.arm, source.seeds) == ("erm", [0, 1])
    for seed in (0, 1):
        task = source.task.seeded(seed)
        model = source.model(task, seed)
        saved = torch.load(finished / f"arms/erm/seed{seed}/checkpoint.pt", weights_only=True)["model"]
        assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
        assert task.seed == source.task.seed + seed  # type: ignore[attr-defined]


def test_a_checkpoint_that_is_unfinished_is_refused(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run/arms/erm/seed0/checkpoint.pt"
    torch.save(torch.load(path, weights_only=True) | {"done": 2}, path)
    with pytest.raises(UserError, match=r"is not trained to the end \(2 of 3 steps\): steer run --resume"):
        source = models.of_run(tmp_path / "run", None)
        source.model(source.task, 0)


def test_one_checkpoint_of_a_run_is_enough(finished):
    source = models.of_run(finished / "arms/dro/seed1/checkpoint.pt", None)
    assert (source.arm, source.seeds) == ("dro", [1])


def test_a_measurement_of_a_run_repeats_its_metric_at_relu(finished):
    source = models.of_run(finished, "dro")
    measured = models.measure(source, 0, [0.5], 0)
    assert measured["search"]["betas"] == [1.0, 0.5]
    result = (finished / "arms/dro/seed0/result.json").read_text()
    assert f'"error": {measured["rows"]["trained"]["error"]}' in result.replace("\n", "")
    assert set(measured["rows"]) == {"trained", "search"}


def test_the_validation_loss_is_the_mean_over_held_out_samples(finished):
    source = models.of_run(finished, None)
    task, model = source.task, source.model(source.task, 0)
    assert isinstance(task, HeldOut)
    with torch.no_grad():
        (batch,) = list(task.held_out(10**6))
        values = task.losses(model, batch).values
    assert isinstance(values, torch.Tensor)
    expected = float(values.double().mean())
    assert models.held_out_loss(task, model) == pytest.approx(expected, rel=1e-6)


def test_refitting_trains_the_last_layer_alone(finished):
    source = models.of_run(finished, None)
    task, model = source.task, source.model(source.task, 0)
    refitted = models._refitted(task, source.recipe, model, 0.7, 2, 0)
    assert [unit.beta for unit in units(refitted)] == [0.7]
    old, new = model.state_dict(), refitted.state_dict()
    assert {name for name in old if not torch.equal(old[name], new[name])} == {"2.weight", "2.bias"}


def test_a_task_is_trained_by_its_own_recipe():
    source = models.of_task("blobs", ["recipe.steps=2"], None)
    assert source.seeds is None and source.recipe.steps == 2
    assert not source.model(source.task.seeded(1), 1).training


def test_what_is_in_the_way_is_said_before_anything_is_trained(finished, tmp_path):
    source = models.of_task("blobs", [], None)
    with pytest.raises(UserError, match=r"no held_out\(batch\)"):
        replace(source, task=object())  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no ReLU to replace"):
        models.of_task("digits", [], None)
    with pytest.raises(UserError, match="no arm is named 'drro'"):
        models.of_run(finished, "drro")
    with pytest.raises(UserError, match="no run folder"):
        models.of_run(tmp_path, None)
    (tmp_path / "file.pt").write_bytes(b"")
    with pytest.raises(UserError, match="belongs to no run"):
        models.of_run(tmp_path / "file.pt", None)

"""R along the training: when it is measured, that this changes nothing, what a stop leaves, what is reported."""

import pytest
import torch
from rich.console import Console

from steering import UserError
from steering.references.store import ReferenceLosses
from steering.runs import config as configs
from steering.runs.folder import Stopped
from steering.runs.run import Run
from steering.tasks.blobs import Blobs
from steering.theory_checks.variance.trajectory import FILE, Moment, Observer, finding, initial, read, steps
from steering.training import loop

UNITS = 2000
SHORT = ["recipe.steps=8", "recipe.seeds=1", "recipe.evaluate_every=0"]


def course(*ratios: float, early: int = 0) -> list[Moment]:
    """One seed with these ratios, the first few before sd(l) has grown."""
    return [Moment(5 * 2**k, 50, 1.0, 5.0 if k < early else 1.0, ratio) for k, ratio in enumerate(ratios)]


def observed(folder) -> Run:
    config, task = configs.resolve("blobs", sets=SHORT, typed={"device": "cpu"})
    return Run(config, task, folder, Console(quiet=True), [], observe=Observer(folder, "erm", pairs=10))


@pytest.mark.parametrize("last", [1, 6, 150, 100_000])
def test_moments_rise_from_the_fifth_step_to_the_last_in_about_eight(last):
    moments = steps(last)
    assert moments == sorted(set(moments)) and moments[0] == min(5, last) and moments[-1] == last
    assert len(moments) <= 8


def test_an_observed_training_ends_with_the_same_bits(tmp_path):
    task = Blobs()
    recipe = task.recipe.model_copy(update={"steps": 8})
    watched, alone = (
        loop.Training(task, recipe.arms["erm"], recipe, reference=ReferenceLosses(task), seed=0) for _ in range(2)
    )
    observe = Observer(tmp_path, "erm", pairs=10)
    for _ in range(8):
        assert watched.step()["loss"] == alone.step()["loss"]
        observe("erm", watched)
        observe("dro", watched)
    assert watched.model.training
    assert [one.step for one in read(tmp_path, "erm", 8, [UNITS])[0]] == steps(8)
    assert all(map(torch.equal, watched.model.parameters(), alone.model.parameters()))


@pytest.mark.slow
def test_a_run_that_goes_on_after_a_stop_lacks_no_moment(tmp_path, monkeypatch):
    observed(tmp_path / "whole").execute()
    complete = read(tmp_path / "whole", "erm", 8, [UNITS])
    assert [one.step for one in complete[0]] == steps(8)
    step = loop.Training.step

    def interrupted(training):
        if training.done == 6:
            raise KeyboardInterrupt
        return step(training)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "step", interrupted)
        with pytest.raises((KeyboardInterrupt, Stopped)):
            observed(tmp_path / "cut").execute()
    assert [one.step for one in read(tmp_path / "cut", "erm", 8, [UNITS])[0]] == [5, 6]
    observed(tmp_path / "cut").execute()
    assert read(tmp_path / "cut", "erm", 8, [UNITS]) == complete


def test_what_was_not_measured_or_on_other_samples_is_left_out(tmp_path):
    assert read(tmp_path, "erm", 8, [UNITS]) == []
    folder = tmp_path / "arms" / "erm" / "seed0"
    folder.mkdir(parents=True)
    one = '{"step": 5, "units": 9, "variance": 1, "reference_variance": 1, "difference_variance": 1}'
    (folder / FILE).write_text(f"[{one}]")
    assert read(tmp_path, "erm", 8, [UNITS]) == []
    assert read(tmp_path, "erm", 8, [9]) == [[Moment(5, 9, 1, 1, 1)]]
    (folder / FILE).write_text("[1, ")
    with pytest.raises(UserError, match="is damaged: delete its folder"):
        read(tmp_path, "erm", 8, [9])


def test_the_beginning_is_where_the_loss_varies_less_than_half_as_much_as_the_references():
    assert not Moment(5, 50, 1.0, 4.0, 1.0).initial and Moment(5, 50, 1.0, 4.01, 1.0).initial
    along = [course(3, 2, 1, early=2), course(3, 2, 1, early=1), course(3, 2, 1, early=2)]
    assert initial(along).tolist() == [True, True, False]


def test_a_smallest_ratio_in_the_middle_is_reported_where_the_seeds_agree():
    along = [course(2.0, 0.5 + 0.01 * k, 0.9) for k in range(5)]
    sentence = finding(along, "erm")
    assert sentence is not None and "0.52 after step 10, 0.90 at its end" in sentence


@pytest.mark.parametrize(
    "along",
    [
        [course(2.0, 0.9, 0.5)] * 5,  # at the end
        [course(0.5, 0.9, 2.0)] * 5,  # at the beginning
        [course(2.0, 0.5, 0.9)],  # one seed
        [course(2.0, 0.5, 0.9, early=2)] * 5,  # before the loss varies
        [course(2.0, 0.5, 0.9), course(2.0, 0.9, 0.6), course(2.0, 0.6, 0.65)],  # seeds that disagree
    ],
)
def test_no_smallest_ratio_is_reported_where_it_is_none_or_chance(along):
    assert finding(along, "erm") is None

"""R along the training: when it is looked at, that looking changes nothing, what a stop leaves, what is said."""

import pytest
import torch
from rich.console import Console

from steering import UserError
from steering.runs import config as configs
from steering.runs import run as runs
from steering.tasks.blobs import Blobs
from steering.theory_checks.variance.trajectory import (
    FILE,
    Moment,
    Observed,
    ObservedRun,
    finding,
    initial,
    read,
    steps,
)
from steering.training import loop
from steering.training.reference_losses import ReferenceLosses

UNITS = 2000
SHORT = ["recipe.steps=8", "recipe.seeds=1", "recipe.evaluate_every=0"]


def course(*ratios: float, early: int = 0) -> list[Moment]:
    """One seed with these ratios, the first few before sd(l) has grown."""
    return [Moment(5 * 2**k, 50, 1.0, 5.0 if k < early else 1.0, ratio) for k, ratio in enumerate(ratios)]


def observed(folder) -> ObservedRun:
    config, task = configs.resolve("blobs", sets=SHORT, given={"device": "cpu"})
    return ObservedRun(config, task, folder, Console(quiet=True), [], plain="erm", pairs=10)


@pytest.mark.parametrize("last", [1, 4, 5, 6, 150, 100_000])
def test_moments_rise_from_the_fifth_step_to_the_last_in_about_eight(last):
    found = steps(last)
    assert found == sorted(set(found)) and found[0] == min(5, last) and found[-1] == last
    assert len(found) <= 8


def test_a_training_that_is_looked_at_ends_with_the_same_bits():
    task = Blobs()
    given = (task, task.recipe.arms["erm"], task.recipe.model_copy(update={"steps": 8}))
    looked: list[int] = []

    def observe(step, model):
        looked.append(step)
        assert not model.training and not torch.is_grad_enabled()
        torch.rand(3)

    watched = Observed(*given, reference=ReferenceLosses(task), seed=0, observe=observe)
    alone = loop.Training(*given, reference=ReferenceLosses(task), seed=0)
    for _ in range(8):
        assert watched.step()["loss"] == alone.step()["loss"]
    assert looked == steps(8) and watched.model.training
    for one, other in zip(watched.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_a_run_that_goes_on_after_a_stop_lacks_no_moment(tmp_path, monkeypatch):
    observed(tmp_path / "whole").execute()
    whole = read(tmp_path / "whole", "erm", 8, [UNITS])
    assert [one.step for one in whole[0]] == steps(8)

    class Halted(Observed):
        def step(self):
            if self.done == 6:
                raise KeyboardInterrupt
            return super().step()

    with monkeypatch.context() as patch:
        patch.setattr("steering.theory_checks.variance.trajectory.Observed", Halted)
        with pytest.raises((KeyboardInterrupt, runs.Stopped)):
            observed(tmp_path / "cut").execute()
    assert [one.step for one in read(tmp_path / "cut", "erm", 8, [UNITS])[0]] == [5, 6]
    observed(tmp_path / "cut").execute()
    assert read(tmp_path / "cut", "erm", 8, [UNITS]) == whole


def test_what_nobody_looked_at_or_was_seen_on_other_samples_is_not_told(tmp_path):
    assert read(tmp_path, "erm", 8, [UNITS]) == []
    place = tmp_path / "arms" / "erm" / "seed0"
    place.mkdir(parents=True)
    one = '{"step": 5, "units": 9, "variance": 1, "reference_variance": 1, "difference_variance": 1}'
    (place / FILE).write_text(f"[{one}]")
    assert read(tmp_path, "erm", 8, [UNITS]) == []
    assert read(tmp_path, "erm", 8, [9]) == [[Moment(5, 9, 1, 1, 1)]]
    (place / FILE).write_text("[1, ")
    with pytest.raises(UserError, match="is damaged: delete its folder"):
        read(tmp_path, "erm", 8, [9])


def test_the_beginning_is_where_the_loss_varies_less_than_half_as_much_as_the_references():
    assert not Moment(5, 50, 1.0, 4.0, 1.0).initial and Moment(5, 50, 1.0, 4.01, 1.0).initial
    along = [course(3, 2, 1, early=2), course(3, 2, 1, early=1), course(3, 2, 1, early=2)]
    assert initial(along).tolist() == [True, True, False]


def test_a_smallest_ratio_in_the_middle_is_told_where_the_seeds_agree():
    along = [course(2.0, 0.5 + 0.01 * k, 0.9) for k in range(5)]
    said = finding(along, "erm")
    assert said is not None and "0.52 after step 10, 0.90 at its end" in said


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
def test_no_smallest_ratio_is_told_where_it_is_none_or_chance(along):
    assert finding(along, "erm") is None

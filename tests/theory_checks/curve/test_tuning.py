"""Tuning: as many trials for every method, the best by the tuning seeds, and none of the seeds that report."""

from collections import Counter

import pytest

from steering import UserError
from steering.tasks.blobs import Blobs
from steering.theory_checks.curve.command import planned
from steering.theory_checks.curve.plan import Method, Plan, methods_of
from steering.theory_checks.curve.tuning import at_the_end, finer, second_round, shares, spread, tuned, with_choice
from steering.theory_checks.curve.units import Outcome, units


@pytest.fixture
def plan():
    task = Blobs(samples=60)
    return Plan(
        task="blobs",
        options={},
        recipe=task.recipe,
        methods=methods_of(task, task.recipe, keep=0.5, answers=True),
        baseline="erm",
        steered="drrho_kl",
        sizes=[30, 60],
        tune=3,
    )


def test_values_are_spread_in_equal_ratios_over_two_decades():
    assert spread(0.2, 3) == [0.02, 0.2, 2.0]
    assert shares(3) == [0.3, 0.6, 0.9]


def test_finer_values_lie_between_the_neighbours_of_the_best_one():
    assert finer(1.0, [0.1, 1.0, 10.0], 1) == [1.0]
    values = finer(0.1, [0.1, 1.0, 10.0], 4)
    assert len(values) == 4 and 0.1 < min(values) and max(values) < 1


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("drrho_kl", lambda m: m.arm.rule),
        ("filter", lambda m: m.keep),
        ("distill", lambda m: m.arm.distill),
        ("erm", lambda m: m.weight_decay),
    ],
)
def test_the_second_round_changes_the_methods_own_parameter(plan, name, read):
    method = plan.methods[name].model_copy(update={"weight_decay": 0.1})
    trials = second_round(method, [0.01, 0.1, 1.0], 4)
    assert len({read(trial) for trial in trials}) == 4


def test_every_method_has_as_many_trials_at_every_size_on_seeds_that_do_not_report(plan):
    requested = []

    def make(missing):
        requested.extend(missing)
        return [Outcome(error=0.5) for _ in missing]

    tuned(plan, make)
    counts = Counter((unit.name.rpartition("-")[0], unit.size) for unit in requested)
    assert set(counts.values()) == {plan.tuning_seeds * (2 * plan.tune + 1)}
    assert len(counts) == len(plan.methods) * len(plan.sizes)
    assert not {unit.seed for unit in requested} & set(plan.seed_numbers())
    assert len({unit.file for unit in requested}) == len(requested)


def test_the_best_trial_is_chosen_for_its_size(plan):
    def error(method: Method | None, size: int) -> float:
        best = 0.01 if size == 30 else 1.0
        assert method is not None and method.weight_decay is not None
        return abs(method.weight_decay - best)

    chosen = tuned(plan, lambda missing: [Outcome(error=error(one.method, one.size)) for one in missing])
    assert chosen["drrho_kl", 30].weight_decay == 0.01 and chosen["drrho_kl", 60].weight_decay == 1.0
    final = [with_choice(unit, chosen) for unit in units(plan) if unit.name == "drrho_kl"]
    assert {(unit.size, unit.method and unit.method.weight_decay) for unit in final} == {(30, 0.01), (60, 1.0)}


def test_a_best_value_at_the_end_of_what_was_tried_is_told(plan):
    method = plan.methods["erm"]
    chosen = {("erm", size): method.model_copy(update={"weight_decay": w}) for size, w in ((30, 1.0), (60, 0.1))}
    assert at_the_end(plan, chosen) == ["erm at n = 30"]


def test_seeds_that_report_must_not_tune():
    with pytest.raises(UserError, match="seeds 5990 to 6009 report and must not tune, but tuning has 6000 to 6003"):
        planned("blobs", sizes="30,60", first_seed=5990, tune=3)

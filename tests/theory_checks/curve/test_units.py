"""One training of a curve: what it starts from, what it costs, and what its file holds."""

import pytest
import torch

from steering import UserError
from steering.runs.folder import read_part
from steering.settings import Arm
from steering.tasks.blobs import Blobs
from steering.theory_checks.curve.plan import Method, Plan, methods_of
from steering.theory_checks.curve.units import Outcome, begin, train, units
from steering.theory_checks.training_sets import first, sample_pool

STEPS, BATCH = 6, 20


@pytest.fixture
def plan():
    task = Blobs(samples=60)
    recipe = task.recipe.model_copy(update={"steps": STEPS, "batch": BATCH, "evaluate_every": 4})
    methods = methods_of(task, recipe, keep=0.5, answers=True)
    return Plan(
        task="blobs",
        options={"samples": 60},
        recipe=recipe,
        methods=methods,
        baseline="erm",
        steered="drrho_kl",
        sizes=[30, 60],
        seeds=2,
    )


def subset(size):
    return first(sample_pool(Blobs(samples=60)), size)


def begun(plan, name, size):
    return begin(plan, plan.methods[name], subset(size), seed=3)[0]


def test_every_method_that_is_there_for_blobs(plan):
    assert list(plan.methods) == ["erm", "dro", "drrho_kl", "filter", "distill", "joined", "shuffled"]


def test_all_methods_begin_with_the_same_weights_at_every_size(plan):
    begins = [begun(plan, name, size) for name in plan.methods for size in plan.sizes]
    first_of_all = list(begins[0].model.parameters())
    for training in begins[1:]:
        assert all(map(torch.equal, training.model.parameters(), first_of_all))


def test_methods_with_the_same_samples_see_them_in_the_same_order(plan):
    names = ["erm", "dro", "drrho_kl", "distill", "shuffled"]
    orders = {name: [next(begun(plan, name, 60).stream).ids.tolist() for _ in range(1)] for name in names}
    assert all(order == orders["erm"] for order in orders.values())


def test_a_filter_and_joined_data_change_the_number_of_samples(plan):
    sizes = {name: begun(plan, name, 60).task.size for name in ("erm", "filter", "joined")}
    assert sizes == {"erm": 60, "filter": 30, "joined": 78}


def test_a_batch_is_no_larger_than_the_training_set(plan):
    assert begun(plan, "erm", 12).recipe.batch == 12
    chooser = Method(arm=Arm(selector="top_k(keep=0.5)"))
    assert begin(plan, chooser, subset(30), seed=3)[0].recipe.batch == 15


@pytest.mark.parametrize(
    ("name", "trained", "scored", "referred", "reference_samples"),
    [
        ("erm", 120, 0, 0, 0),
        ("drrho_kl", 120, 0, 60, 18),  # two epochs of 60: every sample once
        ("filter", 120, 0, 60, 18),  # the whole set is looked at once, before
        ("distill", 120, 0, 60, 18),
        ("joined", 120, 0, 0, 18),
    ],
)
def test_costs_counted_by_hand(plan, name, trained, scored, referred, reference_samples):
    cost = train(plan, plan.methods[name], subset(60), seed=0).cost
    assert (cost.trained, cost.scored, cost.referred, cost.reference_samples) == (
        trained,
        scored,
        referred,
        reference_samples,
    )
    assert cost.passes == 3 * trained + scored + referred


def test_samples_that_are_only_scored_cost_a_forward_pass(plan):
    """6 steps of 20 of 40 candidates: 240 looked at by the target, 120 of them trained on."""
    chooser = Method(arm=Arm(rule="uniform", subtract=False, selector="top_k(keep=0.5)"))
    cost = train(plan, chooser, subset(60), seed=0).cost
    assert (cost.trained, cost.scored) == (120, 240)
    assert cost.referred == 60 and cost.passes == 360 + 240 + 60


def test_the_path_has_every_evaluation_and_ends_with_the_error(plan):
    outcome = train(plan, plan.methods["erm"], subset(60), seed=0)
    assert [point.step for point in outcome.path] == [4, 6]
    assert outcome.path[-1].error == outcome.error >= outcome.lowest


def test_a_unit_gives_the_same_file_again_and_reads_it(plan, tmp_path):
    unit = next(unit for unit in units(plan) if unit.name == "shuffled")
    outcomes = [unit.make(plan, tmp_path / name) for name in ("one", "other")]
    assert outcomes[0] == outcomes[1] == read_part(tmp_path / "one" / unit.file, Outcome)
    files = [(tmp_path / name / unit.file).read_bytes() for name in ("one", "other")]
    assert files[0] == files[1]


def test_a_damaged_file_is_named(plan, tmp_path):
    unit = units(plan)[0]
    (tmp_path / unit.file).parent.mkdir(parents=True)
    (tmp_path / unit.file).write_text('{"error": "high"}')
    with pytest.raises(UserError, match=r"reference\.json is damaged: delete it"):
        read_part(tmp_path / unit.file, Outcome)


def test_the_reference_is_one_unit_a_seed(plan):
    named = [unit for unit in units(plan) if unit.name == "reference"]
    assert [unit.seed for unit in named] == [7000, 7001]
    assert len({unit.file for unit in units(plan)}) == 2 * (1 + 2 * 7)


def test_an_outcomes_lowest_error_is_that_of_its_best_step():
    path = [{"step": 1, "cost": {}, "error": 0.2}, {"step": 2, "cost": {}, "error": 0.3}]
    assert Outcome.model_validate({"error": 0.3, "path": path}).lowest == 0.2

"""Races among arms: who may run, who wins, and what a run makes of it."""

import json

import pytest
import torch
from rich.console import Console
from torch import nn

from steering import UserError, registry
from steering.auto import race
from steering.auto.race import contestants, seems_leaked
from steering.references.store import ReferenceLosses
from steering.rules.auto import Auto
from steering.runs.config import choose_arms, resolve
from steering.runs.run import Run
from steering.settings import Arm
from steering.task import exchange
from steering.tasks.digits import Digits

TASK = Digits(samples=120)
RECIPE = TASK.recipe.model_copy(update={"steps": 4, "batch": 60})


def leaked(task):
    """A reference that was fitted to the target's own labels."""
    from sklearn.linear_model import LogisticRegression

    x, y, _ = task.draw.train
    fitted = LogisticRegression(C=10, max_iter=2000).fit(x.numpy(), y.numpy())
    model = nn.Linear(64, 10)
    model.load_state_dict({"weight": torch.from_numpy(fitted.coef_), "bias": torch.from_numpy(fitted.intercept_)})
    return exchange(task, reference=lambda: model.eval())


def test_a_reference_that_has_seen_the_labels_is_told_from_one_that_has_not():
    own, other = ReferenceLosses(TASK), leaked(TASK)
    assert seems_leaked(TASK, own) is False and seems_leaked(other, ReferenceLosses(other)) is True
    without = exchange(TASK, held_out=None)
    assert seems_leaked(without, ReferenceLosses(without)) is None
    by_id = exchange(TASK, reference=lambda: lambda batch: torch.zeros(len(batch)))
    assert seems_leaked(by_id, ReferenceLosses(by_id)) is None


def test_plain_training_and_auto_alone_race_where_the_reference_may_have_seen_the_labels():
    assert list(contestants(RECIPE, 4, everything=False)) == ["auto", "erm"]
    arms = contestants(RECIPE, 4, everything=True)
    assert next(iter(arms)) == "auto_folds" and {"auto", "erm", "distill", *RECIPE.arms} < arms.keys()
    racing = RECIPE.model_copy(update={"arms": {**RECIPE.arms, "again": Arm(rule="auto(race=True)")}})
    assert "again" not in contestants(racing, 4, everything=True)


@pytest.mark.parametrize(
    ("gains", "margin"),
    [
        ([[1.0, 1.2, 0.8, 1.1], [0.9, 1.1]], True),  # both better
        ([[1.0, 1.2, 0.8, 1.1, 0.9, 1.0], [-0.9, -1.1]], False),  # better on the frequent class alone
        ([[-1.0, -1.1, -0.9], [-1.0, -1.2]], False),
        ([[0.0, 0.0], [0.0]], False),
    ],
)
def test_an_arm_has_to_be_better_over_labels_and_over_classes(gains, margin):
    labels = torch.tensor([label for label, of_class in enumerate(gains) for _ in of_class])
    lane = race._lane("arm", torch.tensor([x for of_class in gains for x in of_class]).double(), labels)
    assert (race._margin(lane) > race.MARGIN) is margin


def test_true_may_be_written_as_in_yaml():
    assert registry.build("rules", "auto(race=true)") == registry.build("rules", "auto(race=True)") == Auto(race=True)
    with pytest.raises(UserError, match="valid boolean"):
        registry.build("rules", "auto(race=3)")


@pytest.mark.slow
def test_a_leak_ends_in_plain_training_or_auto_and_the_cost_is_told_first():
    task, lines = leaked(TASK), []
    outcome, _ = race.run(task, ReferenceLosses(task), recipe=RECIPE, seed=0, folds=2, note=lines.append)
    assert outcome.leaked and outcome.winner in ("auto", "erm") and "has seen these labels" in outcome.sentence
    assert lines[0] == "a race of 2 arms on 2 folds: 4 trainings on a part before that of the winner on all"
    assert [lane.name for lane in outcome.lanes] == ["erm"] and outcome.sentence == lines[-1]


@pytest.mark.slow
def test_a_run_trains_the_winner_and_does_not_race_again(tmp_path, monkeypatch):
    sets = ["recipe.steps=4", "recipe.batch=60", "recipe.seeds=1"]
    config, task = resolve("digits(samples=120)", sets=sets)
    config = choose_arms(config, None, {"rule": "auto(race=true, folds=2)"})

    def run():
        return Run(config, task, tmp_path / "run", Console(quiet=True), ["steer"]).execute()

    first = run().arms["auto"].results[0]
    written = json.loads((tmp_path / "run/arms/auto/seed0/race.json").read_text())
    assert "won by" in first.notes[0] and written["winner"] in first.notes[0]
    (tmp_path / "run/arms/auto/seed0/result.json").unlink()
    monkeypatch.setattr(race, "run", None)
    assert run().arms["auto"].results[0].metrics == first.metrics

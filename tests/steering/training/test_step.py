"""What an arm's settings make of a step: rows, averages, groups."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn.functional import cross_entropy

from steering import GroupWeights, Steerer, UserError
from steering.settings import Arm, Recipe
from steering.task import Losses, exchange
from steering.training.step import make_optimizer


def grouped(task):
    """The same task with its classes as groups."""

    def losses(model, batch):
        return Losses(cross_entropy(model(batch["x"]), batch["y"], reduction="none"), groups=batch["y"])

    return exchange(task, losses=losses)


@pytest.mark.parametrize(
    "settings, options",
    [
        ({"grouping": "centre"}, {"grouping": "centre"}),
        ({"grouping": "rows"}, {"grouping": "rows"}),
        ({"grouping": "rows", "average": "entries"}, {"grouping": "rows", "average": "entries"}),
        ({"average": "groups(step_size=0.1)"}, {"average": GroupWeights(step_size=0.1)}),
    ],
    ids=["centre", "rows", "entries", "weights"],
)
def test_an_arm_weighs_by_the_groups_of_its_task(make_training, toy, settings, options):
    task = grouped(toy(noisy=False))
    training = make_training(task, rule="kl(temperature=0.5)", **settings)
    batch = next(make_training(task, rule="uniform").stream)
    with torch.no_grad():
        losses, reference = (
            task.losses(model, batch).values for model in (training.model, training.reference.as_model())
        )
    expected = Steerer("kl(temperature=0.5)", **options)(losses, reference, groups=batch["y"]).loss
    assert training.step()["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_weights_over_groups_are_part_of_a_checkpoint(make_training, toy):
    one, other = (make_training(grouped(toy()), rule="uniform", average="groups()") for _ in range(2))
    one.step()
    other.load_state_dict(one.state_dict())
    assert one.step()["loss"] == other.step()["loss"]


def test_a_radius_may_be_of_the_tokens_and_not_of_the_samples(make_training, toy):
    tokens = exchange(toy(), population=10**6)
    assert make_training(tokens, rule="kl(rho=8)").steerer.population == 10**6
    assert make_training(toy(), rule="kl(rho=8)").steerer.population == 24


@pytest.mark.parametrize("setting", [{"average": "samples"}, {"grouping": "all"}, {"over": "tokens"}], ids=str)
def test_an_arm_that_averages_over_nothing_known_is_refused(setting):
    with pytest.raises(ValidationError):
        Arm(**setting)


def test_a_reference_without_a_loss_is_never_a_loss_of_nothing(make_training, toy):
    """Excess must not become the loss: ids are named."""
    inner = toy()

    def losses(model, batch):
        values = inner.losses(model, batch).values
        return Losses(torch.stack([values, values], -1))

    values = torch.zeros(24, 2)
    values[:, 1] = torch.nan
    task = exchange(inner, losses=losses, reference=lambda: values)
    with pytest.raises(UserError, match="the reference has no loss for entries that the target has, of sample ids"):
        make_training(task, rule="kl(temperature=0.5)").step()


def recipe(**settings) -> Recipe:
    return Recipe.model_validate({"steps": 10, "batch": 1, "arms": {}, "baseline": ""} | settings)


def test_only_matrices_are_decayed_and_scalars_have_a_learning_rate_of_their_own():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    model.register_parameter("scale", nn.Parameter(torch.zeros(())))
    matrices, vectors, scalars = make_optimizer(model, recipe(weight_decay=0.3, scalar_lr_factor=0.25)).param_groups
    assert matrices["weight_decay"] == 0.3 and [p.dim() for p in matrices["params"]] == [2]
    assert vectors["weight_decay"] == 0.0 and [p.dim() for p in vectors["params"]] == [1, 1, 1]
    assert scalars["weight_decay"] == 0.0 and scalars["params"] == [model.scale]
    assert (matrices["factor"], vectors["factor"], scalars["factor"]) == (1, 1, 0.25)


def test_frozen_weights_are_left_to_nobody():
    model = nn.Linear(3, 4)
    model.weight.requires_grad_(False)
    (group,) = make_optimizer(model, recipe()).param_groups
    assert group["params"] == [model.bias]


@pytest.mark.parametrize("name, kind", [("sgd", "SGD"), ("adam", "Adam"), ("adamw", "AdamW")])
def test_the_recipe_names_the_optimiser(name, kind):
    assert type(make_optimizer(nn.Linear(1, 1), recipe(optimizer=name))).__name__ == kind

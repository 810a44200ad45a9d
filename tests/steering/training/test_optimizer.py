"""Learning rates by hand and who is decayed."""

import pytest
import torch
from torch import nn

from steering.settings import Recipe
from steering.training.optimizer import make_optimizer
from steering.training.schedules import learning_rate


def recipe(**settings) -> Recipe:
    given = {"steps": 10, "batch": 1, "learning_rate": 0.8, "arms": {}, "baseline": ""} | settings
    return Recipe.model_validate(given)


def test_the_learning_rate_rises_then_falls_like_a_cosine():
    """Two steps up: 0.4, 0.8. Then half a cosine over eight steps: at 2, 6 and 9 the angle is 0, 90, 157.5 degrees.

    0.8 (1 + cos 157.5) / 2 = 0.4 (1 - 0.9238795) = 0.0304482.
    """
    rates = [learning_rate(recipe(warmup=2), step) for step in range(10)]
    assert [rates[i] for i in (0, 1, 2, 6, 9)] == pytest.approx([0.4, 0.8, 0.8, 0.4, 0.0304482])
    assert rates[2:] == sorted(rates[2:], reverse=True) and rates[-1] > 0


def test_a_constant_learning_rate_stays():
    assert {learning_rate(recipe(schedule="constant"), step) for step in range(10)} == {0.8}


def test_a_warm_up_longer_than_the_run_only_rises():
    rates = [learning_rate(recipe(warmup=20), step) for step in range(10)]
    assert rates == pytest.approx([0.04 * (step + 1) for step in range(10)])


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

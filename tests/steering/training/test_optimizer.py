"""Who is decayed, and at which share of the learning rate."""

import pytest
import torch
from torch import nn

from steering.settings import Recipe
from steering.training.optimizer import make_optimizer


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

"""Optimiser and moving average of the weights, from a recipe."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from steering.settings import Recipe


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser; only matrices are decayed, and scalars have a learning rate of their own.

    Every group's ``factor`` is its learning rate's share of the recipe's.
    """
    learned = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learned if p.dim() >= 2], "weight_decay": recipe.weight_decay, "factor": 1.0},
        {"params": [p for p in learned if p.dim() == 1], "weight_decay": 0.0, "factor": 1.0},
        {"params": [p for p in learned if p.dim() == 0], "weight_decay": 0.0, "factor": recipe.scalar_lr_factor},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=0.9)
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=recipe.learning_rate, betas=recipe.betas, eps=recipe.adam_epsilon)


def average_of(model: nn.Module, recipe: Recipe) -> AveragedModel | None:
    """The moving average of a model's weights and buffers that the recipe asks for."""
    if recipe.ema is None:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema), use_buffers=True)

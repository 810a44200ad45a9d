"""A task that uses all that can go wrong: dropout, batch norm, views, facts, and chance in its evaluation."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from steering.references.store import ReferenceLosses
from steering.settings import Arm, Metric, Recipe
from steering.task import Batch, Losses
from steering.training.loader import ShuffledLoader
from steering.training.loop import Training


@dataclass(frozen=True)
class Toy:
    """Three classes in four dimensions.

    Args:
        samples: training samples.
        noisy: whether the target has dropout and batch norm.
        poison: id of a sample whose loss is not a number; -1 for none.
        duals: rows worth remembering.
    """

    samples: int = 24
    noisy: bool = True
    poison: int = -1
    duals: int = 1

    metrics: ClassVar[Mapping[str, Metric]] = {"loss": Metric(label="test loss", better="low")}
    recipe: ClassVar[Recipe] = Recipe(
        steps=12, batch=8, learning_rate=0.05, warmup=2, evaluate_every=3, checkpoint_every=4, arms={}, baseline=""
    )

    @property
    def size(self) -> int:
        return self.samples

    @property
    def rows(self) -> int:
        return self.duals

    def seeded(self, seed: int) -> "Toy":
        return self

    def target(self) -> nn.Module:
        if not self.noisy:
            return nn.Linear(4, 3)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))

    def reference(self) -> nn.Module:
        model = nn.Linear(4, 3)  # a careless one: it draws from the global generator
        weights = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
        model.load_state_dict({"weight": weights, "bias": torch.zeros(3)})
        return model

    def stream(self, batch: int, *, seed: int) -> ShuffledLoader:
        return ShuffledLoader(self._load, size=self.samples, batch=batch, seed=seed)

    def losses(self, model: nn.Module, batch: Batch) -> Losses:
        if not model.training:
            torch.rand(1)  # careless again
        values = cross_entropy(model(batch["x"]), batch["y"], reduction="none")
        return Losses(torch.where(batch.ids == self.poison, torch.nan, values))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        x = torch.rand(16, 4)
        return {"loss": float(cross_entropy(model(x), torch.zeros(16, dtype=torch.long)))}

    def _load(self, ids: torch.Tensor, chance: torch.Generator) -> Batch:
        data = torch.Generator().manual_seed(1)
        x, y = torch.randn(self.samples, 4, generator=data), torch.randint(3, (self.samples,), generator=data)
        view = 0.1 * torch.randn(len(ids), 4, generator=chance)
        return Batch(ids, {"x": x[ids] + view, "y": y[ids]}, {"odd": ids % 2 == 1})


def begin(
    task: Any = None, seed: int = 0, recipe: Mapping[str, Any] | None = None, folder: Path | None = None, **arm: Any
) -> Training:
    """An arm of a task, freshly begun; its reference's losses are kept in the folder, if any."""
    task = task or Toy()
    settings = task.recipe.model_copy(update=dict(recipe or {}))
    return Training(task, Arm(**arm), settings, reference=ReferenceLosses(task, folder=folder), seed=seed)


@pytest.fixture
def toy() -> type[Toy]:
    return Toy


@pytest.fixture
def make_training():
    return begin

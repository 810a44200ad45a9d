"""Classification of samples in memory: the networks of the curvature studies, and how they are trained."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from steering.errors import UserError
from steering.references.store import ReferenceLosses
from steering.settings import Arm, Metric, Recipe
from steering.task import Batch, Losses, Task
from steering.theory_checks.curvature.samples import Split
from steering.training.loader import ShuffledLoader
from steering.training.loop import Training

PLAIN = Arm(rule="uniform", subtract=False)
CHUNK = 256  # samples at a time, where nothing is learned


@dataclass(frozen=True, eq=False, repr=False)
class Classification:
    """A task of samples in memory that trains a given model.

    Args:
        start: makes the model that is trained.
        training: samples to learn from.
        validation: samples to choose on.
        test: samples that nothing is chosen on.
        recipe: how to train.
        make_reference: makes the reference, where there is one.
    """

    start: Callable[[], nn.Module]
    training: Split
    validation: Split
    test: Split
    recipe: Recipe
    make_reference: Callable[[], nn.Module] | None = None

    @property
    def size(self) -> int:
        return len(self.training.y)

    @property
    def rows(self) -> int:
        return 1

    @property
    def metrics(self) -> dict[str, Metric]:
        return {"error": Metric(label="test error", better="low", percent=True)}

    def seeded(self, seed: int) -> Self:
        return self

    def target(self) -> nn.Module:
        return self.start()

    def reference(self) -> nn.Module:
        if self.make_reference is None:
            raise UserError("these samples come without a reference: give the task one, or do not subtract its loss")
        return self.make_reference()

    def stream(self, batch: int, *, seed: int) -> ShuffledLoader:
        return ShuffledLoader(lambda ids, _: _batch(self.training, ids), size=self.size, batch=batch, seed=seed)

    def losses(self, model: nn.Module, batch: Batch) -> Losses:
        return Losses(cross_entropy(model(batch["x"]), batch["y"], reduction="none"))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {"error": error(model, self.test)}

    def held_out(self, batch: int) -> Iterator[Batch]:
        for ids in torch.arange(len(self.validation.y)).split(batch):
            yield _batch(self.validation, ids)


def _batch(samples: Split, ids: Tensor) -> Batch:
    return Batch(ids, samples.take(ids)._asdict())


def recipe(steps: int, batch: int, learning_rate: float, *, weight_decay: float = 0.0) -> Recipe:
    """Adam with a cosine to zero."""
    return Recipe(
        steps=steps,
        batch=batch,
        optimizer="adamw",
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        arms={"plain": PLAIN},
        baseline="plain",
    )


def trained(task: Task, settings: Recipe, seed: int, arm: Arm = PLAIN, device: str = "cpu") -> nn.Module:
    """The task's target at the end of a recipe, in evaluation mode."""
    training = Training(task, arm, settings, reference=ReferenceLosses(task, device), seed=seed, device=device)
    for _ in range(settings.steps):
        training.step()
    return training.result.eval()


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor) -> Tensor:
    """What a model gives for ``[n, ...]`` samples, computed on its own device a chunk at a time."""
    device = next((parameter.device for parameter in model.parameters()), x.device)
    return torch.cat([model(chunk.to(device)).cpu() for chunk in x.split(CHUNK)])


def correct(model: nn.Module, samples: Split) -> Tensor:
    """Which samples a model puts into the right class, ``[n]`` bool."""
    return outputs(model, samples.x).argmax(-1) == samples.y


def error(model: nn.Module, samples: Split) -> float:
    """Share of samples that a model puts into a wrong class."""
    return float((~correct(model, samples)).double().mean())


def network(inputs: int, width: int, depth: int, classes: int) -> nn.Sequential:
    """A plain network with ReLUs."""
    layers = [part for i, o in pairwise([inputs, *[width] * depth]) for part in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, classes))

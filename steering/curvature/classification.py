"""Classification of samples in memory: what the studies of curvature train on, and how they train."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from steering.errors import UserError
from steering.settings import Arm, Metric, Recipe
from steering.task import Batch, Losses, Task
from steering.training.loader import ShuffledLoader
from steering.training.loop import Training
from steering.training.reference_losses import ReferenceLosses

PLAIN = Arm(rule="uniform", subtract=False)
AT_A_TIME = 256  # samples, where nothing is learned


class Split(NamedTuple):
    """Samples ``[n, ...]`` and their classes ``[n]``."""

    x: Tensor
    y: Tensor

    def take(self, places: Tensor) -> "Split":
        return Split(self.x[places], self.y[places])


@dataclass(frozen=True, eq=False, repr=False)
class Classification:
    """A task of samples in memory that trains a given model.

    Args:
        start: makes the model that is trained.
        training: samples to learn from.
        validation: samples to choose on.
        test: samples that nothing is chosen on.
        recipe: how to train.
        refer: makes the reference, where there is one.
    """

    start: Callable[[], nn.Module]
    training: Split
    validation: Split
    test: Split
    recipe: Recipe
    refer: Callable[[], nn.Module] | None = None

    @property
    def size(self) -> int:
        return len(self.training.y)

    @property
    def rows(self) -> int:
        return 1

    @property
    def metrics(self) -> Mapping[str, Metric]:
        return {"error": Metric(label="test error", better="low", percent=True)}

    def seeded(self, seed: int) -> Self:
        return self

    def target(self) -> nn.Module:
        return self.start()

    def reference(self) -> nn.Module:
        if self.refer is None:
            raise UserError("these samples come without a reference: give the task one, or do not subtract its loss")
        return self.refer()

    def stream(self, batch: int, *, seed: int) -> ShuffledLoader:
        return ShuffledLoader(self._load, size=self.size, batch=batch, seed=seed)

    def losses(self, model: nn.Module, batch: Batch) -> Losses:
        return Losses(cross_entropy(model(batch["x"]), batch["y"], reduction="none"))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {"error": error(model, self.test)}

    def held_out(self, batch: int) -> Iterator[Batch]:
        for places in torch.arange(len(self.validation.y)).split(batch):
            some = self.validation.take(places)
            yield Batch(places, {"x": some.x, "y": some.y})

    def _load(self, ids: Tensor, _: torch.Generator) -> Batch:
        some = self.training.take(ids)
        return Batch(ids, {"x": some.x, "y": some.y})


def recipe(steps: int, batch: int, rate: float, *, weight_decay: float = 0.0) -> Recipe:
    """Adam with a cosine to zero."""
    return Recipe(
        steps=steps,
        batch=batch,
        optimizer="adamw",
        learning_rate=rate,
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
def answers(model: nn.Module, x: Tensor) -> Tensor:
    """What a model gives for ``[n, ...]`` samples, some at a time, on its own device."""
    device = next((parameter.device for parameter in model.parameters()), x.device)
    return torch.cat([model(some.to(device)).cpu() for some in x.split(AT_A_TIME)])


def error(model: nn.Module, samples: Split) -> float:
    """Share of samples that a model puts into a wrong class."""
    return float((answers(model, samples.x).argmax(-1) != samples.y).double().mean())

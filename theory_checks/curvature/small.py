"""Samples in memory, networks that classify them, and how they are trained, for the curvature studies."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import NamedTuple, Self

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from steering.errors import UserError
from steering.references.store import ReferenceLosses
from steering.settings import Arm, Metric, Recipe
from steering.task import Batch, Losses, Task
from steering.training.loader import ShuffledLoader
from steering.training.loop import Training
from steering.training.seeds import generator

PLAIN = Arm(rule="uniform", subtract=False)
CHUNK = 256  # samples at a time, where nothing is learned


class Split(NamedTuple):
    """Samples ``[n, ...]`` and their classes ``[n]``."""

    x: Tensor
    y: Tensor

    def take(self, indices: Tensor) -> "Split":
        return Split(self.x[indices], self.y[indices])


@cache
def digits(first: int = 0, last: int = 9) -> Split:
    """Scikit-learn's images ``[n, 64]`` from 0 to 1 of a range of digits, all 1797 if not given; classes begin at 0."""
    pixels, labels = load_digits(return_X_y=True)
    chosen = (labels >= first) & (labels <= last)
    return Split(torch.from_numpy(pixels[chosen] / 16).float(), torch.from_numpy(labels[chosen] - first).long())


def random_parts(samples: Split, sizes: list[int], chance: torch.Generator) -> list[Split]:
    """Parts of these sizes, and the rest, without overlap."""
    if sum(sizes) >= len(samples.y):
        raise UserError(f"{len(samples.y)} samples are too few for parts of {sizes} and a test split")
    order = torch.randperm(len(samples.y), generator=chance)
    return [samples.take(indices) for indices in order.tensor_split(torch.tensor(sizes).cumsum(0).tolist())]


def mislabelled(samples: Split, noise: float, classes: int, chance: torch.Generator) -> Split:
    """The samples with a share ``noise`` of their classes replaced by another one, uniformly."""
    wrong = torch.rand(len(samples.y), generator=chance) < noise
    shift = torch.randint(1, classes, (len(samples.y),), generator=chance)  # never back to the right class
    return Split(samples.x, torch.where(wrong, (samples.y + shift) % classes, samples.y))


def spirals(number: int, noise: float, seed: int, name: str) -> Split:
    """Two spirals of one turn and a half in the plane, ``[number, 2]``, within about -1 and 1."""
    chance = generator(seed, "spirals", name)
    y = torch.arange(number) % 2
    radius = torch.rand(number, generator=chance).sqrt()
    angle = 3 * math.pi * radius + math.pi * y
    x = radius[:, None] * torch.stack([angle.cos(), angle.sin()], -1)
    return mislabelled(Split(x + 0.03 * torch.randn(number, 2, generator=chance), y), noise, 2, chance)


@dataclass(frozen=True, eq=False, repr=False)
class Classification:
    """A task of samples in memory."""

    target: Callable[[], nn.Module]  # makes the model that is trained
    training: Split
    validation: Split  # samples to choose on
    test: Split
    recipe: Recipe
    make_reference: Callable[[], nn.Module] | None = None
    rows: int = 1

    @property
    def size(self) -> int:
        return len(self.training.y)

    @property
    def metrics(self) -> dict[str, Metric]:
        return {"error": Metric(label="test error", better="low", percent=True)}

    def seeded(self, seed: int) -> Self:
        return self

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
    schedule: dict = {"steps": steps, "batch": batch, "learning_rate": learning_rate, "weight_decay": weight_decay}
    return Recipe(**schedule, optimizer="adamw", arms={"plain": PLAIN}, baseline="plain")


def trained(task: Task, settings: Recipe, seed: int, arm: Arm = PLAIN, device: str = "cpu") -> nn.Module:
    """The task's target at the end of a recipe, in evaluation mode."""
    training = Training(task, arm, settings, reference=ReferenceLosses(task, device), seed=seed, device=device)
    for _ in range(settings.steps):
        training.step()
    return training.result.eval()


def fit(start: Callable[[], nn.Module], samples: Split, settings: Recipe, seed: int, device: str = "cpu") -> nn.Module:
    """A model that has learned the samples by a recipe, in evaluation mode."""
    task = Classification(start, samples, samples, samples, settings)
    return trained(task, settings, seed, device=device)


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

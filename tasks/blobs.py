"""Clouds of points in the plane with wrong labels, and a reference that knows where the clouds are."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from steering.errors import UserError
from steering.settings import Arm, Metric, Recipe
from steering.task import Batch, Losses
from steering.tasks.in_memory import Draw, InMemory, Samples, clean, corrupted, frozen_linear
from steering.training.seeds import generator

__all__ = ["Blobs"]

CLASSES = 6
SPREAD = 0.3  # standard deviation of a cloud; the centres lie on the unit circle, neighbours 1 apart
REFERENCE = 18  # clean samples
TEST = 2000


@dataclass(frozen=True)
class Blobs(InMemory):
    """Six clouds of points around a circle, some of them with the label of another cloud.

    The target is a small network, large enough to learn wrong labels by heart. The reference compares a point
    with the mean of three clean samples of every cloud. Made for trying things out: a run takes seconds.

    Learning rate and weight decay were chosen on seeds 2000 to 2019, apart from the ones a run uses, where
    plain training does best; DRO and the temperature where they do. On seeds 1000 to 1029 KL then ends
    2.4 +- 0.8 points of test error below plain training, 2.3 +- 0.8 below DRO and 2.0 +- 0.6 below the
    reference; with ``noise=0`` it gains nothing (-0.1 +- 0.3; 20 seeds). Intervals are paired, 95 %.

    Args:
        samples: training samples.
        noise: share of their labels that are replaced by another class, uniformly.
        seed: of the draw; repetition s of a run uses seed + s.
    """

    samples: int = 200
    noise: float = 0.4
    seed: int = 0

    recipe = Recipe(
        steps=60,
        batch=100,
        optimizer="adamw",
        learning_rate=0.02,
        weight_decay=0.1,
        seeds=3,
        evaluate_every=20,
        arms={
            "erm": Arm(rule="uniform", subtract=False),
            "dro": Arm(rule="cvar(alpha=0.95)", subtract=False),
            "drrho_kl": Arm(rule="kl(temperature=2)", reference_scale=1.0),
        },
        baseline="erm",
    )

    def __post_init__(self):
        if self.samples < 1:
            raise UserError(f"blobs needs at least 1 of samples, got {self.samples}")
        if not 0 <= self.noise <= 1:
            raise UserError(f"blobs needs a noise within 0 and 1, got {self.noise:g}")

    @property
    def metrics(self) -> Mapping[str, Metric]:
        return {"error": Metric(label="test error", better="low", chance=1 - 1 / CLASSES, percent=True)}

    def target(self) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, CLASSES))

    def reference(self) -> nn.Module:
        """Linear discriminants: log density of each cloud up to a constant, with the means of clean samples."""
        x, y, _ = self.draw.reference
        means = torch.stack([x[y == label].mean(0) for label in range(CLASSES)])
        return frozen_linear(means / SPREAD**2, -means.square().sum(-1) / (2 * SPREAD**2))

    def reference_batch(self) -> Batch:
        """The clean samples that the reference knows."""
        return self.draw.reference.batch(torch.arange(REFERENCE))

    def held_out(self, batch: int) -> Iterator[Batch]:
        """Fresh points, as many as the test set has, with labels as noisy as the training set's."""
        return _noisy(TEST, self.noise, generator(self.seed, "blobs", "held out")).batches(batch)

    def losses(self, model: nn.Module, batch: Batch) -> Losses:
        outputs = model(batch["x"])
        return Losses(cross_entropy(outputs, batch["y"], reduction="none"), outputs=outputs)

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        device = next(model.parameters()).device
        guessed = model(self.draw.test.x.to(device)).argmax(-1)
        return {"error": float((guessed != self.draw.test.y.to(device)).double().mean())}

    @cached_property
    def draw(self) -> Draw:
        chance = generator(self.seed, "blobs")
        train = _noisy(self.samples, self.noise, chance)
        test_y, reference_y = torch.randint(CLASSES, (TEST,), generator=chance), torch.arange(REFERENCE) % CLASSES
        test = clean(_points(test_y, chance), test_y)
        return Draw(train, clean(_points(reference_y, generator(self.seed, "blobs", "reference")), reference_y), test)


def _noisy(number: int, noise: float, chance: torch.Generator) -> Samples:
    """Points of random clouds, a share of them with another cloud's label."""
    y = torch.randint(CLASSES, (number,), generator=chance)
    return corrupted(_points(y, chance), y, noise, CLASSES, chance)


def _points(y: Tensor, chance: torch.Generator) -> Tensor:
    """Points of the clouds ``[n]``, ``[n, 2]``."""
    angle = y * (2 * math.pi / CLASSES)
    centres = torch.stack([angle.cos(), angle.sin()], -1)
    return centres + SPREAD * torch.randn(len(y), 2, generator=chance)

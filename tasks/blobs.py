"""Clouds of points in the plane with wrong labels, and a reference that knows where the clouds are."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from steering.errors import UserError
from steering.settings import Arm, Recipe
from steering.task import Batch
from steering.tasks.in_memory import Classification, Draw, Samples, check_noise, clean, corrupted, frozen_linear
from steering.training.seeds import generator

__all__ = ["Blobs"]

SPREAD = 0.3  # standard deviation of a cloud; the centres lie on the unit circle, neighbours 1 apart
REFERENCE = 18  # clean samples
TEST = 2000


@dataclass(frozen=True)
class Blobs(Classification):
    """Six clouds of points around a circle, some of them with the label of another cloud.

    The target is a small network, large enough to learn wrong labels by heart. The reference compares a point
    with the mean of three clean samples of every cloud. docs/tasks.md says what comes of it.

    Args:
        samples: training samples.
        noise: share of their labels that are replaced by another class, uniformly.
        seed: of the draw; repetition s of a run uses seed + s.
    """

    samples: int = 200
    noise: float = 0.4
    seed: int = 0

    classes = 6
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
        check_noise("blobs", self.noise)

    def target(self) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, self.classes))

    def reference(self) -> nn.Module:
        """Linear discriminants: log density of each cloud up to a constant, with the means of clean samples."""
        x, y, _ = self.draw.reference
        means = torch.stack([x[y == label].mean(0) for label in range(self.classes)])
        return frozen_linear(means / SPREAD**2, -means.square().sum(-1) / (2 * SPREAD**2))

    def held_out(self, batch: int) -> Iterator[Batch]:
        """Fresh points, as many as the test set has, with labels as noisy as the training set's."""
        return self._noisy(TEST, generator(self.seed, "blobs", "held out")).batches(batch)

    @cached_property
    def draw(self) -> Draw:
        chance = generator(self.seed, "blobs")
        train, test = self._noisy(self.samples, chance), torch.randint(self.classes, (TEST,), generator=chance)
        reference = torch.arange(REFERENCE) % self.classes
        test_samples = clean(_points(test, chance), test)
        return Draw(
            train, clean(_points(reference, generator(self.seed, "blobs", "reference")), reference), test_samples
        )

    def _noisy(self, number: int, chance: torch.Generator) -> Samples:
        """Points of random clouds, a share of them with another cloud's label."""
        y = torch.randint(self.classes, (number,), generator=chance)
        return corrupted(_points(y, chance), y, self.noise, self.classes, chance)


def _points(y: Tensor, chance: torch.Generator) -> Tensor:
    """Points of the clouds ``[n]``, ``[n, 2]``."""
    angle = y * (2 * math.pi / Blobs.classes)
    centres = torch.stack([angle.cos(), angle.sin()], -1)
    return centres + SPREAD * torch.randn(len(y), 2, generator=chance)

"""Digits with wrong labels, and a reference that saw a few right ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Literal

import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from steering.errors import UserError
from steering.settings import Arm, Recipe
from steering.task import Batch
from steering.tasks.in_memory import Classification, Draw, check_noise, check_sizes, clean, corrupted, frozen_linear
from steering.training.seeds import generator

__all__ = ["Digits"]

IMAGES = 1797
PIXELS = 64
HIDDEN = 64  # units of the mlp


@dataclass(frozen=True)
class Digits(Classification):
    """Handwritten digits, 40 % of the training labels wrong; the reference saw 100 clean ones.

    The target is a linear softmax on the 8 x 8 images of scikit-learn (1797 in all), the reference a logistic
    regression on other images; all the rest is the test set. docs/tasks.md says how the settings were chosen.

    Args:
        samples: training samples.
        noise: share of their labels that are replaced by another class, uniformly.
        reference_samples: samples of the reference, none of which the target sees.
        reference_noise: share of the reference's labels that are replaced likewise.
        reference_c: its inverse strength of regularisation (C of scikit-learn's LogisticRegression).
        model: the target, ``linear`` or ``mlp`` (one hidden layer of 64).
        seed: of split and noise; repetition s of a run uses seed + s.
    """

    samples: int = 400
    noise: float = 0.4
    reference_samples: int = 100
    reference_noise: float = 0.0
    reference_c: float = 0.05
    model: Literal["linear", "mlp"] = "linear"
    seed: int = 0

    classes = 10
    recipe = Recipe(
        steps=150,
        batch=160,
        optimizer="adam",
        learning_rate=0.05,
        weight_decay=0.2,
        seeds=12,
        evaluate_every=10,
        arms={
            "erm": Arm(rule="uniform", subtract=False),
            "dro": Arm(rule="cvar(alpha=0.9)", subtract=False),
            "drrho_kl": Arm(rule="kl(temperature=0.5)", reference_scale=1.0),
            "drrho_cvar": Arm(rule="cvar(alpha=0.7)", reference_scale=1.0),
        },
        baseline="erm",
    )

    def __post_init__(self):
        check_sizes("digits", self.samples, self.reference_samples, IMAGES, "images")
        check_noise("digits", self.noise, self.reference_noise)
        if not self.reference_c > 0:
            raise UserError(f"digits needs a reference_c above 0, got {self.reference_c:g}")
        if self.model not in ("linear", "mlp"):
            raise UserError(f"digits has the models linear and mlp, got {self.model!r}")

    def target(self) -> nn.Module:
        if self.model == "mlp":
            return nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, self.classes))
        return nn.Linear(PIXELS, self.classes)

    def reference(self) -> nn.Module:
        """Logistic regression, as a linear layer."""
        classifier = LogisticRegression(C=self.reference_c, max_iter=1000)
        classifier.fit(self.draw.reference.x.numpy(), self.draw.reference.y.numpy())
        if len(classifier.classes_) < self.classes:
            raise UserError(
                f"the {self.reference_samples} reference samples of seed {self.seed} show only "
                f"{len(classifier.classes_)} of {self.classes} digits: use a larger reference_samples"
            )
        return frozen_linear(torch.from_numpy(classifier.coef_), torch.from_numpy(classifier.intercept_))

    def held_out(self, batch: int) -> Iterator[Batch]:
        """The images of the test set, with labels as noisy as the training set's."""
        x, y, _ = self.draw.test
        return corrupted(x, y, self.noise, self.classes, generator(self.seed, "digits", "held out")).batches(batch)

    @cached_property
    def draw(self) -> Draw:
        x, y = images()
        chance = generator(self.seed, "digits")
        order = torch.randperm(len(x), generator=chance)
        train, reference, test = order.tensor_split([self.samples, self.samples + self.reference_samples])
        noisy = corrupted(x[train], y[train], self.noise, self.classes, chance)
        chance = generator(self.seed, "digits", "reference")
        seen = corrupted(x[reference], y[reference], self.reference_noise, self.classes, chance)
        return Draw(noisy, seen, clean(x[test], y[test]))


@cache
def images() -> tuple[Tensor, Tensor]:
    """All images, ``[1797, 64]`` from 0 to 4, and their labels ``[1797]``."""
    pixels, labels = load_digits(return_X_y=True)
    return torch.from_numpy(pixels / 4).float(), torch.from_numpy(labels).long()

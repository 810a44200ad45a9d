"""A real regression with corrupted targets, and a ridge regression on a few clean samples as reference."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from torch import Tensor, nn
from torch.nn.functional import huber_loss

from steering.errors import UserError
from steering.settings import Arm, Metric, Recipe
from steering.task import Batch, Losses
from steering.tasks.in_memory import Draw, InMemory, Samples, check_noise, check_sizes, clean, frozen_linear
from steering.training.seeds import generator

__all__ = ["Diabetes"]

PATIENTS = 442
FEATURES = 10


@dataclass(frozen=True)
class Diabetes(InMemory):
    """Progression of diabetes in 442 patients, some of the targets swapped; the reference saw 60 right ones.

    The target is a linear regression on the ten features of scikit-learn's data, under a Huber loss, which
    suits wrong targets by itself. The reference is a ridge regression on other patients; all the rest is the test
    set, 132 of them. docs/tasks.md says how the settings were chosen.

    Args:
        samples: training patients.
        noise: share of them with the target of another one, drawn from the training patients.
        reference_samples: patients with right targets that the reference learns from and the target never sees.
        huber: error, in standard deviations of the target, from which on the loss is linear; None never.
        seed: of split and noise; repetition s of a run uses seed + s.
    """

    samples: int = 250
    noise: float = 0.3
    reference_samples: int = 60
    huber: float | None = 1.0
    seed: int = 0

    recipe = Recipe(
        steps=150,
        batch=125,
        optimizer="adam",
        learning_rate=0.05,
        seeds=12,
        evaluate_every=25,
        arms={
            "erm": Arm(rule="uniform", subtract=False),
            "dro": Arm(rule="cvar(alpha=0.9)", subtract=False),
            "drrho_kl": Arm(rule="kl(temperature=2)", reference_scale=1.0),
            "drrho_cvar": Arm(rule="cvar(alpha=0.9)", reference_scale=1.0),
        },
        baseline="erm",
    )

    def __post_init__(self):
        check_sizes("diabetes", self.samples, self.reference_samples, PATIENTS, "patients")
        check_noise("diabetes", self.noise)
        if self.huber is not None and not self.huber > 0:
            raise UserError(f"diabetes needs a huber above 0, or None for the squared error, got {self.huber:g}")

    @property
    def metrics(self) -> Mapping[str, Metric]:
        return {"r2": Metric(label="R^2 on the test set", better="high", chance=0.0)}

    def target(self) -> nn.Module:
        return nn.Linear(FEATURES, 1)

    def reference(self) -> nn.Module:
        """Ridge regression with alpha = 10, as a linear layer."""
        ridge = Ridge(alpha=10.0).fit(self.draw.reference.x.numpy(), self.draw.reference.y.numpy())
        return frozen_linear(torch.from_numpy(ridge.coef_)[None], torch.tensor([ridge.intercept_]))

    def held_out(self, batch: int) -> Iterator[Batch]:
        """The patients of the test set, as many of their targets swapped as of the training set's."""
        x, y, _ = self.draw.test
        return _swapped(x, y, self.noise, generator(self.seed, "diabetes", "held out")).batches(batch)

    def losses(self, model: nn.Module, batch: Batch) -> Losses:
        """Squared errors in variances of the target; under the Huber loss as long as they are small."""
        guess = model(batch["x"])[:, 0]
        if self.huber is None:
            return Losses((guess - batch["y"]).square())
        return Losses(2 * huber_loss(guess, batch["y"], reduction="none", delta=self.huber))

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        device = next(model.parameters()).device
        y = self.draw.test.y.to(device)
        left = (model(self.draw.test.x.to(device))[:, 0] - y).square().sum()
        return {"r2": float(1 - left / (y - y.mean()).square().sum())}

    @cached_property
    def draw(self) -> Draw:
        x, y = _patients()
        chance = generator(self.seed, "diabetes")
        order = torch.randperm(len(x), generator=chance)
        train, reference, test = order.tensor_split([self.samples, self.samples + self.reference_samples])
        noisy = _swapped(x[train], y[train], self.noise, chance)
        return Draw(noisy, clean(x[reference], y[reference]), clean(x[test], y[test]))


def _swapped(x: Tensor, y: Tensor, noise: float, chance: torch.Generator) -> Samples:
    """Samples of which a share has the target of another one of them."""
    wrong = torch.rand(len(y), generator=chance) < noise
    other = torch.randint(len(y), (len(y),), generator=chance)
    return Samples(x, torch.where(wrong, y[other], y), wrong)


@cache
def _patients() -> tuple[Tensor, Tensor]:
    """All patients: ``[442, 10]`` features and ``[442]`` targets, each with mean 0 and variance 1."""
    x, y = (torch.from_numpy(part).float() for part in load_diabetes(return_X_y=True, scaled=False))
    return (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()

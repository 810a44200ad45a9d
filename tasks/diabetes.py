"""A real regression with corrupted targets, and a ridge regression on a few clean samples as reference."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import NamedTuple, Self

import torch
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from torch import Tensor, nn
from torch.nn.functional import huber_loss

from steering.recipe import Arm, Metric, Recipe
from steering.task import Batch, Losses
from steering.training.seeds import generator
from steering.training.stream import Shuffled

__all__ = ["Diabetes"]

PATIENTS = 442
FEATURES = 10


class _Data(NamedTuple):
    """One draw: ``[n, 10]`` features and ``[n]`` targets of training, reference and test patients."""

    x: Tensor
    y: Tensor  # with corruption
    wrong: Tensor
    reference_x: Tensor
    reference_y: Tensor
    test_x: Tensor
    test_y: Tensor


@dataclass(frozen=True)
class Diabetes:
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

    @property
    def size(self) -> int:
        return self.samples

    @property
    def rows(self) -> int:
        return 1

    @property
    def metrics(self) -> Mapping[str, Metric]:
        return {"r2": Metric(label="R^2 on the test set", better="high", chance=0.0)}

    def seeded(self, seed: int) -> Self:
        return replace(self, seed=self.seed + seed)

    def target(self) -> nn.Module:
        return nn.Linear(FEATURES, 1)

    def reference(self) -> nn.Module:
        ridge = Ridge(alpha=10.0).fit(self._data.reference_x.numpy(), self._data.reference_y.numpy())
        model = nn.utils.skip_init(nn.Linear, FEATURES, 1)
        fitted = {"weight": torch.from_numpy(ridge.coef_)[None], "bias": torch.tensor([ridge.intercept_])}
        model.load_state_dict(fitted)
        return model.eval().requires_grad_(False)

    def stream(self, batch: int, *, seed: int) -> Shuffled:
        return Shuffled(self._load, size=self.size, batch=batch, seed=seed)

    def losses(self, model: nn.Module, batch: Batch) -> Losses:
        guess = model(batch["x"])[:, 0]
        if self.huber is None:
            return Losses((guess - batch["y"]).square())
        return Losses(2 * huber_loss(guess, batch["y"], reduction="none", delta=self.huber))

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        device = next(model.parameters()).device
        y = self._data.test_y.to(device)
        left = (model(self._data.test_x.to(device))[:, 0] - y).square().sum()
        return {"r2": float(1 - left / (y - y.mean()).square().sum())}

    def _load(self, ids: Tensor, _: torch.Generator) -> Batch:
        data = self._data
        return Batch(ids, {"x": data.x[ids], "y": data.y[ids]}, {"wrong": data.wrong[ids]})

    @cached_property
    def _data(self) -> _Data:
        x, y = _patients()
        chance = generator(self.seed, "diabetes")
        order = torch.randperm(len(x), generator=chance)
        train, reference, test = order.tensor_split([self.samples, self.samples + self.reference_samples])
        wrong = torch.rand(self.samples, generator=chance) < self.noise
        other = train[torch.randint(self.samples, (self.samples,), generator=chance)]
        noisy = torch.where(wrong, y[other], y[train])
        return _Data(x[train], noisy, wrong, x[reference], y[reference], x[test], y[test])


@cache
def _patients() -> tuple[Tensor, Tensor]:
    """All patients: ``[442, 10]`` features and ``[442]`` targets, each with mean 0 and variance 1."""
    x, y = (torch.from_numpy(part).float() for part in load_diabetes(return_X_y=True, scaled=False))
    return (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()

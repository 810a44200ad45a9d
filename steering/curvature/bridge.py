"""A curvature-tuned copy of a model as the reference of a DRRho run."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from steering import registry
from steering.curvature.classification import Classification, Split, answers, error, recipe, trained
from steering.curvature.methods import network
from steering.curvature.replace import replace_relus
from steering.curvature.samples import digits, drawn, mislabelled
from steering.curvature.search import with_relu
from steering.settings import Arm
from steering.task import Batch, HeldOut, Losses, Task
from steering.training.seeds import derive, generator

NOISE = 0.4  # share of wrong labels among the target's training samples and the held-out ones
TRAINING, REFERENCE, HELD_OUT = 400, 150, 300
STEERED = Arm(rule="kl(temperature=0.5)", reference_scale=1.0)


@dataclass(frozen=True)
class TunedReference:
    """Another task, with every ReLU of its reference replaced by a curvature unit.

    ``steer run "steering.curvature:TunedReference(task='mine:Task(noise=0.2)', beta=0.9)"`` runs it.

    Args:
        task: as ``steer run`` takes it, or the task itself; its reference must have a ReLU.
        beta: of every unit; 1 is the reference as it was.
        coefficient: of every unit.
    """

    task: Any
    beta: float = 0.9
    coefficient: float = 0.5

    def __post_init__(self):
        if isinstance(self._inner, HeldOut):  # what only some tasks have
            object.__setattr__(self, "held_out", self._inner.held_out)

    @cached_property
    def _inner(self) -> Task:
        return registry.build("tasks", self.task) if isinstance(self.task, str) else self.task

    @property
    def size(self) -> int:
        return self._inner.size

    @property
    def rows(self) -> int:
        return self._inner.rows

    @property
    def recipe(self):
        return self._inner.recipe

    @property
    def metrics(self):
        return self._inner.metrics

    def seeded(self, seed: int) -> Self:
        return type(self)(self._inner.seeded(seed), self.beta, self.coefficient)

    def target(self) -> nn.Module:
        return self._inner.target()

    def reference(self) -> nn.Module:
        tuned = replace_relus(self._inner.reference(), self.beta, self.coefficient).model
        return tuned.eval().requires_grad_(False)

    def stream(self, batch: int, *, seed: int):
        return self._inner.stream(batch, seed=seed)

    def losses(self, model: nn.Module, batch: Batch) -> Losses:
        return self._inner.losses(model, batch)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return self._inner.evaluate(model)


def measure(seed: int, betas: Sequence[float], steps: int = 200) -> dict[str, Any]:
    """One repetition on noisy digits: DRRho with one reference at several betas. Nothing is chosen.

    Returns:
        ``plain``: test error without a reference; for every beta the reference's own test error, the variance ratio
        Var(l - l_ref) / Var(l) on held-out noisy samples, with l of the target trained plainly, and the test error of
        the target that it steered.
    """
    chance = generator(seed, "curvature", "bridge")
    training, clean, held_out, test = drawn(digits(), [TRAINING, REFERENCE, HELD_OUT], chance)
    training, held_out = (Split(s.x, mislabelled(s.y, NOISE, 10, chance)) for s in (training, held_out))

    def target() -> nn.Module:
        return network(64, 64, 1, 10)

    settings = recipe(steps, 160, 1e-2, weight_decay=0.1)
    knowing = Classification(target, clean, held_out, test, recipe(200, 50, 1e-2, weight_decay=0.1))
    reference = trained(knowing, knowing.recipe, derive(seed, "reference")).requires_grad_(False)
    task = Classification(target, training, held_out, test, settings, lambda: reference)
    plain = trained(task, settings, seed)
    found: dict[str, Any] = {"betas": with_relu(betas), "ratio": [], "reference": [], "steered": []}
    for beta in found["betas"]:
        tuned = TunedReference(task, beta)
        known = tuned.reference()
        found["reference"].append(error(known, test))
        found["ratio"].append(variance_ratio(_losses(plain, held_out), _losses(known, held_out)))
        found["steered"].append(error(trained(tuned, settings, seed, STEERED), test))
    return found | {"plain": error(plain, test), "sizes": [TRAINING, REFERENCE, HELD_OUT, len(test.y)]}


def variance_ratio(losses: np.ndarray, reference: np.ndarray) -> float:
    """Var(l - l_ref) / Var(l) over samples: below 1 the loss varies less (Wei et al. 2025, sec. 4)."""
    return float(np.var(losses - reference) / np.var(losses))


def _losses(model: nn.Module, samples: Split) -> np.ndarray:
    given = answers(model, samples.x).double()
    return torch.nn.functional.cross_entropy(given, samples.y, reduction="none").numpy()

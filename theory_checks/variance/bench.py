"""Measures models of a task on its held-out samples, seed by seed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import nn

from steering.errors import UserError
from steering.settings import Recipe
from steering.task import Batch, Task
from steering.theory_checks.training_sets import concatenate, frozen_reference, train_on
from steering.theory_checks.variance import losses
from steering.theory_checks.variance.losses import Scored
from steering.theory_checks.variance.paired import Features, Paired, Samples, views

STAR = "theta_star"


@dataclass
class TaskBench:
    """Held-out samples of one draw of any task that has them."""

    task: Task

    @cached_property
    def batches(self) -> list[Batch]:
        return losses.held_out(self.task)

    def score(self, model: nn.Module) -> Scored | Features:
        """A model's answers to them."""
        return losses.score(self.task, model, self.batches)

    def compare(self, target: Any, reference: Any) -> dict[str, Paired]:
        """The views of both models' answers, by name; the only one of losses a sample has none."""
        if isinstance(target, Features):
            return views(target, reference, 1.0)
        return {"": losses.paired(target, reference)}

    def leak(self, reference: nn.Module, answers: Any) -> tuple[ndarray, ndarray] | None:
        """The reference's losses on these samples and on training samples, if both can be had."""
        if isinstance(answers, Features):
            return None
        trained = losses.score(self.task, reference, [losses.trained_on(self.task)])
        assert isinstance(trained, Scored)
        return answers.losses, trained.losses


@dataclass(frozen=True)
class Baseline:
    """What every target of a drawn task is compared with: its reference's answers to the held-out samples."""

    task: Task
    bench: Any  # a TaskBench, or a ClipBench with the same methods
    reference: nn.Module
    answers: Any

    @classmethod
    def of(cls, task: Task, pairs: int, device: torch.device | str, last: "Baseline | None") -> "Baseline":
        """The baseline of a drawn task with at most so many image-text pairs; ``last`` if that is of this very task."""
        if last is not None and last.task is task:
            return last
        bench: Any = TaskBench(task)
        if hasattr(task, "held_out_pairs"):  # image-text pairs, which every model sees its own way
            from steering.theory_checks.variance.clip import ClipBench  # slow to import, and its task has done so

            bench = ClipBench(task, pairs)  # type: ignore[arg-type]
        reference = frozen_reference(task, device)
        return cls(task, bench, reference, bench.score(reference))

    def compare(self, model: nn.Module) -> dict[str, Paired]:
        """The views of a target and the reference, by name."""
        return self.bench.compare(self.bench.score(model), self.answers)


@dataclass
class Collected:
    """Answers of models, ready to be measured."""

    pairs: dict[tuple[str, str], list[Paired]] = field(default_factory=dict)  # by target and view, one a seed
    leaks: list[tuple[ndarray, ndarray]] = field(default_factory=list)  # fresh and training losses, one a seed
    crossed: bool = False  # all seeds have the same held-out samples
    size: int = 0  # training samples of the targets

    def add(self, target: str, views: dict[str, Paired]) -> None:
        for view, pair in views.items():
            self.pairs.setdefault((target, view), []).append(pair)


Model = Callable[[Task, str, int], nn.Module]  # of a drawn task, an arm, a seed


def collect(
    task: Task, seeds: int, arms: Sequence[str], model: Model, *, pairs: int, device: torch.device, star: Model | None
) -> Collected:
    """Losses of the models of all arms and seeds, and of the reference.

    Args:
        task: before it is drawn.
        seeds: number of repetitions.
        arms: targets.
        model: gives the trained target of an arm.
        pairs: most image-text pairs.
        device: of the reference.
        star: trains a stand-in for the best model on the samples of a task; None leaves it out.
    """
    collected, baseline = Collected(size=task.seeded(0).size), None
    for seed in range(seeds):
        drawn = task.seeded(seed)
        last, baseline = baseline, Baseline.of(drawn, pairs, device, baseline)
        if baseline is last:
            collected.crossed = True
        elif (leak := baseline.bench.leak(baseline.reference, baseline.answers)) is not None:
            collected.leaks.append(leak)
        for arm in arms:
            collected.add(arm, baseline.compare(model(drawn, arm, seed)))
        if star is not None and isinstance(baseline.answers, Scored) and baseline.answers.rows is None:
            collected.add(STAR, {"": cross_fitted(drawn, baseline.answers, star, seed)})
    return collected


def cross_fitted(task: Task, reference: Scored, star: Model, seed: int) -> Samples:
    """A stand-in for the best model: trained on one half of the held-out samples too, scored on the other."""
    samples, trained = concatenate(*losses.held_out(task)), losses.trained_on(task, losses.MOST_WHOLE)
    fold, target = torch.arange(len(samples)) % 2, np.zeros(len(samples))
    for part in range(2):
        data = concatenate(trained, samples.take((fold != part).nonzero()[:, 0]))
        model = star(train_on(task, data), f"{STAR}-{part}", seed)
        scored = losses.score(task, model, [samples.take((fold == part).nonzero()[:, 0])])
        assert isinstance(scored, Scored)
        target[fold == part] = scored.losses
    return losses.paired(Scored(target), reference)


def plain_and_steered(recipe: Recipe) -> tuple[str, str | None]:
    """Names of the arm without reference and of the first one with it."""
    plain = [name for name, arm in recipe.arms.items() if not arm.subtract and arm.selector is None]
    steered = [name for name, arm in recipe.arms.items() if arm.subtract]
    if not plain:
        raise UserError("no arm is trained without the reference, so its variance cannot be told: add --arms erm")
    return recipe.baseline if recipe.baseline in plain else plain[0], next(iter(steered), None)

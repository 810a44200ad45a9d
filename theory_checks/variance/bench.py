"""Measures models of a task on its held-out samples, seed by seed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy import ndarray
from torch import nn

from steering.errors import UserError
from steering.task import Batch, Task
from steering.theory_checks.variance import losses
from steering.theory_checks.variance.losses import Scored
from steering.theory_checks.variance.measure import Paired, Samples
from steering.theory_checks.variance.models import Variant, joined
from steering.theory_checks.variance.pairs import Features, views
from steering.training.reference_losses import ReferenceLosses

STAR = "theta_star"


class Bench(Protocol):
    """Held-out samples of one draw of a task."""

    def ask(self, model: nn.Module) -> Any:
        """What a model says of them."""
        ...

    def compare(self, target: Any, reference: Any) -> dict[str, Paired]:
        """The views of both, by name; the only one of losses a sample has none."""
        ...

    def leak(self, reference: nn.Module, known: Any) -> tuple[ndarray, ndarray] | None:
        """The reference's losses on these samples and on training samples, if both can be had."""
        ...


@runtime_checkable
class HasPairs(Protocol):
    """A task whose held-out samples are image-text pairs, which every model sees its own way."""

    def held_out_pairs(self) -> Any: ...


@dataclass
class TaskBench:
    """Held-out samples of any task that has them."""

    task: Task

    @cached_property
    def batches(self) -> list[Batch]:
        return losses.held_out(self.task)

    def ask(self, model: nn.Module) -> Scored | Features:
        return losses.score(self.task, model, self.batches)

    def compare(self, target: Any, reference: Any) -> dict[str, Paired]:
        if isinstance(target, Features):
            return views(target, reference, 1.0)
        return {"": losses.paired(target, reference)}

    def leak(self, reference: nn.Module, known: Any) -> tuple[ndarray, ndarray] | None:
        if isinstance(known, Features):
            return None
        trained = losses.score(self.task, reference, losses.trained_on(self.task))
        assert isinstance(trained, Scored)
        return known.losses, trained.losses


def bench(task: Task, pairs: int) -> Bench:
    """The held-out samples of a drawn task; of image-text pairs at most ``pairs``."""
    if not isinstance(task, HasPairs):
        return TaskBench(task)
    from steering.theory_checks.variance.clip import ClipBench  # slow to import, and its task has done so

    return ClipBench(task, pairs)  # type: ignore[arg-type]


@dataclass
class Collected:
    """What models said, ready to be measured.

    Attributes:
        pairs: by target and view, one a seed.
        leaks: the reference's losses on fresh and on training samples, one a seed.
        crossed: all seeds have the same held-out samples.
        size: training samples of the targets.
    """

    pairs: dict[tuple[str, str], list[Paired]] = field(default_factory=dict)
    leaks: list[tuple[ndarray, ndarray]] = field(default_factory=list)
    crossed: bool = False
    size: int = 0

    def add(self, target: str, found: dict[str, Paired]) -> None:
        for view, pair in found.items():
            self.pairs.setdefault((target, view), []).append(pair)


Model = Callable[[Task, str, int], nn.Module]  # of a drawn task, an arm, a seed


def collect(
    task: Task, seeds: int, arms: Sequence[str], model: Model, *, pairs: int, device: torch.device, star: Model | None
) -> Collected:
    """Asks the models of all arms and seeds, and the reference.

    Args:
        task: before it is drawn.
        seeds: number of repetitions.
        arms: targets.
        model: gives the trained target of an arm.
        pairs: most image-text pairs.
        device: of the reference.
        star: trains a stand-in for the best model on the samples of a task, if that is wanted.
    """
    found, last = Collected(size=task.seeded(0).size), None
    for seed in range(seeds):
        drawn = task.seeded(seed)
        if last is None or last[0] is not drawn:
            held, reference = bench(drawn, pairs), ReferenceLosses(drawn, device).model
            last = drawn, held, reference, held.ask(reference)
            leaked = held.leak(reference, last[3])
            found.leaks += [leaked] if leaked else []
        elif seed:
            found.crossed = True
        _, held, reference, known = last
        for arm in arms:
            found.add(arm, held.compare(held.ask(model(drawn, arm, seed)), known))
        if star is not None and isinstance(known, Scored) and known.rows is None:
            found.add(STAR, {"": cross_fitted(drawn, known, star, seed)})
    return found


def cross_fitted(task: Task, reference: Scored, star: Model, seed: int) -> Samples:
    """A stand-in for the best model: trained on one half of the held-out samples too, asked about the other."""
    whole = joined(*losses.held_out(task))
    fold = torch.arange(len(whole)) % 2
    target = np.zeros(len(whole))
    (trained,) = losses.trained_on(task, losses.MOST_WHOLE)
    for part in range(2):
        data = joined(trained, whole.take((fold != part).nonzero()[:, 0]))
        model = star(Variant(task, data=data), f"{STAR}-{part}", seed)
        asked = losses.score(task, model, [whole.take((fold == part).nonzero()[:, 0])])
        assert isinstance(asked, Scored)
        target[(fold == part).numpy()] = asked.losses
    return losses.paired(Scored(target), reference)


def plain_and_steered(recipe) -> tuple[str, str | None]:
    """Names of the arm without reference and of the first one with it."""
    plain = [name for name, arm in recipe.arms.items() if not arm.subtract and arm.selector is None]
    steered = [name for name, arm in recipe.arms.items() if arm.subtract]
    if not plain:
        raise UserError("no arm is trained without the reference, so its variance cannot be told: add --arms erm")
    first = recipe.baseline if recipe.baseline in plain else plain[0]
    return first, steered[0] if steered else None

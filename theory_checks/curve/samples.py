"""The same problem with other training samples, or with a reference that is wrong on purpose."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from steering.errors import UserError
from steering.settings import Metric, Recipe
from steering.task import Batch, Task
from steering.training.loader import ShuffledLoader
from steering.training.reference_losses import ReferenceLosses
from steering.training.seeds import untouched


@runtime_checkable
class ReferenceData(Protocol):
    """A task that has the samples its reference was trained on."""

    def reference_batch(self) -> Batch:
        """All of them, labels as the reference saw them; fields and facts are those of training batches."""
        ...


@dataclass(frozen=True, eq=False)
class Held:
    """A drawn task whose training samples are held in memory, so that others can stand in their place.

    Test set, models and reference stay the task's own.

    Attributes:
        task: drawn for its repetition already.
        samples: ``[n]``, ids from 0 to n - 1.
    """

    task: Task
    samples: Batch = field(repr=False)

    @property
    def size(self) -> int:
        return len(self.samples)

    @property
    def rows(self) -> int:
        return 1

    @property
    def recipe(self) -> Recipe:
        return self.task.recipe

    @property
    def metrics(self) -> dict[str, Metric]:
        return dict(self.task.metrics)

    def seeded(self, seed: int) -> Self:
        return self  # the data are fixed by now

    def target(self) -> nn.Module:
        return self.task.target()

    def reference(self) -> nn.Module:
        return self._reference

    @cached_property
    def _reference(self) -> nn.Module:
        """Fitted once for all that is derived from this task."""
        if isinstance(self.task, Held):
            return self.task.reference()
        with untouched():
            return self.task.reference().eval().requires_grad_(False)

    def stream(self, batch: int, *, seed: int) -> ShuffledLoader:
        return ShuffledLoader(lambda ids, _: self.samples.take(ids), size=self.size, batch=batch, seed=seed)

    def losses(self, model: nn.Module, batch: Batch):
        return self.task.losses(model, batch)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return self.task.evaluate(model)

    def reference_batch(self) -> Batch:
        if not isinstance(self.task, ReferenceData):
            raise UserError(f"{type(self.task).__name__} does not have its reference's own samples (reference_batch)")
        return self.task.reference_batch()


def held(task: Task) -> Held:
    """All training samples of a drawn task, in the order of their ids.

    Raises:
        UserError: the task's loss is not one number a sample.
    """
    if task.rows != 1:
        raise UserError(f"{type(task).__name__} has no loss of its own for every sample: curves need one")
    batch = next(iter(task.stream(task.size, seed=0)))
    return Held(task, batch.take(batch.ids.argsort()))


def first(pool: Held, number: int) -> Held:
    """The first samples of a pool: for one pool, smaller sets are parts of larger ones.

    Raises:
        UserError: there are fewer.
    """
    if not 1 <= number <= pool.size:
        raise UserError(f"{number} training samples were asked for, of {pool.size} there are")
    return Held(pool, pool.samples.take(torch.arange(number)))


def filtered(task: Held, keep: float) -> Held:
    """The share ``keep`` of samples with the lowest reference loss, chosen once, in their old order."""
    losses = ReferenceLosses(task)(task.samples).values
    assert isinstance(losses, Tensor)
    number = max(1, round(keep * task.size))
    lowest = losses.argsort(stable=True)[:number].sort().values
    return Held(task, replace(task.samples.take(lowest), ids=torch.arange(number)))


def joined(task: Held) -> Held:
    """Its samples, then those that the reference was trained on."""
    more = task.reference_batch()
    fields = {name: torch.cat([value, more[name].to(value)]) for name, value in task.samples.fields.items()}
    both = task.samples.facts.keys() & more.facts.keys()
    facts = {name: torch.cat([task.samples.facts[name], more.facts[name]]) for name in both}
    return Held(task, Batch(torch.arange(task.size + len(more)), fields, facts))


class Asked(ReferenceLosses):
    """A reference's losses that count how many samples were ever asked for; for all others, it need not look.

    Args:
        task: whose reference and samples these are.
        places: ``[n]`` a permutation; sample i is given the loss of sample ``places[i]`` instead of its own.
    """

    def __init__(self, task: Held, places: Tensor | None = None):
        super().__init__(task)
        self.samples, self.places = task.samples, places
        self._asked = torch.zeros(task.size, dtype=torch.bool)

    def __call__(self, batch: Batch):
        self._asked[batch.ids.cpu()] = True
        return super().__call__(batch if self.places is None else self.samples.take(self.places[batch.ids.cpu()]))

    @property
    def number(self) -> int:
        return int(self._asked.sum())

"""Training sets in memory for the same problem, and reference losses that are counted or wrong on purpose."""

from functools import cache
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from steering.errors import UserError
from steering.references.store import ReferenceLosses
from steering.task import Batch, Losses, Task, exchange
from steering.training.training_sets import concatenate as concatenate
from steering.training.training_sets import train_on as train_on
from steering.training.training_sets import training_samples as training_samples


def frozen_reference(task: Task, device: torch.device | str = "cpu") -> nn.Module:
    """The reference of a drawn task, without gradients, made without touching any global generator."""
    return ReferenceLosses(task, device).as_model()


@runtime_checkable
class ReferenceData(Protocol):
    """A task that has the samples its reference was trained on."""

    def reference_batch(self) -> Batch:
        """All of them, labels as the reference saw them; fields and facts are those of training batches."""
        ...


@runtime_checkable
class Divisible(Protocol):
    """A task that is too large for memory, or has no loss for a sample alone, and divides its data itself."""

    def part(self, number: int) -> Task:
        """The same task on so many of its training samples; those of a smaller number are among those of a larger."""
        ...


def sample_pool(task: Task) -> Task:
    """A drawn task with all its samples in memory, whose reference is fitted once for all that is derived from it.

    One that is ``Divisible`` stays as it is.
    """
    if task.rows != 1 and not isinstance(task, Divisible):
        name = type(task).__name__
        raise UserError(f"{name} has no loss for every sample, nor a method part(number): curves need one of them")

    @cache
    def reference() -> nn.Module:
        return frozen_reference(task)

    return exchange(
        task if isinstance(task, Divisible) else train_on(task, training_samples(task)), reference=reference
    )


def first(pool: Task, number: int) -> Task:
    """The first samples of a pool, part of the larger sets of the same pool; a UserError if there are fewer."""
    if isinstance(pool, Divisible):
        return exchange(pool.part(number), reference=pool.reference)
    if not 1 <= number <= pool.size:
        raise UserError(f"{number} training samples were asked for, of {pool.size} there are")
    return train_on(pool, training_samples(pool).take(torch.arange(number)))


def filtered(task: Task, keep: float) -> Task:
    """The share ``keep`` of samples with the lowest reference loss, chosen once, in their old order."""
    samples = training_samples(task)
    losses = cast(Tensor, ReferenceLosses(task)(samples).values)
    return train_on(task, samples.take(losses.argsort(stable=True)[: max(1, round(keep * task.size))].sort().values))


def joined(task: Task) -> Task:
    """Its samples, then those that the reference was trained on (see ReferenceData)."""
    return train_on(task, concatenate(training_samples(task), cast(ReferenceData, task).reference_batch()))


class CountedReference(ReferenceLosses):
    """A reference's losses that count the samples they are requested for.

    Sample i is given the loss of sample ``permutation[i]``, of ``[n]``, instead of its own.
    """

    def __init__(self, task: Task, permutation: Tensor | None = None):
        super().__init__(task)
        self.permutation = permutation
        self.samples = None if permutation is None else training_samples(task)
        self.requested = torch.zeros(task.size, dtype=torch.bool)

    def __call__(self, batch: Batch, *, outputs: bool = False) -> Losses:
        ids = batch.ids.cpu()
        self.requested[ids] = True
        if self.samples is not None and self.permutation is not None:
            batch = self.samples.take(self.permutation[ids])
        return super().__call__(batch, outputs=outputs)

    @property
    def count(self) -> int:
        return int(self.requested.sum())

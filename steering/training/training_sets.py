"""The same problem with other training samples, held in memory; all else stays the task's own."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from steering.task import Batch, Task, exchange
from steering.training.loader import ShuffledLoader


def every_sample(task: Task, batch: int) -> Iterator[Batch]:
    """All training samples once, as the stream of the task brings them.

    A stream may leave the remainder of an epoch to the next one, and samples that are held out never come: it ends
    when so many samples of two epochs brought nothing new.
    """
    size, idle = task.size, 0
    seen, stream = torch.zeros(size, dtype=torch.bool), iter(task.stream(min(batch, size), seed=0))
    while not seen.all() and idle < 2 * size:
        part = next(stream)
        new = ~seen[part.ids.cpu()]
        idle, seen[part.ids.cpu()] = 0 if new.any() else idle + len(part), True
        if new.any():
            yield part.take(new.nonzero()[:, 0])


def training_samples(task: Task) -> Batch:
    """All training samples of a drawn task, in the order of their ids."""
    batch = next(iter(task.stream(task.size, seed=0)))
    return batch.take(batch.ids.argsort())


def concatenate(*batches: Batch) -> Batch:
    """Batches as one, with new ids from 0 on; of the facts those that all of them have."""

    def values(kind: str) -> dict[str, torch.Tensor]:
        first, *others = (getattr(batch, kind) for batch in batches)
        names = [name for name in first if all(name in other for other in others)]
        return {name: torch.cat([first[name], *(x[name].to(first[name]) for x in others)]) for name in names}

    return Batch(torch.arange(sum(map(len, batches))), values("fields"), values("facts"))


def train_on(task: Task, samples: Batch) -> Task:
    """A drawn task with other training samples, whose ids are their positions in ``samples``.

    What is bound to the ids of the old samples, another teacher or stored answers, is left out.
    """

    def load(ids: torch.Tensor, _: torch.Generator) -> Batch:
        return replace(samples.take(ids), ids=ids)

    def stream(batch: int, *, seed: int) -> ShuffledLoader:
        return ShuffledLoader(load, size=len(samples), batch=batch, seed=seed)

    fixed: Task = exchange(
        task, size=len(samples), rows=1, stream=stream, seeded=lambda _: fixed, with_teacher=None, stored=None
    )
    return fixed

"""The order of the data: exact epochs that depend on the seed alone and can be resumed anywhere."""

from collections.abc import Callable, Iterator
from typing import Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from steering.collect import rank, world_size
from steering.errors import RunError, UserError
from steering.task import Batch
from steering.training.seeds import generator

Load = Callable[[Tensor, torch.Generator], Batch]


class Shuffled:
    """Batches of data that can be looked up by id; every epoch is a fresh permutation, each id at most once.

    The ids of batch b are a function of (seed, b) alone, so methods that are compared see the same order, a
    larger batch is made of the same samples as several smaller ones, and resuming needs one number. What does
    not fill a batch at the end of an epoch is left out of that epoch.

    Args:
        load: makes the Batch of ``[n]`` ids; the generator is for random views of them and depends on
            (seed, batch number, rank) alone.
        size: number of samples.
        batch: samples in a batch over all ranks, at most ``size`` and a multiple of the number of ranks.
        seed: of the order and the views.
        workers: processes that load ahead; 0 loads in this one.
    """

    def __init__(self, load: Load, *, size: int, batch: int, seed: int, workers: int = 0):
        if not 0 < batch <= size:
            raise UserError(f"a batch of {batch} does not fit a training set of {size} samples: use 1 to {size}")
        if batch % world_size():
            raise UserError(f"a batch of {batch} cannot be shared evenly by {world_size()} processes")
        self.plan = _Plan(size=size, batch=batch, seed=seed, rank=rank(), world=world_size())
        self.load = load
        self.workers = workers
        self.position = 0  # batches handed out so far
        self._running: Iterator[Batch] | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if self._running is None:
            self._running = self._start()
        try:
            batch = next(self._running)
        except (UserError, RunError) as error:  # a worker's comes wrapped in its traceback
            last = str(error).strip().splitlines()[-1]
            raise type(error)(last.removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")) from None
        self.position += 1
        return batch

    def _start(self) -> Iterator[Batch]:
        if self.workers == 0:
            return (self.load(*self.plan.turn(number)) for number in _count_from(self.position))
        dataset = _Turns(self.plan, self.load)
        loader = DataLoader(dataset, batch_size=None, sampler=_CountFrom(self.position), num_workers=self.workers)
        return iter(loader)

    def state_dict(self) -> dict:
        return {"position": self.position, "size": self.plan.size, "batch": self.plan.batch, "seed": self.plan.seed}

    def load_state_dict(self, state: dict) -> None:
        mine = self.state_dict() | {"position": state["position"]}
        if mine != state:
            raise UserError(f"the checkpoint was made with another data order: it has {state}, this run {mine}")
        self.position, self._running = state["position"], None


class _Plan:
    """Which ids belong to which batch."""

    def __init__(self, *, size: int, batch: int, seed: int, rank: int, world: int):
        self.size, self.batch, self.seed = size, batch, seed
        self.rank, self.world = rank, world
        self._epoch, self._order = -1, torch.empty(0)

    def turn(self, number: int) -> tuple[Tensor, torch.Generator]:
        """This rank's ids of batch ``number`` and the generator of their views."""
        per_epoch = self.size // self.batch
        epoch, place = divmod(number, per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = torch.randperm(self.size, generator=generator(self.seed, "order", epoch))
        ids = self._order[place * self.batch : (place + 1) * self.batch]
        return ids.chunk(self.world)[self.rank], generator(self.seed, "view", number, self.rank)


class _Turns(Dataset):
    """The plan as something a DataLoader's workers can index."""

    def __init__(self, plan: _Plan, load: Load):
        self.plan, self.load = plan, load

    def __getitem__(self, number: int) -> Batch:
        return self.load(*self.plan.turn(number))


class _CountFrom(torch.utils.data.Sampler):
    def __init__(self, start: int):
        self.start = start

    def __iter__(self) -> Iterator[int]:
        return _count_from(self.start)


def _count_from(number: int) -> Iterator[int]:
    while True:
        yield number
        number += 1

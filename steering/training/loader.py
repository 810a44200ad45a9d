"""The order of the data: exact epochs that depend on the seed alone and can be resumed anywhere."""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from steering.distributed import rank, world_size
from steering.errors import RunError, UserError
from steering.task import Batch
from steering.training.sampler import Permutation, Sampler
from steering.training.seeds import generator

Load = Callable[..., Batch]


class Share(NamedTuple):
    """What a load may know of the batch that its ids are a part of.

    Attributes:
        first: place of its first id in the whole batch.
        whole: samples in the whole batch.
        stand_ins: ``[k]`` ids that may replace unusable samples: what this epoch leaves out, each in the hands of one
            rank, and for every batch in another order, so that batches share none of them while no batch needs more
            than an equal share.
    """

    first: int
    whole: int
    stand_ins: Tensor


class ShuffledLoader:
    """Batches of data that can be looked up by id; every epoch is a fresh order, each id at most once.

    The ids of batch b are a function of (seed, b) alone, so methods that are compared see the same order, and
    resuming needs one number, on any number of ranks and workers that the batch can be shared by. What does not fill
    a batch at the end of an epoch is left out of that epoch. While the order is a whole permutation, a larger batch is
    made of the same samples as several smaller ones.

    Args:
        load: makes the Batch of ``[n]`` ids; the generator is for random views of them and depends on
            (seed, batch number, rank) alone.
        size: number of samples, unless ``order`` says it.
        batch: samples in a batch over all ranks, at most ``size`` and a multiple of the number of ranks.
        seed: of the order and the views.
        workers: processes that load ahead; 0 loads in this one.
        order: which ids an epoch shows and when; a permutation of the whole size if not given.
        details: ``load`` takes a Share as a third argument, and the generator is the same on every rank: so views can
            be what they would be in one process that loads the whole batch.
    """

    def __init__(
        self,
        load: Load,
        *,
        size: int | None = None,
        batch: int,
        seed: int,
        workers: int = 0,
        order: Sampler | None = None,
        details: bool = False,
    ):
        if order is None:
            if size is None:
                raise UserError("Shuffled needs the number of samples (size) or an order")
            order = Permutation(size, seed=seed)
        if not order.length(0):
            raise UserError("an epoch has no samples: all are held out, or the source that weighs most is empty")
        if not 0 < batch <= order.length(0):
            raise UserError(
                f"a batch of {batch} does not fit a training set of {order.size} samples: use 1 to {order.length(0)}"
            )
        if batch % world_size():
            raise UserError(f"a batch of {batch} cannot be shared evenly by {world_size()} processes")
        self.plan = _Plan(order, batch=batch, seed=seed, rank=rank(), world=world_size(), details=details)
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
        order = self.plan.order
        told = {"size": order.size, "batch": self.plan.batch, "seed": self.plan.seed, "order": order.fingerprint}
        return {"position": self.position} | told

    def load_state_dict(self, state: dict) -> None:
        mine = self.state_dict() | {"position": state["position"]}
        theirs = {"order": "whole"} | state
        if mine != theirs:
            other = ", ".join(f"{name} {theirs.get(name)}" for name in mine if mine[name] != theirs.get(name))
            own = ", ".join(f"{name} {mine[name]}" for name in mine if mine[name] != theirs.get(name))
            raise UserError(
                f"the checkpoint was made with another data order: it has {other}, this run {own}; leave data, batch "
                "and seed as they were, or start a new run (from the checkpoint's weights, say)"
            )
        self.position, self._running = state["position"], None


class _Plan:
    """Which ids belong to which batch."""

    def __init__(self, order: Sampler, *, batch: int, seed: int, rank: int, world: int, details: bool = False):
        self.order, self.batch, self.seed = order, batch, seed
        self.rank, self.world, self.details = rank, world, details
        self._epoch, self._began = 0, 0  # the last epoch that was asked for and its first batch

    def turn(self, number: int) -> tuple:
        """This rank's ids of batch ``number``, the generator of their views, and a Share if it is wanted."""
        epoch, place = self._find(number)
        each = self.batch // self.world
        first = self.rank * each
        ids = self.order.ids(epoch, place * self.batch + first, place * self.batch + first + each)
        if not self.details:
            return ids, generator(self.seed, "view", number, self.rank)
        return ids, generator(self.seed, "view", number, 0), Share(first, self.batch, self._left(epoch, place))

    def _find(self, number: int) -> tuple[int, int]:
        """Epoch of a batch, and its place in there."""
        if number < self._began:
            self._epoch, self._began = 0, 0
        while number - self._began >= (batches := self.order.length(self._epoch) // self.batch):
            self._epoch, self._began = self._epoch + 1, self._began + batches
        return self._epoch, number - self._began

    def _left(self, epoch: int, place: int) -> Tensor:
        """What the epoch leaves out, this rank's part of it, from another one on for every batch."""
        total = self.order.length(epoch)
        batches = total // self.batch
        left = self.order.ids(epoch, batches * self.batch, total)[self.rank :: self.world]
        return left.roll(-place * max(1, len(left) // batches))


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

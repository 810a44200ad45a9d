"""The order of the data: exact epochs that depend on the seed alone and can be resumed anywhere."""

from collections.abc import Callable, Iterator
from itertools import count
from typing import NamedTuple, Self

import torch
from torch import Tensor

from steering.distributed import rank, world_size
from steering.errors import RunError, UserError
from steering.task import Batch
from steering.training.sampler import Permutation, Sampler
from steering.training.seeds import generator
from steering.training.workers import Workers

Load = Callable[..., Batch]


class Share(NamedTuple):
    """What a load may know of the batch that its ids are a part of.

    Attributes:
        first: position of its first id in the batch over all ranks.
        batch: samples in that batch.
        stand_ins: ``[k]`` ids that may replace unusable samples: what this epoch leaves out, each in the hands of one
            rank, and for every batch in another order, so that batches share none of them while no batch needs more
            than an equal share.
    """

    first: int
    batch: int
    stand_ins: Tensor


class ShuffledLoader:
    """Batches of data that can be looked up by id; every epoch is a fresh order, each id at most once.

    The ids of batch b are a function of (seed, b) alone, so methods that are compared see the same order, and
    resuming needs one number, on any number of ranks and workers that the batch can be shared by. What does not fill
    a batch at the end of an epoch is left out of that epoch. While the order is one permutation of all samples, a
    larger batch is made of the same samples as several smaller ones.

    Args:
        load: makes the Batch of ``[n]`` ids; the generator is for random views of them and depends on
            (seed, batch number, rank) alone.
        size: number of samples, unless ``order`` says it.
        batch: samples in a batch over all ranks, at most ``size`` and a multiple of the number of ranks.
        seed: of the order and the views.
        workers: processes that load ahead; 0 loads in this one.
        order: which ids an epoch shows and when; a permutation of all ``size`` if not given.
        with_share: ``load`` takes a Share as a third argument, and the generator is the same on every rank: so views
            can be what they would be in one process that loads the batch of all ranks.
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
        with_share: bool = False,
    ):
        if order is None:
            if size is None:
                raise UserError("ShuffledLoader needs the number of samples (size) or an order")
            order = Permutation(size, seed=seed)
        if not order.length(0):
            raise UserError("an epoch has no samples: all are held out, or the source that weighs most is empty")
        if not 0 < batch <= order.length(0):
            raise UserError(
                f"a batch of {batch} does not fit a training set of {order.size} samples: use 1 to {order.length(0)}"
            )
        if batch % world_size():
            raise UserError(f"a batch of {batch} cannot be shared evenly by {world_size()} processes")
        self.plan = _Plan(load, order, batch=batch, seed=seed, with_share=with_share)
        self.workers = workers
        self.position = 0  # batches handed out so far
        self._batches: Iterator[Batch] | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if self._batches is None:
            self._batches = self._start()
        try:
            batch = next(self._batches)
        except (UserError, RunError) as error:  # a worker's comes wrapped in its traceback
            if "\n" not in (text := str(error.args[0] if error.args else "").strip()):  # all of it: str shortens
                raise
            last = text.splitlines()[-1]
            raise type(error)(last.removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")) from None
        self.position += 1
        return batch

    def _start(self) -> Iterator[Batch]:
        numbers = count(self.position)
        if self.workers == 0:
            return map(self.plan.__getitem__, numbers)
        return Workers(self.plan, numbers, self.workers)

    def state_dict(self) -> dict:
        return {"position": self.position} | self._data()

    def _data(self) -> dict:
        """What must be the same for a position to mean the same."""
        order = self.plan.order
        return {"size": order.size, "batch": self.plan.batch, "seed": self.plan.seed, "order": order.fingerprint}

    def load_state_dict(self, state: dict) -> None:
        data = self._data()
        saved = {"order": "whole"} | state
        differ = [name for name in data if data[name] != saved.get(name)]
        if differ:
            before = ", ".join(f"{name} {saved.get(name)}" for name in differ)
            now = ", ".join(f"{name} {data[name]}" for name in differ)
            raise UserError(
                f"the checkpoint was made with another data order: it has {before}, this run {now}; leave data, batch "
                "and seed as they were, or start a new run (from the checkpoint's weights, say)"
            )
        self.position, self._batches = state["position"], None


class _Plan:
    """This rank's part of every batch, by the batch's number: what worker processes index."""

    def __init__(self, load: Load, order: Sampler, *, batch: int, seed: int, with_share: bool):
        self.load, self.order, self.batch, self.seed, self.with_share = load, order, batch, seed, with_share
        self.rank, self.world_size = rank(), world_size()  # workers have neither
        self._epoch, self._first = 0, 0  # the epoch of the last call and its first batch

    def __getitem__(self, number: int) -> Batch:
        epoch, turn = self._epoch_and_turn(number)
        length = self.batch // self.world_size
        first = self.rank * length
        start = turn * self.batch + first
        ids = self.order.ids(epoch, start, start + length)
        if not self.with_share:
            return self.load(ids, generator(self.seed, "view", number, self.rank))
        share = Share(first, self.batch, self._stand_ins(epoch, turn, first, length))
        return self.load(ids, generator(self.seed, "view", number, 0), share)

    def _epoch_and_turn(self, number: int) -> tuple[int, int]:
        """Epoch of a batch, and its number in there."""
        if number < self._first:
            self._epoch, self._first = 0, 0
        while number - self._first >= (batches := self.order.length(self._epoch) // self.batch):
            self._epoch, self._first = self._epoch + 1, self._first + batches
        return self._epoch, number - self._first

    def _stand_ins(self, epoch: int, turn: int, first: int, length: int) -> Tensor:
        """Samples that no other batch or rank is offered in the epoch: of what it leaves out, and of the next batch."""
        total = self.order.length(epoch)
        batches = total // self.batch
        left_out = self.order.ids(epoch, batches * self.batch, total)[self.rank :: self.world_size]
        own = left_out[turn * len(left_out) // batches : (turn + 1) * len(left_out) // batches]
        start = (turn + 1) % batches * self.batch + first
        return torch.cat([own, self.order.ids(epoch, start, start + length)]) if batches > 1 else own

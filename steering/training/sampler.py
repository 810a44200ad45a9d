"""Orders of the data: what an epoch shows and when, as functions of the seed and the epoch alone."""

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from steering.errors import UserError
from steering.training.seeds import generator

LANES = 64  # at most; as many ranks then read neighbouring samples
WINDOW = 32_768  # samples of a lane that are shuffled together


class Sampler(Protocol):
    """Which samples an epoch shows, one after the other."""

    @property
    def size(self) -> int:
        """Number of samples that an epoch may show; for messages."""
        ...

    @property
    def fingerprint(self) -> str:
        """Tells this order from any other one, whatever the seed."""
        ...

    def length(self, epoch: int) -> int:
        """Number of ids in an epoch."""
        ...

    def ids(self, epoch: int, start: int, stop: int) -> Tensor:
        """Ids at positions ``start`` to ``stop - 1`` of an epoch, ``[stop - start]`` int64; none is twice in one."""
        ...


class Permutation:
    """A permutation of all samples, held in memory: for up to some millions.

    Args:
        size: number of samples, with ids from 0 to ``size - 1``.
        seed: of the permutations.
        left_out: ids that are never shown, in rising order.
    """

    def __init__(self, size: int, *, seed: int, left_out: Sequence[int] = (), name: str = ""):
        self.size, self.seed = size - len(left_out), seed
        self.fingerprint = _fingerprint("whole", size, list(left_out), name) if name or len(left_out) else "whole"
        self._ids_of = _IdsWithout(left_out)
        self._epoch, self._order = -1, torch.empty(0)

    def length(self, epoch: int) -> int:
        return self.size

    def ids(self, epoch: int, start: int, stop: int) -> Tensor:
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = torch.randperm(self.size, generator=generator(self.seed, "order", epoch))
        return self._ids_of(self._order[start:stop])


class Windows:
    """Shards in a random order, cut into lanes that are shuffled window by window: for any number of samples.

    The shards of an epoch are permuted and put one behind the other; what does not fill a batch is cut off at the
    end. The rest is cut into L = gcd(batch, 64) equal lanes, and a lane into windows that are shuffled each. A batch
    takes its samples lane by lane, equally many of each, so that a rank, which has a contiguous part of every batch,
    reads few shards at a time, and that a batch of many lanes is a mixture of the whole epoch. Memory is bounded by
    the number of shards and one window a lane. The first windows of the lanes have different lengths, so that not all
    lanes turn to new shards at once.

    With weights an epoch shows every sample of the heaviest shards once and a part of the others: of a weight half as
    large every second one. The part moves on from epoch to epoch, so that all samples of a shard are seen equally.

    Args:
        lengths: samples of every shard; ids count through them.
        batch: samples in a batch over all ranks.
        seed: of the order.
        left_out: ids that are never shown, in rising order.
        weights: of every shard, above 0; equal if not given.
        window: samples of a lane that are shuffled together.
        name: what else tells these samples from others.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        batch: int,
        seed: int,
        left_out: Sequence[int] = (),
        weights: Sequence[float] | None = None,
        window: int = WINDOW,
        name: str = "",
    ):
        if window < 1:
            raise UserError(f"a window is a number of samples, 1 or more, got {window}")
        self.seed, self.batch, self.window = seed, batch, window
        self.lanes = math.gcd(batch, LANES)
        self.fingerprint = _fingerprint("windows", list(lengths), list(left_out), list(weights or ()), window, name)
        self._ids_of = _IdsWithout(left_out)
        bounds = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        bounds -= np.searchsorted(np.asarray(left_out, dtype=np.int64), bounds)  # as if they were not there
        self._first, self._lengths = bounds[:-1], np.diff(bounds)
        self._weights = np.ones(len(lengths)) if weights is None else np.asarray(weights, dtype=float) / max(weights)
        self.size = int(bounds[-1])
        self._epoch = -1
        self._length: dict[int, int] = {}  # of the last epoch asked for
        self._windows: dict[int, tuple[int, int, Tensor]] = {}  # by lane: epoch, window and its shuffled positions

    def length(self, epoch: int) -> int:
        if epoch not in self._length:
            self._length = {epoch: int(np.diff(self._parts(epoch), axis=0).sum())}
        return self._length[epoch]

    def ids(self, epoch: int, start: int, stop: int) -> Tensor:
        self._turn_to(epoch)
        per_lane = self.batch // self.lanes  # samples of a batch
        used = self._total // self.batch * self.batch
        parts, position = [], start
        while position < min(stop, used):
            turn, slot = divmod(position, self.batch)
            lane, within = divmod(slot, per_lane)
            count = min(per_lane - within, min(stop, used) - position)
            parts.append(self._lane(epoch, lane, turn * per_lane + within, count, used // self.lanes))
            position += count
        parts.append(torch.arange(max(start, used), max(stop, used)))  # what does not fill a batch
        return self._ids_of(self._samples(torch.cat(parts)))

    def _parts(self, epoch: int) -> np.ndarray:
        """Bounds of the part that an epoch shows of every shard, counted over all epochs, ``[2, shards]``."""
        per_epoch = self._lengths * self._weights
        # The same products in both epochs that share a boundary, so that none is lost by rounding.
        return np.floor(np.stack([epoch * per_epoch, (epoch + 1) * per_epoch])).astype(np.int64)

    def _turn_to(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        self._shards = torch.randperm(len(self._lengths), generator=generator(self.seed, "shards", epoch)).numpy()
        begin, end = self._parts(epoch)
        self._begin = begin % np.maximum(self._lengths, 1)
        self._ends = np.cumsum((end - begin)[self._shards])
        self._total, self._epoch = int(self._ends[-1]), epoch

    def _lane(self, epoch: int, lane: int, start: int, count: int, length: int) -> Tensor:
        """Positions, in the shards put one behind the other, of ``count`` samples of a lane."""
        shift = self.window - max(1, self.window * (lane + 1) // self.lanes)
        parts, stop = [], start + count
        while start < stop:
            number = (start + shift) // self.window
            first = max(0, number * self.window - shift)
            end = min((number + 1) * self.window - shift, length)
            if self._windows.get(lane, (-1, -1))[:2] != (epoch, number):
                seeded = generator(self.seed, "window", epoch, lane, number)
                self._windows[lane] = epoch, number, torch.randperm(end - first, generator=seeded, dtype=torch.int32)
            until = min(stop, end)
            parts.append(self._windows[lane][2][start - first : until - first].long() + (lane * length + first))
            start = until
        return torch.cat(parts)

    def _samples(self, positions: Tensor) -> Tensor:
        """Numbers of the samples at positions in the shards put one behind the other."""
        index = np.searchsorted(self._ends, positions.numpy(), side="right")
        shard = self._shards[index]
        within = positions.numpy() - np.concatenate([[0], self._ends])[index] + self._begin[shard]
        return torch.from_numpy(self._first[shard] + within % self._lengths[shard])


class _IdsWithout:
    """From numbers that count the samples without those left out to ids."""

    def __init__(self, left_out: Sequence[int]):
        ids = np.asarray(left_out, dtype=np.int64)
        self.before = torch.from_numpy(ids - np.arange(len(ids)))

    def __call__(self, numbers: Tensor) -> Tensor:
        return numbers + torch.searchsorted(self.before, numbers, right=True) if len(self.before) else numbers


def _fingerprint(*parts) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

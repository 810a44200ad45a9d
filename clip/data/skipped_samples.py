"""Counts of unusable samples, in memory that worker processes share."""

from collections import Counter

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from steering.clip.data.images import REASONS


class Counts:
    """Samples that could not be used, each counted once however often it is read: a bit a sample remembers it.

    Every worker counts in a row of its own, so that none is lost. (Two of them that set bits of the same byte at the
    same instant may lose one, and a sample is then counted again when it is read again.)

    Args:
        samples: their number.
        shards: number of shards.
    """

    ROWS = 257

    def __init__(self, samples: int, shards: int):
        # Samples looked at, stand-ins, number of one that was bad plus one, and how many were for every reason.
        self.table = torch.zeros(self.ROWS, 3 + len(REASONS), dtype=torch.int64).share_memory_()
        self.bad = torch.zeros(samples // 8 + 1, dtype=torch.uint8).share_memory_()
        self.lost = torch.zeros(shards, dtype=torch.uint8).share_memory_()

    def saw(self, samples: int) -> None:
        self._row()[0] += samples

    def replaced(self) -> None:
        self._row()[1] += 1

    def add(self, reason: str, number: int) -> None:
        """Notes that a sample is bad, unless it is known."""
        byte, bit = number // 8, 1 << number % 8
        if int(self.bad[byte]) & bit:
            return
        self.bad[byte] |= bit
        row = self._row()
        row[2] = number + 1
        row[3 + REASONS.index(reason)] += 1

    def add_shard(self, which: int) -> list[int]:
        """Notes that a shard cannot be read, and returns all of them."""
        self.lost[which] = 1
        return self.lost.nonzero()[:, 0].tolist()

    def totals(self) -> tuple[int, Counter[str], list[int], int]:
        """Samples looked at, skipped ones by reason, up to three that were, and how often one stood in."""
        seen, stand_ins, _, *counts = self.table.sum(0).tolist()
        reasons = Counter({reason: count for reason, count in zip(REASONS, counts, strict=True) if count})
        examples = [number - 1 for number in self.table[:, 2].tolist() if number]
        return seen, reasons, examples[:3], stand_ins

    def _row(self) -> Tensor:
        worker = get_worker_info()
        return self.table[0 if worker is None else 1 + worker.id % (self.ROWS - 1)]

"""Samples that could not be used: why, how many, and when they are too many."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from steering.clip.data.images import REASONS
from steering.clip.data.sources import printable
from steering.errors import RunError, UserError

Item = TypeVar("Item")
STOPPED = 3600  # seconds


@dataclass
class Skips:
    """How many samples were looked at, and why samples were skipped."""

    seen: int = 0  # samples looked at
    reasons: Counter[str] = field(default_factory=Counter)  # skipped samples by reason
    examples: list[str] = field(default_factory=list)  # the first few of them, for the message
    stand_ins: int = 0  # how often another sample took the place of one that was skipped

    def add(self, reason: str, example: str) -> None:
        """Notes one skipped sample; ``seen`` is counted by the caller, who sees the good ones as well."""
        self.reasons[reason] += 1
        if len(self.examples) < 3:
            self.examples.append(example)

    def check(self, share_limit: float = 0.01, least: int = 10) -> None:
        """Ends the run when too many samples are bad.

        Args:
            share_limit: share of the samples seen that may be skipped, 0 to 1.
            least: skipped samples below which a share says little; a limit of 0 means none at all.

        Raises:
            RunError: more than that share was skipped, and at least ``least`` samples.
        """
        skipped = self.reasons.total()
        if skipped < (least if share_limit > 0 else 1) or skipped <= share_limit * self.seen:
            return
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.reasons.most_common())
        raise RunError(
            f"{skipped:,} of {self.seen:,} samples cannot be used ({reasons}), more than the {share_limit:.1%} "
            f"allowed; for example {', '.join(self.examples)}. Write these shards again, leave them out, or "
            "allow a larger share (bad_share)"
        )


class SharedCounts:
    """Counts in memory that worker processes share, each bad sample once however often it is read.

    Every worker counts in a row of its own, so that none is lost. (Two of them that set bits of the same byte at the
    same instant may lose one, and a sample is then counted again when it is read again.)
    """

    ROWS = 257

    def __init__(self, samples: int, shards: int):
        # Samples looked at, stand-ins, number of one that was bad plus one, and how many were for every reason.
        self.table = torch.zeros(self.ROWS, 3 + len(REASONS), dtype=torch.int64).share_memory_()
        self.bad = torch.zeros(samples // 8 + 1, dtype=torch.uint8).share_memory_()  # a bit a sample
        self.lost = torch.zeros(shards, dtype=torch.uint8).share_memory_()

    def add_seen(self, samples: int) -> None:
        self._row()[0] += samples

    def add_stand_in(self) -> None:
        self._row()[1] += 1

    def add_bad(self, reason: str, number: int) -> None:
        """Notes that a sample is bad, unless that was noted before."""
        byte, bit = number // 8, 1 << number % 8
        if not int(self.bad[byte]) & bit:
            self.bad[byte] |= bit
            row = self._row()
            row[2] = number + 1
            row[3 + REASONS.index(reason)] += 1

    def add_shard(self, which: int) -> list[int]:
        """Notes that a shard cannot be read, and returns all of them."""
        self.lost[which] = 1
        return self.lost.clone().nonzero()[:, 0].tolist()

    def totals(self) -> tuple[int, Counter[str], list[int], int]:
        """Samples looked at, skipped ones by reason, up to three that were, and how often one stood in."""
        seen, stand_ins, _, *counts = self.table.sum(0).tolist()
        reasons = Counter({reason: count for reason, count in zip(REASONS, counts, strict=True) if count})
        return seen, reasons, [number - 1 for number in self.table[:, 2].tolist() if number][:3], stand_ins

    def _row(self) -> Tensor:
        worker = get_worker_info()
        return self.table[0 if worker is None else 1 + worker.id % (self.ROWS - 1)]


def worker_options(workers: int) -> dict[str, Any]:
    """For a DataLoader with so many processes: one that gives nothing for an hour is given up."""
    return {"num_workers": workers, "timeout": STOPPED if workers else 0}


def worker_errors(items: Iterator[Item]) -> Iterator[Item]:
    """The items of a DataLoader, whose errors come wrapped in a traceback; they are freed of it, in one line."""
    try:
        yield from items
    except (UserError, RunError) as error:
        last = str(error).strip().splitlines()[-1]
        raise type(error)(last.removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")) from None
    except RuntimeError as error:
        if "DataLoader" not in str(error):
            raise
        getattr(items, "_shutdown_workers", bool)()  # waits for them
        for worker in getattr(items, "_workers", ()):
            worker.kill()  # one that is stopped would be waited for without end
        why = printable(str(error).strip().splitlines()[-1])
        raise RunError(
            f"a process that reads data was lost or stopped ({why}), for want of memory as a rule: take fewer workers, "
            "or give the container more shared memory (docker run --shm-size)"
        ) from None

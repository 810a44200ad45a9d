"""Filling a cache: every shard once, by any number of processes on any number of machines."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Self

import torch
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from steering import atomic_files
from steering.clip.data.augmentation import plain_views
from steering.clip.data.images import UNREADABLE, Undecodable, decode
from steering.clip.data.manifest import Shard
from steering.clip.data.shards import Shards
from steering.clip.data.skipped_samples import worker_errors, worker_options
from steering.clip.models import Towers
from steering.clip.reference.cache import Cache
from steering.clip.reference.model import encode
from steering.errors import RunError

WAIT = 1.0  # seconds between looks at shards that other processes are at work on,
ANNOUNCED = 10.0  # until it says that it waits,
PATIENCE = 900.0  # and how long one waits with no new file anywhere before it does their work as well


@dataclass
class Filled:
    """The work of this process: shards and pairs made, those without features too, in how many seconds."""

    shards: int = 0
    pairs: int = 0
    seconds: float = 0.0
    unread: set[str] = field(default_factory=set)  # shards that were not read to their end and have no file


@dataclass
class Content:
    """The state of a cache: shards with a file, pairs in these, how many lack features and why, and bytes."""

    shards: int = 0
    pairs: int = 0
    missing: Counter[str] = field(default_factory=Counter)
    size: int = 0


def nonempty(shards: Shards) -> list[Shard]:
    """Shards with samples: of a faulty one there may be none."""
    return [shard for shard in shards.index if shard.count]


def content(cache: Cache, shards: Shards) -> Content:
    """Looks at the head of every file."""
    total = Content()
    for shard in nonempty(shards):
        if (reasons := cache.reasons(shard)) is not None:
            total.shards += 1
            total.pairs += shard.count
            total.missing += reasons
            total.size += cache.path(shard).stat().st_size
    return total


def drop_faulty(cache: Cache, shards: Shards) -> Counter[str]:
    """Reads every file whole and deletes those that cannot be used; returns why, counted."""
    faults: Counter[str] = Counter()
    console = Console(stderr=True)
    for shard in track(nonempty(shards), "checking files", console=console, disable=not console.is_terminal):
        if fault := cache.fault(shard):
            faults[fault] += 1
            try:
                cache.path(shard).unlink(missing_ok=True)
            except OSError as error:
                raise RunError(f"cannot delete {cache.path(shard)}: {error.strerror}. Delete it yourself") from None
    return faults


def fill(
    cache: Cache,
    towers: Towers,
    shards: Shards,
    *,
    batch: int = 256,
    workers: int = 0,
    share: tuple[int, int] = (0, 1),
    done: Filled | None = None,
) -> Filled:
    """Computes the features of all shards that have no file yet.

    Returns when every shard has one, whoever made it: a shard that another process is at work on is waited for, and
    taken over when that process dies.

    Args:
        cache: to write into.
        towers: the reference, on its device.
        shards: the data.
        batch: samples encoded at a time.
        workers: processes that read and decode ahead.
        share: rank of this process and the number of processes; every one begins at another shard.
        done: kept up to date, for after an interruption.

    Raises:
        RunError: a shard cannot be read, or the disk is full; finished shards are kept.
    """
    done = done or Filled()
    began, every = time.perf_counter(), nonempty(shards)
    start = share[0] * len(every) // share[1]
    left = [shard for shard in [*every[start:], *every[:start]] if cache.reasons(shard) is None]
    total, made, console = sum(shard.count for shard in every), set[str](), Console(stderr=True)
    columns, silent = (*Progress.get_default_columns(), MofNCompleteColumn()), share[0] > 0 or not console.is_terminal
    with _Claims(cache) as claims, Progress(*columns, console=console, disable=silent) as bars:
        pairs = bars.add_task("pairs", total=total)
        advance = partial(bars.advance, pairs)
        while left:
            bars.update(pairs, completed=total - sum(shard.count for shard in left))
            encoded = _encode(towers, shards, claims.taken(left), batch, workers, advance)
            for shard, features, present, reasons in encoded:
                if UNREADABLE in reasons:  # for now, perhaps: its samples are not written off
                    done.unread.add(shard.name)
                else:
                    cache.write(shard, features, present, reasons)
                    made.add(shard.name)
                    done.shards, done.pairs = done.shards + 1, done.pairs + shard.count
                claims.release(shard)
                done.seconds = time.perf_counter() - began
            before, left = left, [s for s in left if s.name not in done.unread | made and cache.reasons(s) is None]
            if len(left) < len(before):
                claims.latest = time.monotonic()
            elif left:
                claims.wait(left)
    return done


def _encode(
    towers: Towers, shards: Shards, claimed: Iterator[Shard], batch: int, workers: int, advance: Callable[[int], None]
) -> Iterator[tuple[Shard, Tensor, Tensor, Counter[str]]]:
    """Shards one after the other, as ``Cache.write`` takes them; each is given out when it is complete."""
    if (first := next(claimed, None)) is None:  # no workers are started to wait for other processes
        return
    spans = (
        (shard, range(start, min(start + batch, shard.count)))
        for shard in chain([first], claimed)
        for start in range(0, shard.count, batch)
    )
    # collate_fn leaves blocks as they are: DataLoader's own would count every reason twice.
    options = worker_options(workers) | {"collate_fn": tuple, "worker_init_fn": _silence}
    loader = DataLoader(_Samples(shards, towers), batch_size=None, sampler=spans, **options)  # type: ignore[arg-type]
    features, present, reasons = torch.empty(0), torch.empty(0), Counter()
    for shard, span, positions, images, tokens, skipped in worker_errors(iter(loader)):
        if span.start == 0:
            features = torch.zeros(shard.count, 2, int(towers.config["embed_dim"]), dtype=torch.float16)
            present, reasons = torch.zeros(shard.count, dtype=torch.bool), Counter()
        reasons += skipped
        if positions:
            features[positions] = encode(towers, images, tokens).to("cpu", torch.float16)
            present[positions] = True
        advance(len(span))
        if span.stop == shard.count:
            yield shard, features, present, reasons


class _Samples(Dataset):
    """What a DataLoader's workers read, decode and tokenise, a span of a shard at a time."""

    def __init__(self, shards: Shards, towers: Towers):
        self.shards = shards
        self.transform, self.tokenizer = towers.preprocess, towers.tokenizer

    def __getitem__(self, item: tuple[Shard, range]) -> tuple[Shard, range, list[int], Tensor, Tensor, Counter[str]]:
        """The usable samples of a span: positions in the shard, pictures, tokens; and why others are not."""
        shard, span = item
        positions, images, captions, reasons = [], [], [], Counter()
        for position in span:
            number = shard.first + position
            try:
                image, caption = decode(self.shards.picture(number)), self.shards.caption(number)
            except Undecodable as error:
                reasons[str(error)] += 1
            else:
                positions.append(position)
                images.append(image)
                captions.append(caption)
        if not positions:
            return shard, span, positions, torch.empty(0), torch.empty(0), reasons
        return shard, span, positions, plain_views(images, self.transform), self.tokenizer(captions), reasons


def _silence(_: int) -> None:
    """A worker does not report a connection that breaks because its reader was interrupted."""
    silent = ConnectionError | KeyboardInterrupt
    sys.excepthook = lambda kind, *rest: None if issubclass(kind, silent) else sys.__excepthook__(kind, *rest)


class _Claims:
    """Shards that this process is at work on; the system frees them when it dies.

    They only save work: where a file system has no locks, or a claim outlives its process, a shard is made twice, and
    either file is as good.
    """

    def __init__(self, cache: Cache):
        self.cache, self.latest, self._announced = cache, time.monotonic(), False  # when there was a new file
        self._held: dict[str, FileLock] = {}
        atomic_files.make_folder(cache.folder / "claims")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        for lock in self._held.values():
            lock.release()

    def wait(self, left: Sequence[Shard]) -> None:
        """A moment, until other processes have made more; a word where it takes long."""
        if not self._announced and time.monotonic() - self.latest > ANNOUNCED:
            self._announced = True
            print(
                f"waiting for other processes, which are at work on {len(left):,} shards ({left[0].name} say); "
                f"{PATIENCE:g} seconds after their last file this process does their work as well",
                file=sys.stderr,
            )
        time.sleep(WAIT)

    def taken(self, shards: Sequence[Shard]) -> Iterator[Shard]:
        """Those without a file that nobody else is at work on, each claimed just before it is given out."""
        for shard in shards:
            if self._take(shard):
                if self.cache.reasons(shard) is None:
                    yield shard
                else:
                    self.release(shard)

    def release(self, shard: Shard) -> None:
        if lock := self._held.pop(shard.name, None):
            lock.release()

    def _take(self, shard: Shard) -> bool:
        lock = FileLock(self.cache.claim(shard), timeout=0)
        try:
            lock.acquire()
        except Timeout:
            return time.monotonic() - self.latest >= PATIENCE
        except (OSError, NotImplementedError):  # no locks on this file system
            return True
        self._held[shard.name] = lock
        path = self.cache.path(shard)
        for unfinished in path.parent.glob(f".{path.name}.*"):  # what a killed process left
            unfinished.unlink(missing_ok=True)
        return True

"""From the shards that are named to their samples, under numbers that stay when a folder moves or shards are added."""

import hashlib
import os
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock

from steering import atomic_files
from steering.clip.data.manifest import Manifest, Shard, new_name
from steering.clip.data.shard_counts import Counts
from steering.clip.data.shard_files import Files, cache_folder
from steering.clip.data.sources import Named, matches, remote
from steering.clip.data.tar import Scan, head, scan
from steering.errors import UserError

FOLDER = ".steer-index"  # beside the shards
THREADS = 16  # that read headers or ask for sizes: most of their time is waiting
SAVED = 30.0  # seconds after which the manifest is written, so that an interruption loses little
TOLD = 3  # faulty shards whose fault is told in full, the others by name alone

Progress = Callable[[Iterable, int], Iterable]


@dataclass
class Index:
    """The shards of a pattern, in the order of the manifest.

    Attributes:
        shards: with the numbers of their first samples among these shards.
        manifest: the file that knows of them.
        offsets: the file of offsets.
        warnings: what is odd but no reason to stop, one line each.
    """

    shards: list[Shard]
    manifest: Path
    offsets: Path
    warnings: list[str]


def open_index(
    named: Sequence[Named],
    *,
    fetching: Files,
    bad_shards: bool = False,
    rebuild: bool = False,
    whole: bool = False,
    progress: Progress = lambda items, total: items,
) -> Index:
    """Finds the manifest of the shards that are named, and adds those that it does not know.

    Args:
        named: as ``sources.expand`` gives them.
        fetching: opens remote shards.
        bad_shards: use what is whole of faulty shards instead of refusing them.
        rebuild: forget what is known.
        whole: read the headers of local shards even where a side file tells their count.
        progress: wraps the shards that are being read, given their number.

    Raises:
        UserError: a shard is faulty, or not what it was when its samples got their numbers.
    """
    base, folder = _home(named[0])
    names = {_name(shard, base): shard for shard in named}
    manifest = _known(base, folder) if not rebuild else Manifest(folder, {}, new_name())
    builder = _Builder(named, names, fetching, bad_shards, whole, progress)
    if not names.keys() <= manifest.shards.keys():
        atomic_files.make_folder(folder)
        with FileLock(folder / "lock"):
            if not rebuild:
                manifest = _known(base, folder).moved(folder)  # another process may have been first
            try:
                builder.add([name for name in names if name not in manifest.shards], manifest)
            finally:
                for path in folder.glob("offsets-*.bin") if manifest.shards else ():
                    if path.name != manifest.offsets:
                        path.unlink(missing_ok=True)  # of what was rebuilt
    shards = builder.check(manifest, base)
    return Index(shards, manifest.folder / "index.json", manifest.folder / manifest.offsets, builder.warnings)


def _home(first: Named) -> tuple[Path, Path]:
    """The folder that names are relative to, and where the manifest is written."""
    if remote(first.url):
        base, mark = Path(os.sep), first.folder or first.url
    else:
        base = Path(os.path.abspath(first.folder))
        mark = str(base)
        try:
            (base / FOLDER).mkdir(exist_ok=True)
            os.close(os.open(base / FOLDER / "lock", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644))
            return base, base / FOLDER
        except OSError:  # may only be read, or is no folder
            pass
    return base, cache_folder() / "indexes" / hashlib.sha256(os.fsencode(mark)).hexdigest()[:16]


def _known(base: Path, folder: Path) -> Manifest:
    """The manifest; where data can only be read, the one beside them until the cache has its own."""
    manifest = Manifest.read(folder)
    if manifest.shards or base == Path(os.sep):
        return manifest
    beside = Manifest.read(base / FOLDER)
    return beside if beside.shards else manifest


def _name(shard: Named, base: Path) -> str:
    if remote(shard.url):
        return shard.url
    path = os.path.abspath(shard.url)
    return path if base == Path(os.sep) else Path(os.path.relpath(path, base)).as_posix()


class _Builder:
    """Adds shards to a manifest and compares what it says with what is there."""

    def __init__(self, named, names: dict[str, Named], fetching: Files, bad_shards: bool, whole: bool, progress):
        self.named, self.names, self.fetching = named, names, fetching
        self.bad_shards, self.whole, self.progress = bad_shards, whole, progress
        self.counts = Counts()
        self.warnings: list[str] = []
        self.added: set[str] = set()

    def add(self, new: list[str], manifest: Manifest) -> None:
        """Looks at shards that are new and adds them in their order."""
        faults: dict[str, str] = {}
        block: list[tuple[Shard, Scan | None]] = []
        saved = time.monotonic()
        pool = ThreadPoolExecutor(THREADS)
        try:
            for shard, scanned in self.progress(pool.map(self._look, new), len(new)):
                if shard.fault and not self.bad_shards:
                    faults[shard.url] = shard.fault
                    continue
                self.added.add(shard.name)
                block.append((shard, scanned))
                if time.monotonic() - saved > SAVED:
                    manifest.append(block)
                    block, saved = [], time.monotonic()
        finally:
            pool.shutdown(cancel_futures=True)
            if block:
                manifest.append(block)
        _refuse(faults, len(new), "use what is whole of them: steer index --allow-bad-shards, option bad_shards")

    def _look(self, name: str) -> tuple[Shard, Scan | None]:
        url = self.names[name].url
        told = self.counts.tell(url)
        if told is not None and remote(url):
            return Shard(name, url, 0, told), None
        try:
            with self.fetching.once(url) as file:
                begins = "" if remote(url) else head(file)
                if told is not None and not self.whole:
                    size = os.fstat(file).st_size
                    return Shard(name, url, size, told, fault="" if size else "is empty (0 bytes)", head=begins), None
                scanned = scan(file)
        except OSError as error:
            fault = f"cannot be read: {error.strerror or error}"
            return Shard(name, url, 0, told or 0, fault=fault, kinds=()), Scan(array("q"), 0, (), 0, fault)
        count = len(scanned.starts) if told is None else told
        if told is not None and told != len(scanned.starts) and not scanned.fault:
            self.warnings.append(_differs(url, told, len(scanned.starts)))
        known = {"kinds": scanned.kinds, "fault": scanned.fault, "head": begins, "paired": scanned.paired}
        return Shard(name, url, scanned.size, count, **known), scanned

    def check(self, manifest: Manifest, base: Path) -> list[Shard]:
        """The shards that are named, with their numbers.

        Raises:
            UserError: one is gone, changed or faulty, and bad shards are not allowed.
        """
        chosen = {name: shard for name, shard in manifest.shards.items() if name in self.names}
        for name in self._gone(manifest, base):
            chosen[name] = manifest.shards[name]
        if not self.bad_shards:
            faults = {self._url(name, base): shard.fault for name, shard in chosen.items() if shard.fault}
            _refuse(faults, len(chosen), "use what is whole: option bad_shards; if mended since, steer index --rebuild")
            self._compare(chosen, base)
        first, shards = 0, []
        for name, shard in manifest.shards.items():
            if name in chosen:
                part = self.names[name].part if name in self.names else self._part(name, base)
                url = self._url(name, base)
                shards.append(replace(shard, url=url, part=part, first=first, new=name in self.added))
                first += shard.count
        return shards

    def _compare(self, chosen: dict[str, Shard], base: Path) -> None:
        local = [replace(shard, url=self._url(name, base)) for name, shard in chosen.items() if not remote(name)]
        with ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(_look_again, local))
        odd = [(shard.url, size) for shard, (size, same) in zip(local, found, strict=True) if not same]
        if odd:
            url, size = odd[0]
            what = "is gone" if size is None else "has changed"
            others = f", and {len(odd) - 1} more are gone or changed" if len(odd) > 1 else ""
            raise UserError(
                f"{url} {what} since its samples got their numbers{others}: put it back as it was, or give all "
                "samples new numbers with steer index --rebuild"
            )

    def _gone(self, manifest: Manifest, base: Path) -> Iterator[str]:
        """Shards that a glob would find if they were still there."""
        globs = {shard.glob for shard in self.named if shard.glob}
        for name in manifest.shards if globs else ():
            if name not in self.names and not remote(name):
                path = self._url(name, base)
                if any(matches(path, glob) for glob in globs):
                    yield name

    def _part(self, name: str, base: Path) -> int:
        path = self._url(name, base)
        return next(shard.part for shard in self.named if shard.glob and matches(path, shard.glob))

    def _url(self, name: str, base: Path) -> str:
        if name in self.names:
            return self.names[name].url
        return name if remote(name) else os.path.normpath(base / name)


def _refuse(faults: dict[str, str], count: int, remedy: str) -> None:
    if faults:
        told = [f"{url} {fault}" for url, fault in list(faults.items())[:TOLD]]
        several = f"{len(faults)} of {count} shards cannot be used: " if len(faults) > 1 else ""
        others = f"; and {', '.join(list(faults)[TOLD:])}" if len(faults) > TOLD else ""
        raise UserError(f"{several}{'; '.join(told)}{others} (or {remedy})")


def _look_again(shard: Shard) -> tuple[int | None, bool]:
    """Size of a local shard, None if it is gone, and whether it is what it was as far as size and first bytes tell."""
    try:
        file = os.open(shard.url, os.O_RDONLY)
    except PermissionError:  # told when it is to be read
        return shard.size, True
    except OSError:
        return None, False
    try:
        size = os.fstat(file).st_size
        return size, size == shard.size and (not shard.head or shard.head == head(file))
    except OSError:  # told when it is to be read
        return shard.size, True
    finally:
        os.close(file)


def _differs(url: str, told: int, found: int) -> str:
    what = "the others are not there" if found < told else "the others are left out"
    return f"{url} is said to hold {told:,} samples and holds {found:,}: {what}"

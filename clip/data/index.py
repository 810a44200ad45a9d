"""From the shards that are named to their samples, under numbers that stay when a folder moves or shards are added."""

import hashlib
import os
import time
from array import array
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from filelock import FileLock
from rich.console import Console
from rich.progress import track

from steering import atomic_files
from steering.clip.data.manifest import Manifest, Shard, new_name
from steering.clip.data.shard_counts import ShardCounts
from steering.clip.data.shard_files import ShardFiles, cache_folder
from steering.clip.data.sources import Named, matches, remote
from steering.clip.data.tar import Scan, head, scan
from steering.errors import UserError

FOLDER = ".steer-index"  # beside the shards
THREADS = 16  # that read headers or ask for sizes: most of their time is waiting
SAVED = 30.0  # seconds after which the manifest is written, so that an interruption loses little
NAMED_FAULTS = 3  # faulty shards whose fault is named, the others are by name alone


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
    files: ShardFiles,
    bad_shards: bool = False,
    rebuild: bool = False,
    read_headers: bool = False,
) -> Index:
    """Finds the manifest of the shards that are named, and adds those that it does not know.

    Args:
        named: as ``sources.expand`` gives them.
        files: opens the shards.
        bad_shards: use the samples before the fault of faulty shards instead of refusing them.
        rebuild: start with an empty manifest.
        read_headers: also of local shards whose count stands in a side file.

    Raises:
        UserError: a shard is faulty, or not what it was when its samples got their numbers.
    """
    base, folder = _home(named[0])
    names = {_name(shard, base): shard for shard in named}
    manifest = _manifest(base, folder) if not rebuild else Manifest(folder, {}, new_name())
    builder = _Builder(base, names, files, bad_shards, read_headers)
    if not names.keys() <= manifest.shards.keys():
        atomic_files.make_folder(folder)
        with FileLock(folder / "lock"):
            if not rebuild:
                manifest = _manifest(base, folder).moved(folder)  # another process may have been first
            try:
                builder.add([name for name in names if name not in manifest.shards], manifest)
            finally:
                for path in folder.glob("offsets-*.bin") if manifest.shards else ():
                    if path.name != manifest.offsets:
                        path.unlink(missing_ok=True)  # of what was rebuilt
    shards = builder.check(manifest)
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


def _manifest(base: Path, folder: Path) -> Manifest:
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
    """Adds shards to a manifest and compares its content with the files."""

    def __init__(self, base: Path, names: dict[str, Named], files: ShardFiles, bad_shards: bool, read_headers: bool):
        self.base, self.names, self.files = base, names, files
        self.bad_shards, self.read_headers = bad_shards, read_headers
        self.globs = {shard.glob: shard for shard in reversed(names.values()) if shard.glob}  # the first of each
        self.counts = ShardCounts()
        self.warnings: list[str] = []
        self.added: set[str] = set()

    def add(self, new: list[str], manifest: Manifest) -> None:
        """Looks at shards that are new and adds them in their order."""
        faults: dict[str, str] = {}
        block: list[tuple[Shard, Scan | None]] = []
        saved = time.monotonic()
        pool = ThreadPoolExecutor(THREADS)
        console = Console(stderr=True)
        bar = partial(track, total=len(new), console=console, transient=True, disable=not console.is_terminal)
        try:
            for shard, scanned in bar(pool.map(self._examine, new), "indexing"):
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

    def _examine(self, name: str) -> tuple[Shard, Scan | None]:
        url = self.names[name].url
        count = self.counts.count(url)
        if count is not None and remote(url):
            return Shard(name, url, 0, count), None
        try:
            with self.files.once(url) as file:
                start = "" if remote(url) else head(file)
                if count is not None and not self.read_headers:
                    size = os.fstat(file).st_size
                    return Shard(name, url, size, count, fault="" if size else "is empty (0 bytes)", head=start), None
                scanned = scan(file)
        except OSError as error:
            fault = f"cannot be read: {error.strerror or error}"
            return Shard(name, url, 0, count or 0, fault=fault, kinds=()), Scan(array("q"), 0, (), 0, fault)
        samples = len(scanned.starts)
        if count not in (None, samples) and not scanned.fault:
            consequence = "the others are not there" if samples < count else "the others are left out"
            self.warnings.append(f"{url} is said to hold {count:,} samples and holds {samples:,}: {consequence}")
        facts = {"kinds": scanned.kinds, "fault": scanned.fault, "head": start, "paired": scanned.paired}
        return Shard(name, url, scanned.size, samples if count is None else count, **facts), scanned

    def check(self, manifest: Manifest) -> list[Shard]:
        """The shards that are named, with their numbers.

        Raises:
            UserError: one is gone, changed or faulty, and bad shards are not allowed.
        """
        chosen = [shard for name, shard in manifest.shards.items() if name in self.names or self._gone(name)]
        chosen = [replace(shard, url=self._url(shard.name)) for shard in chosen]
        if not self.bad_shards:
            faults = {shard.url: shard.fault for shard in chosen if shard.fault}
            _refuse(faults, len(chosen), "use what is whole: option bad_shards; if mended since, steer index --rebuild")
            _compare([shard for shard in chosen if not remote(shard.name)])
        first, shards = 0, []
        for shard in chosen:
            named = self.names.get(shard.name) or self._gone(shard.name)
            assert named is not None
            shards.append(replace(shard, part=named.part, first=first, new=shard.name in self.added))
            first += shard.count
        return shards

    def _gone(self, name: str) -> Named | None:
        """For a shard that a glob would find if it were still there: one of those that it finds."""
        if name in self.names or remote(name):
            return None
        return next((shard for glob, shard in self.globs.items() if matches(self._url(name), glob)), None)

    def _url(self, name: str) -> str:
        if name in self.names:
            return self.names[name].url
        return name if remote(name) else os.path.normpath(self.base / name)


def _compare(shards: Sequence[Shard]) -> None:
    """Raises UserError if any of these local shards is gone or changed."""
    with ThreadPoolExecutor(THREADS) as pool:
        states = list(pool.map(_compare_head, shards))
    odd = [(shard.url, size) for shard, (size, same) in zip(shards, states, strict=True) if not same]
    if odd:
        url, size = odd[0]
        change = "is gone" if size is None else "has changed"
        others = f", and {len(odd) - 1} more are gone or changed" if len(odd) > 1 else ""
        raise UserError(
            f"{url} {change} since its samples got their numbers{others}: put it back as it was, or give all "
            "samples new numbers with steer index --rebuild"
        )


def _refuse(faults: dict[str, str], count: int, remedy: str) -> None:
    if faults:
        first = [f"{url} {fault}" for url, fault in list(faults.items())[:NAMED_FAULTS]]
        several = f"{len(faults)} of {count} shards cannot be used: " if len(faults) > 1 else ""
        others = f"; and {', '.join(list(faults)[NAMED_FAULTS:])}" if len(faults) > NAMED_FAULTS else ""
        raise UserError(f"{several}{'; '.join(first)}{others} (or {remedy})")


def _compare_head(shard: Shard) -> tuple[int | None, bool]:
    """Size of a local shard, None if it is gone, and whether it is what it was as far as size and first bytes tell."""
    try:
        file = os.open(shard.url, os.O_RDONLY)
    except PermissionError:  # reported when it is to be read
        return shard.size, True
    except OSError:
        return None, False
    try:
        size = os.fstat(file).st_size
        return size, size == shard.size and (not shard.head or shard.head == head(file))
    except OSError:  # reported when it is to be read
        return shard.size, True
    finally:
        os.close(file)

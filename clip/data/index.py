"""From the shards that are named to their samples, under numbers that stay when a folder moves or shards are added."""

import hashlib
import os
import sys
import threading
import time
from array import array
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from steering import atomic_files
from steering.clip.data.manifest import Manifest, Shard, possible
from steering.clip.data.shard_files import ShardFiles, cache_folder, locked, opened, read_json
from steering.clip.data.sources import Named, local, matches, printable, remote, several, split
from steering.clip.data.tar import Scan, head, is_header, scan
from steering.errors import UserError
from steering.reports.grid import Grid, to_rich

FOLDER = ".steer-index"  # beside the shards
THREADS = 16  # that read headers or ask for sizes: most of their time is waiting
SAVED = 30.0  # seconds after which the manifest is written, so that an interruption loses little
NOTES = 20  # lines of notes that are printed at most
NAMED_FAULTS = 3  # faulty shards whose fault is named, some others are by name alone


@dataclass
class Index:
    """The shards of a pattern, in the order of the manifest."""

    shards: list[Shard]  # with the numbers of their first samples among these shards
    manifest: Path  # the file that knows of them
    offsets: Path  # the file of where their samples begin
    warnings: list[str]  # what is odd but no reason to stop, one line each


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
    manifest = Manifest(folder) if rebuild else _manifest(base, folder)
    opening = _Opening(base, names, files, bad_shards, read_headers)
    if not names.keys() <= manifest.shards.keys():
        atomic_files.make_folder(folder)
        with locked(folder / "lock", "index shards"):
            if not rebuild:
                manifest = _manifest(base, folder).moved(folder)  # another process may have been first
            try:
                opening.add([name for name in names if name not in manifest.shards], manifest)
            finally:
                for path in folder.glob("offsets-*.bin") if manifest.shards else ():
                    if path.name != manifest.offsets:
                        path.unlink(missing_ok=True)  # of what was rebuilt
    offsets = manifest.folder / manifest.offsets
    return Index(opening.check(manifest, offsets), manifest.folder / "index.json", offsets, opening.warnings)


def _home(first: Named) -> tuple[Path, Path]:
    """The folder that names are relative to, and where the manifest is written."""
    if remote(first.url):
        base, mark = Path(os.sep), first.folder or first.url
    else:
        base = Path(os.path.abspath(first.folder))
        mark = str(base)
        try:
            if (base / FOLDER).is_symlink():  # somebody may have let it point to a folder of another purpose
                raise NotADirectoryError
            (base / FOLDER).mkdir(exist_ok=True)
            with opened(base / FOLDER / "lock", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW):
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
    return path if base == Path(os.sep) else local(Path(os.path.relpath(path, base)).as_posix())


class _Counts:
    """What other tools say of shards: ``sizes.json`` of open_clip, ``000_stats.json`` of img2dataset ("successes")."""

    def __init__(self):
        self._sizes = cache(read_json)
        self._has_stats: dict[str, bool] = {}  # by remote folder
        self._lock = threading.Lock()

    def count(self, url: str) -> int | None:
        """The number of samples of a shard according to a file beside it, None without one."""
        if url.startswith("pipe:"):
            return None
        folder, _, name = url.rpartition("/") if "/" in url else (".", "", url)
        stats = f"{folder}/{name.removesuffix('.tar')}_stats.json"
        with self._lock:
            count = _field(self._sizes(f"{folder}/sizes.json"), name)
            if count is None and remote(url) and folder not in self._has_stats:
                self._has_stats[folder] = _field(read_json(stats), "successes") is not None
        if count is not None or not self._has_stats.get(folder, True):  # a request for every shard would be slow
            return count
        return _field(read_json(stats), "successes")


def _field(content: object, name: str) -> int | None:
    """A count in a JSON object, None if there is no such object or it is no count."""
    value = content.get(name) if isinstance(content, dict) else None
    return value if type(value) is int and value > 0 else None


@dataclass
class _Opening:
    """Adds shards to a manifest and compares its content with the files."""

    base: Path
    names: dict[str, Named]
    files: ShardFiles
    bad_shards: bool
    read_headers: bool
    warnings: list[str] = field(default_factory=list)
    added: set[str] = field(default_factory=set)

    def add(self, new: list[str], manifest: Manifest) -> None:
        """Looks at shards that are new and adds them in their order."""
        faults: dict[str, str] = {}
        block: list[tuple[Shard, Scan | None]] = []
        saved, counts, pool, console = time.monotonic(), _Counts(), ThreadPoolExecutor(THREADS), Console(stderr=True)
        bar = partial(track, total=len(new), console=console, transient=True, disable=not console.is_terminal)
        # A side file that is wrong about the first shard of a source is not believed about any other.
        first_of = {self.names[name].part: name for name in reversed(new) if not remote(name)}
        examined = {name: self._examine(name, counts, True) for name in first_of.values()}
        read_headers = self.read_headers or any(miscounted for _, _, miscounted in examined.values())
        try:
            results = pool.map(lambda name: examined.get(name) or self._examine(name, counts, read_headers), new)
            for shard, scanned, miscounted in bar(results, "indexing"):
                if shard.fault and not self.bad_shards:
                    faults[shard.url] = shard.fault
                    continue
                if miscounted or not (shard.count or shard.fault):
                    self.warnings.append(f"{shard.url} {miscounted or 'holds no samples'}")
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

    def _examine(self, name: str, counts: _Counts, read_headers: bool) -> tuple[Shard, Scan | None, str]:
        """A shard, its headers where they were read, and how the count in a side file differs from them."""
        url = self.names[name].url
        sidecar = counts.count(url)
        shard = Shard(name, url, 0, sidecar or 0)
        shard = shard if possible(shard) else replace(shard, count=0)
        if shard.count and remote(url):
            return shard, None, ""
        try:
            with self.files.once(url) as file:
                shard = replace(shard, head="" if remote(url) else head(file), size=os.fstat(file).st_size)
                if shard.count and shard.size and not read_headers and possible(shard):
                    return shard, None, ""
                scanned = scan(file)
        except OSError as error:
            fault = f"cannot be read: {error.strerror or error}"
            return replace(shard, size=0, fault=fault, kinds=()), Scan(array("q"), 0, (), 0, fault), ""
        samples = len(scanned.starts)
        differs = sidecar not in (None, samples) and not scanned.fault
        miscounted = f"is said to hold {sidecar:,} samples and holds {samples:,}, which counts" if differs else ""
        facts = {"kinds": scanned.kinds, "fault": scanned.fault, "paired": scanned.paired}
        return replace(shard, count=samples, **facts), scanned, miscounted

    def check(self, manifest: Manifest, offsets: Path) -> list[Shard]:
        """The shards that are named, with their numbers.

        Raises:
            UserError: one is gone, changed or faulty, and bad shards are not allowed; or there is no sample.
        """
        globs = {shard.glob: shard for shard in reversed(self.names.values()) if shard.glob}  # the first of each
        first, shards = 0, []
        for name, shard in manifest.shards.items():
            url = name if remote(name) else os.path.normpath(self.base / name)
            named = self.names.get(name)
            if named is None and not remote(name):  # one that a glob would find if it were still there
                named = next((other for glob, other in globs.items() if matches(url, glob)), None)
            elif named is not None:
                url = named.url
            if named is not None:
                shards.append(replace(shard, url=url, part=named.part, first=first, new=name in self.added))
                first += shard.count
        faults = {shard.url: shard.fault for shard in shards if shard.fault}
        if not self.bad_shards:
            _refuse(faults, len(shards), "use what is whole: option bad_shards; if mended since, steer index --rebuild")
            self._compare([shard for shard in shards if not remote(shard.name)], offsets)
        if not first:
            _refuse(faults or {shard.url: "holds no samples" for shard in shards}, len(shards), "name others")
        return shards

    def _compare(self, shards: Sequence[Shard], offsets: Path) -> None:
        """Raises UserError if any of these local shards is gone or changed, and notes what other counts are wrong."""
        look = partial(_look, offsets=offsets, read_headers=self.read_headers)
        with ThreadPoolExecutor(THREADS) as pool:
            states = list(pool.map(look, shards))
        odd = [(shard.url, size) for shard, (size, same, _) in zip(shards, states, strict=True) if not same]
        if odd:
            url, size = odd[0]
            change = "is gone" if size is None else "has changed"
            others = f", and {len(odd) - 1} more are gone or changed" if len(odd) > 1 else ""
            raise UserError(
                f"{url} {change} since its samples got their numbers{others}: put it back as it was, or give all "
                "samples new numbers with steer index --rebuild"
            )
        self.warnings += [miscounted for _, _, miscounted in states if miscounted]


def _refuse(faults: dict[str, str], count: int, remedy: str) -> None:
    if faults:
        first = [printable(f"{url} {fault}", 500) for url, fault in list(faults.items())[:NAMED_FAULTS]]
        several_shards = f"{len(faults)} of {count} shards cannot be used: " if len(faults) > 1 else ""
        others = f"; and {several(list(faults)[NAMED_FAULTS:])}" if len(faults) > NAMED_FAULTS else ""
        raise UserError(f"{several_shards}{'; '.join(first)}{others} (or {remedy})")


def _look(shard: Shard, offsets: Path, read_headers: bool) -> tuple[int | None, bool, str]:
    """Size of a local shard, None if it is gone, whether it is what it was by size and first bytes, and a note."""
    try:
        with opened(shard.url) as file:
            size = os.fstat(file).st_size
            unread = shard.kinds is None and shard.count > 0
            same = size == shard.size and (not shard.head or shard.head == head(file))
            return size, same, _miscounted(shard, file, offsets, read_headers) if same and unread else ""
    except (FileNotFoundError, NotADirectoryError):
        return None, False, ""
    except OSError:  # reported when it is to be read
        return shard.size, True, ""


def _miscounted(shard: Shard, file: int, offsets: Path, read_headers: bool) -> str:
    """What is wrong with a count that was told by a side file, as far as the headers were read since, or are now."""
    if read_headers:
        samples = len(scan(file).starts)
        actual = f"{samples:,}" if samples != shard.count else ""
    else:
        last, end, size = np.fromfile(offsets, "<i8", 3, offset=8 * (shard.slot + shard.count - 1)).tolist()
        fewer, more = size and last == end, size and is_header(os.pread(file, 512, end))
        actual = "fewer" if fewer else "more" if more else ""
    complaint = f"{shard.url} is said to hold {shard.count:,} samples and holds {actual}"
    return f"{complaint}: steer index --rebuild counts anew, and gives new numbers" if actual else ""


def show(index: Index, data: str) -> None:
    """Prints what ``steer index`` says: notes, and a table of the sources."""
    # No broken lines in a file.
    console = Console(width=None if sys.stdout.isatty() else 10_000, markup=False, highlight=False)
    notes = index.warnings + [f"{shard.url} {shard.fault}" for shard in index.shards if shard.fault]
    for note in notes[:NOTES] + [f"{len(notes) - NOTES:,} more like these"] * (len(notes) > NOTES):
        console.print(f"note: {printable(note, 1000)}")
    parts = {name: [shard for shard in index.shards if shard.part == i] for i, name in enumerate(split(data))}
    rows = []
    for name, shards in parts.items() if len(parts) == 1 else [*parts.items(), ("all", index.shards)]:
        sums = [(1, shard.new, bool(shard.fault), shard.count, shard.size) for shard in shards]
        rows.append([name, *(f"{sum(column):,}" for column in zip(*sums, strict=True))])
    console.print(to_rich(Grid.of("", ["source"], ["shards", "new", "faulty", "pairs", "bytes"], rows)))
    console.print(f"manifest: {index.manifest}")

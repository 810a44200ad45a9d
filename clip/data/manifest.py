"""The manifest on disk: which shards there are, and where their samples begin."""

import json
import os
import re
import secrets
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np

from steering import atomic_files
from steering.clip.data.tar import Scan
from steering.errors import RunError, UserError

VERSION = 1

_NUMBERS = ("size", "count", "first", "slot")
_TEXTS = ("name", "fault", "head")
_OFFSETS = re.compile(r"offsets-[0-9a-f]{8}\.bin")


@dataclass(frozen=True, slots=True)
class Shard:
    """A tar of the data.

    Attributes:
        name: its identity: the path relative to the folder of the first source, or the URL.
        url: where it is now.
        size: in bytes; 0 of a remote one that was counted without being fetched.
        count: number of its samples.
        first: number of its first sample.
        slot: index of its first number in the file of offsets.
        part: which of the sources named it, counted from 0.
        kinds: extensions that it holds, None if its headers were not read yet.
        fault: what is wrong with it, empty if nothing is known to be.
        head: hash of how a local one begins, empty if it is not known.
        paired: whether one of its first samples has a picture and what may hold a caption, None if not known.
        new: it was not in the manifest before.
    """

    name: str
    url: str
    size: int
    count: int
    first: int = 0
    slot: int = 0
    part: int = 0
    kinds: tuple[str, ...] | None = None
    fault: str = ""
    head: str = ""
    paired: bool | None = None
    new: bool = False


@dataclass
class Manifest:
    """The shards that were ever seen in a folder, in the order in which they were.

    On disk it is JSON, ``shards`` and the name of the file of offsets: little-endian int64, for a shard of n samples
    n + 2 numbers from its ``slot`` on: the byte where each begins, where the last one ends, and the size of the tar;
    the size is 0 while the headers were not read.
    """

    folder: Path
    shards: dict[str, Shard] = field(default_factory=dict)
    offsets: str = ""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """What stands in a folder, nothing if there is no manifest.

        Raises:
            UserError: it is damaged or of another version.
        """
        path = folder / "index.json"
        try:
            content = json.loads(path.read_text())
            if content["version"] != VERSION or not _OFFSETS.fullmatch(content["offsets"]):
                raise ValueError
            manifest = cls(folder, {}, content["offsets"])
            for row in content["shards"]:
                shard = _shard(row)
                if shard.name in manifest.shards or manifest._add(shard) != shard:
                    raise ValueError
            if manifest.shards and _length(folder / manifest.offsets) < manifest._end:
                raise ValueError
        except (FileNotFoundError, NotADirectoryError):
            return cls(folder, {}, new_name())
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{path} is damaged or of another version: steer index --rebuild makes it anew") from error
        except OSError as error:
            raise RunError(f"{path} could not be read: {error.strerror}") from error
        return manifest

    @property
    def _end(self) -> int:
        """Byte behind the offsets of the last shard."""
        last = next(reversed(self.shards.values()), None)
        return 0 if last is None else 8 * (last.slot + last.count + 2)

    def moved(self, folder: Path) -> Self:
        """The same in another folder; its JSON is written when something is added."""
        if folder != self.folder:
            atomic_files.write(folder / self.offsets, (self.folder / self.offsets).read_bytes())
        return replace(self, folder=folder)

    def _add(self, shard: Shard) -> Shard:
        last = next(reversed(self.shards.values()), None)
        first, slot = (0, 0) if last is None else (last.first + last.count, last.slot + last.count + 2)
        shard = replace(shard, first=first, slot=slot)
        self.shards[shard.name] = shard
        return shard

    def append(self, new: Sequence[tuple[Shard, Scan | None]]) -> None:
        """Adds shards after all others: their offsets first, then the manifest that tells of them."""
        atomic_files.make_folder(self.folder)
        path = self.folder / self.offsets
        try:
            with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644), "r+b") as file:
                file.truncate(self._end)  # what an interrupted process wrote behind it is of no shard
                for shard, scanned in new:
                    shard = self._add(shard)
                    if scanned is not None:
                        _put(file.fileno(), shard.slot, rows_of(scanned, shard.count))
                    file.truncate(self._end)  # zeros while the headers were not read
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror}. Free some space") from None
        rows = [
            {key: getattr(shard, key) for key in (*_NUMBERS, *_TEXTS, "paired")}
            | {"kinds": None if shard.kinds is None else " ".join(shard.kinds)}
            for shard in self.shards.values()
        ]
        content = {"version": VERSION, "offsets": self.offsets, "shards": rows}
        atomic_files.write_json(self.folder / "index.json", content)


def _shard(row: dict) -> Shard:
    """A shard from its JSON; raises ValueError, KeyError or TypeError if that cannot be."""
    numbers = {key: row[key] for key in _NUMBERS}
    texts = {"head": "", **{key: row[key] for key in _TEXTS if key in row}}
    kinds, paired = row["kinds"], row.get("paired")
    if not all(type(number) is int and number >= 0 for number in numbers.values()):
        raise ValueError
    if not all(isinstance(text, str) for text in texts.values()) or not isinstance(paired, bool | None):
        raise ValueError
    return Shard(url="", **numbers, **texts, kinds=None if kinds is None else tuple(str.split(kinds)), paired=paired)


def _length(path: Path) -> int:
    """Bytes of an ordinary file, -1 if there is none; it is opened, as network file systems remember old sizes."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return -1
    try:
        status = os.fstat(file)
    finally:
        os.close(file)
    return status.st_size if stat.S_ISREG(status.st_mode) else -1


def rows_of(scanned: Scan, count: int) -> np.ndarray:
    """The numbers in the file of offsets of a shard that is said to have ``count`` samples: missing ones are empty."""
    starts = np.full(count + 1, scanned.end, dtype="<i8")
    samples = min(count + 1, len(scanned.starts))
    starts[:samples] = np.frombuffer(scanned.starts, dtype=np.int64)[:samples]
    return np.append(starts, max(scanned.size, 1)).astype("<i8")


def write_offsets(path: Path, slot: int, rows: np.ndarray) -> None:
    """Writes the offsets of a shard into the file; raises OSError."""
    file = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        _put(file, slot, rows)
    finally:
        os.close(file)


def _put(file: int, slot: int, rows: np.ndarray) -> None:
    os.pwrite(file, rows[:-1].tobytes(), 8 * slot)
    os.pwrite(file, rows[-1:].tobytes(), 8 * (slot + len(rows) - 1))  # last: it says that the others are there


def new_name() -> str:
    """Of a file of offsets: never one that another process may have mapped."""
    return f"offsets-{secrets.token_hex(4)}.bin"

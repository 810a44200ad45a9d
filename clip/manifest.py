"""The manifest on disk: which shards there are, and where their samples begin."""

import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np

from steering import files
from steering.clip.tar import Scan
from steering.errors import RunError, UserError

VERSION = 1


@dataclass(frozen=True, slots=True)
class Shard:
    """A tar of the data.

    Attributes:
        name: its identity: the path relative to the folder of the first source, or the URL.
        url: where it is now.
        size: in bytes; 0 of a remote one that was counted without being fetched.
        count: number of its samples.
        first: number of its first sample.
        slot: place in the file of offsets.
        part: which of the sources named it, counted from 0.
        kinds: extensions that it holds, None if its headers were not read yet.
        fault: what is wrong with it, empty if nothing is known to be.
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
            told = json.loads(path.read_text())
            if told["version"] != VERSION:
                raise ValueError
            manifest = cls(folder, {}, told["offsets"])
            for row in told["shards"]:
                manifest._add(Shard(url="", **row | {"kinds": _kinds(row["kinds"])}))
        except FileNotFoundError:
            return cls(folder, {}, new_name())
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged or of another version: steer index --rebuild makes it anew") from error
        except OSError as error:
            raise RunError(f"{path} could not be read: {error.strerror}") from error
        return manifest

    def moved(self, folder: Path) -> Self:
        """The same in another folder; its JSON is written when something is added."""
        if folder != self.folder:
            files.write(folder / self.offsets, (self.folder / self.offsets).read_bytes())
        return replace(self, folder=folder)

    def _add(self, shard: Shard) -> Shard:
        last = next(reversed(self.shards.values()), None)
        if last is not None:
            shard = replace(shard, first=last.first + last.count, slot=last.slot + last.count + 2)
        self.shards[shard.name] = shard
        return shard

    def append(self, found: Sequence[tuple[Shard, Scan | None]]) -> None:
        """Adds shards after all others: their offsets first, then the manifest that tells of them."""
        files.make_folder(self.folder)
        path = self.folder / self.offsets
        try:
            with open(path, "r+b" if path.exists() else "w+b") as file:
                last = next(reversed(self.shards.values()), None)
                # What an interrupted process wrote behind the end is of no shard.
                file.truncate(0 if last is None else 8 * (last.slot + last.count + 2))
                for shard, scanned in found:
                    shard = self._add(shard)
                    if scanned is not None:
                        _put(file.fileno(), shard.slot, rows_of(scanned, shard.count))
                    file.truncate(8 * (shard.slot + shard.count + 2))  # zeros while the headers were not read
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror}. Free some space") from None
        keys = ("name", "size", "count", "first", "slot", "fault")
        rows = [
            {key: getattr(shard, key) for key in keys}
            | {"kinds": None if shard.kinds is None else " ".join(shard.kinds)}
            for shard in self.shards.values()
        ]
        files.write_json(self.folder / "index.json", {"version": VERSION, "offsets": self.offsets, "shards": rows})


def _kinds(told: str | list | None) -> tuple[str, ...] | None:
    return tuple(told.split()) if isinstance(told, str) else None if told is None else tuple(told)


def rows_of(scanned: Scan, count: int) -> np.ndarray:
    """What the file of offsets holds of a shard that is said to have ``count`` samples: what lacks is empty."""
    starts = np.full(count + 1, scanned.end, dtype="<i8")
    known = min(count + 1, len(scanned.starts))
    starts[:known] = np.frombuffer(scanned.starts, dtype=np.int64)[:known]
    return np.append(starts, max(scanned.size, 1)).astype("<i8")


def write_offsets(path: Path, slot: int, rows: np.ndarray) -> None:
    """Writes what became known of a shard into the file of offsets; raises OSError."""
    file = os.open(path, os.O_RDWR)
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

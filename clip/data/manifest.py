"""The manifest on disk: which shards there are, and where their samples begin."""

import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from steering import atomic_files
from steering.clip.data.shard_files import opened, read_file
from steering.clip.data.tar import Scan
from steering.errors import RunError, UserError

MOST_REMOTE = 10_000_000  # samples of a remote shard, whose size does not bound them
MOST_BYTES = 1 << 30  # of a manifest, which takes some 300 a shard
LEAST_BYTES = 512  # of a sample: one header


@dataclass(frozen=True, slots=True)
class Shard:
    """A tar of the data."""

    name: str  # its identity: the path relative to the folder of the first source, or the URL
    url: str  # where it is now
    size: int  # in bytes; 0 of a remote one that was counted without being fetched
    count: int  # of its samples
    first: int = 0  # number of its first sample
    slot: int = 0  # index of its first number in the file of offsets
    part: int = 0  # which of the sources named it, counted from 0
    kinds: tuple[str, ...] | None = None  # extensions that it holds, None if its headers were not read yet
    fault: str = ""  # what is wrong with it, as far as is known
    head: str = ""  # hash of how a local one begins, empty if it is not known
    paired: bool | None = None  # one of its first samples has a picture and what may hold a caption, None if not known
    new: bool = False  # it was not in the manifest before


_Number = Annotated[int, Field(ge=0, lt=1 << 62)]


class _Row(BaseModel):
    model_config = ConfigDict(strict=True)

    size: _Number
    count: _Number
    first: _Number
    slot: _Number
    name: str
    fault: str
    head: str = ""
    paired: bool | None = None
    kinds: str | None


class _Content(BaseModel):
    model_config = ConfigDict(strict=True)

    version: Literal[1] = 1
    offsets: Annotated[str, Field(pattern=r"^offsets-[0-9a-f]{8}\.bin\z")]
    shards: list[_Row]


@dataclass
class Manifest:
    """The shards that were ever seen in a folder, in the order in which they were.

    On disk it is JSON, ``shards`` and the name of the file of offsets: little-endian int64, for a shard of n samples
    n + 2 numbers from its ``slot`` on: the byte where each begins, where the last one ends, and the size of the tar;
    the size is 0 while the headers were not read.
    """

    folder: Path
    shards: dict[str, Shard] = field(default_factory=dict)
    # Never one that another process may have mapped.
    offsets: str = field(default_factory=lambda: f"offsets-{secrets.token_hex(4)}.bin")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """What stands in a folder, nothing if there is no manifest.

        Raises:
            UserError: it is damaged or of another version.
        """
        path = folder / "index.json"
        try:
            content = _Content.model_validate(atomic_files.read_json(path, MOST_BYTES))
            manifest = cls(folder, {}, content.offsets)
            for row in content.shards:
                kinds = None if row.kinds is None else tuple(row.kinds.split())
                shard = Shard(**row.model_dump() | {"kinds": kinds, "url": ""})
                if row.name in manifest.shards or not possible(shard) or manifest._add(shard) != shard:
                    raise ValueError
            if manifest.shards and _length(folder / manifest.offsets) < manifest._end:
                raise ValueError
        except (FileNotFoundError, NotADirectoryError):
            return cls(folder)
        except ValueError as error:
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
            try:
                content = read_file(self.folder / self.offsets, 8 * MOST_BYTES)
            except OSError as error:
                raise RunError(f"{self.folder / self.offsets} could not be read: {error.strerror}") from None
            atomic_files.write(folder / self.offsets, content[: self._end])
        return replace(self, folder=folder)

    def _add(self, shard: Shard) -> Shard:
        last = next(reversed(self.shards.values()), None)
        first, slot = (0, 0) if last is None else (last.first + last.count, last.slot + last.count + 2)
        self.shards[shard.name] = shard = replace(shard, first=first, slot=slot)
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
        kinds = {shard.name: None if shard.kinds is None else " ".join(shard.kinds) for shard in self.shards.values()}
        rows = [_Row.model_validate(asdict(shard) | {"kinds": kinds[shard.name]}) for shard in self.shards.values()]
        content = _Content(offsets=self.offsets, shards=rows)
        atomic_files.write_json(self.folder / "index.json", content.model_dump())


def possible(shard: Shard) -> bool:
    """Whether a shard can have as many samples as it is said to."""
    return shard.count <= (shard.size // LEAST_BYTES if shard.size else MOST_REMOTE)


def _length(path: Path) -> int:
    """Bytes of an ordinary file, -1 if there is none; it is opened, as network file systems remember old sizes."""
    with suppress(OSError), opened(path, os.O_RDONLY | os.O_NOFOLLOW) as file:
        return os.fstat(file).st_size
    return -1


def rows_of(scanned: Scan, count: int) -> np.ndarray:
    """The numbers in the file of offsets of a shard that is said to have ``count`` samples: missing ones are empty."""
    starts = np.full(count + 1, scanned.end, dtype="<i8")
    samples = min(count + 1, len(scanned.starts))
    starts[:samples] = np.frombuffer(scanned.starts, dtype=np.int64)[:samples]
    return np.append(starts, max(scanned.size, 1)).astype("<i8")


def write_offsets(path: Path, slot: int, rows: np.ndarray) -> None:
    """Writes the offsets of a shard into the file; raises OSError."""
    with opened(path, os.O_RDWR | os.O_NOFOLLOW) as file:
        _put(file, slot, rows)


def _put(file: int, slot: int, rows: np.ndarray) -> None:
    os.pwrite(file, rows[:-1].tobytes(), 8 * slot)
    os.pwrite(file, rows[-1:].tobytes(), 8 * (slot + len(rows) - 1))  # last: it says that the others are there

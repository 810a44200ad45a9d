"""Webdataset tars as one list of samples, each under a number that is its position in the tars."""

import hashlib
import json
import os
import time
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NoReturn, Self

import numpy as np

from steering.clip.data.images import COMMON, PICTURES, UNREADABLE, Undecodable
from steering.clip.data.index import Index, open_index
from steering.clip.data.manifest import Shard, rows_of, write_offsets
from steering.clip.data.shard_files import ShardFiles
from steering.clip.data.sources import Pattern, expand, remote
from steering.clip.data.tar import LOOKED_AT, Fault, head, members, paired, scan
from steering.errors import RunError, UserError

AT_ONCE = 8 << 20  # bytes: a sample up to this size is read by one call, of a larger one what is asked for
CHANGED = "has changed since its headers were read: leave shards alone in a run"
AGAIN = 300.0  # seconds until a shard that could not be read is tried again


class Shards:
    """The samples of tars, looked up by number.

    A sample is a run of members with one key, by webdataset's rule: the key is the path up to the first dot
    of the base name, the extension is the rest. A sample's number counts all samples before it, in the order
    of the manifest and then of the tar, usable or not: numbers stay when a folder moves or shards are added.
    Nothing is held in memory for a sample: where it begins is looked up in a file that is mapped into memory and
    shared by all processes, its members are found when it is read.

    Args:
        index: the shards and where their samples begin.
        caption_field: field of the ``.json`` member that holds the caption; None takes the ``.txt`` member,
            or the field ``caption`` where a sample has none.
        bad_shards: samples of a shard that cannot be read any more are unusable, instead of an end of the run.
        cache_gb: disk space for copies of remote shards, in 10^9 bytes.
    """

    def __init__(
        self, index: Index, caption_field: str | None = None, *, bad_shards: bool = False, cache_gb: float = 50
    ):
        self.index: list[Shard] = index.shards
        self.manifest, self.caption_field, self.bad_shards = index.manifest, caption_field, bad_shards
        self.first = [0]  # number of every shard's first sample, then of all samples
        for shard in self.index:
            self.first.append(self.first[-1] + shard.count)
        self._offsets = _Offsets(index.offsets)
        self._files = ShardFiles(cache_gb * 1e9)
        self._bad: dict[str, tuple[float, str]] = {}  # until when not to try a shard again, and why
        self._seen: set[str] = set()  # shards that this process found to be what they were
        self._last: tuple[int, _Sample] | None = None

    @classmethod
    def open(
        cls,
        pattern: Pattern | Iterable[Pattern],
        caption_field: str | None = None,
        *,
        bad_shards: bool = False,
        cache_gb: float = 50,
    ) -> Self:
        """Finds the shards, indexes those that are new and makes sure that they hold pictures and captions.

        Args:
            pattern: a path, a brace pattern (``shards/{000..099}.tar``), a glob (sorted, 9 before 10), a URL
                (``https:``, ``s3:``, ``gs:``, ``hf:``) or ``pipe:COMMAND``, these with braces too, several of
                these joined by ``::``, or a list of them.
            caption_field, bad_shards, cache_gb: as of the class; bad shards may then be missing or cut short, too.

        Raises:
            UserError: a shard is missing, empty, cut short, damaged, no tar, without pictures or captions, or not
                the one that was indexed.
        """
        named = expand(pattern, missing=bad_shards)
        index = open_index(named, files=ShardFiles(cache_gb * 1e9), bad_shards=bad_shards)
        shards = cls(index, caption_field, bad_shards=bad_shards, cache_gb=cache_gb)
        shards._require_pairs()
        return shards

    def __len__(self) -> int:
        return self.first[-1]

    @cached_property
    def fingerprint(self) -> str:
        """Of the numbers: changes when they stand for other samples."""
        rows = [[shard.name, shard.size, shard.count, shard.head] for shard in self.index]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]

    @property
    def remote(self) -> bool:
        """Whether any of them has to be fetched."""
        return any(remote(shard.url) for shard in self.index)

    def locate(self, number: int) -> tuple[Shard, int]:
        """The shard of a sample and its position in there, counted from 0."""
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        which = self.which(number)
        return self.index[which], number - self.first[which]

    def which(self, number: int) -> int:
        """Index of the shard of a sample in ``index``."""
        return bisect_right(self.first, number) - 1

    def read(self, number: int) -> dict[str, bytes]:
        """All members of a sample by extension, undecoded; kinds that could run code are left out."""
        sample = self._sample(number)
        return {kind: self._bytes(sample, kind) for kind in sample.members}

    def picture(self, number: int) -> bytes:
        """The undecoded picture of a sample; raises Undecodable if it has none."""
        sample = self._sample(number)
        for kind in PICTURES:
            if kind in sample.members:
                return self._bytes(sample, kind)
        raise Undecodable("no picture")

    def caption(self, number: int) -> str:
        """The first caption of a sample; raises Undecodable if it has none, or an empty or broken one."""
        return self.captions(number)[0]

    def captions(self, number: int) -> list[str]:
        """All captions of a sample: one, or several where the JSON field is a list; raises Undecodable if none."""
        sample = self._sample(number)
        if self.caption_field is None and "txt" in sample.members:
            try:
                content = self._bytes(sample, "txt").decode("utf-8-sig")
            except UnicodeDecodeError:
                raise Undecodable("caption not in UTF-8") from None
        else:
            content = self.info(number).get(self.caption_field or "caption")
        every = content if isinstance(content, list) else [content]
        texts = [text.strip() for text in every if isinstance(text, str) and text.strip()]
        if not texts:
            raise Undecodable("no caption")
        return texts

    def info(self, number: int) -> dict:
        """The ``.json`` member of a sample, {} if it has none; raises Undecodable if it is no JSON object."""
        sample = self._sample(number)
        if "json" not in sample.members:
            return {}
        try:
            info = json.loads(self._bytes(sample, "json"))
        except (ValueError, RecursionError):
            raise Undecodable("broken JSON") from None
        if not isinstance(info, dict):
            raise Undecodable("broken JSON")
        return info

    def name(self, number: int) -> str:
        """Key and shard of a sample, for messages."""
        shard, position = self.locate(number)
        try:
            return f"{self._sample(number).key} in {shard.url}"
        except (Undecodable, RunError):
            return f"sample {position} in {shard.url}"

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_last": None, "_bad": {}, "_seen": set()}  # another process looks for itself

    def _sample(self, number: int) -> "_Sample":
        if self._last is None or self._last[0] != number:  # picture, caption and info are of one sample as a rule
            shard, position = self.locate(number)
            until, why = self._bad.get(shard.url, (0.0, ""))
            if time.monotonic() < until:
                self._unreadable(shard, why)
            try:
                self._last = number, self._find(shard, position)
            except Fault as fault:
                self._unreadable(shard, str(fault).rstrip(","))
            except OSError as error:
                self._unreadable(shard, f"could not be read: {error.strerror or error}")
        return self._last[1]

    def _unreadable(self, shard: Shard, why: str) -> NoReturn:
        if shard.url not in self._bad:
            self._bad[shard.url] = time.monotonic() + AGAIN, why
        if self.bad_shards or remote(shard.url):
            raise Undecodable(UNREADABLE)
        raise RunError(f"{shard.url} {why}")

    def _find(self, shard: Shard, position: int) -> "_Sample":
        with self._files.open(shard.url) as file:
            if self._other(shard, file):  # asked first: of another shard no offsets are written down
                raise Fault(CHANGED, 0)
            rows = self._rows(shard, file)
            if os.fstat(file).st_size != rows[-1]:
                raise Fault(CHANGED, 0)
            start, stop = int(rows[position]), int(rows[position + 1])
            if start == stop:
                raise Undecodable("not in its shard")
            data = os.pread(file, min(stop - start, AT_ONCE), start)
            sample = _Sample(shard, "", {}, start, data)

            def read(offset: int, size: int) -> bytes:
                return sample.held(offset, size) or os.pread(file, size, offset)

            for member in members(read, start, stop):
                sample.key = member.key
                sample.members[member.kind] = (member.offset, member.size)
        return sample

    def _other(self, shard: Shard, file: int) -> bool:
        """Whether an open shard begins differently than it did, looked at once."""
        if shard.head and shard.url not in self._seen:
            if head(file) != shard.head:
                return True
            self._seen.add(shard.url)
        return False

    def _rows(self, shard: Shard, file: int) -> np.ndarray:
        """Where the samples of an open shard begin; one whose count is only from a side file is read now."""
        rows = self._offsets.read(shard)
        if rows[-1] == 0:
            scanned = scan(file)
            if scanned.fault and not (self.bad_shards or remote(shard.url)):
                raise Fault(scanned.fault, 0)
            rows = rows_of(scanned, shard.count)
            self._offsets.write(shard, rows)
        return rows

    def _bytes(self, sample: "_Sample", kind: str) -> bytes:
        offset, size = sample.members[kind]
        data = sample.held(offset, size)
        if data is None:
            try:
                with self._files.open(sample.shard.url) as file:
                    data = os.pread(file, size, offset)
            except OSError as error:
                self._unreadable(sample.shard, f"could not be read: {error.strerror or error}")
        return data

    def _require_pairs(self) -> None:
        """Makes sure that there is something to train on: of every shard by its extensions, of one a source closer."""
        seen: set[int] = set()
        for which, shard in enumerate(self.index):
            if shard.fault or not shard.count or (shard.kinds is None and shard.part in seen):
                continue
            first = shard.part not in seen
            seen.add(shard.part)
            try:
                self._require(which, first)
            except RunError:
                if not self.bad_shards:
                    raise

    def _require(self, which: int, closely: bool) -> None:
        shard = self.index[which]
        kinds, fields, captions, together = self._look(which, closely)
        held = " ".join(f".{kind}" for kind in sorted(kinds)[:9]) or "nothing that is read"
        if together is False and paired(kinds):
            raise UserError(
                f"{shard.url} has no picture and caption in any of its first {LOOKED_AT} samples: it holds {held}; "
                "write it again, with the members of a sample one after the other (KEY.jpg KEY.txt, then the next KEY)"
            )
        if not kinds & set(PICTURES) and (kinds or shard.kinds is not None):
            raise UserError(
                f"{shard.url} has no pictures: it holds {held}; needed is one of .{' .'.join(COMMON)} and the like "
                "(the extension is all that follows the first dot of a file name)"
            )
        if closely and not captions and kinds:
            names = ", ".join(sorted(fields)) or "none"
            needed = f"JSON field {self.caption_field}" if self.caption_field else ".txt or JSON field caption"
            raise UserError(f"{shard.url} has no captions: it holds {held} (JSON fields: {names}); needed is {needed}")

    def _look(self, which: int, closely: bool) -> tuple[set[str], set[str], bool, bool | None]:
        """Kinds of members and JSON fields of a shard, if it has captions, and if they are together with pictures."""
        shard, numbers = self.index[which], range(self.first[which], self.first[which + 1])[:LOOKED_AT]
        kinds, fields = set(shard.kinds or ()), set()
        captions = self.caption_field is None and "txt" in kinds
        if shard.kinds is not None and (captions or not closely):
            return kinds, fields, captions, shard.paired
        for number in numbers:
            try:
                kinds |= self._sample(number).members.keys()
                fields |= self.info(number).keys()
                captions = bool(self.captions(number))
                break
            except Undecodable:
                continue
        if shard.kinds is not None or not kinds or (captions and kinds & set(PICTURES)):
            return kinds, fields, captions, shard.paired
        with self._files.open(shard.url) as file:  # its count is from a side file: its later members are not known
            scanned = scan(file)
        return kinds | set(scanned.kinds), fields, captions, scanned.paired


@dataclass
class _Sample:
    """One sample: offset and size of its members by kind, and the bytes from ``start`` on that were read already."""

    shard: Shard
    key: str
    members: dict[str, tuple[int, int]]
    start: int
    data: bytes

    def held(self, offset: int, size: int) -> bytes | None:
        begin = offset - self.start
        return self.data[begin : begin + size] if begin + size <= len(self.data) else None


class _Offsets:
    """The file of offsets, mapped by this process; what cannot be written there is kept here."""

    def __init__(self, path: Path):
        self.path = path
        self.unwritten: dict[str, np.ndarray] = {}
        self._sound: set[str] = set()  # shards whose offsets were checked
        self._map: np.ndarray | None = None

    def read(self, shard: Shard) -> np.ndarray:
        if shard.name in self.unwritten:
            return self.unwritten[shard.name]
        stop = shard.slot + shard.count + 2
        if self._map is None:
            try:
                self._map = np.memmap(self.path, dtype="<i8", mode="r")
            except (OSError, ValueError):
                self._map = np.zeros(0, dtype="<i8")
        if len(self._map) < stop:
            raise RunError(f"{self.path} is gone or too short: rebuild it with steer index --rebuild")
        rows = self._map[shard.slot : stop]
        if rows[-1] and shard.name not in self._sound:
            if rows[0] < 0 or (rows[1:] < rows[:-1]).any():
                raise RunError(f"{self.path} is damaged: steer index --rebuild makes it anew")
            self._sound.add(shard.name)
        return rows

    def write(self, shard: Shard, rows: np.ndarray) -> None:
        try:
            write_offsets(self.path, shard.slot, rows)
        except OSError:
            self.unwritten[shard.name] = rows

    def __getstate__(self) -> dict:
        return {"path": self.path, "unwritten": self.unwritten, "_sound": set(), "_map": None}

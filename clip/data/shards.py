"""Webdataset tars as one list of samples, each under a number that is its position in the tars."""

import hashlib
import json
import os
import re
import sys
import time
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np

from steering.clip.data.images import COMMON, PICTURES, UNREADABLE, Undecodable
from steering.clip.data.index import Index, open_index
from steering.clip.data.manifest import Shard, rows_of, write_offsets
from steering.clip.data.shard_files import ShardFiles
from steering.clip.data.sources import Pattern, expand, printable, remote, several
from steering.clip.data.tar import LOOKED_AT, Fault, head, members, paired, scan
from steering.distributed import rank
from steering.errors import RunError, UserError

MOST_TEXT = 16 << 20  # bytes of a caption or JSON member,
MOST_BYTES = 1 << 30  # and of a picture or any other
AT_ONCE = 8 << 20  # bytes: a sample up to this size is read by one call, of a larger one what is asked for
CHANGED = "has changed since its headers were read: leave shards alone in a run"
_LONG_WORD = re.compile(r"(\S{1000})\S+")
AGAIN = 300.0  # seconds until a shard that could not be read is tried again


class Shards:
    """The samples of tars, looked up by number.

    A sample is a run of members with one key, by webdataset's rule: the key is the path up to the first dot
    of the base name, the extension is the rest. A sample's number counts all samples before it, in the order
    of the manifest and then of the tar, usable or not. Nothing is held in memory for a sample: where it begins is
    looked up in a file that is mapped into memory, its members when it is read.

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
        # Number of every shard's first sample, then of all samples.
        self.first = [0, *accumulate(shard.count for shard in self.index)]
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
                (``https:``, ``s3:``, ``gs:``, ``hf:``) or ``pipe:COMMAND``, several joined by ``::``, or a list.
            caption_field, bad_shards, cache_gb: as of the class; bad shards may then be missing or cut short, too.

        Raises:
            UserError: a shard is missing, damaged, without pictures or captions, or not the one that was indexed.
        """
        named = expand(pattern, missing=bad_shards)
        index = open_index(named, files=ShardFiles(cache_gb * 1e9), bad_shards=bad_shards)
        if index.warnings:
            more = f" ({len(index.warnings):,} notes like this: see steer index)" if len(index.warnings) > 1 else ""
            _note(index.warnings[0] + more)
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
        kind = next((kind for kind in PICTURES if kind in sample.members), None)
        if kind is None:
            raise Undecodable("no picture")
        return self._bytes(sample, kind)

    def caption(self, number: int) -> str:
        """The first caption of a sample; raises Undecodable if it has none, or an empty or broken one."""
        return self.captions(number)[0]

    def captions(self, number: int) -> list[str]:
        """All captions of a sample: one, or several where the JSON field is a list; raises Undecodable if none."""
        content: Any = None
        if self.caption_field is None and "txt" in self._sample(number).members:
            try:
                content = self._bytes(self._sample(number), "txt").decode("utf-8-sig").strip()
            except UnicodeDecodeError:
                raise Undecodable("caption not in UTF-8") from None
        content = content or self.info(number).get(self.caption_field or "caption")
        every = content if isinstance(content, list) else [content]
        texts = [text.strip() for text in every if isinstance(text, str) and text.strip()]
        if not texts:
            raise Undecodable("no caption")
        # Halves of surrogates are no text. Of a word so long no model sees the end, and tokenizers take its square.
        return [_LONG_WORD.sub(r"\1", text.encode(errors="replace").decode()) for text in texts]

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
            return f"{printable(self._sample(number).key)} in {shard.url}"
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
        if time.monotonic() >= self._bad.get(shard.url, (0.0, ""))[0]:
            self._bad[shard.url] = time.monotonic() + AGAIN, why
        if self.bad_shards or remote(shard.url):
            raise Undecodable(UNREADABLE)
        raise RunError(f"{shard.url} {why}")

    def _find(self, shard: Shard, position: int) -> "_Sample":
        with self._files.open(shard.url) as file:
            if shard.head and shard.url not in self._seen:  # first: of another shard no offsets are written down
                if head(file) != shard.head:
                    raise Fault(CHANGED, 0)
                self._seen.add(shard.url)
            rows = self._rows(shard, file)
            if os.fstat(file).st_size != rows[-1]:
                raise Fault(CHANGED, 0)
            start, stop = int(rows[position]), int(rows[position + 1])
            if start == stop:
                raise Undecodable("not in its shard")
            sample = _Sample(shard, "", {}, start, os.pread(file, min(stop - start, AT_ONCE), start))

            def read(offset: int, size: int) -> bytes:
                return sample.held(offset, size) or os.pread(file, size, offset)

            for member in members(read, start, stop):
                if member.kind in sample.members:
                    raise Undecodable("member twice")
                sample.key = member.key
                sample.members[member.kind] = (member.offset, member.size)
        return sample

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
        if size > (MOST_TEXT if kind in ("txt", "json", "cls") else MOST_BYTES):
            raise Undecodable("too many bytes")
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
        sources: set[int] = set()
        for which, shard in enumerate(self.index):
            if shard.fault or not shard.count or (shard.kinds is None and shard.part in sources):
                continue
            closely = shard.part not in sources
            sources.add(shard.part)
            try:
                self._require(which, closely)
            except RunError:
                if not self.bad_shards:
                    raise

    def _require(self, which: int, closely: bool) -> None:
        shard = self.index[which]
        kinds, together = set(shard.kinds or ()), shard.paired
        if shard.kinds is None:  # its count is from a side file
            try:
                with self._files.open(shard.url) as file:
                    scanned = scan(file)
            except OSError:  # reported when it is to be read
                return
            kinds, together = set(scanned.kinds), scanned.paired
            if len(scanned.starts) != shard.count:
                said = f"{shard.url} is said to hold {shard.count:,} samples and holds {len(scanned.starts):,}"
                _note(f"{said}: correct the file beside it, then steer index --rebuild")
        held = several([f".{kind}" for kind in sorted(kinds)], 9).replace(",", "") or "nothing that is read"
        if together is False and paired(kinds):
            raise UserError(
                f"{shard.url} has no picture and caption in any of its first {LOOKED_AT} samples: it holds {held}; "
                "write it again, with the members of a sample one after the other (KEY.jpg KEY.txt, then the next KEY)"
            )
        if not kinds & set(PICTURES):
            raise UserError(
                f"{shard.url} has no pictures: it holds {held}; needed is one of .{' .'.join(COMMON)} and the like "
                "(the extension is all that follows the first dot of a file name)"
            )
        fields: set[str] = set()
        captions = not closely or (self.caption_field is None and "txt" in kinds)
        for number in range(self.first[which], self.first[which + 1])[:LOOKED_AT]:
            try:
                fields |= set() if captions else self.info(number).keys()
                captions = captions or bool(self.captions(number))
                break
            except Undecodable:
                continue
        if not captions:
            names = several([printable(name) for name in sorted(fields)]) or "none"
            needed = f"JSON field {self.caption_field}" if self.caption_field else ".txt or JSON field caption"
            raise UserError(f"{shard.url} has no captions: it holds {held} (JSON fields: {names}); needed is {needed}")


def require_apart(data: Shards, val: Shards, held_out: Sequence[int] | None = None) -> None:
    """Makes sure that what is measured on was not trained on: no shard of one is in the other, and few pictures are.

    Pictures are compared byte by byte, up to 500 of one with up to 2,000 of the other; a few are told, not refused.

    Args:
        data, val: to train and to measure on.
        held_out: numbers of the samples of ``data`` to measure on, in rising order, where ``val`` is the same.

    Raises:
        UserError: a shard is in both, or most of the pictures that are compared, where these are 20 or more.
    """

    def marks(shard: Shard) -> set[str]:
        where = shard.url if remote(shard.url) else os.path.realpath(shard.url)
        return {where} | ({f"{shard.size} {shard.head}"} if shard.head else set())

    def pictures(shards: Shards, numbers: Sequence[int], most: int) -> list[bytes]:
        hashes = []
        for number in numbers[:: max(1, len(numbers) // most)]:
            with suppress(Undecodable):
                hashes.append(hashlib.blake2b(shards.picture(number)).digest())
        return [picture for picture in hashes if picture != hashlib.blake2b(b"").digest()]

    if held_out is None:
        trained = {mark for shard in data.index if shard.count for mark in marks(shard)}
        both = [shard.url for shard in val.index if shard.count and marks(shard) & trained]
        if both:
            raise UserError(f"val is to be held out, but data hold {several(both, 3)} as well: name others for one")
    if data.remote or val.remote:
        return
    rest = np.setdiff1d(np.arange(len(data)), [] if held_out is None else held_out).tolist()
    seen = set(pictures(data, rest, 2000))
    measured = pictures(val, range(len(val)) if held_out is None else held_out, 500)
    count = sum(picture in seen for picture in measured)
    if held_out is None and 2 * count > len(measured) >= 20:
        raise UserError(f"val is to be held out, but data hold {count} of {len(measured)} of its pictures as well")
    if count:
        _note(f"{count} of {len(measured)} pictures to measure on are trained on as well")


def _note(text: str) -> None:
    if rank() == 0:
        print(f"note: {printable(text, 1000)}", file=sys.stderr)


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

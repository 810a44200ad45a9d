"""Local webdataset tars as one list of samples, each under a number that is its place in the tars."""

import glob
import json
import os
import re
from array import array
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Self

from braceexpand import braceexpand

from steering.clip.images import Undecodable
from steering.errors import RunError, UserError

PICTURES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm")  # the first that a sample has
CAN_RUN_CODE = {"pyd", "pickle", "pkl", "pth", "pt", "npy", "npz"}  # webdataset may unpickle them: left out

Pattern = str | os.PathLike[str]


class Shards:
    """The samples of local tars, looked up by number.

    A sample is a run of members with one key, by webdataset's rule: the key is the path up to the first dot
    of the base name, the extension is the rest. A sample's number counts all samples before it, in the order
    of the shards and then of the tar, usable or not: numbers stay when a folder moves or shards are added at
    the end. Only headers are read ahead; payloads come by position, from any process.

    Args:
        index: the shards, in order.
        caption_field: field of the ``.json`` member that holds the caption; None takes the ``.txt`` member,
            or the field ``caption`` where a sample has none.
    """

    def __init__(self, index: Sequence["Shard"], caption_field: str | None = None):
        self.index = index
        self.caption_field = caption_field
        self.first = [0]  # number of every shard's first sample, then of all samples
        for shard in index:
            self.first.append(self.first[-1] + len(shard.keys))
        self._files = _Files()

    @classmethod
    def open(cls, pattern: Pattern | Iterable[Pattern], *, caption_field: str | None = None) -> Self:
        """Finds the shards, reads their headers and makes sure that they hold pictures and captions.

        Args:
            pattern: a path, a brace pattern (``shards/{000..099}.tar``), a glob (sorted, 9 before 10),
                several of these joined by ``::``, or a list of them.
            caption_field: as of the class.

        Raises:
            UserError: a shard is missing, empty, cut short, damaged, no tar, or without pictures or captions.
        """
        shards = cls([scan(path) for path in expand(pattern)], caption_field)
        for number in range(len(shards.index)):
            shards._require_pairs(number)
        return shards

    def __len__(self) -> int:
        return self.first[-1]

    def read(self, number: int) -> dict[str, bytes]:
        """All members of a sample by extension, undecoded; kinds that could run code are left out."""
        shard, members = self._members(number)
        return {kind: self._files.read(shard.path, *place) for kind, place in members.items()}

    def picture(self, number: int) -> bytes:
        """The undecoded picture of a sample; raises Undecodable if it has none."""
        shard, members = self._members(number)
        for kind in PICTURES:
            if kind in members:
                return self._files.read(shard.path, *members[kind])
        raise Undecodable("no picture")

    def caption(self, number: int) -> str:
        """The caption of a sample; raises Undecodable if it has none, or an empty or broken one."""
        shard, members = self._members(number)
        if self.caption_field is None and "txt" in members:
            try:
                caption = self._files.read(shard.path, *members["txt"]).decode("utf-8-sig")
            except UnicodeDecodeError:
                raise Undecodable("caption not in UTF-8") from None
        else:
            caption = self.info(number).get(self.caption_field or "caption")
        if not isinstance(caption, str) or not caption.strip():
            raise Undecodable("no caption")
        return caption.strip()

    def info(self, number: int) -> dict:
        """The ``.json`` member of a sample, {} if it has none; raises Undecodable if it is no JSON object."""
        shard, members = self._members(number)
        if "json" not in members:
            return {}
        try:
            info = json.loads(self._files.read(shard.path, *members["json"]))
        except (ValueError, RecursionError):
            raise Undecodable("broken JSON") from None
        if not isinstance(info, dict):
            raise Undecodable("broken JSON")
        return info

    def name(self, number: int) -> str:
        """Key and shard of a sample, for messages."""
        shard, place = self._locate(number)
        return f"{shard.keys[place]} in {shard.path}"

    def _locate(self, number: int) -> tuple["Shard", int]:
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        which = bisect_right(self.first, number) - 1
        return self.index[which], number - self.first[which]

    def _members(self, number: int) -> tuple["Shard", dict[str, tuple[int, int]]]:
        shard, place = self._locate(number)
        return shard, shard.members(place)

    def _require_pairs(self, which: int) -> None:
        shard = self.index[which]
        held = " ".join(f".{kind}" for kind in sorted(shard.kinds)[:9]) or "nothing that is read"
        if not any(kind in PICTURES for kind in shard.kinds):
            raise UserError(
                f"{shard.path} has no pictures: it holds {held}; needed is one of .{' .'.join(PICTURES)} "
                "(the extension is all that follows the first dot of a file name)"
            )
        if self.caption_field is None and "txt" in shard.kinds:
            return
        fields: set[str] = set()
        for number in range(self.first[which], self.first[which + 1])[:20]:
            try:
                fields |= self.info(number).keys()
                self.caption(number)
                return
            except Undecodable:
                continue
        known = ", ".join(sorted(fields)) or "none"
        wanted = f"JSON field {self.caption_field}" if self.caption_field else ".txt or JSON field caption"
        raise UserError(f"{shard.path} has no captions: it holds {held} (JSON fields: {known}); needed is {wanted}")


@dataclass
class Shard:
    """Where the members of one tar are.

    Attributes:
        path: of the tar.
        keys: of its n samples.
        kinds: the extensions that occur, in lower case, without the first dot.
        starts: n + 1 numbers: members ``starts[i]`` to ``starts[i + 1] - 1`` belong to sample i.
        codes: place in ``kinds`` of every member.
        offsets, sizes: of every member's payload, in bytes.
    """

    path: str
    keys: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    starts: array = field(default_factory=lambda: array("q"))
    codes: array = field(default_factory=lambda: array("i"))
    offsets: array = field(default_factory=lambda: array("q"))
    sizes: array = field(default_factory=lambda: array("q"))

    def members(self, place: int) -> dict[str, tuple[int, int]]:
        """Offset and size by extension, of the sample at ``place`` in this tar."""
        here = range(self.starts[place], self.starts[place + 1])
        return {self.kinds[self.codes[i]]: (self.offsets[i], self.sizes[i]) for i in here}


class _Files:
    """Shards opened by this process, the longest unused closed first."""

    def __init__(self, most: int = 64):
        self.most = most
        self.files: OrderedDict[str, int] = OrderedDict()

    def read(self, path: str, offset: int, size: int) -> bytes:
        try:
            if path not in self.files:
                self.files[path] = os.open(path, os.O_RDONLY)
                if len(self.files) > self.most:
                    os.close(self.files.popitem(last=False)[1])
            self.files.move_to_end(path)
            data = os.pread(self.files[path], size, offset)
        except OSError as error:
            raise RunError(f"{path} could not be read: {error.strerror}") from error
        if len(data) < size:
            raise RunError(f"{path} became shorter since its headers were read: leave shards alone in a run")
        return data

    def __getstate__(self) -> dict:
        return {"most": self.most, "files": OrderedDict()}  # another process opens its own

    def __del__(self, close: Callable[[int], None] = os.close):
        for file in self.files.values():
            close(file)


def expand(pattern: Pattern | Iterable[Pattern]) -> list[str]:
    """Paths of existing files, in the order of the pattern; see ``Shards.open``."""
    patterns = [pattern] if isinstance(pattern, str | os.PathLike) else list(pattern)
    parts = [part.strip() for each in patterns for part in os.fspath(each).split("::")]
    paths = [path for part in parts if part for path in _expand(part)]
    if not paths:
        raise UserError("no shards given: name at least one tar")
    path, times = Counter(paths).most_common(1)[0]
    if times > 1:
        raise UserError(
            f"{path} is named {times} times, which would contrast its samples with themselves: name it once"
        )
    return paths


def _expand(part: str) -> list[str]:
    if part.startswith("pipe:") or "://" in part:
        raise UserError(f"only tars on this machine can be read, got {part}: download them first")
    part = os.path.expanduser(part)
    if os.path.isdir(part):
        raise UserError(f"{part} is a folder: name its shards, for example {os.path.join(part, '*.tar')}")
    if os.path.isfile(part):  # also one with braces in its name
        return [part]
    try:
        names = list(braceexpand(part, escape=False))
    except ValueError as error:
        raise UserError(f"unbalanced braces in {part}: write for example shards/{{000..099}}.tar") from error
    found = [[name] if os.path.isfile(name) else sorted(_matches(name), key=_natural) for name in names]
    missing = [name for name, paths in zip(names, found, strict=True) if not paths]
    if missing:
        others = f" (nor {len(missing) - 1} others of the {len(names)} in {part})" if len(missing) > 1 else ""
        raise UserError(f"there is no shard {missing[0]}{others}: correct the name, or download it first")
    return [path for paths in found for path in paths]


def _matches(name: str) -> list[str]:
    return [path for path in glob.glob(name, recursive=True) if os.path.isfile(path)]


def _natural(path: str) -> list:
    """Sorts 9 before 10, so that a shard that is added comes last."""
    parts: list = re.split(r"([0-9]+)", path)
    parts[1::2] = map(int, parts[1::2])
    return parts


_NAME = re.compile(r"((?:.*/)?[^.]+)[.]([^/]*)", re.DOTALL)  # as webdataset splits key and extension
_META = re.compile(r"__[^/]*__($|/)")
_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
_NO_PAYLOAD = b"123456"  # links, devices, folders, pipes: their size says nothing of what follows


class _Fault(Exception):
    """What is wrong with a tar from some place on."""


def scan(path: str) -> Shard:
    """Reads the headers of a tar.

    Raises:
        UserError: it is empty, cut short, damaged, no tar, or without samples.
    """
    shard = Shard(path)
    codes: dict[str, int] = {}
    try:
        for name, offset, size in _headers(path):
            match = _NAME.fullmatch(name)
            if match is None or _META.match(name):
                continue
            key, kind = match[1], match[2].lower()
            if not shard.keys or key != shard.keys[-1]:
                shard.keys.append(key)
                shard.starts.append(len(shard.codes))
            if kind.rpartition(".")[2] in CAN_RUN_CODE:
                continue
            code = codes.setdefault(kind, len(codes))
            if code in shard.codes[shard.starts[-1] :]:
                raise UserError(f"{path} holds {name} twice in a row: write the shard again with one of them")
            shard.codes.append(code)
            shard.offsets.append(offset)
            shard.sizes.append(size)
    except _Fault as fault:
        whole = f"after {_whole(shard):,} whole samples: download or write it again, or leave it out"
        raise UserError(f"{path} {fault} {whole}") from None
    if not shard.keys:
        raise UserError(f"{path} is a tar without samples: it needs members such as KEY.jpg and KEY.txt")
    shard.starts.append(len(shard.codes))
    shard.kinds.extend(codes)
    return shard


def _whole(shard: Shard) -> int:
    """Samples before a fault; the last one counts if it has as many members as the first."""
    if len(shard.keys) < 2:
        return 0
    return len(shard.keys) - (len(shard.codes) - shard.starts[-1] < shard.starts[1])


def _headers(path: str) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of all ordinary files. (tarfile reads a buffer full of every payload as well.)"""
    end = os.path.getsize(path)
    if not end:
        raise UserError(f"{path} is empty (0 bytes): download or write it again")
    file = os.open(path, os.O_RDONLY)
    try:
        start = os.pread(file, 512, 0)
        if len(start) < 512 or (any(start) and _parse(start) is None):
            kind = "compressed" if start.startswith(_PACKED) else "not a tar"
            raise UserError(f"{path} is {kind}: shards must be plain tars, which can be read at any place")
        yield from _walk(file, end)
    finally:
        os.close(file)


def _walk(file: int, end: int) -> Iterator[tuple[str, int, int]]:
    place, extra = 0, {}
    while any(block := os.pread(file, 512, place)) or len(block) < 512:
        if len(block) < 512:
            raise _Fault(f"is cut short: it ends at byte {end:,} without an end mark,")
        header = _parse(block)
        if header is None:
            raise _Fault(f"is damaged: there is no tar header at byte {place:,},")
        name, kind, size = header
        if kind not in b"xgLK":
            name, size, extra = extra.get("path", name), int(extra.get("size", size)), {}
        payload = place + 512
        place = payload + (0 if kind in _NO_PAYLOAD else -(-size // 512) * 512)
        if place > payload and payload + size > end:
            raise _Fault(f"is cut short: it ends at byte {end:,} within a member,")
        if kind == b"L":
            extra["path"] = os.pread(file, size, payload).rstrip(b"\0").decode(errors="backslashreplace")
        elif kind == b"x":
            extra |= _records(os.pread(file, size, payload))
        elif kind in b"07\0" and not name.endswith("/"):
            yield name, payload, size


def _parse(block: bytes) -> tuple[str, bytes, int] | None:
    """Name, kind and size of a 512-byte header, None if its checksum is wrong."""
    try:
        if int(block[148:156].strip(b" \0"), 8) != 256 + sum(block[:148]) + sum(block[156:]):
            return None
        size = block[124:136]
        number = int.from_bytes(size[1:]) if size[0] == 0x80 else int(size.strip(b" \0") or b"0", 8)
    except ValueError:
        return None
    name = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0" and block[345]:
        name = block[345:500].split(b"\0", 1)[0] + b"/" + name
    return name.decode(errors="backslashreplace"), block[156:157], number


def _records(data: bytes) -> dict[str, str]:
    """Path and size from the ``LENGTH key=value`` lines of an extended header."""
    found = {}
    while line := re.match(rb"([0-9]+) ([^=]+)=", data):
        length = max(int(line[1]), line.end())
        value = data[line.end() : length - 1]
        if line[2] == b"path" or (line[2] == b"size" and value.isdigit()):
            found[line[2].decode()] = value.decode(errors="backslashreplace")
        data = data[length:]
    return found

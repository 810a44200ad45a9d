"""Tars by their headers: where samples start and where a sample's members are. Payloads are never read ahead."""

import hashlib
import os
import re
from array import array
from collections.abc import Callable, Container, Iterator
from typing import NamedTuple

from steering.clip.data.images import PICTURES, POINTERS
from steering.clip.data.sources import printable

CAN_RUN_CODE = {"pyd", "pickle", "pkl", "pth", "pt", "npy", "npz"}  # webdataset may unpickle them: left out

HEAD = 4096  # bytes that tell a shard from another of the same name and size
LOOKED_AT = 20  # samples among which there has to be a pair
MOST_HEADER = 1 << 20  # bytes of an extended header that is read; a path takes 4,096
RECORD = 10_240  # bytes that a tar is padded to

Read = Callable[[int, int], bytes]  # offset and size to what stands there, shorter at the end of the file

_META = re.compile(r"__[^/]*__($|/)")
_OCTAL = re.compile(rb"[0-7]+")
_EXTENDED = re.compile(rb"([0-9]{1,19}) ([^=]+)=")
_SIZE = re.compile(rb"[0-9]{1,19}")
_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
_NO_PAYLOAD = b"123456"  # links, devices, folders, pipes: their size says nothing of what follows


class Scan(NamedTuple):
    """What the headers of a tar say."""

    starts: array  # byte of the first header of every whole sample
    end: int  # byte where the last of them ends
    kinds: tuple[str, ...]  # extensions that occur, in lower case, without the first dot
    size: int  # of the tar in bytes
    fault: str = ""  # what is wrong with it, as the rest of a sentence that begins with its name
    paired: bool = False  # one of the first samples has a picture and what may hold a caption


class Member(NamedTuple):
    """An ordinary file in a tar: its first header, its payload and its size, all in bytes."""

    key: str
    kind: str
    start: int
    offset: int
    size: int


class Fault(Exception):
    """What is wrong with a tar from some position on."""

    def __init__(self, what: str, position: int):
        super().__init__(what)
        self.position = position


def head(file: int) -> str:
    """Hash of how an open shard begins; raises OSError."""
    return hashlib.sha256(os.pread(file, HEAD, 0)).hexdigest()[:16]


def paired(kinds: Container[str]) -> bool:
    """Whether a sample with members of these kinds has a picture and what may hold a caption."""
    return ("txt" in kinds or "json" in kinds) and any(kind in kinds for kind in PICTURES)


def scan(file: int) -> Scan:
    """Reads all headers of an open tar, 512 bytes each; a damaged one is told by its ``fault``.

    Raises:
        OSError: it cannot be read at all.
    """
    size = os.fstat(file).st_size
    if fault := _no_tar(os.pread(file, 512, 0)):
        return Scan(array("q"), 0, (), size, fault)
    starts, kinds, fault, end, pair = array("q"), {}, "", 0, False
    key, in_sample, count, first_count = None, set(), 0, 0  # kinds and number of members of a sample, of the first
    try:
        for entry in _walk(lambda offset, count: os.pread(file, count, offset), 0, size, None):
            if isinstance(entry, int):
                end = entry
                if is_header(os.pread(file, RECORD + 512, end).lstrip(b"\0")[:512]):
                    fault = fault or f"goes on behind its end mark at byte {end:,}: join samples, not files of tars"
                break
            if entry.key != key:
                first_count = first_count or count
                starts.append(entry.start)
                key, in_sample, count = entry.key, set(), 0
            if entry.kind in in_sample:
                name = printable(f"{entry.key}.{entry.kind}")
                whole = f"after {len(starts) - 1:,} whole samples: write it again with one of them"
                fault = fault or f"holds {name} twice in a row {whole}"
            if not runs_code(entry.kind):
                in_sample.add(entry.kind)
                kinds[entry.kind] = True
                count += 1
                pair = pair or (len(starts) <= LOOKED_AT and paired(in_sample))
    except Fault as error:
        end = error.position
        # The last sample is whole if it has as many members as the first; a single one might have had more.
        if starts and (len(starts) == 1 or count < first_count):
            end = starts.pop()
        fault = f"{error} after {len(starts):,} whole samples: download or write it again, or leave it out"
    if not starts and not fault and (end or size > RECORD):  # of one without members every row may have failed
        fault = "is a tar without samples: it needs members such as KEY.jpg and KEY.txt"
    return Scan(starts, end, tuple(kinds), size, fault, pair)


def _no_tar(start: bytes) -> str:
    if not start:
        return "is empty (0 bytes): download or write it again"
    if start.startswith(POINTERS):
        return "is a Git LFS pointer, not the tar that it stands for: fetch that with git lfs pull"
    if len(start) == 512 and (not any(start) or _parse(start)):
        return ""
    kind = "compressed" if start.startswith(_PACKED) else "not a tar"
    return f"is {kind}: shards must be plain tars, which can be read at any place"


def members(read: Read, start: int, stop: int) -> Iterator[Member]:
    """The members of the sample that stands between two bytes of a tar; those that could run code are left out.

    Raises:
        Fault: there is something else.
    """
    for entry in _walk(read, start, stop, stop):
        if isinstance(entry, Member) and not runs_code(entry.kind):
            yield entry


def runs_code(kind: str) -> bool:
    return kind.rpartition(".")[2] in CAN_RUN_CODE


def _walk(read: Read, position: int, end: int, stop: int | None) -> Iterator[Member | int]:
    """Members from ``position`` up to ``stop``, or up to the end mark, whose position comes last."""
    extra: dict[str, str] = {}
    start = position
    while stop is None or position < stop:
        block = read(position, 512)
        if len(block) < 512:
            raise Fault(f"is cut short: it ends at byte {end:,} without an end mark,", start)
        if not any(block):
            break
        header = _parse(block)
        if header is None:
            raise Fault(f"is damaged: there is no tar header at byte {position:,},", start)
        name, kind, size = header
        if kind not in b"xgLK":
            name, size, extra = extra.get("path", name), int(extra.get("size", size)), {}
        payload = position + 512
        position = payload + (0 if kind in _NO_PAYLOAD else -(-size // 512) * 512)
        if position > payload and payload + size > end:
            raise Fault(f"is cut short: it ends at byte {end:,} within a member,", start)
        if kind in b"xL" and size > MOST_HEADER:
            raise Fault(f"is damaged: the extended header at byte {payload - 512:,} has {size:,} bytes,", start)
        if kind == b"L":
            extra["path"] = read(payload, size).rstrip(b"\0").decode(errors="backslashreplace")
        elif kind == b"x":
            extra |= _records(read(payload, size))
        if kind in b"xgLK":
            continue  # the next header is about the same member
        if kind in b"07\0" and not _META.match(name) and (parts := _key_and_kind(name)):
            yield Member(*parts, start, payload, size)
        start = position
    yield position


def _key_and_kind(name: str) -> tuple[str, str] | None:
    """Key and extension as webdataset splits them, None if there are none; takes time in proportion to the name."""
    folder, slash, base = name.rpartition("/")
    stem, dot, kind = base.partition(".")
    if not dot or not (stem or (slash and "." not in folder.rpartition("/")[2])):
        return None
    return folder + slash + stem, kind.lower()


def is_header(block: bytes) -> bool:
    """Whether a block of a tar is the header of a member."""
    return len(block) == 512 and any(block) and _parse(block) is not None


def _parse(block: bytes) -> tuple[str, bytes, int] | None:
    """Name, kind and size of a 512-byte header, None if its checksum is wrong."""
    try:
        if _octal(block[148:156]) != 256 + sum(block[:148]) + sum(block[156:]):
            return None
        size = block[124:136]
        number = int.from_bytes(size[1:]) if size[0] == 0x80 else _octal(size)
    except ValueError:
        return None
    name = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0" and block[345]:
        name = block[345:500].split(b"\0", 1)[0] + b"/" + name
    return name.decode(errors="backslashreplace"), block[156:157], number


def _octal(field: bytes) -> int:
    """A number in octal digits, 0 for none; raises ValueError for anything else, a sign too."""
    digits = field.strip(b" \0") or b"0"
    if not _OCTAL.fullmatch(digits):
        raise ValueError
    return int(digits, 8)


def _records(data: bytes) -> dict[str, str]:
    """Path and size from the ``LENGTH key=value`` lines of an extended header."""
    fields, position = {}, 0
    while line := _EXTENDED.match(data, position):
        end = max(position + int(line[1]), line.end())
        value = data[line.end() : end - 1]
        if line[2] == b"path" or (line[2] == b"size" and _SIZE.fullmatch(value)):
            fields[line[2].decode()] = value.decode(errors="backslashreplace")
        position = end
    return fields

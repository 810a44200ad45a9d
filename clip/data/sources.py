"""From what the user types to the shards that it names: paths, brace patterns, globs, URLs and pipes."""

import glob
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from braceexpand import braceexpand

from steering.errors import UserError

Pattern = str | os.PathLike[str]
REMOTE = ("pipe:", "http://", "https://", "s3://", "gs://", "hf://")
MOST = 1_000_000  # shards that braces may stand for

_RANGE = re.compile(r"\{(-?[0-9]{1,19})\.\.(-?[0-9]{1,19})[.}]")


class Named(NamedTuple):
    """A shard as the user names it."""

    url: str  # its path or URL
    folder: str  # the part of the pattern that is a folder without doubt; of remote ones up to the last slash
    part: int  # which of the sources it belongs to, counted from 0
    glob: str | None = None  # the pattern with wildcards that it matches, None if it was named outright


def split(pattern: Pattern | Iterable[Pattern]) -> list[str]:
    """The sources that are joined by ``::`` or listed."""
    patterns = [pattern] if isinstance(pattern, str | os.PathLike) else list(pattern)
    parts = [part.strip() for path in patterns for part in os.fspath(path).split("::")]
    return [part for part in parts if part]


def remote(url: str) -> bool:
    """Whether a shard has to be fetched before it can be read at any place."""
    return url.startswith(REMOTE)


def local(path: str) -> str:
    """A path that stays one: a file of this machine may be named ``pipe:rm.tar``, and is never run."""
    return os.path.join(".", path) if remote(path) else path


def several(names: Sequence[str], most: int = 8) -> str:
    """Names in one line, the first few of many."""
    rest = f" and {len(names) - most:,} others" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def printable(name: str, most: int = 200) -> str:
    """A name from a file, fit for one line of a message."""
    name = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name[:most])
    return f"{name}..." if len(name) >= most else name


def retrieval_set(source: str) -> tuple[str, bool]:
    """The shards of a set to evaluate on, and whether every line of a text is a caption of its own there.

    A folder stands for the tars in it, or else in its ``test/``. Lines are captions where retrieval benchmarks say so:
    by ``dataset_type.txt`` in the folder of the tars or, of ``test/``, in the one above.

    Raises:
        UserError: of several sources some say so.
    """
    patterns, kinds = [], set()
    for part in split(source):
        if os.path.isdir(folder := os.path.expanduser(part)):
            plain = glob.escape(folder)
            part = os.path.join(plain, "*.tar" if glob.glob(f"{plain}/*.tar") else "test/*.tar")
        patterns.append(part)
        shards = [shard.url for shard in expand(part, missing=True)]
        for folder in {Path("/dev/null") if remote(url) else Path(os.path.abspath(url)).parent for url in shards}:
            kinds.add(_says_lines(folder) or (folder.name == "test" and _says_lines(folder.parent)))
    if len(kinds) > 1:
        raise UserError(f"lines are captions in some of {source} and not in others: evaluate on one after the other")
    return "::".join(patterns), kinds == {True}


def _says_lines(folder: Path) -> bool:
    path = folder / "dataset_type.txt"
    return path.is_file() and path.stat().st_size < 100 and path.read_bytes().strip() == b"retrieval"


def expand(pattern: Pattern | Iterable[Pattern], *, missing: bool = False) -> list[Named]:
    """The shards that are named, in the order of the pattern; of a glob sorted, 9 before 10.

    Args:
        pattern: see ``Shards.open``.
        missing: also names files that do not exist, where they are named outright.

    Raises:
        UserError: nothing is named, something twice, or something that does not exist.
    """
    shards = [shard for which, part in enumerate(split(pattern)) for shard in _expand(part, which, missing)]
    if not shards:
        raise UserError("no shards given: name at least one tar")
    files = [shard.url if remote(shard.url) else os.path.realpath(shard.url) for shard in shards]
    file, times = Counter(files).most_common(1)[0]
    if times > 1:
        names = {shard.url for shard, other in zip(shards, files, strict=True) if other == file}
        links = f" (as {' and '.join(sorted(names)[:3])})" if len(names) > 1 else ""
        raise UserError(
            f"{file} is named {times} times{links}, which would contrast its samples with themselves: name it once, "
            "and give it a weight to see it more often"
        )
    return shards


def _expand(part: str, which: int, missing: bool) -> list[Named]:
    if remote(part):
        if "*" in part and not part.startswith("pipe:"):
            raise UserError(f"a glob finds only files on this machine, got {part}: write braces, {{000..099}} say")
        folder = "" if part.startswith("pipe:") else part.partition("{")[0].rpartition("/")[0]
        return [Named(url, folder, which) for url in _braces(part)]
    part = os.path.expanduser(part).replace("\0", "\\0")
    if os.path.isdir(part):
        raise UserError(f"{part} is a folder: name its shards, for example {os.path.join(part, '*.tar')}")
    if os.path.isfile(part):  # also one with braces in its name
        return [Named(part, os.path.dirname(part), which)]
    if "://" in part:
        raise UserError(f"{part} is no file, and shards come from {', '.join(REMOTE)} alone: download it first")
    folder = os.path.dirname(re.split(r"[{*?\[]", part, maxsplit=1)[0])
    names = _braces(part)
    by_name = [_find(name, folder, which, missing and len(names) > 1) for name in names]
    lacking = [name for name, shards in zip(names, by_name, strict=True) if not shards]
    if lacking:
        others = f" (nor {len(lacking) - 1} others of the {len(names)} in {part})" if len(lacking) > 1 else ""
        if os.path.exists(lacking[0]):
            raise UserError(f"{lacking[0]} is no ordinary file: name a tar")
        raise UserError(f"there is no shard {lacking[0]}{others}: correct the name, or download it first")
    return [shard for shards in by_name for shard in shards]


def _braces(part: str) -> list[str]:
    spans = [abs(int(last) - int(first)) + 1 for first, last in _RANGE.findall(part)]
    names: list[str] = []
    try:
        if math.prod(spans) <= MOST:
            names = list(islice(braceexpand(part, escape=False), MOST + 1))
    except (ValueError, RecursionError) as error:
        raise UserError(f"unbalanced braces in {part}: write for example shards/{{000..099}}.tar") from error
    if not 0 < len(names) <= MOST:
        raise UserError(f"{part} stands for more than {MOST:,} shards: name fewer, or use a glob")
    return names


def _find(name: str, folder: str, which: int, missing: bool) -> list[Named]:
    paths = [path for path in glob.glob(name, recursive=True) if os.path.isfile(path)]
    if os.path.isfile(name) or (not paths and missing and not glob.has_magic(name)):
        return [Named(local(name), folder, which)]
    return [Named(local(path), folder, which, name) for path in sorted(paths, key=natural)]


def matches(path: str, pattern: str) -> bool:
    """Whether a glob would find a path if it existed, folder by folder; ``**`` stands for any number of folders."""
    return _matches(os.path.abspath(path).split(os.sep), os.path.abspath(pattern).split(os.sep))


def _matches(names: list[str], patterns: list[str]) -> bool:
    if not names or not patterns:
        return not names and all(pattern == "**" for pattern in patterns)
    if patterns[0] == "**":
        return _matches(names, patterns[1:]) or _matches(names[1:], patterns)
    return fnmatchcase(names[0], patterns[0]) and _matches(names[1:], patterns[1:])


def natural(path: Pattern) -> list:
    """Sorts 9 before 10."""
    parts: list = re.split(r"([0-9]+)", os.fspath(path))
    parts[1::2] = map(int, parts[1::2])
    return parts

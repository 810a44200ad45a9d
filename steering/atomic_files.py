"""Files that are either complete or not there: written under a temporary name, then renamed; and read with care."""

import errno
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from steering.errors import RunError

TORSO = ".incomplete"  # how names end before a file is complete


@contextmanager
def _or_run_error(action: str) -> Iterator[None]:
    """Makes one line of a disk that is full or read-only.

    torch reports a full disk as a RuntimeError, perhaps after an OSError; it does not say what it was, but is a full
    disk as a rule.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        first = error.__context__ if isinstance(error.__context__, OSError) else error
        reason = getattr(first, "strerror", None) or str(first).partition("\n")[0]
        room = not isinstance(first, OSError) or first.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        hint = "Free some space or choose" if room else "Choose"
        raise RunError(f"cannot {action}: {reason}. {hint} another folder with --out") from None


def write(path: Path, content: bytes | str | Callable[[Path], Any]) -> Path:
    """Writes a file atomically.

    Args:
        path: where it shall stand; its folder is made if need be.
        content: bytes, text, or a function that writes to the path it is given.

    Raises:
        RunError: the disk is full or read-only. Then, as when ``content`` raises or this process is killed,
            what stood at ``path`` before still does.
    """
    temporary = None
    with _or_run_error(f"write {path}"):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(TORSO, f".{path.name}.", path.parent)
            os.close(handle)
            temporary = Path(name)
            if callable(content):
                content(temporary)
            else:
                temporary.write_bytes(
                    content.encode(errors="backslashreplace") if isinstance(content, str) else content
                )
            temporary.chmod(0o644)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            if temporary:
                temporary.unlink(missing_ok=True)
    return path


def write_json(path: Path, value: Any) -> Path:
    return write(path, json.dumps(value, indent=1, allow_nan=True) + "\n")


def sweep(folder: Path, *, deep: bool) -> None:
    """Deletes what writers that were killed have left in a folder where nobody else is at work, and below if deep."""
    for path in folder.glob(f"{'**/' * deep}.*{TORSO}"):
        with suppress(OSError):
            path.unlink()


def is_plain(path: Path) -> bool:
    """Whether lines may be added to a file: to nothing elsewhere, and to nothing that never ends."""
    return not path.is_symlink() and (path.is_file() or not path.exists())


def read_text(path: Path, most: int = 64_000_000) -> str:
    """The text of a file, as of ``read_bytes``; what is no text is no JSON or YAML either."""
    return read_bytes(path, most).decode(errors="replace")


def read_bytes(path: Path, most: int = 64_000_000) -> bytes:
    """The contents of a file that anybody may have put there, which never waits and never fills the memory.

    Args:
        path: of a file; what only looks like one (a pipe, a device, a folder) would have no end.
        most: size in bytes from which on it is refused.

    Raises:
        OSError: it cannot be read, or is no such file.
    """
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    if about.st_size > most:
        raise OSError(errno.EFBIG, f"more than {most:,} bytes", str(path))
    return path.read_bytes()


def read_json(path: Path, most: int = 64_000_000) -> Any:
    """The contents of a JSON file.

    Raises:
        OSError: as of ``read_bytes``.
        ValueError: it holds no JSON, or JSON nested too deeply.
    """
    try:
        return json.loads(read_text(path, most))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def make_folder(path: Path) -> Path:
    """Makes a folder and those above it."""
    with _or_run_error(f"make {path}"):
        path.mkdir(parents=True, exist_ok=True)
    return path


def allocate(path: Path, size: int) -> Path:
    """Makes a file of ``size`` zero bytes whose space is taken at once, unless it is there already.

    A file that is mapped into memory and only then finds the disk full would end the process without a word.
    """
    make_folder(path.parent)
    with _or_run_error(f"write {path}"), path.open("ab") as file:
        os.truncate(file.fileno(), size)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
    return path

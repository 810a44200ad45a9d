"""Files that are either whole or not there: written under a temporary name, then renamed."""

import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from steering.errors import RunError


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
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            os.close(handle)
            temporary = Path(name)
            if callable(content):
                content(temporary)
            else:
                temporary.write_bytes(content.encode() if isinstance(content, str) else content)
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

"""Files that are either whole or not there: written under a temporary name, then renamed."""

import errno
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from steering.errors import RunError

_ELSEWHERE = "choose another folder with --out"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError, perhaps after an OSError
        first = error.__context__ if isinstance(error.__context__, OSError) else error
        reason = getattr(first, "strerror", None) or str(first).partition("\n")[0]
        raise RunError(f"cannot write {path}: {reason}. {_hint(first)}") from None
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)
    return path


def _hint(error: BaseException) -> str:
    """What to do; a RuntimeError of torch's writer does not say what it was, but is a full disk as a rule."""
    if isinstance(error, OSError) and error.errno not in _NO_ROOM:
        return _ELSEWHERE.capitalize()
    return f"Free some space or {_ELSEWHERE}"


def make_folder(path: Path) -> Path:
    """Makes a folder and those above it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make {path}: {error.strerror}. {_hint(error)}") from None
    return path


def allocate(path: Path, size: int) -> Path:
    """Makes a file of ``size`` zero bytes whose space is taken at once, unless it is there already.

    A file that is mapped into memory and only then finds the disk full would end the process without a word.
    """
    make_folder(path.parent)
    try:
        with path.open("ab") as file:
            os.truncate(file.fileno(), size)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}. {_hint(error)}") from None
    return path


def write_json(path: Path, value: Any) -> Path:
    return write(path, json.dumps(value, indent=1, allow_nan=True) + "\n")

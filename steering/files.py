"""Files that are either whole or not there: written under a temporary name, then renamed."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from steering.errors import RunError


def write(path: Path, content: bytes | str | Callable[[Path], Any]) -> Path:
    """Writes a file atomically.

    Args:
        path: where it shall stand; its folder is made if need be.
        content: bytes, text, or a function that writes to the path it is given.

    Raises:
        RunError: the disk is full or read-only; what stood at ``path`` before still does.
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
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        if temporary:
            temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise RunError(f"cannot write {path}: {reason}. Free some space or choose another folder with --out") from None
    return path


def make_folder(path: Path) -> Path:
    """Makes a folder and those above it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make {path}: {error.strerror}. Choose another folder with --out") from None
    return path


def write_json(path: Path, value: Any) -> Path:
    return write(path, json.dumps(value, indent=1, allow_nan=True) + "\n")

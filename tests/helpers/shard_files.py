"""Pictures and tars as small as can be, for tests of what reads them."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image
from webdataset.writer import TarWriter


def png(colour: str | tuple[int, int, int] = "red", side: int = 4) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, samples: Iterable[tuple[str, dict[str, Any]]]) -> Path:
    """A tar by webdataset; each sample is a key and its members. With no time of its own a member is one header."""
    with open(path, "wb") as file, TarWriter(file, encoder=False, mtime=0) as tar:
        for key, members in samples:
            tar.write({"__key__": key, **members})
    return path


def pairs(path: Path, keys: Iterable[str]) -> Path:
    return write(path, [(key, {"png": png(), "txt": f"caption of {key}".encode()}) for key in keys])


def write_files(path: Path, names: Iterable[str], form: int = tarfile.PAX_FORMAT) -> Path:
    """A tar by the standard library: a file of its own name for every name."""
    with tarfile.open(path, "w", format=form) as tar:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = len(name.encode())
            tar.addfile(entry, io.BytesIO(name.encode()))
    return path

"""Everything a run needs to go on bit for bit, in one file that loads without running code."""

from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch

from steering import files
from steering.errors import UserError


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes tensors, numbers, strings, lists and dicts of them, atomically."""

    def content(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a path, torch would not tell a full disk from a bug
            torch.save(state, file)

    files.write(path, content)


def load(path: Path) -> dict[str, Any]:
    """Reads a checkpoint, onto the CPU.

    Raises:
        UserError: the file is missing, damaged, or holds anything but plain data.
    """
    try:
        with ZipFile(path) as archive:  # torch itself does not look at the check sums
            damaged = archive.testzip()
        if damaged:
            raise ValueError(f"wrong check sum of {damaged}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"no checkpoint at {path}") from None
    except Exception as error:  # what reading a damaged file raises has no common type
        reason = (str(error) or type(error).__name__).partition("\n")[0][:200]
        raise UserError(f"the checkpoint {path} cannot be read ({reason}); delete it to start that arm anew") from None

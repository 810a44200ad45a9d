"""Everything a run needs to go on bit for bit, in one file that loads without running code."""

from pickle import UnpicklingError
from pathlib import Path
from typing import Any

import torch

from steering import files
from steering.errors import UserError


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes tensors, numbers, strings, lists and dicts of them, atomically."""
    files.write(path, lambda temporary: torch.save(state, temporary))


def load(path: Path) -> dict[str, Any]:
    """Reads a checkpoint, onto the CPU.

    Raises:
        UserError: the file is missing, damaged, or holds anything but plain data.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"no checkpoint at {path}") from None
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise UserError(f"the checkpoint {path} cannot be read ({reason}); delete it to start that arm anew") from None

"""Everything a run needs to go on bit for bit, in one file that loads without running code."""

import os
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self
from zipfile import ZipFile

import torch
from torch import nn
from torch.utils._pytree import tree_map

from steering import atomic_files
from steering.errors import UserError
from steering.task import Task
from steering.training.seeds import untouched

FORMAT = 2  # of Training.state_dict: raised when an older one can no longer be continued; 1 did not say so


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes tensors, numbers, strings, lists and dicts of them, atomically."""

    def content(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a path, torch would not tell a full disk from a bug
            torch.save(state, file)

    atomic_files.write(path, content)


class Saver:
    """Writes checkpoints of one training in the background, one at a time, and keeps the last few.

    What is trained meanwhile does not reach the file: the state is copied first. At whatever moment the process is
    killed, a whole checkpoint stands at ``path``, if one ever did.

    Args:
        path: of the newest one; older ones stand beside it, ``checkpoint-00000400.pt`` after step 400 say.
        keep: how many to keep in all.
    """

    def __init__(self, path: Path, *, keep: int = 1):
        self.path, self.keep = path, keep
        self._began = time.monotonic()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future | None = None
        for torso in path.parent.glob(f".{path.name}.*"):  # of a process that was killed
            torso.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def age(self) -> float:
        """Seconds since the last checkpoint."""
        return time.monotonic() - self._began

    def save(self, state: dict[str, Any]) -> None:
        """Begins to write; raises RunError if the one before could not be written."""
        self.wait()
        self._began = time.monotonic()
        self._writing = self._pool.submit(self._write, tree_map(_copied, state))

    def wait(self) -> None:
        """Returns when the last checkpoint is on disk; raises RunError if it could not be written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, state: dict[str, Any]) -> None:
        older = {int(path.stem[-8:]): path for path in self.path.parent.glob(self._named("[0-9]" * 8))}
        if self.keep > 1 and self.path.exists():
            before = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)["done"]
            older[before] = self.path.with_name(self._named(f"{before:08d}"))
            older[before].unlink(missing_ok=True)
            try:
                os.link(self.path, older[before])  # a second name, which takes no space
            except OSError:
                atomic_files.write(older[before], lambda temporary: shutil.copyfile(self.path, temporary))
        save(self.path, state)
        past = sorted(step for step in older if step < state["done"])  # others are of a training that was begun anew
        for step in older.keys() - past[len(past) - self.keep + 1 if len(past) >= self.keep else 0 :]:
            older[step].unlink(missing_ok=True)

    def _named(self, number: str) -> str:
        return f"{self.path.stem}-{number}{self.path.suffix}"


def _copied(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value


def load(path: Path, *, number: str = "done") -> dict[str, Any]:
    """Reads a checkpoint, onto the CPU.

    Args:
        path: of a file that ``save`` wrote.
        number: name of a whole number that it must hold; empty for a state that is no training's.

    Raises:
        UserError: the file is missing, damaged, or holds anything but plain data.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for, a device read for ever
            raise ValueError("it is no file")
        with ZipFile(path) as archive:  # torch itself does not look at the check sums
            if any(entry.compress_type for entry in archive.infolist()):
                raise ValueError("it is compressed, which no checkpoint is")
            damaged = archive.testzip()
        if damaged:
            raise ValueError(f"wrong check sum of {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or (number and not isinstance(state.get(number), int)):
            raise ValueError("it does not say how many steps were done")
        return state
    except FileNotFoundError:
        raise UserError(f"no checkpoint at {path}") from None
    except Exception as error:  # what reading a damaged file raises has no common type
        reason = (str(error) or type(error).__name__).partition("\n")[0][:200]
        raise UserError(f"the checkpoint {path} cannot be read ({reason}); delete it to start that arm anew") from None


def trained(task: Task, path: Path, device: torch.device | str = "cpu", *, steps: int = 0) -> nn.Module:
    """The model of a checkpoint as it was evaluated: the moving average of its weights where there is one.

    Args:
        task: drawn for that repetition.
        path: of the checkpoint.
        device: where the model shall be.
        steps: that it must have been trained for.

    Raises:
        UserError: the checkpoint is not there, not that far, or of another model.
    """
    state = load(path)
    with untouched():
        model = task.target()
    try:
        done, averaged = state["done"], state["average"]
        inner = "module."
        whole = {n.removeprefix(inner): x for n, x in (averaged or {}).items() if n.startswith(inner)}
        model.load_state_dict(whole or state["model"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # torch's ways to say that shapes differ
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} does not fit the model of {task!r} ({reason}): was the code changed?") from None
    if done < steps:
        raise UserError(f"{path} is not trained to the end ({done} of {steps} steps): steer run --resume the run")
    return model.to(device).eval()

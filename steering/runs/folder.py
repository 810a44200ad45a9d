"""The folder of a run or check: one process at a time, settings compared, parts made once, a clean end on Ctrl-C."""

import os
import re
import shlex
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any, Self, TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel

from steering import atomic_files
from steering.distributed import rank, world_size
from steering.errors import RunError, UserError, explained
from steering.heartbeat import lost
from steering.reports.report import environment
from steering.runs.processes import on_rank_zero

LOCK, HOLDER = ".lock", ".lock-holder"  # the lock of the process that is at work in the folder, and who that is
PATIENCE = 1.0  # seconds in which a process that was killed gives its lock back
Part = TypeVar("Part", bound=BaseModel)


class Stopped(RunError):
    """The user or the system asked for an end; what is finished is on disk.

    Attributes:
        signal: number of the signal that was received.
    """

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal


class Interrupted(BaseException):  # not an Exception, which decoders catch
    """SIGINT or SIGTERM came while nothing was being trained, so nothing is lost by stopping on the spot."""


class Interrupts:
    """Turns SIGINT and SIGTERM into ``Stopped``: after the step while training, else at once; a second one kills.

    Args:
        advice: how to go on, for the message.

    Attributes:
        received: the signal's number, if there was one.
    """

    def __init__(self, advice: str):
        self.advice = advice
        self.received: int | None = None
        self._training = False

    def __enter__(self) -> Self:
        self._handlers = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        unforeseen = isinstance(error, Exception) and not isinstance(error, UserError | RunError)
        if isinstance(error, Interrupted) or (unforeseen and self.received):  # workers and ranks get the signal too
            raise self.stopped() from None

    def __call__(self) -> bool:
        return self.received is not None

    @contextmanager
    def training(self) -> Iterator[None]:
        """While steps are taken a signal is only remembered: whoever trains asks after each of them."""
        self._training = True
        try:
            yield
        finally:
            self._training = False

    def stopped(self, where: str = "stopped") -> Stopped:
        """What to raise for a signal that was received."""
        return Stopped(f"{where}; {self.advice}", self.received or signal.SIGINT)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, signal.SIG_DFL)
        if not self._training:
            raise Interrupted


@dataclass(frozen=True)
class RunFolder:
    """A folder in which this process, or these ranks, are at work and nobody else; ``open`` gives it.

    Attributes:
        path: of the folder.
        interrupts: what has come of Ctrl-C and SIGTERM.
    """

    path: Path
    interrupts: Interrupts

    @classmethod
    @contextmanager
    def open(
        cls,
        path: Path,
        *,
        settings: str | None = None,
        compare: Callable[[Path], str] | None = None,
        command: Sequence[str] | None = None,
        resume: str | None = None,
    ) -> Iterator[Self]:
        """Makes the folder or takes it up again; every rank has to call it.

        Args:
            path: of the folder. What cannot be taken up is left untouched.
            settings: name of the file that holds what the folder was made with. A folder that has other files but
                not this one is refused; None takes any folder.
            compare: gives the text of that file from its path, where an older one may stand. Raises UserError if
                that one is of something else.
            command: what was typed, for environment.json; what was typed first stays there.
            resume: the command that goes on after an interrupt; by default the same with this folder as --out.

        Raises:
            UserError: the folder is another run's, or some process is at work in it.
            RunError: a file in it cannot be read or written.
            Stopped: SIGINT or SIGTERM came.
        """
        lock = FileLock(path / LOCK)
        typed = ["steer", *sys.argv[1:]] if command is None else command
        advice = f"all that is finished is saved. Go on with: {resume or with_folder(typed, path)}"

        def claim() -> None:
            _refuse_foreign(path, settings)
            text = None if settings is None or compare is None else compare(path / settings)
            started = _locked(lock, path)
            atomic_files.sweep(path, deep=settings is not None)
            if settings is not None and text is not None:
                atomic_files.write(path / settings, text)
            if not (path / "environment.json").exists():
                about = {"command": shlex.join(typed), "started": started} | environment()
                atomic_files.write_json(path / "environment.json", about)

        try:
            on_rank_zero(claim)
            with Interrupts(advice) as interrupts:
                yield cls(path, interrupts)
        except (UserError, RunError):
            raise
        except Exception as error:  # of a library, a task, or a mistake of ours
            raise lost(error) or _logged(error, path) from error
        finally:
            if lock.is_locked:
                (path / HOLDER).unlink(missing_ok=True)
            lock.release()

    def part(self, name: str, model: type[Part], make: Callable[[], Part]) -> Part:
        """What the file of a part says, or else what ``make`` gives, which is then written there.

        Args:
            name: of the file, below the folder.
            model: of its contents.
            make: called on every rank, once for as long as the file is there.
        """
        path = self.path / name
        text = on_rank_zero(lambda: atomic_files.read_text(path) if path.exists() else None)
        if text is not None:
            return _parsed(path, text, model)
        value = make()
        if rank() == 0:
            write_part(path, value)
        return value


def read_part(path: Path, model: type[Part]) -> Part | None:
    """What the file of a part says, None where there is no file.

    Raises:
        UserError: the file is damaged.
    """
    return _parsed(path, atomic_files.read_text(path), model) if path.exists() else None


def write_part(path: Path, value: BaseModel) -> None:
    """Writes the file of a part, complete or not at all."""
    atomic_files.write(path, value.model_dump_json(indent=1) + "\n")


def new_folder(name: str) -> Path:
    """The first free ``runs/<name>-001``, ``-002``, ... below the working directory; of a task's path the last word."""
    folders = (Path("runs") / f"{name.rpartition(':')[2]}-{number:03d}" for number in count(1))
    return next(folder for folder in folders if not folder.exists())


def with_folder(typed: Sequence[str], path: Path) -> str:
    """A command that was typed, with the folder that it was given if it named none."""
    named = any(word.partition("=")[0] == "--out" for word in typed)
    return shlex.join([*typed, *([] if named else ["--out", str(path)])])


def _parsed(path: Path, text: str, model: type[Part]) -> Part:
    try:
        return model.model_validate_json(text)
    except ValueError:
        raise UserError(f"{path} is damaged: delete it, and that part is made again") from None


def _locked(lock: FileLock, path: Path) -> str:
    """Makes the folder and takes its lock, beside which it says who has it; the time at which it was taken."""
    atomic_files.make_folder(path)
    if not atomic_files.is_plain(path / LOCK):
        raise UserError(f"{path / LOCK} is no file: delete it, or choose another --out")
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        who = ""
        with suppress(OSError):
            who = f" ({atomic_files.read_text(path / HOLDER, 10_000).strip()})"
        raise UserError(f"another process is at work in {path}{who}: wait for it, or choose another --out") from None
    started = datetime.now(UTC).isoformat(timespec="seconds")
    atomic_files.write(path / HOLDER, f"process {os.getpid()} of {socket.gethostname()} since {started}\n")
    return started


def _logged(error: Exception, path: Path) -> RunError:
    """One line of an error, whose traceback is added to the log of the folder."""
    log, hint = path / ("errors.log" if rank() == 0 else f"errors-{rank()}.log"), ""
    if atomic_files.is_plain(log):
        with suppress(OSError), log.open("a", errors="backslashreplace") as file:
            file.writelines([f"\n{datetime.now(UTC).isoformat()}\n", *traceback.format_exception(error)])
            hint = f" (traceback: {log})"
    failed = RunError(f"{explained(error)}{hint}")
    # That another rank was lost is a RuntimeError in all of them: the second says it too, the first may be that one.
    failed.local = world_size() > 1 and (rank() == 1 or not isinstance(error, RuntimeError))
    return failed


def _refuse_foreign(path: Path, settings: str | None) -> None:
    if settings is None or not path.exists() or (path / settings).exists():
        return
    # A process that was killed, or failed, as it made the folder leaves no more than these.
    first = re.compile(rf"{LOCK}|{HOLDER}|errors.*\.log|.*{atomic_files.TORSO}")
    if not path.is_dir() or not all(first.fullmatch(entry.name) for entry in path.iterdir()):
        raise UserError(f"{path} is no run folder (it has no {settings}) nor empty: choose another --out")

"""Many trainings, each of which is written down as one file, in one process or several."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel

from steering.errors import RunError
from steering.runs.folder import read_part
from steering.runs.progress import Watch

EVERY = 15  # seconds between lines on something that is no terminal
Outcome = TypeVar("Outcome", bound=BaseModel)
Made = TypeVar("Made", bound=BaseModel, covariant=True)


class Unit(Protocol[Made]):
    """What is trained in one go."""

    @property
    def file(self) -> str:
        """Its file below the folder."""
        ...

    def make(self, plan: Any, folder: Path) -> Made:
        """Trains and writes the file, whole or not at all; the same unit gives the same outcome in any process."""
        ...


def make_all(
    plan: Any, units: Sequence[Unit[Outcome]], kind: type[Outcome], folder: Path, *, jobs: int, watch: Watch
) -> list[Outcome]:
    """What every unit came to, in the order given, read back where its file is there already.

    Args:
        plan: what all units are part of.
        units: what is made.
        kind: of the outcomes.
        folder: of the files.
        jobs: number of processes.
        watch: told of every unit.

    Raises:
        Interrupted: SIGINT or SIGTERM came; what was done is on disk.
        RunError: a training failed, or a process died.
    """
    outcomes = {unit.file: outcome for unit in units if (outcome := read_part(folder / unit.file, kind)) is not None}
    watch.finished(len(outcomes))
    missing = [unit for unit in units if unit.file not in outcomes]
    here = ((unit, _named(unit, partial(unit.make, plan, folder))) for unit in missing)
    made = here if min(jobs, len(missing)) <= 1 else _elsewhere(plan, missing, folder, jobs)
    began = printed = time.monotonic()
    for done, (unit, outcome) in enumerate(made, 1):
        outcomes[unit.file] = outcome
        watch.finished(1)
        if watch.console.is_terminal:
            watch.note(str(unit))
        elif time.monotonic() - printed > EVERY:
            printed = time.monotonic()
            left = (printed - began) / done * (watch.total - watch.before)
            watch.print_line(f"{watch.before} of {watch.total} trainings, about {left:.0f} s left")
    return [outcomes[unit.file] for unit in units]


def _elsewhere(
    plan: Any, units: Sequence[Unit[Outcome]], folder: Path, jobs: int
) -> Iterator[tuple[Unit[Outcome], Outcome]]:
    """In fresh processes, which any exception ends at once: files are whole or not there, so nothing is lost."""
    executor = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_begin)
    try:
        futures = {executor.submit(unit.make, plan, folder): unit for unit in units}
        for future in as_completed(futures):
            yield futures[future], _named(futures[future], future.result)
    except BaseException:
        running = list((executor._processes or {}).values())
        executor.shutdown(wait=False, cancel_futures=True)
        for process in running:
            process.terminate()
        for process in running:
            process.join(timeout=10)
        raise
    executor.shutdown()


def _named(unit: Unit[Outcome], result: Callable[[], Outcome]) -> Outcome:
    """The outcome, or which unit it was that failed."""
    try:
        return result()
    except RunError as error:
        raise RunError(f"{unit}: {error}") from None
    except BrokenProcessPool:
        raise RunError(
            f"a process died while it trained {unit} or beside it (out of memory?): what was done is kept; run the "
            "same command again, with a smaller --jobs"
        ) from None


def _begin() -> None:
    """Leaves Ctrl-C to the first process, and ends when that one does, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()

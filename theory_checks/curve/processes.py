"""Many trainings at once: two processes on two cores, one file for each training, so that nothing is done twice."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from steering.errors import RunError
from steering.runs.progress import Watch
from steering.theory_checks.curve.plan import Plan
from steering.theory_checks.curve.units import Outcome, Unit

EVERY = 15  # seconds between lines on something that is no terminal


def make(plan: Plan, units: Sequence[Unit], folder: Path, *, jobs: int, watch: Watch) -> list[Outcome]:
    """What every unit came to, read back where its file is there already.

    Args:
        plan: of which these are units.
        units: in the order in which they are begun.
        folder: of the curve.
        jobs: processes; with 1 everything happens in this one.
        watch: shows how many units are done.

    Raises:
        Interrupted: SIGINT or SIGTERM came; what was done is on disk.
        RunError: a training failed, or a process died.
    """
    outcomes = {unit.file: outcome for unit in units if (outcome := unit.read(folder)) is not None}
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


def _elsewhere(plan: Plan, units: Sequence[Unit], folder: Path, jobs: int) -> Iterator[tuple[Unit, Outcome]]:
    with _processes(jobs) as executor:
        futures = {executor.submit(unit.make, plan, folder): unit for unit in units}
        for future in as_completed(futures):
            yield futures[future], _named(futures[future], future.result)


def _named(unit: Unit, result: Callable[[], Outcome]) -> Outcome:
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


@contextmanager
def _processes(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Fresh processes; on any exception what has not begun is dropped and nothing is waited for."""
    executor = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_begin)
    try:
        yield executor
    except BaseException:
        _kill(executor)
        raise
    executor.shutdown()


def _kill(executor: ProcessPoolExecutor) -> None:
    """Ends the processes at once; half a training is no loss, since files are whole or not there."""
    running = list((executor._processes or {}).values())
    executor.shutdown(wait=False, cancel_futures=True)
    for process in running:
        process.terminate()
    for process in running:
        process.join(timeout=10)


def _begin() -> None:
    """Leaves Ctrl-C to the first process, and ends when that one does, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()

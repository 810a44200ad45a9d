"""Processes that load ahead; whatever befalls one of them is one line that names it."""

import os
import re
import shutil
import signal
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from steering.distributed import SHARED
from steering.errors import RunError, UserError
from steering.heartbeat import ADVICE, VARIABLE, patience, process_state
from steering.task import Batch

POLL = 5.0  # seconds after which workers that have given nothing are looked at
SLOW = 10  # times the patience that workers may take for a batch while they run
_OF_SHARED_MEMORY = "bus error", "sigbus", "shared memory", "no space left", "/torch_"


class Workers:
    """Batches of a plan in the order of their numbers, loaded by processes.

    Args:
        plan: gives a Batch for a number; goes to the processes.
        numbers: of the batches, without end.
        workers: how many processes.
    """

    def __init__(self, plan: Any, numbers: Iterable[int], workers: int):
        self.patience = patience()
        poll = min(POLL, self.patience)
        loader = DataLoader(plan, batch_size=None, sampler=numbers, num_workers=workers, timeout=poll)
        try:
            self._batches = iter(loader)
        except OSError as error:  # their queues are in shared memory
            raise _explanation(f"shared memory: {error.strerror}") from None
        self._began: float | None = None  # when a batch was asked for that has not come yet
        self._stopped: list[str] = []
        threading.Thread(target=_watch, args=(weakref.ref(self), poll / 2), daemon=True).start()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        self._began = time.monotonic()
        try:
            while True:
                batch = self._batch()
                silent = time.monotonic() - self._began
                if self._stopped:
                    names = f"{', '.join(self._stopped)} was stopped for {self.patience:g} s"
                elif batch is not None:
                    return batch
                elif silent > SLOW * self.patience:
                    names = f"{', '.join(self._processes()[:3])} has given no batch for {silent:.0f} s"
                else:
                    continue
                raise _lost(f"loading worker {names} ({VARIABLE}); {ADVICE}")
        finally:
            self._began = None

    def _batch(self) -> Batch | None:
        """The next batch, None if it has not come for a while."""
        try:
            return next(self._batches)
        except (UserError, RunError):
            raise
        except (RuntimeError, OSError, EOFError) as error:
            if "timed out after" in str(error):
                return None
            raise self._death(error) from None

    def _death(self, error: Exception) -> Exception:
        """What became of a process, in one line; the error itself where all are alive."""
        processes, signals, until = getattr(self._batches, "_workers", ()), [], time.monotonic() + 2
        try:
            while not signals and not isinstance(error, RuntimeError) and time.monotonic() < until:
                time.sleep(0.05)  # a pipe breaks before the process is known to have ended
                signals = [process.exitcode for process in processes if process.exitcode]
        except RuntimeError as later:  # torch raises it in the middle of anything, once
            error = later
        if getattr(self._batches, "_worker_pids_set", False):
            signal_handling._remove_worker_pids(id(self._batches))  # type: ignore  # so that it does not do so from here on
            self._batches._worker_pids_set = False  # type: ignore[attr-defined]
        signals = [signal.strsignal(-process.exitcode) or "" for process in processes if (process.exitcode or 0) < 0]
        if not signals and not isinstance(error, RuntimeError):
            return error
        return _explanation(f"{error} {' killed by signal '.join(['', *signals])}")

    def _processes(self) -> list[str]:
        return [f"{n} (pid {process.pid})" for n, process in enumerate(getattr(self._batches, "_workers", ()))]

    def go_on(self) -> None:
        """Continues workers that are stopped while the run has waited for long, which then ends it.

        A batch is taken over from a worker that has to answer, so that nothing but the worker can end the waiting.
        """
        if self._began is None or time.monotonic() - self._began < self.patience:
            return
        for n, process in enumerate(getattr(self._batches, "_workers", ())):
            if process_state(process.pid) in ("T", "t"):
                self._stopped.append(f"{n} (pid {process.pid})")
                os.kill(process.pid, signal.SIGCONT)


def _watch(reference: "weakref.ref[Workers]", poll: float) -> None:
    while (workers := reference()) is not None:
        workers.go_on()
        del workers
        time.sleep(poll)


@contextmanager
def explained() -> Iterator[None]:
    """Says in one line what became of a loading worker; torch may say so at any moment, in the middle of a step."""
    try:
        yield
    except (UserError, RunError):
        raise
    except RuntimeError as error:
        text = " ".join(str(error).split())
        if "DataLoader worker" not in text or "timed out after" in text:
            raise
        raise _explanation(text) from None


def _explanation(text: str) -> RunError:
    pid = re.search(r"pid(?:\(s\))? (\d+)", text)
    name = f"loading worker (pid {pid[1]})" if pid else "a loading worker"
    if any(word in text.lower() for word in _OF_SHARED_MEMORY):
        free = shutil.disk_usage(SHARED).free if SHARED.exists() else 0
        return _lost(
            f"{name} ran out of shared memory, of which {free / 1e9:.2f} GB are free in {SHARED}: give the container "
            f"more (docker run --shm-size), or use options.workers=0; {ADVICE}"
        )
    if "killed by signal" in text or "exited unexpectedly" in text:
        return _lost(f"{name} has gone: it was killed, by the system if memory ran out; {ADVICE}")
    return _lost(f"{name} failed: {text.rpartition('Error: ')[2][:200] or text[-200:]}")


def _lost(message: str) -> RunError:
    error = RunError(" ".join(message.split()))
    error.local = True  # whichever rank it befell has to say so
    return error

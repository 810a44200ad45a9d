"""Processes that load ahead; whatever befalls one of them is one line that names it."""

import os
import re
import shutil
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader

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
        self._batches = iter(loader)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        began = time.monotonic()
        while True:
            try:
                return next(self._batches)
            except (UserError, RunError):
                raise
            except RuntimeError as error:
                if "timed out after" not in str(error):
                    raise _explanation(f"{error} {self._signals()}") from None
            self._check(time.monotonic() - began)

    def _processes(self) -> list[Any]:
        return list(getattr(self._batches, "_workers", ()))

    def _signals(self) -> str:
        """Names of the signals that ended processes, in words such as torch has for them."""
        codes = [process.exitcode or 0 for process in self._processes()]
        return " ".join(str(signal.strsignal(-code)) for code in codes if code < 0)

    def _check(self, silent: float) -> None:
        processes = [(f"{number} (pid {process.pid})", process) for number, process in enumerate(self._processes())]
        stopped = [(name, process) for name, process in processes if process_state(process.pid) in ("T", "t")]
        if silent < self.patience or (not stopped and silent < SLOW * self.patience):
            return
        for _, process in stopped:
            os.kill(process.pid, signal.SIGCONT)  # so that it ends with the others
        names = ", ".join(name for name, _ in stopped or processes[:3])
        what = "is stopped" if stopped else "has given no batch"
        raise _lost(f"loading worker {names} {what} since {silent:.0f} s ({VARIABLE}); {ADVICE}")


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

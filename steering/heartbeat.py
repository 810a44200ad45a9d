"""A process of a run that was killed or stopped is noticed by all others and named, whatever they are waiting for."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

from steering.distributed import rank, world_size
from steering.errors import Elsewhere, RunError, UserError

BEAT = 0.5  # seconds
GRACE = 10.0  # seconds in which a process may find out by itself that another one is gone
VARIABLE = "STEER_PATIENCE"
ADVICE = "what is saved is good: start the same line again to go on"


def patience() -> float:
    """Seconds that a process or a loading worker may be silent for: STEER_PATIENCE, or two minutes.

    Raises:
        UserError: it is no number above 0.
    """
    try:
        seconds = float(os.environ.get(VARIABLE, "120"))
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UserError(f"{VARIABLE} is a number of seconds above 0, got {os.environ[VARIABLE][:40]!r}")
    return seconds


def process_state(pid: int) -> str:
    """One letter, as Linux has it: ``T`` for a stopped process, ``Z`` for one that has ended, nothing without it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "" if Path("/proc/self/stat").exists() else "?"


_hearts: list["Heart"] = []  # of the group of processes that this one is in, if any


@contextmanager
def watched() -> Iterator[None]:
    """Within it a process that goes missing ends the others in one line that names it.

    Raises:
        RunError: a rank has gone; raised where the others were waiting for it.
        Elsewhere: a rank failed, and has said why.
    """
    if world_size() == 1:
        yield
        return
    heart = Heart(patience())
    _hearts.append(heart)
    word = "failed"
    try:
        yield
        word = "left"
    except Exception as error:
        raise lost(error) or error from None
    finally:
        _hearts.remove(heart)
        heart.stop(word)


def lost(error: Exception) -> RunError | None:
    """Why an error of gloo or NCCL came: which rank has gone, or that one failed; None for any other error."""
    if isinstance(error, UserError | RunError) or not isinstance(error, RuntimeError) or not _hearts:
        return None
    return _hearts[-1].reason()


class Heart:
    """Beats in a thread, and listens to the others.

    Args:
        patience: seconds without a beat after which a process counts as gone.
    """

    def __init__(self, patience: float):
        self.patience = patience
        store: Any = distributed_c10d._get_default_store()
        store = distributed_c10d.PrefixStore("heartbeat", getattr(store, "underlying_store", store))
        self.store: Any = store.clone() if hasattr(store, "clone") else store
        here = self._machine()
        self.store.set(f"who{rank()}", f"{os.getpid()} {socket.gethostname()} {here}")
        self.store.set(f"beat{rank()}", "0")
        dist.barrier()
        who = [self.store.get(f"who{r}").decode().split(" ", 2) for r in range(world_size())]
        self.names = [f"rank {r} (pid {pid} on {host})" for r, (pid, host, _) in enumerate(who)]
        self.local = {r: int(pid) for r, (pid, _, machine) in enumerate(who) if machine == here}
        self.others = [r for r in range(world_size()) if r != rank()]
        self.last = {r: ("", time.monotonic()) for r in self.others}  # beat, and when it came
        self.gone: dict[int, str] = {}
        self.since = 0.0  # when the first was gone
        self.handled, self.ended = threading.Event(), threading.Event()
        self.exchanged = time.monotonic()  # when beats were last heard at all
        self.threads = [threading.Thread(target=work, daemon=True) for work in (self._beat, self._watch)]
        for thread in self.threads:
            thread.start()

    @staticmethod
    def _machine() -> str:
        """Where process numbers mean the same."""
        with suppress(OSError):
            return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
        return socket.gethostname()

    def reason(self) -> RunError | None:
        """Why a collective failed: who is gone, or failed; None where all are alive, which takes a while."""
        self.handled.set()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # of a launcher, which sends it before this is said
        began, failed = time.monotonic(), None
        while not self.gone and time.monotonic() - began < GRACE:
            if any(beat == "failed" for beat, _ in self.last.values()):  # of one that has gone, perhaps
                failed = failed or time.monotonic()
                if time.monotonic() - failed > 6 * BEAT:
                    break
            time.sleep(BEAT / 4)
        if self.gone:
            return self._error()
        return Elsewhere("another process of this run failed and says why") if failed else None

    def stop(self, word: str) -> None:
        """Ends the thread and tells the others that this process has gone by itself."""
        self.handled.set()
        self.ended.set()
        for thread in self.threads:
            thread.join(GRACE / 5)
        with suppress(RuntimeError):
            self.store.set(f"beat{rank()}", word)
        if word == "failed" and rank() == 0:
            time.sleep(4 * BEAT)  # the others read it from this process, as a rule

    def _error(self) -> RunError:
        error = RunError(f"{'; '.join(f'{self.names[r]} {why}' for r, why in self.gone.items())}; {ADVICE}")
        error.local = not any(r < rank() for r in self.others if r not in self.gone)  # the first who is left says it
        return error

    def _beat(self) -> None:
        """Beats, and hears the others; waits without end where the process that keeps the beats is stopped."""
        count = 0
        while not self.ended.wait(BEAT):
            count += 1
            with suppress(RuntimeError):  # of a store whose process is gone; then nobody's beat comes
                self.store.set(f"beat{rank()}", str(count))
                beats = self.store.multi_get([f"beat{r}" for r in self.others])
                self.exchanged = time.monotonic()
                for r, beat in zip(self.others, beats, strict=True):
                    if beat.decode() != self.last[r][0]:
                        self.last[r] = beat.decode(), time.monotonic()

    def _watch(self) -> None:
        while not self.ended.wait(BEAT):
            self._judge()
            if self.gone and not self.handled.is_set() and time.monotonic() - self.since > min(GRACE, self.patience):
                error = self._error()
                if error.local:
                    sys.stderr.write(f"steer: {error}\n")
                    sys.stderr.flush()
                os._exit(1)  # the main thread waits for ever in a collective

    def _judge(self) -> None:
        """Who is gone: at once where a process has ended, after a while where it is silent."""
        now = time.monotonic()
        deaf = now - self.exchanged > self.patience  # then the first rank is, which keeps the beats
        for r, (beat, when) in self.last.items():
            if beat in ("left", "failed") or r in self.gone:
                continue
            state = process_state(self.local[r]) if r in self.local else "?"
            if state in ("", "Z", "X") and now - when > 2 * BEAT:  # it may just be leaving
                self.gone[r] = "has gone: it was killed, by the system if memory ran out"
            elif now - when > self.patience and (r == 0 or not deaf):
                why = "is stopped" if state in ("T", "t") else "is silent"
                self.gone[r] = f"{why} since {self.patience:g} s ({VARIABLE}): its machine is lost or it was suspended"
            if r in self.gone and not self.since:
                self.since = now

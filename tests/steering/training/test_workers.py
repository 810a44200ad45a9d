"""A loading worker that is killed, stopped or out of memory ends the run in one line that names it."""

import os
import signal
import time
from functools import partial

import pytest
import torch

from steering import Batch, RunError, UserError
from steering.training import workers
from steering.training.loader import ShuffledLoader
from steering.training.workers import explained

BEFELL = []  # of this process


def fail_in(worker: int, how, ids: torch.Tensor, generator: torch.Generator) -> Batch:
    info = torch.utils.data.get_worker_info()
    if info is not None and info.id == worker and not BEFELL:
        BEFELL.append(how)
        if isinstance(how, Exception):
            raise how
        how() if callable(how) else os.kill(os.getpid(), how)
    return Batch(ids, {})


def befall(how, patience="60") -> str:
    stream = ShuffledLoader(partial(fail_in, 1, how), size=64, batch=4, seed=0, workers=2)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RunError) as caught, explained():
        patch.setenv("STEER_PATIENCE", patience)
        for _ in range(40):
            next(stream)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    assert caught.value.local, "whichever rank it befell has to say it"
    return message


FULL = RuntimeError("unable to write to file </torch_9>: No space left on device (28)")


@pytest.mark.parametrize(
    "how, words",
    [
        (signal.SIGKILL, ["loading worker (pid ", "was killed, by the system if memory ran out"]),
        (FULL, ["ran out of shared memory", "--shm-size", "options.workers=0"]),
        (signal.SIGBUS, ["loading worker (pid ", "ran out of shared memory"]),
        (signal.SIGSEGV, ["loading worker (pid ", "has gone"]),
        (RuntimeError("one\nother"), ["a loading worker failed: "]),
    ],
    ids=str,
)
def test_a_worker_that_has_gone_is_named(how, words):
    message = befall(how)
    assert all(word in message for word in words), message


def test_a_worker_that_is_stopped_is_named_after_the_patience():
    message = befall(signal.SIGSTOP, patience="0.5")
    assert message.startswith("loading worker 1 (pid ") and "was stopped for 0.5 s" in message


def test_workers_that_hang_are_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr(workers, "SLOW", 1)
    message = befall(partial(time.sleep, 3), patience="0.5")
    assert "has given no batch for" in message


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", ""])
def test_a_patience_that_is_no_time_is_refused(monkeypatch, value):
    monkeypatch.setenv("STEER_PATIENCE", value)
    with pytest.raises(UserError, match="STEER_PATIENCE is a number of seconds above 0, got"):
        workers.patience()


def raise_long(ids: torch.Tensor, generator: torch.Generator) -> Batch:
    raise RunError(f"370 of 651 samples cannot be used: {'x' * 5000}")


def test_a_long_message_of_a_worker_begins_with_itself_and_not_with_its_traceback():
    with pytest.raises(RunError, match=r"^370 of 651 samples cannot be used: xxx"):
        next(ShuffledLoader(raise_long, size=64, batch=4, seed=0, workers=1))

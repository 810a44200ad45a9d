"""The progress bar of a run, and a clean end on Ctrl-C or SIGTERM."""

import signal
import sys
import time
from types import FrameType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Watch:
    """Shows one bar for every arm and seed: loss, samples a second, time left of the arm and of the run.

    On something that is no terminal it prints a plain line now and then instead.
    """

    def __init__(self, console: Console, *, total_steps: int):
        self.console = console
        self.total, self.before = total_steps, 0
        self.bars = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=False,
            disable=not console.is_terminal,
        )
        self.whole = self.bars.add_task("whole run", total=total_steps, note="")
        self.current = None
        self._said = time.monotonic()
        self._told: set[str] = set()

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, *_) -> None:
        self.bars.stop()

    def begin(self, name: str, steps: int, done: int) -> None:
        """A new arm: a bar of its own; the one before disappears."""
        if self.current is not None:
            self.bars.remove_task(self.current)
        self.current = self.bars.add_task(name, total=steps, completed=done, note="")
        self.name, self.steps, self.first = name, steps, None

    def step(self, step: int, samples: int, loss: float) -> None:
        if self.first is None:
            self.first = (step, samples, time.monotonic())  # from here on: the first step of all is slow
        steps, seen, since = step - self.first[0], samples - self.first[1], time.monotonic() - self.first[2]
        note = f"loss {loss:.4g}" + (f", {seen / since:,.0f} samples/s" if since > 0.5 else "")
        if self.current is not None:
            self.bars.update(self.current, completed=step, note=note)
        self.bars.update(self.whole, completed=self.before + step, note="")
        if not self.console.is_terminal and time.monotonic() - self._said > 15:
            self._said = time.monotonic()
            left = f", {(self.steps - step) * since / steps:.0f} s left" if steps else ""
            self.say(f"{self.name}: step {step} of {self.steps}, {note}{left}")

    def finished(self, steps: int) -> None:
        """An arm is done, or was done before this process began."""
        self.before += steps
        self.bars.update(self.whole, completed=self.before)

    def note(self, words: str) -> None:
        """What is going on that has no steps; told once on something that is no terminal."""
        self.bars.update(self.whole, note=words)
        if not self.console.is_terminal and words not in self._told:
            self._told.add(words)
            self.say(words)

    def say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False)
        sys.stdout.flush()


class Interrupted(BaseException):  # not an Exception, which decoders catch
    """SIGINT or SIGTERM came while nothing was being trained, so nothing is lost by stopping on the spot."""


class Interrupts:
    """Turns SIGINT and SIGTERM into a clean end: after the step while training, else at once; a second one kills.

    Attributes:
        received: the signal's number, if there was one.
        training: whether there are steps to finish.
    """

    def __init__(self):
        self.received: int | None = None
        self.training = False
        self._old: dict[int, object] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._old[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, signal.SIG_DFL)
        if not self.training:
            raise Interrupted

    def __call__(self) -> bool:
        return self.received is not None

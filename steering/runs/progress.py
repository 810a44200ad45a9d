"""The progress bar of a run."""

import sys
import time
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
        self.run_bar = self.bars.add_task("whole run", total=total_steps, note="")
        self.current = None
        self._printed, self._notes = time.monotonic(), set[str]()

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, *_) -> None:
        self.bars.stop()

    def begin(self, name: str, steps: int) -> None:
        """A new arm: a bar of its own; the one before disappears."""
        if self.current is not None:
            self.bars.remove_task(self.current)
        self.current = self.bars.add_task(name, total=steps, note="")
        self.name, self.steps, self.first = name, steps, None

    def step(self, step: int, samples: int, loss: float) -> None:
        if self.first is None:
            self.first = (step, samples, time.monotonic())  # from here on: the first step of all is slow
        steps, seen, since = step - self.first[0], samples - self.first[1], time.monotonic() - self.first[2]
        note = f"loss {loss:.4g}" + (f", {seen / since:,.0f} samples/s" if since > 0.5 else "")
        if self.current is not None:
            self.bars.update(self.current, completed=step, note=note)
        self.bars.update(self.run_bar, completed=self.before + step, note="")
        if not self.console.is_terminal and time.monotonic() - self._printed > 15:
            self._printed = time.monotonic()
            left = f", {(self.steps - step) * since / steps:.0f} s left" if steps else ""
            self.print_line(f"{self.name}: step {step} of {self.steps}, {note}{left}")

    def finished(self, steps: int) -> None:
        """An arm is done, or was done before this process began."""
        self.before += steps
        self.bars.update(self.run_bar, completed=self.before)

    def note(self, line: str) -> None:
        """What is going on that has no steps; printed once on something that is no terminal."""
        self.bars.update(self.run_bar, note=line)
        if not self.console.is_terminal and line not in self._notes:
            self._notes.add(line)
            self.print_line(line)

    def print_line(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False)
        sys.stdout.flush()

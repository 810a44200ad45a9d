"""What is printed while a run goes on."""

import io
import re
import time

import pytest
from rich.console import Console

from steering.runs.progress import Watch


class Clock:
    """Time that passes when a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def console(terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=80, soft_wrap=not terminal)


def printed(watch: Watch) -> list[str]:
    assert isinstance(watch.console.file, io.StringIO)
    return watch.console.file.getvalue().splitlines()


def test_a_log_gets_a_line_every_fifteen_seconds(clock):
    with Watch(console(), total_steps=200) as watch:
        watch.begin("kl (seed 0)", 100)
        for step in range(1, 101):
            watch.step(step, 8 * step, 0.5)
            clock.now += 1
        watch.finished(100)
    assert len(printed(watch)) == 6


def test_speed_and_time_left_leave_out_the_first_step_and_what_was_done_before(clock):
    """Resumed after step 40; steps 42 to 61 take two seconds each: 8 samples in 2 s, 39 steps left, 78 s."""
    with Watch(console(), total_steps=100) as watch:
        watch.begin("kl (seed 0)", 100)
        watch.step(41, 8 * 41, 0.5)
        clock.now += 2
        for step in range(42, 62):
            watch._printed = clock.now if step < 61 else 0.0
            watch.step(step, 8 * step, 0.25)
            clock.now += 2
    assert printed(watch) == ["kl (seed 0): step 61 of 100, loss 0.25, 4 samples/s, 78 s left"]


def test_nothing_is_divided_by_no_time_at_all(clock):
    with Watch(console(), total_steps=10) as watch:
        watch.begin("kl (seed 0)", 10)
        watch._printed = 0.0
        watch.step(1, 8, 0.5)
    assert printed(watch) == ["kl (seed 0): step 1 of 10, loss 0.5"]


def test_the_bars_of_a_terminal_fit_its_width_and_count_the_whole_run():
    with Watch(console(terminal=True), total_steps=400) as watch:
        for _ in range(2):
            watch.finished(100)  # arms that were done before
        watch.begin("drrho_kl (seed 11)", 100)
        for step in range(1, 51):
            watch.step(step, 160 * step, 0.123456)
        watch.bars.refresh()
        last = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).rstrip("\r") for line in printed(watch)[-2:]]
    assert all(len(line) <= 80 for line in last)
    assert "whole run" in last[0] and "250/400" in last[0]
    assert "drrho_kl (seed 11)" in last[1] and "50/100" in last[1] and "loss 0.1235" in last[1]

"""``steer bound``: the simulations, or the certificates of a run, and their report."""

import shlex
import sys
from pathlib import Path

import torch
from rich.console import Console

from steering.errors import UserError
from steering.reports.report import show, write
from steering.runs.folder import Interrupts, new_folder
from steering.theory_checks.bound import applied
from steering.theory_checks.bound.report import report
from steering.theory_checks.bound.study import QUICK, Extent, study


def run(*, run_folder: Path | None, width: float | None, quick: bool, seed: int, out: Path | None) -> None:
    """Simulates, or certifies the models of a run; the arguments are the options of ``steer bound``.

    Raises:
        UserError: options that do not go together.
        Stopped: SIGINT or SIGTERM came; nothing was written.
    """
    torch.set_num_threads(1)  # of rows this short, threads only cost
    console = Console(soft_wrap=not sys.stdout.isatty())
    if run_folder is None and width is not None:
        raise UserError("--width bounds the differences of a run's losses: give it together with --run")
    command = shlex.join(["steer", *sys.argv[1:]])
    with Interrupts("nothing was written: the same command starts anew"):
        if run_folder is None:
            results = study(QUICK if quick else Extent(), seed, lambda part: _line(console, f"simulating: {part}"))
            made = report(results, command)
        else:
            made = applied.report(applied.certified(run_folder, width), run_folder, command)
    show(made, console, write(made, out or new_folder("bound" if run_folder is None else "bound-run")))


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False)
    sys.stdout.flush()

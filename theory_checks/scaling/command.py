"""``steer scaling``: points from the paper, a file or runs, and the report of their fits."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from steering.errors import UserError
from steering.reports.report import show, write
from steering.runs.folder import new_folder
from steering.theory_checks.scaling import points as paper
from steering.theory_checks.scaling.fit import subset
from steering.theory_checks.scaling.points import Point
from steering.theory_checks.scaling.report import report

UNITS = {"samples": "samples in gradient steps", "cpu": "CPU seconds of training"}


def run(
    runs: Sequence[Path],
    *,
    csv: Path | None,
    subset_name: str | None,
    conditions: Sequence[str],
    baseline: str | None,
    unit: str,
    metric: str | None,
    seed: int,
    out: Path | None,
) -> None:
    """Fits and reports; the arguments are those of ``steer scaling``."""
    if unit not in UNITS:
        raise UserError(f"--compute takes {' or '.join(UNITS)}, got {unit!r}")
    if runs and csv is not None:
        raise UserError("give run folders or --csv FILE, not both")
    published = not runs and csv is None
    if subset_name is not None and (not published or conditions):
        raise UserError(
            f"--subset {subset_name} names points of the paper and stands alone: choose your own, and parts of the "
            f"paper's, by --where"
        )
    points = (
        paper.from_csv(csv) if csv is not None else paper.from_runs(runs, unit, metric) if runs else paper.published()
    )
    first = baseline or points[0].method
    reading = paper.READING_ERROR if published else None
    subsets = [subset(name, chosen, first, reading, seed) for name, chosen in _chosen(points, subset_name, conditions)]
    axis = "forward GFLOPs \u00d7 samples" if published else UNITS[unit] if runs else "compute"
    made = report(subsets, points, first, axis, published, shlex.join(["steer", *sys.argv[1:]]))
    console = Console(soft_wrap=not sys.stdout.isatty())
    show(made, console, write(made, out or new_folder("scaling")))


def _chosen(points: list[Point], name: str | None, conditions: Sequence[str]) -> list[tuple[str, list[Point]]]:
    """Subsets to fit, by name: of the published points both, unless one is asked for."""
    if conditions:
        return [(" and ".join(conditions), paper.where(points, conditions))]
    if name is not None:
        return [(name, paper.named(points, name))]
    if points == paper.published():
        return [(name, paper.named(points, name)) for name in (paper.SIX, paper.ALL)]
    return [("all points", points)]

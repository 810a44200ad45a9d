"""Points from a CSV file or from run folders."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from steering.errors import UserError
from steering.runs.summary import Summary
from steering.theory_checks.scaling.points import FIELDS, Point

REQUIRED = FIELDS[:3]


def from_csv(path: Path) -> list[Point]:
    """Reads the columns method, compute and error, and model, samples and run where there are.

    Raises:
        UserError: no such file, a missing column, or a number that is none or not above zero.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            missing = [name for name in REQUIRED if name not in (rows.fieldnames or [])]
            if missing:
                raise UserError(
                    f"{path} has no column {', '.join(missing)}: its first line must name {', '.join(REQUIRED)} and "
                    f"may name {', '.join(FIELDS[3:])}; it names {', '.join(rows.fieldnames or []) or 'nothing'}"
                )
            points = [_point(path, number, row) for number, row in enumerate(rows, 2)]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no CSV file in UTF-8: {error}") from None
    if not points:
        raise UserError(f"{path} has no points below its first line")
    return points


def _point(path: Path, line: int, row: dict[str, str | None]) -> Point:
    texts = {name: (row.get(name) or "").strip() or None for name in FIELDS}
    if texts["method"] is None:
        raise UserError(f"{path}, line {line}: the method has no name")
    compute, error = (_positive(path, line, name, row[name]) for name in ("compute", "error"))
    samples = _positive(path, line, "samples", texts["samples"]) if texts["samples"] else None
    return Point(texts["method"], compute, error, texts["model"], samples, texts["run"])


def _positive(path: Path, line: int, name: str, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not (0 < value < math.inf):
        raise UserError(f"{path}, line {line}: {name} must be a number above 0 for its logarithm, got {text!r}")
    return value


def from_runs(folders: Sequence[Path], unit: str, metric: str | None) -> list[Point]:
    """The arms of finished runs, one point for every seed.

    Args:
        folders: of runs that differ in size or length.
        unit: of compute: ``samples`` in gradient steps, or ``cpu`` seconds of training.
        metric: which one is the error; the headline if None. A share of which more is better counts as one minus it.

    Raises:
        UserError: no finished run, or a metric that is no error.
    """
    points = []
    for folder in folders:
        summary = _summary(folder)
        for arm, trained in summary.arms.items():
            for result in trained.results if trained.kind == "trained" else []:
                compute = float(result.samples) if unit == "samples" else result.cpu_seconds
                error = _error(folder, summary, metric or summary.headline, result.metrics)
                if not compute > 0 or not error > 0:
                    raise UserError(
                        f"{folder}, {arm}, seed {result.seed}: {unit} {compute:g} and error {error:g} must both be "
                        f"above 0 for their logarithms"
                    )
                points.append(Point(arm, compute, error, None, float(result.samples), f"seed {result.seed}"))
    return points


def _summary(folder: Path) -> Summary:
    path = folder / "summary.json"
    if not path.is_file():
        raise UserError(f"{folder} has no summary.json: give folders of finished runs, or --csv FILE")
    try:
        return Summary.model_validate_json(path.read_text())
    except (ValidationError, UnicodeDecodeError):
        raise UserError(f"{path} is no summary of a run: finish the run again, steer run --resume {folder}") from None


def _error(folder: Path, summary: Summary, name: str, metrics: dict[str, float]) -> float:
    if name not in summary.metrics or name not in metrics:
        raise UserError(f"{folder} has no metric {name!r}; it has {', '.join(summary.metrics)}")
    metric = summary.metrics[name]
    if metric.better == "low":
        return metrics[name]
    if metric.percent:
        return 1 - metrics[name]
    raise UserError(f"{name} of {folder} is better when high and no share, so no error: choose another by --metric")

"""Points of error against compute: the published ones, those of a CSV file or of run folders, and subsets of any."""

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from pydantic import ValidationError

from steering.errors import UserError
from steering.runs.summary import Summary

SIX, ALL = "published-six", "all"
_SUBSETS = {SIX: ("model=ViT-B/32,ViT-B/16", "samples>=6e8"), ALL: ()}
_CONDITION = re.compile(r"\s*(\w+)\s*(<=|>=|=)\s*(.+?)\s*$")


@dataclass(frozen=True)
class Point:
    """One model that was trained and evaluated."""

    method: str  # how it was trained
    compute: float  # in any unit, the same for all points
    error: float  # above zero; a share or percent, the same for all points
    model: str | None = None  # its size, by name
    samples: float | None = None  # seen in training
    run: str | None = None  # repetition it belongs to; points of one run are drawn together by the bootstrap

    @property
    def unit(self) -> str:
        """What the bootstrap draws: the run, or the setting that all methods share."""
        return self.run if self.run is not None else f"{self.model}, {self.samples}, {self.compute:g}"


FIELDS = tuple(field.name for field in fields(Point))

# Forward passes of a pair in billions of operations, as open_clip counts them.
GFLOPS = {"ViT-B/32": 14.78, "ViT-B/16": 41.09, "ViT-L/14": 175.33}
BILLIONS = (0.32, 0.64, 1.28, 2.56)

# ImageNet error in percent after 0.32, 0.64, 1.28 and 2.56 billion samples, read off the scaling figure of Wei et al.
# (2025, DRRho risk minimisation; reference OpenAI ViT-B/32). ViT-L/14 was trained to 1.28 billion only.
_READ = {
    "OpenCLIP": {
        "ViT-B/32": (46.1, 40.0, 36.3, 33.6),
        "ViT-B/16": (41.2, 35.9, 32.5, 30.3),
        "ViT-L/14": (37.9, 32.9, 29.5),
    },
    "DRRho-CLIP": {
        "ViT-B/32": (44.1, 38.6, 35.1, 32.6),
        "ViT-B/16": (39.3, 34.1, 30.7, 28.5),
        "ViT-L/14": (34.9, 30.3, 27.6),
    },
}
READING_ERROR = 0.003  # standard deviation of a point; the readings are good to 0.3 to 0.6 percentage points
PUBLISHED_FITS = {"OpenCLIP": (5.77, 0.116), "DRRho-CLIP": (7.15, 0.127)}  # A and b as printed in the figure


def published() -> list[Point]:
    """The 22 points of the paper's scaling figure: error as a share, compute in billions of operations."""
    return [
        Point(method, GFLOPS[model] * billions * 1e9, error / 100, model, billions * 1e9)
        for method, models in _READ.items()
        for model, errors in models.items()
        for billions, error in zip(BILLIONS, errors, strict=False)
    ]


def named(points: Sequence[Point], name: str) -> list[Point]:
    """A subset of the published points by name.

    ``published-six`` is ViT-B/32 and ViT-B/16 from 0.64 billion samples on: of all common subsets of at least four
    points the one whose fits come closest to both printed ones. The paper does not say which points it fitted.
    """
    if name not in _SUBSETS:
        raise UserError(f"there is no subset {name!r} of the published points; there are {SIX} and {ALL}")
    return where(points, _SUBSETS[name])


def where(points: Sequence[Point], conditions: Sequence[str]) -> list[Point]:
    """The points that meet all conditions: ``model=ViT-B/32,ViT-B/16``, ``samples>=6e8``, ``compute<=1e11``."""
    kept = list(points)
    for condition in conditions:
        match = _CONDITION.match(condition)
        if not match or match[1] not in FIELDS:
            raise UserError(
                f"--where takes COLUMN=VALUE,VALUE or COLUMN>=NUMBER, columns {', '.join(FIELDS)}; got {condition!r}"
            )
        kept = [point for point in kept if _meets(getattr(point, match[1]), match[2], match[3], condition)]
    return kept


def _meets(value: str | float | None, sign: str, operand: str, condition: str) -> bool:
    if sign == "=":
        return any(option == str(value) or _number(option) == value for option in map(str.strip, operand.split(",")))
    bound = _number(operand)
    if math.isnan(bound) or not isinstance(value, float):
        raise UserError(f"--where {condition}: {sign} compares numbers, and this is none")
    return value <= bound if sign == "<=" else value >= bound


def _number(text: str | None) -> float:
    """NaN, which equals nothing, for what is no number."""
    try:
        return float(text or "")
    except ValueError:
        return math.nan


def from_csv(path: Path) -> list[Point]:
    """Reads the columns method, compute and error, and model, samples and run where there are."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            missing = [name for name in FIELDS[:3] if name not in (rows.fieldnames or [])]
            if missing:
                raise UserError(
                    f"{path} has no column {', '.join(missing)}: its first line must name {', '.join(FIELDS[:3])} and "
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
    value = _number(text)
    if not (0 < value < math.inf):
        raise UserError(f"{path}, line {line}: {name} must be a number above 0 for its logarithm, got {text!r}")
    return value


def from_runs(folders: Sequence[Path], unit: str, metric: str | None) -> list[Point]:
    """The arms of finished runs of several sizes or lengths, one point for every seed.

    Args:
        unit: of compute: ``samples`` in gradient steps, or ``cpu`` seconds of training.
        metric: which one is the error; the headline if None. A share of which more is better counts as one minus it.
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
    try:
        return Summary.model_validate_json(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder} has no summary.json: give folders of finished runs, or --csv FILE") from None
    except (ValidationError, UnicodeDecodeError):
        raise UserError(f"{path} is no summary of a run: finish the run again, steer run --resume {folder}") from None


def _error(folder: Path, summary: Summary, name: str, metrics: dict[str, float]) -> float:
    if name not in summary.metrics or name not in metrics:
        raise UserError(f"{folder} has no metric {name!r}; it has {', '.join(summary.metrics)}")
    metric = summary.metrics[name]
    if metric.better == "high" and not metric.percent:
        raise UserError(f"{name} of {folder} is better when high and no share, so no error: choose another by --metric")
    return metrics[name] if metric.better == "low" else 1 - metrics[name]

"""What every study contributes to the report, and how its numbers are written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from steering.reports.figures import Plot
from steering.reports.grid import MINUS, MISSING, PLUS_MINUS, Cell, Column, Grid
from steering.runs.statistics import LEVEL, Interval, Verdict, holm, interval, paired_difference

Results = Sequence[dict[str, Any]]  # of a study, one dict of plain data for each repetition
NONE = Cell(MISSING, "quiet")
CANDIDATES = (
    "A row's candidates are how many the validation split chose between; the test split saw the chosen one alone."
)


@dataclass(frozen=True)
class Section:
    """One study's share of a report; the other fields are a report's.

    Attributes:
        changes: what the search over beta changed, by a word for where: points of error fewer than at beta = 1.
    """

    verdict: str = ""
    changes: dict[str, Interval] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    cautions: list[str] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    method: list[str] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)


def grid(title: str, columns: str, rows: Sequence[Sequence[Cell | str]], results: Results, note: str) -> Grid:
    """A table of means over repetitions.

    Args:
        title: a few words.
        columns: headings with ``|`` between them; the first one names the rows.
        rows: their cells.
        results: of all repetitions.
        note: what else there is to say below the table.
    """
    heads = [Column(name, number=index > 0 or name == "beta") for index, name in enumerate(columns.split("|"))]
    cells = tuple(tuple(Cell(cell) if isinstance(cell, str) else cell for cell in row) for row in rows)
    means = f"Means of {len(results)} repetitions with 95 % t intervals; differences are in points and paired."
    shown = means if len(results) > 1 else "One repetition, hence no intervals."
    return Grid(title, tuple(heads), cells, f"{shown} {note}")


def sizes(results: Results) -> str:
    training, validation, test = results[0]["sizes"]
    return (
        f"{training} samples to learn from, {validation} to choose on, {test} to test on, drawn anew each repetition."
    )


def missed(results: Results) -> list[str]:
    """What could not be replaced, once."""
    return [f"not replaced, {site['name'] or 'the model'}: {site['what']}" for site in results[0]["missed"]][:8]


def percent(values: Sequence[float]) -> str:
    """Shares, in per cent, with the half width of their interval."""
    return spread([100 * value for value in values], 1)


def spread(values: Sequence[float] | Interval, digits: int) -> str:
    """The mean with the half width of its interval, if there is one."""
    estimate = values if isinstance(values, Interval) else interval(list(values))
    half = "" if estimate.half is None else f" {PLUS_MINUS} {estimate.half:.{digits}f}"
    mean = round(estimate.mean, digits) + 0.0  # which has no minus at zero
    return f"{mean:.{digits}f}{half}".replace("-", MINUS)


def signed(change: Interval) -> str:
    return ("+" if round(change.mean, 1) > 0 else "") + spread(change, 1)


def fewer(values: Sequence[float], baseline: Sequence[float]) -> Interval:
    """How many points of error less than the baseline, paired by seed."""
    return paired_difference([100 * v for v in values], [100 * v for v in baseline], "low")


def gain(change: Interval | None) -> Cell:
    """A paired difference with a sign, coloured by what its interval decides."""
    if change is None:
        return NONE
    return Cell("0.0", "quiet") if change.low is None and change.mean == 0 else Cell(signed(change), change.verdict)


def answer(changes: Mapping[str, Interval]) -> str:
    """What the search over beta changed anywhere, in one sentence: decided is what still is after Holm."""
    labels = {"better": "fewer errors", "worse": "more errors", "undecided": "no decided difference"}
    verdicts, parts = _decided(changes), []
    for verdict, label in labels.items():
        listed = [f"{where} ({signed(change)})" for where, change in changes.items() if verdicts[where] == verdict]
        parts += [f"{label} for {', '.join(listed)}"] if listed else []
    corrected = f"; corrected by Holm for {len(changes)} comparisons" if len(changes) > 1 else ""
    return f"Choosing beta on a validation split made {'; '.join(parts)} (points of test error saved{corrected})."


def _decided(changes: Mapping[str, Interval]) -> dict[str, Verdict]:
    """What is decided of each; one without a p value was looked at too, and counts."""
    adjusted = holm([1.0 if change.p is None else change.p for change in changes.values()])
    return {
        where: change.verdict if p < 1 - LEVEL else "undecided"
        for (where, change), p in zip(changes.items(), adjusted, strict=True)
    }


def chosen(values: Sequence[float]) -> str:
    """What the repetitions chose; once if it is the same in all, and from least to greatest if there are many."""
    values = values if len(set(values)) > 1 else values[:1]
    return ", ".join(f"{v:g}" for v in values) if len(values) <= 6 else f"{min(values):g} to {max(values):g}"

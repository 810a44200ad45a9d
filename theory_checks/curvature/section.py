"""What every study contributes to the report: how its numbers are written, and what is drawn over beta."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from steering.reports.figures import BASE, DASHES, PALETTE, figure, key, plot, styled
from steering.reports.grid import MINUS, MISSING, PLUS_MINUS, Cell, Grid
from steering.reports.report import Plot
from steering.runs.statistics import LEVEL, Interval, holm, interval, paired_difference

Results = Sequence[dict[str, Any]]  # of a study, one dict of plain data for each repetition
NONE = Cell(MISSING, "quiet")
CANDIDATES = (
    "A row's candidates are how many the validation split chose between; the test split saw the chosen one alone."
)
LINES: list[tuple[Any, Any]] = [(PALETTE[0], "-"), (PALETTE[1], DASHES[1]), (BASE, "-")]  # colour and dashes
Panel = tuple[str, Sequence[float], Sequence[Any]]  # title, values of beta, curves ``[repetitions, betas]``


@dataclass(frozen=True)
class Section:
    """One study's share of a report; the other fields are a report's."""

    verdict: str = ""
    changes: dict[str, Interval] = field(default_factory=dict)  # points of error that the search saved, by where
    findings: list[str] = field(default_factory=list)
    cautions: list[str] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    method: list[str] = field(default_factory=list)


def grid(title: str, columns: str, rows: Sequence[Sequence[Cell | str]], results: Results, note: str) -> Grid:
    """A table of means over repetitions; ``columns`` are headings with ``|`` between, the first names the rows."""
    heads = columns.split("|")
    texts = int(heads[0] != "beta")  # which is a number
    means = f"Means of {len(results)} repetitions with 95 % t intervals; differences are in points and paired."
    shown = means if len(results) > 1 else "One repetition, hence no intervals."
    return Grid.of(title, heads[:texts], heads[texts:], rows, f"{shown} {note}")


def sizes(results: Results) -> str:
    parts = "{} samples to learn from, {} to choose on, {} to test on, drawn anew each repetition."
    return parts.format(*results[0]["sizes"])


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
    return f"{estimate.mean:z.{digits}f}{half}".replace("-", MINUS)


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
    # One without a p value was looked at too, and counts.
    adjusted = holm([1.0 if change.p is None else change.p for change in changes.values()])
    listed: dict[str, list[str]] = {verdict: [] for verdict in labels}
    for (where, change), p in zip(changes.items(), adjusted, strict=True):
        listed[change.verdict if p < 1 - LEVEL else "undecided"].append(f"{where} ({signed(change)})")
    parts = [f"{labels[verdict]} for {', '.join(changed)}" for verdict, changed in listed.items() if changed]
    corrected = f"; corrected by Holm for {len(changes)} comparisons" if len(changes) > 1 else ""
    return f"Choosing beta on a validation split made {'; '.join(parts)} (points of test error saved{corrected})."


def chosen(values: Sequence[float]) -> str:
    """What the repetitions chose; once if it is the same in all, and from least to greatest if there are many."""
    values = values if len(set(values)) > 1 else values[:1]
    return ", ".join(f"{v:g}" for v in values) if len(values) <= 6 else f"{min(values):g} to {max(values):g}"


@styled
def over_beta(
    name: str, title: str, caption: str, panels: Sequence[Panel], ylabel: str, labels: Sequence[str] = ()
) -> Plot:
    """Panels side by side: a thin line is a repetition, a thick one the mean of all."""
    drawing, (row,) = figure(height=3.1, columns=len(panels), sharey=True)
    for axes, (heading, betas, curves) in zip(row, panels, strict=True):
        axes.axhline(0, color=BASE, linewidth=1)
        for values, (color, dashes) in zip(curves, LINES, strict=False):
            axes.plot(betas, np.transpose(values), color=color, linewidth=0.8, alpha=0.4)
            axes.plot(betas, np.mean(values, 0), color=color, linestyle=dashes, linewidth=2.3)
        axes.margins(x=0.02)
        axes.set_xlabel("beta (1 is ReLU)")
        axes.set_xticks(np.linspace(min(betas), 1, 3 if min(betas) < 1 else 1))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        axes.set_title(heading, fontsize=11, loc="left")
    row[0].set_ylabel(ylabel)
    keys = [key(label, color, linestyle=dashes) for label, (color, dashes) in zip(labels, LINES, strict=False)]
    return plot(drawing, keys, name, title, caption)


def search_plot(
    name: str, title: str, label: str, curves: Mapping[str, list[dict]], unit: str = "error (points)"
) -> Plot:
    """What searches saw, less what they saw at ReLU: one panel for each, with the choices of all repetitions."""
    panels = []
    for heading, choices in curves.items():
        seen = (100 if "points" in unit else 1) * np.array([choice["validation"] for choice in choices])
        panels.append((heading, choices[0]["betas"], [seen - seen[:, :1]]))  # the first beta is 1
    caption = (
        f"{label}, less its value at beta = 1 (ReLU), which is the zero line; below it a search finds something. A "
        "thin line is a repetition, the thick one their mean. The lowest point of a thin line is what that repetition "
        "chose; it is lower than its test value will be, because it was looked for."
    )
    return over_beta(name, title, caption, panels, unit)

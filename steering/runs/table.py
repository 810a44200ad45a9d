"""The tables of a run."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from steering.reports.grid import MINUS, MISSING, PLUS_MINUS, Cell, Column, Grid, Tone
from steering.runs.statistics import Interval, interval
from steering.runs.summary import ArmSummary, Result, Summary
from steering.settings import Metric


@dataclass(frozen=True)
class Format:
    """How the numbers of one metric are written, alike in every row."""

    factor: float
    places: int

    @classmethod
    def of(cls, metric: Metric, values: Iterable[float]) -> "Format":
        """One decimal for shares times 100; otherwise three significant digits of the largest value."""
        if metric.percent:
            return cls(100.0, 1)
        largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
        return cls(1.0, min(max(2 - math.floor(math.log10(largest)), 0), 6) if largest else 2)

    def finer(self) -> "Format":
        """One decimal more, for differences."""
        return Format(self.factor, self.places + 1)

    def number(self, value: float, sign: bool = False) -> str:
        if not math.isfinite(value):
            return str(value)
        return format(value * self.factor, f"{'+' if sign else ''}z,.{self.places}f").replace("-", MINUS)

    def interval(self, values: Interval) -> str:
        """Mean and half width, or the mean alone where there is no interval."""
        mean = self.number(values.mean)
        return mean if values.half is None else f"{mean} {PLUS_MINUS} {self.number(values.half)}"


def tables(summary: Summary) -> list[Grid]:
    """What is shown of every run: the arms, then what can be said of their differences."""
    return [grid for grid in (arms_table(summary), differences_table(summary)) if grid]


def metric_format(summary: Summary, name: str) -> Format:
    """The format of one metric, from all its values in the run."""
    values = [v for arm in summary.arms.values() for v in arm.by_seed(name).values()]
    return Format.of(summary.metrics[name], values)


def unit(label: str, metric: Metric) -> str:
    """A heading that says when the numbers are percent."""
    return f"{label}, %" if metric.percent else label


# --------------------------------------------------------------------------------------------------- arms


def arms_table(summary: Summary) -> Grid:
    """Final metrics, data and time of every arm; chance in the last row."""
    chance = any(metric.chance is not None for metric in summary.metrics.values())
    names = [Cell(name) for name in summary.arms] + [Cell("chance", "quiet")] * chance
    columns = [(Column("arm", number=False), names)]
    columns += [_metric_column(summary, name) for name in summary.metrics]
    columns += _fact_columns(summary)
    rows = zip(*(cells for _, cells in columns), strict=False)
    seeds = summary.seeds
    return Grid(
        title=f"Arms, mean of {seeds} seeds" if seeds > 1 else "Arms, one seed",
        columns=tuple(column for column, _ in columns),
        rows=tuple(rows),
        note=f"{PLUS_MINUS} is half the 95 % t interval over seeds. Best mean in bold."
        if seeds > 1
        else "Best in bold. One seed gives no interval: another seed may order the arms differently.",
    )


def _metric_column(summary: Summary, name: str) -> tuple[Column, list[Cell]]:
    """Every arm's mean, the best one marked, and the chance level in a last cell."""
    metric, style = summary.metrics[name], metric_format(summary, name)
    found = [arm.interval(name) for arm in summary.arms.values()]
    shown = [x.mean for x in found if x and math.isfinite(x.mean)]
    best = style.number((max if metric.better == "high" else min)(shown)) if len(shown) > 1 else None
    cells = []
    for values in found:
        # Equal as printed is equal: a reader could not see which of two same numbers deserves the mark.
        tone: Tone = "best" if values and style.number(values.mean) == best else ""
        cells.append(Cell(style.interval(values), tone) if values else Cell(MISSING, "quiet"))
    chance = MISSING if metric.chance is None else style.number(metric.chance)
    return Column(unit(metric.label, metric)), [*cells, Cell(chance, "quiet")]


def _fact_columns(summary: Summary) -> list[tuple[Column, list[Cell]]]:
    """What an arm was trained on and what that cost; samples scored only where that differs."""
    results = [r for arm in summary.arms.values() for r in arm.results]
    columns = [_plain_column(summary, "samples trained on", lambda r: r.samples)]
    if any(r.candidates > r.samples for r in results):
        columns.append(_plain_column(summary, "samples scored", lambda r: r.candidates))
    for fact in dict.fromkeys(fact for r in results for fact in r.facts):
        share = is_share(r.facts[fact] for r in results if fact in r.facts)
        heading = f"{fact} samples, %" if share else fact
        style = Format(100.0, 1) if share else None
        columns.append(_plain_column(summary, heading, lambda r, fact=fact: r.facts.get(fact), style))
    columns.append(_plain_column(summary, "CPU seconds", lambda r: r.cpu_seconds))
    if len({len(arm.results) for arm in summary.arms.values()}) > 1:
        columns.append((Column("seeds"), [*(Cell(str(len(a.results))) for a in summary.arms.values()), Cell("")]))
    return columns


def is_share(values: Iterable[float]) -> bool:
    """Whether means of a fact are shares of the samples rather than some other quantity."""
    return all(0 <= value <= 1 for value in values)


def _plain_column(
    summary: Summary, heading: str, read: Callable[[Result], float | None], style: Format | None = None
) -> tuple[Column, list[Cell]]:
    """The mean over seeds of something only trained arms have."""
    means = [_mean(arm, read) if arm.kind == "trained" else None for arm in summary.arms.values()]
    shown = [mean for mean in means if mean is not None]
    style = style or (Format(1.0, 0) if heading.startswith("samples") else Format.of(Metric(label=heading), shown))
    cells = [Cell(MISSING, "quiet") if mean is None else Cell(style.number(mean)) for mean in means]
    return Column(heading), [*cells, Cell("")]


def _mean(arm: ArmSummary, read: Callable[[Result], float | None]) -> float | None:
    values = [value for value in map(read, arm.results) if value is not None]
    return interval(values).mean if values else None


# -------------------------------------------------------------------------------------------- differences


def pairs(summary: Summary) -> list[tuple[str, str]]:
    """What is compared: every trained arm with the baseline, every steered one with all that are not steered.

    The reference belongs to the second kind: using it as it is would be cheaper than steering with it.
    """
    arms = summary.arms
    trained = [name for name, arm in arms.items() if arm.kind == "trained"]
    first = [(name, summary.baseline) for name in trained if name != summary.baseline and summary.baseline in arms]
    steered = [name for name in trained if arms[name].steered]
    plain = [name for name, arm in arms.items() if not arm.steered and name != summary.baseline]
    return first + [(name, other) for other in plain for name in steered if name != summary.baseline]


def differences_table(summary: Summary) -> Grid | None:
    """Paired differences of the headline metric with a verdict; None where no pair shares two seeds."""
    metric = summary.metrics[summary.headline]
    style = metric_format(summary, summary.headline).finer()
    rows = []
    for arm, other in pairs(summary):
        gain = summary.gain(arm, other)
        if gain and gain.seeds > 1:
            words = (Cell(arm), Cell(other), Cell(gain.verdict, gain.verdict))
            change = style.number(gain.mean, sign=True)
            rows.append((*words, Cell(change), Cell(span(gain, style)), Cell(str(gain.seeds))))
    if not rows:
        return None
    points = ", points" if metric.percent else ""
    return Grid(
        title=f"Differences in {metric.label}",
        columns=(
            Column("arm", number=False),
            Column("against", number=False),
            Column("verdict", number=False),
            Column(f"gain{points}"),
            Column("95 % interval"),
            Column("seeds"),
        ),
        rows=tuple(rows),
        note="Gains are paired by seed and positive where the arm is better; undecided where the interval "
        f"covers zero. {_count(len(rows), 'interval')} of 95 %, not corrected for their number.",
    )


def span(gain: Interval, style: Format) -> str:
    """The ends of an interval in words that need no brackets."""
    if gain.low is None or gain.high is None:
        return "none"
    return f"{style.number(gain.low, sign=True)} to {style.number(gain.high, sign=True)}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


# ----------------------------------------------------------------------------------------------- settings


def settings_table(summary: Summary) -> Grid:
    """What each arm is, and what its weights looked like in training, which is no evidence of success."""
    arms = summary.arms.values()
    columns: list[tuple[Column, Sequence[Cell]]] = [
        (Column("arm", number=False), [Cell(name) for name in summary.arms]),
        (Column("rule", number=False), [_word(arm.rule) for arm in arms]),
        (Column("selector", number=False), [_word(arm.selector) for arm in arms]),
        (Column("uses the reference", number=False), [_uses(arm) for arm in arms]),
    ]
    numbers: list[tuple[str, Callable[[Result], float | None], Format]] = [
        ("effective samples, %", lambda r: r.effective, Format(100.0, 1)),
        ("variance ratio", lambda r: r.variance_ratio, Format(1.0, 2)),
    ]
    columns.append((Column("reference scale"), [_scale(arm) for arm in arms]))
    if any(arm.distill for arm in arms):
        weights = [f"{arm.distill:g}" if arm.distill else None for arm in arms]
        columns.append((Column("distillation"), [_word(weight) for weight in weights]))
    for heading, read, style in numbers:
        column, cells = _plain_column(summary, heading, read, style)
        if any(cell.text not in ("", MISSING) for cell in cells):
            columns.append((column, cells))
    ratio = any(column.name == "variance ratio" for column, _ in columns)
    return Grid(
        title="What the arms are",
        columns=tuple(column for column, _ in columns),
        rows=tuple(zip(*(cells for _, cells in columns), strict=False)),
        note="Variance ratio: Var(loss - scale x reference loss) / Var(loss) in training batches. Below one "
        "the reference explains part of the loss; that alone does not mean that steering helps."
        if ratio
        else "",
    )


def _word(text: str | None) -> Cell:
    return Cell(text) if text else Cell(MISSING, "quiet")


def _scale(arm: ArmSummary) -> Cell:
    """The last scale, where it had any effect."""
    mean = _mean(arm, lambda r: r.scale) if arm.subtracts else None
    return Cell(MISSING, "quiet") if mean is None else Cell(Format(1.0, 2).number(mean))


def _uses(arm: ArmSummary) -> Cell:
    if arm.kind == "reference":
        return Cell(MISSING, "quiet")
    return Cell("yes") if arm.steered else Cell("no")

"""The tables of a run."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from steering.reports.grid import MISSING, PLUS_MINUS, Cell, Column, Grid, number
from steering.runs.statistics import Interval, interval
from steering.runs.summary import ArmSummary, Result, Summary
from steering.settings import Metric

NOTHING = Cell(MISSING, "quiet")
TableColumn = tuple[Column, list[Cell]]


@dataclass(frozen=True)
class Format:
    """How the numbers of one metric are written, alike in every row."""

    factor: float
    decimals: int

    @classmethod
    def of(cls, metric: Metric | None, values: Iterable[float]) -> "Format":
        """One decimal for shares times 100; otherwise three significant digits of the largest value."""
        if metric and metric.percent:
            return cls(100.0, 1)
        largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
        return cls(1.0, min(max(2 - math.floor(math.log10(largest)), 0), 6) if largest else 2)

    def finer(self) -> "Format":
        """One decimal more, for differences."""
        return Format(self.factor, self.decimals + 1)

    def number(self, value: float, sign: bool = False) -> str:
        return number(value * self.factor, self.decimals, sign)

    def interval(self, values: Interval, sign: bool = False) -> str:
        """Mean and half width, or the mean alone where there is no interval."""
        mean = self.number(values.mean, sign)
        return mean if values.half is None else f"{mean} {PLUS_MINUS} {self.number(values.half)}"

    def ends(self, gain: Interval) -> str:
        """The ends of the interval of a difference, without brackets."""
        if gain.low is None or gain.high is None:
            return "none"
        return f"{self.number(gain.low, sign=True)} to {self.number(gain.high, sign=True)}"


def metric_format(summary: Summary, name: str) -> Format:
    """The format of one metric, from all its values in the run."""
    values = [v for arm in summary.arms.values() for v in arm.by_seed(name).values()]
    return Format.of(summary.metrics[name], values)


def unit(label: str, metric: Metric) -> str:
    """A heading that says when the numbers are percent."""
    return f"{label}, %" if metric.percent else label


def arms_table(summary: Summary) -> Grid:
    """Final metrics, data and time of every arm; chance in the last row."""
    chance = any(metric.chance is not None for metric in summary.metrics.values())
    title = f"Arms, mean of {summary.seeds} seeds"
    note = f"{PLUS_MINUS} is half the 95 % t interval over seeds. Best mean in bold."
    if summary.seeds < 2:
        title, note = (
            "Arms, one seed",
            "Best in bold. One seed gives no interval: another seed may order the arms differently.",
        )
    names = Column("arm", number=False), [*map(Cell, summary.arms), *[Cell("chance", "quiet")] * chance]
    metrics = [_metric_column(summary, name) for name in summary.metrics]
    return _of_columns(title, [names, *metrics, *_fact_columns(summary)], note)


def _metric_column(summary: Summary, name: str) -> TableColumn:
    """Every arm's mean, the best one marked, and the chance level in a last cell."""
    metric, style = summary.metrics[name], metric_format(summary, name)
    intervals = [arm.interval(name) for arm in summary.arms.values()]
    means = [x.mean for x in intervals if x and math.isfinite(x.mean)]
    best = style.number((max if metric.better == "high" else min)(means)) if len(means) > 1 else None
    # Equal as printed is equal: a reader could not see which of two same numbers deserves the mark.
    cells = [
        Cell(style.interval(x), "best" if style.number(x.mean) == best else "") if x else NOTHING for x in intervals
    ]
    chance = MISSING if metric.chance is None else style.number(metric.chance)
    return Column(unit(metric.label, metric)), [*cells, Cell(chance, "quiet")]


def _fact_columns(summary: Summary) -> list[TableColumn]:
    """What an arm was trained on and what that cost; samples scored only where that differs."""
    results = [r for arm in summary.arms.values() for r in arm.results]
    made = [_plain_column(summary, "samples trained on", lambda r: r.samples, Format(1.0, 0))]
    if any(r.candidates > r.samples for r in results):
        made.append(_plain_column(summary, "samples scored", lambda r: r.candidates, Format(1.0, 0)))
    for fact in dict.fromkeys(fact for r in results for fact in r.facts):
        share = is_share(r.facts[fact] for r in results if fact in r.facts)
        heading, style = (f"{fact} samples, %", Format(100.0, 1)) if share else (fact, None)
        made.append(_plain_column(summary, heading, lambda r, fact=fact: r.facts.get(fact), style))
    made.append(_plain_column(summary, "CPU seconds", lambda r: r.cpu_seconds))
    if len({len(arm.results) for arm in summary.arms.values()}) > 1:
        made.append((Column("seeds"), [*(Cell(str(len(a.results))) for a in summary.arms.values()), Cell("")]))
    return made


def is_share(values: Iterable[float]) -> bool:
    """Whether means of a fact are shares of the samples rather than some other quantity."""
    return all(0 <= value <= 1 for value in values)


def _plain_column(
    summary: Summary, heading: str, read: Callable[[Result], float | None], style: Format | None = None
) -> TableColumn:
    """The mean over seeds of something only trained arms have."""
    means = [_mean(arm, read) if arm.kind == "trained" else None for arm in summary.arms.values()]
    style = style or Format.of(None, [mean for mean in means if mean is not None])
    column = [NOTHING if mean is None else Cell(style.number(mean)) for mean in means]
    return Column(heading), [*column, Cell("")]


def _mean(arm: ArmSummary, read: Callable[[Result], float | None]) -> float | None:
    values = [value for value in map(read, arm.results) if value is not None]
    return interval(values).mean if values else None


def _of_columns(title: str, made: list[TableColumn], note: str = "") -> Grid:
    """A table by its columns; those that have no cell for the last row shorten it."""
    rows = zip(*(column for _, column in made), strict=False)
    return Grid(title, tuple(heading for heading, _ in made), tuple(rows), note)


def pairs(summary: Summary) -> list[tuple[str, str]]:
    """What is compared: every trained arm with the baseline, every steered one with all that are not steered.

    The reference belongs to the second kind: using it as it is would be cheaper than steering with it.
    """
    arms = summary.arms
    trained = [name for name, arm in arms.items() if arm.kind == "trained" and name != summary.baseline]
    first = [(name, summary.baseline) for name in trained if summary.baseline in arms]
    plain = [name for name, arm in arms.items() if not arm.steered and name != summary.baseline]
    return first + [(name, other) for other in plain for name in trained if arms[name].steered]


def differences_table(summary: Summary) -> Grid | None:
    """Paired differences of the headline metric with a verdict; None where no pair shares two seeds."""
    metric = summary.metrics[summary.headline]
    style = metric_format(summary, summary.headline).finer()
    rows = []
    for arm, other in pairs(summary):
        gain = summary.gain(arm, other)
        if gain and gain.seeds > 1:
            numbers = [style.number(gain.mean, sign=True), style.ends(gain), str(gain.seeds)]
            rows.append([arm, other, Cell(gain.verdict, gain.verdict), *numbers])
    if not rows:
        return None
    note = (
        "Gains are paired by seed and positive where the arm is better; undecided where the interval covers "
        f"zero. {len(rows)} interval{'' if len(rows) == 1 else 's'} of 95 %, not corrected for their number."
    )
    numbers = ["gain, points" if metric.percent else "gain", "95 % interval", "seeds"]
    return Grid.of(f"Differences in {metric.label}", ["arm", "against", "verdict"], numbers, rows, note)


def settings_table(summary: Summary) -> Grid:
    """What each arm is, and what its weights looked like in training, which is no evidence of success."""
    arms = summary.arms

    def texts(heading: str, read: Callable[[str], str | None], is_number: bool = False) -> TableColumn:
        return Column(heading, is_number), [Cell(text) if (text := read(name)) else NOTHING for name in arms]

    def scale(name: str) -> str | None:
        """The last, where it matters."""
        mean = _mean(arms[name], lambda r: r.scale) if arms[name].subtracts else None
        return None if mean is None else number(mean)

    def uses(name: str) -> str | None:
        return None if arms[name].kind == "reference" else "yes" if arms[name].steered else "no"

    made = [texts("arm", str), texts("rule", lambda name: arms[name].rule)]
    made += [texts("selector", lambda name: arms[name].selector), texts("uses the reference", uses)]
    made.append(texts("reference scale", scale, True))
    if any(arm.distill for arm in arms.values()):
        made.append(texts("distillation", lambda name: f"{arms[name].distill:g}" if arms[name].distill else None, True))
    results = [r for arm in arms.values() for r in arm.results]
    ratio = any(r.variance_ratio is not None for r in results)
    if any(r.effective is not None for r in results):
        made.append(_plain_column(summary, "effective samples, %", lambda r: r.effective, Format(100.0, 1)))
    if ratio:
        made.append(_plain_column(summary, "variance ratio", lambda r: r.variance_ratio, Format(1.0, 2)))
    note = (
        "Variance ratio: Var(loss - scale x reference loss) / Var(loss) in training batches. Below one "
        "the reference explains part of the loss; that alone does not mean that steering helps."
    )
    return _of_columns("What the arms are", made, note if ratio else "")

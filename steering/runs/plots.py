"""The plots of a run, as PNG bytes: only those for which the run has data."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, PercentFormatter

from steering.reports.figures import BASE, INK, appearance, figure, key, name_rows, plot, styled
from steering.reports.report import Plot
from steering.runs.statistics import interval
from steering.runs.summary import Summary
from steering.runs.table import is_share, metric_format, unit

BINS = 40  # points of a diagnostic curve, so that the noise of single batches does not hide it

PANELS = {
    "effective": (
        "effective sample\nsize of the weights",
        "How few samples carry the weight: 100 % is equal weights, 10 % as if a tenth of them counted.",
    ),
    "gated": ("gated rows", "Gated are rows whose weights average less than a half."),
    "scale": ("scale of the\nreference loss", "Below, how much of the reference loss is subtracted."),
    "temperature": ("temperature", "Last, the temperature, where an arm learns or finds one."),
}

Curves = dict[str, tuple[np.ndarray, np.ndarray]]  # by arm: positions [k] on the x axis, values [seeds, k]


def draw(summary: Summary, records: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """Draws every plot the run has data for.

    Args:
        summary: final numbers of the run.
        records: lines of metrics.jsonl.
    """
    plots = [_final(summary), _learning(summary, records), _concentration(summary, records)]
    facts = dict.fromkeys(fact for record in records for fact in record.get("facts") or {})
    return [made for made in (*plots, *(_fact(summary, records, fact) for fact in facts)) if made]


@styled
def _final(summary: Summary) -> Plot | None:
    """Final headline metric of every trained arm, seeds as dots."""
    name = summary.headline
    metric = summary.metrics[name]
    values = {arm: list(s.by_seed(name).values()) for arm, s in summary.arms.items() if s.kind == "trained"}
    values = {arm: numbers for arm, numbers in values.items() if numbers and np.isfinite(numbers).all()}
    if not values:
        return None
    factor = metric_format(summary, name).factor
    made, ((axes,),) = figure(height=0.9 + 0.42 * len(values))
    for row, (arm, numbers) in enumerate(values.items()):
        _dots(axes, row, [factor * value for value in numbers], _appearances(summary)[arm]["color"])
    handles, seeds = [], "One seed, hence no interval."
    if summary.seeds > 1:
        seeds = "A pale dot is a seed, the full one their mean, the bar its 95 % t interval."
        handles = [
            key("mean and 95 % interval", linewidth=2.6, marker="o", markersize=7, markeredgewidth=0),
            key("seed", linestyle="", marker="o", markersize=4.5, markeredgewidth=0, alpha=0.5),
        ]
    name_rows(axes, list(values))
    handles += _reference_lines(axes, summary, vertical=True)
    axes.set_xlabel(_label(summary))
    caption = f"{metric.label[:1].upper()}{metric.label[1:]} at the end of training. {seeds}"
    return plot(made, handles, "final", f"Final {metric.label}", caption)


@styled
def _learning(summary: Summary, records: Sequence[Mapping[str, Any]]) -> Plot | None:
    """Headline metric against samples trained on; needs evaluations during training."""
    name = summary.headline
    curves = _curves(summary, records, "samples", lambda r: (r.get("evaluation") or {}).get(name))
    if max((len(x) for x, _ in curves.values()), default=0) < 2:
        return None
    made, ((axes,),) = figure(height=3.9)
    handles = _lines(axes, summary, curves, factor=metric_format(summary, name).factor)
    handles += _reference_lines(axes, summary, vertical=False)
    axes.set(xlabel="samples trained on", ylabel=_label(summary))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    label = summary.metrics[name].label
    caption = (
        f"{label[:1].upper()}{label[1:]} on held-out data while training.{_band(summary)} "
        "Samples that were scored but not chosen are not counted."
    )
    return plot(made, handles, "learning", "Learning curves", caption)


@styled
def _concentration(summary: Summary, records: Sequence[Mapping[str, Any]]) -> Plot | None:
    """Effective sample size, gated rows, reference scale and temperature over steps, one below the other."""
    curves = {name: _curves(summary, records, "step", lambda r, name=name: r.get(name)) for name in PANELS}
    curves["scale"] = {arm: curve for arm, curve in curves["scale"].items() if summary.arms[arm].subtracts}
    for name in ("gated", "temperature"):  # worth a panel only if they move
        if not any(np.ptp(values) > 0 for _, values in curves[name].values()):
            curves[name] = {}
    panels = [name for name, by_arm in curves.items() if by_arm]
    if not panels:
        return None
    made, rows = figure(height=0.8 + 2.1 * len(panels), rows=len(panels), sharex=True)
    handles: dict[str, Line2D] = {}
    for (axes,), name in zip(rows, panels, strict=True):
        handles |= {str(line.get_label()): line for line in _lines(axes, summary, _binned(curves[name]))}
        axes.set_ylabel(PANELS[name][0])
        axes.set_ylim(0, 1.04 if name in ("effective", "gated") else None)
        if name in ("effective", "gated"):
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    rows[-1][0].set_xlabel("step")
    caption = " ".join(PANELS[name][1] for name in panels) + _band(summary)
    ordered = [handles[arm] for arm in summary.arms if arm in handles]
    return plot(made, ordered, "concentration", "Concentration of the weights", caption)


@styled
def _fact(summary: Summary, records: Sequence[Mapping[str, Any]], fact: str) -> Plot | None:
    """Mean of one fact over all samples trained on so far; the records hold it running and weighted."""
    curves = _binned(_curves(summary, records, "step", lambda r: (r.get("facts") or {}).get(fact)))
    if not curves:
        return None
    made, ((axes,),) = figure(height=3.3)
    handles = _lines(axes, summary, curves)
    ylabel, title, among = f"{fact} so far", f"Mean {fact}", "of"
    if is_share(y for _, values in curves.values() for y in values.flat):
        ylabel, title, among = f"{fact} samples so far", f"Share of {fact} samples", "among"
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    axes.set(xlabel="step", ylabel=ylabel)
    caption = f"{title} {among} all samples trained on so far, weighted as they were trained on.{_band(summary)}"
    return plot(made, handles, "fact-" + re.sub(r"\W+", "-", fact)[:60], title, caption)


def _curves(
    summary: Summary,
    records: Iterable[Mapping[str, Any]],
    position: str,
    read: Callable[[Mapping[str, Any]], float | None],
) -> Curves:
    """Collects one number of the records at the positions where every seed of an arm has it.

    Fewer seeds towards the end would bend the mean. A line written twice (a resumed run) counts once.
    """
    arms: dict[str, dict[int, dict[int, float]]] = {}
    for record in records:
        value = read(record)
        if value is not None and math.isfinite(value) and record["arm"] in summary.arms:
            seeds = arms.setdefault(record["arm"], {})
            seeds.setdefault(record["seed"], {})[record[position]] = value
    curves = {}
    for arm, seeds in arms.items():
        x = sorted(set.intersection(*map(set, seeds.values())))
        if x:
            curves[arm] = np.array(x), np.array([[curve[at] for at in x] for curve in seeds.values()])
    return curves


def _binned(curves: Curves) -> Curves:
    """Averages neighbouring positions where there are more than BINS."""

    def averaged(values: np.ndarray) -> np.ndarray:
        parts = np.array_split(values, min(BINS, values.shape[-1]), axis=-1)
        return np.stack([part.mean(-1) for part in parts], -1)

    return {arm: (averaged(x), averaged(values)) for arm, (x, values) in curves.items()}


def _appearances(summary: Summary) -> dict[str, dict[str, Any]]:
    """Colour and dash of every trained arm, the same in all plots.

    The baseline is dark grey, so that what is new stands out against what is known.
    """
    others = [arm for arm, s in summary.arms.items() if s.kind == "trained" and arm != summary.baseline]
    styles = {arm: appearance(index) for index, arm in enumerate(others)}
    return {
        arm: styles.get(arm) or {"color": BASE, "linestyle": "-"}
        for arm, s in summary.arms.items()
        if s.kind == "trained"
    }


def _lines(axes: Axes, summary: Summary, curves: Curves, factor: float = 1.0) -> list[Line2D]:
    """One line an arm, the mean of its seeds, over a band from the lowest seed to the highest."""
    handles = []
    for arm, style in _appearances(summary).items():
        if arm not in curves:
            continue
        x, values = curves[arm][0], factor * curves[arm][1]
        handles += axes.plot(x, values.mean(0), label=arm, zorder=3, marker="o" if len(x) <= 2 else "", **style)
        if len(values) > 1:
            band = values.min(0), values.max(0)
            axes.fill_between(x, *band, color=style["color"], alpha=0.13, linewidth=0, zorder=2)
    axes.margins(x=0.01)
    return handles


def _dots(axes: Axes, row: int, values: list[float], color: Any) -> None:
    """The seeds of one arm, their mean and its interval, in one row."""
    over_seeds = interval(values)
    if len(values) > 1:
        spread = row + 0.24 + 0.04 * np.resize([-1, 1], len(values))
        axes.scatter(values, spread, s=16, color=color, alpha=0.4, linewidths=0, zorder=3)
    if over_seeds.low is not None and over_seeds.high is not None:
        axes.hlines(row, over_seeds.low, over_seeds.high, color=color, linewidth=2.6, zorder=4)
    axes.scatter([over_seeds.mean], [row], s=52, color=color, edgecolors="white", linewidths=0.9, zorder=5)


def _reference_lines(axes: Axes, summary: Summary, *, vertical: bool) -> list[Line2D]:
    """Lines for the reference and, beside final values, chance.

    One too far off would squeeze what is compared; it is only named, with the direction in which it lies.
    """
    name = summary.headline
    style = metric_format(summary, name)
    references = [s.interval(name) for s in summary.arms.values() if s.kind == "reference"]
    levels = [("reference", x.mean, (0, (4, 2))) for x in references if x and math.isfinite(x.mean)]
    chance = summary.metrics[name].chance
    levels += [("chance", chance, (0, (1, 1.5)))] if vertical and chance is not None else []
    low, high = axes.get_xlim() if vertical else axes.get_ylim()
    handles = []
    for noun, level, dash in levels:
        position = level * style.factor
        label = f"{noun} {style.number(level)}"
        if low - 0.5 * (high - low) <= position <= high + 0.5 * (high - low):
            line = (axes.axvline if vertical else axes.axhline)(position, zorder=2.5)
            line.set(color=INK, linewidth=1.2, linestyle=dash, label=label)
        else:
            marker = ("<" if vertical else "v") if position < low else (">" if vertical else "^")
            line = key(f"{label} (off the axis)", INK, linestyle="", marker=marker)
        handles.append(line)
    return handles


def _label(summary: Summary) -> str:
    metric = summary.metrics[summary.headline]
    return unit(metric.label, metric) + (" (lower is better)" if metric.better == "low" else "")


def _band(summary: Summary) -> str:
    return " Mean of the seeds; the band spans all of them." if summary.seeds > 1 else " One seed."

"""The plots of a curve."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from steering.reports.figures import BASE, DASHES, GREY, INK, PALETTE, figure, key, logarithmic, plot, styled
from steering.reports.report import Plot
from steering.theory_checks.curve.analysis import Analysis
from steering.theory_checks.curve.plan import REFERENCE

COLOURS = {"better": PALETTE[2], "undecided": GREY, "worse": PALETTE[5]}
INDICES = {"dro": 0, "drrho_cvar": 1, "filter": 2, "distill": 3, "joined": 4}  # of styles, the same in every report


def draw(analysis: Analysis) -> list[Plot]:
    """Every plot there are numbers for."""
    plots = [_errors(analysis), _gains(analysis)] if len(analysis.plan.sizes) > 1 else []
    return [*plots, *([_budget(analysis)] if len(_path(analysis, analysis.plan.baseline)[0]) > 1 else [])]


@styled
def _errors(analysis: Analysis) -> Plot:
    """Error against samples, the methods in two panels that share plain training and the steered one."""
    plan = analysis.plan
    shared = [plan.baseline, plan.steered]
    others = [n for n, m in plan.methods.items() if m.data != "train" or m.shuffled or m.arm.distill]
    weighting = [name for name in analysis.names if name not in others]

    def panel(axes: Axes, index: int) -> list[Line2D]:
        names = [*shared, *(name for name in others if name not in shared)] if index else weighting
        axes.set_title("other uses" if index else "weighting the loss", fontsize=11, color=INK, loc="left")
        _size_axis(axes, plan.sizes)
        axes.set_xlabel("training samples n")
        return [_curve(axes, analysis, name) for name in names]

    caption = (
        f"Test error after {plan.recipe.steps} steps against the number of training samples, both logarithmic. Mean of "
        f"{plan.seeds} seeds; bands are 95 % t intervals."
    )
    return _two_panels(analysis, 4.1, panel, "errors", "Error against samples", caption)


@styled
def _budget(analysis: Analysis) -> Plot:
    """Error while training at the largest size, against samples seen and against passes."""
    plan = analysis.plan
    size = plan.sizes[-1]
    names = [name for name in analysis.names if name != "shuffled"]

    def panel(axes: Axes, index: int) -> list[Line2D]:
        axes.set_xlabel("passes (forward 1, backward 2)" if index else "samples trained on")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1000:g}k" if value else "0"))
        paths = ((name, _path(analysis, name)) for name in names)
        return [axes.plot(x[1 + index], x[0], label=name, **_style(analysis, name))[0] for name, x in paths]

    caption = (
        f"Test error, mean of {plan.seeds} seeds. Left: against samples of gradient steps, where scoring and the "
        "reference look free: nothing can be claimed from it alone. Right: all passes but the reference training."
    )
    return _two_panels(analysis, 3.9, panel, "budget", f"Error against what it takes, n = {size}", caption)


def _two_panels(
    analysis: Analysis, height: float, panel: Callable[[Axes, int], list[Line2D]], name: str, title: str, caption: str
) -> Plot:
    """Two panels of curves that share a logarithmic axis of errors, with the reference's error in both."""
    plan = analysis.plan
    made, [panels] = figure(height, columns=2, sharey=True)
    level = plan.factor * float(np.mean(analysis.errors(REFERENCE, 0)))
    handles: dict[str, Line2D] = {}
    for index, axes in enumerate(panels):
        handles = {str(line.get_label()): line for line in panel(axes, index)} | handles
        line = axes.axhline(level, color=INK, linewidth=1.2, linestyle=(0, (4, 2)), zorder=2.5)
        handles[REFERENCE] = line
        line.set_label(f"reference {level:.1f}")
    logarithmic(panels[0], "y", at=[m * 10.0**e for e in range(-2, 3) for m in (1, 2, 3, 5, 7)])
    panels[0].set_ylabel(plan.heading)
    ordered = [handles[name] for name in [*analysis.names, REFERENCE] if name in handles]
    return plot(made, ordered, name, title, caption)


@styled
def _gains(analysis: Analysis) -> Plot:
    """Paired gains of the steered method over each other, one panel each."""
    plan = analysis.plan
    others = [*(name for name in analysis.names if name != plan.steered), REFERENCE]
    others.sort(key=lambda name: (name != plan.baseline, name != REFERENCE, name == "shuffled"))
    rows = -(-len(others) // 4)
    made, panels = figure(0.8 + 2.0 * rows, rows=rows, columns=4, sharex=True)
    for index, axes in enumerate(axes for row in panels for axes in row):
        if index >= len(others):
            axes.set_visible(False)
            continue
        _gain_panel(axes, analysis, others[index])
        axes.tick_params(labelbottom=index + 4 >= len(others), labelsize=9)
    made.supxlabel("training samples n", fontsize=11, color=INK)
    made.supylabel("error points gained", fontsize=11, color=INK)
    handles = [key(verdict, colour, marker="o", linewidth=2.2, markersize=5) for verdict, colour in COLOURS.items()]
    caption = (
        f"Test error of the other method less that of {plan.steered}, seed by seed: above the line it is better. Bars "
        "are 95 % t intervals of one size, colours what is decided after Holm's correction over the sizes."
    )
    return plot(made, handles, "gains", f"What {plan.steered} gains", caption)


def _style(analysis: Analysis, name: str) -> dict[str, Any]:
    """Colour and dash of a method, the same in all plots; what is only there to compare with is grey."""
    if name == analysis.plan.baseline:
        return {"color": BASE, "linestyle": "-", "zorder": 4}
    if name == "shuffled":
        return {"color": "#aaaaaa", "linestyle": DASHES[2], "zorder": 2}
    if name == analysis.plan.steered:
        return {"color": PALETTE[0], "linestyle": "-", "zorder": 5}
    others = [other for other in analysis.names if other not in INDICES]
    index = INDICES[name] if name in INDICES else len(INDICES) + others.index(name)
    return {"color": PALETTE[1 + index % 6], "linestyle": DASHES[1 + index % 3], "zorder": 3}


def _curve(axes: Axes, analysis: Analysis, name: str) -> Line2D:
    sizes, factor, style = analysis.plan.sizes, analysis.plan.factor, _style(analysis, name)
    intervals = [analysis.interval(name, size) for size in sizes]
    means = [factor * one.mean for one in intervals]
    (line,) = axes.plot(sizes, means, label=name, marker="o", markersize=3.5, **style)
    if all(one.low is not None and one.high is not None for one in intervals):
        low = [max(factor * (one.low or 0), 0.3 * mean) for one, mean in zip(intervals, means, strict=True)]
        high = [factor * (one.high or 0) for one in intervals]
        axes.fill_between(sizes, low, high, color=style["color"], alpha=0.12, linewidth=0, zorder=1)
    return line


def _gain_panel(axes: Axes, analysis: Analysis, other: str) -> None:
    gains, factor = analysis.gains(analysis.plan.steered, other), analysis.plan.factor
    axes.axhline(0, color=INK, linewidth=1)
    means = [factor * gain.interval.mean for gain in gains]
    axes.plot([gain.size for gain in gains], means, color="#cccccc", linewidth=1, zorder=2)
    dot: dict[str, Any] = {"s": 24, "edgecolors": "white", "linewidths": 0.6, "zorder": 4}
    for gain, mean in zip(gains, means, strict=True):
        colour, ends = COLOURS[gain.verdict], gain.interval
        if ends.low is not None and ends.high is not None:
            axes.vlines(gain.size, factor * ends.low, factor * ends.high, color=colour, linewidth=2.2)
        axes.scatter([gain.size], [mean], color=[colour], **dot)
    _size_axis(axes, analysis.plan.sizes)
    axes.set_title(f"over {other}", fontsize=10, color=INK, loc="left")


def _path(analysis: Analysis, name: str) -> tuple[np.ndarray, list[int], np.ndarray]:
    """Mean error, samples and passes at every evaluation on the largest size."""
    plan = analysis.plan
    paths = [analysis.outcomes[name, plan.sizes[-1], seed].path for seed in plan.seed_numbers()]
    errors = plan.factor * np.mean([[point.error for point in path] for path in paths], 0)
    samples = [point.cost.trained for point in paths[0]]
    return errors, samples, np.mean([[point.cost.passes for point in path] for path in paths], 0)


def _size_axis(axes: Axes, sizes: Sequence[int]) -> None:
    """Logarithmic, with the sizes themselves as marks: every other one where they would touch."""
    logarithmic(axes, "x", at=list(sizes)[::-1][:: max(1, -(-len(sizes) // 4))])

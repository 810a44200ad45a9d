"""The figures of a curve."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from steering.reports.figures import BASE, GREY, INK, PALETTE, STYLE, Plot, figure, legend, png
from steering.theory_checks.curve.analysis import Analysis
from steering.theory_checks.curve.plan import REFERENCE

COLOURS = {"better": PALETTE[2], "worse": PALETTE[5], "undecided": GREY}
PLACES = {"dro": 0, "drrho_cvar": 1, "filter": 2, "distill": 3, "joined": 4}  # the same in every report
DASHES = ["-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (6, 1.5, 1.5, 1.5))]


def draw(found: Analysis) -> list[Plot]:
    """Every figure there are numbers for."""
    many = len(found.plan.sizes) > 1
    plots = [_errors(found), _gains(found)] if many else []
    return [*plots, *([_budget(found)] if len(_path(found, found.plan.baseline)[0]) > 1 else [])]


def _errors(found: Analysis) -> Plot:
    """Error against samples, the methods in two panels that share plain training and the steered one."""
    plan = found.plan
    with mpl.rc_context(STYLE):
        made, [panels] = figure(4.1, columns=2, sharey=True)
        handles: dict[str, Line2D] = {}
        for axes, names, title in zip(panels, _halves(found), ("weighting the loss", "other uses"), strict=True):
            for name in names:
                handles.setdefault(name, _curve(axes, found, name))
            handles.setdefault(REFERENCE, _level(axes, found))
            axes.set_title(title, fontsize=11, color=INK, loc="left")
            _log_axis(axes, plan.sizes)
            axes.set_xlabel("training samples n")
        panels[0].set_yscale("log")
        _percent_axis(panels[0])
        panels[0].set_ylabel(plan.label + plan.unit)
        legend(made, list(handles.values()))
        image = png(made)
    caption = (
        f"Test error against the number of training samples, both logarithmic, after {plan.recipe.steps} steps at "
        f"every size. Mean of {plan.seeds} seeds; bands are 95 % t intervals. Left: ways to weight the training "
        "samples. Right: other uses of the same reference or of its data."
    )
    return Plot("errors", "Error against samples", caption, image)


def _gains(found: Analysis) -> Plot:
    """Paired gains of the steered method over each other, one panel each."""
    plan = found.plan
    others = [*(name for name in found.names if name != plan.steered), REFERENCE]
    others.sort(key=lambda name: (name != plan.baseline, name != REFERENCE, name == "shuffled"))
    rows = -(-len(others) // 4)
    with mpl.rc_context(STYLE):
        made, panels = figure(0.8 + 2.0 * rows, rows=rows, columns=4, sharex=True)
        flat = [axes for row in panels for axes in row]
        for axes, other in zip(flat, others, strict=False):
            _gain_panel(axes, found, other)
        for axes in flat[len(others) :]:
            axes.set_visible(False)
        for place, axes in enumerate(flat[: len(others)]):
            axes.tick_params(labelbottom=place + 4 >= len(others), labelsize=9)
        made.supxlabel("training samples n", fontsize=11, color=INK)
        made.supylabel("error points gained", fontsize=11, color=INK)
        legend(made, [_dot(words, COLOURS[words]) for words in ("better", "undecided", "worse")])
        image = png(made)
    caption = (
        f"Test error of the other method less that of {plan.steered}, in points, seed by seed; bars are 95 % t "
        f"intervals over {plan.seeds} seeds of that size alone, colours what is decided after Holm's correction over "
        f"the sizes. "
        f"Above the line {plan.steered} is better. Every panel has its own scale."
    )
    return Plot("gains", f"What {plan.steered} gains", caption, image)


def _budget(found: Analysis) -> Plot:
    """Error while training at the largest size, against samples seen and against passes."""
    plan = found.plan
    size = plan.sizes[-1]
    with mpl.rc_context(STYLE):
        made, [panels] = figure(3.9, columns=2, sharey=True)
        handles: dict[str, Line2D] = {}
        names = [name for name in found.names if name != "shuffled"]
        for axes, column, label in zip(
            panels, (1, 2), ("samples trained on", "passes (forward 1, backward 2)"), strict=True
        ):
            for name in names:
                path = _path(found, name)
                (line,) = axes.plot(path[column], plan.factor * np.array(path[0]), label=name, **look(found, name))
                handles.setdefault(name, line)
            handles.setdefault(REFERENCE, _level(axes, found))
            axes.set_xlabel(label)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1000:g}k" if value else "0"))
            axes.set_yscale("log")
        _percent_axis(panels[0])
        panels[0].set_ylabel(plan.label + plan.unit)
        legend(made, list(handles.values()))
        image = png(made)
    caption = (
        f"Test error while training on {size} samples, mean of {plan.seeds} seeds. Left: against samples of gradient "
        "steps, where what is scored or asked of the reference looks free; nothing can be claimed from it alone. "
        "Right: against all passes, the reference's among them, but without the reference's own training."
    )
    return Plot("budget", f"Error against what it takes, n = {size}", caption, image)


# ------------------------------------------------------------------------------------------------------- parts


def look(found: Analysis, name: str) -> dict[str, Any]:
    """Colour and dash of a method, the same in all figures; what is only there to compare with is grey."""
    if name == found.plan.baseline:
        return {"color": BASE, "linestyle": "-", "zorder": 4}
    if name == "shuffled":
        return {"color": "#aaaaaa", "linestyle": DASHES[2], "zorder": 2}
    if name == found.plan.steered:
        return {"color": PALETTE[0], "linestyle": "-", "zorder": 5}
    others = [other for other in found.names if other not in PLACES]
    place = PLACES[name] if name in PLACES else len(PLACES) + others.index(name)
    return {"color": PALETTE[1 + place % 6], "linestyle": DASHES[1 + place % 3], "zorder": 3}


def _halves(found: Analysis) -> tuple[list[str], list[str]]:
    """The methods of the left and of the right panel."""
    plan = found.plan
    shared = [plan.baseline, plan.steered]
    other = [n for n, m in plan.methods.items() if m.data != "train" or m.shuffled or m.arm.distill]
    left = [n for n in found.names if n not in other]
    return left, [*shared, *(n for n in other if n not in shared)]


def _curve(axes: Axes, found: Analysis, name: str) -> Line2D:
    sizes, factor = found.plan.sizes, found.plan.factor
    intervals = [found.interval(name, size) for size in sizes]
    style = look(found, name)
    means = [factor * one.mean for one in intervals]
    (line,) = axes.plot(sizes, means, label=name, marker="o", markersize=3.5, **style)
    if all(one.low is not None and one.high is not None for one in intervals):
        low = [max(factor * (one.low or 0), 0.3 * mean) for one, mean in zip(intervals, means, strict=True)]
        high = [factor * (one.high or 0) for one in intervals]
        axes.fill_between(sizes, low, high, color=style["color"], alpha=0.12, linewidth=0, zorder=1)
    return line


def _level(axes: Axes, found: Analysis) -> Line2D:
    mean = found.plan.factor * float(np.mean(found.errors(REFERENCE, 0)))
    line = axes.axhline(mean, color=INK, linewidth=1.2, linestyle=(0, (4, 2)), zorder=2.5)
    line.set_label(f"reference {mean:.1f}")
    return line


def _gain_panel(axes: Axes, found: Analysis, other: str) -> None:
    gains, factor = found.gains(found.plan.steered, other), found.plan.factor
    means = [factor * gain.interval.mean for gain in gains]
    axes.axhline(0, color=INK, linewidth=1)
    axes.plot([gain.size for gain in gains], means, color="#cccccc", linewidth=1, zorder=2)
    for gain, mean in zip(gains, means, strict=True):
        colour, within = COLOURS[gain.verdict], gain.interval
        if within.low is not None and within.high is not None:
            axes.vlines(gain.size, factor * within.low, factor * within.high, color=colour, linewidth=2.2)
        axes.scatter([gain.size], [mean], s=24, color=[colour], edgecolors="white", linewidths=0.6, zorder=4)
    _log_axis(axes, found.plan.sizes)
    axes.set_title(f"over {other}", fontsize=10, color=INK, loc="left")


def _path(found: Analysis, name: str) -> tuple[list[float], list[int], list[float]]:
    """Mean error, samples and passes at every evaluation on the largest size."""
    size = found.plan.sizes[-1]
    paths = [found.outcomes[name, size, seed].path for seed in found.plan.seed_numbers()]
    errors = np.mean([[point.error for point in path] for path in paths], 0)
    samples = [point.cost.trained for point in paths[0]]
    passes = np.mean([[point.cost.passes for point in path] for path in paths], 0)
    return list(errors), samples, list(passes)


def _log_axis(axes: Axes, sizes: Sequence[int]) -> None:
    """Logarithmic, with the sizes themselves as marks: every other one where they would touch."""
    axes.set_xscale("log")
    shown = list(sizes)[::-1][:: max(1, -(-len(sizes) // 4))]
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _percent_axis(axes: Axes) -> None:
    """Marks at 1, 2, 5 times powers of ten within the limits."""
    axes.yaxis.set_major_locator(FixedLocator([m * 10.0**e for e in range(-2, 3) for m in (1, 2, 3, 5, 7)]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _dot(words: str, colour: Any) -> Line2D:
    return Line2D([], [], color=colour, marker="o", linewidth=2.2, markersize=5, label=words)

"""The figures of ``steer scaling``."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from steering.reports.figures import BASE, GREY, INK, PALETTE, STYLE, Plot, figure, legend, png
from steering.theory_checks.scaling.fit import Law
from steering.theory_checks.scaling.points import Point

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (6, 1.5, 1.5, 1.5)))


def colour(methods: Sequence[str], method: str, baseline: str) -> tuple:
    """The baseline is dark grey, the others take the palette in turn."""
    others = [name for name in methods if name != baseline]
    return (
        (BASE, "-")
        if method == baseline
        else (
            PALETTE[others.index(method) % len(PALETTE)],
            _DASHES[others.index(method) % len(_DASHES)],
        )
    )


def laws(points: Sequence[Point], fitted: Sequence[Point], found: dict[str, Law], baseline: str, unit: str) -> Plot:
    """Points and fits, both axes logarithmic; what was not fitted is hollow."""
    methods = list(dict.fromkeys(point.method for point in points))
    models = list(dict.fromkeys(point.model for point in points))
    chosen = set(fitted)
    with mpl.rc_context(STYLE):
        made, ((axes,),) = figure(4.4)
        for method in methods:
            paint, dash = colour(methods, method, baseline)
            for point in (point for point in points if point.method == method):
                marker = _MARKERS[models.index(point.model) % len(_MARKERS)]
                fill = paint if point in chosen else "white"
                axes.plot(point.compute, point.error, marker, color=paint, markerfacecolor=fill, markersize=6, zorder=3)
            if method in found:
                ends = np.geomspace(*found[method].computes, 50)
                axes.plot(ends, found[method].error(ends), color=paint, linestyle=dash, zorder=2)
        _logarithmic(axes)
        axes.set_xlabel(unit)
        axes.set_ylabel("error")
        handles = []
        for method in methods:
            paint, dash = colour(methods, method, baseline)
            handles.append(Line2D([], [], color=paint, linestyle=dash, label=_label(method, found)))
        for model in models if len(models) > 1 else []:
            marker = _MARKERS[models.index(model) % len(_MARKERS)]
            handles.append(Line2D([], [], color=GREY, linestyle="", marker=marker, label=str(model)))
        if len(chosen) < len(points):
            hollow = Line2D([], [], color=GREY, linestyle="", marker="o", label="not fitted")
            hollow.set_markerfacecolor("white")
            handles.append(hollow)
        legend(made, handles)
        image = png(made)
    caption = (
        f"Error against compute, both logarithmic, with the fitted power laws over the compute they were fitted to. "
        f"{len(chosen)} of {len(points)} points were fitted"
        + ("; hollow ones were not." if len(chosen) < len(points) else ".")
    )
    return Plot("laws", "Power laws", caption, image)


def gaps(rows: Sequence[tuple[str, float, tuple[float, float], tuple[float, float] | None]], pair: str) -> Plot:
    """Differences of exponents, one row each.

    Args:
        rows: words, the gap, its interval, and that of the reading errors if any.
        pair: which two methods.
    """
    with mpl.rc_context(STYLE):
        made, ((axes,),) = figure(1.3 + 0.36 * len(rows))
        for place, (_, value, (low, high), read) in enumerate(rows):
            axes.hlines(place - 0.08, low, high, color=PALETTE[0], linewidth=2.2, zorder=3)
            if read is not None:
                axes.hlines(place + 0.2, *read, color=PALETTE[1], linewidth=2.2, zorder=3)
            axes.plot(value, place - 0.08, "o", color=PALETTE[0], markersize=6, markeredgecolor="white", zorder=4)
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_yticks(range(len(rows)), [row[0] for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        width = max(abs(value) for row in rows for value in (row[1], *(row[3] or (row[1],))))
        reach = max(abs(end) for row in rows for end in (row[1], *row[2], *(row[3] or ())))
        limit = min(4 * width, 1.08 * reach)  # the intervals of three points would squeeze all others
        axes.set_xlim(-limit, limit)
        for place, (_, _, (low, high), _) in enumerate(rows):
            for end, marker in ((low, "<"), (high, ">")):
                if abs(end) > limit:
                    axes.plot(np.sign(end) * limit * 0.985, place - 0.08, marker, color=PALETTE[0], markersize=6)
        axes.set_xlabel(f"difference of exponents, {pair}")
        handles = [Line2D([], [], color=PALETTE[0], marker="o", label="estimate and 95 % interval")]
        if any(row[3] for row in rows):
            handles.append(Line2D([], [], color=PALETTE[1], label="95 % of reading errors alone"))
        legend(made, handles)
        image = png(made)
    caption = (
        "How much steeper the second method's law is than the first's, on all fitted points and along each axis of "
        "compute alone. Arrow heads: the interval goes on."
    )
    return Plot("gaps", "Where the difference of exponents comes from", caption, image)


def _label(method: str, found: dict[str, Law]) -> str:
    return f"{method}: b = {found[method].exponent.value:.3f}" if method in found else method


def _logarithmic(axes: Axes) -> None:
    """Both axes logarithmic, named in plain numbers: the style reads no formulas."""
    axes.set(xscale="log", yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    raised = str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: "10" + str(round(np.log10(value))).translate(raised)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_locator(NullLocator())

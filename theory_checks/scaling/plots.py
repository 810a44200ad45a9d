"""The plots of ``steer scaling``."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from steering.reports.figures import BASE, INK, PALETTE, appearance, figure, key, name_rows, plot, powers_of_ten, styled
from steering.reports.report import Plot
from steering.theory_checks.scaling.fit import Gap, Law
from steering.theory_checks.scaling.points import Point

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@styled
def laws(points: Sequence[Point], fitted: Sequence[Point], by_method: dict[str, Law], baseline: str, unit: str) -> Plot:
    """Points and fits, both axes logarithmic; what was not fitted is hollow."""
    methods = list(dict.fromkeys(point.method for point in points))
    models = list(dict.fromkeys(point.model for point in points))
    markers = {model: _MARKERS[index % len(_MARKERS)] for index, model in enumerate(models)}
    others = [method for method in methods if method != baseline]
    styles: dict[str, dict[str, Any]] = {method: appearance(index) for index, method in enumerate(others)}
    styles[baseline] = {"color": BASE, "linestyle": "-"}
    chosen, handles = set(fitted), []
    made, ((axes,),) = figure(4.4)
    for point in points:
        colour = styles[point.method]["color"]
        face = colour if point in chosen else "white"
        style = {"color": colour, "markerfacecolor": face, "markersize": 6, "zorder": 3}
        axes.plot(point.compute, point.error, markers[point.model], **style)
    for method in methods:
        law, label = by_method.get(method), method
        if law is not None:
            ends = np.geomspace(*law.computes, 50)
            axes.plot(ends, law.error(ends), zorder=2, **styles[method])
            label += f": b = {law.exponent.value:.3f}"
        handles.append(key(label, **styles[method]))
    handles += [key(str(model), linestyle="", marker=markers[model]) for model in models if len(models) > 1]
    if len(chosen) < len(points):
        handles.append(key("not fitted", linestyle="", marker="o", markerfacecolor="white"))
    powers_of_ten(axes, "x")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(unit)
    axes.set_ylabel("error")
    caption = (
        "Error against compute, both logarithmic, with the fitted power laws over the compute they were fitted to. "
        f"{len(chosen)} of {len(points)} points were fitted{'; hollow ones were not' * (len(chosen) < len(points))}."
    )
    return plot(made, handles, "laws", "Power laws", caption)


@styled
def gaps(parts: Sequence[Gap], pair: str) -> Plot:
    """Differences of the exponents of a ``pair`` of methods, one row for each part."""
    made, ((axes,),) = figure(1.3 + 0.36 * len(parts))
    width = max(abs(end) for part in parts for end in (part.value.value, *(part.read or ())))
    reach = max(abs(end) for part in parts for end in (part.value.low, part.value.high, *(part.read or ())))
    limit = min(4 * width, 1.08 * max(width, reach))  # the intervals of three points would squeeze all others
    for row, part in enumerate(parts):
        value = part.value
        axes.hlines(row - 0.08, value.low, value.high, color=PALETTE[0], linewidth=2.2, zorder=3)
        if part.read is not None:
            axes.hlines(row + 0.2, *part.read, color=PALETTE[1], linewidth=2.2, zorder=3)
        axes.plot(value.value, row - 0.08, "o", color=PALETTE[0], markersize=6, markeredgecolor="white", zorder=4)
        for end, marker in ((value.low, "<"), (value.high, ">")):
            if abs(end) > limit:
                axes.plot(np.sign(end) * limit * 0.985, row - 0.08, marker, color=PALETTE[0], markersize=6)
    axes.axvline(0, color=INK, linewidth=1)
    name_rows(axes, [part.name for part in parts])
    axes.set_xlim(-limit, limit)
    axes.set_xlabel(f"difference of exponents, {pair}")
    handles = [key("estimate and 95 % interval", PALETTE[0], marker="o")]
    if any(part.read for part in parts):
        handles.append(key("95 % of reading errors alone", PALETTE[1]))
    caption = (
        "How much steeper the second method's law is than the first's, on all fitted points and along each axis of "
        "compute alone. Arrow heads: the interval goes on."
    )
    return plot(made, handles, "gaps", "Where the difference of exponents comes from", caption)

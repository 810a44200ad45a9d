"""The report of ``steer scaling``: verdicts, sentences, tables, plots and numbers of fits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from steering.reports.figures import BASE, INK, PALETTE, appearance, figure, key, name_rows, plot, powers_of_ten, styled
from steering.reports.grid import MINUS, MISSING, Cell, Grid, Tone, number, span
from steering.reports.report import Plot, Report
from steering.theory_checks.scaling.fit import AXES, Gap, Law, Subset
from steering.theory_checks.scaling.points import PUBLISHED_FITS, Point

PLACES = 3  # decimals of exponents
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def report(
    subsets: list[Subset], points: list[Point], baseline: str, unit: str, published: bool, command: str
) -> Report:
    """What the fits say; the first subset is the one that is drawn."""
    first = subsets[0]
    drawn = [draw_laws(points, first.points, first.laws, baseline, unit)]
    if len(first.gaps) == 1:
        most = 3 if len(subsets) > 1 else None  # groups only of a single subset, lest the plot becomes a list
        [method] = first.gaps
        rows = [gap for subset in subsets for gap in subset.gaps[method][:most]]
        drawn.append(draw_gaps(rows, f"{method} {MINUS} {baseline}"))
    return Report(
        title="Scaling laws",
        question="How does the error fall with compute, and does one method's law fall more steeply than another's?",
        verdict=_verdict(subsets, baseline),
        command=command,
        findings=_findings(subsets, baseline, published),
        cautions=_cautions(subsets, published),
        grids=[_laws(subsets, published), *_gaps(subsets, baseline)],
        plots=drawn,
        method=["Fits, intervals, the published points and limits are explained in docs/scaling.md of model-steering."],
        numbers={"baseline": baseline, "compute": unit, "subsets": {one.name: _subset(one) for one in subsets}},
    )


def _verdict(subsets: list[Subset], baseline: str) -> str:
    if not subsets[0].gaps:
        exponent = span(subsets[0].laws[baseline].exponent, PLACES)
        return f"The error of {baseline} falls as compute to the power of {MINUS}{exponent}."
    sentences = []
    for method in subsets[0].gaps:
        heads = [subset.gaps[method][0] for subset in subsets]
        verdicts = [f"{head.direction} on {head.name}, by {span(head.value, PLACES)}" for head in heads]
        sentences.append(f"{method} is {', '.join(verdicts)}")
    return f"Beside the law of {baseline}, that of {'; that of '.join(sentences)}."


def _findings(subsets: list[Subset], baseline: str, published: bool) -> list[str]:
    sentences = [_reproduced(subset) for subset in subsets] if published else []
    sentences += [_meaning(subset, method, baseline) for subset in subsets for method in subset.gaps]
    widest = max(subsets, key=lambda subset: len(subset.points))
    for method, gaps in widest.gaps.items():
        axes = [gap for gap in gaps if gap.name in AXES]
        split = " and ".join(f"{span(axis.value, PLACES)} along {axis.name}" for axis in axes)
        if axes:
            sentences.append(
                f"Split by axis on {widest.name}, the exponent of {method} exceeds {baseline}'s by {split}."
            )
        if [axis.direction == "steeper" for axis in axes] == [False, True]:
            sentences.append(
                "The difference comes with the size of the model: at a fixed size more samples do not widen the "
                f"lead of {method}. A law over compute mixes the two."
            )
    return sentences + _floors(widest)


def _floors(subset: Subset) -> list[str]:
    tried, sentences = {method: floor for method, floor in subset.floors.items() if floor is not None}, []
    for method, floor in tried.items():
        if floor.identified and floor.level.low > 0:
            level, above = span(floor.level, PLACES), span(floor.exponent, PLACES)
            sentences.append(f"{method} has an error floor of {level}, above which b is {above}.")
        elif floor.identified:
            sentences.append(f"{method} has no error floor above {number(floor.level.high, PLACES)}.")
    open_ = [method for method, floor in tried.items() if not floor.identified]
    if open_:
        sentences.append(f"Whether the error of {', '.join(open_)} has a floor, the points cannot tell: slopes only.")
    return sentences


def _reproduced(subset: Subset) -> str:
    fits = [
        f"{law.method} {law.scale:.2f} C^{MINUS}{law.exponent.value:.4f} (printed {scale:.2f} C^{MINUS}{exponent:.3f})"
        for law in subset.laws.values()
        for scale, exponent in [PUBLISHED_FITS[law.method]]
    ]
    return f"Fits on {subset.name}: {'; '.join(fits)}."


def _meaning(subset: Subset, method: str, baseline: str) -> str:
    law, base = subset.laws[method], subset.laws[baseline]
    low, high = max(law.computes[0], base.computes[0]), min(law.computes[1], base.computes[1])
    small, large = (float(law.error(end) / base.error(end)) for end in (low, high))
    sentence = (
        f"On {subset.name}, over {np.log10(high / low):.1f} decades of compute, {method} has {small:.3f} times "
        f"the error of {baseline} at the small end and {large:.3f} times at the large one"
    )
    if base.exponent.low <= 0:
        return f"{sentence}."
    savings = [(base.scale / float(law.error(end))) ** (1 / base.exponent.value) / end for end in (low, high)]
    return f"{sentence}; {baseline} would need {savings[0]:.2f} and {savings[1]:.2f} times the compute."


def _cautions(subsets: list[Subset], published: bool) -> list[str]:
    lines = []
    if published:
        lines.append("One run a point, read off a figure: no interval here knows how another seed would differ.")
    for subset in subsets:
        laws = subset.laws.values()
        least = min(law.points for law in laws)
        alone = [law.method for law in laws if not np.isfinite(law.exponent.low)]
        if alone:
            lines.append(f"On {subset.name} all points of {', '.join(alone)} are of one run: no interval can be told.")
        elif least < 8:
            lines.append(f"{subset.name} fits {least} points a method: its bootstrap is rough.")
        flat = [law.method for law in laws if law.exponent.low <= 0 and law.method not in alone]
        if flat:
            lines.append(f"On {subset.name} the error of {', '.join(flat)} does not clearly fall with compute: no law.")
    return lines


def _laws(subsets: list[Subset], published: bool) -> Grid:
    rows = []
    for subset in subsets:
        for index, law in enumerate(subset.laws.values()):
            exponent = span(law.exponent, PLACES + 1)
            row = [subset.name if index == 0 else "", law.method, str(law.points), f"{law.scale:.3g}", exponent]
            rows.append([*row, f"{PUBLISHED_FITS[law.method][1]:.3f}"] if published else row)
    heads = ["number", "A", "b [95 %]", *(["printed b"] if published else [])]
    return Grid.of("E = A C^-b", ["points", "method"], heads, rows)


def _gaps(subsets: list[Subset], baseline: str) -> list[Grid]:
    tones: dict[str, Tone] = {"steeper": "better", "flatter": "worse", "undecided": "undecided"}
    note = "Decided where neither interval holds zero. Rows of few points: t intervals, too narrow by luck at times."
    grids = []
    for method in subsets[0].gaps:
        groups = [subset.gaps[method] for subset in subsets]
        read = any(gaps[0].read is not None for gaps in groups)
        rows = []
        for index, gap in ((index, gap) for gaps in groups for index, gap in enumerate(gaps)):
            ends = [] if gap.read is None else [number(end, PLACES) for end in gap.read]
            reading = [" to ".join(ends) or MISSING] if read else []
            verdict = Cell(gap.direction, tones[gap.direction])
            rows.append(["  " * bool(index) + gap.name, span(gap.value, PLACES), *reading, verdict])
        heads = ["gap [95 %]", *(["reading errors alone"] if read else []), "law"]
        title = f"Exponent of {method} minus that of {baseline}"
        grids.append(Grid.of(title, ["points"], heads, rows, note if len(rows) > 2 else ""))
    return grids


def _subset(subset: Subset) -> dict[str, Any]:
    laws, floors = subset.laws.items(), subset.floors.items()
    return {
        "points": subset.points,
        "laws": {name: {"A": law.scale, "b": law.exponent, "points": law.points} for name, law in laws},
        "floors": {
            name: floor and {"E_inf": floor.level, "b": floor.exponent, "identified": floor.identified}
            for name, floor in floors
        },
        "gaps": {
            method: [{"part": gap.name, **vars(gap.value), "read": gap.read} for gap in gaps]
            for method, gaps in subset.gaps.items()
        },
    }


@styled
def draw_laws(
    points: Sequence[Point], fitted: Sequence[Point], by_method: dict[str, Law], baseline: str, unit: str
) -> Plot:
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
    caption = f"Error against compute with power laws; {len(chosen)} of {len(points)} points (filled) were fitted."
    return plot(made, handles, "laws", "Power laws", caption)


@styled
def draw_gaps(parts: Sequence[Gap], pair: str) -> Plot:
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
    caption = "How much steeper the first method's law is, on all points and in parts. Arrows: the interval goes on."
    return plot(made, handles, "gaps", "Where the difference of exponents comes from", caption)

"""The figures of ``steer bound``."""

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from steering.reports.figures import BASE, GREY, PALETTE, STYLE, Plot, figure, legend, png
from steering.theory_checks.bootstrap import interval, means
from steering.theory_checks.bound.finite_class import FiniteClass
from steering.theory_checks.bound.own_reference import FACTOR, MIDDLING
from steering.theory_checks.bound.parametric import Linear
from steering.theory_checks.bound.study import Study

_LOOKS = {"ERM": (BASE, "-"), "DRO": (PALETTE[1], "-"), "DRRho": (PALETTE[0], "-")}
_OTHERS = [(PALETTE[2], (0, (5, 1.5))), (PALETTE[3], (0, (1.5, 1))), (PALETTE[5], (0, (6, 1.5, 1.5, 1.5)))]


def draw(found: Study) -> list[Plot]:
    """Draws every figure of a study."""
    with mpl.rc_context(STYLE):
        return [_rates(found), _ratios(found), _own(found), _linear(found), _bounds(found)]


def _rates(found: Study) -> Plot:
    """Excess risk against n at R = 0."""
    made, ((axes,),) = figure(4.2)
    sizes, others = np.array(found.extent.sizes), iter(_OTHERS)
    for name, values in found.excess.items():
        colour, dash = _LOOKS[name] if name in _LOOKS else next(others)
        drawn = means(values.T, rng=found.rng("band", name))
        low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
        axes.plot(sizes, values.mean(1), color=colour, linestyle=dash, label=name, zorder=3)
        axes.fill_between(sizes, low, high, color=colour, alpha=0.13, linewidth=0, zorder=2)
    _slope(axes, found.excess["ERM"].mean(1)[0] * 1.6, sizes, -0.5, "1/\u221an")
    _slope(axes, found.excess["DRRho"].mean(1)[0] / 1.8, sizes, -1, "1/n")
    _sizes(axes, found.extent.sizes)
    _powers(axes)
    axes.set_ylabel("excess risk")
    legend(made, [line for line in axes.lines if not str(line.get_label()).startswith("_")])
    caption = (
        f"Mean excess risk over {found.extent.repetitions} samples of each size, known exactly, where the reference "
        "has the best hypothesis's losses (R = 0). Bands: 95 % bootstrap intervals. Thin lines: the two rates."
    )
    return Plot("rates", "Excess risk in a finite class", caption, png(made))


def _ratios(found: Study) -> Plot:
    """Excess risk of DRRho over DRO's, against the root of the variance ratio."""
    made, ((axes,),) = figure(3.9)
    spreads = [spread for spread in found.ratios if spread > 0]
    places = np.sqrt([FiniteClass(spread).ratio for spread in spreads])
    for place, n in enumerate(found.extent.ratio_at):
        each = [interval(found.ratios[spread][n], found.extent.repetitions) for spread in spreads]
        values = np.array([one.value for one in each])
        gaps = np.abs(np.array([[one.low, one.high] for one in each]).T - values)
        shifted = places * 1.05 ** (place - (len(found.extent.ratio_at) - 1) / 2)
        axes.errorbar(shifted, values, gaps, fmt="o", color=PALETTE[place], markersize=5.5, linewidth=1.7, zorder=3)
    ends = np.array([places.min() / 1.3, places.max() * 1.3])
    axes.plot(ends, ends, color=GREY, linewidth=1.1, linestyle=(0, (4, 2)), zorder=2)
    axes.axhline(1, color=GREY, linewidth=0.9)
    axes.set(
        xscale="log", yscale="log", xlabel="\u221aR: sd(loss \u2212 reference's) / sd(loss) of the best hypothesis"
    )
    axes.set_ylabel("excess of DRRho / excess of DRO")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
    handles = [
        Line2D([], [], color=PALETTE[place], marker="o", linestyle="", label=f"n = {n}")
        for place, n in enumerate(found.extent.ratio_at)
    ]
    legend(made, [*handles, Line2D([], [], color=GREY, linewidth=1.1, linestyle=(0, (4, 2)), label="\u221aR")])
    caption = (
        "How much less DRRho loses than DRO without the reference, by how well the reference's losses track the best "
        "hypothesis's. Dashed: the leading term of the bound. Above 1 the reference costs. Bars: 95 % bootstrap."
    )
    return Plot("ratios", "Excess ratio against the variance ratio", caption, png(made))


def _own(found: Study) -> Plot:
    """A reference out of the class: how much worse a target may be, and how many samples it takes."""
    made, ((left, right),) = figure(3.9, columns=2)
    sizes = np.array(found.extent.own_sizes)
    for name, values in found.against[MIDDLING].items():
        upper = np.quantile(values, 0.95, axis=1)
        colour = _LOOKS[name][0]
        left.plot(sizes[upper > 0], upper[upper > 0], color=colour, marker="o", markersize=4, label=name)
    _sizes(left, found.extent.own_sizes)
    left.set_xlim(sizes[0] / 1.3, sizes[-1] * 1.3)
    _powers(left)
    left.set_ylabel("R(target) \u2212 R(reference)")
    left.set_title("95 % quantile, reference 0.02 off", fontsize=11)
    fitted = np.array(found.extent.fitted_on)
    for name, rate in (("ERM", 1.0), ("DRRho", 0.5)):
        each = [interval(one.by_method[name], one.repetitions) for one in found.needed]
        values = np.array([one.value for one in each])
        gaps = np.abs(np.array([[one.low, one.high] for one in each]).T - values)
        right.errorbar(fitted, values, gaps, fmt="o", color=_LOOKS[name][0], markersize=4.5, linewidth=1.5, zorder=3)
        right.plot(fitted, values[-1] * (fitted / fitted[-1]) ** rate, color=GREY, linewidth=0.9, zorder=1)
    _sizes(right, found.extent.fitted_on)
    _powers(right)
    right.set(xlabel="samples m of the reference", ylabel="samples n needed")
    right.set_title("reference fitted on m samples", fontsize=11)
    legend(made, left.lines)
    caption = (
        "References out of the class. Left: 95 % quantile of how much worse the target is than a reference of excess "
        "risk 0.02, with no point where it is below zero. Right: samples from which on "
        f"the mean excess risk is at most {FACTOR:g} times the reference's, with 95 % bootstrap intervals. Thin lines: "
        "m for ERM and \u221am for DRRho, through the last point."
    )
    return Plot("own-reference", "References out of the class", caption, png(made))


def _linear(found: Study) -> Plot:
    """n times the excess risk in the linear model, with its limits."""
    distances = found.extent.distances
    made, (row,) = figure(3.7, columns=len(distances), sharey=True)
    sizes = found.extent.linear_sizes
    for axes, distance in zip(row, distances, strict=True):
        problem, fits = Linear(distance), found.fits[distance]
        axes.plot(sizes, [n * fits[n].erm.mean() for n in sizes], color=BASE, marker="o", markersize=4, label="ERM")
        for place, rho in enumerate(found.extent.rhos):
            values = [n * fits[n].drrho[rho].mean() for n in sizes]
            colour = PALETTE[place]
            axes.plot(sizes, values, color=colour, marker="o", markersize=4, label=f"DRRho, rho = {rho:g}")
            axes.axhline(problem.limit(rho), color=colour, linewidth=1.1, linestyle=(0, (1.5, 1.5)))
        axes.plot(sizes, [n * distance**2 / 2 for n in sizes], color=GREY, linewidth=1.1, label="reference itself")
        _sizes(axes, sizes)
        axes.set_title(f"r = {distance:g}, n_eq = {problem.matched_at:.0f}", fontsize=11)
        if sizes[0] <= problem.matched_at <= sizes[-1]:
            axes.axvline(problem.matched_at, color=GREY, linewidth=1.1, linestyle=(0, (4, 2)))
    row[0].set_ylabel("n \u00d7 excess risk")
    row[0].set_ylim(0, 1.08 * max(Linear(distance).limit(rho) for distance in distances for rho in found.extent.rhos))
    legend(made, [line for line in row[0].lines if not str(line.get_label()).startswith("_")])
    caption = (
        f"Linear model, mean of {found.extent.fits} samples of each size; a horizontal curve is the rate 1/n. Dotted: "
        "what theory says the curve of that colour tends to. Dashed: n_eq, where ERM is as good as the reference, "
        "which lies r from the truth. Well left of it steering helps, well right of it costs."
    )
    return Plot("linear", "Where steering costs: a parametric model", caption, png(made))


def _bounds(found: Study) -> Plot:
    """Bound and truth of every method."""
    made, (row,) = figure(3.5, columns=3, sharey=True)
    spreads = list(dict.fromkeys(one.spread for one in found.bounds))
    for axes, name in zip(row, ("ERM", "DRO", "DRRho"), strict=True):
        for place, spread in enumerate(spreads if name == "DRRho" else spreads[:1]):
            mine = [one for one in found.bounds if one.method == name and one.spread == spread]
            colour = PALETTE[place] if name == "DRRho" else BASE
            axes.plot([one.n for one in mine], [one.truth for one in mine], color=colour, marker="o", markersize=4)
            axes.plot([one.n for one in mine], [one.bound for one in mine], color=colour, linestyle=(0, (5, 1.5)))
        _sizes(axes, found.extent.tight)
        _powers(axes)
        axes.set_title(name, fontsize=11)
    row[0].set_ylabel("excess risk")
    colours = zip(spreads, PALETTE, strict=False)
    handles = [Line2D([], [], color=BASE, label="no reference")]
    handles += [Line2D([], [], color=c, label=f"R = {FiniteClass(spread).ratio:.2g}") for spread, c in colours]
    dashed = Line2D([], [], color=GREY, linestyle=(0, (5, 1.5)), label="bound")
    legend(made, [*handles, Line2D([], [], color=GREY, marker="o", markersize=4, label="truth"), dashed])
    caption = (
        "The bound that holds with probability 95 %, with all constants, and the 95 % quantile of the true excess "
        "risk, both at the theory's radius. The reference matters to DRRho alone."
    )
    return Plot("bounds", "Bound against truth", caption, png(made))


def _slope(axes: Axes, start: float, sizes: np.ndarray, rate: float, words: str) -> None:
    """A thin line of a given rate, named at its end."""
    heights = start * (sizes / sizes[0]) ** rate
    axes.plot(sizes, heights, color=GREY, linewidth=0.9, label=f"_{words}", zorder=1)
    axes.annotate(words, (sizes[-1], heights[-1]), (4, 0), textcoords="offset points", color=GREY, va="center")


def _powers(axes: Axes) -> None:
    """A logarithmic axis with powers of ten; the style reads no formulas."""
    axes.set_yscale("log")
    raised = str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: "10" + str(round(np.log10(value))).translate(raised)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _sizes(axes: Axes, sizes: tuple[int, ...]) -> None:
    """A logarithmic axis with the sizes themselves, every other one where they are many."""
    axes.set_xscale("log")
    axes.set_xticks(sizes[:: 1 + (len(sizes) > 5)])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("samples n")

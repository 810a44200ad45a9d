"""The plots of ``steer bound``."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from steering.reports.figures import BASE, DASHES, GREY, PALETTE, figure, key, logarithmic, plot, powers_of_ten, styled
from steering.reports.report import Plot
from steering.theory_checks.bootstrap import Estimate, means
from steering.theory_checks.bound.finite_class import variance_ratio
from steering.theory_checks.bound.own_reference import FACTOR, MIDDLING
from steering.theory_checks.bound.parametric import limit, matched_at
from steering.theory_checks.bound.study import Study

_COLOURS = {"ERM": BASE, "DRO": PALETTE[1], "DRRho": PALETTE[0]}
_OTHERS = [(PALETTE[2], DASHES[1]), (PALETTE[3], DASHES[2]), (PALETTE[5], DASHES[3])]
_DOTS: dict[str, Any] = {"marker": "o", "markersize": 4}
_THIN: dict[str, Any] = {"color": GREY, "linewidth": 1.1}


def draw(study: Study) -> list[Plot]:
    """Draws every plot of a study."""
    return [_excess(study), _ratios(study), _own_reference(study), _linear(study), _bounds(study)]


@styled
def _excess(study: Study) -> Plot:
    """Excess risk against n at R = 0."""
    made, ((axes,),) = figure(4.2)
    sizes, others, handles = np.array(study.extent.sizes), iter(_OTHERS), []
    for name, values in study.excess.items():
        colour, dash = (_COLOURS[name], "-") if name in _COLOURS else next(others)
        low, high = np.quantile(means(values.T, rng=study.rng("band", name)), [0.025, 0.975], axis=0)
        handles += axes.plot(sizes, values.mean(1), color=colour, linestyle=dash, label=name, zorder=3)
        axes.fill_between(sizes, low, high, color=colour, alpha=0.13, linewidth=0, zorder=2)
    for start, exponent, name in (
        (study.excess["ERM"].mean(1)[0] * 1.6, -0.5, "1/\u221an"),
        (study.excess["DRRho"].mean(1)[0] / 1.8, -1, "1/n"),
    ):
        heights = start * (sizes / sizes[0]) ** exponent
        axes.plot(sizes, heights, color=GREY, linewidth=0.9, zorder=1)
        axes.annotate(name, (sizes[-1], heights[-1]), (4, 0), textcoords="offset points", color=GREY, va="center")
    _sizes(axes, study.extent.sizes)
    powers_of_ten(axes, "y")
    axes.set_ylabel("excess risk")
    caption = (
        f"Mean excess risk over {study.extent.repetitions} samples of each size, known exactly, where the reference "
        "has the best hypothesis's losses (R = 0). Bands: 95 % bootstrap intervals. Thin lines: the two rates."
    )
    return plot(made, handles, "rates", "Excess risk in a finite class", caption)


@styled
def _ratios(study: Study) -> Plot:
    """Excess risk of DRRho over DRO's, against the root of the variance ratio."""
    made, ((axes,),) = figure(3.9)
    spreads, handles = [spread for spread in study.ratios if spread > 0], []
    roots = np.sqrt([variance_ratio(spread) for spread in spreads])
    for index, n in enumerate(study.extent.ratio_at):
        shifted = roots * 1.05 ** (index - (len(study.extent.ratio_at) - 1) / 2)
        _bars(axes, shifted, [study.ratios[spread][n] for spread in spreads], PALETTE[index])
        handles.append(key(f"n = {n}", PALETTE[index], marker="o", linestyle=""))
    ends = np.array([roots.min() / 1.3, roots.max() * 1.3])
    handles += axes.plot(ends, ends, linestyle=(0, (4, 2)), zorder=2, label="\u221aR", **_THIN)
    axes.axhline(1, color=GREY, linewidth=0.9)
    axes.set_xlabel("\u221aR: sd(loss \u2212 reference's) / sd(loss) of the best hypothesis")
    axes.set_ylabel("excess of DRRho / excess of DRO")
    logarithmic(axes, "x")
    logarithmic(axes, "y")
    caption = (
        "How much less DRRho loses than DRO without the reference, by how well the reference's losses track the best "
        "hypothesis's. Dashed: the leading term of the bound. Above 1 the reference costs. Bars: 95 % bootstrap."
    )
    return plot(made, handles, "ratios", "Excess ratio against the variance ratio", caption)


@styled
def _own_reference(study: Study) -> Plot:
    """A reference out of the class: how much worse a target may be, and how many samples it takes."""
    made, ((left, right),) = figure(3.9, columns=2)
    sizes, handles = np.array(study.extent.own_sizes), []
    for name, figures in study.against[MIDDLING].items():
        above = figures["upper"] > 0
        handles += left.plot(sizes[above], figures["upper"][above], color=_COLOURS[name], label=name, **_DOTS)
    _sizes(left, study.extent.own_sizes)
    left.set_xlim(sizes[0] / 1.3, sizes[-1] * 1.3)
    left.set_ylabel("R(target) \u2212 R(reference)")
    left.set_title("95 % quantile, reference 0.02 off", fontsize=11)
    fitted = np.array(study.extent.fitted_on)
    for name, exponent in (("ERM", 1.0), ("DRRho", 0.5)):
        needed = [one.intervals[name] for one in study.needed]
        _bars(right, fitted, needed, _COLOURS[name])
        theory = needed[-1].value * (fitted / fitted[-1]) ** exponent
        right.plot(fitted, theory, color=GREY, linewidth=0.9, zorder=1)
    _sizes(right, study.extent.fitted_on)
    right.set(xlabel="samples m of the reference", ylabel="samples n needed")
    right.set_title("reference fitted on m samples", fontsize=11)
    powers_of_ten(left, "y")
    powers_of_ten(right, "y")
    caption = (
        "Left: 95 % quantile of how much worse the target is than a reference of excess risk 0.02, where that is above "
        f"zero. Right: samples from which on the mean excess risk is at most {FACTOR:g} times the reference's, with 95 "
        "% intervals. Thin lines: m for ERM and \u221am for DRRho, through the last point."
    )
    return plot(made, handles, "own-reference", "References out of the class", caption)


@styled
def _linear(study: Study) -> Plot:
    """n times the excess risk in the linear model, with its limits."""
    distances, sizes, rhos = study.extent.distances, study.extent.linear_sizes, study.extent.rhos
    (made, (row,)), handles = figure(3.7, columns=len(distances), sharey=True), {}
    for axes, distance in zip(row, distances, strict=True):
        scaled, equal = study.linear[distance], matched_at(distance)
        for rho, colour in zip(rhos, PALETTE, strict=False):
            axes.axhline(limit(distance, rho), color=colour, linewidth=1.1, linestyle=(0, (1.5, 1.5)))
        for name, colour in zip(scaled[sizes[0]], (BASE, *PALETTE), strict=False):
            curve, label = [scaled[n][name] for n in sizes], name.replace("rho=", "DRRho, rho = ")
            (handles[name],) = axes.plot(sizes, curve, color=colour, label=label, **_DOTS)
        itself = [n * distance**2 / 2 for n in sizes]
        (handles["reference itself"],) = axes.plot(sizes, itself, label="reference itself", **_THIN)
        _sizes(axes, sizes)
        axes.set_title(f"r = {distance:g}, n_eq = {equal:.0f}", fontsize=11)
        if sizes[0] <= equal <= sizes[-1]:
            axes.axvline(equal, linestyle=(0, (4, 2)), **_THIN)
    row[0].set_ylabel("n \u00d7 excess risk")
    row[0].set_ylim(0, 1.08 * max(limit(distance, rho) for distance in distances for rho in rhos))
    caption = (
        f"Mean of {study.extent.fits} samples of each size; a horizontal curve is the rate 1/n. Dotted: what theory "
        "says the curve of that colour tends to. Dashed: n_eq, where ERM is as good as the reference, r from the truth."
    )
    return plot(made, list(handles.values()), "linear", "Where steering costs: a parametric model", caption)


@styled
def _bounds(study: Study) -> Plot:
    """Bound and truth of every method."""
    made, (row,) = figure(3.5, columns=3, sharey=True)
    spreads = list(dict.fromkeys(one.spread for one in study.bounds))
    for axes, name in zip(row, ("ERM", "DRO", "DRRho"), strict=True):
        for index, spread in enumerate(spreads if name == "DRRho" else spreads[:1]):
            of_name = [one for one in study.bounds if one.method == name and one.spread == spread]
            sizes, colour = [one.n for one in of_name], PALETTE[index] if name == "DRRho" else BASE
            axes.plot(sizes, [one.truth for one in of_name], color=colour, **_DOTS)
            axes.plot(sizes, [one.bound for one in of_name], color=colour, linestyle=DASHES[1])
        _sizes(axes, study.extent.tight)
        axes.set_title(name, fontsize=11)
    powers_of_ten(row[0], "y")
    row[0].set_ylabel("excess risk")
    handles = [key("no reference", BASE)]
    handles += [key(f"R = {variance_ratio(s):.2g}", colour) for s, colour in zip(spreads, PALETTE, strict=False)]
    handles += [key("truth", **_DOTS), key("bound", linestyle=DASHES[1])]
    caption = (
        "The bound that holds with probability 95 %, with all constants, and the 95 % quantile of the true excess "
        "risk, both at the theory's radius. The reference matters to DRRho alone."
    )
    return plot(made, handles, "bounds", "Bound against truth", caption)


def _bars(axes: Axes, x: np.ndarray, estimates: Sequence[Estimate], colour: str) -> None:
    """Values with their 95 % intervals."""
    values = np.array([one.value for one in estimates])
    gaps = np.abs(np.array([[one.low, one.high] for one in estimates]).T - values)
    axes.errorbar(x, values, gaps, fmt="o", color=colour, markersize=5, linewidth=1.6, zorder=3)


def _sizes(axes: Axes, sizes: tuple[int, ...]) -> None:
    """A logarithmic axis with the sizes themselves, every other one where they are many."""
    logarithmic(axes, "x", at=sizes[:: 1 + (len(sizes) > 5)])
    axes.set_xlabel("samples n")

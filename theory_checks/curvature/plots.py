"""The figures of the curvature report: what tables do not show."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.lines import Line2D

from steering.reports.figures import BASE, PALETTE, STYLE, Plot, figure, legend, png

LINES: list[tuple[Any, Any]] = [(PALETTE[0], "-"), (PALETTE[1], (0, (5, 1.5))), (BASE, "-")]  # colour and dashes
Panel = tuple[str, Sequence[float], Sequence[Any]]  # title, values of beta, curves ``[repetitions, betas]``


def _over_beta(panels: Sequence[Panel], ylabel: str, labels: Sequence[str] = ()) -> bytes:
    """Panels side by side: a thin line is a repetition, a thick one the mean of all."""
    with mpl.rc_context(STYLE):
        drawing, (row,) = figure(height=3.1, columns=len(panels), sharey=True)
        for axes, (title, betas, curves) in zip(row, panels, strict=True):
            axes.axhline(0, color=BASE, linewidth=1)
            for values, (color, dashes) in zip(curves, LINES, strict=False):
                axes.plot(betas, np.transpose(values), color=color, linewidth=0.8, alpha=0.4)
                axes.plot(betas, np.mean(values, 0), color=color, linestyle=dashes, linewidth=2.3)
            axes.margins(x=0.02)
            axes.set_xlabel("beta (1 is ReLU)")
            axes.set_xticks(np.linspace(min(betas), 1, 3 if min(betas) < 1 else 1))
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
            axes.set_title(title, fontsize=11, loc="left")
        row[0].set_ylabel(ylabel)
        lines = zip(labels, LINES, strict=False)
        legend(drawing, [Line2D([], [], color=c, linestyle=d, label=label) for label, (c, d) in lines])
        return png(drawing)


def search(name: str, title: str, label: str, curves: Mapping[str, list[dict]], unit: str = "error (points)") -> Plot:
    """What searches saw, less what they saw at ReLU: one panel for each, with the choices of all repetitions."""
    panels = []
    for heading, choices in curves.items():
        seen = (100 if "points" in unit else 1) * np.array([choice["validation"] for choice in choices])
        panels.append((heading, choices[0]["betas"], [seen - seen[:, :1]]))  # the first beta is 1
    caption = (
        f"{label}, less its value at beta = 1 (ReLU), which is the zero line; below it a search finds something. A "
        "thin line is a repetition, the thick one their mean. The lowest point of a thin line is what that repetition "
        "chose; it is lower than its test value will be, because it was looked for."
    )
    return Plot(name, title, caption, _over_beta(panels, unit))


def attacks(results: Sequence[dict[str, Any]]) -> Plot:
    """Validation accuracy against beta for every radius: clean, attacked, and under attacks carried over."""
    labels = {"white": "attack on the network itself", "carried": "attack made for its ReLU twin", "clean": "no attack"}
    panels = []
    for at in zip(*(result["radii"] for result in results), strict=True):
        curves = [[[100 * seen[kind] for seen in one["validation"]] for one in at] for kind in labels]
        panels.append((f"changes up to {at[0]['radius']:g} a pixel", at[0]["betas"], curves))
    caption = (
        "Accuracy on the validation split against beta; a thin line is a repetition, the thick one their mean. Where "
        "the attack made for the ReLU network does more harm than the attack on the network itself, gradients are "
        "masked and robustness is an illusion."
    )
    return Plot("robustness", "Under attack", caption, _over_beta(panels, "accuracy (%)", list(labels.values())))


def boundaries(lines: Mapping[str, Sequence[Sequence[Sequence[float]]]], points: Sequence[Sequence[float]]) -> Plot:
    """The boundary of the first repetition by beta, ``[m, 2]`` each, over its training samples, place and class."""
    with mpl.rc_context(STYLE):
        drawing, (row,) = figure(height=2.35, columns=len(lines), sharex=True, sharey=True)
        x, y, classes = np.transpose(points)
        for axes, (beta, boundary) in zip(row, lines.items(), strict=True):
            for label in (0, 1):
                axes.plot(x[classes == label], y[classes == label], "o", color=PALETTE[label], ms=1.8, mew=0, alpha=0.6)
            for line in boundary:
                axes.plot(*np.transpose(line), color=BASE, linewidth=1.5)
            axes.set(aspect="equal", xticks=[], yticks=[])
            axes.grid(visible=False)
            axes.set_title(f"beta = {beta}" + (" (ReLU)" if beta == "1" else ""), fontsize=10, loc="left")
        image = png(drawing)
    caption = (
        "Where the first repetition's network changes its mind (dark line), at several values of beta and without any "
        "training between them. Dots are training samples in the colour of their label, some of them wrong on purpose."
    )
    return Plot("boundaries", "The same network at several values of beta", caption, image)

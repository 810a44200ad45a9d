"""The figures of the curvature report."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from steering.reports.figures import BASE, GREY, PALETTE, STYLE, Plot, figure, legend, png
from steering.runs.statistics import interval

Curve = tuple[str, Sequence[float], Sequence[Sequence[float]]]  # label, betas, values by repetition


def searches(name: str, title: str, curves: Sequence[Curve], unit: str, what: str) -> Plot:
    """What the search saw, less what it saw at ReLU: thin lines are repetitions, the thick one their mean."""
    with mpl.rc_context(STYLE):
        made, (row,) = figure(height=2.9, columns=len(curves), sharey=True)
        for place, (axes, (label, betas, values)) in enumerate(zip(row, curves, strict=True)):
            away = np.array(values) - np.array(values)[:, [list(betas).index(1.0)]]
            axes.axhline(0, color=BASE, linewidth=1)
            axes.plot(betas, away.T, color=PALETTE[place], linewidth=0.8, alpha=0.45)
            axes.plot(betas, away.mean(0), color=PALETTE[place], linewidth=2.4)
            _beta_axis(axes, betas)
            axes.set_title(label, fontsize=11, loc="left")
        row[0].set_ylabel(unit)
        image = png(made)
    caption = (
        f"{what}, less its value at beta = 1 (ReLU), which is the zero line; below it a search finds something. A thin "
        "line is a repetition, the thick one their mean. The lowest point of a thin line is what that repetition "
        "chose; it is lower than its test value will be, because it was looked for."
    )
    return Plot(name, title, caption, image)


def _beta_axis(axes: Axes, betas: Sequence[float]) -> None:
    axes.set_xlabel("beta (1 is ReLU)")
    axes.margins(x=0.02)
    axes.set_xticks(np.linspace(min(betas), 1, 3 if min(betas) < 1 else 1))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}")


def methods(rows: Mapping[str, tuple[int, Sequence[float]]]) -> Plot:
    """Test error of every method, by label, with the number of its parameters."""
    with mpl.rc_context(STYLE):
        made, ((axes,),) = figure(height=1.2 + 0.42 * len(rows))
        for place, (_, values) in enumerate(rows.values()):
            percent = [100 * value for value in values]
            axes.plot(percent, [place] * len(percent), "o", color=PALETTE[0], ms=4, alpha=0.35, mew=0)
            found = interval(percent)
            if found.low is not None and found.high is not None:
                axes.plot([found.low, found.high], [place, place], color=PALETTE[0], linewidth=2)
            axes.plot([found.mean], [place], "o", color=PALETTE[0], ms=7)
        axes.set_yticks(
            range(len(rows)), [f"{label}\n{size:,} learned" for label, (size, _) in rows.items()], fontsize=9
        )
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        left, right = axes.get_xlim()
        axes.set_xlim(max(0.0, left), min(100.0, right))  # intervals of few repetitions reach beyond what there is
        axes.set_xlabel("test error (%)")
        handles = [Line2D([], [], color=PALETTE[0], marker="o", label="mean, 95 % interval")]
        handles.append(
            Line2D([], [], color=PALETTE[0], marker="o", ms=4, alpha=0.35, linestyle="", label="a repetition")
        )
        legend(made, handles)
        image = png(made)
    listed = "; ".join(f"{label}: {100 * np.mean(values):.1f} %" for label, (_, values) in rows.items())
    caption = f"Test error of every way to teach new classes, and how many parameters it learns. Means: {listed}."
    return Plot("transfer", "New classes", caption, image)


def attacked(radii: Sequence[Mapping[str, Any]]) -> Plot:
    """Validation accuracy against beta for every radius: clean, attacked, and under attacks carried over."""
    looks = {"clean": (BASE, "-"), "white": (PALETTE[0], "-"), "carried": (PALETTE[1], (0, (5, 1.5)))}
    words = {"clean": "no attack", "white": "attack on the network itself", "carried": "attack made for its ReLU twin"}
    with mpl.rc_context(STYLE):
        made, (row,) = figure(height=3.3, columns=len(radii), sharey=True)
        for axes, at in zip(row, radii, strict=True):
            for kind, (color, dash) in looks.items():
                values = 100 * np.array([[seen[kind] for seen in repetition] for repetition in at["validation"]])
                axes.plot(at["betas"], values.T, color=color, linewidth=0.7, alpha=0.3)
                axes.plot(at["betas"], values.mean(0), color=color, linestyle=dash, linewidth=2.2)
            _beta_axis(axes, at["betas"])
            axes.set_title(f"changes up to {at['radius']:g} a pixel", fontsize=11, loc="left")
        row[0].set_ylabel("accuracy (%)")
        row[0].set_ylim(0, 102)
        legend(made, [Line2D([], [], color=c, linestyle=d, label=words[kind]) for kind, (c, d) in looks.items()])
        image = png(made)
    caption = (
        "Accuracy on the validation split against beta; a thin line is a repetition, the thick one their mean. Where "
        "the attack made for the ReLU network does more harm than the attack on the network itself, gradients are "
        "masked and robustness is an illusion."
    )
    return Plot("robustness", "Under attack", caption, image)


def boundaries(lines: Mapping[str, Sequence[Sequence[Sequence[float]]]], points: Sequence[Sequence[float]]) -> Plot:
    """The boundary of the first repetition at some values of beta, over its training samples."""
    with mpl.rc_context(STYLE):
        made, (row,) = figure(height=2.35, columns=len(lines), sharex=True, sharey=True)
        places = np.array(points)
        for axes, (beta, boundary) in zip(row, lines.items(), strict=True):
            for label, color in ((0, PALETTE[0]), (1, PALETTE[1])):
                mine = places[places[:, 2] == label]
                axes.plot(mine[:, 0], mine[:, 1], "o", color=color, ms=1.8, mew=0, alpha=0.6)
            for line in boundary:
                axes.plot(*np.array(line).T, color=BASE, linewidth=1.5)
            axes.set_aspect("equal")
            axes.grid(visible=False)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(f"beta = {beta}" + (" (ReLU)" if beta == "1" else ""), fontsize=10, loc="left")
        image = png(made)
    caption = (
        "Where the first repetition's network changes its mind (dark line), at several values of beta and without any "
        "training between them. Dots are training samples in the colour of their label, some of them wrong on purpose."
    )
    return Plot("boundaries", "The same network at several values of beta", caption, image)


def shapes(betas: Sequence[float], found: Sequence[Mapping[str, Any]]) -> Plot:
    """Turning and length of the boundary and the test error against beta."""
    panels = (
        ("turning", "turning (full turns)", 1 / (2 * np.pi)),
        ("length", "length", 1.0),
        ("test", "test error (%)", 100),
    )
    with mpl.rc_context(STYLE):
        made, (row,) = figure(height=2.7, columns=3)
        for axes, (key, label, factor) in zip(row, panels, strict=True):
            values = factor * np.array([repetition[key] for repetition in found])
            axes.plot(betas, values.T, color=PALETTE[0], linewidth=0.8, alpha=0.45)
            axes.plot(betas, values.mean(0), color=PALETTE[0], linewidth=2.4)
            _beta_axis(axes, betas)
            axes.set_ylim(bottom=0)
            axes.set_title(label, fontsize=11, loc="left")
        image = png(made)
    caption = (
        "Total turning and length of the decision boundary, and the error on clean test samples, against beta; a thin "
        "line is a repetition, the thick one their mean. A boundary that turns less is no better one by itself: at "
        "small beta it no longer follows the spirals."
    )
    return Plot("shapes", "Shape of the boundary against beta", caption, image)


def references(betas: Sequence[float], found: Sequence[Mapping[str, Any]]) -> Plot:
    """Variance ratio and what the steered target made of it, against the reference's beta."""
    with mpl.rc_context(STYLE):
        made, ((left, right),) = figure(height=3.1, columns=2)
        left.axhline(1, color=GREY, linewidth=1)
        _means(left, betas, np.array([repetition["ratio"] for repetition in found]), PALETTE[0], "-")
        left.set_title("Var(l - l_ref) / Var(l)", fontsize=11, loc="left")
        left.set_ylim(bottom=0)
        looks = {"steered": (PALETTE[0], "-"), "reference": (PALETTE[1], (0, (5, 1.5)))}
        for key, (color, dash) in looks.items():
            _means(right, betas, 100 * np.array([repetition[key] for repetition in found]), color, dash)
        plain = 100 * float(np.mean([repetition["plain"] for repetition in found]))
        right.axhline(plain, color=BASE, linewidth=1.6)
        right.set_ylim(bottom=0)
        right.set_title("test error (%)", fontsize=11, loc="left")
        for axes in (left, right):
            _beta_axis(axes, betas)
            axes.set_xlabel("beta of the reference (1 is ReLU)")
        handles = [Line2D([], [], color=BASE, label="trained plainly")]
        handles += [
            Line2D([], [], color=c, linestyle=d, label=word)
            for word, (c, d) in zip(("target steered by it", "reference itself"), looks.values(), strict=True)
        ]
        legend(made, handles)
        image = png(made)
    caption = (
        "One reference at several values of beta. Left: how much of the variance of held-out losses is left when its "
        "loss is subtracted (the line is 1: nothing gained). Right: test error of the reference, of the target it "
        "steered by DRRho, and of a target trained plainly. Thin lines are repetitions."
    )
    return Plot("bridge", "A tuned network as the reference", caption, image)


def _means(axes: Axes, betas: Sequence[float], values: np.ndarray, color: Any, dash: Any) -> None:
    axes.plot(betas, values.T, color=color, linewidth=0.7, alpha=0.35)
    axes.plot(betas, values.mean(0), color=color, linestyle=dash, linewidth=2.3)

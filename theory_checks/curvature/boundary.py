"""How much a decision boundary in the plane turns, and how long it is, for every beta."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import numpy as np
import torch
from contourpy import contour_generator
from torch import nn

from steering.curvature import replace_relus, set_beta
from steering.reports.figures import BASE, PALETTE, figure, plot, styled
from steering.reports.report import Plot
from steering.theory_checks.curvature import section
from steering.theory_checks.curvature.small import error, fit, network, outputs, recipe, spirals, with_relu

EDGE, POINTS = 1.2, 161  # the grid is from -EDGE to EDGE, with as many points along each side
NOISE = 0.16  # share of wrong training labels
SHOWN = 4  # values of beta at most, in pictures
FIGURES = ("turning", "length", "training", "test")


def lines(model: nn.Module) -> list[np.ndarray]:
    """Where two scores of points ``[n, 2]`` are equal, as polylines ``[m, 2]``; closed ones end where they begin."""
    side = np.linspace(-EDGE, EDGE, POINTS)
    x, y = np.meshgrid(side, side)
    scores = outputs(model, torch.tensor(np.stack([x.ravel(), y.ravel()], -1), dtype=torch.float32))
    margins = (scores[:, 0] - scores[:, 1]).reshape(POINTS, POINTS).double().numpy()
    return [np.asarray(line) for line in contour_generator(x, y, margins).lines(0.0)]


def turning(line: np.ndarray) -> float:
    """Total turning of a polyline ``[m, 2]`` in radians: 2 pi for a circle, 0 for a straight line."""
    steps = np.diff(line, axis=0)
    steps = steps[np.hypot(*steps.T) > 1e-9]
    if len(steps) > 1 and np.allclose(line[0], line[-1]):
        steps = np.concatenate([steps, steps[:1]])  # around the corner where a closed line begins
    headings = np.arctan2(steps[:, 1], steps[:, 0])
    return float(np.abs((np.diff(headings) + np.pi) % (2 * np.pi) - np.pi).sum())


def length(line: np.ndarray) -> float:
    """Length of a polyline ``[m, 2]``."""
    return float(np.hypot(*np.diff(line, axis=0).T).sum())


def measure(seed: int, betas: Sequence[float], steps: int = 1200) -> dict[str, Any]:
    """One repetition on two spirals with some wrong labels: shape of the boundary and errors at every beta.

    Returns:
        ``betas`` and, for each, ``turning`` in radians, ``length`` in units of the plane, ``training`` and ``test``
        error; of seed 0 also the ``lines`` of those betas that are drawn, and the training samples, ``points``.
    """
    training, test = spirals(400, NOISE, seed, "training"), spirals(1000, 0.0, seed, "test")
    model = fit(lambda: network(2, 20, 3, 2), training, recipe(steps, 100, 1e-2), seed)
    tuned = replace_relus(model, example=(test.x[:2],)).model
    betas = with_relu(betas)
    shapes, boundaries = [], {}
    for beta in betas:
        set_beta(tuned, beta)
        boundary = boundaries[f"{beta:g}"] = lines(tuned)
        shape = sum(map(turning, boundary)), sum(map(length, boundary))
        shapes.append((*shape, error(tuned, training), error(tuned, test)))
    result = {"betas": betas} | dict(zip(FIGURES, map(list, zip(*shapes, strict=True)), strict=True))
    if seed:
        return result
    shown = {f"{betas[round(index * (len(betas) - 1) / (SHOWN - 1))]:g}" for index in range(SHOWN)}
    drawn = {beta: [np.round(line, 3).tolist() for line in boundaries[beta]] for beta in boundaries if beta in shown}
    points = np.column_stack([training.x.double().round(decimals=3), training.y]).tolist()
    return result | {"lines": drawn, "points": points}


def summarise(results: section.Results) -> section.Section:
    """Shape of a boundary in the plane."""
    betas = results[0]["betas"]
    turns = [[radians / (2 * math.pi) for radians in result["turning"]] for result in results]
    by_beta = [list(zip(*values, strict=True)) for values in (turns, *([r[f] for r in results] for f in FIGURES[1:]))]
    rows = [
        (f"{beta:g}", section.spread(turn, 1), section.spread(span, 1), *map(section.percent, errors))
        for beta, turn, span, *errors in zip(betas, *by_beta, strict=True)
    ]
    first, last = (mean(by_beta[0][index]) for index in (0, -1))
    falls = sum(one == sorted(one, reverse=True) for one in turns)
    title = "Boundary between two spirals, 16 % of the training labels wrong"
    note = "Nothing is chosen here: all values of beta are shown, their test errors too."
    columns = "beta|turning (turns)|length|training error (%)|test error (%)"
    return section.Section(
        findings=[
            f"The boundary turns {first:.1f} times in all with ReLU and {last:.1f} times at beta = "
            f"{betas[-1]:g}; it turned less at every smaller beta in {falls} of {len(results)} repetitions. A "
            "boundary that turns less is not a better one: see the test errors."
        ],
        grids=[section.grid(title, columns, rows, results, note)],
        plots=[_plot(results[0]["lines"], results[0]["points"])] if "lines" in results[0] else [],
    )


@styled
def _plot(lines: Mapping[str, Sequence[Sequence[Sequence[float]]]], points: Sequence[Sequence[float]]) -> Plot:
    """The boundary of the first repetition by beta, ``[m, 2]`` each, over its training samples ``[n, 3]``."""
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
    caption = (
        "Where the first repetition's network changes its mind; dots are training samples in the colour of their label."
    )
    return plot(drawing, [], "boundaries", "The same network at several values of beta", caption)

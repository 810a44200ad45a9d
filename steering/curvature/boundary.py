"""How much a decision boundary in the plane turns, and how long it is, for every beta."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from contourpy import contour_generator
from torch import nn

from steering.curvature.classification import Classification, Split, answers, error, recipe, trained
from steering.curvature.methods import network
from steering.curvature.replace import replace_relus
from steering.curvature.samples import spirals
from steering.curvature.search import with_relu
from steering.curvature.unit import set_beta

EDGE = 1.2  # the plane is looked at from -EDGE to EDGE
POINTS = 161  # of the grid, along each side
NOISE = 0.16  # share of wrong training labels
SHOWN = 4  # values of beta at most, in pictures


def lines(model: nn.Module, edge: float = EDGE, points: int = POINTS) -> list[np.ndarray]:
    """Where two classes score the same in a square around 0.

    Args:
        model: from ``[n, 2]`` to two scores.
        edge: half the side of the square.
        points: of the grid along a side; between them the score is taken as linear.

    Returns:
        Polylines ``[m, 2]``; closed ones end where they begin.
    """
    side = np.linspace(-edge, edge, points)
    x, y = np.meshgrid(side, side)
    scores = answers(model, torch.tensor(np.stack([x.ravel(), y.ravel()], -1), dtype=torch.float32))
    gap = (scores[:, 0] - scores[:, 1]).reshape(points, points).double().numpy()
    return [np.asarray(line) for line in contour_generator(x, y, gap).lines(0.0)]


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

    Nothing is chosen here: every beta is shown with its test error.

    Returns:
        ``betas`` and, for each, ``turning`` in radians, ``length`` in units of the plane, ``training`` and ``test``
        error; ``lines`` of those betas that are drawn, and the training samples, ``points``, of the first repetition.
    """
    training = spirals(400, NOISE, seed, "training")
    test = spirals(1000, 0.0, seed, "test")
    task = Classification(lambda: network(2, 20, 3, 2), training, test, test, recipe(steps, 100, 1e-2))
    tuned = replace_relus(trained(task, task.recipe, seed), 1.0, example=(test.x[:2],)).model
    found: dict[str, Any] = {"betas": with_relu(betas), "turning": [], "length": [], "training": [], "test": []}
    drawn: dict[str, list] = {}
    last = len(found["betas"]) - 1
    shown = {found["betas"][round(place * last / (SHOWN - 1))] for place in range(SHOWN)}
    for beta in found["betas"]:
        set_beta(tuned, beta)
        boundary = lines(tuned)
        found["turning"].append(sum(map(turning, boundary)))
        found["length"].append(sum(map(length, boundary)))
        found["training"].append(error(tuned, training))
        found["test"].append(error(tuned, test))
        if seed == 0 and beta in shown:
            drawn[f"{beta:g}"] = [np.round(line, 3).tolist() for line in boundary]
    return found | ({"lines": drawn, "points": _rows(training)} if seed == 0 else {})


def _rows(samples: Split) -> list[list[float]]:
    """Place and class of every sample."""
    return [
        [round(a, 3), round(b, 3), label] for (a, b), label in zip(samples.x.tolist(), samples.y.tolist(), strict=True)
    ]

"""Worst-case risks of samples that take few different values: counts of atoms instead of rows of losses.

The rules of ``steering.rules`` take every sample by itself; with a handful of atoms the same risks cost nothing at any
n. ``by_rule`` expands the samples and asks the rule, which is how the two are held against each other.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from steering.rules import Rule

Array = NDArray[np.float64]
Counts = NDArray[np.int64]

# Values [hypotheses, atoms] and counts [..., hypotheses, atoms] -> risks [..., hypotheses].
Risk = Callable[[Array, Counts], Array]

HALVINGS = 60  # of the bracket of a temperature's logarithm, 40 wide


def mean(values: Array, counts: Counts) -> Array:
    """The empirical risk."""
    return (values * counts).sum(-1) / counts.sum(-1)


def mean_and_deviation(values: Array, counts: Counts, rho: float) -> Array:
    """``mean + sqrt(2 rho / n) * standard deviation``: the chi-square risk where no weight touches zero."""
    n = counts.sum(-1)
    centred = values - mean(values, counts)[..., None]
    return mean(values, counts) + np.sqrt(2 * rho / n * (np.square(centred) * counts).sum(-1) / n)


def interior(values: Array, counts: Counts, rho: float) -> NDArray[np.bool_]:
    """Where no weight touches zero: ``sqrt(2 rho / n) (mean - smallest) <= standard deviation``."""
    smallest = np.where(counts > 0, values, np.inf).min(-1)
    middle, n = mean(values, counts), counts.sum(-1)
    return 2 * rho / n * (middle - smallest) <= mean_and_deviation(values, counts, rho) - middle


def chi_square(values: Array, counts: Counts, rho: float) -> Array:
    """Worst mean over ``D(p || uniform) <= rho / n`` for phi(t) = (t-1)^2/2, as ``steering.rules.ChiSquare``.

    With the k largest atoms above the cut, holding N samples of mean m and variance v, the cut is ``m - u`` with
    ``u^2 = n v / ((1 + 2 rho / n) N - n)``.
    """
    values, counts = _descending(values, counts)
    n = counts.sum(-1, keepdims=True)
    inside = counts.cumsum(-1)
    size = np.maximum(inside, 1)
    centre = (values * counts).cumsum(-1) / size
    variance = np.maximum((np.square(values) * counts).cumsum(-1) / size - np.square(centre), 0)
    room = (1 + 2 * rho / n) * inside - n
    cuts = centre - np.sqrt(n * variance / np.where(room > 0, room, np.inf))
    following = np.concatenate([values[..., 1:], np.full_like(values[..., :1], -np.inf)], -1)
    index = ((room > 0) & (cuts >= following)).argmax(-1)[..., None]
    weights = np.maximum(values - np.take_along_axis(cuts, index, -1), 0) * counts
    total = weights.sum(-1)
    largest = _largest(values, counts)
    # So few samples hold the largest value that the ball reaches them alone.
    return np.where(total > 0, (weights * values).sum(-1) / np.where(total > 0, total, 1), largest)


def kl(values: Array, counts: Counts, rho: float) -> Array:
    """Worst mean over ``KL(p || uniform) <= rho / n``, as ``steering.rules.KL``."""
    shares = counts / counts.sum(-1, keepdims=True)
    below = values - _largest(values, counts)[..., None]
    below = np.where(counts > 0, below, 0)
    width = np.maximum(-below.min(-1, keepdims=True), 1e-30)
    low, high = np.log(width) - 10, np.log(width) + 30
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        tilted = below / np.exp(middle)
        weights = shares * np.exp(tilted)
        total = weights.sum(-1, keepdims=True)
        # Of the softmax, from the shares.
        divergence = (weights * tilted).sum(-1, keepdims=True) / total - np.log(total)
        outside = divergence > rho / counts.sum(-1, keepdims=True)
        low, high = np.where(outside, middle, low), np.where(outside, high, middle)
    weights = shares * np.exp(below / np.exp(high))
    return _largest(values, counts) + (weights * below).sum(-1) / weights.sum(-1)


def cvar(values: Array, counts: Counts, kept: float) -> Array:
    """Mean of the ``kept`` share of largest values, as ``steering.rules.CVaR``."""
    values, counts = _descending(values, counts)
    size = kept * counts.sum(-1, keepdims=True)
    taken = np.clip(size - (counts.cumsum(-1) - counts), 0, counts)
    return (taken * values).sum(-1) / size[..., 0]


def by_rule(rule: Rule, values: Array, counts: Counts) -> Array:
    """The risk as a rule of the engine gives it, sample by sample: ``[hypotheses, atoms]`` -> ``[hypotheses]``."""
    n = int(counts[0].sum())
    rows = np.repeat(values.ravel(), counts.ravel()).reshape(len(values), n)
    excess = torch.from_numpy(rows)
    level = rule.dual(excess, torch.ones_like(excess, dtype=torch.bool), n)
    return (rule.weights(excess, level) * excess).mean(-1).numpy()


def _descending(values: Array, counts: Counts) -> tuple[Array, Counts]:
    """Largest values first, the counts with them."""
    order = np.argsort(-values, -1, kind="stable")
    return np.take_along_axis(values, order, -1), np.take_along_axis(counts, np.broadcast_to(order, counts.shape), -1)


def _largest(values: Array, counts: Counts) -> Array:
    return np.where(counts > 0, values, -np.inf).max(-1)

"""Intervals by resampling: paired, clustered, and in two levels over repetitions and their samples.

A draw takes every sample, or cluster of samples, some number of times; all figures of a draw come from the same
numbers, so that what is paired stays paired. ``scipy.stats.bootstrap`` has neither clusters of unequal sizes nor
levels, copies the samples of every draw, and an infinite draw can make its ends NaN.

Example:
    >>> rng = np.random.default_rng(0)
    >>> values = rng.normal(size=500)
    >>> drawn = means(values[:, None], rng=rng)[:, 0]
    >>> estimate = interval(Drawn(float(values.mean()), drawn), units=500)
    >>> estimate.low < 0 < estimate.high
    True
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray
from scipy.stats import norm, t

LEVEL = 0.95
DRAWS = 1000
OUTER = 4000  # draws of repetitions; cheap, and the ends of an interval over few of them lie far out
BLOCK = 1 << 22  # multiplicities held at a time


@dataclass(frozen=True)
class Estimate:
    """A figure, and how far chance may have moved it."""

    value: float  # of the samples as they are
    low: float  # ends of its 95 % interval
    high: float

    def map(self, function: Callable[[float], Any]) -> "Estimate":
        """The same of a rising function of the figure."""
        return Estimate(*(float(function(x)) for x in (self.value, self.low, self.high)))


class Drawn(NamedTuple):
    """A figure of the samples as they are, and in every draw, ``[draws]``."""

    value: float
    draws: ndarray


def multiplicities(units: int, draws: int, rng: np.random.Generator) -> Iterator[ndarray]:
    """How often every unit is taken in each draw, ``[draws of a block, units]`` at a time."""
    rows_of_block = max(1, BLOCK // units)
    for start in range(0, draws, rows_of_block):
        rows = min(rows_of_block, draws - start)
        taken = rng.integers(units, size=(rows, units)) + units * np.arange(rows)[:, None]
        yield np.bincount(taken.ravel(), minlength=rows * units).reshape(rows, units).astype(float)


def means(
    columns: ndarray, *, rng: np.random.Generator, clusters: ndarray | None = None, draws: int = DRAWS
) -> ndarray:
    """Means of ``columns``, ``[n, k]``, a row a sample, in every draw: ``[draws, k]``.

    Samples with the same label of ``clusters``, ``[n]``, are taken together; each is its own without.
    """
    sums, sizes = columns, np.ones(len(columns))
    if clusters is not None:
        cluster = np.unique(clusters, return_inverse=True)[1]
        sizes = np.bincount(cluster).astype(float)
        sums = np.stack([np.bincount(cluster, column) for column in columns.T], 1)
    blocks = multiplicities(len(sums), draws, rng)
    return np.concatenate([(taken @ sums) / (taken @ sizes)[:, None] for taken in blocks])


def slopes(x: ndarray, y: ndarray, weights: ndarray) -> ndarray:
    """Least-squares slopes of ``y``, ``[..., n]``, against ``x``, ``[n]``, one for every row of weights, ``[..., n]``.

    NaN where all weight lies on a single x. Weights are the multiplicities of draws, say.
    """
    total = weights.sum(-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        centred = x - (weights * x).sum(-1, keepdims=True) / total
        spread = (weights * centred**2).sum(-1)
        rises = (weights * centred * y).sum(-1) / spread
    return np.where(spread > 1e-9 * np.ptp(x) ** 2 * total[..., 0], rises, np.nan)


def two_level(
    repetitions: Sequence[Drawn], *, rng: np.random.Generator, crossed: bool = False, draws: int = OUTER
) -> Drawn:
    """The mean of a figure over repetitions, which are drawn first and then, within each, its samples.

    ``crossed``: the repetitions share their samples, and draw b took the same of them in all repetitions.
    """
    inner = np.stack([repetition.draws for repetition in repetitions])
    number, inner_draws = inner.shape
    taken = rng.integers(number, size=(draws, number))
    within = rng.integers(inner_draws, size=(draws, 1 if crossed else number))
    return Drawn(float(np.mean([repetition.value for repetition in repetitions])), inner[taken, within].mean(1))


def interval(drawn: Drawn, units: int) -> Estimate:
    """The percentile interval, expanded for few units (Hesterberg 2015, section 5.3).

    Bare percentiles are too narrow by sqrt((n - 1) / n) and by the normal's quantile in place of Student's; they are
    taken further out to make up for it, which for ten units means 99 % where 95 % is meant, for 500 nothing. Units are
    the samples, clusters or repetitions that were drawn first.
    """
    if units < 2:
        return Estimate(drawn.value, -np.inf, np.inf)
    beyond = tail(units)
    low, high = np.quantile(drawn.draws, [beyond, 1 - beyond], method="inverted_cdf")  # infinite draws do no harm
    return Estimate(drawn.value, float(low), float(high))


def tail(units: int) -> float:
    """The share of draws beyond either end of an interval, expanded for few units; of two or more."""
    return float(norm.cdf(-t.ppf((1 + LEVEL) / 2, units - 1) * np.sqrt(units / (units - 1))))

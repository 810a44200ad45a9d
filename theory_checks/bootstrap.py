"""Intervals by resampling: paired, clustered, and in two levels over repetitions and their samples.

A draw takes every sample, or cluster of samples, some number of times; all figures of a draw come from the same
numbers, so that what is paired stays paired. Ratios are averaged as logarithms.

Example:
    >>> chance = np.random.default_rng(0)
    >>> loss, other = chance.normal(size=(2, 500))
    >>> found = log_variance_ratio(loss - other, loss, chance=chance)
    >>> interval(found, units=500).low > 0  # the difference of two unrelated losses varies more than one of them
    True
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy import ndarray
from scipy.stats import norm
from scipy.stats import t as student

LEVEL = 0.95
DRAWS = 1000
OUTER = 4000  # draws of repetitions; cheap, and the ends of an interval over few of them lie far out
BLOCK = 1 << 22  # counts held at a time


@dataclass(frozen=True)
class Estimate:
    """A figure, and how far chance may have moved it.

    Attributes:
        value: of the samples as they are.
        low, high: ends of its 95 % interval.
    """

    value: float
    low: float
    high: float


class Drawn(NamedTuple):
    """A figure of the samples as they are, and in every draw, ``[draws]``."""

    value: float
    draws: ndarray


def counts(units: int, draws: int, chance: np.random.Generator) -> Iterator[ndarray]:
    """How often every unit is taken in each draw, ``[some draws, units]`` at a time."""
    most = max(1, BLOCK // units)
    for start in range(0, draws, most):
        rows = min(most, draws - start)
        taken = chance.integers(units, size=(rows, units)) + units * np.arange(rows)[:, None]
        yield np.bincount(taken.ravel(), minlength=rows * units).reshape(rows, units).astype(float)


def means(
    columns: ndarray, *, chance: np.random.Generator, clusters: ndarray | None = None, draws: int = DRAWS
) -> ndarray:
    """Means of columns in every draw.

    Args:
        columns: ``[n, k]``, a row a sample; its values stay together.
        chance: what draws.
        clusters: ``[n]`` labels of samples that are taken together; each is its own if not given.
        draws: number of them.

    Returns:
        ``[draws, k]``.
    """
    sums, sizes = columns, np.ones(len(columns))
    if clusters is not None:
        place = np.unique(clusters, return_inverse=True)[1]
        sizes = np.bincount(place).astype(float)
        sums = np.stack([np.bincount(place, column) for column in columns.T], 1)
    return np.concatenate([(taken @ sums) / (taken @ sizes)[:, None] for taken in counts(len(sums), draws, chance)])


def log_variance_ratio(
    first: ndarray,
    second: ndarray,
    *,
    chance: np.random.Generator,
    clusters: ndarray | None = None,
    draws: int = DRAWS,
) -> Drawn:
    """log(Var(first) / Var(second)) of paired values ``[n]``."""
    first, second = first - first.mean(), second - second.mean()  # or squares of large means would cost digits
    columns = np.stack([first, first**2, second, second**2], 1)

    def ratio(mean: ndarray) -> ndarray:
        return np.log(mean[..., 1] - mean[..., 0] ** 2) - np.log(mean[..., 3] - mean[..., 2] ** 2)

    return Drawn(float(ratio(columns.mean(0))), ratio(means(columns, chance=chance, clusters=clusters, draws=draws)))


def two_level(
    repetitions: Sequence[Drawn], *, chance: np.random.Generator, crossed: bool = False, draws: int = OUTER
) -> Drawn:
    """The mean over repetitions, which are drawn first and then, within each, its samples.

    Args:
        repetitions: the same figure of each, with draws of its samples.
        chance: what draws.
        crossed: the repetitions share their samples, and draw b took the same of them in all repetitions.
        draws: number of them.
    """
    inner = np.stack([repetition.draws for repetition in repetitions])
    number, known = inner.shape
    taken = chance.integers(number, size=(draws, number))
    within = chance.integers(known, size=(draws, 1 if crossed else number))
    return Drawn(float(np.mean([repetition.value for repetition in repetitions])), inner[taken, within].mean(1))


def interval(drawn: Drawn, units: int) -> Estimate:
    """The percentile interval, expanded for few units (Hesterberg 2015, section 5.3).

    Bare percentiles are too narrow by sqrt((n - 1) / n) and by the normal's quantile in place of Student's; they are
    taken further out to make up for it, which for ten units means 99 % where 95 % is meant, for 500 nothing.

    Args:
        drawn: the figure and its draws.
        units: samples, clusters or repetitions that were drawn first.
    """
    if units < 2:
        return Estimate(drawn.value, -np.inf, np.inf)
    beyond = tail(units)
    low, high = np.quantile(drawn.draws, [beyond, 1 - beyond], method="inverted_cdf")  # infinite draws do no harm
    return Estimate(drawn.value, float(low), float(high))


def tail(units: int) -> float:
    """The share of draws beyond either end of an interval, expanded for few units; of two or more."""
    return float(norm.cdf(-student.ppf((1 + LEVEL) / 2, units - 1) * np.sqrt(units / (units - 1))))

"""A claim of the theory beside what was measured, and whether it holds."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import binomtest

from steering.runs.statistics import interval as over_repetitions
from steering.theory_checks.bootstrap import Drawn, Estimate, interval, means
from steering.theory_checks.bound.atoms import Array

Verdict = Literal["holds", "fails", "undecided", "no claim"]


@dataclass(frozen=True)
class Claim:
    """One row of the report.

    Attributes:
        part: which check it belongs to.
        name: what is claimed.
        predicted: in words, with the band within which it counts as met.
        measured: the number.
        low, high: the band; None for both where the theory claims nothing.
        percent: whether the number is a share.
    """

    part: str
    name: str
    predicted: str
    measured: Estimate
    low: float | None = None
    high: float | None = None
    percent: bool = False

    @property
    def verdict(self) -> Verdict:
        """Holds if the whole interval lies in the band, fails if none of it does."""
        if self.low is None and self.high is None:
            return "no claim"
        low = -np.inf if self.low is None else self.low
        high = np.inf if self.high is None else self.high
        if low <= self.measured.low and self.measured.high <= high:
            return "holds"
        if self.measured.high < low or self.measured.low > high:
            return "fails"
        return "undecided"


def slopes(sizes: Array, values: Array) -> Array:
    """Least-squares slope of log value against log size, ``[..., sizes]`` -> ``[...]``; zeros are left out."""
    used = values > 0
    number = np.maximum(used.sum(-1, keepdims=True), 1)
    x = np.where(used, np.log(sizes), 0)
    y = np.log(np.where(used, values, 1))
    x = np.where(used, x - x.sum(-1, keepdims=True) / number, 0)
    return (x * y).sum(-1) / np.maximum(np.square(x).sum(-1), 1e-300)


def slope(sizes: tuple[int, ...], values: Array, chance: np.random.Generator) -> Estimate:
    """The rate at which the mean of ``[sizes, repetitions]`` falls, with the bootstrap over repetitions."""
    places = np.array(sizes, dtype=float)
    drawn = slopes(places, means(values.T, chance=chance))
    return interval(Drawn(float(slopes(places, values.mean(1))), drawn), units=values.shape[1])


def ratio(first: Array, second: Array, chance: np.random.Generator) -> Drawn:
    """Mean of ``[repetitions]`` over the mean of others on the same samples."""
    drawn = means(np.stack([first, second], 1), chance=chance)
    return Drawn(float(first.mean() / second.mean()), drawn[:, 0] / drawn[:, 1])


def share(hits: int, of: int) -> Estimate:
    """A share with Wilson's interval."""
    found = binomtest(hits, of).proportion_ci(method="wilson")
    return Estimate(hits / of, float(found.low), float(found.high))


def mean(values: Array) -> Estimate:
    """A mean over repetitions with its t interval."""
    found = over_repetitions(values.tolist())
    if found.low is None or found.high is None:
        return Estimate(found.mean, -np.inf, np.inf)
    return Estimate(found.mean, found.low, found.high)

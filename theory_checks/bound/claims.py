"""A claim of the theory beside what was measured, and whether it holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import binomtest

from steering.runs import statistics
from steering.theory_checks.bootstrap import Drawn, Estimate, interval, means, slopes
from steering.theory_checks.bound.atoms import Array

Verdict = Literal["holds", "fails", "undecided", "no claim"]


@dataclass(frozen=True)
class Claim:
    """One row of the report."""

    part: str  # which check it belongs to
    name: str  # what is claimed
    predicted: str  # in words, with the band within which it counts as met
    measured: Estimate
    low: float | None = None  # ends of the band; None for both where the theory claims nothing
    high: float | None = None
    percent: bool = False  # whether a share is measured

    @property
    def verdict(self) -> Verdict:
        """Holds if the whole interval lies in the band, fails if none of it does."""
        if self.low is None and self.high is None:
            return "no claim"
        low = -np.inf if self.low is None else self.low
        high = np.inf if self.high is None else self.high
        if low <= self.measured.low and self.measured.high <= high:
            return "holds"
        return "fails" if self.measured.high < low or self.measured.low > high else "undecided"


def log_slopes(sizes: Array, values: Array) -> Array:
    """Least-squares slope of log value against log size, ``[..., sizes]`` -> ``[...]``; zeros are left out."""
    positive = values > 0
    return np.nan_to_num(slopes(np.log(sizes), np.log(np.where(positive, values, 1)), positive))


def slope(sizes: Sequence[float], values: Array, draws: Array, units: int) -> Estimate:
    """The slope of ``[sizes]`` in logarithms, with the interval of its draws ``[draws, sizes]``."""
    drawn = Drawn(float(log_slopes(np.array(sizes), values)), log_slopes(np.array(sizes), draws))
    return interval(drawn, units)


def slope_of_means(sizes: Sequence[float], values: Array, rng: np.random.Generator) -> Estimate:
    """The exponent with which the mean of ``[sizes, repetitions]`` falls, by the bootstrap over repetitions."""
    return slope(sizes, values.mean(1), means(values.T, rng=rng), values.shape[1])


def ratio(first: Array, second: Array, rng: np.random.Generator) -> Drawn:
    """Mean of ``[repetitions]`` over the mean of others on the same samples."""
    drawn = means(np.stack([first, second], 1), rng=rng)
    return Drawn(float(first.mean() / second.mean()), drawn[:, 0] / drawn[:, 1])


def share(hits: int, trials: int) -> Estimate:
    """A share with Wilson's interval."""
    ends = binomtest(hits, trials).proportion_ci(method="wilson")
    return Estimate(hits / trials, float(ends.low), float(ends.high))


def mean(values: Array) -> Estimate:
    """A mean over repetitions with its t interval, without end where they do not differ."""
    result = statistics.interval(values.tolist())
    low, high = (-np.inf, np.inf) if result.low is None or result.high is None else (result.low, result.high)
    return Estimate(result.mean, low, high)

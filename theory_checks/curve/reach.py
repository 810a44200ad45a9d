"""How many samples a method needs to be as good as the reference, and how its error falls with their number."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from steering.theory_checks.bootstrap import tail

DRAWS = 2000  # bootstrap samples of seeds
LEAST_SIZES, LEAST_DECADES = 5, 1.5  # for a power law with a floor
TINY = 1e-9


@dataclass(frozen=True)
class Range:
    """A number as far as it is determined: itself (``low == high``), or between what it must lie."""

    low: float  # 0 where there is no lower limit
    high: float  # infinite where there is no upper limit

    def words(self, places: int = 0) -> str:
        """``203``, ``<50`` or ``>750``."""
        low, high = f"{self.low:,.{places}f}", f"{self.high:,.{places}f}"
        if self.low == self.high:
            return low
        if self.high == math.inf:
            return f">{low}" if self.low > 0 else "unknown"
        return f"<{high}" if self.low == 0 else f"{low} to {high}"


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, which may reach beyond what was measured."""

    value: Range  # from the mean over all seeds
    # percentiles of the bootstrap, expanded for few seeds; ``low`` 0 and ``high`` infinite where they lie
    # beyond
    interval: Range

    def words(self, places: int = 0) -> str:
        low = f"{self.interval.low:,.{places}f}" if self.interval.low > 0 else "below"
        high = f"{self.interval.high:,.{places}f}" if self.interval.high < math.inf else "beyond"
        return f"{self.value.words(places)} [{low}, {high}]"


def reach(sizes: Sequence[int], errors: Sequence[float], target: float) -> Range:
    """The number of samples at which a curve first comes down to a target.

    Between two sizes both logarithms are taken to be linear.

    Args:
        sizes: ``[k]``, rising.
        errors: ``[k]``, above 0.
        target: error to be reached.

    Returns:
        A number; below the first size if that one is enough, above the last one if none is.
    """
    if errors[0] <= target:
        return Range(0 if errors[0] < target else sizes[0], sizes[0])
    for index in range(1, len(sizes)):
        if errors[index] <= target:
            high, low, aim = (math.log(max(value, TINY)) for value in (errors[index - 1], errors[index], target))
            left, right = math.log(sizes[index - 1]), math.log(sizes[index])
            number = math.exp(left + (right - left) * (high - aim) / (high - low))
            return Range(number, number)
    return Range(sizes[-1], math.inf)


def ratio(above: Range, below: Range) -> Range:
    """As far as it is determined, the ratio of two numbers."""
    low = 0.0 if below.high == math.inf else above.low / below.high
    return Range(low, math.inf if below.low == 0 or above.high == math.inf else above.high / below.low)


def resamples(seeds: int, generator: np.random.Generator) -> np.ndarray:
    """``[DRAWS, seeds]`` indices of seeds drawn with replacement, the same for all that is compared."""
    return generator.integers(seeds, size=(DRAWS, seeds))


def reaches(sizes: Sequence[int], errors: np.ndarray, target: np.ndarray, draws: np.ndarray) -> list[Range]:
    """``reach`` of the mean of every draw of seeds, its target being of the same draw.

    Args:
        sizes: ``[k]``.
        errors: ``[seeds, k]``.
        target: ``[seeds]``, the reference's errors.
        draws: ``[draws, seeds]`` from ``resamples``.
    """
    curves, targets = errors[draws].mean(1), target[draws].mean(1)
    return [reach(sizes, list(curve), float(aim)) for curve, aim in zip(curves, targets, strict=True)]


def estimate(value: Range, drawn: Sequence[Range], seeds: int) -> Estimate:
    """With the interval from the lower ends of the draws to the upper ones; of one seed there is none.

    Args:
        value: from the mean over all seeds.
        drawn: the same of every draw.
        seeds: number of them.
    """
    if seeds < 2:
        return Estimate(value, Range(0, math.inf))
    beyond = tail(seeds)
    low = float(np.quantile([one.low for one in drawn], beyond, method="lower"))
    high = float(np.quantile([one.high for one in drawn], 1 - beyond, method="higher"))
    return Estimate(value, Range(low, high))


@dataclass(frozen=True)
class Slope:
    """Minus the exponent of ``error = A n^-b``, with its bootstrap interval; ``floored`` adds a floor."""

    exponent: float  # b of the law without a floor
    interval: tuple[float, float]  # of b
    # E of ``E + A n^-b`` with its interval, and that law's exponent with its own, where the data tell E
    floor: tuple[float, float, float] | None = None
    floored: tuple[float, float, float] | None = None
    reason: str = ""  # why there is no floor; empty where there is one


def slope(sizes: Sequence[int], errors: np.ndarray, draws: np.ndarray) -> Slope | None:
    """Fits of power laws to the mean curve in logarithms; None of fewer than 2 sizes.

    Args:
        sizes: ``[k]``.
        errors: ``[seeds, k]``.
        draws: from ``resamples``.
    """
    if len(sizes) < 2:
        return None
    curves = np.maximum(np.concatenate([errors.mean(0, keepdims=True), errors[draws].mean(1)]), TINY)
    exponent, *ends = _with_ends(_fit(np.log(sizes), np.log(curves))[0], len(errors))
    decades = math.log10(sizes[-1] / sizes[0])
    if len(sizes) < LEAST_SIZES or decades < LEAST_DECADES - 1e-9:
        reason = f"a floor needs {LEAST_SIZES} sizes over {LEAST_DECADES} decades, there are {len(sizes)} over "
        return Slope(exponent, (ends[0], ends[1]), reason=f"{reason}{decades:.2f}")
    floor, floored = (_with_ends(values, len(errors)) for values in _fit_with_floor(np.log(sizes), curves))
    if floor[1] <= 0 or floor[2] >= 0.99 * float(curves[0].min()):
        reason = "the data do not tell a floor from none, or from the last error"
        return Slope(exponent, (ends[0], ends[1]), reason=reason)
    return Slope(exponent, (ends[0], ends[1]), floor, floored)


def _with_ends(values: np.ndarray, seeds: int) -> tuple[float, float, float]:
    """The first value, of the mean curve, and the interval of the others, of the draws; without ends for one seed."""
    if seeds < 2:
        return float(values[0]), -math.inf, math.inf
    low, high = np.quantile(values[1:], [tail(seeds), 1 - tail(seeds)])
    return float(values[0]), float(low), float(high)


def _fit(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares of many lines: their falls and their sums of squares, of ``y`` ``[..., k]``."""
    x, y = x - x.mean(), y - y.mean(-1, keepdims=True)
    rise = (y * x).sum(-1) / (x**2).sum()
    return -rise, ((y - rise[..., None] * x) ** 2).sum(-1)


def _fit_with_floor(x: np.ndarray, curves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The floor and the exponent that fit every curve ``[draws, k]`` best, floors on a grid below its least error."""
    shares = np.concatenate([[0.0], np.linspace(0.01, 0.995, 150)])
    floors = shares * curves.min(-1, keepdims=True)  # [draws, grid]
    falls, misfit = _fit(x, np.log(curves[:, None] - floors[..., None]))
    best = (np.arange(len(curves)), misfit.argmin(-1))
    return floors[best], falls[best]

"""Power laws of error against compute, with intervals.

``E = A C^-b`` by least squares of the logarithms. Intervals by a bootstrap over runs or, where each point is a run of
its own, over points; what two methods share is drawn together. ``E = E_inf + A C^-b`` only where the data tell E_inf.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy import ndarray
from scipy.stats import t as student

from steering.errors import UserError
from steering.theory_checks.bootstrap import Drawn, Estimate, counts, interval
from steering.theory_checks.scaling.points import Point

DRAWS = 4000
FLOOR_DRAWS = 1000  # of the fit with E_inf
LEAST = 3  # different computes without which a line fits anything
DECADES, SIZES = 1.5, 5  # of compute, below which a floor is not even tried


@dataclass(frozen=True)
class Law:
    """The fit of one method.

    Attributes:
        method, points: of which and of how many.
        scale: A, at compute 1.
        exponent: b, with its interval.
        computes: the smallest and the largest.
        draws: exponents of all bootstrap draws, NaN where a draw had a single compute.
    """

    method: str
    points: int
    scale: float
    exponent: Estimate
    computes: tuple[float, float]
    draws: ndarray

    def error(self, compute: ndarray | float) -> ndarray:
        """What the law says."""
        return self.scale * np.asarray(compute) ** -self.exponent.value


@dataclass(frozen=True)
class Floor:
    """The fit with an error that no compute removes.

    Attributes:
        level: E_inf with its interval.
        exponent: b of what is above it, with its interval.
        identified: whether the interval of E_inf excludes zero or the smallest error.
    """

    level: Estimate
    exponent: Estimate
    identified: bool


@dataclass(frozen=True)
class Axis:
    """The gap of exponents along one axis of compute.

    Attributes:
        name: which, in words.
        gap: with its t interval.
        read: the interval if nothing but the reading of the figure were uncertain; None where nothing was read.
    """

    name: str
    gap: Estimate
    read: tuple[float, float] | None


def lines(x: ndarray, y: ndarray, weights: ndarray) -> tuple[ndarray, ndarray]:
    """Weighted least-squares lines.

    Args:
        x, y: ``[n]``.
        weights: ``[..., n]``, one fit each.

    Returns:
        Heights at x = 0 and slopes, ``[...]``; NaN where the weight lies on a single x.
    """
    total = weights.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        centre_x, centre_y = weights @ x / total, weights @ y / total
        spread = weights @ x**2 / total - centre_x**2
        slopes = (weights @ (x * y) / total - centre_x * centre_y) / spread
    slopes = np.where(spread > 1e-9 * np.ptp(x) ** 2, slopes, np.nan)
    return centre_y - slopes * centre_x, slopes


def fit(points: Sequence[Point], seed: int = 0) -> dict[str, Law]:
    """Fits every method on its own; the draws are paired between methods.

    Raises:
        UserError: a method with fewer than three different computes.
    """
    methods = list(dict.fromkeys(point.method for point in points))
    units = list(dict.fromkeys(point.unit for point in points))
    drawn = np.concatenate(list(counts(len(units), DRAWS, np.random.default_rng(seed))))
    found = {}
    for method in methods:
        mine = [point for point in points if point.method == method]
        x, y = _logarithms(mine)
        if len(set(x)) < LEAST:
            raise UserError(
                f"a power law of {method} needs at least {LEAST} different computes, got {len(set(x))}: add points, or "
                f"choose methods by --where method=A,B"
            )
        centre = x.mean()  # the height is read in the middle of the data, where it does not hang on the slope
        height, slope = lines(x - centre, y, np.ones(len(x)))
        _, slopes = lines(x - centre, y, drawn[:, [units.index(point.unit) for point in mine]])
        own = len({point.unit for point in mine})
        exponent = interval(Drawn(-float(slope), _finite(-slopes)), units=own)
        scale = float(np.exp(height - slope * centre))
        ends = (float(np.exp(x.min())), float(np.exp(x.max())))
        found[method] = Law(method, len(mine), scale, exponent, ends, -slopes)
    return found


def gap(law: Law, baseline: Law, units: int) -> Estimate:
    """How much steeper ``law`` is than the baseline, from paired draws; positive is steeper."""
    value = law.exponent.value - baseline.exponent.value
    return interval(Drawn(value, _finite(law.draws - baseline.draws)), units=units)


def paired_gap(points: Sequence[Point], method: str, baseline: str) -> Estimate | None:
    """The same from few points: minus the slope of log(error / baseline's error), with its t interval.

    None where fewer than three different computes have points of both.
    """
    ours, theirs = ({p.unit: p for p in points if p.method == name} for name in (method, baseline))
    shared = [unit for unit in ours if unit in theirs and ours[unit].compute == theirs[unit].compute]
    x = np.log([ours[unit].compute for unit in shared])
    if len(set(x)) < LEAST:
        return None
    y = np.log([ours[unit].error / theirs[unit].error for unit in shared])
    x = x - x.mean()
    height, slope = (float(value) for value in lines(x, y, np.ones(len(x))))
    left = y - height - slope * x
    error = np.sqrt(left @ left / (len(x) - 2) / (x @ x))
    half = float(student.ppf(0.975, len(x) - 2) * error)
    return Estimate(-slope, -slope - half, -slope + half)


def by_axis(points: Sequence[Point], method: str, baseline: str, error: float | None, seed: int = 0) -> list[Axis]:
    """The gap split into what samples do at a fixed model size and what the size does at fixed samples.

    log(error / baseline's error) regressed on log samples and log(compute / samples) together; where one of the two
    does not vary, or points without samples are among them, there is nothing to split.

    Args:
        points: with ``samples``.
        method, baseline: which two.
        error: standard deviation of a reading of an error, if it was read off a figure.
        seed: of the simulated readings.
    """
    ours, theirs = ({p.unit: p for p in points if p.method == name} for name in (method, baseline))
    shared = [unit for unit in ours if unit in theirs and ours[unit].compute == theirs[unit].compute]
    samples = np.array([ours[unit].samples or np.nan for unit in shared])
    sizes = np.array([ours[unit].compute for unit in shared]) / samples
    design = np.stack([np.ones(len(shared)), np.log(samples), np.log(sizes)], 1)
    freedom = len(shared) - 3
    if freedom < 1 or not np.isfinite(design).all() or np.linalg.matrix_rank(design - design.mean(0)) < 2:
        return []
    solve = np.linalg.pinv(design)
    values = [np.array([of[unit].error for unit in shared]) for of in (ours, theirs)]
    found = solve @ np.log(values[0] / values[1])
    left = np.log(values[0] / values[1]) - design @ found
    errors = np.sqrt(left @ left / freedom * np.diag(solve @ solve.T))
    half = student.ppf(0.975, freedom) * errors
    read = None
    if error is not None:
        random = np.random.default_rng(seed)
        first, second = (np.log(value + random.normal(0, error, (DRAWS, len(shared)))) for value in values)
        read = np.quantile(-(first - second) @ solve.T, [0.025, 0.975], axis=0).T
    return [
        Axis(
            name,
            Estimate(-float(found[place]), -float(found[place] + half[place]), -float(found[place] - half[place])),
            None if read is None else (float(read[place][0]), float(read[place][1])),
        )
        for place, name in ((1, "samples, at fixed model size"), (2, "model size, at fixed samples"))
    ]


def misread(points: Sequence[Point], method: str, baseline: str, error: float, seed: int = 0) -> Estimate:
    """The gap if every error had been read off a figure with a standard deviation of ``error``."""
    random = np.random.default_rng(seed)
    values, draws = [], []
    for name in (method, baseline):
        mine = [point for point in points if point.method == name]
        x = np.log([point.compute for point in mine])
        true = np.array([point.error for point in mine])
        read = np.concatenate([true[None], true + random.normal(0, error, (DRAWS, len(mine)))])
        centred = x - x.mean()
        slopes = np.log(np.maximum(read, 1e-9)) @ centred / (centred @ centred)
        values.append(-slopes[0])
        draws.append(-slopes[1:])
    low, high = np.quantile(draws[0] - draws[1], [0.025, 0.975])
    return Estimate(float(values[0] - values[1]), float(low), float(high))


def floor(points: Sequence[Point], seed: int = 0) -> Floor | None:
    """The fit with E_inf to points of one method; None where they are too few or too close together."""
    x, y = _logarithms(points)
    if len(set(x)) < SIZES or np.ptp(x) < DECADES * np.log(10):
        return None
    units = list(dict.fromkeys(point.unit for point in points))
    places = [units.index(point.unit) for point in points]
    taken = np.concatenate(list(counts(len(units), FLOOR_DRAWS, np.random.default_rng(seed))))
    drawn = taken[:, places]
    different = sum((drawn[:, x == place].any(1) for place in set(x)), np.zeros(len(drawn), dtype=int))
    weights = np.concatenate([np.ones((1, len(x))), drawn[different > LEAST]])
    levels, exponents = _with_floor(x, y, weights)
    found = interval(Drawn(float(levels[0]), levels[1:]), units=len(units))
    smallest = float(np.exp(y.min()))
    unknown = found.low <= 0.02 * smallest and found.high >= 0.98 * smallest
    exponent = interval(Drawn(float(exponents[0]), exponents[1:]), units=len(units))
    return Floor(found, exponent, not unknown)


def _with_floor(x: ndarray, y: ndarray, weights: ndarray) -> tuple[ndarray, ndarray]:
    """E_inf and b of least squared relative errors, ``[draws, n]`` -> ``[draws]`` each.

    For a given b, E_inf and A follow from two linear equations; b is searched on a grid and then on finer ones around
    the best, so that no draw depends on where a descent began. E_inf is at least zero.
    """
    exponents = np.tile(np.linspace(np.log(0.01), np.log(4), 60), (len(weights), 1))
    for step in (0.1, 0.01, 0.001, 1e-4):
        _, centre = _best(x - x.mean(), y, weights, exponents)
        exponents = centre + step * np.linspace(-1, 1, 21)
    level, centre = _best(x - x.mean(), y, weights, exponents)
    return level[:, 0], np.exp(centre[:, 0])


def _best(x: ndarray, y: ndarray, weights: ndarray, exponents: ndarray) -> tuple[ndarray, ndarray]:
    """E_inf and the logarithm of b where the error is least, ``[draws, 1]`` each."""
    levels, costs = _given(x, y, weights, np.exp(exponents))
    place = costs.argmin(-1)[:, None]
    return np.take_along_axis(levels, place, -1), np.take_along_axis(exponents, place, -1)


def _given(x: ndarray, y: ndarray, weights: ndarray, exponents: ndarray) -> tuple[ndarray, ndarray]:
    """E_inf and the squared relative error for exponents ``[draws, grid]``, the same shape each."""
    falling = np.exp(-exponents[..., None] * x - y)  # the two terms in units of the error
    constant, weighted = np.exp(-y), weights[:, None, :] * falling
    aa, a = (weights @ constant**2)[:, None], (weights @ constant)[:, None]
    ab, bb, b = weighted @ constant, (weighted * falling).sum(-1), weighted.sum(-1)
    determinant = aa * bb - ab**2
    known = determinant > 1e-12 * aa * bb  # or the two terms are one
    level = np.where(known, (a * bb - b * ab) / np.where(known, determinant, 1), 0).clip(min=0)
    scale = np.maximum((b - level * ab) / bb, 0)
    left = level[..., None] * constant + scale[..., None] * falling - 1  # not expanded: what is left may be tiny
    return level, (weights[:, None, :] * left**2).sum(-1)


def _logarithms(points: Sequence[Point]) -> tuple[ndarray, ndarray]:
    return np.log([point.compute for point in points]), np.log([point.error for point in points])


def _finite(draws: ndarray) -> ndarray:
    return draws[np.isfinite(draws)]

"""Power laws of error against compute with intervals, and how far two of them differ and why.

``E = A C^-b`` by least squares of the logarithms. Intervals by a bootstrap over runs or, where each point is a run of
its own, over points; what two methods share is drawn together. ``E = E_inf + A C^-b`` only where the data tell E_inf.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy import ndarray
from scipy.stats import linregress
from statsmodels.regression.linear_model import OLS

from steering.errors import UserError, did_you_mean
from steering.theory_checks.bootstrap import Drawn, Estimate, interval, multiplicities, slopes
from steering.theory_checks.scaling.points import Point

DRAWS = 4000
TAILS = (0.025, 0.975)
FLOOR_DRAWS = 1000  # of the fit with E_inf
LEAST = 3  # different computes without which a line fits anything
DECADES, SIZES = 1.5, 5  # of compute, below which a floor is not even tried
AXES = ("samples, at fixed model size", "model size, at fixed samples")

Ends = tuple[float, float]


@dataclass(frozen=True)
class Law:
    """The fit of one method."""

    method: str
    points: int  # number of them
    scale: float  # A, at compute 1
    exponent: Estimate  # b, with its interval
    computes: Ends  # the smallest and the largest
    draws: ndarray  # exponents of all bootstrap draws, NaN where a draw had a single compute

    def error(self, compute: ndarray | float) -> ndarray:
        """A C^-b."""
        return self.scale * np.asarray(compute) ** -self.exponent.value


@dataclass(frozen=True)
class Floor:
    """The fit with an error that no compute removes."""

    level: Estimate  # E_inf with its interval
    exponent: Estimate  # b of what is above it, with its interval
    identified: bool  # whether the interval of E_inf excludes zero or the smallest error


@dataclass(frozen=True)
class Gap:
    """How much larger a method's exponent is than the baseline's, on some of the points or along one axis."""

    name: str  # of these points or of the axis
    value: Estimate  # the difference with its interval
    read: Ends | None  # ends of its interval if only the reading of a figure were uncertain; None where none was read

    @property
    def direction(self) -> Literal["steeper", "flatter", "undecided"]:
        """Decided only where neither chance nor the reading of a figure could have turned the sign."""
        read = self.read or (self.value.low, self.value.high)
        if min(self.value.low, read[0]) > 0:
            return "steeper"
        return "flatter" if max(self.value.high, read[1]) < 0 else "undecided"


@dataclass(frozen=True)
class Subset:
    """The fits to one choice of points."""

    name: str  # how the points were chosen
    points: list[Point]  # those that were fitted
    laws: dict[str, Law]  # of every method
    floors: dict[str, Floor | None]  # the fit with E_inf, None where it was not tried
    # Of every method but the baseline: on all points, along AXES, and for every model and number of samples.
    gaps: dict[str, list[Gap]]


def subset(name: str, points: Sequence[Point], baseline: str, error: float | None, seed: int) -> Subset:
    """Fits one choice of points; ``error`` is the standard deviation of a reading, if they were read off a figure."""
    if not points:
        raise UserError(f"no points are left of {name}: loosen --where")
    methods = list(dict.fromkeys(point.method for point in points))
    if baseline not in methods:
        hint = did_you_mean(baseline, methods) or "."
        raise UserError(f"there are no points of the baseline {baseline!r}{hint} Methods: {', '.join(methods)}")
    laws, gaps = fit(points, seed), {}
    for method in methods:
        if method == baseline:
            continue
        both = [point for point in points if point.method in (method, baseline)]
        units = min(len({point.unit for point in both if point.method == one}) for one in (method, baseline))
        gaps[method] = [
            Gap(name, gap(laws[method], laws[baseline], units), misread(both, method, baseline, error, seed)),
            *by_axis(both, method, baseline, error, seed),
            *(
                Gap(group, paired, misread(chosen, method, baseline, error, seed))
                for group, chosen in _groups(both)
                if (paired := paired_gap(chosen, method, baseline)) is not None
            ),
        ]
    floors = {method: floor([p for p in points if p.method == method], seed) for method in methods}
    return Subset(name, list(points), laws, floors, gaps)


def _groups(points: Sequence[Point]) -> list[tuple[str, list[Point]]]:
    """The points of every model, and those of every number of samples, where there are several of both."""
    models = list(dict.fromkeys(point.model for point in points if point.model is not None))
    samples = sorted({point.samples for point in points if point.samples is not None})
    if len(models) < 2 or len(samples) < 2:
        return []
    groups = [(f"{model}, by samples", [p for p in points if p.model == model]) for model in models]
    groups += [(f"{value:.3g} samples, by size", [p for p in points if p.samples == value]) for value in samples]
    return groups


def fit(points: Sequence[Point], seed: int = 0) -> dict[str, Law]:
    """Fits every method separately, which takes three different computes; draws are paired between methods."""
    taken, laws = _taken(points, DRAWS, seed), {}
    for method in dict.fromkeys(point.method for point in points):
        chosen = [point for point in points if point.method == method]
        x, y = _logarithms(chosen)
        if len(set(x)) < LEAST:
            raise UserError(
                f"a power law of {method} needs at least {LEAST} different computes, got {len(set(x))}: add points, or "
                f"choose methods by --where method=A,B"
            )
        line: Any = linregress(x, y)
        draws = -slopes(x, y, taken[:, [point.method == method for point in points]])
        exponent = interval(Drawn(-float(line.slope), _finite(draws)), units=len({point.unit for point in chosen}))
        ends = (float(np.exp(x.min())), float(np.exp(x.max())))
        laws[method] = Law(method, len(chosen), float(np.exp(line.intercept)), exponent, ends, draws)
    return laws


def gap(law: Law, baseline: Law, units: int) -> Estimate:
    """How much steeper ``law`` is than the baseline, from paired draws; positive is steeper."""
    value = law.exponent.value - baseline.exponent.value
    return interval(Drawn(value, _finite(law.draws - baseline.draws)), units=units)


def paired_gap(points: Sequence[Point], method: str, baseline: str) -> Estimate | None:
    """Minus the slope of log(error / baseline error), with its t interval; None of fewer than three shared computes."""
    pairs = _pairs(points, method, baseline)
    x = np.log([point.compute for point, _ in pairs])
    return None if len(set(x)) < LEAST else _gaps(pairs, x[:, None])[0]


def by_axis(points: Sequence[Point], method: str, baseline: str, error: float | None, seed: int = 0) -> list[Gap]:
    """Splits the gap: how log(error / baseline's error) falls with samples and with the size, compute / samples.

    None of both where points of one setting are missing, or either did not vary.
    """
    pairs = _pairs(points, method, baseline)
    samples = np.log([point.samples or np.nan for point, _ in pairs])
    axes = np.stack([samples, np.log([point.compute for point, _ in pairs]) - samples], 1)
    if len(pairs) < 4 or not np.isfinite(axes).all() or np.linalg.matrix_rank(axes - axes.mean(0)) < 2:
        return []
    read: list[Ends | None] = [None, None]
    if error is not None:
        rng, solve = np.random.default_rng(seed), np.linalg.pinv(axes - axes.mean(0))
        first, second = (_read([pair[side].error for pair in pairs], error, rng) for side in (0, 1))
        low, high = np.quantile((second - first)[1:] @ solve.T, TAILS, axis=0)
        read = list(zip(low.tolist(), high.tolist(), strict=True))
    return [Gap(*parts) for parts in zip(AXES, _gaps(pairs, axes), read, strict=True)]


def misread(points: Sequence[Point], method: str, baseline: str, error: float | None, seed: int = 0) -> Ends | None:
    """Ends of the gap's interval if every error had been read with a standard deviation of ``error``, and only that."""
    if error is None:
        return None
    rng, exponents = np.random.default_rng(seed), []
    for name in (method, baseline):
        chosen = [point for point in points if point.method == name]
        readings = _read([point.error for point in chosen], error, rng)
        exponents.append(-slopes(_logarithms(chosen)[0], readings, np.ones(len(chosen))))
    low, high = np.quantile((exponents[0] - exponents[1])[1:], TAILS)
    return float(low), float(high)


def floor(points: Sequence[Point], seed: int = 0) -> Floor | None:
    """The fit with E_inf to points of one method; None where they are too few or too close together."""
    x, y = _logarithms(points)
    if len(set(x)) < SIZES or np.ptp(x) < DECADES * np.log(10):
        return None
    drawn, units = _taken(points, FLOOR_DRAWS, seed), len({point.unit for point in points})
    different = np.sum([drawn[:, x == value].any(1) for value in set(x)], 0)
    weights = np.concatenate([np.ones((1, len(x))), drawn[different > LEAST]])
    fits = _with_floor(x, y, weights)
    level, exponent = (interval(Drawn(float(values[0]), values[1:]), units=units) for values in fits)
    smallest = float(np.exp(y.min()))
    return Floor(level, exponent, identified=level.low > 0.02 * smallest or level.high < 0.98 * smallest)


def _taken(points: Sequence[Point], draws: int, seed: int) -> ndarray:
    """How often every point is taken in each draw of units, ``[draws, n]``."""
    units = list(dict.fromkeys(point.unit for point in points))
    taken = np.concatenate(list(multiplicities(len(units), draws, np.random.default_rng(seed))))
    return taken[:, [units.index(point.unit) for point in points]]


def _pairs(points: Sequence[Point], method: str, baseline: str) -> list[tuple[Point, Point]]:
    """The points of both methods in the same setting."""
    first, second = ({point.unit: point for point in points if point.method == name} for name in (method, baseline))
    pairs = [(first[unit], second[unit]) for unit in first if unit in second]
    return [(point, other) for point, other in pairs if point.compute == other.compute]


def _gaps(pairs: Sequence[tuple[Point, Point]], axes: ndarray) -> list[Estimate]:
    """Minus the coefficients of log(error / baseline's error) on ``axes``, ``[n, k]``, with their t intervals."""
    result: Any = OLS(
        np.log([point.error / other.error for point, other in pairs]), np.column_stack([np.ones(len(pairs)), axes])
    ).fit()
    values = zip(result.params[1:], result.conf_int()[1:], strict=True)
    return [Estimate(-float(value), -float(high), -float(low)) for value, (low, high) in values]


def _read(errors: Sequence[float], error: float, rng: np.random.Generator) -> ndarray:
    """Logarithms of the errors and, below, of simulated readings, ``[1 + draws, n]``."""
    true = np.array(errors)
    return np.log(np.maximum(np.concatenate([true[None], true + rng.normal(0, error, (DRAWS, len(true)))]), 1e-9))


def _with_floor(x: ndarray, y: ndarray, weights: ndarray) -> tuple[ndarray, ndarray]:
    """E_inf and b of least squared relative errors, ``[draws, n]`` -> ``[draws]`` each.

    For a given b, E_inf and A follow from two linear equations; b is searched on a grid and then on finer ones around
    the best, for all draws at once: ``scipy.optimize`` fits one at a time, from a start that could decide its end.
    """
    log_b, level = np.zeros((len(weights), 1)), np.zeros((len(weights), 1))
    finer = [step * np.linspace(-1, 1, 21) for step in (0.1, 0.01, 0.001, 1e-4)]
    for grid in (np.linspace(np.log(0.01), np.log(4), 60), *finer):
        levels, costs = _levels(x - x.mean(), y, weights, np.exp(log_b + grid))
        best = costs.argmin(-1)[:, None]
        level, log_b = np.take_along_axis(levels, best, -1), log_b + grid[best]
    return level[:, 0], np.exp(log_b[:, 0])


def _levels(x: ndarray, y: ndarray, weights: ndarray, exponents: ndarray) -> tuple[ndarray, ndarray]:
    """E_inf, at least zero, and the squared relative error for exponents ``[draws, grid]``, the same shape each."""
    falling = np.exp(-exponents[..., None] * x - y)  # the two terms in units of the error
    constant, weighted = np.exp(-y), weights[:, None, :] * falling
    aa, a = (weights @ constant**2)[:, None], (weights @ constant)[:, None]
    ab, bb, b = weighted @ constant, (weighted * falling).sum(-1), weighted.sum(-1)
    determinant = aa * bb - ab**2
    solvable = determinant > 1e-12 * aa * bb  # or the two terms are one
    level = np.where(solvable, (a * bb - b * ab) / np.where(solvable, determinant, 1), 0).clip(min=0)
    scale = np.maximum((b - level * ab) / bb, 0)
    residuals = level[..., None] * constant + scale[..., None] * falling - 1  # not expanded: they may be tiny
    return level, (weights[:, None, :] * residuals**2).sum(-1)


def _logarithms(points: Sequence[Point]) -> tuple[ndarray, ndarray]:
    return np.log([point.compute for point in points]), np.log([point.error for point in points])


def _finite(draws: ndarray) -> ndarray:
    return draws[np.isfinite(draws)]

"""All outcomes of a curve as numbers: errors, paired gains, samples to reach the reference, slopes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from steering.runs.statistics import LEVEL, Interval, Verdict, holm, interval, paired_difference
from steering.theory_checks.bootstrap import tail
from steering.theory_checks.curve.plan import REFERENCE, Cost, Plan
from steering.theory_checks.curve.units import Outcome

Outcomes = Mapping[tuple[str, int, int], Outcome]  # by method, size (0 for the reference) and seed
LEAST, LEAST_REFERENCE = 12, 20  # seeds for a claim, and for one against the reference
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
    interval: Range  # expanded percentiles of the bootstrap; ``low`` 0 and ``high`` infinite where they lie beyond

    def words(self, places: int = 0) -> str:
        low = f"{self.interval.low:,.{places}f}" if self.interval.low > 0 else "below"
        high = f"{self.interval.high:,.{places}f}" if self.interval.high < math.inf else "beyond"
        return f"{self.value.words(places)} [{low}, {high}]"


def reach(sizes: Sequence[int], errors: Sequence[float], target: float) -> Range:
    """The number of samples at which errors first come down to a target, both logarithms linear between sizes.

    Below the first size if that one is enough, above the last one if none is.
    """
    index = next((index for index, error in enumerate(errors) if error <= target), None)
    if index is None:
        return Range(sizes[-1], math.inf)
    if index == 0:
        return Range(0 if errors[0] < target else sizes[0], sizes[0])
    high, low, aim = (math.log(max(value, TINY)) for value in (errors[index - 1], errors[index], target))
    left, right = map(math.log, sizes[index - 1 : index + 1])
    number = math.exp(left + (right - left) * (high - aim) / (high - low))
    return Range(number, number)


def ratio(above: Range, below: Range) -> Range:
    """As far as it is determined, the ratio of two numbers."""
    low = 0.0 if below.high == math.inf else above.low / below.high
    return Range(low, math.inf if below.low == 0 or above.high == math.inf else above.high / below.low)


def reaches(sizes: Sequence[int], errors: np.ndarray, target: np.ndarray, draws: np.ndarray) -> list[Range]:
    """``reach`` of the mean of every draw of seeds, its target being of the same draw.

    Args:
        errors: ``[seeds, sizes]``.
        target: ``[seeds]``, the reference's errors.
        draws: ``[draws, seeds]`` indices of seeds drawn with replacement, the same for all that is compared.
    """
    curves, targets = errors[draws].mean(1), target[draws].mean(1)
    return [reach(sizes, list(curve), float(aim)) for curve, aim in zip(curves, targets, strict=True)]


def estimate(value: Range, drawn: Sequence[Range], seeds: int) -> Estimate:
    """With the interval from the lower ends of the draws to the upper ones; of one seed there is none."""
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


def slope(sizes: Sequence[int], errors: np.ndarray, draws: np.ndarray) -> Slope:
    """Fits of power laws to the mean curve in logarithms; arguments as of ``reaches``."""
    curves = np.maximum(np.concatenate([errors.mean(0, keepdims=True), errors[draws].mean(1)]), TINY)
    exponent, low, high = _with_ends(_fit(np.log(sizes), np.log(curves))[0], len(errors))
    decades, floor, floored = math.log10(sizes[-1] / sizes[0]), None, None
    reason = (
        f"a floor needs {LEAST_SIZES} sizes over {LEAST_DECADES} decades, there are {len(sizes)} over {decades:.2f}"
    )
    if len(sizes) >= LEAST_SIZES and decades >= LEAST_DECADES - 1e-9:
        floor, floored = (_with_ends(values, len(errors)) for values in _fit_with_floor(np.log(sizes), curves))
        undecided = floor[1] <= 0 or floor[2] >= 0.99 * float(curves[0].min())
        floor, floored = (None, None) if undecided else (floor, floored)
        reason = "the data do not tell a floor from none, or from the last error" if undecided else ""
    return Slope(exponent, (low, high), floor, floored, reason)


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


@dataclass(frozen=True)
class Gain:
    """How much smaller one method's error is than another's, at one size."""

    size: int  # training samples
    interval: Interval  # of the paired difference, positive where the first method is better; of this size alone
    adjusted: float | None  # p value after Holm over the sizes of the same comparison; None where there is none

    @property
    def verdict(self) -> Verdict:
        """Decided only if it still is after Holm."""
        if self.adjusted is None or self.adjusted >= 1 - LEVEL:
            return "undecided"
        return "better" if self.interval.mean > 0 else "worse"


def gains(sizes: Sequence[int], first: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> list[Gain]:
    """The gain of one method over another at every size, from errors ``[sizes][seeds]`` of the same seeds."""
    intervals = [paired_difference(a, b, "low") for a, b in zip(first, other, strict=True)]
    adjusted = iter(holm([one.p for one in intervals if one.p is not None]))
    return [
        Gain(size, one, None if one.p is None else next(adjusted)) for size, one in zip(sizes, intervals, strict=True)
    ]


@dataclass(frozen=True)
class Analysis:
    """What the outcomes say."""

    plan: Plan  # whose they are
    outcomes: Outcomes  # of every method, size and seed, and of the reference at size 0

    @property
    def names(self) -> list[str]:
        """Of the trained methods, in the order of the plan."""
        return list(self.plan.methods)

    def errors(self, name: str, size: int) -> list[float]:
        """One a seed; the reference's are the same at every size."""
        size = 0 if name == REFERENCE else size
        return [self.outcomes[name, size, seed].error for seed in self.plan.seed_numbers()]

    def lowest(self, name: str, size: int) -> list[float]:
        """As ``errors``, each training stopped where its test error was least."""
        return [self.outcomes[name, size, seed].lowest for seed in self.plan.seed_numbers()]

    def costs(self, name: str) -> dict[int, Cost]:
        """Of a training by its size, in the first seed."""
        return {size: self.outcomes[name, size, self.plan.first_seed].cost for size in self.plan.sizes}

    def interval(self, name: str, size: int) -> Interval:
        return interval(self.errors(name, size))

    def gains(self, name: str, other: str) -> list[Gain]:
        """Of ``name`` over ``other`` at every size, with Holm over the sizes."""
        sizes = self.plan.sizes
        return gains(sizes, [self.errors(name, n) for n in sizes], [self.errors(other, n) for n in sizes])

    def table(self, name: str) -> np.ndarray:
        """Errors ``[seeds, sizes]``."""
        return np.array([self.errors(name, size) for size in self.plan.sizes]).T

    @cached_property
    def _draws(self) -> np.ndarray:
        return np.random.default_rng(0).integers(self.plan.seeds, size=(DRAWS, self.plan.seeds))

    @cached_property
    def _reached(self) -> dict[str, tuple[Range, list[Range]]]:
        """Of every method: samples to reach the reference, and the same in every draw of seeds."""
        target = np.array(self.errors(REFERENCE, 0))
        sizes, tables = self.plan.sizes, {name: self.table(name) for name in self.names}
        return {
            name: (reach(sizes, list(x.mean(0)), float(target.mean())), reaches(sizes, x, target, self._draws))
            for name, x in tables.items()
        }

    def reached(self, name: str) -> Estimate:
        """Samples a method needs to be as good as the reference; says nothing where there is only one size."""
        return estimate(*self._reached[name], self.plan.seeds)

    def saving(self, name: str) -> Estimate:
        """How many times as many samples the baseline needs for that; above 1 where the method needs fewer."""
        (value, drawn), (other, other_drawn) = self._reached[self.plan.baseline], self._reached[name]
        return estimate(ratio(value, other), list(map(ratio, drawn, other_drawn)), self.plan.seeds)

    def slope(self, name: str) -> Slope:
        return slope(self.plan.sizes, self.table(name), self._draws)

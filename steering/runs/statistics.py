"""Intervals over seeds: what the repetitions of a run can decide, and what they cannot."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from scipy.stats import ttest_1samp

LEVEL = 0.95

Verdict = Literal["better", "worse", "undecided"]


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and how far chance may have moved it; without an interval the ends and p are None."""

    mean: float  # in the unit of the values
    low: float | None  # lower end of the 95 % t interval
    high: float | None
    seeds: int  # number of values
    p: float | None = None  # two-sided p value of a mean of zero in the same t test

    @property
    def half(self) -> float | None:
        """Half the width, what is written after a plus-minus sign."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def verdict(self) -> Verdict:
        """Reads the interval of a difference that is positive where the first is better."""
        if self.low is not None and self.low > 0:
            return "better"
        return "worse" if self.high is not None and self.high < 0 else "undecided"


def interval(values: Sequence[float], *, largest: float | None = None) -> Interval:
    """The mean of independent values with its 95 % t interval.

    There is no interval for one value, nor for values that are all equal (the seeds repeat one draw, or the
    measure is too coarse: the spread is unknown rather than zero), nor for values that are not finite.

    Args:
        values: one a seed.
        largest: size of the numbers that the values were computed from; those of the values if not given. A spread
            below what floats of this size resolve counts as none.

    Raises:
        ValueError: no values.

    Example:
        >>> print(f"{interval([1.0, 2.0, 3.0]).half:.3f}")
        2.484
    """
    if not values:
        raise ValueError("an interval needs at least one value, got none")
    number = len(values)
    if not all(map(math.isfinite, values)):
        return Interval(math.nan, None, None, number)
    mean = math.fsum(values) / number
    largest = max(map(abs, values)) if largest is None else largest
    if number == 1 or max(values) - min(values) <= 1e-12 * largest:
        return Interval(mean, None, None, number)
    test: Any = ttest_1samp(values, 0.0)
    ends = test.confidence_interval(LEVEL)
    return Interval(mean, float(ends.low), float(ends.high), number, float(test.pvalue))


def paired_difference(a: Sequence[float], b: Sequence[float], better: Literal["high", "low"]) -> Interval:
    """How much better ``a`` is than ``b``, seed by seed; positive means that ``a`` is better.

    Pairing removes what both share (the split, the noise, the initial weights), so a difference may be
    decided although the intervals of the two means overlap.

    Args:
        a, b: one value a seed, in the same order.
        better: which direction of the values is better.

    Raises:
        ValueError: the lists differ in length, or are empty.
    """
    sign = 1.0 if better == "high" else -1.0
    differences = [sign * (x - y) for x, y in zip(a, b, strict=True)]
    return interval(differences, largest=max(map(abs, (*a, *b)), default=0.0))


def holm(values: Sequence[float]) -> list[float]:
    """p values adjusted for all of them being looked at (Holm 1979), in the order of ``values``."""
    from statsmodels.stats.multitest import multipletests  # heavy, and only the larger reports compare several

    adjusted: Any = multipletests(values, method="holm")[1] if values else []
    return [float(value) for value in adjusted]

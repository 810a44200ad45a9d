"""All outcomes of a curve as numbers: errors, paired gains, samples to reach the reference, slopes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from steering.runs.statistics import LEVEL, Interval, Verdict, holm, interval, paired_difference
from steering.theory_checks.curve.plan import REFERENCE, Plan
from steering.theory_checks.curve.reach import Estimate, Range, Slope, estimate, ratio, reach, reaches, resamples, slope
from steering.theory_checks.curve.units import Outcome

Outcomes = Mapping[tuple[str, int, int], Outcome]  # by method, size (0 for the reference) and seed
LEAST, LEAST_REFERENCE = 12, 20  # seeds for a claim, and for one against the reference


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
        return resamples(self.plan.seeds, np.random.default_rng(0))

    @cached_property
    def _reached(self) -> dict[str, tuple[Range, list[Range]]]:
        """Of every method: samples to reach the reference, and the same in every draw of seeds."""
        target = np.array(self.errors(REFERENCE, 0))
        sizes, tables = self.plan.sizes, {name: self.table(name) for name in self.names}
        return {
            name: (reach(sizes, list(x.mean(0)), float(target.mean())), reaches(sizes, x, target, self._draws))
            for name, x in tables.items()
        }

    def reached(self, name: str) -> Estimate | None:
        """Samples a method needs to be as good as the reference; None where there is only one size."""
        return estimate(*self._reached[name], self.plan.seeds) if len(self.plan.sizes) > 1 else None

    def saving(self, name: str) -> Estimate | None:
        """How many times as many samples the baseline needs for that; above 1 where the method needs fewer."""
        if len(self.plan.sizes) == 1:
            return None
        (value, drawn), (other, other_drawn) = self._reached[self.plan.baseline], self._reached[name]
        return estimate(ratio(value, other), list(map(ratio, drawn, other_drawn)), self.plan.seeds)

    def slope(self, name: str) -> Slope | None:
        return slope(self.plan.sizes, self.table(name), self._draws)

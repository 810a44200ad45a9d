"""All outcomes of a curve as numbers: errors, gains, samples to reach the reference, slopes."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from steering.runs.statistics import Interval, interval
from steering.theory_checks.curve.comparisons import Gain, gains
from steering.theory_checks.curve.plan import REFERENCE, Plan
from steering.theory_checks.curve.reach import Estimate, Range, Slope, estimate, ratio, reach, reaches, resamples, slope
from steering.theory_checks.curve.units import Outcome

Outcomes = Mapping[tuple[str, int, int], Outcome]  # by method, size (0 for the reference) and seed


@dataclass(frozen=True)
class Analysis:
    """What the outcomes say.

    Attributes:
        plan: whose they are.
        outcomes: of every method, size and seed, and of the reference at size 0.
    """

    plan: Plan
    outcomes: Outcomes

    @property
    def names(self) -> list[str]:
        """Of the trained methods, in the order of the plan."""
        return list(self.plan.methods)

    def errors(self, name: str, size: int) -> list[float]:
        """One a seed; the reference's are the same at every size."""
        place = 0 if name == REFERENCE else size
        return [self.outcomes[name, place, seed].error for seed in self.plan.seed_numbers()]

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
        found = {}
        for name in self.names:
            table, sizes = self.table(name), self.plan.sizes
            whole = reach(sizes, list(table.mean(0)), float(target.mean()))
            found[name] = (whole, reaches(sizes, table, target, self._draws))
        return found

    def reached(self, name: str) -> Estimate | None:
        """Samples a method needs to be as good as the reference; None where there is only one size."""
        return estimate(*self._reached[name], self.plan.seeds) if len(self.plan.sizes) > 1 else None

    def saving(self, name: str) -> Estimate | None:
        """How many times as many samples the baseline needs for that; above 1 where the method needs fewer."""
        if len(self.plan.sizes) == 1:
            return None
        base, drawn = self._reached[self.plan.baseline]
        own, others = self._reached[name]
        ratios = [ratio(a, b) for a, b in zip(drawn, others, strict=True)]
        return estimate(ratio(base, own), ratios, self.plan.seeds)

    def slope(self, name: str) -> Slope | None:
        return slope(self.plan.sizes, self.table(name), self._draws)

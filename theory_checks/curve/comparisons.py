"""What can be said of the difference of two methods at every size, seeds being paired."""

from collections.abc import Sequence
from dataclasses import dataclass

from steering.runs.statistics import LEVEL, Interval, Verdict, holm, paired_difference

LEAST, LEAST_REFERENCE = 12, 20  # seeds for a claim, and for one against the reference


@dataclass(frozen=True)
class Gain:
    """How much smaller one method's error is than another's, at one size.

    Attributes:
        size: training samples.
        interval: of the paired difference, positive where the first method is better; of this size alone.
        adjusted: p value after Holm over the sizes of the same comparison; None where there is none.
    """

    size: int
    interval: Interval
    adjusted: float | None

    @property
    def verdict(self) -> Verdict:
        """Decided only if it still is after Holm."""
        if self.adjusted is None or self.adjusted >= 1 - LEVEL:
            return "undecided"
        return "better" if self.interval.mean > 0 else "worse"


def gains(sizes: Sequence[int], first: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> list[Gain]:
    """The gain of one method over another at every size.

    Args:
        sizes: ``[k]``.
        first: errors of the one that is asked about, ``[k][seeds]``.
        other: errors of the other one, of the same seeds.
    """
    found = [paired_difference(a, b, "low") for a, b in zip(first, other, strict=True)]
    known = [place for place, interval in enumerate(found) if interval.p is not None]
    adjusted = dict(zip(known, holm([found[place].p or 0.0 for place in known]), strict=True))
    return [
        Gain(size, interval, adjusted.get(place))
        for place, (size, interval) in enumerate(zip(sizes, found, strict=True))
    ]

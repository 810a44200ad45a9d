"""What the numbers say, in plain sentences that promise nothing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy import ndarray

from steering.reports.grid import Tone
from steering.theory_checks.bootstrap import Estimate
from steering.theory_checks.variance.measure import KURTOSIS, SHARE, Measured

VISIBLE = 0.5  # R above which the bound's factor sqrt(R) > 0.71 is not seen in practice
SAME = 1e-3  # R below which the target has become the reference
ERRORS = 3.0  # standard errors of a leak
EARLY = 2.0  # sd(l_ref) / sd(l) above which no correlation is high enough
FEW = 5  # repetitions below which an interval over them says little

Verdict = Literal["smaller", "larger", "undecided"]
TONES: dict[Verdict, Tone] = {"smaller": "better", "larger": "worse", "undecided": "undecided"}


def verdict(ratio: Estimate) -> Verdict:
    """Whether the variance is smaller with the reference, as far as the interval decides it."""
    if ratio.high < 1:
        return "smaller"
    return "larger" if ratio.low > 1 else "undecided"


def answer(measured: Measured, target: str) -> str:
    """The plain answer: what the theory makes one expect of this reference."""
    ratio, outcome = measured.ratio, verdict(measured.ratio)
    value, factor = f"R = {span(ratio)}", f"factor sqrt(R) = {math.sqrt(ratio.value):.2g}"
    if not measured.reliable:
        calm = f"winsorised {span(measured.winsorised)}"
        return f"Unreliable for {target}: single samples carry too much of the variances ({value}; {calm})."
    if ratio.value < SAME:
        return f"The target is the reference ({target}: {value}): of steering this says nothing."
    if outcome == "undecided":
        return f"Undecided for {target}: the interval of R reaches from below 1 to above it ({value})."
    if outcome == "larger":
        worse = f"By the bound, steering by it is worse than DRO without a reference ({factor})."
        return f"The loss varies more with the reference than without, {target}: {value}. {worse}"
    if ratio.low > VISIBLE:
        return f"Expect no visible effect of the variance, {target}: {value}, predicted {factor}."
    open_question = ", but whether enough to be seen is undecided" if ratio.high > VISIBLE else ""
    return f"The loss varies less with the reference, {target}{open_question}: {value}, predicted {factor}."


def further(by_name: dict[str, Measured]) -> list[str]:
    """What else the measurements say, mostly the first one."""
    (head, first), *others = by_name.items()
    figures, visible, lines = first.figures, min(first.ratio.value / 2, VISIBLE), []
    if scaled := figures.get("ratio_at_scale"):
        left = f"the reference leaves R = {span(scaled)} ({head}): {verdict(scaled)}."
        lines.append(f"Subtracted with the scale of the steered arm, {left}")
    lines += [answer(measured, name) for name, measured in others]
    beta, ratio_at_beta, difference = figures["beta"].value, figures["ratio_at_beta"].value, figures["difference"]
    if ratio_at_beta < visible and first.ratio.value > VISIBLE / 2:
        lines.append(
            f"What stands against the reference is its scale, not what it knows: subtracted {short(beta)} times "
            f"({head}), it would leave R = {short(ratio_at_beta)}."
        )
    tempered, temperature = first.tempered, first.temperature
    if tempered is not None and temperature is not None and tempered < visible:
        lines.append(
            f"With its scores divided by {short(temperature)} the reference would leave R = {short(tempered)} "
            f"({head}): it is {'over' if temperature > 1 else 'under'}-confident here."
        )
    mean = f"{short(abs(difference.value))} {'below' if difference.value < 0 else 'above'} the reference's"
    unrelated = f"{short(first.uncorrelated)} is what an unrelated reference gives."
    return [
        *lines,
        f"The mean held-out loss of {head} is {mean} (mean difference {span(difference)}).",
        f"With the reference's losses of other samples R is {short(first.shuffled)}; {unrelated}",
    ]


@dataclass(frozen=True)
class Leak:
    """Whether the reference does better on the target's training data than on fresh ones, which it has not to."""

    gap: float  # mean loss of the reference on fresh samples less that on training samples
    error: float  # standard error of the gap

    @property
    def detected(self) -> bool:
        return self.gap > ERRORS * self.error

    def sentence(self) -> str:
        gap, error = short(self.gap), f"{short(self.error)} (one standard error)"
        if not self.detected:
            where = "on fresh samples than on the target's training samples"
            return f"No sign of a leak: the reference's loss is {gap} +- {error} higher {where}."
        return (
            f"the reference's loss is {gap} lower on the target's training data than on fresh data "
            f"({self.gap / self.error:.1f} standard errors): it seems to have seen them, and what is measured here on "
            "fresh data does not hold in training"
        )


def leak(repetitions: Sequence[tuple[ndarray, ndarray]]) -> Leak:
    """From the reference's losses on fresh and on training samples, of every repetition."""
    gaps = [fresh.mean() - train.mean() for fresh, train in repetitions]
    squares = [fresh.var(ddof=1) / len(fresh) + train.var(ddof=1) / len(train) for fresh, train in repetitions]
    return Leak(float(np.mean(gaps)), float(np.sqrt(np.sum(squares)) / len(gaps)))


def cautions(name: str, measured: Measured) -> list[str]:
    """What to be careful about in one measurement."""
    lines, tails = [], measured.tails
    if not measured.reliable:
        lines.append(
            f"{name}: one sample carries {tails.share:.0%} of a variance and the kurtosis reaches {tails.kurtosis:.0f} "
            f"(limits {SHARE:.0%} and {KURTOSIS:.0f}): intervals may not hold what they promise; see the winsorised R"
        )
    if measured.ratio.value < SAME:
        lines.append(f"{name}: R is below {SAME:g}, so the target is the reference, whose R is 0 whatever its worth")
    if measured.figures["deviations"].value > EARLY:
        lines.append(
            f"{name}: the target's loss varies less than half as much as the reference's, so R > 1 whatever the "
            f"reference knows; so it is early in training, and with an over-confident reference"
        )
    return lines


def of_seeds(measured: Measured) -> list[str]:
    """What to be careful about for their number."""
    if measured.repetitions == 1:
        return ["one seed: the intervals cover the draw of the held-out samples, not of the training"]
    if measured.repetitions < FEW:
        return [f"{measured.repetitions} seeds are too few for an interval over seeds; use at least {FEW}"]
    return []


def span(estimate: Estimate, digits: int = 2) -> str:
    """``0.81 [0.70, 0.98]``."""
    return f"{short(estimate.value, digits)} [{short(estimate.low, digits)}, {short(estimate.high, digits)}]"


def short(value: float, digits: int = 2) -> str:
    """A number with so many digits that matter, never in powers of ten unless it is tiny or huge."""
    if not math.isfinite(value):
        return "none" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if value == 0 or not 1e-4 <= abs(value) < 1e5:
        return f"{value:.{digits - 1}e}" if value else "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))), 2 if abs(value) < 10 else 0)
    return f"{value:.{decimals}f}"

"""What every study contributes to the report, and how its numbers are written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from steering.reports.figures import Plot
from steering.reports.grid import MINUS, MISSING, PLUS_MINUS, Cell, Grid
from steering.runs.statistics import LEVEL, Interval, Verdict, holm, interval, paired_difference


@dataclass(frozen=True)
class Section:
    """One study's share of a report; the other fields are a report's.

    Attributes:
        changes: what the search over beta changed, by a word for where: points of error fewer than at beta = 1.
    """

    verdict: str = ""
    changes: dict[str, Interval] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    cautions: list[str] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    method: list[str] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)


def share(values: Sequence[float]) -> Cell:
    """Shares, in per cent, with the half width of their interval."""
    return Cell(spread(interval([100 * value for value in values]), 1))


def number(values: Sequence[float], digits: int) -> Cell:
    """Values with the half width of their interval."""
    return Cell(spread(interval(list(values)), digits))


def spread(found: Interval, digits: int) -> str:
    half = "" if found.half is None else f" {PLUS_MINUS} {found.half:.{digits}f}"
    mean = round(found.mean, digits) + 0.0  # which has no minus at zero
    return f"{mean:.{digits}f}{half}".replace("-", MINUS)


def fewer(values: Sequence[float], baseline: Sequence[float]) -> Interval:
    """How many points of error less than the baseline, paired by seed."""
    return paired_difference([100 * v for v in values], [100 * v for v in baseline], "low")


def gain(found: Interval) -> Cell:
    """A paired difference with a sign, coloured by what its interval decides."""
    if found.low is None and found.mean == 0:
        return Cell("0.0", "quiet")
    return Cell(signed(found), found.verdict)


def nothing() -> Cell:
    return Cell(MISSING, "quiet")


def said(found: Interval, what: str = "test error") -> str:
    """A paired difference as the end of a sentence."""
    points = f"{abs(found.mean):.1f}" + ("" if found.half is None else f" {PLUS_MINUS} {found.half:.1f}") + " points"
    if found.low is None:
        where = "in any repetition" if found.seeds > 1 else "in one repetition, which decides nothing"
        change = (
            f"no change of {what}" if found.mean == 0 else f"{points} {'less' if found.mean > 0 else 'more'} {what}"
        )
        return f"{change} {where}"
    if found.verdict == "undecided":
        return f"no decided difference in {what} ({spread(found, 1)} points, better above 0)"
    return f"{points} {'less' if found.verdict == 'better' else 'more'} {what}"


def signed(found: Interval) -> str:
    return ("+" if round(found.mean, 1) > 0 else "") + spread(found, 1)


def answer(changes: Mapping[str, Interval]) -> str:
    """What the search over beta changed anywhere, in one sentence: decided is what still is after Holm."""
    words = {"better": "fewer errors", "worse": "more errors", "undecided": "no decided difference"}
    verdicts, parts = _decided(changes), []
    for verdict, word in words.items():
        found = [f"{where} ({signed(change)})" for where, change in changes.items() if verdicts[where] == verdict]
        parts += [f"{word} for {', '.join(found)}"] if found else []
    corrected = f"; corrected by Holm for {len(changes)} comparisons" if len(changes) > 1 else ""
    return f"Choosing beta on a validation split made {'; '.join(parts)} (points of test error saved{corrected})."


def _decided(changes: Mapping[str, Interval]) -> dict[str, Verdict]:
    """What is decided of each; one without a p value was looked at too, and counts."""
    adjusted = holm([1.0 if change.p is None else change.p for change in changes.values()])
    return {
        where: change.verdict if p < 1 - LEVEL else "undecided"
        for (where, change), p in zip(changes.items(), adjusted, strict=True)
    }


def chosen(values: Sequence[float]) -> str:
    """Values of beta that repetitions chose, as few words as will do."""
    words = [f"{value:g}" for value in (values if len(set(values)) > 1 else values[:1])]
    return ", ".join(words) if len(words) <= 6 else f"{min(values):g} to {max(values):g}"

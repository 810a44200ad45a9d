"""What ``steer scaling`` measures: laws of all methods, and how far two of them differ and why."""

from collections.abc import Sequence
from dataclasses import dataclass

from steering.errors import UserError, did_you_mean
from steering.theory_checks.bootstrap import Estimate
from steering.theory_checks.scaling.fit import LEAST, Axis, Floor, Law, by_axis, fit, floor, gap, misread, paired_gap
from steering.theory_checks.scaling.points import Point


@dataclass(frozen=True)
class Gap:
    """One method against the baseline."""

    method: str
    value: Estimate  # how much larger its exponent is
    read: Estimate | None  # if only the reading of a figure were uncertain; None where nothing was read
    axes: list[Axis]  # along samples and along model size, where both vary
    groups: list[tuple[str, Estimate, Estimate | None]]  # the same for every model, and for every number of samples


@dataclass(frozen=True)
class Subset:
    """The fits to one choice of points."""

    name: str  # how the points were chosen
    points: list[Point]  # those that were fitted
    laws: dict[str, Law]  # of every method
    floors: dict[str, Floor | None]  # the fit with E_inf, None where it was not tried
    gaps: list[Gap]  # of every method but the baseline


def subset(name: str, points: Sequence[Point], baseline: str, reading: float | None, seed: int) -> Subset:
    """Fits one choice of points; ``reading`` is the standard deviation of every error, if read off a figure.

    Raises:
        UserError: no points, or an unknown baseline.
    """
    if not points:
        raise UserError(f"no points are left of {name}: loosen --where")
    methods = list(dict.fromkeys(point.method for point in points))
    if baseline not in methods:
        hint = did_you_mean(baseline, methods) or "."
        raise UserError(f"there are no points of the baseline {baseline!r}{hint} Methods: {', '.join(methods)}")
    laws = fit(points, seed)
    floors = {method: floor([p for p in points if p.method == method], seed) for method in methods}
    others = [method for method in methods if method != baseline]
    gaps = [_gap(points, laws, method, baseline, reading, seed) for method in others]
    return Subset(name, list(points), laws, floors, gaps)


def _gap(
    points: Sequence[Point], laws: dict[str, Law], method: str, baseline: str, reading: float | None, seed: int
) -> Gap:
    both = [point for point in points if point.method in (method, baseline)]
    units = min(len({point.unit for point in both if point.method == name}) for name in (method, baseline))
    read = None if reading is None else misread(both, method, baseline, reading, seed)
    groups = []
    for name, chosen in _groups(both):
        paired = paired_gap(chosen, method, baseline)
        if paired is not None:
            simulated = None if reading is None else misread(chosen, method, baseline, reading, seed)
            groups.append((name, paired, simulated))
    axes = by_axis(both, method, baseline, reading, seed)
    return Gap(method, gap(laws[method], laws[baseline], units), read, axes, groups)


def _groups(points: Sequence[Point]) -> list[tuple[str, list[Point]]]:
    """The points of every model, and those of every number of samples, where there are several of both."""
    models = list(dict.fromkeys(point.model for point in points if point.model is not None))
    samples = sorted({point.samples for point in points if point.samples is not None})
    if len(models) < 2 or len(samples) < 2:
        return []
    groups = [(f"{model}, by samples", [p for p in points if p.model == model]) for model in models]
    groups += [(f"{value:.3g} samples, by size", [p for p in points if p.samples == value]) for value in samples]
    return [(name, chosen) for name, chosen in groups if len({p.compute for p in chosen}) >= LEAST]

"""The tables of ``steer bound``."""

import numpy as np

from steering.reports.grid import MINUS, MISSING, Cell, Grid, Tone, cells, columns, span
from steering.theory_checks.bootstrap import interval
from steering.theory_checks.bound.claims import Claim, Verdict
from steering.theory_checks.bound.finite_class import FiniteClass
from steering.theory_checks.bound.own_reference import MIDDLING, NAMES
from steering.theory_checks.bound.study import BOUND, CERTIFICATE, FINITE, LINEAR, OWN, Study

TONES: dict[Verdict, Tone] = {"holds": "better", "fails": "worse", "undecided": "undecided", "no claim": "quiet"}
PARTS = {
    FINITE: ("Finite class", ""),
    OWN: (
        "References out of the class",
        "Upper quantile: of R(target) \u2212 R(reference), 95 %. Theory bounds how much worse, not how often.",
    ),
    BOUND: ("Bounds with all constants", ""),
    LINEAR: (
        "Linear model",
        "gap to ERM: n times (excess risk of DRRho \u2212 excess risk of ERM); positive where steering costs.",
    ),
    CERTIFICATE: (
        "Certificate: no worse than the reference, with probability 95 %",
        "m held-out differences; '1 in 100': rarely 1, else 0. An asymptotic bound misses the rare ones.",
    ),
}


def claims(every: list[Claim]) -> list[Grid]:
    """A table for every part."""
    heads = columns(["claim"], ["predicted", "measured [95 % interval]", "verdict"])
    return [
        Grid(title, heads, tuple(_claim(claim) for claim in every if claim.part == part), note)
        for part, (title, note) in PARTS.items()
    ]


def _claim(claim: Claim) -> tuple[Cell, ...]:
    value, percent = claim.measured, f"{100 * claim.measured.value:.1f} %"
    measured = f"{percent} [{100 * value.low:.1f}, {100 * value.high:.1f}]" if claim.percent else span(value)
    return (*cells(claim.name, claim.predicted, measured), Cell(claim.verdict, TONES[claim.verdict]))


def ratios(study: Study) -> Grid:
    """Excess risk of DRRho over DRO's, by spread and size."""
    rows = []
    for spread, by_size in study.ratios.items():
        ratio = FiniteClass(spread).ratio
        measured = [span(interval(drawn, study.extent.repetitions)) for drawn in by_size.values()]
        rows.append(cells(f"{ratio:.3g}", f"{ratio**0.5:.2f}", *measured))
    heads = columns([], ["R", "\u221aR, predicted", *(f"measured, n = {n}" for n in study.extent.ratio_at)])
    note = "At R = 0 the leading term vanishes, and what is left falls as 1/n. Brackets: 95 % intervals."
    return Grid("Excess risk of DRRho over that of DRO without a reference", heads, tuple(rows), note)


def radii(study: Study) -> Grid:
    """Slopes of DRRho at R = 0."""
    rows = tuple(cells(f"{rho:g}", span(slope)) for rho, slope in study.by_radius.items())
    note = "Too small a radius costs the rate, too large a one only the constant. ln(3 N / delta) is 9.5."
    return Grid("Rate of DRRho at R = 0 by radius", columns([], ["rho", "slope"]), rows, note)


def against(study: Study) -> Grid:
    """How much worse than a reference out of the class, and how often."""
    rows = []
    for index, n in enumerate(study.extent.own_sizes):
        differences = [study.against[MIDDLING][name][index] for name in NAMES]
        upper = [f"{np.quantile(values, 0.95):+.2g}".replace("-", MINUS) for values in differences]
        rows.append(cells(str(n), *upper, *(f"{100 * (values > 0).mean():.1f} %" for values in differences)))
    heads = columns([], ["n", *(f"quantile, {name}" for name in NAMES), *(f"worse, {name}" for name in NAMES)])
    note = "95 % quantile of R(target) \u2212 R(reference), and the share of samples in which it is above zero."
    return Grid("Against a reference out of the class, of excess risk 0.02", heads, tuple(rows), note)


def needed(study: Study) -> Grid:
    """Samples to reach references fitted on m samples."""
    rows = []
    for one in study.needed:
        sizes = [interval(one.by_method[name], one.repetitions) for name in ("ERM", "DRRho")]
        texts = [f"{size.value:.0f} [{size.low:.0f}, {size.high:.0f}]" for size in sizes]
        rows.append(cells(str(one.m), f"{one.reference:.2g}", *texts))
    heads = columns([], ["m", "reference's excess", "n, ERM", "n, DRRho"])
    note = "The size from which on the mean excess risk is at most twice the reference's. Brackets: 95 % intervals."
    return Grid("Samples to reach a reference fitted on m samples", heads, tuple(rows), note)


def bounds(study: Study) -> Grid:
    """Bound against truth."""
    rows = []
    for one in study.bounds:
        ratio = f"{FiniteClass(one.spread).ratio:.2g}" if one.method == "DRRho" else MISSING
        texts = (one.method, ratio, str(one.n), f"{one.bound:.2g}", f"{one.truth:.2g}", f"{one.factor:.0f}")
        rows.append(cells(*texts, f"{one.violations} of {one.repetitions}"))
    heads = columns(["method"], ["R", "n", "bound", "truth", "times too large", "violations"])
    return Grid("Bound against truth", heads, tuple(rows), "Truth: 95 % quantile of the excess risk.")

"""The tables of ``steer bound``."""

import numpy as np

from steering.reports.grid import MINUS, MISSING, Cell, Grid, Tone, span
from steering.theory_checks.bootstrap import interval
from steering.theory_checks.bound.claims import Claim, Verdict
from steering.theory_checks.bound.finite_class import NAMES, FiniteClass
from steering.theory_checks.bound.own_reference import MIDDLING
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


def tables(study: Study) -> list[Grid]:
    """Claims by part, then what they rest on."""
    heads = ["predicted", "measured [95 % interval]", "verdict"]
    claims = [
        Grid.of(title, ["claim"], heads, [_claim(claim) for claim in study.claims if claim.part == part], note)
        for part, (title, note) in PARTS.items()
    ]
    return [*claims, _ratios(study), _radii(study), _against(study), _needed(study), _bounds(study)]


def _claim(claim: Claim) -> list[Cell | str]:
    value = claim.measured
    percent = f"{100 * value.value:.1f} % [{100 * value.low:.1f}, {100 * value.high:.1f}]"
    measured = percent if claim.percent else span(value)
    return [claim.name, claim.predicted, measured, Cell(claim.verdict, TONES[claim.verdict])]


def _ratios(study: Study) -> Grid:
    rows = []
    for spread, by_size in study.ratios.items():
        ratio = FiniteClass(spread).ratio
        measured = [span(interval(drawn, study.extent.repetitions)) for drawn in by_size.values()]
        rows.append([f"{ratio:.3g}", f"{ratio**0.5:.2f}", *measured])
    heads = ["R", "\u221aR, predicted", *(f"measured, n = {n}" for n in study.extent.ratio_at)]
    note = "At R = 0 the leading term vanishes, and what is left falls as 1/n. Brackets: 95 % intervals."
    return Grid.of("Excess risk of DRRho over that of DRO without a reference", [], heads, rows, note)


def _radii(study: Study) -> Grid:
    rows = [[f"{rho:g}", span(slope)] for rho, slope in study.by_radius.items()]
    note = "Too small a radius costs the rate, too large a one only the constant. ln(3 N / delta) is 9.5."
    return Grid.of("Rate of DRRho at R = 0 by radius", [], ["rho", "slope"], rows, note)


def _against(study: Study) -> Grid:
    rows = []
    for index, n in enumerate(study.extent.own_sizes):
        differences = [study.against[MIDDLING][name][index] for name in NAMES]
        upper = [f"{np.quantile(values, 0.95):+.2g}".replace("-", MINUS) for values in differences]
        rows.append([str(n), *upper, *(f"{100 * (values > 0).mean():.1f} %" for values in differences)])
    heads = ["n", *(f"quantile, {name}" for name in NAMES), *(f"worse, {name}" for name in NAMES)]
    note = "95 % quantile of R(target) \u2212 R(reference), and the share of samples in which it is above zero."
    return Grid.of("Against a reference out of the class, of excess risk 0.02", [], heads, rows, note)


def _needed(study: Study) -> Grid:
    rows = []
    for one in study.needed:
        sizes = [span(interval(one.by_method[name], one.repetitions), 0) for name in ("ERM", "DRRho")]
        rows.append([str(one.m), f"{one.reference:.2g}", *sizes])
    heads = ["m", "reference's excess", "n, ERM", "n, DRRho"]
    note = "The size from which on the mean excess risk is at most twice the reference's. Brackets: 95 % intervals."
    return Grid.of("Samples to reach a reference fitted on m samples", [], heads, rows, note)


def _bounds(study: Study) -> Grid:
    rows = []
    for one in study.bounds:
        ratio = f"{FiniteClass(one.spread).ratio:.2g}" if one.method == "DRRho" else MISSING
        violations = f"{one.violations} of {one.repetitions}"
        rows.append(
            [one.method, ratio, str(one.n), f"{one.bound:.2g}", f"{one.truth:.2g}", f"{one.factor:.0f}", violations]
        )
    heads = ["R", "n", "bound", "truth", "times too large", "violations"]
    return Grid.of("Bound against truth", ["method"], heads, rows, "Truth: 95 % quantile of the excess risk.")

"""The report of ``steer bound``: verdicts, sentences and numbers of a study."""

from collections.abc import Iterable
from typing import Any

from steering.reports.grid import MINUS, MISSING, Cell, Grid, Tone, number, span
from steering.reports.report import Report
from steering.theory_checks.bound.claims import Claim, Verdict
from steering.theory_checks.bound.finite_class import NAMES, TRIMMED, variance_ratio
from steering.theory_checks.bound.own_reference import MIDDLING
from steering.theory_checks.bound.plots import draw
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


def report(study: Study, command: str) -> Report:
    """What a study says."""
    return Report(
        title="The bounds of reference-model steering",
        question="Do the rates, bounds and certificates of the theory hold where the truth is known?",
        verdict=_verdict(study),
        command=command,
        findings=_findings(study),
        cautions=_cautions(study),
        grids=tables(study),
        plots=draw(study),
        method=["Problems, definitions, intervals and limits are explained in docs/bound.md of model-steering."],
        numbers=_numbers(study),
    )


def _verdict(study: Study) -> str:
    """One sentence: what holds where."""
    names = [f"rate of {method} at R = 0" for method in ("DRRho", "DRRho, KL")]
    fast = [claim.verdict for claim in study.claims if claim.name in names]
    if all("holds" in verdicts and "fails" not in verdicts for verdicts in (fast, _beyond(study))):
        return (
            "In a finite class DRRho learns at the fast rate 1/n when the reference's losses match the best "
            "hypothesis's; in a parametric model it ends up worse than ERM once there is data enough."
        )
    every = [claim.verdict for claim in study.claims]
    counts = ", ".join(f"{every.count(verdict)} {verdict}" for verdict in ("holds", "fails", "undecided"))
    return f"These simulations do not settle the theory's main claims (claims by verdict: {counts}); see the tables."


def _beyond(study: Study) -> list[Verdict]:
    """Verdicts in the linear model with so much data that DRRho should be worse than ERM."""
    return [claim.verdict for claim in study.claims if claim.part == LINEAR and claim.predicted == "above 0"]


def _findings(study: Study) -> list[str]:
    measured = {claim.name: claim for claim in study.claims}
    ball = f"rate of {TRIMMED} at R = 0, were it a ball"
    erm, dro, drrho, softmax, trimmed = (
        number(measured[name].measured.value)
        for name in (*(f"rate of {method} at R = 0" for method in (*NAMES, "DRRho, KL")), ball)
    )
    exponents = (measured[f"exponent of m in the samples {name} needs"] for name in ("DRRho", "ERM"))
    of_drrho, of_erm = (f"{span(claim.measured)} ({claim.verdict})" for claim in exponents)
    last, off, worse = study.needed[-1], study.against[MIDDLING], _beyond(study)
    needed = [f"{last.by_method[name].value:.0f}" for name in ("DRRho", "ERM")]
    violations, trials = (sum(getattr(one, name) for one in study.bounds) for name in ("violations", "repetitions"))
    sentences = [
        f"Slopes of log excess risk in the finite class: ERM {erm}, DRO {dro}, DRRho {drrho}, DRRho with the KL ball "
        f"{softmax}.",
        f"CVaR that drops 3.2 \u221an samples, as many as rho = 5 has room for, has slope {trimmed}: top-k has no such "
        "theorem and does not behave as if it had.",
        f"Against a reference out of the class with excess risk 0.02, at n = {study.extent.own_sizes[0]}, DRRho is "
        f"worse in {100 * off['DRRho']['worse'][0]:.0f} % of samples, but in 95 % of them by at most "
        f"{off['DRRho']['upper'][0]:.2g} (ERM: {off['ERM']['upper'][0]:.2g}): the theory bounds by how much, not how "
        "often.",
        f"To come within twice the excess risk of a reference fitted on m = {last.m} samples takes DRRho {needed[0]} "
        f"samples and ERM {needed[1]}. Exponents of m, 0.5 and 1 in theory: DRRho {of_drrho}, ERM {of_erm}.",
        f"In the linear model every method has rate 1/n. Of {len(worse)} comparisons with more than 4 n_eq samples, "
        f"DRRho is worse than ERM in {worse.count('holds')}, undecided in {worse.count('undecided')} and better in "
        f"{worse.count('fails')}: a reference that is not exact costs a constant for ever. Steering pays at small n.",
        f"The bounds were violated {violations} times in {trials} trials, and are "
        f"{_range(one.factor for one in study.bounds)} times the truth: never read them as predicted errors. They "
        f"order the three methods at R = 0 as the truth does at n = {_ordered(study)}.",
    ]
    failed = [claim for claim in study.claims if claim.part == CERTIFICATE and claim.verdict == "fails"]
    if failed:
        sentences.append(
            "The asymptotic certificate does not keep its promise where few samples decide (coverage "
            f"{_range(100 * claim.measured.value for claim in failed)} % instead of 95); the empirical Bernstein one "
            "does, but needs bounded losses."
        )
    return sentences


def _ordered(study: Study) -> str:
    """Sizes at which bound and truth put the methods in the same order."""
    sizes = []
    for n in study.extent.tight:
        at_n = [one for one in study.bounds if one.n == n and one.spread == study.bounds[0].spread]
        if sorted(at_n, key=lambda one: one.bound) == sorted(at_n, key=lambda one: one.truth):
            sizes.append(str(n))
    return f"{' and '.join(sizes) or 'none'} of the {len(study.extent.tight)} sizes"


def _cautions(study: Study) -> list[str]:
    least, agreement = min(study.extent.repetitions, study.extent.fits), study.agreement
    small = f"Small simulation: some claims rest on {least} samples and may be undecided for that reason alone."
    lines = [small] * (least < 60)
    for name, gap in study.disagreement.items():
        if gap > 1e-9:
            lines.append(f"The risk on atoms and the engine's rule, or the formula, differ by {gap:.1e} for {name}.")
    if agreement is not None and agreement.value < 0.95:
        lines.append(f"Descent and exact test agree on a collapse in only {100 * agreement.value:.0f} % of fits.")
    return lines


def _numbers(study: Study) -> dict[str, Any]:
    """Everything that was measured."""
    return {
        "seed": study.seed,
        "extent": study.extent,
        "claims": [vars(claim) | {"verdict": claim.verdict} for claim in study.claims],
        "excess": {name: values.mean(1) for name, values in study.excess.items()},
        "ratios": study.ratios,
        "slope_by_radius": study.by_radius,
        "against": study.against,
        "needed": [{"m": one.m, "reference": one.reference, **one.intervals} for one in study.needed],
        "bounds": [vars(one) | {"factor": one.factor} for one in study.bounds],
        "linear": study.linear,
        "rules_against_atoms": study.disagreement,
        "collapse_foretold": study.agreement,
        "coverage": study.coverages,
    }


def _range(values: Iterable[float]) -> str:
    """From the smallest to the largest."""
    ordered = sorted(values)
    return " to ".join(dict.fromkeys(f"{end:.0f}" for end in (ordered[0], ordered[-1])))


def tables(study: Study) -> list[Grid]:
    """Claims by part, then what they rest on."""
    heads = ["predicted", "measured [95 % interval]", "verdict"]
    claims = [
        Grid.of(title, ["claim"], heads, [_claim(claim) for claim in study.claims if claim.part == part], note)
        for part, (title, note) in PARTS.items()
    ]
    note = "Too small a radius costs the rate, too large a one only the constant. ln(3 N / delta) is 9.5."
    slopes = [[f"{rho:g}", span(slope)] for rho, slope in study.by_radius.items()]
    radii = Grid.of("Rate of DRRho at R = 0 by radius", [], ["rho", "slope"], slopes, note)
    return [*claims, _ratios(study), radii, _against(study), _needed(study), _bounds(study)]


def _claim(claim: Claim) -> list[Cell | str]:
    measured, low, high = (f"{100 * x:.1f}" for x in vars(claim.measured).values())
    percent = f"{measured} % [{low}, {high}]" if claim.percent else span(claim.measured)
    return [claim.name, claim.predicted, percent, Cell(claim.verdict, TONES[claim.verdict])]


def _ratios(study: Study) -> Grid:
    rows = []
    for spread, by_size in study.ratios.items():
        ratio = variance_ratio(spread)
        rows.append([f"{ratio:.3g}", f"{ratio**0.5:.2f}", *map(span, by_size.values())])
    heads = ["R", "\u221aR, predicted", *(f"measured, n = {n}" for n in study.extent.ratio_at)]
    note = "At R = 0 the leading term vanishes, and what is left falls as 1/n. Brackets: 95 % intervals."
    return Grid.of("Excess risk of DRRho over that of DRO without a reference", [], heads, rows, note)


def _against(study: Study) -> Grid:
    rows = []
    for index, n in enumerate(study.extent.own_sizes):
        upper, worse = ([one[key][index] for one in study.against[MIDDLING].values()] for key in ("upper", "worse"))
        signed = [f"{value:+.2g}".replace("-", MINUS) for value in upper]
        rows.append([str(n), *signed, *(f"{100 * value:.1f} %" for value in worse)])
    heads = ["n", *(f"quantile, {name}" for name in NAMES), *(f"worse, {name}" for name in NAMES)]
    note = "95 % quantile of R(target) \u2212 R(reference), and the share of samples in which it is above zero."
    return Grid.of("Against a reference out of the class, of excess risk 0.02", [], heads, rows, note)


def _needed(study: Study) -> Grid:
    rows = [
        [str(one.m), f"{one.reference:.2g}", *(span(one.intervals[name], 0) for name in ("ERM", "DRRho"))]
        for one in study.needed
    ]
    heads = ["m", "reference's excess", "n, ERM", "n, DRRho"]
    note = "The size from which on the mean excess risk is at most twice the reference's. Brackets: 95 % intervals."
    return Grid.of("Samples to reach a reference fitted on m samples", [], heads, rows, note)


def _bounds(study: Study) -> Grid:
    rows = []
    for one in study.bounds:
        ratio = f"{variance_ratio(one.spread):.2g}" if one.method == "DRRho" else MISSING
        numbers = str(one.n), f"{one.bound:.2g}", f"{one.truth:.2g}", f"{one.factor:.0f}"
        rows.append([one.method, ratio, *numbers, f"{one.violations} of {one.repetitions}"])
    heads = ["R", "n", "bound", "truth", "times too large", "violations"]
    return Grid.of("Bound against truth", ["method"], heads, rows, "Truth: 95 % quantile of the excess risk.")

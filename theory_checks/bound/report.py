"""The report of ``steer bound``."""

from collections.abc import Iterable

import numpy as np

from steering.reports.grid import MINUS, MISSING, Cell, Column, Grid, Tone
from steering.reports.report import Report
from steering.theory_checks.bootstrap import Estimate, interval
from steering.theory_checks.bound.claims import Claim, Verdict
from steering.theory_checks.bound.figures import draw
from steering.theory_checks.bound.finite_class import FiniteClass
from steering.theory_checks.bound.own_reference import MIDDLING, NAMES
from steering.theory_checks.bound.study import BOUND, CERTIFICATE, FINITE, LINEAR, OWN, Study

TONES: dict[Verdict, Tone] = {"holds": "better", "fails": "worse", "undecided": "undecided", "no claim": "quiet"}
METHOD = [
    "Finite class: 231 hypotheses and a reference whose losses take eight values or fewer, so that population risks "
    "are exact and any n costs the same. Every hypothesis sees the same samples; a method returns the hypothesis of "
    "least risk. DRO and DRRho take the worst mean over the chi-square ball of radius rho / n (the paper's "
    "divergence, section 3), 'KL' over the KL ball, rho = 5. R is Var(loss - reference's loss) / Var(loss) of the "
    "best hypothesis. The radius was chosen before these seeds were drawn.",
    "Reference out of the class: the same class, but the 30 hypotheses that fail rarely are variants of the reference. "
    "The upper quantile is that of R(target) - R(reference) at 95 %; its slope is over the sizes where it is above "
    "zero. Fitted references: what ERM returns on m samples of its own; a method reaches them where its mean excess "
    "risk is from then on at most twice theirs, by straight lines on logarithms between powers of two.",
    "Bounds: two-sided chaining of empirical Bernstein (Maurer and Pontil 2009) over all hypotheses for DRO and "
    "DRRho, Hoeffding for ERM; delta = 0.05, all constants kept, radius ln(3 N / delta) n / (n - 1). Truth is the "
    "95 % quantile over samples.",
    "Linear model: five Gaussian inputs, noise of variance one, half squared loss, exact excess risk. The reference "
    "lies at a distance r from the truth; n_eq = 5 / r^2 is where ERM is as good as it. DRRho minimises the KL-ball "
    "risk by L-BFGS on the weights of the engine's own rule. Its limit is d/2 + rho b'H^-1 b with b = Cov(gradient, "
    "difference) / sd(difference) at the truth. A reference at the truth is returned exactly when an empirical "
    "likelihood test accepts it, asymptotically with probability P(chi2_d <= 2 rho).",
    "Certificate: an upper bound of risk(target) - risk(reference) from held-out losses, delta = 0.05; coverage is the "
    "share of simulated held-out sets for which the bound lay above the truth. It counts as kept from 93.5 % on.",
    "A claim holds if the 95 % interval of what was measured lies wholly in its band, fails if it lies wholly "
    "outside, and is undecided otherwise. Intervals: bootstrap over samples for slopes and ratios, t for means, "
    "Wilson for shares.",
]
NOTES = {
    OWN: "Upper quantile: of R(target) \u2212 R(reference), 95 %. Theory bounds how much worse, not how often.",
    LINEAR: "gap to ERM: n times (excess risk of DRRho \u2212 excess risk of ERM); positive where steering costs.",
    CERTIFICATE: "m held-out differences; '1 in 100': rarely 1, else 0. An asymptotic bound misses the rare ones.",
}
LIMITS = [
    "The finite class was built so that the theory has something to show: much noise that all share, and hypotheses "
    "that fail rarely. With other gaps ERM can be ahead at small n.",
    "Rates say nothing of a neural network's test error: there the class is neither finite nor is R zero.",
    "No theorem speaks of CVaR or top-k with a fixed share, whatever is measured here.",
]


def report(found: Study, command: str) -> Report:
    """Puts a study into words."""
    return Report(
        title="The bounds of reference-model steering",
        question="Do the rates, bounds and certificates of the theory hold where the truth is known?",
        verdict=_verdict(found),
        command=command,
        findings=_findings(found),
        cautions=_cautions(found),
        grids=[*_claims(found.claims), _ratios(found), _radii(found), _against(found), _needed(found), _bounds(found)],
        plots=draw(found),
        method=METHOD,
        limits=LIMITS,
        numbers=_numbers(found),
    )


def _verdict(found: Study) -> str:
    """One sentence: what holds where."""
    fast = [claim.verdict for claim in found.claims if claim.name.startswith("rate of DRRho") and _promised(claim)]
    worse = [claim.verdict for claim in _worse(found)]
    if all("holds" in each and "fails" not in each for each in (fast, worse)):
        return (
            "In a finite class DRRho learns at the fast rate 1/n when the reference's losses match the best "
            "hypothesis's; in a parametric model it ends up worse than ERM once there is data enough."
        )
    counts = ", ".join(f"{_count(found, verdict)} {verdict}" for verdict in ("holds", "fails", "undecided"))
    return f"These simulations do not settle the theory's main claims (claims by verdict: {counts}); see the tables."


def _promised(claim: Claim) -> bool:
    return claim.part == FINITE and "CVaR" not in claim.name


def _worse(found: Study) -> list[Claim]:
    """Of the linear model with so much data that DRRho should be worse than ERM."""
    return [claim for claim in _of(found, LINEAR) if claim.predicted == "above 0"]


def _count(found: Study, verdict: Verdict) -> int:
    return sum(claim.verdict == verdict for claim in found.claims)


def _of(found: Study, part: str) -> list[Claim]:
    return [claim for claim in found.claims if claim.part == part]


def _findings(found: Study) -> list[str]:
    slopes = {claim.name.removeprefix("rate of ").partition(" at R")[0]: claim for claim in _of(found, FINITE)}
    said = [
        f"Slopes of log excess risk in the finite class: ERM {_number(slopes['ERM'].measured.value)}, DRO "
        f"{_number(slopes['DRO'].measured.value)}, DRRho {_number(slopes['DRRho'].measured.value)}, DRRho with the KL "
        f"ball {_number(slopes['DRRho, KL'].measured.value)}."
    ]
    trimmed = next(claim for name, claim in slopes.items() if "n-3.2" in name)
    said.append(
        f"CVaR that drops 3.2 \u221an samples, as many as rho = 5 has room for, has slope "
        f"{_number(trimmed.measured.value)}: top-k has no such theorem and does not behave as if it had."
    )
    said += _own(found)
    worse = [claim.verdict for claim in _worse(found)]
    said.append(
        f"In the linear model every method has rate 1/n. Of {len(worse)} comparisons with more than 4 n_eq samples, "
        f"DRRho is worse than ERM in {worse.count('holds')}, undecided in {worse.count('undecided')} and better in "
        f"{worse.count('fails')}: a reference that is not exact costs a constant for ever. Steering pays at small n."
    )
    said.append(
        f"The bounds were violated {sum(one.violations for one in found.bounds)} times in "
        f"{sum(one.repetitions for one in found.bounds)} trials, and are "
        f"{_range(one.factor for one in found.bounds)} times the truth: never read them as predicted errors. They "
        f"order the three methods at R = 0 as the truth does at n = {_ordered(found)}."
    )
    failed = [claim for claim in _of(found, CERTIFICATE) if claim.verdict == "fails"]
    if failed:
        said.append(
            "The asymptotic certificate does not keep its promise where few samples decide (coverage "
            f"{_range(100 * claim.measured.value for claim in failed)} % instead of 95); the empirical Bernstein one "
            "does, but needs bounded losses."
        )
    return said


def _own(found: Study) -> list[str]:
    """Two sentences on references out of the class."""
    n, rows = found.extent.own_sizes[0], found.against[MIDDLING]
    tops = {name: np.quantile(values[0], 0.95) for name, values in rows.items()}
    often = (rows["DRRho"][0] > 0).mean()
    last = found.needed[-1]
    drrho, erm = (f"{last.by_method[name].value:.0f}" for name in ("DRRho", "ERM"))
    claims = {claim.name.split()[-2]: claim for claim in _of(found, OWN) if claim.name.startswith("exponent")}
    exponents = [f"{name} {_spanned(claims[name].measured)} ({claims[name].verdict})" for name in ("DRRho", "ERM")]
    return [
        f"Against a reference out of the class with excess risk 0.02, at n = {n}, DRRho is worse in "
        f"{100 * often:.0f} % of samples, but in 95 % of them by at most {tops['DRRho']:.2g} (ERM: {tops['ERM']:.2g}): "
        "the theory bounds by how much, not how often.",
        f"To come within twice the excess risk of a reference fitted on m = {last.m} samples takes DRRho {drrho} "
        f"samples and ERM {erm}. Exponents of m, 0.5 and 1 in theory: {', '.join(exponents)}.",
    ]


def _ordered(found: Study) -> str:
    """Sizes at which bound and truth put the methods in the same order."""
    sizes = []
    for n in found.extent.tight:
        mine = [one for one in found.bounds if one.n == n and one.spread == found.bounds[0].spread]
        orders = [sorted(mine, key=key) for key in (lambda one: one.bound, lambda one: one.truth)]
        sizes += [str(n)] if orders[0] == orders[1] else []
    others = len(found.extent.tight) - len(sizes)
    return f"{' and '.join(sizes) or 'none'} of the {others + len(sizes)} sizes"


def _cautions(found: Study) -> list[str]:
    said = []
    least = min(found.extent.repetitions, found.extent.fits)
    if least < 60:
        said.append(
            f"Small simulation: some claims rest on {least} samples and may be undecided for that reason alone."
        )
    for name, gap in found.disagreement.items():
        if gap > 1e-9:
            said.append(f"The risk on atoms and the engine's rule, or the formula, differ by {gap:.1e} for {name}.")
    if found.agreement is not None and found.agreement.value < 0.95:
        said.append(f"Descent and exact test agree on a collapse in only {100 * found.agreement.value:.0f} % of fits.")
    return said


def _claims(claims: list[Claim]) -> list[Grid]:
    """A table for every part."""
    columns = (Column("claim", False), Column("predicted"), Column("measured [95 % interval]"), Column("verdict"))
    titles = {
        FINITE: "Finite class",
        OWN: "References out of the class",
        BOUND: "Bounds with all constants",
        LINEAR: "Linear model",
        CERTIFICATE: "Certificate: no worse than the reference, with probability 95 %",
    }
    grids = []
    for part, title in titles.items():
        rows = [
            (
                Cell(claim.name),
                Cell(claim.predicted),
                Cell(_measured(claim)),
                Cell(claim.verdict, TONES[claim.verdict]),
            )
            for claim in claims
            if claim.part == part
        ]
        grids.append(Grid(title, columns, tuple(rows), NOTES.get(part, "")))
    return grids


def _ratios(found: Study) -> Grid:
    sizes = found.extent.ratio_at
    columns = (Column("R"), Column("\u221aR, predicted"), *(Column(f"measured, n = {n}") for n in sizes))
    rows = []
    for spread, by_size in found.ratios.items():
        ratio = FiniteClass(spread).ratio
        cells = [Cell(f"{ratio:.3g}"), Cell(f"{ratio**0.5:.2f}")]
        rows.append((*cells, *(Cell(_spanned(interval(by_size[n], found.extent.repetitions))) for n in sizes)))
    note = "At R = 0 the leading term vanishes, and what is left falls as 1/n. Brackets: 95 % intervals."
    return Grid("Excess risk of DRRho over that of DRO without a reference", columns, tuple(rows), note)


def _radii(found: Study) -> Grid:
    rows = tuple((Cell(f"{rho:g}"), Cell(_spanned(value))) for rho, value in found.by_radius.items())
    note = "Too small a radius costs the rate, too large a one only the constant. ln(3 N / delta) is 9.5."
    return Grid("Rate of DRRho at R = 0 by radius", (Column("rho"), Column("slope")), rows, note)


def _against(found: Study) -> Grid:
    columns = (Column("n"), *(Column(f"quantile, {name}") for name in NAMES))
    columns += tuple(Column(f"worse, {name}") for name in NAMES)
    rows = []
    for place, n in enumerate(found.extent.own_sizes):
        each = [found.against[MIDDLING][name][place] for name in NAMES]
        cells = [Cell(f"{np.quantile(values, 0.95):+.2g}".replace("-", MINUS)) for values in each]
        rows.append((Cell(str(n)), *cells, *(Cell(f"{100 * (values > 0).mean():.1f} %") for values in each)))
    note = "95 % quantile of R(target) \u2212 R(reference), and the share of samples in which it is above zero."
    return Grid("Against a reference out of the class, of excess risk 0.02", columns, tuple(rows), note)


def _needed(found: Study) -> Grid:
    columns = (Column("m"), Column("reference's excess"), Column("n, ERM"), Column("n, DRRho"))
    rows = []
    for one in found.needed:
        each = [interval(one.by_method[name], one.repetitions) for name in ("ERM", "DRRho")]
        cells = [Cell(f"{value.value:.0f} [{value.low:.0f}, {value.high:.0f}]") for value in each]
        rows.append((Cell(str(one.m)), Cell(f"{one.reference:.2g}"), *cells))
    note = "The size from which on the mean excess risk is at most twice the reference's. Brackets: 95 % intervals."
    return Grid("Samples to reach a reference fitted on m samples", columns, tuple(rows), note)


def _bounds(found: Study) -> Grid:
    columns = (Column("method", False), Column("R"), Column("n"), Column("bound"), Column("truth"))
    columns += (Column("times too large"), Column("violations"))
    rows = []
    for one in found.bounds:
        ratio = f"{FiniteClass(one.spread).ratio:.2g}" if one.method == "DRRho" else MISSING
        texts = (one.method, ratio, str(one.n), f"{one.bound:.2g}", f"{one.truth:.2g}", f"{one.factor:.0f}")
        rows.append((*map(Cell, texts), Cell(f"{one.violations} of {one.repetitions}")))
    return Grid("Bound against truth", columns, tuple(rows), "Truth: 95 % quantile of the excess risk.")


def _numbers(found: Study) -> dict:
    """Everything that was measured."""
    return {
        "seed": found.seed,
        "extent": vars(found.extent),
        "claims": [
            vars(claim) | {"measured": vars(claim.measured), "verdict": claim.verdict} for claim in found.claims
        ],
        "excess": {name: values.mean(1) for name, values in found.excess.items()},
        "ratios": {
            spread: {n: vars(interval(one, found.extent.repetitions)) for n, one in by_size.items()}
            for spread, by_size in found.ratios.items()
        },
        "slope_by_radius": {rho: vars(value) for rho, value in found.by_radius.items()},
        "against": {
            reference: {
                name: {
                    "upper": np.quantile(values, 0.95, axis=1),
                    "worse": (values > 0).mean(1),
                    "mean": values.mean(1),
                }
                for name, values in by_method.items()
            }
            for reference, by_method in found.against.items()
        },
        "needed": [
            {"m": one.m, "reference": one.reference}
            | {name: vars(interval(drawn, one.repetitions)) for name, drawn in one.by_method.items()}
            for one in found.needed
        ],
        "bounds": [vars(one) | {"factor": one.factor} for one in found.bounds],
        "linear": {
            distance: {
                n: {"ERM": n * fits.erm.mean()} | {f"rho={rho:g}": n * v.mean() for rho, v in fits.drrho.items()}
                for n, fits in by_size.items()
            }
            for distance, by_size in found.fits.items()
        },
        "rules_against_atoms": found.disagreement,
        "collapse_foretold": None if found.agreement is None else vars(found.agreement),
        "coverage": [vars(one) | {"covered": vars(one.covered)} for one in found.coverages],
    }


def _measured(claim: Claim) -> str:
    found = claim.measured
    if not claim.percent:
        return _spanned(found)
    return f"{100 * found.value:.1f} % [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-", MINUS)


def _spanned(estimate: Estimate) -> str:
    return f"{_number(estimate.value)} [{_number(estimate.low)}, {_number(estimate.high)}]"


def _range(values: Iterable[float]) -> str:
    """From the smallest to the largest."""
    found = sorted(values)
    low, high = f"{found[0]:.0f}", f"{found[-1]:.0f}"
    return low if low == high else f"{low} to {high}"

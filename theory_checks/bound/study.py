"""All checks of ``steer bound``: what is simulated, and which claims it is held against."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import chi2

from steering.reports.grid import MINUS
from steering.theory_checks.bootstrap import Estimate, interval
from steering.theory_checks.bound import finite_class, own_reference, parametric
from steering.theory_checks.bound.atoms import Array
from steering.theory_checks.bound.certificate import coverage
from steering.theory_checks.bound.claims import Claim, mean, ratio, share, slope, slope_of_means
from steering.theory_checks.bound.finite_class import BEST, NAMES, TRIMMED, variance_ratio
from steering.theory_checks.bound.parametric import LinearFits
from steering.theory_checks.bound.tightness import DELTA, Tightness, tightness
from steering.training.seeds import derive

FINITE, OWN, BOUND, LINEAR, CERTIFICATE = "finite class", "own reference", "bound", "linear model", "certificate"
TOLERANCE = 0.15  # of a slope


@dataclass(frozen=True)
class Extent:
    """How much is simulated."""

    sizes: tuple[int, ...] = finite_class.SIZES  # of the samples of the finite class
    repetitions: int = 150
    spreads: tuple[float, ...] = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4)  # references of the excess ratio
    ratio_at: tuple[int, ...] = (1600, 6400)  # sizes of the excess ratio
    radii: tuple[float, ...] = (0.5, 1, 2, 4, 8, 16)  # rho, at R = 0
    own_sizes: tuple[int, ...] = (50, 100, *finite_class.SIZES)  # against a reference out of the class
    own_repetitions: int = 600
    fitted_on: tuple[int, ...] = (400, 1600, 6400, 25600)  # samples m of fitted references
    tight: tuple[int, ...] = (100, 400, 1600, 6400)  # sizes where bound and truth are compared
    distances: tuple[float, ...] = (0.1, 0.3, 1.0)  # of the reference in the linear model
    linear_sizes: tuple[int, ...] = (50, 200, 800, 3200)
    rhos: tuple[float, ...] = (0.5, 2.5, 6.0)
    fits: int = 150  # of the linear model, for every size
    collapses: int = 1500  # samples drawn for the probability of a collapse
    collapse_at: int = 400  # size of each of them
    held_out: tuple[int, ...] = (100, 1000)  # sizes of the sets that a certificate sees
    covers: int = 2000  # of these sets
    ruled: int = 5  # samples on which the engine's rules are evaluated too


QUICK = Extent(
    repetitions=100,
    spreads=(0.0, 0.05, 0.2),
    ratio_at=(1600,),
    radii=(0.5, 4),
    own_sizes=(50, 100, 200, 400, 800, 1600, 6400),
    own_repetitions=100,
    fitted_on=(400, 1600, 6400),
    tight=(100, 1600),
    distances=(0.3, 1.0),
    linear_sizes=(50, 200, 800),
    rhos=(2.5,),
    fits=40,
    collapses=300,
    collapse_at=200,
    held_out=(100,),
    covers=1000,
    ruled=2,
)


@dataclass
class Study:
    """The results of all checks, filled one after the other."""

    extent: Extent
    seed: int
    # By method, [sizes, repetitions], at R = 0; the largest difference of the engine's rules to the risks on atoms.
    excess: dict[str, Array] = field(default_factory=dict)
    disagreement: dict[str, float] = field(default_factory=dict)
    # DRRho's excess over DRO's, by spread and size; DRRho's slope at R = 0, by rho.
    ratios: dict[float, dict[int, Estimate]] = field(default_factory=dict)
    by_radius: dict[float, Estimate] = field(default_factory=dict)
    # R(target) - R(reference) by the reference's index and method: 95 % quantile, mean and share above 0, [own_sizes].
    against: dict[int, dict[str, dict[str, Array]]] = field(default_factory=dict)
    needed: list[own_reference.SamplesNeeded] = field(default_factory=list)
    bounds: list[Tightness] = field(default_factory=list)
    linear: dict[float, dict[int, dict[str, float]]] = field(default_factory=dict)  # n times the mean excess risk
    agreement: Estimate | None = None  # share of fits whose collapse the test foretold
    coverages: list[dict[str, Any]] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)

    def rng(self, *names: str | int) -> np.random.Generator:
        """What draws one bootstrap."""
        return np.random.default_rng(derive(self.seed, "bootstrap", *names))

    def claim(self, *fields: Any, percent: bool = False) -> None:
        self.claims.append(Claim(*fields, percent=percent))

    def claim_slope(self, part: str, name: str, predicted: float, measured: Estimate) -> None:
        text = f"{predicted:.1f} \u00b1 {TOLERANCE}".replace("-", MINUS)
        self.claim(part, name, text, measured, predicted - TOLERANCE, predicted + TOLERANCE)


def study(extent: Extent, seed: int, say: Callable[[str], None]) -> Study:
    """Runs all checks; ``say`` is called with the name of each before it starts."""
    results = Study(extent, seed)
    for name, check in (
        ("rates in a finite class", _rates),
        ("excess risk against the variance ratio", _ratios),
        ("references out of the class", _own),
        ("bound against truth", _bounds),
        ("linear model", _linear),
        ("collapse onto the reference", _collapse),
        ("coverage of the certificate", _coverage),
    ):
        say(name)
        check(results)
    return results


def _rates(study: Study) -> None:
    extent = study.extent
    study.excess = finite_class.excess(0.0, extent.sizes, extent.repetitions, study.seed)
    promised = {"ERM": -0.5, "DRO": -0.5, "DRRho": -1.0, "DRRho, KL": -1.0, TRIMMED: -1.0}
    for method, values in study.excess.items():
        measured = slope_of_means(extent.sizes, values, study.rng("slope", method))
        name = f"rate of {method} at R = 0{', were it a ball' if method == TRIMMED else ''}"
        if method in promised:
            study.claim_slope(FINITE, name, promised[method], measured)
        else:
            study.claim(FINITE, name, "no theorem", measured)
    for rho in extent.radii:
        excess = finite_class.excess(0.0, extent.sizes, extent.repetitions, study.seed, ("DRRho",), rho)
        study.by_radius[rho] = slope_of_means(extent.sizes, excess["DRRho"], study.rng("radius", str(rho)))
    study.disagreement = finite_class.disagreement(0.1, 200, extent.ruled, study.seed)


def _ratios(study: Study) -> None:
    extent, largest = study.extent, {}
    for spread in extent.spreads:
        both = finite_class.excess(spread, extent.ratio_at, extent.repetitions, study.seed, ("DRO", "DRRho"))
        study.ratios[spread] = {}
        for n, dro, drrho in zip(extent.ratio_at, both["DRO"], both["DRRho"], strict=True):
            largest[variance_ratio(spread)] = drawn = ratio(drrho, dro, study.rng("ratio", str(spread), n))
            study.ratios[spread][n] = interval(drawn, extent.repetitions)
    largest.pop(0.0, None)  # where no power is
    values, draws = zip(*largest.values(), strict=True)
    measured = slope(list(largest), np.array(values), np.stack(draws, 1), extent.repetitions)
    study.claim_slope(FINITE, f"exponent of R in DRRho / DRO, n = {extent.ratio_at[-1]}", 0.5, measured)


def _own(study: Study) -> None:
    extent = study.extent
    for reference, name in ((BEST, "the best hypothesis"), (own_reference.MIDDLING, "a hypothesis 0.02 worse")):
        _against_reference(study, reference, name)
    study.needed = [own_reference.samples_needed(m, extent.own_repetitions, study.seed) for m in extent.fitted_on]
    for name, predicted in (("DRRho", 0.5), ("ERM", 1.0), (own_reference.ALONE, 1.0)):
        measured = own_reference.exponent(study.needed, name)
        study.claim_slope(OWN, f"exponent of m in the samples {name} needs", predicted, measured)


def _against_reference(study: Study, reference: int, reference_name: str) -> None:
    """How much worse than the reference a target may be, and how often it is."""
    extent, references = study.extent, np.full(study.extent.own_repetitions, reference)
    rngs = {n: np.random.default_rng(derive(study.seed, "own reference", reference, n)) for n in extent.own_sizes}
    by_size = [own_reference.against(references, n, rng) for n, rng in rngs.items()]
    above = {name: np.array([by_method[name] for by_method in by_size]) for name in NAMES}
    study.against[reference] = {
        name: {"upper": np.quantile(rows, 0.95, axis=1), "worse": (rows > 0).mean(1), "mean": rows.mean(1)}
        for name, rows in above.items()
    }
    quantiles, draws = own_reference.upper_quantile(above["DRRho"], study.rng("upper", reference))
    measured = slope(extent.own_sizes, quantiles, draws, extent.own_repetitions)
    predicted, name = f"{MINUS}1.0 or below, to {TOLERANCE}", f"rate of DRRho's upper quantile, {reference_name}"
    study.claim(OWN, name, predicted, measured, None, -1 + TOLERANCE)
    if reference != BEST:
        for name, rows in above.items():
            measured = share(int((rows[extent.own_sizes.index(400)] > 0).sum()), extent.own_repetitions)
            study.claim(OWN, f"{name} worse than {reference_name}, n = 400", "no theorem", measured, percent=True)


def _bounds(study: Study) -> None:
    spreads = tuple(spread for spread in study.extent.spreads if spread in (0.0, 0.05, 0.2))
    study.bounds = tightness(spreads, study.extent.tight, study.extent.repetitions, study.seed)
    violated: dict[str, list[tuple[int, int]]] = {}  # violations and trials by what was bounded
    for result in study.bounds:
        violated.setdefault(f"bound of {result.method}", []).append((result.violations, result.repetitions))
    certified = [(one.certified, one.repetitions) for one in study.bounds if one.certified is not None]
    for name, counts in (violated | {"bound against the reference, DRRho": certified}).items():
        wrong, trials = map(sum, zip(*counts, strict=True))
        measured = share(trials - wrong, trials)
        study.claim(BOUND, name, f"\u2265 {100 * (1 - DELTA):.0f} %", measured, 1 - DELTA, None, percent=True)


def _linear(study: Study) -> None:
    extent = study.extent
    sizes, rho, distance, fits = extent.linear_sizes, extent.rhos[len(extent.rhos) // 2], max(extent.distances), {}
    for r in extent.distances:
        fits[r] = {n: parametric.fit(r, n, extent.rhos, extent.fits, study.seed) for n in sizes}
        study.linear[r] = {
            n: {"ERM": n * one.erm.mean()} | {f"rho={rho:g}": n * v.mean() for rho, v in one.drrho.items()}
            for n, one in fits[r].items()
        }
    far, n = fits[distance], sizes[-1]
    excess = {"ERM": [far[n].erm for n in sizes], f"DRRho (rho = {rho:g})": [far[n].drrho[rho] for n in sizes]}
    for method, values in excess.items():
        measured = slope_of_means(sizes, np.array(values), study.rng("linear", method))
        study.claim_slope(LINEAR, f"rate of {method}, r = {distance:g}", -1, measured)
    for r in extent.distances:
        for size in (sizes[0], sizes[-1]):
            _against_erm(study, fits[r][size], r, size, rho)
    for rho in extent.rhos:
        limit = parametric.limit(distance, rho) - parametric.DIMENSION / 2
        measured = mean(n * (far[n].drrho[rho] - far[n].erm))
        name = f"gap to ERM, r = {distance:g}, rho = {rho:g}, n = {n}"
        study.claim(LINEAR, name, f"{limit:.2f} \u00b1 25 %", measured, 0.75 * limit, 1.25 * limit)


def _against_erm(study: Study, fits: LinearFits, distance: float, n: int, rho: float) -> None:
    """Better than ERM well below n_eq, worse well above; nothing is claimed in between."""
    matched = parametric.matched_at(distance)
    measured = mean(n * (fits.drrho[rho] - fits.erm))
    name = f"gap to ERM, r = {distance:g}, rho = {rho:g}, n = {n / matched:{'.0f' if n > matched else '.1f'}} n_eq"
    worse = ("above 0", 0.0, None) if n >= 4 * matched else ("either", None, None)
    predicted, *band = ("below 0", None, 0.0) if n <= matched / 2 else worse
    study.claim(LINEAR, name, predicted, measured, *band)


def _collapse(study: Study) -> None:
    extent = study.extent
    balances = parametric.balances(extent.collapse_at, extent.collapses, study.seed)
    for rho in extent.rhos:
        law = float(chi2.cdf(2 * rho, parametric.DIMENSION))  # of DRRho returning a reference at theta*, as n grows
        measured = share(int((balances <= rho).sum()), extent.collapses)
        name, predicted = f"collapse at r = 0, rho = {rho:g}, n = {extent.collapse_at}", f"{100 * law:.0f} % \u00b1 6"
        study.claim(LINEAR, name, predicted, measured, law - 0.06, law + 0.06, percent=True)
    foretold = parametric.fit(0.0, extent.linear_sizes[0], extent.rhos, extent.fits, study.seed).foretold
    study.agreement = share(int(foretold.sum()), foretold.size)


def _coverage(study: Study) -> None:
    study.coverages = coverage(study.extent.held_out, study.extent.covers, study.seed, DELTA)
    for result in study.coverages:
        name = f"{result['kind']}, {result['tails']}, m = {result['samples']}"
        least = 1 - DELTA - 0.015
        study.claim(CERTIFICATE, name, "\u2265 95 % (to 1.5)", result["covered"], least, None, percent=True)

"""All checks of ``steer bound``: what is simulated, and which claims it is held against."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from steering.reports.grid import MINUS
from steering.theory_checks.bootstrap import Drawn, Estimate, interval
from steering.theory_checks.bound import finite_class, own_reference, parametric
from steering.theory_checks.bound.atoms import Array
from steering.theory_checks.bound.certificate import Coverage, coverage
from steering.theory_checks.bound.claims import Claim, mean, ratio, share, slope, slopes
from steering.theory_checks.bound.finite_class import FiniteClass
from steering.theory_checks.bound.own_reference import BEST, MIDDLING, Needed, against, exponent, needed, upper
from steering.theory_checks.bound.parametric import Fits, Linear
from steering.theory_checks.bound.tightness import DELTA, Tightness, tightness
from steering.training.seeds import derive

FINITE, OWN, BOUND, LINEAR, CERTIFICATE = "finite class", "own reference", "bound", "linear model", "certificate"
TOLERANCE = 0.15  # of a slope
RATE = "{} \u00b1 0.15"


@dataclass(frozen=True)
class Extent:
    """How much is simulated.

    Attributes:
        sizes, repetitions: of the finite class.
        spreads, ratio_at: references and sizes of the excess ratio.
        radii: rho, at R = 0.
        own_sizes, own_repetitions: of the comparison with a reference out of the class.
        fitted_on: samples m that such references were fitted on.
        tight: sizes of the comparison of bound and truth.
        distances, linear_sizes, rhos, fits: of the linear model.
        collapses: samples drawn for the probability of a collapse, each of ``collapse_at``.
        held_out, covers: sizes and repetitions of the certificate's coverage.
        ruled: samples on which the engine's rules are asked too.
    """

    sizes: tuple[int, ...] = finite_class.SIZES
    repetitions: int = 150
    spreads: tuple[float, ...] = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4)
    ratio_at: tuple[int, ...] = (1600, 6400)
    radii: tuple[float, ...] = (0.5, 1, 2, 4, 8, 16)
    own_sizes: tuple[int, ...] = (50, 100, *finite_class.SIZES)
    own_repetitions: int = 600
    fitted_on: tuple[int, ...] = (400, 1600, 6400, 25600)
    tight: tuple[int, ...] = (100, 400, 1600, 6400)
    distances: tuple[float, ...] = (0.1, 0.3, 1.0)
    linear_sizes: tuple[int, ...] = (50, 200, 800, 3200)
    rhos: tuple[float, ...] = (0.5, 2.5, 6.0)
    fits: int = 150
    collapses: int = 1500
    collapse_at: int = 400
    held_out: tuple[int, ...] = (100, 1000)
    covers: int = 2000
    ruled: int = 5


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
    """What was found.

    Attributes:
        extent, seed: what was asked.
        excess: of the finite class at R = 0, by method, ``[sizes, repetitions]``.
        disagreement: of the engine's rules with the risks on atoms, by method.
        ratios: excess of DRRho over that of DRO, by spread and size.
        by_radius: slope of DRRho at R = 0, by rho.
        against: R(target) - R(reference) by the reference's index and method, ``[own_sizes, own_repetitions]``.
        needed: samples to reach references fitted on m samples.
        bounds: bound against truth.
        fits: of the linear model, by distance and size.
        agreement: share of fits whose collapse the test foretold.
        coverages: of the certificate.
        claims: all of it, claim by claim.
    """

    extent: Extent
    seed: int
    excess: dict[str, Array] = field(default_factory=dict)
    disagreement: dict[str, float] = field(default_factory=dict)
    ratios: dict[float, dict[int, Drawn]] = field(default_factory=dict)
    by_radius: dict[float, Estimate] = field(default_factory=dict)
    against: dict[int, dict[str, Array]] = field(default_factory=dict)
    needed: list[Needed] = field(default_factory=list)
    bounds: list[Tightness] = field(default_factory=list)
    fits: dict[float, dict[int, Fits]] = field(default_factory=dict)
    agreement: Estimate | None = None
    coverages: list[Coverage] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)

    def chance(self, *names: str | int) -> np.random.Generator:
        """What draws one bootstrap."""
        return np.random.default_rng(derive(self.seed, "bootstrap", *names))

    def claim(self, part: str, name: str, predicted: str, measured: Estimate, *band: float | None, percent=False):
        self.claims.append(Claim(part, name, predicted, measured, *band, percent=percent))


def study(extent: Extent, seed: int, say: Callable[[str], None]) -> Study:
    """Runs all checks.

    Args:
        extent: how much is simulated.
        seed: of all draws.
        say: is told what is being done.
    """
    found = Study(extent, seed)
    for words, part in (
        ("rates in a finite class", _rates),
        ("excess risk against the variance ratio", _ratios),
        ("references out of the class", _own),
        ("bound against truth", _bounds),
        ("linear model", _linear),
        ("collapse onto the reference", _collapse),
        ("coverage of the certificate", _coverage),
    ):
        say(words)
        part(found)
    return found


def _rates(found: Study) -> None:
    sizes, repetitions = found.extent.sizes, found.extent.repetitions
    found.excess = finite_class.excess(FiniteClass(), sizes, repetitions, found.seed)
    promised = {"ERM": -0.5, "DRO": -0.5, "DRRho": -1.0, "DRRho, KL": -1.0}
    for name, values in found.excess.items():
        measured = slope(sizes, values, found.chance("slope", name))
        if name in promised:
            wanted = promised[name]
            band = (wanted - TOLERANCE, wanted + TOLERANCE)
            found.claim(FINITE, f"rate of {name} at R = 0", RATE.format(_half(wanted)), measured, *band)
        elif "half" in name:
            found.claim(FINITE, f"rate of {name} at R = 0", "no theorem", measured)
        else:
            words = RATE.format(_half(-1))
            found.claim(
                FINITE, f"rate of {name} at R = 0, were it a ball", words, measured, -1 - TOLERANCE, -1 + TOLERANCE
            )
    for rho in found.extent.radii:
        values = finite_class.excess(FiniteClass(), sizes, repetitions, found.seed, rho=rho, only=("DRRho",))["DRRho"]
        found.by_radius[rho] = slope(sizes, values, found.chance("radius", str(rho)))
    found.disagreement = dict(finite_class.disagreement(FiniteClass(0.1), 200, found.extent.ruled, found.seed))


def _half(value: float) -> str:
    return f"{value:.1f}".replace("-", MINUS)


def _ratios(found: Study) -> None:
    sizes = found.extent.ratio_at
    for spread in found.extent.spreads:
        problem = FiniteClass(spread)
        both = finite_class.excess(problem, sizes, found.extent.repetitions, found.seed, only=("DRO", "DRRho"))
        found.ratios[spread] = {
            n: ratio(both["DRRho"][place], both["DRO"][place], found.chance("ratio", str(spread), n))
            for place, n in enumerate(sizes)
        }
    spreads = [spread for spread in found.extent.spreads if spread > 0]
    places = np.array([FiniteClass(spread).ratio for spread in spreads])
    each = [found.ratios[spread][sizes[-1]] for spread in spreads]
    drawn = slopes(places, np.stack([one.draws for one in each], 1))
    value = float(slopes(places, np.array([one.value for one in each])))
    measured = interval(Drawn(value, drawn), units=found.extent.repetitions)
    name = f"exponent of R in DRRho / DRO, n = {sizes[-1]}"
    found.claim(FINITE, name, RATE.format(_half(0.5)), measured, 0.5 - TOLERANCE, 0.5 + TOLERANCE)


def _own(found: Study) -> None:
    extent = found.extent
    for reference, words in ((BEST, "the best hypothesis"), (MIDDLING, "a hypothesis 0.02 worse")):
        _against_reference(found, reference, words)
    found.needed = [needed(m, extent.own_repetitions, found.seed) for m in extent.fitted_on]
    for name, wanted in (("DRRho", 0.5), ("ERM", 1.0), (own_reference.ALONE, 1.0)):
        words = f"exponent of m in the samples {name} needs"
        band = (wanted - TOLERANCE, wanted + TOLERANCE)
        found.claim(OWN, words, RATE.format(_half(wanted)), exponent(found.needed, name), *band)


def _against_reference(found: Study, reference: int, words: str) -> None:
    """How much worse than the reference a target may be, and how often it is."""
    extent, each = found.extent, []
    for n in extent.own_sizes:
        random = np.random.default_rng(derive(found.seed, "own reference", reference, n))
        each.append(against(np.full(extent.own_repetitions, reference), n, random))
    found.against[reference] = {name: np.array([one[name] for one in each]) for name in own_reference.NAMES}
    places = np.array(extent.own_sizes, dtype=float)
    values, drawn = upper(found.against[reference]["DRRho"], found.chance("upper", reference))
    rate = interval(Drawn(float(slopes(places, values)), slopes(places, drawn)), units=extent.own_repetitions)
    predicted = f"{_half(-1)} or below, to 0.15"
    found.claim(OWN, f"rate of DRRho's upper quantile, {words}", predicted, rate, None, -1 + TOLERANCE)
    if reference != BEST:
        middle = extent.own_sizes.index(400)
        for name, rows in found.against[reference].items():
            measured = share(int((rows[middle] > 0).sum()), extent.own_repetitions)
            found.claim(OWN, f"{name} worse than {words}, n = 400", "no theorem", measured, percent=True)


def _bounds(found: Study) -> None:
    spreads = tuple(spread for spread in found.extent.spreads if spread in (0.0, 0.05, 0.2))
    found.bounds = tightness(spreads, found.extent.tight, found.extent.repetitions, found.seed)
    for name in ("ERM", "DRO", "DRRho"):
        mine = [one for one in found.bounds if one.method == name]
        total, wrong = sum(one.repetitions for one in mine), sum(one.violations for one in mine)
        words = f"\u2265 {100 * (1 - DELTA):.0f} %"
        found.claim(BOUND, f"bound of {name}", words, share(total - wrong, total), 1 - DELTA, None, percent=True)
    mine = [one for one in found.bounds if one.certified is not None]
    total, wrong = sum(one.repetitions for one in mine), sum(one.certified or 0 for one in mine)
    name = "bound against the reference, DRRho"
    found.claim(BOUND, name, words, share(total - wrong, total), 1 - DELTA, None, percent=True)


def _linear(found: Study) -> None:
    extent = found.extent
    for distance in extent.distances:
        problem = Linear(distance)
        found.fits[distance] = {
            n: parametric.fit(problem, n, extent.rhos, extent.fits, found.seed) for n in extent.linear_sizes
        }
    sizes, rho = extent.linear_sizes, extent.rhos[len(extent.rhos) // 2]
    far = found.fits[max(extent.distances)]
    rates = {"ERM": [far[n].erm for n in sizes], f"DRRho (rho = {rho:g})": [far[n].drrho[rho] for n in sizes]}
    for name, values in rates.items():
        measured = slope(sizes, np.array(values), found.chance("linear", name))
        found.claim(
            LINEAR, f"rate of {name}, r = {max(extent.distances):g}", RATE.format(_half(-1)), measured, -1.15, -0.85
        )
    for distance in extent.distances:
        for n in (sizes[0], sizes[-1]):
            _against_erm(found, distance, n, rho)
    n = sizes[-1]
    for value in extent.rhos:
        limit = Linear(max(extent.distances)).limit(value) - parametric.DIMENSION / 2
        measured = mean(n * (far[n].drrho[value] - far[n].erm))
        name = f"gap to ERM, r = {max(extent.distances):g}, rho = {value:g}, n = {n}"
        found.claim(LINEAR, name, f"{limit:.2f} \u00b1 25 %", measured, 0.75 * limit, 1.25 * limit)


def _against_erm(found: Study, distance: float, n: int, rho: float) -> None:
    """Better than ERM well below n_eq, worse well above; nothing is claimed in between."""
    fits, matched = found.fits[distance][n], Linear(distance).matched_at
    measured = mean(n * (fits.drrho[rho] - fits.erm))
    name = f"gap to ERM, r = {distance:g}, rho = {rho:g}, n = {n / matched:{'.0f' if n > matched else '.1f'}} n_eq"
    if n <= matched / 2:
        found.claim(LINEAR, name, "below 0", measured, None, 0.0)
    elif n >= 4 * matched:
        found.claim(LINEAR, name, "above 0", measured, 0.0, None)
    else:
        found.claim(LINEAR, name, "either", measured)


def _collapse(found: Study) -> None:
    extent, problem = found.extent, Linear(0.0)
    balances = parametric.balances(problem, extent.collapse_at, extent.collapses, found.seed)
    for rho in extent.rhos:
        law = parametric.collapse_law(rho)
        measured = share(int((balances <= rho).sum()), extent.collapses)
        name = f"collapse at r = 0, rho = {rho:g}, n = {extent.collapse_at}"
        words = f"{100 * law:.0f} % \u00b1 6"
        found.claim(LINEAR, name, words, measured, law - 0.06, law + 0.06, percent=True)
    fits = parametric.fit(problem, extent.linear_sizes[0], extent.rhos, extent.fits, found.seed)
    hits = sum(int((fits.touching[rho] == fits.exact[rho]).sum()) for rho in extent.rhos)
    found.agreement = share(hits, extent.fits * len(extent.rhos))


def _coverage(found: Study) -> None:
    extent = found.extent
    found.coverages = coverage(extent.held_out, extent.covers, found.seed, DELTA)
    for one in found.coverages:
        name = f"{one.kind}, {one.tails}, m = {one.samples}"
        least = 1 - DELTA - 0.015
        found.claim(CERTIFICATE, name, "\u2265 95 % (to 1.5)", one.covered, least, None, percent=True)

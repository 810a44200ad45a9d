"""A finite class whose population risk is exact: the rates that the paper's bounds promise.

231 hypotheses, whose losses are sums of few signs, hence of few atoms. A sample has a difficulty c = +-1 that all
share. The best hypothesis loses ``1/2 + c/4``. 200 ordinary ones lose ``gap + 0.2 e`` more, with a sign e for each of
them and gaps up to 0.2. 30 more lose 1 with a small probability q, and 0.9 q less always: what is never seen to fail
looks good. The reference loses ``1/2 + c/4 + spread e_ref``. docs/bound.md says what came out, and on which seeds.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from steering.rules import KL, ChiSquare, CVaR, Rule
from steering.theory_checks.bound import atoms
from steering.theory_checks.bound.atoms import Array, Counts, Risk
from steering.training.seeds import derive

NAMES = ("ERM", "DRO", "DRRho")
TRIMMED = "DRRho, CVaR n-3.2\u221an"
SIZES = (200, 400, 800, 1600, 3200, 6400, 12800)
RHO = 5.0
COMMON = 0.25  # standard deviation of the difficulty that all losses share
NOISE = 0.2  # standard deviation of what every ordinary hypothesis adds
ORDINARY, RARE = 200, 30
BEST = ORDINARY + RARE  # index of the best hypothesis; it comes last, so that ties go to others

GAPS = 0.2 * (np.arange(1, ORDINARY + 1) / ORDINARY) ** 1.5
FAILURES = np.geomspace(1e-5, 0.2, RARE)  # probabilities q
EXCESS = np.concatenate([GAPS, 0.1 * FAILURES, [0.0]])  # population risk above the best hypothesis's, [hypotheses]
_C, _E_REF, _E = (signs.ravel() for signs in np.meshgrid(*[[-1.0, 1.0]] * 3, indexing="ij"))  # of the atoms, [8]
ABOVE_BEST = np.concatenate([GAPS[:, None] + NOISE * _E, (_E > 0) - 0.9 * FAILURES[:, None], np.zeros((1, 8))])
LOSSES = 0.5 + COMMON * _C + ABOVE_BEST  # of every hypothesis at every atom, [hypotheses, 8]


def variance_ratio(spread: float) -> float:
    """R = Var(loss - reference loss) / Var(loss) of the best hypothesis; the spread is the sd of this difference."""
    return spread**2 / COMMON**2


def differences(spread: float) -> Array:
    """Loss minus the reference's, ``[hypotheses, 8]``; what they share is left out, not rounded away."""
    return ABOVE_BEST - spread * _E_REF


def draw(n: int, repetitions: int, rng: np.random.Generator) -> Counts:
    """Counts of the atoms in samples of size n, ``[repetitions, hypotheses, 8]``; all hypotheses see the same."""
    cells = rng.multinomial(n, [0.25] * 4, size=repetitions)[:, None, :]
    chance = np.concatenate([np.full(ORDINARY, 0.5), FAILURES, [0.5]])[None, :, None]
    up = rng.binomial(cells, chance)
    return np.stack([cells - up, up], -1).reshape(repetitions, -1, 8)


class Method(NamedTuple):
    """How a hypothesis is chosen: the least risk."""

    rule: Rule | None  # of the engine that stands for the risk, None for the plain mean
    risk: Risk  # the same on atoms
    subtract: bool  # whether the losses are those above the reference's

    def values(self, spread: float) -> Array:
        """Losses as the method sees them, ``[hypotheses, 8]``."""
        return differences(spread) if self.subtract else LOSSES

    def risks(self, spread: float, counts: Counts) -> Array:
        """What the method minimises, ``[repetitions, hypotheses]``."""
        return self.risk(self.values(spread), counts)


def methods(n: int, rho: float = RHO) -> dict[str, Method]:
    """What is compared, at a sample size."""
    trimmed = 1 - 3.2 / np.sqrt(n)  # the share kept whose ball shrinks as fast as that of rho = 5 does
    square, softmax = partial(atoms.chi_square, rho=rho), partial(atoms.kl, rho=rho)
    return {
        "ERM": Method(None, atoms.mean, False),
        "DRO": Method(ChiSquare(rho=rho), square, False),
        "DRRho": Method(ChiSquare(rho=rho), square, True),
        "DRRho, KL": Method(KL(rho=rho), softmax, True),
        "DRRho, CVaR half": Method(CVaR(0.5), partial(atoms.cvar, kept=0.5), True),
        TRIMMED: Method(CVaR(trimmed), partial(atoms.cvar, kept=trimmed), True),
    }


ALL = tuple(methods(SIZES[0]))


def excess(
    spread: float, sizes: Sequence[int], repetitions: int, seed: int, only: Sequence[str] = ALL, rho: float = RHO
) -> dict[str, Array]:
    """Exact excess risk of what every method chooses, ``[sizes, repetitions]``; all see the same samples."""
    by_method: dict[str, list[Array]] = {name: [] for name in only}
    for n in sizes:
        counts = draw(n, repetitions, np.random.default_rng(derive(seed, "finite class", n)))
        for name in only:
            by_method[name].append(EXCESS[methods(n, rho)[name].risks(spread, counts).argmin(-1)])
    return {name: np.array(rows) for name, rows in by_method.items()}


def disagreement(spread: float, n: int, repetitions: int, seed: int) -> dict[str, float]:
    """Largest difference between the risks on atoms and those of the engine's rules, by method.

    Under ``mean and deviation`` stands that between the chi-square risk and its formula where no weight touches zero.
    """
    counts = draw(n, repetitions, np.random.default_rng(derive(seed, "rules", n)))
    gaps = {}
    for name, method in methods(n).items():
        if method.rule is not None:
            by_rule = np.array([atoms.by_rule(method.rule, method.values(spread), sample) for sample in counts])
            gaps[name] = float(np.abs(by_rule - method.risks(spread, counts)).max())
    values = differences(spread)
    gap = np.abs(atoms.mean_and_deviation(values, counts, RHO) - atoms.chi_square(values, counts, RHO))
    return gaps | {"mean and deviation": float(gap[atoms.interior(values, counts, RHO)].max())}

"""Bounds with all their constants beside the truth, on the finite class.

With N hypotheses, t = ln(3 N / delta), rho = t n / (n - 1) and B the largest range of one hypothesis's (differences of)
losses, with probability 1 - delta:

    DRO, DRRho:  excess <= 2 sqrt(2 rho Var* / n) + 20 B rho / (3 n)
    ERM:         excess <= 2 B sqrt(ln(2 N / delta) / (2 n))

Var* is the variance of the best hypothesis's loss, for DRRho of its difference to the reference. Proof of the first:
Maurer and Pontil's empirical Bernstein inequality for all hypotheses gives risk <= mean + sqrt(2 rho / n) s + 7 B rho
/ (3 n); that is at most the robust risk plus 13 B rho / (3 n), also where a weight touches zero; the robust risk of
the best hypothesis is at most mean + sqrt(2 rho / n) s, which Bernstein and the concentration of s bound by its risk
plus 2 sqrt(2 rho Var* / n) + 7 B rho / (3 n). Hoeffding gives the second. The first line also certifies from the
training set alone that the risk above the reference's is at most the DRRho risk plus 13 B rho / (3 n).
"""

import math
from dataclasses import dataclass

import numpy as np

from steering.theory_checks.bound.atoms import Array
from steering.theory_checks.bound.finite_class import EXCESS, LOSSES, NAMES, draw, methods
from steering.training.seeds import derive

DELTA = 0.05


@dataclass(frozen=True)
class Tightness:
    """One method at one size, bound against truth."""

    method: str
    n: int
    spread: float  # of the reference
    bound: float  # of the excess risk, with probability 1 - delta
    truth: float  # the 95 % quantile of the excess risk over repetitions
    violations: int  # repetitions whose excess risk lay above the bound
    certified: int | None  # repetitions that violated the certificate from the training set; None without a reference
    repetitions: int

    @property
    def factor(self) -> float:
        """How many times the bound exceeds the truth."""
        return self.bound / self.truth if self.truth > 0 else math.inf


def tightness(spreads: tuple[float, ...], sizes: tuple[int, ...], repetitions: int, seed: int) -> list[Tightness]:
    """Measures every method at the theory's radius; those without a reference once, at the first spread."""
    results = []
    for spread in spreads:
        for n in sizes:
            counts = draw(n, repetitions, np.random.default_rng(derive(seed, "tightness", str(spread), n)))
            rho = radius(n)
            for name in NAMES if spread == spreads[0] else NAMES[-1:]:
                method = methods(n, rho)[name]
                risks = method.risks(spread, counts)
                excess, limit = EXCESS[risks.argmin(-1)], bound(spread, name, n)
                violations, truth = int((excess > limit).sum()), float(np.quantile(excess, 0.95))
                room = 13 * _range(method.values(spread)) * rho / (3 * n)
                certified = int((excess > risks.min(-1) + room).sum()) if method.subtract else None
                results.append(Tightness(name, n, spread, limit, truth, violations, certified, repetitions))
    return results


def radius(n: int) -> float:
    """rho of the theory, about 9.5 for 231 hypotheses and delta = 0.05."""
    return math.log(3 * len(EXCESS) / DELTA) * n / (n - 1)


def bound(spread: float, method: str, n: int) -> float:
    """Of the excess risk with probability 1 - delta, for a name of ``NAMES``."""
    if method == "ERM":
        return 2 * _range(LOSSES) * math.sqrt(math.log(2 * len(EXCESS) / DELTA) / (2 * n))
    values, rho = methods(n)[method].values(spread), radius(n)
    best = float(values[-1].var())  # the best hypothesis's atoms are equally likely
    return 2 * math.sqrt(2 * rho * best / n) + 20 * _range(values) * rho / (3 * n)


def _range(values: Array) -> float:
    return float(np.ptp(values, axis=-1).max())

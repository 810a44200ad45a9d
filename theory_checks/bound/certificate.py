"""The certificate: with probability 1 - delta the target is no worse than the reference, from held-out losses."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from steering.errors import UserError
from steering.theory_checks.bound.atoms import Array
from steering.theory_checks.bound.claims import share
from steering.training.seeds import derive


@dataclass(frozen=True)
class Certificate:
    """What held-out losses say of the target's risk minus the reference's."""

    mean: float  # of the differences; negative where the target was better
    upper: float  # not exceeded by the true difference with probability 1 - delta
    # The first holds at every sample size, given the range; the second only for many samples of light tails.
    kind: Literal["empirical Bernstein", "asymptotic"]
    samples: int  # number of differences
    delta: float  # probability of error

    @property
    def better(self) -> bool:
        """Whether the target is certified to be no worse than the reference."""
        return self.upper <= 0


def certificate(differences: Array, delta: float = 0.05, width: float | None = None) -> Certificate:
    """Bounds R(target) - R(reference) from above.

    With a width B: ``mean + sqrt(2 V ln(2/delta) / m) + 7 B ln(2/delta) / (3 (m - 1))`` (Maurer and Pontil 2009,
    theorem 4). Without one: ``mean + t sqrt(V / m)``, t the quantile of Student's distribution.

    Args:
        differences: target's loss minus reference's, ``[m]``, of samples that neither was trained or tuned on.
        delta: probability of error, above 0 and below 1.
        width: length of an interval chosen beforehand that holds every difference, in units of the loss.

    Raises:
        UserError: fewer than two differences, one that is not finite or lies outside the width, or no probability.
    """
    m = len(differences)
    if m < 2:
        raise UserError(f"a certificate needs at least 2 held-out differences, got {m}")
    if not 0 < delta < 1:
        raise UserError(f"delta is a probability of error above 0 and below 1, 0.05 say; got {delta:g}")
    if not np.isfinite(differences).all():
        raise UserError(f"{int((~np.isfinite(differences)).sum())} of {m} differences are not finite: no certificate")
    mean, variance = float(differences.mean()), float(differences.var(ddof=1))
    if width is None:
        upper = mean + float(t.ppf(1 - delta, m - 1)) * math.sqrt(variance / m)
        return Certificate(mean, upper, "asymptotic", m, delta)
    span = float(np.ptp(differences))
    if span > width * (1 + 1e-9):
        raise UserError(f"the differences span {span:g}, more than the width {width:g} that shall hold them all")
    log = math.log(2 / delta)
    upper = mean + math.sqrt(2 * variance * log / m) + 7 * width * log / (3 * (m - 1))
    return Certificate(mean, upper, "empirical Bernstein", m, delta)


# Distributions of differences: what draws them, their mean, and the width of an interval that holds all values.
TAILS: dict[str, tuple[Callable[[np.random.Generator, tuple[int, int]], NDArray[Any]], float, float | None]] = {
    "bounded, even": (lambda rng, shape: rng.uniform(-0.6, 0.4, shape), -0.1, 1.0),
    "bounded, 1 in 100": (lambda rng, shape: (rng.random(shape) < 0.01) * 1.0, 0.01, 1.0),
    "normal": (lambda rng, shape: rng.normal(-0.1, 0.5, shape), -0.1, None),
    "lognormal": (lambda rng, shape: rng.lognormal(0, 2, shape), math.exp(2), None),
}


def coverage(samples: Sequence[int], repetitions: int, seed: int, delta: float = 0.05) -> list[dict[str, Any]]:
    """How often the certificate of m = ``samples`` held-out losses is right, for every distribution and size.

    Returns:
        ``tails``, the distribution; ``kind`` of certificate; ``samples``; ``covered``, the share of repetitions whose
        bound was not exceeded; ``slack``, the median of bound minus true mean in standard errors of the mean.
    """
    results = []
    for (name, (draw, mean, bounded)), m in product(TAILS.items(), samples):
        drawn = draw(np.random.default_rng(derive(seed, "certificate", name, m)), (repetitions, m))
        for width in dict.fromkeys((None, bounded)):
            certificates = [certificate(row, delta, width) for row in drawn]
            above = np.array([bound.upper for bound in certificates]) - mean
            covered, error = share(int((above >= 0).sum()), repetitions), drawn.std() / math.sqrt(m)
            result = {"tails": name, "kind": certificates[0].kind, "samples": m, "covered": covered}
            results.append(result | {"slack": float(np.median(above)) / error})
    return results
